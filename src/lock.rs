// SPDX-License-Identifier: MIT OR Apache-2.0
//! The update lock: one thread at a time changes a table.
//!
//! Does not know what it protects. A futex, as a mutex is, but for two things that a mutex cannot do: it says whether
//! the calling thread is its holder, and it refuses a thread that would deadlock. A thread that is in a read-side
//! section may wait for the lock, unless the holder waits for readers: then neither would ever go on.

use crate::error::{Errno, Result};
use crate::thread::{AtomicThreadId, ThreadId};
use std::sync::atomic::{AtomicU32, Ordering};

/// Nobody holds it.
const FREE: u32 = 0;
/// Held. No thread sleeps, unless another one that was woken is on its way to the lock.
const HELD: u32 = 1;
/// Held, and somebody may sleep.
const CONTENDED: u32 = 2;
/// Held by a thread that waits for readers, and somebody may sleep.
const WAITING: u32 = 3;

pub(crate) struct UpdateLock {
    state: AtomicU32,
    /// Threads that want it and have found it held, asleep or not.
    waiters: AtomicU32,
    holder: AtomicThreadId,
}

impl UpdateLock {
    pub(crate) const fn new() -> Self {
        UpdateLock { state: AtomicU32::new(FREE), waiters: AtomicU32::new(0), holder: AtomicThreadId::none() }
    }

    /// Takes the lock. `in_section` says whether the calling thread is in a read-side section; it is asked only where
    /// the lock is held.
    ///
    /// # Errors
    /// `EDEADLK` where this thread holds it, or where the holder waits for a section of this thread's.
    #[inline(always)]
    pub(crate) fn lock(&self, in_section: impl FnOnce() -> bool) -> Result<()> {
        let me = ThreadId::current();
        if self.holder.get() == me {
            return Err(Errno::EDEADLK);
        }
        if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_contended(in_section())?;
        }
        self.holder.set(me);
        Ok(())
    }

    #[cold]
    fn lock_contended(&self, in_section: bool) -> Result<()> {
        // Before it looks at the state: see has_waiters().
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let result = self.wait_for_it(in_section);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn wait_for_it(&self, in_section: bool) -> Result<()> {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state == WAITING && in_section {
                return Err(Errno::EDEADLK);
            }
            if state == WAITING {
                futex_wait(&self.state, WAITING);
                continue;
            }
            // This thread may have been one of several sleepers, so that others may still sleep.
            if self.state.compare_exchange(state, CONTENDED, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            if state == FREE {
                return Ok(());
            }
            futex_wait(&self.state, CONTENDED);
        }
    }

    /// Whether the calling thread holds the lock.
    #[inline(always)]
    pub(crate) fn is_mine(&self) -> bool {
        self.holder.get() == ThreadId::current()
    }

    /// Takes the lock over from a thread that will never come back: it died, or is not in this process.
    pub(crate) fn take_over(&self) {
        self.state.store(CONTENDED, Ordering::Relaxed);
        self.holder.set(ThreadId::current());
    }

    /// Whether anybody holds it.
    pub(crate) fn is_held(&self) -> bool {
        self.state.load(Ordering::Relaxed) != FREE
    }

    /// Gives the lock back. The holder's.
    #[inline(always)]
    pub(crate) fn unlock(&self) {
        debug_assert!(self.is_mine());
        self.holder.set(ThreadId::NONE);
        if self.state.swap(FREE, Ordering::Release) != HELD {
            futex_wake(&self.state, 1);
        }
    }

    /// The holder is about to wait for readers: those who wait for the lock inside a section are refused. All are
    /// woken, whatever the state says: `unlock` wakes one of those who sleep, and where the lock is taken before that
    /// one comes to it, the state does not tell of the others.
    pub(crate) fn begin_waiting(&self) {
        debug_assert!(self.is_mine());
        self.state.store(WAITING, Ordering::SeqCst);
        if self.has_waiters() {
            futex_wake(&self.state, i32::MAX);
        }
    }

    /// The wait is over.
    pub(crate) fn end_waiting(&self) {
        self.state.store(HELD, Ordering::SeqCst);
        if self.has_waiters() {
            // One of them may sleep on what the state was, and `unlock` wakes it.
            self.state.store(CONTENDED, Ordering::Relaxed);
        }
    }

    /// Whether a thread may not have seen what the state is now. One that is not counted yet looks at the state later,
    /// and sees it.
    fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }
}

/// Sleeps while the word is `value`, or not at all; may wake without a reason.
fn futex_wait(word: &AtomicU32, value: u32) {
    // SAFETY: the kernel looks at a word that is alive; without a timeout.
    unsafe {
        let flags = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        libc::syscall(libc::SYS_futex, word.as_ptr(), flags, value, std::ptr::null::<libc::timespec>());
    }
}

fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: the kernel looks at the word's address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;

    /// A plain number behind the lock.
    struct Counter(UpdateLock, UnsafeCell<u64>);

    // SAFETY: the number is only touched by the lock's holder.
    unsafe impl Sync for Counter {}

    #[test]
    fn one_thread_at_a_time() {
        let counter = Counter(UpdateLock::new(), UnsafeCell::new(0));
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let counter = &counter;
                    for _ in 0..rounds {
                        counter.0.lock(|| false).unwrap();
                        // SAFETY: this thread holds the lock.
                        unsafe { *counter.1.get() += 1 };
                        counter.0.unlock();
                    }
                });
            }
        });
        assert_eq!(counter.1.into_inner(), 4 * rounds);
    }

    #[test]
    fn whoever_would_deadlock_is_refused() {
        let lock = UpdateLock::new();
        lock.lock(|| false).unwrap();
        assert_eq!(lock.lock(|| false), Err(Errno::EDEADLK), "this thread holds it");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| lock.lock(|| true));
            let outside = scope.spawn(|| lock.lock(|| false).map(|()| lock.unlock()));
            lock.begin_waiting();
            assert_eq!(inside.join().unwrap(), Err(Errno::EDEADLK), "the holder waits for its section");
            lock.end_waiting();
            lock.unlock();
            assert_eq!(outside.join().unwrap(), Ok(()));
        });
        assert!(!lock.is_held());
    }

    /// Of two that sleep, one is woken by an unlock, and the lock is taken again before it says that the other sleeps.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn whoever_would_deadlock_is_refused_also_where_the_state_says_that_nobody_sleeps() {
        let lock = UpdateLock::new();
        for _ in 0..50 {
            lock.lock(|| false).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| lock.lock(|| true).map(|()| lock.unlock()));
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
                lock.unlock();
                lock.lock(|| false).unwrap();
                lock.begin_waiting();
                // Both end now, one way or the other, or the scope never does.
            });
            lock.end_waiting();
            lock.unlock();
        }
    }
}

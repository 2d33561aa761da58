// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may look: threads by a number that never comes again, readers and their sections, and the process that made the
//! table.
//!
//! Does not know what readers look at, nor how memory is reclaimed.

use crate::error::{Errno, Result};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// A thread's number. No two threads of a process have the same one, not even one after the other: `pthread_self()` is
/// given to a new thread as soon as the old one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadId(u64);

impl ThreadId {
    /// No thread's.
    pub(crate) const NONE: ThreadId = ThreadId(0);

    /// The calling thread's. Takes no lock and allocates nothing, but for a thread's first call where the library came
    /// by dlopen(): the C library then makes room for the thread's variables.
    #[inline(always)]
    pub(crate) fn current() -> ThreadId {
        thread_local! {
            static NUMBER: Cell<u64> = const { Cell::new(0) };
        }
        NUMBER.with(|number| {
            if number.get() == 0 {
                number.set(next_thread_number());
            }
            ThreadId(number.get())
        })
    }
}

#[cold]
fn next_thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A thread's number that others look at.
pub(crate) struct AtomicThreadId(AtomicU64);

impl AtomicThreadId {
    pub(crate) const fn none() -> Self {
        AtomicThreadId(AtomicU64::new(ThreadId::NONE.0))
    }

    #[inline(always)]
    pub(crate) fn set(&self, thread: ThreadId) {
        self.0.store(thread.0, Ordering::Relaxed);
    }

    /// Exact where the answer is the calling thread's own number, or is not: only a thread itself stores that.
    #[inline(always)]
    pub(crate) fn get(&self) -> ThreadId {
        ThreadId(self.0.load(Ordering::Relaxed))
    }
}

/// Whether a reader is in a read-side section, and whose. On a line of its own, written by that reader alone.
#[repr(align(64))]
pub(crate) struct Presence {
    /// The thread that opened the section, if one is open.
    thread: AtomicThreadId,
    /// The publication that was current then.
    since: AtomicU64,
}

impl Presence {
    pub(crate) fn new() -> Self {
        Presence { thread: AtomicThreadId::none(), since: AtomicU64::new(0) }
    }

    #[inline(always)]
    pub(crate) fn begin(&self, publication: u64) {
        self.since.store(publication, Ordering::Relaxed);
        self.thread.set(ThreadId::current());
    }

    #[inline(always)]
    pub(crate) fn end(&self) {
        self.thread.set(ThreadId::NONE);
    }

    fn is_open(&self) -> bool {
        self.thread.get() != ThreadId::NONE
    }
}

/// The readers of a table. The registry's lock is held for a moment, with nothing below it; readers take it when they
/// are made and when they go, and never in between.
pub(crate) struct Readers {
    registry: Mutex<Registry>,
    /// The process that made the table. In a forked child the other threads are gone, with what they held.
    pid: u32,
}

/// The pointers are alive: a reader takes its own out before it goes.
struct Registry(Vec<NonNull<Presence>>);

// SAFETY: what is pointed to is atomics.
unsafe impl Send for Registry {}

/// How many readers there are, and what they do.
pub(crate) struct Census {
    pub(crate) readers: usize,
    pub(crate) open_sections: usize,
    /// The oldest open section's publication, if one is open.
    pub(crate) oldest: Option<u64>,
}

impl Readers {
    pub(crate) fn new() -> Self {
        Readers { registry: Mutex::new(Registry(Vec::new())), pid: std::process::id() }
    }

    /// Whether this is a child that the table's process forked.
    pub(crate) fn is_forked(&self) -> bool {
        std::process::id() != self.pid
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a reader. `presence` stays where it is until `leave`.
    pub(crate) fn join(&self, presence: NonNull<Presence>) -> Result<()> {
        let mut registry = self.registry();
        registry.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        registry.0.push(presence);
        Ok(())
    }

    pub(crate) fn leave(&self, presence: NonNull<Presence>) {
        if self.is_forked() {
            // The lock may have been held when the process forked; and nobody looks at the registry any more.
            return;
        }
        self.registry().0.retain(|other| *other != presence);
    }

    /// Whether the calling thread has a section open.
    pub(crate) fn in_section(&self) -> bool {
        let me = ThreadId::current();
        // SAFETY: in the registry, so alive.
        self.registry().0.iter().any(|presence| unsafe { presence.as_ref() }.thread.get() == me)
    }

    pub(crate) fn census(&self) -> Census {
        let registry = self.registry();
        // SAFETY: in the registry, so alive.
        let open = || registry.0.iter().map(|presence| unsafe { presence.as_ref() }).filter(|it| it.is_open());
        Census {
            readers: registry.0.len(),
            open_sections: open().count(),
            oldest: open().map(|presence| presence.since.load(Ordering::Relaxed)).min(),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread's number, which never comes again.
//!
//! Knows nothing else. A read-side section notes which thread opened it, so the number must be cheap to get. In a
//! shared object a `thread_local!` costs a call, which takes more time than the rest of a section. With the GNU C
//! library, a word in the static TLS block is one load away from the thread pointer: that is the TLS model
//! *initial-exec*. Rust has no stable way to ask for it, so two instructions of assembly do. When the library is opened
//! by dlopen(), the word comes out of the surplus that the C library reserves for such libraries.

use std::sync::atomic::{AtomicU64, Ordering};

/// A thread's number. No two threads of a process have the same one, not even one after the other: `pthread_self()` is
/// given to a new thread as soon as the old one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadId(u64);

impl ThreadId {
    /// No thread's.
    pub(crate) const NONE: ThreadId = ThreadId(0);

    /// The calling thread's. Takes no lock and allocates nothing, but for a thread's first call where the library came
    /// by dlopen() and the C library is not the GNU one: it then makes room for the thread's variables.
    #[inline(always)]
    pub(crate) fn current() -> ThreadId {
        // SAFETY: a word of the calling thread's own, which nothing else is at.
        unsafe {
            let place = word::place();
            if *place == 0 {
                *place = next_thread_number();
            }
            ThreadId(*place)
        }
    }

    /// As a plain number, which is not 0 for a thread's.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// A word that each thread has for itself, 0 at first.
#[cfg(all(target_os = "linux", target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod word {
    use std::arch::{asm, global_asm};

    global_asm!(
        ".pushsection .tbss.memslots_thread_0_2, \"awT\", %nobits",
        ".balign 8",
        ".globl memslots_thread_0_2",
        ".hidden memslots_thread_0_2",
        ".type memslots_thread_0_2, %object",
        ".size memslots_thread_0_2, 8",
        "memslots_thread_0_2:",
        ".zero 8",
        ".popsection",
    );

    /// The calling thread's.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn place() -> *mut u64 {
        let place;
        // SAFETY: loads the word's distance from the thread pointer, and adds that, which the ABI has at fs:0.
        unsafe {
            asm!(
                "mov {place}, qword ptr fs:[0]",
                "add {place}, qword ptr [rip + memslots_thread_0_2@GOTTPOFF]",
                place = out(reg) place,
                options(pure, readonly, nostack),
            );
        }
        place
    }

    /// The calling thread's.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(super) fn place() -> *mut u64 {
        let place;
        // SAFETY: as on x86-64; the thread pointer is in a register.
        unsafe {
            asm!(
                "mrs {place}, tpidr_el0",
                "adrp {offset}, :gottprel:memslots_thread_0_2",
                "ldr {offset}, [{offset}, :gottprel_lo12:memslots_thread_0_2]",
                "add {place}, {place}, {offset}",
                place = out(reg) place,
                offset = out(reg) _,
                options(pure, readonly, nostack),
            );
        }
        place
    }
}

/// The same by Rust's own means.
#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(miri)
)))]
mod word {
    use std::cell::Cell;

    pub(super) fn place() -> *mut u64 {
        thread_local! {
            static WORD: Cell<u64> = const { Cell::new(0) };
        }
        WORD.with(Cell::as_ptr)
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

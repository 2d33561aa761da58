// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the protocol of pins is made of, in one place, so that a model checker can put primitives of its own in here.
//!
//! Knows nothing else. `models/` compiles `pin.rs` with another module of this name.
//!
//! The two fences are one fence taken apart. A reader runs the light one, which only the compiler sees. An updater runs
//! the heavy one: the kernel makes every processor that runs a thread of this process pass a full fence before it
//! returns (`membarrier(2)`). So of a reader's store before its light fence and its load after it, an updater sees the
//! store after a heavy fence, or the reader's load sees what the updater stored before.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};

use std::sync::atomic::compiler_fence;
use std::sync::OnceLock;

/// A cell as a model checker has it: it is told when somebody is at what is inside.
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, run: impl FnOnce(*mut T) -> R) -> R {
        run(self.0.get())
    }
}

/// The reader's half.
#[inline(always)]
pub(crate) fn light_fence() {
    compiler_fence(Ordering::SeqCst);
}

/// Whether the kernel has the updater's half. The first call of a process asks for it.
pub(crate) fn has_heavy_fence() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    // Miri has no membarrier.
    !cfg!(miri) && *ANSWER.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
}

/// The updater's half. False where the kernel refuses it: a filter of system calls can do that later on.
pub(crate) fn heavy_fence() -> bool {
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// How often a reader looks at a pin that an updater is at, before it does without. The updater needs no longer, unless
/// it was interrupted.
pub(crate) const PATIENCE: u32 = 50;

pub(crate) use std::hint::spin_loop as spin;

/// What a model can do wrong on purpose, to see that it would be found. Here nothing is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// A reader may look whose the pin is before it is seen to be in a section.
    NoLightFence,
    /// The same, by the order of the program.
    StateBeforeOpen,
    /// An updater looks which readers are idle without having made them pass a fence.
    NoHeavyFence,
    /// An updater takes a pin without having looked.
    NoLook,
    /// A reader takes a claimed pin back, whatever has become of the claim.
    TakesWithoutAsking,
    /// A reader whose pin an updater is at goes on without a hold.
    NoHold,
    /// The end of a section does not publish that the section is over with what it has read.
    RelaxedLeave,
    /// That a pin is gone does not publish what was done to it.
    RelaxedGone,
}

#[inline(always)]
pub(crate) const fn makes(_: Mistake) -> bool {
    false
}

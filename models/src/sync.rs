// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loom's primitives under the names of the library's `sync.rs`.

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::hint::spin_loop as spin;
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicU8, Ordering};

use loom::sync::atomic::fence;
use std::cell::Cell;

/// One look is enough to see both ways.
pub(crate) const PATIENCE: u32 = 1;

/// The two halves of `membarrier(2)` are a fence each: what loom has no name for is only that one costs nothing.
pub(crate) fn light_fence() {
    fence(Ordering::SeqCst);
}

pub(crate) fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}

/// See the library's.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    NoLightFence,
    StateBeforeOpen,
    NoHeavyFence,
    NoLook,
    TakesWithoutAsking,
    NoHold,
    NoFenceAfterRepin,
    RelaxedLeave,
    RelaxedGone,
}

thread_local! {
    // All threads of a model are run by one.
    static MADE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

pub(crate) fn makes(mistake: Mistake) -> bool {
    MADE.get() == Some(mistake)
}

/// Runs a model in which one mistake is made.
pub fn with_mistake<T>(mistake: Mistake, model: impl FnOnce() -> T) -> T {
    MADE.set(Some(mistake));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(model));
    MADE.set(None);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

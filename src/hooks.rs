// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a table tells its owner of an update, and when.
//!
//! Knows nothing but slots. The order is the kernel's (`docs/kernel-semantics.md`, section 4): flush, prepare,
//! publish, commit, and release after a grace period.

use crate::error::Result;
use crate::slot::{Hva, Memslot};

/// What an update does to a slot. The first four are the kernel's `enum kvm_mr_change`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A new slot.
    Create = 0,
    /// The slot ends.
    Delete = 1,
    /// Other frames; flags may have changed too.
    Move = 2,
    /// Other flags, nothing else.
    FlagsOnly = 3,
    /// Another size; frames and flags may have changed too.
    Resize = 4,
    /// A new slot that was cut out of `old_slot`, which lives on.
    Split = 5,
    /// The slot ends; its frames are part of `new_slot` now.
    Merge = 6,
}

/// One slot's part of an update, as the hooks see it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What happens.
    pub kind: Kind,
    /// The slot before. None for a create.
    pub old_slot: Option<&'a Memslot>,
    /// The slot after. None for a delete.
    pub new_slot: Option<&'a Memslot>,
}

/// An owner's part in the updates of a table. All are called on the updating thread, under the update lock; a hook that
/// updates the same table is refused with `EDEADLK`. In a transaction all of one kind run, in the order of the changes,
/// then the next.
pub trait Hooks: Send + Sync {
    /// Whether `flush` is to be called. If so, deleted and moved slots are first published as `INVALID`, and the
    /// update waits for the readers.
    fn wants_flush(&self) -> bool {
        false
    }

    /// The slot is invalid to all readers, and none is left that saw it valid.
    fn flush(&self, invalid: &Memslot) {
        let _ = invalid;
    }

    /// The last chance to refuse.
    ///
    /// # Errors
    /// Whatever the owner says: the update is undone and gives the same.
    fn prepare(&self, change: &Change<'_>) -> Result<()> {
        let _ = change;
        Ok(())
    }

    /// A later change was refused: undo what `prepare` did. In reverse order.
    fn cancel(&self, change: &Change<'_>) {
        let _ = change;
    }

    /// The new state is published.
    fn commit(&self, change: &Change<'_>) {
        let _ = change;
    }

    /// The slot's life is over and no reader can see it: once a slot, not on a move or a change of flags. The place to
    /// free `opaque`.
    fn release(&self, gone: &Memslot) {
        let _ = gone;
    }

    /// Whether `unmap` is to be called.
    fn wants_unmap(&self) -> bool {
        false
    }

    /// Host memory that no slot maps any more, in any address space, and that no reader can still use: the place to
    /// unmap it. Exact pieces of what one slot had: nothing after a merge, the tail after a slot has shrunk, aliased
    /// memory when the last slot that mapped it is gone. What has been mapped again by then is left out.
    fn unmap(&self, hva: Hva, size: u64) {
        let _ = (hva, size);
    }
}

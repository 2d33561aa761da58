// SPDX-License-Identifier: MIT OR Apache-2.0
//! A transaction: changes staged one by one, each held against what those before it leave, and published at once.
//!
//! Knows the rules and staging; not C, nor how an update is committed.

use super::staging::Staging;
use crate::change::{Decision, Rules};
use crate::commit::calls;
use crate::error::Result;
use crate::index::node::Baseline;
use crate::plan::Step;
use crate::shared::{Owner, Updating};
use crate::slot::{AsId, Gfn, Gpa, Memslot, Region, SlotId};
use crate::trace::{self, Op};
use std::ffi::c_void;

/// A set of changes being prepared, invisible until committed. Dropping it aborts it.
///
/// It holds the table's update lock: other threads' updates wait for it, and another update by this thread is refused
/// with `EDEADLK`. It belongs to the thread that began it.
pub struct Transaction<'a> {
    /// None once it is committed. Dropped before the lock.
    staging: Option<Staging>,
    lock: Updating<'a>,
    /// Keeps what the lock is of alive, where the transaction may outlive its table.
    _owner: Option<Owner>,
}

impl<'a> Transaction<'a> {
    /// Begins one under the update lock.
    #[inline(always)]
    pub(crate) fn begin(lock: Updating<'a>) -> Result<Transaction<'a>> {
        Self::begin_with(None, lock)
    }

    #[inline(always)]
    fn begin_with(owner: Option<Owner>, mut lock: Updating<'a>) -> Result<Transaction<'a>> {
        lock.trace(Op::Begin, Region::default, Ok(()));
        match Staging::begin(&mut lock) {
            Ok(staging) => Ok(Transaction { staging: Some(staging), lock, _owner: owner }),
            Err(errno) => {
                lock.trace(Op::Abort, Region::default, Ok(()));
                Err(errno)
            }
        }
    }

    fn staging(&self) -> &Staging {
        self.staging.as_ref().expect("there until the commit, which takes the transaction")
    }

    fn staging_mut(&mut self) -> &mut Staging {
        self.staging.as_mut().expect("there until the commit, which takes the transaction")
    }

    fn rules(&self) -> Rules<'_> {
        self.staging().rules(&self.lock.shared().limits)
    }

    /// Runs one step, and writes a line about it where a trace is on.
    fn traced(
        &mut self,
        op: Op,
        named: impl FnOnce() -> Region,
        step: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.lock.in_step = true;
        let result = step(self);
        self.lock.in_step = false;
        self.staging_mut().step += 1;
        self.lock.trace(op, named, result);
        result
    }

    // ---- staging ----

    /// `KVM_SET_USER_MEMORY_REGION2`: creates, deletes, moves or changes flags.
    ///
    /// # Errors
    /// The kernel's: `EINVAL`, `EEXIST`, `EBADF`, `ENOMEM`. The transaction is as it was.
    pub fn set_region(&mut self, region: &Region, opaque: *mut c_void) -> Result<()> {
        self.traced(
            Op::Set,
            || *region,
            |txn| {
                let decision = txn.rules().set_region(region, opaque)?;
                txn.staging_mut().stage(decision)
            },
        )
    }

    /// Creates a slot and gives its id; `SlotId::ANY` takes the lowest free one.
    ///
    /// # Errors
    /// `EEXIST` where the id or a frame is taken, `ENOSPC` where no id is free, otherwise as `set_region`.
    pub fn create(&mut self, region: &Region, opaque: *mut c_void) -> Result<SlotId> {
        let mut id = SlotId(0);
        self.traced(
            Op::Create,
            || *region,
            |txn| {
                let decision = txn.rules().create(region, opaque)?;
                if let Decision::Create(slot) = &decision {
                    id = slot.id;
                }
                txn.staging_mut().stage(decision)
            },
        )?;
        Ok(id)
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EINVAL` where there is no such address space, `ENOMEM`.
    pub fn delete(&mut self, as_id: AsId, id: SlotId) -> Result<()> {
        self.traced(
            Op::Delete,
            || trace::named(as_id, id),
            |txn| {
                let decision = txn.rules().delete(as_id, id)?;
                txn.staging_mut().stage(decision)
            },
        )
    }

    /// Moves a slot to other frames.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST` where another slot is; `EINVAL` as the kernel has it; `ENOMEM`.
    pub fn move_slot(&mut self, as_id: AsId, id: SlotId, gpa: Gpa) -> Result<()> {
        let named = || Region { guest_phys_addr: gpa.0, ..trace::named(as_id, id) };
        self.traced(Op::Move, named, |txn| {
            let decision = txn.rules().move_slot(as_id, id, gpa)?;
            txn.staging_mut().stage(decision)
        })
    }

    /// Changes a slot's flags, of which only `LOG_DIRTY_PAGES` can change.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`, `ENOMEM`.
    pub fn set_flags(&mut self, as_id: AsId, id: SlotId, flags: u32) -> Result<()> {
        let named = || Region { flags, ..trace::named(as_id, id) };
        self.traced(Op::Flags, named, |txn| {
            let decision = txn.rules().set_flags(as_id, id, flags)?;
            txn.staging_mut().stage(decision)
        })
    }

    /// Gives a slot another size, in bytes; it keeps its first frame, hva, flags and opaque.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST` where another slot is; `EINVAL` for size 0, a size that `set_region` would refuse, and slots
    /// with a guest_memfd; `ENOMEM`.
    pub fn resize(&mut self, as_id: AsId, id: SlotId, size: u64) -> Result<()> {
        let named = || Region { memory_size: size, ..trace::named(as_id, id) };
        self.traced(Op::Resize, named, |txn| {
            let decision = txn.rules().resize(as_id, id, size)?;
            txn.staging_mut().stage(decision)
        })
    }

    /// Cuts a slot in two at `at`, and gives the upper part's id. The lower part keeps id and opaque; the upper gets
    /// `new_id` (or the lowest free one for `SlotId::ANY`) and `opaque`.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` where `at` is not a page boundary strictly inside the slot, and for slots with a guest_memfd;
    /// `EEXIST` where the id is taken; `ENOSPC`; `ENOMEM`.
    pub fn split(&mut self, as_id: AsId, id: SlotId, at: Gpa, new_id: SlotId, opaque: *mut c_void) -> Result<SlotId> {
        let named = || Region { guest_phys_addr: at.0, userspace_addr: new_id.0 as u64, ..trace::named(as_id, id) };
        let mut upper_id = SlotId(0);
        self.traced(Op::Split, named, |txn| {
            let (old, lower, upper) = txn.rules().split((as_id, id), at, new_id, opaque)?;
            let staging = txn.staging_mut();
            staging.reserve(as_id, 2)?;
            let origin = staging.journal.origin(old);
            staging.replace(old, lower);
            staging.create(upper, origin);
            upper_id = upper.id;
            Ok(())
        })?;
        Ok(upper_id)
    }

    /// Makes one slot of two neighbours, in guest and in host memory, with the same flags. The lower keeps id and
    /// opaque; the upper one's life ends.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` where they are no such neighbours, or too large together; `ENOMEM`.
    pub fn merge(&mut self, as_id: AsId, lower: SlotId, upper: SlotId) -> Result<()> {
        let named = || Region { userspace_addr: upper.0 as u64, ..trace::named(as_id, lower) };
        self.traced(Op::Merge, named, |txn| {
            let (low, up, merged) = txn.rules().merge(as_id, lower, upper)?;
            let staging = txn.staging_mut();
            staging.reserve(as_id, 2)?;
            staging.end(up, true);
            staging.replace(low, merged);
            Ok(())
        })
    }

    /// The slot that holds a frame, as staged so far.
    pub fn find_gfn(&self, as_id: AsId, gfn: Gfn) -> Option<&Memslot> {
        let copy = &self.staging().copy;
        // SAFETY: the working copy is alive.
        let found = unsafe { copy.state().space(as_id)?.find_gfn::<Baseline>(gfn) };
        found.map(|found| copy.slot(found.record))
    }

    /// The slot with an id, as staged so far.
    pub fn find_id(&self, as_id: AsId, id: SlotId) -> Option<&Memslot> {
        let copy = &self.staging().copy;
        // SAFETY: the working copy is alive.
        unsafe { copy.state().space(as_id)?.find_id(id) }.map(|record| copy.slot(record))
    }

    /// The kernel calls that would make these changes, in an order that the kernel accepts.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn plan(&self) -> Result<Vec<Step>> {
        calls(&self.lock, &self.staging().journal)
    }

    // ---- the end ----

    /// Publishes the changes: all at once, for every reader. At most two publications, whatever their number: where a
    /// `flush` hook is there and readers may have derived something from a slot that stops being true, first one that
    /// says so.
    ///
    /// # Errors
    /// What a hook or the attached VM refused with; `EDEADLK` where it would have to wait for readers and this thread
    /// is in a read-side section; `ENOMEM`. Everything is as before then, but for the generation: two steps where the
    /// first publication was made, none otherwise.
    pub fn commit(mut self) -> Result<()> {
        let Some(staging) = self.staging.take() else { return Ok(()) };
        staging.commit_traced(&mut self.lock).map_err(|refused| refused.errno)
    }

    /// Throws the changes away. So does dropping the transaction.
    pub fn abort(self) {}

    /// Gives a transaction to the calling thread, after the thread that began it has ended.
    pub(crate) fn take_over(&self) {
        self.lock.take_over();
    }
}

impl Transaction<'static> {
    /// Begins one that owns what it needs of its table.
    pub(crate) fn begin_owned(owner: Owner) -> Result<Transaction<'static>> {
        // SAFETY: the owner goes with the transaction, after all that looks through this.
        let shared = unsafe { owner.unbound() };
        Self::begin_with(Some(owner), shared.update()?)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            drop(staging);
            self.lock.trace(Op::Abort, Region::default, Ok(()));
        }
    }
}

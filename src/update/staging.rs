// SPDX-License-Identifier: MIT OR Apache-2.0
//! Staging: changes to a working copy, with their journal.
//!
//! Knows decisions and how they are carried out; not which requests lead to them. Whatever can be allocated is reserved
//! before a change begins, so that a refused change leaves no trace. Dropped, nothing has happened.

use crate::change::{Decision, Rules};
use crate::commit::commit;
use crate::error::{Refused, Result};
use crate::journal::Journal;
use crate::shared::Updating;
use crate::slot::{AsId, Limits, Memslot, Region};
use crate::snapshot::Record;
use crate::trace::Op;
use crate::working_copy::WorkingCopy;
use std::ptr::NonNull;

/// The step of a change that no step of the caller's has asked for.
pub(super) const NO_STEP: usize = usize::MAX;

pub(super) struct Staging {
    pub(super) copy: WorkingCopy,
    pub(super) journal: Journal,
    /// Steps staged so far, also those that changed nothing.
    pub(super) step: usize,
    pub(super) page_shift: u32,
}

impl Staging {
    #[inline(always)]
    pub(super) fn begin(lock: &mut Updating) -> Result<Staging> {
        let copy = lock.begin_copy()?;
        let entries = std::mem::take(&mut lock.writer().entries);
        let journal = Journal::new(copy.next_stamp(), entries);
        Ok(Staging { copy, journal, step: 0, page_shift: lock.shared().limits.page_shift })
    }

    /// What requests are held against: the state as staged so far.
    pub(super) fn rules<'s>(&'s self, limits: &'s Limits) -> Rules<'s> {
        Rules { limits, state: self.copy.state() }
    }

    /// Carries a decision out.
    ///
    /// # Errors
    /// `ENOMEM`; nothing was staged then.
    pub(super) fn stage(&mut self, decision: Decision) -> Result<()> {
        let Some(as_id) = decision.as_id() else { return Ok(()) };
        self.reserve(as_id, 1)?;
        match decision {
            Decision::Nothing => {}
            Decision::Create(slot) => self.create(slot, None),
            Decision::Delete { old, .. } => self.end(old, false),
            Decision::Replace { old, new } => self.replace(old, new),
        }
        Ok(())
    }

    /// Reserves what some changes of one space can allocate. Nothing else that stages can fail.
    pub(super) fn reserve(&mut self, as_id: AsId, changes: usize) -> Result<()> {
        self.journal.reserve(changes)?;
        self.copy.reserve(as_id, changes)
    }

    /// A new slot. `cut_from`: the slot of the base that it was cut out of.
    pub(super) fn create(&mut self, slot: Memslot, cut_from: Option<NonNull<Record>>) {
        let record = self.copy.new_record(self.journal.next_stamp(), slot);
        self.journal.created(record, cut_from, self.step);
        self.copy.add(record, self.page_shift);
    }

    /// A slot ends, by a merge perhaps.
    pub(super) fn end(&mut self, old: NonNull<Record>, merged: bool) {
        self.copy.remove(old, self.page_shift);
        if self.journal.ended(old, merged, self.step) {
            self.copy.free_record(old);
        }
    }

    /// A slot becomes another. Back where it began it is the very record again, and there is nothing to tell.
    pub(super) fn replace(&mut self, old: NonNull<Record>, new: Memslot) {
        let before = self.journal.before(old).filter(|before| *self.copy.slot(*before) == new);
        let record = before.unwrap_or_else(|| self.copy.new_record(self.journal.stamp_of(old), new));
        self.copy.replace(old, record, self.page_shift);
        if self.journal.changed(old, record, self.step) {
            self.copy.free_record(old);
        }
    }

    /// Publishes what was staged.
    pub(super) fn commit(self, lock: &mut Updating) -> Result<(), Refused> {
        commit(lock, self.copy, self.journal)
            .map_err(|refused| Refused { at: refused.at.filter(|step| *step != NO_STEP), ..refused })
    }

    /// The same, with a line in the trace.
    pub(super) fn commit_traced(self, lock: &mut Updating) -> Result<(), Refused> {
        let result = self.commit(lock);
        lock.trace(Op::Commit, Region::default, result.map_err(|refused| refused.errno));
        result
    }
}

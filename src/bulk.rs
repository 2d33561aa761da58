// SPDX-License-Identifier: MIT OR Apache-2.0
//! A list of creates for an address space that has no slots yet, as at the start of a VM: its trees are built from sorted lists,
//! which takes a fraction of the time that as many insertions take.
//!
//! May know a transaction's working copy and journal; not the rules, which see each region beside those listed before. Has
//! nothing to say about a list that is anything else, or that is refused: staging it step by step tells which step and why.

use crate::change::Decision;
use crate::slot::Region;
use crate::snapshot::Space;
use crate::trace::Op;
use crate::transaction::{Kin, Staged, Transaction};
use std::ffi::c_void;

impl Transaction<'_> {
    /// Stages a list of creates as the first steps of this transaction. None where it is not for here, or memory is short: after
    /// `start_over` the transaction is as it was.
    pub(crate) fn create_all(&mut self, regions: &[Region], opaque: impl Fn(usize) -> *mut c_void) -> Option<()> {
        let as_id = regions.first()?.as_id();
        // SAFETY: the working copy is alive.
        unsafe { self.work.as_ref() }.space(as_id).filter(|space| space.count == 0)?;
        debug_assert!(self.lock.writer.replaced.is_empty(), "a space without slots has no nodes");
        self.lock.in_step = true;
        let staged = self.list(as_id, regions, opaque).and_then(|()| self.build(as_id));
        self.lock.in_step = false;
        staged?;
        regions.iter().for_each(|region| self.lock.trace(Op::Set, || *region, Ok(())));
        Some(())
    }

    /// Everything but the trees. They are empty all the while, so that the rules find no overlap: that is for `build`.
    fn list(&mut self, as_id: u16, regions: &[Region], opaque: impl Fn(usize) -> *mut c_void) -> Option<()> {
        self.lock.writer.journal.try_reserve(regions.len()).ok()?;
        for (step, region) in regions.iter().enumerate() {
            let Ok(Decision::Create(slot)) = self.rules().set_region(region, opaque(step)) else { return None };
            if slot.as_id != as_id {
                return None;
            }
            self.lock.writer.pool.reserve(Space::BYTES_TO_LIST).ok()?;
            let record = self.new_record(slot, step);
            self.lock.writer.journal.push(Staged { old: None, new: Some(record), kin: Kin::None, step });
            let (space, mut editor) = self.edit(as_id);
            // SAFETY: reserved; the rules have seen that the id is free.
            unsafe { space.list(&mut editor, record) };
        }
        Some(())
    }

    fn build(&mut self, as_id: u16) -> Option<()> {
        let count = self.lock.writer.journal.len();
        let mut entries = Vec::new();
        entries.try_reserve_exact(count).ok()?;
        self.lock.writer.pool.reserve(Space::bytes_to_build(count)).ok()?;
        let shift = self.lock.shared.limits.page_shift;
        let journal = std::mem::take(&mut self.lock.writer.journal);
        let records = journal.iter().filter_map(|line| line.new);
        let (space, mut editor) = self.edit(as_id);
        // SAFETY: reserved; the journal has what list() has listed, and nothing else.
        let built = unsafe { space.build(&mut editor, records, &mut entries, shift) };
        self.lock.writer.journal = journal;
        built
    }
}

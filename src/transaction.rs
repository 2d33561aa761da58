// SPDX-License-Identifier: MIT OR Apache-2.0
//! A transaction: a working copy of the table, changed step by step and published at once, or thrown away.
//!
//! May not know C, nor the rules (`change.rs`), nor how an index is built. Every update is one of these, but for a single
//! one with nobody to ask and nothing to wait for (`single.rs`).
//!
//! **Staging** changes the working copy. Everything that can be allocated is reserved before a change begins, so that a
//! refused change leaves no trace. The journal has one line for each slot touched, whatever the number of its changes:
//! what it was in the current state, what it is in the working copy. A record made here carries the stamp of its line,
//! which is how a second change of the same slot finds it.
//!
//! **Committing** is `commit.rs`; throwing away frees what this transaction made, and nothing else has changed.

use crate::change::Decision;
use crate::index::node::Baseline;
use crate::index::pool::LINE;
use crate::index::{object_of, Editor, Head, Stamp, REPLACED_PER_EDIT};
use crate::plan::{self, Difference, Step};
use crate::shared::{Updating, Writer};
use crate::slot::{Errno, Gfn, Gpa, Memslot, Region, Result};
use crate::snapshot::{Published, Record, Space};
use crate::trace::{self, Op};
use std::ffi::c_void;
use std::ptr::NonNull;

/// A line of the journal. Neither old nor new: the changes came to nothing.
#[derive(Clone, Copy)]
pub(crate) struct Staged {
    pub(crate) old: Option<NonNull<Record>>,
    pub(crate) new: Option<NonNull<Record>>,
    pub(crate) kin: Kin,
    /// Which of the transaction's steps began it.
    pub(crate) step: usize,
}

// SAFETY: the records belong to the table whose update lock protects the journal.
unsafe impl Send for Staged {}

/// Where a slot's frames came from, or went to, when it was split or merged.
#[derive(Clone, Copy)]
pub(crate) enum Kin {
    None,
    /// Of a new slot: the record in the current state that it was cut out of.
    CutFrom(NonNull<Record>),
    /// Of a slot that ended: the journal's line of the one that took its frames.
    AbsorbedBy(usize),
}

/// Lines that a journal keeps room for between transactions.
const JOURNAL_KEPT: usize = 16 << 10;

/// A set of changes being prepared, invisible until committed. Dropping it aborts it.
///
/// It holds the table's update lock: other threads' updates wait for it, and another update by this thread is refused
/// with `EDEADLK`.
pub struct Transaction<'a> {
    pub(crate) lock: Updating<'a>,
    /// The current state when the transaction began; so it stays, but for an INVALID phase.
    pub(crate) base: NonNull<Published>,
    pub(crate) work: NonNull<Published>,
    /// Of this transaction's nodes, and of the journal's first record.
    pub(crate) stamp: u64,
    /// Steps staged so far, those that came to nothing included.
    step: usize,
    /// The step whose change the commit was refused for.
    pub(crate) refused: Option<usize>,
    /// Whether a trace gets lines for the steps and the end; a single update is one line.
    bracketed: bool,
    /// The working copy is published, or gone.
    pub(crate) finished: bool,
}

pub(crate) fn slot_of<'a>(record: NonNull<Record>) -> &'a Memslot {
    // SAFETY: used here on records of the current state, the working copy and the journal only, all of which the update
    // lock keeps alive for as long as the transaction looks at them.
    unsafe { &record.as_ref().slot }
}

impl<'a> Transaction<'a> {
    #[inline(always)]
    pub(crate) fn begin(mut lock: Updating<'a>, bracketed: bool) -> Result<Transaction<'a>> {
        lock.writer.pool.reserve(Published::lines(lock.shared.limits.nr_address_spaces) * LINE)?;
        let base = lock.current();
        let writer = &mut *lock.writer;
        writer.journal.clear();
        let stamp = writer.next_stamp;
        // SAFETY: the current publication is alive under the update lock.
        let work =
            Published::copy_of(&mut Editor { pool: &mut writer.pool, stamp: Stamp(stamp), replaced: None }, unsafe {
                base.as_ref()
            });
        Ok(Transaction { lock, base, work, stamp, step: 0, refused: None, bracketed, finished: false })
    }

    /// Throws all steps away, and begins anew under the same lock.
    ///
    /// # Errors
    /// `ENOMEM`; the transaction is good for nothing but to be dropped then.
    pub(crate) fn start_over(&mut self) -> Result<()> {
        if self.lock.writer.journal.is_empty() {
            return Ok(());
        }
        self.lock.writer.pool.reserve(Published::lines(self.lock.shared.limits.nr_address_spaces) * LINE)?;
        self.throw_away();
        let writer = &mut *self.lock.writer;
        self.stamp += writer.journal.len() as u64 + 1;
        writer.journal.clear();
        let mut editor = Editor { pool: &mut writer.pool, stamp: Stamp(self.stamp), replaced: None };
        // SAFETY: the current publication is alive under the update lock.
        self.work = Published::copy_of(&mut editor, unsafe { self.base.as_ref() });
        (self.step, self.finished) = (0, false);
        Ok(())
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
                txn.stage(decision)
            },
        )
    }

    /// Creates a slot and gives its id; `ID_ANY` takes the lowest free one.
    ///
    /// # Errors
    /// `EEXIST` where the id or a frame is taken, `ENOSPC` where no id is free, otherwise as `set_region`.
    pub fn create(&mut self, region: &Region, opaque: *mut c_void) -> Result<u16> {
        let mut id = 0;
        self.traced(
            Op::Create,
            || *region,
            |txn| {
                let decision = txn.rules().create(region, opaque)?;
                if let Decision::Create(slot) = &decision {
                    id = slot.id;
                }
                txn.stage(decision)
            },
        )?;
        Ok(id)
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EINVAL` where there is no such address space, `ENOMEM`.
    pub fn delete(&mut self, as_id: u16, id: u16) -> Result<()> {
        self.traced(
            Op::Delete,
            || trace::named(as_id, id),
            |txn| {
                let decision = txn.rules().delete(as_id, id)?;
                txn.stage(decision)
            },
        )
    }

    /// Moves a slot to other frames.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST` where another slot is; `EINVAL` as the kernel has it; `ENOMEM`.
    pub fn move_slot(&mut self, as_id: u16, id: u16, gpa: Gpa) -> Result<()> {
        let named = || Region { guest_phys_addr: gpa.0, ..trace::named(as_id, id) };
        self.traced(Op::Move, named, |txn| {
            let decision = txn.rules().move_slot(as_id, id, gpa)?;
            txn.stage(decision)
        })
    }

    /// Changes a slot's flags, of which only `LOG_DIRTY_PAGES` can change.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`, `ENOMEM`.
    pub fn set_flags(&mut self, as_id: u16, id: u16, flags: u32) -> Result<()> {
        let named = || Region { flags, ..trace::named(as_id, id) };
        self.traced(Op::Flags, named, |txn| {
            let decision = txn.rules().set_flags(as_id, id, flags)?;
            txn.stage(decision)
        })
    }

    /// Gives a slot another size, in bytes; it keeps its first frame, hva, flags and opaque.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST` where another slot is; `EINVAL` for size 0, a size that `set_region` would refuse, and slots with
    /// a guest_memfd; `ENOMEM`.
    pub fn resize(&mut self, as_id: u16, id: u16, size: u64) -> Result<()> {
        let named = || Region { memory_size: size, ..trace::named(as_id, id) };
        self.traced(Op::Resize, named, |txn| {
            let decision = txn.rules().resize(as_id, id, size)?;
            txn.stage(decision)
        })
    }

    /// Cuts a slot in two at `at`, and gives the upper part's id. The lower part keeps id and opaque; the upper gets
    /// `new_id` (or the lowest free one for `ID_ANY`) and `opaque`.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` where `at` is not a page boundary strictly inside the slot, and for slots with a guest_memfd;
    /// `EEXIST` where the id is taken; `ENOSPC`; `ENOMEM`.
    pub fn split(&mut self, as_id: u16, id: u16, at: Gpa, new_id: u16, opaque: *mut c_void) -> Result<u16> {
        let named = || Region { guest_phys_addr: at.0, userspace_addr: new_id as u64, ..trace::named(as_id, id) };
        let mut upper_id = 0;
        self.traced(Op::Split, named, |txn| {
            let (old, lower, upper) = txn.rules().split((as_id, id), at, new_id, opaque)?;
            txn.reserve(as_id, 2)?;
            let base = txn.origin(old);
            txn.apply(Decision::Replace { old, new: lower });
            let line = txn.apply(Decision::Create(upper));
            if let (Some(base), Some(line)) = (base, line) {
                txn.lock.writer.journal[line].kin = Kin::CutFrom(base);
            }
            upper_id = upper.id;
            Ok(())
        })?;
        Ok(upper_id)
    }

    /// Makes one slot of two neighbours, in guest and in host memory, with the same flags. The lower keeps id and opaque; the
    /// upper one's life ends.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` where they are no such neighbours, or too large together; `ENOMEM`.
    pub fn merge(&mut self, as_id: u16, lower: u16, upper: u16) -> Result<()> {
        let named = || Region { userspace_addr: upper as u64, ..trace::named(as_id, lower) };
        self.traced(Op::Merge, named, |txn| {
            let (low, up, merged) = txn.rules().merge(as_id, lower, upper)?;
            txn.reserve(as_id, 2)?;
            let upper_line = txn.apply(Decision::Delete(up));
            let lower_line = txn.apply(Decision::Replace { old: low, new: merged });
            if let (Some(upper), Some(lower)) = (upper_line, lower_line) {
                txn.lock.writer.journal[upper].kin = Kin::AbsorbedBy(lower);
            }
            Ok(())
        })
    }

    /// The slot that holds a frame in the working copy.
    pub fn find_gfn(&self, as_id: u16, gfn: Gfn) -> Option<&Memslot> {
        // SAFETY: the working copy is alive.
        unsafe { self.work.as_ref().space(as_id)?.find_gfn::<Baseline>(gfn) }.map(|found| slot_of(found.record))
    }

    /// The slot with an id in the working copy.
    pub fn find_id(&self, as_id: u16, id: u16) -> Option<&Memslot> {
        // SAFETY: the working copy is alive.
        unsafe { self.work.as_ref().space(as_id)?.find_id(id) }.map(slot_of)
    }

    /// The kernel calls that would make these changes, in an order that the kernel accepts.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn plan(&self) -> Result<Vec<Step>> {
        plan::steps(&self.differences()?)
    }

    pub(crate) fn rules(&self) -> crate::change::Rules<'a> {
        self.lock.rules(self.work)
    }

    /// Makes a whole new address space of the working copy, which has no changes yet. The error says which region.
    pub(crate) fn replace_all(
        &mut self,
        as_id: u16,
        regions: &[Region],
        opaque: impl Fn(usize) -> *mut c_void,
    ) -> Result<(), (Errno, Option<usize>)> {
        let base = self.base;
        let rules = self.lock.rules(base);
        // SAFETY: the current publication is alive under the update lock.
        let Some(&old_space) = unsafe { base.as_ref() }.space(as_id) else {
            return Err((Errno::EINVAL, None));
        };
        // The new indexes are built beside the old ones: whatever is left of the old is gone, in whatever order.
        *self.space_mut(as_id) = Space::empty(old_space.generation);
        for (index, region) in regions.iter().enumerate() {
            self.step = index;
            let at = |errno| (errno, Some(index));
            if region.as_id() != as_id {
                return Err(at(Errno::EINVAL));
            }
            let (kept, new) = rules.desired(region, opaque(index)).map_err(at)?;
            if self.find_id(as_id, new.id).is_some() {
                return Err(at(Errno::EEXIST));
            }
            self.rules().may_create(&new).map_err(at)?;
            self.reserve(as_id, 1).map_err(at)?;
            self.adopt(kept, new);
        }
        self.step = usize::MAX;
        self.drop_absent(old_space).and_then(|()| self.trace_differences()).map_err(|errno| (errno, None))
    }

    /// A replacement's lines in the trace are the calls that come to the same.
    fn trace_differences(&mut self) -> Result<()> {
        if !self.bracketed || self.lock.writer.trace.is_none() {
            return Ok(());
        }
        self.plan()?.iter().for_each(|step| self.lock.trace(Op::Set, || step.region(), Ok(())));
        Ok(())
    }

    /// Puts a slot into a space that is built anew: the record it has already where nothing changes.
    fn adopt(&mut self, kept: Option<NonNull<Record>>, new: Memslot) {
        let shift = self.lock.shared.limits.page_shift;
        let record = match kept {
            Some(old) if *slot_of(old) == new => old,
            _ => {
                let record = self.new_record(new, self.lock.writer.journal.len());
                self.lock.writer.journal.push(Staged { old: kept, new: Some(record), kin: Kin::None, step: self.step });
                record
            }
        };
        let (space, mut editor) = self.edit(new.as_id);
        // SAFETY: reserved by the caller, who has seen that id and frames are free.
        unsafe { space.add(&mut editor, record, shift) };
    }

    /// The slots of `old_space` that have no place in the space built anew are deleted, and stand before the others in the
    /// journal, so that hooks never see two slots in one place; its nodes are put aside.
    fn drop_absent(&mut self, old_space: Space) -> Result<()> {
        let placed = self.lock.writer.journal.len();
        // SAFETY: the old space is part of the current publication; words of the gfn tree are records.
        let mut walk = unsafe { old_space.walk() };
        // SAFETY: as above.
        while let Some(record) = unsafe { walk.next() }.and_then(|word| NonNull::new(word.cast::<Record>())) {
            let lives_on = |line: &Staged| line.old == Some(record);
            let slot = slot_of(record);
            // SAFETY: the working copy is alive.
            let now = unsafe { self.work.as_ref().space(slot.as_id).and_then(|space| space.find_id(slot.id)) };
            let kept =
                now.is_some_and(|now| now == record || self.line_of(now).map(|at| self.line(at)).is_some_and(lives_on));
            if !kept {
                self.lock.writer.journal.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.lock.writer.journal.push(Staged { old: Some(record), new: None, kin: Kin::None, step: self.step });
            }
        }
        self.lock.writer.journal.rotate_left(placed);
        if self.has_changes() {
            let replaced = &mut self.lock.writer.replaced;
            // SAFETY: the working copy refers to none of the old nodes.
            unsafe {
                let mut count = 0;
                old_space.for_each_node(&|_| false, &mut |_| count += 1);
                replaced.try_reserve(count).map_err(|_| Errno::ENOMEM)?;
                old_space.for_each_node(&|_| false, &mut |node| replaced.push(object_of(node)));
            }
        }
        Ok(())
    }

    pub(crate) fn stage(&mut self, decision: Decision) -> Result<()> {
        let Some(as_id) = decision.as_id() else { return Ok(()) };
        self.reserve(as_id, 1)?;
        self.apply(decision);
        Ok(())
    }

    /// Reserves what some changes of one space can allocate. Nothing else that stages can fail.
    fn reserve(&mut self, as_id: u16, changes: usize) -> Result<()> {
        // SAFETY: the working copy is alive.
        let bytes = unsafe { self.work.as_ref() }.space(as_id).map_or(0, Space::bytes_to_edit);
        let writer = &mut *self.lock.writer;
        writer.journal.try_reserve(changes).map_err(|_| Errno::ENOMEM)?;
        writer.replaced.try_reserve(changes * REPLACED_PER_EDIT).map_err(|_| Errno::ENOMEM)?;
        writer.pool.reserve(changes * bytes)
    }

    /// Carries a decision out, and gives the slot's line in the journal; none where all of its changes came to nothing.
    fn apply(&mut self, decision: Decision) -> Option<usize> {
        match decision {
            Decision::Nothing => None,
            Decision::Create(slot) => Some(self.apply_create(slot)),
            Decision::Delete(old) => self.apply_delete(old),
            Decision::Replace { old, new } => self.apply_replace(old, new),
        }
    }

    fn apply_create(&mut self, slot: Memslot) -> usize {
        let line = self.lock.writer.journal.len();
        let record = self.new_record(slot, line);
        self.lock.writer.journal.push(Staged { old: None, new: Some(record), kin: Kin::None, step: self.step });
        let shift = self.lock.shared.limits.page_shift;
        let (space, mut editor) = self.edit(slot.as_id);
        // SAFETY: reserved by stage(); the rules have seen that id and frames are free.
        unsafe { space.add(&mut editor, record, shift) };
        line
    }

    fn apply_delete(&mut self, old: NonNull<Record>) -> Option<usize> {
        let shift = self.lock.shared.limits.page_shift;
        let (space, mut editor) = self.edit(slot_of(old).as_id);
        // SAFETY: reserved by stage(); the rules have found the slot in the working copy.
        unsafe { space.remove(&mut editor, old, shift) };
        let Some(line) = self.line_of(old) else {
            self.lock.writer.journal.push(Staged { old: Some(old), new: None, kin: Kin::None, step: self.step });
            return Some(self.lock.writer.journal.len() - 1);
        };
        self.free_record(old);
        let staged = &mut self.lock.writer.journal[line];
        (staged.new, staged.kin) = (None, Kin::None);
        let was_there = staged.old.is_some();
        self.drop_empty_lines();
        was_there.then_some(line)
    }

    /// A line that came to nothing is given up where it is the last, so that a slot that goes back and forth takes one.
    fn drop_empty_lines(&mut self) {
        let journal = &mut self.lock.writer.journal;
        while let Some(Staged { old: None, new: None, .. }) = journal.last() {
            journal.pop();
        }
    }

    fn apply_replace(&mut self, old: NonNull<Record>, new: Memslot) -> Option<usize> {
        let line = self.line_of(old);
        let before = line.and_then(|line| self.line(line).old);
        let back = before.filter(|before| *slot_of(*before) == new);
        let at = line.unwrap_or(self.lock.writer.journal.len());
        // Back where it began: the very record again, and nothing to tell.
        let record = back.unwrap_or_else(|| self.new_record(new, at));
        let shift = self.lock.shared.limits.page_shift;
        let (space, mut editor) = self.edit(new.as_id);
        // SAFETY: reserved by stage(); the rules have found the old slot and seen that the new frames are free.
        unsafe { space.replace(&mut editor, old, record, shift) };
        if line.is_none() {
            let step = self.step;
            self.lock.writer.journal.push(Staged { old: Some(old), new: Some(record), kin: Kin::None, step });
            return Some(at);
        }
        self.free_record(old);
        let staged = &mut self.lock.writer.journal[at];
        if back.is_none() {
            staged.new = Some(record);
            return Some(at);
        }
        (staged.old, staged.new, staged.kin) = (None, None, Kin::None);
        self.drop_empty_lines();
        None
    }

    /// The working copy's space, and the right to change it.
    pub(crate) fn edit(&mut self, as_id: u16) -> (&mut Space, Editor<'_>) {
        let Writer { pool, replaced, .. } = &mut **self.lock.writer;
        let editor = Editor { pool, stamp: Stamp(self.stamp), replaced: Some(replaced) };
        // SAFETY: the working copy is this transaction's alone until it is published.
        let space = &mut unsafe { self.work.as_mut() }.spaces_mut()[as_id as usize];
        (space, editor)
    }

    pub(crate) fn space_mut(&mut self, as_id: u16) -> &mut Space {
        self.edit(as_id).0
    }

    /// A record for a line of the journal, from reserved memory.
    pub(crate) fn new_record(&mut self, slot: Memslot, line: usize) -> NonNull<Record> {
        Record::create(&mut self.lock.writer.pool, Stamp(self.stamp + line as u64), slot)
    }

    /// Frees a record that this transaction made and the working copy has let go of.
    pub(crate) fn free_record(&mut self, record: NonNull<Record>) {
        // SAFETY: never published.
        unsafe { self.lock.writer.pool.free(Record::object(record)) };
    }

    /// The line of a record that this transaction made.
    fn line_of(&self, record: NonNull<Record>) -> Option<usize> {
        // SAFETY: alive.
        let Stamp(stamp) = unsafe { record.as_ref() }.stamp;
        let line = stamp.checked_sub(self.stamp)? as usize;
        (self.lock.writer.journal.get(line)?.new == Some(record)).then_some(line)
    }

    pub(crate) fn line(&self, line: usize) -> &Staged {
        &self.lock.writer.journal[line]
    }

    /// The record in the current state that a slot's frames belong to, as far as this transaction knows.
    fn origin(&self, record: NonNull<Record>) -> Option<NonNull<Record>> {
        let Some(line) = self.line_of(record) else { return Some(record) };
        match self.line(line) {
            Staged { old: Some(old), .. } => Some(*old),
            Staged { kin: Kin::CutFrom(base), .. } => Some(*base),
            _ => None,
        }
    }

    // ---- what came of it ----

    pub(crate) fn journal(&self) -> impl Iterator<Item = &Staged> {
        self.lock.writer.journal.iter().filter(|line| line.old.is_some() || line.new.is_some())
    }

    pub(crate) fn has_changes(&self) -> bool {
        self.journal().next().is_some()
    }

    fn differences(&self) -> Result<Vec<Difference>> {
        let shift = self.lock.shared.limits.page_shift;
        let region = |record: Option<NonNull<Record>>| record.map(|record| Region::of(slot_of(record), shift));
        let mut differences = Vec::new();
        differences.try_reserve_exact(self.journal().count()).map_err(|_| Errno::ENOMEM)?;
        differences.extend(self.journal().map(|line| Difference { old: region(line.old), new: region(line.new) }));
        Ok(differences)
    }

    // ---- the end ----

    /// Publishes the changes: all at once, for every reader. At most two publications, whatever their number: where a
    /// `flush` hook is there and something goes or moves, first one that says so.
    ///
    /// # Errors
    /// What a hook or the attached VM refused with; `EDEADLK` where it would have to wait for readers and this thread is in a
    /// read-side section; `ENOMEM`. Everything is as before then, but for the generation: two steps where the first
    /// publication was made, none otherwise.
    pub fn commit(mut self) -> Result<()> {
        self.commit_in_place()
    }

    fn commit_in_place(&mut self) -> Result<()> {
        let result = self.try_commit();
        if self.bracketed {
            self.lock.trace(Op::Commit, Region::default, result);
            self.bracketed = false;
        }
        result
    }

    /// The same, and where it is refused, for which step.
    pub(crate) fn commit_list(&mut self) -> Result<(), (Errno, Option<usize>)> {
        let result = self.commit_in_place();
        result.map_err(|errno| (errno, self.refused.filter(|step| *step != usize::MAX)))
    }

    /// Throws the changes away. So does dropping the transaction.
    pub fn abort(self) {}

    /// Frees the working copy. The current state is what it was.
    pub(crate) fn throw_away(&mut self) {
        self.finished = true;
        let (stamp, writer) = (self.stamp, &mut **self.lock.writer);
        let Writer { pool, journal, replaced, .. } = writer;
        replaced.clear();
        // SAFETY: nodes and records that this transaction made are in no publication; the base's are passed by.
        unsafe {
            for space in self.work.as_ref().spaces() {
                let foreign = |head: &Head| head.stamp != Stamp(stamp);
                space.for_each_node(&foreign, &mut |node| pool.free(object_of(node)));
            }
            for record in journal.iter().filter_map(|line| line.new) {
                pool.free(Record::object(record));
            }
            pool.free(object_of(self.work.cast()));
        }
    }

    // ---- the trace ----

    /// Runs one step, and writes a line about it where a trace is on.
    pub(crate) fn traced(
        &mut self,
        op: Op,
        named: impl FnOnce() -> Region,
        step: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.lock.in_step = true;
        let result = step(self);
        self.lock.in_step = false;
        self.step += 1;
        if self.bracketed {
            self.lock.trace(op, named, result);
        }
        result
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // After a panic in the middle of a change the working copy may be anything: it is lost, and the table poisoned.
        if !self.finished && !self.lock.in_step {
            self.throw_away();
            if self.bracketed {
                self.lock.trace(Op::Abort, Region::default, Ok(()));
            }
        }
        let writer = &mut *self.lock.writer;
        // Beyond every stamp that this transaction gave: its own, a record a line, and an invalid view's.
        writer.next_stamp = self.stamp + writer.journal.len() as u64 + 1;
        if writer.journal.capacity() > JOURNAL_KEPT {
            writer.journal = Vec::new();
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Committing a transaction: the kernel's phases, and the way back from each of them.
//!
//! May know a transaction's working copy and journal, hooks and the real VM; not the rules, nor how a change was staged.
//!
//! 1. Where there is a `flush` hook and something goes or moves: publish the current state with those slots INVALID, wait for
//!    the readers, flush.
//! 2. Prepare; then the real VM, where there is one. A refusal takes back what was prepared, and publishes the old content
//!    again where step 1 was taken: two steps of the generation, and nothing else.
//! 3. Publish the result. Put aside what was replaced. Commit.
//!
//! All memory is allocated before the first publication.

use crate::hooks::{Change, Hooks, Kind};
use crate::index::pool::LINE;
use crate::index::{object_of, Editor, Head, Stamp};
use crate::plan::Step;
use crate::shared::Writer;
use crate::slot::{Errno, Gfn, Memslot, Result, INVALID};
use crate::snapshot::{Published, Record};
use crate::transaction::{slot_of, Kin, Staged, Transaction};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr::NonNull;

impl<'a> Transaction<'a> {
    // ---- what the hooks are told ----

    fn changes(&self) -> Result<Vec<Change<'a>>> {
        let mut changes = Vec::new();
        changes.try_reserve_exact(self.journal().count()).map_err(|_| Errno::ENOMEM)?;
        changes.extend(self.journal().map(|line| self.change(line)));
        Ok(changes)
    }

    fn change(&self, line: &Staged) -> Change<'a> {
        let covers = |whole: &Memslot, part: &Memslot| {
            let ahead = part.base_gfn.wrapping_sub(whole.base_gfn);
            let hva = whole.userspace_addr.wrapping_add(ahead << self.lock.shared.limits.page_shift);
            ahead < whole.npages && part.end_gfn() <= whole.end_gfn() && hva == part.userspace_addr
        };
        let (old, new) = (line.old.map(slot_of), line.new.map(slot_of));
        match (old, new) {
            (Some(old), Some(new)) => {
                Change { kind: kind_of_change(old, new), old_slot: Some(old), new_slot: Some(new) }
            }
            (Some(old), None) => match self.heir(line).filter(|heir| covers(heir, old)) {
                Some(heir) => Change { kind: Kind::Merge, old_slot: Some(old), new_slot: Some(heir) },
                None => Change { kind: Kind::Delete, old_slot: Some(old), new_slot: None },
            },
            (None, new) => match (line.kin, new) {
                (Kin::CutFrom(base), Some(new)) if covers(slot_of(base), new) => {
                    Change { kind: Kind::Split, old_slot: Some(slot_of(base)), new_slot: Some(new) }
                }
                _ => Change { kind: Kind::Create, old_slot: None, new_slot: new },
            },
        }
    }

    /// Leads every line of a merged slot to the line of the slot that has its frames in the end: slots that were merged may
    /// have been merged again.
    fn resolve_heirs(&mut self) {
        let journal = &mut self.lock.writer.journal;
        for index in 0..journal.len() {
            let mut heir = index;
            while let Some(Staged { new: None, kin: Kin::AbsorbedBy(next), .. }) = journal.get(heir) {
                heir = *next;
            }
            let mut at = index;
            while let Some(Staged { new: None, kin: Kin::AbsorbedBy(next), .. }) = journal.get_mut(at) {
                at = std::mem::replace(next, heir);
            }
        }
    }

    /// The slot that has a merged slot's frames in the end.
    fn heir(&self, line: &Staged) -> Option<&'a Memslot> {
        match line.kin {
            Kin::AbsorbedBy(heir) => self.lock.writer.journal.get(heir)?.new.map(slot_of),
            _ => None,
        }
    }

    /// Whether readers must first be told that the slot is on its way: what derives from its frames goes stale. Not where
    /// all of them stay where they were, under this slot or another.
    fn needs_flush(&self, change: &Change) -> bool {
        match (change.kind, change.old_slot) {
            (Kind::Delete | Kind::Move, _) => true,
            (Kind::Resize, Some(old)) => !self.still_mapped(old),
            _ => false,
        }
    }

    fn still_mapped(&self, old: &Memslot) -> bool {
        let shift = self.lock.shared.limits.page_shift;
        let mut gfn = Gfn(old.base_gfn);
        while gfn < old.end_gfn() {
            let hva = old.userspace_addr + ((gfn.0 - old.base_gfn) << shift);
            match self.find_gfn(old.as_id, gfn) {
                Some(now) if now.userspace_addr + ((gfn.0 - now.base_gfn) << shift) == hva => gfn = now.end_gfn(),
                _ => return false,
            }
        }
        true
    }

    // ---- the phases ----

    /// On success the working copy is published, or gone where nothing changed.
    pub(crate) fn try_commit(&mut self) -> Result<()> {
        if !self.has_changes() {
            self.throw_away();
            return Ok(());
        }
        self.lock.in_step = true;
        let result = self.go_through_phases();
        self.lock.in_step = false;
        result
    }

    fn go_through_phases(&mut self) -> Result<()> {
        let shared = self.lock.shared;
        let hooks = shared.hooks.as_deref();
        self.resolve_heirs();
        let changes = if hooks.is_some() { self.changes()? } else { Vec::new() };
        let steps = if self.lock.writer.backend.is_some() { self.plan()? } else { Vec::new() };
        let flushes = hooks.is_some_and(|hooks| hooks.wants_flush()) && changes.iter().any(|c| self.needs_flush(c));
        let waits = self.lock.waits();
        if (flushes || waits) && shared.in_section() {
            return Err(Errno::EDEADLK);
        }
        let view = if flushes { Some(self.make_invalid_view(&changes)?) } else { None };
        if let Err(errno) = self.reserve_retired(view.as_ref()) {
            view.into_iter().for_each(|view| self.free_invalid_view(view));
            return Err(errno);
        }
        // A hook in Rust can panic: what readers see must be whole again before that goes on.
        let consent = catch_unwind(AssertUnwindSafe(|| self.ask(view.as_ref(), hooks, &changes, &steps)));
        if !matches!(consent, Ok(Ok(()))) {
            if let Some(view) = view {
                self.take_back(view);
                self.lock.settle(waits);
            }
            return consent.unwrap_or_else(|panic| {
                self.throw_away();
                resume_unwind(panic)
            });
        }
        self.publish_result(view);
        self.put_aside();
        // As the kernel does it: with sync, no reader is left with the old state when the commit hooks run.
        self.lock.settle(waits);
        hooks.into_iter().for_each(|hooks| changes.iter().for_each(|change| hooks.commit(change)));
        self.lock.drain();
        Ok(())
    }

    /// The INVALID phase, where there is one; then the consent of hooks and VM.
    fn ask(
        &mut self,
        view: Option<&InvalidView>,
        hooks: Option<&dyn Hooks>,
        changes: &[Change],
        steps: &[Step],
    ) -> Result<()> {
        if let (Some(view), Some(hooks)) = (view, hooks) {
            self.publish(view.root);
            self.lock.wait_for_readers();
            self.invalid_records(view).for_each(|record| hooks.flush(slot_of(record)));
        }
        self.prepare(hooks, changes, steps)
    }

    /// Publishes a table without slots, whatever the hooks would say: for the end of a table.
    pub(crate) fn publish_empty(mut self) -> Result<()> {
        for as_id in 0..self.lock.shared.limits.nr_address_spaces as u16 {
            self.replace_all(as_id, &[], |_| std::ptr::null_mut()).map_err(|(errno, _)| errno)?;
        }
        if self.has_changes() {
            self.reserve_retired(None)?;
            self.publish_result(None);
            self.put_aside();
        }
        Ok(())
    }

    /// The hooks' and the real VM's consent. Where one refuses, all that was prepared is taken back.
    fn prepare(&mut self, hooks: Option<&dyn Hooks>, changes: &[Change], steps: &[Step]) -> Result<()> {
        let cancel = |upto: usize| {
            let hooks = hooks.into_iter();
            hooks.for_each(|hooks| changes[..upto].iter().rev().for_each(|change| hooks.cancel(change)));
        };
        for (index, change) in changes.iter().enumerate() {
            if let Err(errno) = hooks.map_or(Ok(()), |hooks| hooks.prepare(change)) {
                cancel(index);
                let step = self.journal().nth(index).map(|line| line.step);
                self.refused = step;
                return Err(errno);
            }
        }
        let Writer { backend: Some(backend), out_of_step, .. } = &mut **self.lock.writer else { return Ok(()) };
        backend.run(steps, out_of_step).map_err(|(errno, index)| {
            cancel(changes.len());
            let slot = steps[index].region().slot;
            let is_it = |line: &&Staged| line.new.or(line.old).is_some_and(|record| key_of(slot_of(record)) == slot);
            let step = self.journal().find(is_it).map(|line| line.step);
            self.refused = step;
            errno
        })
    }

    fn publish(&mut self, new: NonNull<Published>) {
        self.lock.shared.current.publish(new);
        self.lock.writer.publications += 1;
    }

    /// One step of a space's generation.
    fn generation_step(&self) -> u64 {
        self.lock.shared.limits.nr_address_spaces as u64
    }

    // ---- the INVALID phase ----

    /// A copy of the current state in which the slots that go or move are INVALID, where they are.
    fn make_invalid_view(&mut self, changes: &[Change]) -> Result<InvalidView> {
        let base = self.base;
        let stamp = Stamp(self.stamp + self.lock.writer.journal.len() as u64);
        let root_lines = Published::lines(self.lock.shared.limits.nr_address_spaces);
        self.lock.writer.pool.reserve(2 * root_lines * LINE)?;
        // The current state's nodes stay in use: nothing is put aside.
        let mut editor = Editor { pool: &mut self.lock.writer.pool, stamp, replaced: None };
        // SAFETY: the current publication is alive under the update lock.
        let (root, again) =
            unsafe { (Published::copy_of(&mut editor, base.as_ref()), Published::copy_of(&mut editor, base.as_ref())) };
        let mut view = InvalidView { root, again, stamp, spaces: 0 };
        for change in changes {
            let Some(old) = change.old_slot.filter(|_| self.needs_flush(change)) else { continue };
            if let Err(errno) = self.mark_invalid(&mut view, old) {
                self.free_invalid_view(view);
                return Err(errno);
            }
        }
        let (step, spaces) = (self.generation_step(), view.spaces);
        for (as_id, space) in view.root_mut().spaces_mut().iter_mut().enumerate() {
            space.generation += step * (spaces >> as_id & 1);
        }
        Ok(view)
    }

    fn mark_invalid(&mut self, view: &mut InvalidView, old: &Memslot) -> Result<()> {
        let pool = &mut self.lock.writer.pool;
        let stamp = view.stamp;
        let space = &mut view.root_mut().spaces_mut()[old.as_id as usize];
        pool.reserve(space.bytes_to_edit())?;
        let record = Record::create(pool, stamp, Memslot { flags: old.flags | INVALID, ..*old });
        // SAFETY: reserved; the slot is in the current state, of which the view is a copy.
        unsafe { space.mark(&mut Editor { pool, stamp, replaced: None }, record) };
        view.spaces |= 1 << old.as_id;
        Ok(())
    }

    /// The records that the view has instead of the current state's, in the order of the changes.
    fn invalid_records<'s>(&'s self, view: &'s InvalidView) -> impl Iterator<Item = NonNull<Record>> + 's {
        self.journal().filter_map(|line| line.old).filter_map(|old| {
            let old = slot_of(old);
            // SAFETY: the view is alive until it is put aside or freed.
            let record = unsafe { view.root.as_ref().space(old.as_id)?.find_id(old.id) }?;
            slot_of(record).is_invalid().then_some(record)
        })
    }

    /// Frees a view that was never published.
    fn free_invalid_view(&mut self, view: InvalidView) {
        for index in 0..self.lock.writer.journal.len() {
            let Some(old) = self.line(index).old.map(slot_of) else { continue };
            // SAFETY: as in invalid_records().
            let record = unsafe { view.root.as_ref().space(old.as_id).and_then(|space| space.find_id(old.id)) };
            if let Some(record) = record.filter(|record| slot_of(*record).is_invalid()) {
                // The record is found by its id only: the nodes that lead to it go later.
                self.free_record(record);
            }
        }
        let pool = &mut self.lock.writer.pool;
        view.for_each_own_node(|node| {
            // SAFETY: made for the view, which nobody has seen.
            unsafe { pool.free(object_of(node)) }
        });
        // SAFETY: as above.
        unsafe {
            self.lock.writer.pool.free(object_of(view.root.cast()));
            self.lock.writer.pool.free(object_of(view.again.cast()));
        }
    }

    /// After a refusal: the old content again, as a publication of its own.
    fn take_back(&mut self, view: InvalidView) {
        let mut again = view.again;
        let step = self.generation_step();
        // SAFETY: not published yet.
        for (as_id, space) in unsafe { again.as_mut() }.spaces_mut().iter_mut().enumerate() {
            space.generation += 2 * step * (view.spaces >> as_id & 1);
        }
        self.publish(again);
        self.retire_view(&view);
        // SAFETY: `again` has taken its place; its nodes live on in that.
        unsafe { self.lock.writer.lane.retire(object_of(self.base.cast())) };
    }

    /// Puts aside a view that was published, and is not any more.
    fn retire_view(&mut self, view: &InvalidView) {
        for index in 0..self.lock.writer.journal.len() {
            let Some(old) = self.line(index).old.map(slot_of) else { continue };
            // SAFETY: as in invalid_records().
            let record = unsafe { view.root.as_ref().space(old.as_id).and_then(|space| space.find_id(old.id)) };
            if let Some(record) = record.filter(|record| slot_of(*record).is_invalid()) {
                // SAFETY: in the view only, which is not current any more. A slot has one line with an old record.
                unsafe { self.lock.writer.lane.retire(Record::object(record)) };
            }
        }
        let lane = &mut self.lock.writer.lane;
        // SAFETY: made for the view and part of nothing else.
        view.for_each_own_node(|node| unsafe { lane.retire(object_of(node)) });
        // SAFETY: as above.
        unsafe { self.lock.writer.lane.retire(object_of(view.root.cast())) };
    }

    /// Room for all that the publications of this commit can retire: what was replaced, records, and an INVALID view.
    fn reserve_retired(&mut self, view: Option<&InvalidView>) -> Result<()> {
        let mut nodes = 0;
        view.into_iter().for_each(|view| view.for_each_own_node(|_| nodes += 1));
        let writer = &mut **self.lock.writer;
        let changes = writer.journal.len();
        // Of each change the old record, and the view's; the base and the view's roots.
        writer.lane.reserve(writer.replaced.len() + nodes + 2 * changes + 3, changes)
    }

    // ---- the result ----

    fn publish_result(&mut self, view: Option<InvalidView>) {
        let step = self.generation_step();
        let changed = self.journal().filter_map(|line| line.new.or(line.old));
        let spaces = changed.fold(0u64, |spaces, record| spaces | 1 << slot_of(record).as_id);
        let flushed = view.as_ref().map_or(0, |view| view.spaces);
        // SAFETY: the working copy is not published yet.
        for (as_id, space) in unsafe { self.work.as_mut() }.spaces_mut().iter_mut().enumerate() {
            space.generation += step * ((spaces >> as_id & 1) + (flushed >> as_id & 1));
        }
        self.publish(self.work);
        self.finished = true;
        if let Some(view) = view {
            self.retire_view(&view);
            // SAFETY: never published.
            unsafe { self.lock.writer.pool.free(object_of(view.again.cast())) };
        }
    }

    /// What the result has replaced waits for the readers.
    fn put_aside(&mut self) {
        let writer = &mut **self.lock.writer;
        let has_release = self.lock.shared.hooks.is_some();
        // SAFETY: the base is not current any more, nor are the nodes and records that have been replaced.
        unsafe {
            writer.replaced.drain(..).for_each(|object| writer.lane.retire(object));
            writer.lane.retire(object_of(self.base.cast()));
            for Staged { old, new, .. } in &writer.journal {
                match old {
                    Some(old) if has_release && new.is_none() => writer.lane.retire_gone(*old),
                    Some(old) => writer.lane.retire(Record::object(*old)),
                    None => {}
                }
            }
        }
    }
}

/// The first publication of a commit that deletes or moves.
struct InvalidView {
    root: NonNull<Published>,
    /// The old content once more, for when the update is refused.
    again: NonNull<Published>,
    stamp: Stamp,
    /// Bit i: space i differs from the current state.
    spaces: u64,
}

impl InvalidView {
    fn root_mut(&mut self) -> &mut Published {
        // SAFETY: called before it is published only.
        unsafe { self.root.as_mut() }
    }

    fn for_each_own_node(&self, mut visit: impl FnMut(NonNull<Head>)) {
        // SAFETY: the view is alive; links are read under the update lock, and no node is looked at after its visit.
        unsafe {
            for space in self.root.as_ref().spaces() {
                space.for_each_node(&|head| head.stamp != self.stamp, &mut visit);
            }
        }
    }
}

/// Address space and id in one, as a region has them.
fn key_of(slot: &Memslot) -> u32 {
    slot.id as u32 | (slot.as_id as u32) << 16
}

fn kind_of_change(old: &Memslot, new: &Memslot) -> Kind {
    if old.npages != new.npages {
        return Kind::Resize;
    }
    match old.base_gfn == new.base_gfn {
        true => Kind::FlagsOnly,
        false => Kind::Move,
    }
}

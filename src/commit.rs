// SPDX-License-Identifier: MIT OR Apache-2.0
//! Committing an update: the kernel's phases, and the roll-back from each of them.
//!
//! Knows a working copy, its journal, hooks and the real VM; not the rules, nor how a change was staged. One function a
//! stage (`docs/design.md`, *One update, in order*):
//!
//! 1. Whatever can be allocated is, and what would deadlock is refused.
//! 2. Where there is a `flush` hook and a slot whose readers must be told: publish the current state with those slots
//!    INVALID, wait for the readers, flush.
//! 3. `prepare` for each change; then the real VM, where there is one.
//! 4. Publish the result, retire what it has replaced, `commit` for each change.
//!
//! A refusal in 2 or 3 rolls back: what was prepared is cancelled, and the old content is published again where the
//! INVALID state had been: two steps of the generation, and nothing else.

use crate::cancel::NoCancel;
use crate::error::{Errno, Refused, Result};
use crate::hooks::{Change, Hooks};
use crate::journal::{Journal, Outcome, Tally};
use crate::ledger::Ledger;
use crate::memory::try_box;
use crate::plan::{self, Difference, Step};
use crate::shared::Updating;
use crate::slot::{AsIds, Memslot, Region, INVALID};
use crate::snapshot::Record;
use crate::working_copy::{Publication, WorkingCopy};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr::NonNull;

/// Publishes a working copy, or rolls back: the state is what it was then, but for two steps of the generation where
/// the INVALID state was published.
///
/// # Errors
/// What a hook or the VM refused with, and which step of the update that was about; `EDEADLK` where it would wait for
/// readers and this thread is in a section; `ENOMEM`.
pub(crate) fn commit(lock: &mut Updating, copy: WorkingCopy, journal: Journal) -> Result<(), Refused> {
    let tally = journal.tally();
    if tally.spaces.is_empty() {
        lock.writer().entries = journal.into_memory();
        return Ok(());
    }
    let _no_cancel = lock.shared().hooks.is_some().then(NoCancel::begin);
    lock.in_step = true;
    let waits = lock.waits();
    let result = Commit { lock, copy, journal, tally, asked: None, waits }.run();
    lock.in_step = false;
    result
}

/// An update on its way, with all the memory that it takes.
struct Commit<'l, 'a> {
    lock: &'l mut Updating<'a>,
    copy: WorkingCopy,
    journal: Journal,
    tally: Tally,
    /// None where there is nobody to ask or to tell.
    asked: Option<Box<Asked>>,
    /// Whether this returns only when no reader is left with what was before.
    waits: bool,
}

/// What hooks and the VM are asked and told.
struct Asked {
    /// What hooks are told; empty where there are none.
    changes: Vec<Outcome>,
    /// What the VM is called with; empty where there is none.
    steps: Vec<Step>,
    invalid: Option<InvalidPhase>,
}

/// The first publication of an update that has something to flush.
struct InvalidPhase {
    /// The current state with the flushed slots INVALID, until it is published.
    view: Option<WorkingCopy>,
    published: Option<Publication>,
    /// The current state as it is, to be published again after a refusal.
    again: WorkingCopy,
    /// Those with a slot that is flushed.
    spaces: AsIds,
}

impl<'l, 'a> Commit<'l, 'a> {
    /// From one stage to the next.
    fn run(mut self) -> Result<(), Refused> {
        self.prepare()?;
        // A hook in Rust can panic: what readers see must be whole again before the panic continues.
        let consent = match self.asked {
            Some(_) => catch_unwind(AssertUnwindSafe(|| self.ask())),
            None => Ok(Ok(())),
        };
        match consent {
            Ok(Ok(())) => self.publish(),
            _ => self.roll_back(),
        }
        consent.unwrap_or_else(|panic| resume_unwind(panic))
    }

    // ---- stage 1 ----

    fn prepare(&mut self) -> Result<()> {
        if self.lock.shared().hooks.is_some() || self.lock.writer().backend.is_some() {
            self.asked = Some(self.prepare_to_ask()?);
        } else if self.waits && self.lock.shared().readers.in_section() {
            return Err(Errno::EDEADLK);
        }
        self.reserve_retired()?;
        self.reserve_ledger()
    }

    fn prepare_to_ask(&mut self) -> Result<Box<Asked>> {
        let Commit { lock, copy, journal, .. } = self;
        let shared = lock.shared();
        let hooks = shared.hooks.as_deref();
        let shift = shared.limits.page_shift;
        let changes = if hooks.is_some() { journal.changes(copy.state(), shift)? } else { Vec::new() };
        let steps = if lock.writer().backend.is_some() { calls(lock, journal)? } else { Vec::new() };
        let flushes = hooks.is_some_and(|hooks| hooks.wants_flush()) && changes.iter().any(|change| change.flushes);
        if (flushes || self.waits) && shared.readers.in_section() {
            return Err(Errno::EDEADLK);
        }
        let invalid = if flushes { Some(InvalidPhase::new(lock, &changes)?) } else { None };
        try_box(Asked { changes, steps, invalid })
    }

    /// Room for the host memory that loses its last slot, and for the cuts where a slot maps some again.
    fn reserve_ledger(&mut self) -> Result<()> {
        if !wants_unmap(self.lock) {
            return Ok(());
        }
        let mut calls = 0;
        let shift = self.lock.shared().limits.page_shift;
        for entry in self.journal.iter() {
            calls += entry.after.is_some() as usize;
            let Some(before) = entry.before else { continue };
            let pages = self.lock.slot(before).host_pages(shift);
            self.copy.state().for_each_unmapped(pages, shift, &mut |_| calls += 1);
        }
        self.lock.writer().ledger.reserve(calls)
    }

    /// Room for all that the publications can retire: what was replaced and its records, the base, the INVALID state.
    fn reserve_retired(&mut self) -> Result<()> {
        let view = self.invalid().and_then(|phase| phase.view.as_ref()).map_or(0, |view| view.count_own_objects());
        let records = self.tally.records;
        let lane = self.lock.lane();
        lane.reserve(view + records + 1)?;
        lane.reserve_gone(records)
    }

    fn invalid(&self) -> Option<&InvalidPhase> {
        self.asked.as_ref()?.invalid.as_ref()
    }

    // ---- the stages that can refuse ----

    fn ask(&mut self) -> Result<(), Refused> {
        self.invalidate();
        self.ask_hooks()?;
        self.ask_vm()
    }

    /// Stage 2: the slots are INVALID to readers, and none is left that saw one valid; then `flush` for each.
    fn invalidate(&mut self) {
        let Some(Asked { changes, invalid: Some(phase), .. }) = self.asked.as_deref_mut() else { return };
        let Some(view) = phase.view.take() else { return };
        phase.published = Some(self.lock.publish_beside(view));
        self.lock.wait_for_readers();
        for change in changes.iter().filter(|change| change.flushes) {
            let Some(slot) = change.old.map(|old| self.lock.slot(old)) else { continue };
            // SAFETY: the INVALID state is current now, and alive under the update lock.
            let invalid = self.lock.current().space(slot.as_id).and_then(|space| unsafe { space.find_id(slot.id) });
            if let (Some(hooks), Some(invalid)) = (self.lock.shared().hooks.as_deref(), invalid) {
                hooks.flush(self.lock.slot(invalid));
            }
        }
    }

    fn hooks(&self) -> Option<&'a dyn Hooks> {
        self.lock.shared().hooks.as_deref()
    }

    fn changes(&self) -> &[Outcome] {
        self.asked.as_ref().map_or(&[], |asked| &asked.changes)
    }

    /// Stage 3. Where a hook refuses, those before it cancel.
    fn ask_hooks(&self) -> Result<(), Refused> {
        let Some(hooks) = self.hooks() else { return Ok(()) };
        for (index, change) in self.changes().iter().enumerate() {
            if let Err(errno) = hooks.prepare(&told(self.lock, change)) {
                self.cancel(index);
                return Err(Refused::entry(change.step)(errno));
            }
        }
        Ok(())
    }

    /// Cancels the first `count` changes, last first.
    fn cancel(&self, count: usize) {
        if let Some(hooks) = self.hooks() {
            self.changes()[..count].iter().rev().for_each(|change| hooks.cancel(&told(self.lock, change)));
        }
    }

    /// The VM makes all calls, or has undone those that it made.
    fn ask_vm(&mut self) -> Result<(), Refused> {
        let writer = self.lock.writer();
        let (Some(backend), Some(asked)) = (&writer.backend, &self.asked) else { return Ok(()) };
        let Err((errno, index)) = backend.run(&asked.steps, &mut writer.out_of_step) else { return Ok(()) };
        self.cancel(asked.changes.len());
        let region = asked.steps[index].region();
        let is_it = |record| {
            let slot = self.lock.slot(record);
            (slot.as_id, slot.id) == (region.as_id(), region.id())
        };
        let entry = self.journal.iter().find(|entry| entry.record().is_some_and(is_it));
        Err(Refused { errno, at: entry.map(|entry| entry.step) })
    }

    // ---- the end, one way or the other ----

    /// After a refusal: the old content again, as a publication of its own, where the INVALID state had been published.
    #[cold]
    fn roll_back(self) {
        let Commit { lock, copy, journal, asked, waits, .. } = self;
        let step = lock.shared().limits.nr_address_spaces as u64;
        let base = copy.base_object();
        drop(copy);
        if let Some(InvalidPhase { published: Some(view), mut again, spaces, .. }) = asked.and_then(|it| it.invalid) {
            spaces.iter().for_each(|as_id| again.add_to_generation(as_id, 2 * step));
            lock.publish_beside(again);
            retire_view(lock, view);
            // SAFETY: its nodes live on in what was published again; the root does not.
            unsafe { lock.lane().retire(base) };
            lock.settle(waits);
        }
        lock.writer().entries = journal.into_memory();
    }

    /// Stage 4.
    fn publish(mut self) {
        self.step_generations();
        self.lock.publish(self.copy);
        if let Some(view) = self.asked.as_mut().and_then(|asked| asked.invalid.as_mut()?.published.take()) {
            retire_view(self.lock, view);
        }
        retire_records(self.lock, &self.journal);
        note_in_ledger(self.lock, &self.journal);
        self.lock.writer().entries = self.journal.into_memory();
        // As the kernel does it: with sync, no reader is left with the old state when the commit hooks run.
        self.lock.settle(self.waits);
        if let (Some(hooks), Some(asked)) = (self.lock.shared().hooks.as_deref(), self.asked) {
            asked.changes.iter().for_each(|change| hooks.commit(&told(self.lock, change)));
        }
        self.lock.drain();
    }

    /// A space's generation moves on with each publication that changes it.
    fn step_generations(&mut self) {
        let step = self.lock.shared().limits.nr_address_spaces as u64;
        let flushed = self.invalid().map_or(AsIds::default(), |phase| phase.spaces);
        self.tally.spaces.iter().for_each(|as_id| self.copy.add_to_generation(as_id, step));
        flushed.iter().for_each(|as_id| self.copy.add_to_generation(as_id, step));
    }
}

impl InvalidPhase {
    fn new(lock: &Updating, changes: &[Outcome]) -> Result<InvalidPhase> {
        let (mut view, again) = (lock.begin_beside()?, lock.begin_beside()?);
        let mut spaces = AsIds::default();
        for old in changes.iter().filter(|change| change.flushes).filter_map(|change| change.old) {
            let slot = lock.slot(old);
            view.reserve(slot.as_id, 1)?;
            let invalid = view.new_own_record(Memslot { flags: slot.flags | INVALID, ..*slot });
            view.mark(invalid);
            spaces.insert(slot.as_id);
        }
        let step = lock.shared().limits.nr_address_spaces as u64;
        spaces.iter().for_each(|as_id| view.add_to_generation(as_id, step));
        Ok(InvalidPhase { view: Some(view), published: None, again, spaces })
    }
}

/// What a hook is told of a change.
fn told<'l>(lock: &'l Updating, change: &Outcome) -> Change<'l> {
    let slot = |record: Option<NonNull<Record>>| record.map(|record| lock.slot(record));
    Change { kind: change.kind, old_slot: slot(change.old), new_slot: slot(change.new) }
}

/// Retires an INVALID state that is not current any more.
fn retire_view(lock: &mut Updating, view: Publication) {
    let lane = lock.lane();
    // SAFETY: alive until the lane frees it; each object is retired once, and there is room.
    unsafe { view.for_each_own_object(&mut |object| lane.retire(object)) };
}

/// Retires the records that a result has taken the place of.
fn retire_records(lock: &mut Updating, journal: &Journal) {
    let owes_release = lock.shared().hooks.is_some();
    let lane = lock.lane();
    for (before, after) in journal.each_changed().filter_map(|entry| Some((entry.before?, entry.after))) {
        // SAFETY: the record is not part of what is current any more, and has one entry; there is room.
        unsafe {
            match after.is_none() && owes_release {
                true => lane.retire_gone(before),
                false => lane.retire(Record::object(before)),
            }
        }
    }
}

fn wants_unmap(lock: &Updating) -> bool {
    lock.shared().hooks.as_deref().is_some_and(|hooks| hooks.wants_unmap())
}

/// Notes which host memory the current state has taken from its last slot, and which it maps again.
fn note_in_ledger(lock: &mut Updating, journal: &Journal) {
    if !wants_unmap(lock) {
        return;
    }
    let shift = lock.shared().limits.page_shift;
    let bag = lock.lane().next_bag();
    // Out of the lock for a moment, so that state and ledger can be looked at together.
    let mut ledger = std::mem::replace(&mut lock.writer().ledger, Ledger::new());
    for after in journal.iter().filter_map(|entry| entry.after) {
        ledger.remove(lock.slot(after).host_pages(shift));
    }
    for before in journal.iter().filter_map(|entry| entry.before) {
        let pages = lock.slot(before).host_pages(shift);
        lock.current().for_each_unmapped(pages, shift, &mut |pages| ledger.add(pages, bag));
    }
    lock.writer().ledger = ledger;
}

fn differences(lock: &Updating, journal: &Journal) -> Result<Vec<Difference>> {
    let shift = lock.shared().limits.page_shift;
    let region = |record: Option<NonNull<Record>>| record.map(|record| Region::of(lock.slot(record), shift));
    let mut differences = Vec::new();
    differences.try_reserve_exact(journal.iter().count()).map_err(|_| Errno::ENOMEM)?;
    differences.extend(journal.iter().map(|entry| Difference { old: region(entry.before), new: region(entry.after) }));
    Ok(differences)
}

/// The kernel calls that would make an update's changes, in an order that the kernel accepts.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn calls(lock: &Updating, journal: &Journal) -> Result<Vec<Step>> {
    plan::steps(&differences(lock, journal)?)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library with hooks that listen: what they are told is held against the model and against what is promised.
//!
//! Readers of its own have sections that the operations open and close. All on one thread, so that it is certain which
//! section began before which update.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use memslots::{Reader, Section, INVALID};

use crate::compare::{play, Divergence, Player, Tally};
use crate::ledger::Ledger;
use crate::library::Library;
use crate::listener::{self, Event, Notes};
use crate::model::{Limits, Model, Slot};
use crate::op::{Op, Outcome};
use crate::update::Change;

/// Bytes of the largest slot where frames are looked at one by one.
pub const LARGEST_SLOT: u64 = 1 << 31;

/// What a table promises its hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// What is committed is the difference between one content and the next, prepared in the same order.
    Story,
    /// Each change has the kind, and the slots beside it, that a consumer can rely on.
    Kinds,
    /// Flushed is what a reader may have derived something from that stops being true, and nothing else.
    Flush,
    /// A slot is released once, when its life has ended and no section can have it.
    Release,
    /// Host memory is given back once, when no slot maps it and no section can have it.
    Unmap,
}

/// All of them.
pub const ALL: &[Promise] = &[Promise::Story, Promise::Kinds, Promise::Flush, Promise::Release, Promise::Unmap];

/// How a table is watched.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Its limits.
    pub limits: Limits,
    /// Whether it has a flush hook. Updates wait for readers then, so there must be no sections.
    pub flushes: bool,
    /// Readers that `lock` and `unlock` are for.
    pub readers: u16,
    /// What it is held to.
    pub promises: &'static [Promise],
    /// Everything is looked at after so many operations, and at the end.
    pub stride: usize,
}

impl Watch {
    /// Plays operations on a table and ends it; says where a promise is broken.
    pub fn play(&self, ops: &[Op]) -> Result<Tally, Divergence> {
        let (table, notes) = listener::table(&self.limits, self.flushes);
        let readers: Vec<_> = (0..self.readers).map(|_| table.reader().expect("a reader")).collect();
        let mut watched = Watched {
            library: Library::with(table, &self.limits),
            notes,
            promises: self.promises,
            flushes: self.flushes,
            told: BTreeMap::new(),
            slots: Ledger::of("the slot with opaque"),
            memory: Ledger::of("the page of host memory"),
            sections: readers.iter().map(|_| None).collect(),
            readers: &readers,
            now: 0,
        };
        let model = Model::new(self.limits);
        let mut model = if self.flushes { model.with_two_phases() } else { model };
        let tally = play(ops, &mut model, &mut [&mut watched], self.stride)?;
        let at = ops.len().saturating_sub(1);
        watched.end().map_err(|what| Divergence { at, what: format!("at the end of the table: {what}") })?;
        Ok(tally)
    }
}

struct Watched<'r> {
    library: Library,
    notes: Arc<Notes>,
    promises: &'static [Promise],
    flushes: bool,
    /// The content as the commits alone describe it, by address space and id.
    told: BTreeMap<(u16, u16), Slot>,
    slots: Ledger,
    memory: Ledger,
    /// The open sections, and when they began.
    sections: Vec<Option<(u64, Section<'r>)>>,
    readers: &'r [Reader],
    now: u64,
}

impl Player for Watched<'_> {
    fn name(&self) -> &'static str {
        "the library with hooks"
    }

    fn apply(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome> {
        self.now += 1;
        match *op {
            Op::Lock { reader } => self.lock(reader),
            Op::Unlock { reader } => {
                self.sections.get_mut(usize::from(reader))?.take();
            }
            _ => return self.library.apply(op, opaque, before),
        }
        None
    }

    fn glance(&mut self, model: &Model) -> Result<(), String> {
        self.library.glance(model)?;
        let events = self.notes.take();
        if model.update().is_some() {
            self.account(model);
        }
        self.hold(model, &events)
    }

    fn inspect(&mut self, model: &Model) -> Result<(), String> {
        self.library.inspect(model)?;
        if model.in_transaction() {
            return Ok(());
        }
        let nobody_reads = self.sections.iter().all(Option::is_none);
        if nobody_reads && self.now & 1 == 0 {
            self.library.table().synchronize().map_err(|errno| format!("synchronize: {errno:?}"))?;
        } else {
            self.library.table().reclaim();
        }
        let events = self.notes.take();
        self.given_back(&events)?;
        if nobody_reads {
            self.settled()
        } else {
            Ok(())
        }
    }

    fn largest_slot(&self) -> u64 {
        LARGEST_SLOT
    }
}

impl Watched<'_> {
    fn lock(&mut self, reader: u16) {
        let at = usize::from(reader);
        if let (Some(reader), Some(None)) = (self.readers.get(at), self.sections.get(at)) {
            self.sections[at] = Some((self.now, reader.lock()));
        }
    }

    fn is_held_to(&self, promise: Promise) -> bool {
        self.promises.contains(&promise)
    }

    /// Writes down what the table has from now on.
    fn account(&mut self, model: &Model) {
        let shift = model.limits().page_shift;
        let slots = || model.spaces().iter().flat_map(|space| &space.slots);
        let pages =
            |slot: &Slot| (slot.base_gfn..slot.end_gfn()).map(|gfn| slot.hva_of(gfn, shift)).collect::<Vec<_>>();
        self.slots.holds(slots().map(|slot| slot.opaque as u64).collect(), self.now);
        self.memory.holds(slots().flat_map(pages).map(|hva| hva >> shift).collect(), self.now);
    }

    /// Holds one operation's events against what is promised.
    fn hold(&mut self, model: &Model, events: &[Event]) -> Result<(), String> {
        if self.is_held_to(Promise::Story) {
            self.story(model, events)?;
        }
        if self.is_held_to(Promise::Kinds) {
            kinds(model, events)?;
        }
        if self.is_held_to(Promise::Flush) {
            flushes(model, events, self.flushes)?;
        }
        self.given_back(events)
    }

    fn story(&mut self, model: &Model, events: &[Event]) -> Result<(), String> {
        let (prepared, committed) = (of(events, prepared), of(events, committed));
        if prepared != committed || events.iter().any(|event| matches!(event, Event::Cancel(_))) {
            return Err(format!("prepared {prepared:x?}, committed {committed:x?}"));
        }
        for old in committed.iter().filter_map(Change::own_old) {
            self.told.retain(|_, slot| *slot != old);
        }
        self.told.extend(committed.iter().filter_map(Change::own_new).map(|new| ((new.as_id, new.id), new)));
        let published: BTreeSet<Slot> = model.spaces().iter().flat_map(|space| &space.slots).map(Slot::bare).collect();
        let told: BTreeSet<Slot> = self.told.values().copied().collect();
        if told != published {
            return Err(format!("the hooks know of {told:x?}, published is {published:x?}"));
        }
        Ok(())
    }

    fn given_back(&mut self, events: &[Event]) -> Result<(), String> {
        let oldest = self.sections.iter().flatten().map(|(begun, _)| *begun).min();
        let shift = self.library.limits().page_shift;
        for event in events {
            match *event {
                Event::Release(slot) if self.is_held_to(Promise::Release) => {
                    self.slots.is_given(slot.opaque as u64, oldest)?;
                }
                Event::Unmap { hva, size } if self.is_held_to(Promise::Unmap) => {
                    if size == 0 || (hva | size) & ((1 << shift) - 1) != 0 {
                        return Err(format!("{size:#x} bytes at {hva:#x} were given back: no pages"));
                    }
                    (hva >> shift..(hva + size) >> shift).try_for_each(|page| self.memory.is_given(page, oldest))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settled(&self) -> Result<(), String> {
        if self.is_held_to(Promise::Release) {
            self.slots.is_settled()?;
        }
        if self.is_held_to(Promise::Unmap) {
            self.memory.is_settled()?;
        }
        Ok(())
    }

    /// Ends the table, with readers left, and looks whether it has given back everything.
    fn end(mut self) -> Result<(), String> {
        self.sections.clear();
        let nothing = Library::new(self.library.limits());
        drop(std::mem::replace(&mut self.library, nothing));
        self.now += 1;
        self.slots.holds(BTreeSet::new(), self.now);
        self.memory.holds(BTreeSet::new(), self.now);
        let events = self.notes.take();
        self.given_back(&events)?;
        self.settled()
    }
}

/// Whether the changes of the model's last update were committed, by their right kinds and with the right slots.
pub fn kinds(model: &Model, events: &[Event]) -> Result<(), String> {
    let changes = model.update().map(|update| update.changes()).unwrap_or_default();
    let mut expected: Vec<Change> = changes.iter().map(Change::bare).collect();
    let mut told = of(events, committed);
    expected.sort();
    told.sort();
    if expected != told {
        return Err(format!("the changes are {expected:x?}, the hooks were told {told:x?}"));
    }
    Ok(())
}

/// Whether what had to be flushed by the model's last update was flushed, in the order of the changes and before them.
pub fn flushes(model: &Model, events: &[Event], wanted: bool) -> Result<(), String> {
    let must = model.update().filter(|_| wanted).map(|update| update.flushed()).unwrap_or_default();
    let must: BTreeSet<Slot> = must.iter().map(Slot::bare).collect();
    let (flushed, changes) = (of(events, flushed), of(events, committed));
    let invalid = |slot: Slot| Slot { flags: slot.flags | INVALID, ..slot };
    let in_order = changes.iter().filter_map(Change::own_old).filter(|slot| must.contains(slot)).map(invalid);
    if !in_order.eq(flushed.iter().copied()) || flushed.len() != must.len() {
        return Err(format!("to be flushed were {must:x?}, flushed were {flushed:x?}, changes {changes:x?}"));
    }
    let first = events.iter().position(|event| prepared(event).is_some());
    let last = events.iter().rposition(|event| self::flushed(event).is_some());
    match first.zip(last) {
        Some((first, last)) if first < last => Err("a slot was flushed after a prepare".into()),
        _ => Ok(()),
    }
}

fn prepared(event: &Event) -> Option<Change> {
    match event {
        Event::Prepare(change) => Some(*change),
        _ => None,
    }
}

fn committed(event: &Event) -> Option<Change> {
    match event {
        Event::Commit(change) => Some(*change),
        _ => None,
    }
}

fn flushed(event: &Event) -> Option<Slot> {
    match event {
        Event::Flush(slot) => Some(*slot),
        _ => None,
    }
}

fn of<T>(events: &[Event], pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
    events.iter().filter_map(pick).collect()
}

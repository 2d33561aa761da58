// SPDX-License-Identifier: MIT OR Apache-2.0
//! An update that a hook refuses leaves no trace: whichever change it refuses, everything that a reader can ask is as
//! it was, down to the addresses of the slots, and the hooks were told of exactly what was undone.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use memslots::{AsId, Reader, Section, SlotId};
use memslots_oracle::compare::{Divergence, Player, Tally};
use memslots_oracle::library::{seen, Library};
use memslots_oracle::listener::{self, Event, Notes};
use memslots_oracle::model::{Limits, Model, Slot};
use memslots_oracle::op::{Op, Outcome};
use memslots_oracle::run::{agree, each_case, say};
use memslots_oracle::update::Update;
use memslots_oracle::watched::LARGEST_SLOT;
use memslots_oracle::world::{Choose, World};

/// A table whose updates are refused again and again before they go through.
struct Refused {
    library: Library,
    notes: Arc<Notes>,
    reader: Reader,
    model: Model,
    /// What the open transaction is made of, with opaques: a refusal ends it.
    staged: Vec<(Op, usize)>,
    flushes: bool,
    refusals: u64,
}

/// What a slot is and where.
type Address = (usize, Slot);

fn addresses(section: &Section<'_>, nr_address_spaces: u16) -> Vec<Address> {
    let spaces = 0..nr_address_spaces;
    let by_gfn = spaces.flat_map(|as_id| section.iter(AsId(as_id))).map(|slot| (slot as *const _ as usize, seen(slot)));
    let by_gfn: Vec<Address> = by_gfn.collect();
    let by_id = by_gfn
        .iter()
        .map(|(_, slot)| section.find_id(AsId(slot.as_id), SlotId(slot.id)).expect("it was met in the walk"));
    let by_id: Vec<Address> = by_id.map(|slot| (slot as *const _ as usize, seen(slot))).collect();
    assert_eq!(by_id, by_gfn, "one slot, two addresses");
    by_id
}

impl Refused {
    fn new(limits: Limits, flushes: bool) -> Refused {
        let (table, notes) = listener::table(&limits, flushes);
        let reader = table.reader().expect("a reader");
        let model = if flushes { Model::new(limits).with_two_phases() } else { Model::new(limits) };
        let library = Library::with(table, &limits);
        Refused { library, notes, reader, model, staged: Vec::new(), flushes, refusals: 0 }
    }

    fn addresses(&self) -> Vec<Address> {
        addresses(&self.reader.lock(), self.model.limits().nr_address_spaces)
    }

    /// One operation: refused at each of its changes, then let through.
    fn step(&mut self, op: &Op, opaque: usize) -> Result<(), String> {
        let mut after = self.model.clone();
        let expected = after.apply(op, opaque);
        let update = after.update().cloned();
        let nr_changes = update.as_ref().map_or(0, |update| update.changes().len());
        for agreed in 0..nr_changes {
            self.refuse(op, opaque, update.as_ref().expect("it changes something"), agreed)?;
        }
        let before = self.addresses();
        self.go_through(op, opaque, expected)?;
        if update.is_none() && self.addresses() != before {
            return Err("nothing was published, and the slots are elsewhere".into());
        }
        self.look()
    }

    fn go_through(&mut self, op: &Op, opaque: usize, expected: Outcome) -> Result<(), String> {
        let outcome = self.library.apply(op, opaque, &self.model);
        if outcome != Some(expected) {
            return Err(format!("the model says {expected:?}, the library {outcome:?}"));
        }
        let _ = self.model.apply(op, opaque);
        match self.model.in_transaction() {
            true if op.is_change() => self.staged.push((*op, opaque)),
            true => {}
            false => self.staged.clear(),
        }
        self.notes.take();
        Ok(())
    }

    /// One refusal, after so many changes were agreed to; then the transaction is staged anew.
    fn refuse(&mut self, op: &Op, opaque: usize, update: &Update, agreed: usize) -> Result<(), String> {
        self.refusals += 1;
        let nr_address_spaces = self.model.limits().nr_address_spaces;
        let before = self.addresses();
        self.notes.take();
        self.notes.agree_to(Some(agreed));
        // Where the update waits for readers there can be no section meanwhile.
        let section = (!self.flushes).then(|| self.reader.lock());
        let outcome = self.library.apply(op, opaque, &self.model);
        let meanwhile = section.map(|section| addresses(&section, nr_address_spaces));
        self.notes.agree_to(None);
        if outcome != Some(Err(libc::EBUSY)) {
            return Err(format!("refused by a hook at change {agreed}, and it came to {outcome:?}"));
        }
        self.told(update, agreed)?;
        self.model.refuse(update);
        if self.addresses() != before || meanwhile.is_some_and(|meanwhile| meanwhile != before) {
            return Err(format!("after a refusal at change {agreed} the slots are elsewhere"));
        }
        self.look().map_err(|error| format!("after a refusal at change {agreed}: {error}"))?;
        if self.model.in_transaction() {
            self.library.apply(&Op::Begin, 0, &self.model);
            for (op, opaque) in &self.staged {
                self.library.apply(op, *opaque, &self.model);
            }
        }
        Ok(())
    }

    /// What was prepared was cancelled, last first; nothing else happened that a refusal undoes.
    fn told(&self, update: &Update, agreed: usize) -> Result<(), String> {
        let events = self.notes.take();
        let mut prepared = Vec::new();
        let (mut flushed, mut cancelled) = (0, 0);
        for event in &events {
            match event {
                Event::Flush(_) => flushed += 1,
                Event::Prepare(change) if cancelled == 0 => prepared.push(*change),
                Event::Cancel(change) if prepared.pop() == Some(*change) => cancelled += 1,
                Event::Release(_) | Event::Unmap { .. } => {} // of earlier updates
                _ => return Err(format!("a refusal at change {agreed} was told as {events:x?}")),
            }
        }
        let must = if self.flushes { update.flushed().len() } else { 0 };
        if (flushed, cancelled, prepared.len()) != (must, agreed, 0) {
            return Err(format!("{must} to flush, {agreed} to cancel: a refusal was told as {events:x?}"));
        }
        Ok(())
    }

    /// Everything that a reader can ask.
    fn look(&mut self) -> Result<(), String> {
        self.library.glance(&self.model)?;
        self.library.inspect(&self.model)
    }
}

fn play(ops: &[Op], limits: Limits, flushes: bool, refusals: &Cell<u64>) -> Result<Tally, Divergence> {
    let mut table = Refused::new(limits, flushes);
    for (at, op) in ops.iter().enumerate() {
        table.step(op, at).map_err(|what| Divergence { at, what: format!("{op}: {what}") })?;
    }
    refusals.set(refusals.get() + table.refusals);
    Ok(Tally::default())
}

#[test]
fn no_trace() {
    let refusals = Cell::new(0);
    each_case("no_trace", 5_000, |choose| {
        let limits = Limits { nr_address_spaces: 1 + choose.below(2) as u16, ..Limits::default() };
        let (world, flushes) = (World::crowded(limits), choose.once_in(2));
        let mut ops = world.fill(choose.below(8) as u16);
        let n = 1 + choose.below(24) as usize;
        world.go_on(&mut ops, choose, n);
        ops.retain(|op| op.fields().size <= LARGEST_SLOT);
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        agree("no_trace", kept, &ops, |ops| play(ops, limits, flushes, &refusals));
    });
    say(&format!("no_trace: {} refusals", refusals.get()));
}

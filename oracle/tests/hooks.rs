// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a table promises its hooks, each promise by itself, over updates that meet on the same few slots.
//!
//! `MEMSLOTS_CASES` tries more, `MEMSLOTS_SEED` the same again. What fails is shrunk and kept as a trace file.

use std::collections::BTreeMap;
use std::path::Path;

use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::Op;
use memslots_oracle::run::{agree, each_case, say};
use memslots_oracle::update::Kind;
use memslots_oracle::watched::{Promise, Watch, LARGEST_SLOT};
use memslots_oracle::world::{Choose, Seed, World};

/// Operations of a case, after those that fill the table.
const OPS: u64 = 40;

fn one_space() -> Limits {
    Limits::default()
}

fn some_spaces(choose: &mut Seed) -> Limits {
    Limits { nr_address_spaces: 1 + choose.below(3) as u16, ..Limits::default() }
}

/// Operations on a table that is filled more or less.
fn operations(world: &World, choose: &mut Seed) -> Vec<Op> {
    let mut ops = world.fill(choose.below(u64::from(world.ids) + 1) as u16);
    let n = 1 + choose.below(OPS) as usize;
    world.go_on(&mut ops, choose, n);
    ops
}

/// What the updates of some cases consist of, by kind; of the creates, those of pieces apart.
#[derive(Default)]
struct Variety(BTreeMap<(Kind, bool), u64>);

impl Variety {
    fn add(&mut self, limits: Limits, ops: &[Op]) {
        let mut model = Model::new(limits);
        for (at, op) in ops.iter().filter(|op| op.fields().size <= LARGEST_SLOT).enumerate() {
            let _ = model.apply(op, at);
            for change in model.update().map(|update| update.changes()).unwrap_or_default() {
                *self.0.entry((change.kind, change.own_old() != change.old)).or_default() += 1;
            }
        }
    }

    /// A run in which something hardly happens proves little of it.
    fn check(&self) {
        let of = |kind, piece| self.0.get(&(kind, piece)).copied().unwrap_or(0);
        let all: u64 = self.0.values().sum();
        let plain =
            [Kind::Create, Kind::Delete, Kind::Move, Kind::FlagsOnly, Kind::Resize, Kind::Merge].map(|k| (k, false));
        for (kind, piece) in plain.into_iter().chain([(Kind::Split, true), (Kind::Create, true)]) {
            assert!(of(kind, piece) * 200 > all, "of {all} changes too few are {kind:?}: {:?}", self.0);
        }
    }
}

/// Cases of which it is looked at what they consist of.
const SAMPLE: u64 = 1_000;

fn holds(test: &str, usual: u64, case: impl Fn(&mut Seed) -> (World, Watch)) {
    let (mut nr_cases, mut done, mut variety) = (0, 0, Variety::default());
    each_case(test, usual, |choose| {
        let (world, watch) = case(choose);
        let ops = operations(&world, choose);
        nr_cases += 1;
        if nr_cases <= SAMPLE {
            variety.add(watch.limits, &ops);
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        done += agree(test, kept, &ops, |ops| watch.play(ops)).done();
    });
    say(&format!("{test}: {nr_cases} cases, {done} operations"));
    if nr_cases >= SAMPLE {
        variety.check();
    }
}

fn watch(limits: Limits, flushes: bool, promises: &'static [Promise]) -> Watch {
    Watch { limits, flushes, readers: 0, promises, stride: 16 }
}

/// Hooks hear the whole story and nothing else, and each slot is released once.
#[test]
fn hooks() {
    holds("hooks", 10_000, |choose| {
        let limits = some_spaces(choose);
        let world = if choose.once_in(4) { World::small(limits).with_transactions() } else { World::crowded(limits) };
        (world, watch(limits, false, &[Promise::Story, Promise::Release]))
    });
}

/// With a flush hook whatever loses something is INVALID first: a generation step more.
#[test]
fn two_phases() {
    holds("two_phases", 20_000, |_| (World::crowded(one_space()), watch(one_space(), true, &[Promise::Story])));
}

/// A slot is flushed where a frame of it has no memory afterwards, other memory or less access, where it ends or moves,
/// and only there.
#[test]
fn flush_rule() {
    holds("flush_rule", 20_000, |choose| {
        let limits = some_spaces(choose);
        (World::crowded(limits), watch(limits, true, &[Promise::Flush]))
    });
}

/// SPLIT and MERGE only with the RESIZE that they promise; everything else by its plain name.
#[test]
fn kinds() {
    holds("kinds", 20_000, |choose| {
        let limits = some_spaces(choose);
        (World::crowded(limits), watch(limits, choose.once_in(2), &[Promise::Kinds]))
    });
}

/// Host memory is given back once, never while a slot or a section has it, all of it in the end.
#[test]
fn unmap_ledger() {
    holds("unmap_ledger", 20_000, |choose| {
        let limits = some_spaces(choose);
        let readers = choose.below(4) as u16;
        let world = World::crowded(limits);
        let world = if readers > 0 { world.with_readers(readers) } else { world };
        let flushes = readers == 0 && choose.once_in(2);
        (world, Watch { readers, ..watch(limits, flushes, &[Promise::Release, Promise::Unmap]) })
    });
}

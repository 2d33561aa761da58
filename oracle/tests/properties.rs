// SPDX-License-Identifier: MIT OR Apache-2.0
//! Property tests: whatever the operations, the library answers and looks as the model does.
//!
//! `MEMSLOTS_CASES` tries more, `MEMSLOTS_SEED` the same again. What fails is shrunk and kept as a trace file.

use memslots::AsId;
use std::path::Path;

use memslots_oracle::compare::{play, Player};
use memslots_oracle::library::{opaque_of, region, Library};
use memslots_oracle::listener;
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{Op, Request};
use memslots_oracle::run::{agree, each_case};
use memslots_oracle::watched::{flushes, kinds};
use memslots_oracle::world::{Choose, Seed, World};

fn small() -> World {
    World::small(Limits::default())
}

fn beside_the_model(test: &str, limits: &Limits, ops: &[Op]) {
    let play = |ops: &[Op]| play(ops, &mut Model::new(*limits), &mut [&mut Library::new(limits)], 16);
    agree(test, Path::new(env!("CARGO_TARGET_TMPDIR")), ops, play);
}

/// So many operations or fewer on a table that is filled with fewer than `filled` slots.
fn from_filled(test: &str, cases: u64, world: World, filled: u64, n: u64) {
    each_case(test, cases, |choose| {
        let mut ops = world.fill(choose.below(filled) as u16);
        let n = 1 + choose.below(n) as usize;
        world.go_on(&mut ops, choose, n);
        beside_the_model(test, &world.limits, &ops);
    });
}

#[test]
fn single_updates() {
    from_filled("single_updates", 256, small(), 12, 200);
}

#[test]
fn transactions() {
    from_filled("transactions", 256, small().with_transactions(), 12, 200);
}

/// Transactions that go over the same few slots again and again, aborted ones among them.
#[test]
fn crowded_transactions() {
    from_filled("crowded_transactions", 1_000, World::crowded(Limits::default()), 8, 100);
}

#[test]
fn several_address_spaces() {
    each_case("several_address_spaces", 256, |choose| {
        let limits = Limits { nr_address_spaces: 2 + choose.below(3) as u16, ..Limits::default() };
        beside_the_model("several_address_spaces", &limits, &small_in(limits).ops(choose, 200));
    });
}

fn small_in(limits: Limits) -> World {
    World::small(limits).with_transactions()
}

#[test]
fn other_limits() {
    each_case("other_limits", 256, |choose| {
        let page_shift = 12 + choose.below(5) as u32;
        let limits = Limits {
            page_shift,
            max_slots: choose.one(&[1, 3, 8, 64, 32764, 65535]),
            gpa_bits: 36 + choose.below(17) as u32,
            supported_flags: choose.below(8) as u32,
            hva_limit: (1 << 47) - (1 << page_shift),
            ..Limits::default()
        };
        beside_the_model("other_limits", &limits, &small_in(limits).ops(choose, 200));
    });
}

/// Trees of every height, from a filled table on.
#[test]
fn large_tables() {
    from_filled("large_tables", 24, World::wide(Limits::default()).with_transactions(), 2500, 300);
}

/// Down to nothing again, in random order, in transactions of random length.
#[test]
fn emptied_tables() {
    each_case("emptied_tables", 24, |choose| {
        let filled = 1 + choose.below(2000) as u16;
        let mut ops = World::wide(Limits::default()).fill(filled);
        let mut ids: Vec<u16> = (0..filled).collect();
        while !ids.is_empty() {
            let at = choose.below(ids.len() as u64) as usize;
            ops.push(Op::Delete { as_id: 0, id: ids.swap_remove(at) });
            if choose.once_in(8) {
                ops.push(choose.one(&[Op::Begin, Op::Commit, Op::Abort]));
            }
        }
        ops.push(Op::Commit);
        beside_the_model("emptied_tables", &Limits::default(), &ops);
    });
}

/// Requests for a table: another one's slots, in any order, some of them made wrong.
fn requests(model: &Model, choose: &mut Seed) -> Vec<Request> {
    mixed(model.space(0).slots.iter().map(|slot| slot.request(12)).collect(), choose)
}

/// In another order, and sometimes spoilt.
fn mixed(mut requests: Vec<Request>, choose: &mut Seed) -> Vec<Request> {
    for at in (1..requests.len()).rev() {
        requests.swap(at, choose.below(at as u64 + 1) as usize);
    }
    let spoil = |request: &mut Request, choose: &mut Seed| match choose.below(7) {
        0 => request.size = 0,
        1 => request.as_id = 1,
        2 => request.id = choose.below(12) as u16,
        3 => request.gpa += 0x1000,
        4 => request.hva += 1,
        5 => request.flags = 1 << choose.below(32),
        _ => request.gpa = 1 << 52,
    };
    if choose.once_in(3) && !requests.is_empty() {
        let at = choose.below(requests.len() as u64) as usize;
        spoil(&mut requests[at], choose);
    }
    requests
}

fn grown(seed: u64, n: usize) -> (Vec<Op>, Model) {
    let ops = small().ops(&mut Seed(seed), n);
    let mut model = Model::new(Limits::default());
    for op in &ops {
        let _ = model.apply(op, 0);
    }
    (ops, model)
}

/// Answers of the library and of the model to a list.
type Answers = [Result<(), (i32, usize)>; 2];

/// Gives a list to the library and to the model, to be all of an address space or to be made one after the other.
fn give(library: &Library, model: &mut Model, requests: &[Request], first: usize, whole: bool) -> Answers {
    let regions: Vec<_> = requests.iter().map(region).collect();
    let opaques: Vec<_> = (first..).map(opaque_of).take(regions.len()).collect();
    let (got, wanted) = match whole {
        true => (library.table().replace_all(AsId(0), &regions, Some(&opaques)), model.replace_all(0, requests, first)),
        false => (library.table().apply(&regions, Some(&opaques)), model.apply_all(requests, first)),
    };
    [got.map_err(|refused| (refused.errno.0, refused.at.expect("a culprit"))), wanted]
}

fn look_alike(library: &mut Library, model: &Model, requests: &[Request]) {
    let same = library.glance(model).and_then(|()| library.inspect(model));
    same.unwrap_or_else(|error| panic!("{error}\n{requests:x?}"));
}

/// Whole lists: all or nothing, the right culprit, what stays the same slot keeps its opaque, and hooks hear of what
/// changes as of any other update.
#[test]
fn lists() {
    each_case("lists", 512, |choose| {
        let (seed, n) = (choose.draw(), choose.below(80) as usize);
        let (ops, _) = grown(seed, n);
        let (_, other) = grown(if choose.once_in(2) { seed } else { !seed }, n + choose.below(30) as usize);
        let requests = requests(&other, choose);
        let flushed = choose.once_in(2);
        let (table, notes) = listener::table(&Limits::default(), flushed);
        let (mut library, model) = (Library::with(table, &Limits::default()), Model::new(Limits::default()));
        let mut model = if flushed { model.with_two_phases() } else { model };
        // What the operations come to is for other tests: only their end is looked at.
        (0..).zip(&ops).for_each(|(at, op)| assert_eq!(library.apply(op, at, &model), Some(model.apply(op, at))));
        let in_between = model.spaces().iter().map(|space| space.generation).collect::<Vec<_>>();
        notes.take();
        let [got, wanted] = give(&library, &mut model, &requests, 10_000, choose.once_in(2));
        assert_eq!(got, wanted, "{requests:x?} after generation {in_between:?}");
        look_alike(&mut library, &model, &requests);
        let events = notes.take();
        let told = kinds(&model, &events).and_then(|()| flushes(&model, &events, flushed));
        told.unwrap_or_else(|error| panic!("{error}\n{requests:x?}"));
    });
}

/// A list for a table without slots, the culprit included; what is made of it is as good as what grew.
#[test]
fn lists_for_an_empty_table() {
    each_case("lists_for_an_empty_table", 512, |choose| {
        let limits = Limits { nr_address_spaces: 1 + choose.below(2) as u16, ..Limits::default() };
        let world = World::wide(limits);
        let (mut library, mut model) = (Library::new(&limits), Model::new(limits));
        let n = choose.one(&[3, 20, 57, 58, 300, 1700]);
        let creates = world.fill(choose.below(n) as u16).into_iter().filter_map(|op| match op {
            Op::Create(request) => Some(request),
            _ => None,
        });
        let mut requests = mixed(creates.collect(), choose);
        if choose.once_in(3) {
            // Host memory that many slots share.
            requests.iter_mut().for_each(|request| request.hva = choose.below(50) << 12);
        }
        let [got, wanted] = give(&library, &mut model, &requests, 1, false);
        assert_eq!(got, wanted, "{requests:x?}");
        look_alike(&mut library, &model, &requests);

        let mut ahead = model.clone();
        let mut next = || {
            let op = world.op(choose, &ahead);
            let _ = ahead.apply(&op, 0);
            op
        };
        let ops: Vec<_> = (0..60).map(|_| next()).collect();
        let played = play(&ops, &mut model, &mut [&mut library], 20);
        played.unwrap_or_else(|divergence| panic!("{divergence}\n{requests:x?}"));
    });
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Property tests: whatever the operations, the library answers and looks as the model does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use memslots::{Change, Config, Errno, Hooks, Kind, Memslot, Memslots};
use memslots_oracle::compare::{play, Player};
use memslots_oracle::library::{config, opaque_of, region, Library};
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{Op, Outcome, Request};
use memslots_oracle::run::agree;
use memslots_oracle::world::{Choose, Seed, World};
use proptest::prelude::*;

/// Operations on a table that has been filled, each chosen with a view of what those before it made. They are shrunk by
/// `agree`, not by proptest, to which they are one seed.
fn operations(world: World, filled: impl Strategy<Value = u16>, n: usize) -> impl Strategy<Value = Vec<Op>> {
    let operations = (any::<u64>(), filled, 1..n).prop_map(move |(seed, filled, n)| {
        let mut ops = world.fill(filled);
        world.go_on(&mut ops, &mut Seed(seed), n);
        ops
    });
    operations.no_shrink()
}

fn kept() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn beside_the_model(test: &str, limits: &Limits, ops: &[Op]) {
    let play = |ops: &[Op]| play(ops, &mut Model::new(*limits), &mut [&mut Library::new(limits)], 16);
    agree(test, kept(), ops, play);
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig { cases: n, failure_persistence: None, ..ProptestConfig::default() }
}

fn small() -> World {
    World::small(Limits::default())
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn single_updates(ops in operations(small(), 0..12u16, 200)) {
        beside_the_model("single_updates", &Limits::default(), &ops);
    }

    #[test]
    fn transactions(ops in operations(small().with_transactions(), 0..12u16, 200)) {
        beside_the_model("transactions", &Limits::default(), &ops);
    }

    #[test]
    fn several_address_spaces(spaces in 2..5u16, seed in any::<u64>()) {
        let limits = Limits { nr_address_spaces: spaces, ..Limits::default() };
        let world = World::small(limits).with_transactions();
        beside_the_model("several_address_spaces", &limits, &world.ops(&mut Seed(seed), 200));
    }

    #[test]
    fn other_limits(
        page_shift in 12..17u32,
        max_slots in prop::sample::select(&[1, 3, 8, 64, 32764, 65535][..]),
        gpa_bits in 36..53u32,
        supported_flags in 0..8u32,
        seed in any::<u64>(),
    ) {
        let hva_limit = (1 << 47) - (1 << page_shift);
        let limits = Limits { page_shift, max_slots, gpa_bits, supported_flags, hva_limit, ..Limits::default() };
        let world = World::small(limits).with_transactions();
        beside_the_model("other_limits", &limits, &world.ops(&mut Seed(seed), 200));
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Trees of every height, from a filled table on.
    #[test]
    fn large_tables(ops in operations(World::wide(Limits::default()).with_transactions(), 1..2500u16, 300)) {
        beside_the_model("large_tables", &Limits::default(), &ops);
    }

    /// Down to nothing again, in random order, in transactions of random length.
    #[test]
    fn emptied_tables(filled in 1..2000u16, seed in any::<u64>()) {
        let world = World::wide(Limits::default());
        let mut choose = Seed(seed);
        let mut ops = world.fill(filled);
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
    }
}

/// What the hooks of a table were told.
#[derive(Default)]
struct Told {
    /// The slots as the commits alone describe them, by address space and id.
    slots: BTreeMap<(u16, u16), Memslot>,
    prepared: Vec<(Kind, Option<Memslot>, Option<Memslot>)>,
    released: Vec<usize>,
    /// Refuse the prepare before which so many have gone well.
    refuse_at: Option<usize>,
    cancelled: usize,
    wrong: Option<String>,
}

/// Hooks that remember, and refuse when told to.
struct Listener {
    told: Arc<Mutex<Told>>,
    flushes: bool,
}

fn copied(change: &Change<'_>) -> (Kind, Option<Memslot>, Option<Memslot>) {
    (change.kind, change.old_slot.copied(), change.new_slot.copied())
}

fn kind_is_right(change: &Change<'_>) -> bool {
    match (change.kind, change.old_slot, change.new_slot) {
        (Kind::Create, _, Some(_)) | (Kind::Delete, Some(_), None) => true,
        (Kind::Split, Some(from), Some(new)) => from.base_gfn <= new.base_gfn && new.end_gfn() <= from.end_gfn(),
        (Kind::Merge, Some(old), Some(into)) => into.base_gfn <= old.base_gfn && old.end_gfn() <= into.end_gfn(),
        (kind, Some(old), Some(new)) => {
            let one = if old.npages != new.npages {
                Kind::Resize
            } else if old.base_gfn != new.base_gfn {
                Kind::Move
            } else {
                Kind::FlagsOnly
            };
            kind == one && (old.id, old.as_id, old.opaque) == (new.id, new.as_id, new.opaque) && old != new
        }
        _ => false,
    }
}

impl Hooks for Listener {
    fn wants_flush(&self) -> bool {
        self.flushes
    }

    fn prepare(&self, change: &Change<'_>) -> Result<(), Errno> {
        let mut told = self.told.lock().unwrap();
        if told.refuse_at == Some(told.prepared.len()) {
            return Err(Errno::EBUSY);
        }
        told.prepared.push(copied(change));
        Ok(())
    }

    fn cancel(&self, change: &Change<'_>) {
        let mut told = self.told.lock().unwrap();
        told.cancelled += 1;
        if told.prepared.pop() != Some(copied(change)) {
            told.wrong = Some("cancelled in another order than prepared in reverse".into());
        }
    }

    fn commit(&self, change: &Change<'_>) {
        let mut told = self.told.lock().unwrap();
        let first = told.prepared.remove(0);
        if first != copied(change) {
            told.wrong = Some("committed in another order than prepared".into());
        }
        if !kind_is_right(change) {
            told.wrong = Some(format!("{change:?}"));
        }
        let key = |slot: &Memslot| (slot.as_id, slot.id);
        let goes = !matches!(change.kind, Kind::Create | Kind::Split);
        let comes = !matches!(change.kind, Kind::Delete | Kind::Merge);
        if let Some(old) = change.old_slot.filter(|_| goes) {
            told.slots.retain(|k, slot| *k != key(old) || slot != old);
        }
        if let Some(new) = change.new_slot.filter(|_| comes) {
            told.slots.insert(key(new), *new);
        }
    }

    fn release(&self, gone: &Memslot) {
        self.told.lock().unwrap().released.push(gone.opaque as usize);
    }
}

/// The library with a listener: refuses some updates, then lets them through.
struct Watched {
    library: Library,
    told: Arc<Mutex<Told>>,
    choose: Seed,
    /// Of the open transaction, to be staged again.
    staged: Vec<(Op, usize)>,
    refuses: bool,
    refused: u64,
    ever: BTreeSet<usize>,
}

impl Watched {
    fn new(limits: &Limits, flushes: bool, seed: u64) -> Watched {
        let told = Arc::new(Mutex::new(Told::default()));
        let hooks: Option<Box<dyn Hooks>> = Some(Box::new(Listener { told: told.clone(), flushes }));
        let table = Memslots::new(Config { hooks, ..config(limits) }).expect("a table");
        let library = Library::with(table, limits);
        // Two generation steps go with a refusal after the INVALID phase; the model knows nothing of refusals.
        let refuses = !flushes;
        let (staged, ever) = Default::default();
        Watched { library, told, choose: Seed(seed), staged, refuses, refused: 0, ever }
    }

    /// Does an update with a hook that refuses, if it comes to so many changes. None where it was refused, and all is as
    /// it was.
    fn try_to_refuse(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome> {
        let refuse_at = self.choose.below(4) as usize;
        self.told.lock().unwrap().refuse_at = Some(refuse_at);
        let outcome = self.library.apply(op, opaque, before);
        let mut told = self.told.lock().unwrap();
        told.refuse_at = None;
        if outcome != Some(Err(libc::EBUSY)) {
            return outcome;
        }
        self.refused += 1;
        if std::mem::take(&mut told.cancelled) != refuse_at || !told.prepared.is_empty() {
            told.wrong = Some("what was prepared is not what was cancelled".into());
        }
        drop(told);
        if let Err(error) = self.library.inspect(before) {
            self.told.lock().unwrap().wrong = Some(format!("after a refusal: {error}"));
        }
        None
    }

    fn stage_again(&mut self, before: &Model) {
        self.library.apply(&Op::Begin, 0, before);
        for (op, opaque) in self.staged.clone() {
            self.library.apply(&op, opaque, before);
        }
    }
}

impl Player for Watched {
    fn name(&self) -> &'static str {
        "the library with hooks"
    }

    fn apply(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome> {
        let commits = *op == Op::Commit && before.in_transaction();
        let updates = commits || !before.in_transaction() && !matches!(op, Op::Begin | Op::Abort);
        if before.in_transaction() && !commits {
            self.staged.push((*op, opaque));
        }
        if self.refuses && updates && self.choose.once_in(3) {
            // The published content is what a refusal leaves; the transaction is gone.
            let mut published = before.clone();
            published.apply(&Op::Abort, 0).expect("it may always");
            let outcome = self.try_to_refuse(op, opaque, &published);
            if outcome.is_some() {
                self.staged.clear();
                return outcome;
            }
            if commits {
                self.stage_again(&published);
            }
        }
        if !before.in_transaction() || commits || *op == Op::Abort {
            self.staged.clear();
        }
        self.library.apply(op, opaque, before)
    }

    fn glance(&mut self, model: &Model) -> Result<(), String> {
        self.library.glance(model)?;
        self.ever.extend(slots(model).map(|slot| slot.opaque));
        let told = self.told.lock().unwrap();
        if let Some(wrong) = &told.wrong {
            return Err(wrong.clone());
        }
        let heard = told.slots.values().map(|slot| (slot.as_id, slot.id, slot.base_gfn, slot.npages, slot.flags));
        let real = slots(model).map(|slot| (slot.as_id, slot.id, slot.base_gfn, slot.npages, slot.flags));
        if !heard.eq(real) {
            return Err("the hooks were told of another content than was published".into());
        }
        Ok(())
    }

    fn inspect(&mut self, model: &Model) -> Result<(), String> {
        self.library.inspect(model)?;
        if model.in_transaction() {
            return Ok(());
        }
        self.library.table().synchronize().map_err(|errno| format!("synchronize: {errno:?}"))?;
        let told = self.told.lock().unwrap();
        let released: BTreeSet<usize> = told.released.iter().copied().collect();
        let live: BTreeSet<usize> = slots(model).map(|slot| slot.opaque).collect();
        if released.len() != told.released.len() {
            return Err("a slot was released twice".into());
        }
        if released != &self.ever - &live {
            return Err(format!("released {released:?}, live {live:?}, ever there {:?}", self.ever));
        }
        Ok(())
    }
}

fn slots(model: &Model) -> impl Iterator<Item = &memslots_oracle::model::Slot> {
    model.spaces().iter().flat_map(|space| &space.slots)
}

proptest! {
    #![proptest_config(cases(192))]

    /// Hooks hear the whole story and nothing else, may refuse anything, and release each slot once.
    #[test]
    fn hooks(ops in operations(small().with_transactions(), 0..12u16, 200), seed in any::<u64>()) {
        let limits = Limits::default();
        let watched = || Watched::new(&limits, false, seed);
        agree("hooks", kept(), &ops, |ops| play(ops, &mut Model::new(limits), &mut [&mut watched()], 16));
    }

    /// With a flush hook whatever goes or moves is INVALID first: a generation step more.
    #[test]
    fn two_phases(ops in operations(small().with_transactions(), 0..12u16, 200)) {
        let limits = Limits::default();
        let model = || Model::new(limits).with_two_phases();
        agree("two_phases", kept(), &ops, |ops| play(ops, &mut model(), &mut [&mut Watched::new(&limits, true, 0)], 16));
    }
}

/// Requests for a table: another one's slots, in any order, some of them made wrong.
fn requests(model: &Model, choose: &mut Seed) -> Vec<Request> {
    mixed(model.space(0).slots.iter().map(|slot| slot.request(12)).collect(), choose)
}

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

proptest! {
    #![proptest_config(cases(512))]

    /// Whole lists: all or nothing, the right culprit, and what stays the same slot keeps its opaque.
    #[test]
    fn lists(seed in any::<u64>(), n in 0..80usize, whole in any::<bool>()) {
        let mut choose = Seed(seed);
        let (ops, _) = grown(seed, n);
        let (_, other) = grown(if choose.once_in(2) { seed } else { !seed }, n + choose.below(30) as usize);
        let requests = requests(&other, &mut choose);
        let regions: Vec<_> = requests.iter().map(region).collect();
        let first = 10_000;
        let opaques: Vec<_> = (first..).map(opaque_of).take(regions.len()).collect();

        let (mut library, mut model) = (Library::new(&Limits::default()), Model::new(Limits::default()));
        play(&ops, &mut model, &mut [&mut library], 1000).expect("they agree");
        let (got, wanted) = if whole {
            (library.table().replace_all(0, &regions, Some(&opaques)), model.replace_all(0, &requests, first))
        } else {
            (library.table().apply(&regions, Some(&opaques)), model.apply_all(&requests, first))
        };
        let got = got.map_err(|refused| (refused.errno.0, refused.at.expect("a culprit")));
        prop_assert_eq!(got, wanted, "{:x?}", requests);
        let same = library.glance(&model).and_then(|()| library.inspect(&model));
        prop_assert!(same.is_ok(), "{}\n{:x?}", same.unwrap_err(), requests);
    }

    /// A list for a table without slots, the culprit included; what is made of it is as good as what grew.
    #[test]
    fn lists_for_an_empty_table(seed in any::<u64>(), n in 0..400u16) {
        let (mut choose, world) = (Seed(seed), World::wide(Limits::default()));
        let (mut library, mut model) = (Library::new(&Limits::default()), Model::new(Limits::default()));
        let creates = world.fill(n).into_iter().filter_map(|op| match op {
            Op::Create(request) => Some(request),
            _ => None,
        });
        let requests = mixed(creates.collect(), &mut choose);
        let regions: Vec<_> = requests.iter().map(region).collect();
        let opaques: Vec<_> = (1..).map(opaque_of).take(regions.len()).collect();
        let got = library.table().apply(&regions, Some(&opaques));
        let got = got.map_err(|refused| (refused.errno.0, refused.at.expect("a culprit")));
        prop_assert_eq!(got, model.apply_all(&requests, 1), "{:x?}", requests);
        let same = library.glance(&model).and_then(|()| library.inspect(&model));
        prop_assert!(same.is_ok(), "{}\n{:x?}", same.unwrap_err(), requests);

        let mut ahead = model.clone();
        let mut next = || {
            let op = world.op(&mut choose, &ahead);
            let _ = ahead.apply(&op, 0);
            op
        };
        let ops: Vec<_> = (0..60).map(|_| next()).collect();
        let played = play(&ops, &mut model, &mut [&mut library], 20);
        prop_assert!(played.is_ok(), "{}\n{:x?}", played.unwrap_err().what, requests);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The rows that change tables, and the memory they hold. What a sequence of changes leaves is
//! compared with what it must leave before anything is timed.

use crate::lookups::{check, max_slots, Row, Settings, ROWS};
use crate::measure::{race, time, Contender, Summary, Turn};
use crate::peer::{Change, Peer, Query, Slot, Table, NO_ANSWER};
use crate::report::{Cell, Results};
use crate::workload::{Kind, Layout, Order, Shape, Walk};
use anyhow::{ensure, Context, Result};

/// From here on a peer whose updates follow the table is measured on a sample.
const LINEAR_LIMIT: usize = 2_000;
const SAMPLE: usize = 32;
/// Updates between two looks at the clock, so that an interruption does not spoil a whole table.
const PIECE: usize = 64;

/// One peer with the slots it creates and deletes in a cycle. Sampled: half of the slots stand
/// already, which is what building the whole costs on average where cost follows size.
struct Site {
    table: Table,
    created: Vec<Slot>,
    removed: Vec<Slot>,
    sampled: bool,
}

impl Site {
    fn new(peer: &Peer, layout: &Layout) -> Result<Self> {
        let table = peer.table(max_slots(layout.n()));
        let sampled = peer.linear_updates && layout.n() > LINEAR_LIMIT;
        if !sampled {
            let (created, removed) = (layout.slots.clone(), layout.shuffled.clone());
            return Ok(Self { table, created, removed, sampled });
        }
        let half = layout.n() / 2;
        table.create_all(&layout.slots[..half])?;
        let created = layout.slots[half..half + SAMPLE].to_vec();
        Ok(Self { table, removed: created.clone(), created, sampled })
    }

    /// Creates and deletes all, and lets the turn know of the part that it is about.
    fn cycle(&self, part: Part, turn: &mut Turn) {
        let pieces = if part.is_whole() { self.created.len() } else { PIECE };
        for slots in self.created.chunks(pieces) {
            let ns = time(|| part.create(&self.table, slots));
            if part != Part::Remove {
                turn.add(ns, slots.len());
            }
        }
        for slots in self.removed.chunks(PIECE) {
            let ns = time(|| must(self.table.remove(slots)));
            if part == Part::Remove {
                turn.add(ns, slots.len());
            }
        }
    }

    fn turn(&self, slice_ns: f64, part: Part) -> f64 {
        let mut turn = Turn::new(slice_ns);
        while !turn.is_over() {
            self.cycle(part, &mut turn);
        }
        turn.cost()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Create,
    CreateAll,
    CreateSteps,
    Remove,
}

impl Part {
    /// All slots are created at once.
    fn is_whole(self) -> bool {
        matches!(self, Part::CreateAll | Part::CreateSteps)
    }

    fn create(self, table: &Table, slots: &[Slot]) {
        must(match self {
            Part::CreateAll => table.create_all(slots),
            Part::CreateSteps => table.create_steps(slots),
            _ => table.create(slots),
        });
    }
}

/// Inside a timed loop there is nobody to hand an error to, and the same updates were made and
/// checked before.
fn must(result: Result<(), crate::peer::Refused>) {
    result.expect("an update that was accepted before");
}

fn check_rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(|row| row.only.is_none() && row.order == Order::Random)
}

fn check_table(table: &Table, layout: &Layout) -> Result<()> {
    let reader = table.reader();
    let rows = check_rows().filter(|row| table.peer().has(row.query));
    rows.into_iter().try_for_each(|row| check(&reader, table.peer(), layout, row))
}

fn check_cycle(site: &Site, layout: &Layout) -> Result<()> {
    site.table.create(&site.created)?;
    if !site.sampled {
        check_table(&site.table, layout)?;
    }
    site.table.remove(&site.removed)?;
    let gone: Vec<u64> = site.removed.iter().take(1000).map(|slot| slot.gfn).collect();
    let answers = site.table.reader().answers(Query::Gfn, &gone);
    let all_gone = answers.iter().all(|&answer| answer == NO_ANSWER);
    ensure!(all_gone, "{}: a deleted slot is still found", site.table.peer().name());
    Ok(())
}

fn create_and_delete(peers: &[Peer], layout: &Layout, settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    let rows = [
        ("create one by one", Part::Create, true),
        ("create one by one, no reader", Part::Create, false),
        ("create, one transaction", Part::CreateAll, true),
        ("create, one transaction in steps", Part::CreateSteps, true),
        ("delete one by one", Part::Remove, true),
    ];
    for (name, part, with_reader) in rows {
        if !(settings.wanted)(name) {
            continue;
        }
        let sites: Vec<Site> = peers.iter().map(|peer| Site::new(peer, layout)).collect::<Result<_>>()?;
        let mut readers = Vec::new();
        let mut contenders = Vec::new();
        for site in &sites {
            check_cycle(site, layout)?;
            if with_reader {
                readers.push(site.table.reader());
            }
            let name = site.table.peer().name();
            if part.is_whole() && site.sampled {
                let run = Box::new(|| create_all_afresh(site, layout, settings.slice_ns));
                contenders.push(Contender { name, sampled: false, run });
                continue;
            }
            let run = Box::new(move || site.turn(settings.slice_ns, part));
            contenders.push(Contender { name, sampled: site.sampled, run });
        }
        results.add(name, layout.shape, layout.n(), race(contenders, settings.rounds));
    }
    Ok(())
}

fn create_all_afresh(site: &Site, layout: &Layout, slice_ns: f64) -> f64 {
    let mut turn = Turn::new(slice_ns);
    while !turn.is_over() {
        let table = site.table.peer().table(max_slots(layout.n()));
        turn.add(time(|| must(table.create_all(&layout.slots))), layout.n());
    }
    turn.cost()
}

type Apply = fn(&Table, &[Change]) -> Result<(), crate::peer::Refused>;

fn apply(kind: Kind) -> Apply {
    match kind {
        Kind::Move => Table::move_slots,
        Kind::Flags => Table::set_flags,
    }
}

/// The walk's next changes, timed in pieces; making them up is not.
fn walk_on(table: &Table, walk: &mut Walk<'_>, apply: Apply, slice_ns: f64) -> f64 {
    let piece = if table.peer().linear_updates { SAMPLE } else { PIECE };
    let mut turn = Turn::new(slice_ns);
    let mut changes = Vec::with_capacity(piece);
    while !turn.is_over() {
        changes.clear();
        changes.extend(walk.take(piece));
        turn.add(time(|| must(apply(table, &changes))), changes.len());
    }
    turn.cost()
}

/// Moves and flags changes on standing tables with a registered reader: the same walk for every peer.
fn changes(peers: &[Peer], layout: &Layout, settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    let rows = [("move", Kind::Move), ("flags only", Kind::Flags)];
    for (name, kind) in rows.into_iter().filter(|(name, _)| (settings.wanted)(name)) {
        let has = |peer: &&Peer| kind == Kind::Move || peer.has_flags();
        let peers: Vec<Peer> = peers.iter().filter(has).copied().collect();
        let tables = crate::lookups::filled(&peers, layout)?;
        let _readers: Vec<_> = tables.iter().map(Table::reader).collect();
        let apply = apply(kind);
        let mut walks: Vec<Walk<'_>> = tables.iter().map(|_| layout.walk(kind)).collect();
        let mut contenders = Vec::new();
        for (table, walk) in tables.iter().zip(&mut walks) {
            let begin: Vec<Change> = walk.take(SAMPLE).collect();
            apply(table, &begin)?;
            apply(table, &walk.home())?;
            check_table(table, layout)?;
            let run = Box::new(move || walk_on(table, walk, apply, settings.slice_ns));
            contenders.push(Contender { name: table.peer().name(), sampled: false, run });
        }
        results.add(name, layout.shape, layout.n(), race(contenders, settings.rounds));
        for (table, walk) in tables.iter().zip(&mut walks) {
            apply(table, &walk.home())?;
            check_table(table, layout)?;
        }
    }
    Ok(())
}

/// The 2021 series' own rows that change something, on the layout of its test.
fn series(peers: &[Peer], layout: &Layout, settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    if (settings.wanted)("Slot setup") {
        let sites: Vec<Site> = peers.iter().map(|peer| Site::new(peer, layout)).collect::<Result<_>>()?;
        let mut contenders = Vec::new();
        for site in &sites {
            let run = Box::new(|| match site.sampled {
                true => site.turn(settings.slice_ns, Part::Create),
                false => setup(site, settings.slice_ns),
            });
            let name = site.table.peer().name();
            contenders.push(Contender { name, sampled: site.sampled, run });
        }
        results.add("Slot setup", layout.shape, layout.n(), race(contenders, settings.rounds));
    }
    for (name, active) in [("Move active", true), ("Move inactive", false)] {
        if !(settings.wanted)(name) {
            continue;
        }
        let tables = crate::lookups::filled(peers, layout)?;
        let readers: Vec<_> = tables.iter().map(Table::reader).collect();
        let mut contenders = Vec::new();
        for (table, reader) in tables.iter().zip(&readers) {
            let plan = MovePlan::new(layout, active);
            let run = Box::new(move || {
                let mut turn = Turn::new(settings.slice_ns);
                while !turn.is_over() {
                    turn.add(time(|| plan.run(table, reader)), 2);
                }
                turn.cost()
            });
            contenders.push(Contender { name: table.peer().name(), sampled: false, run });
        }
        results.add(name, layout.shape, layout.n(), race(contenders, settings.rounds));
    }
    Ok(())
}

/// Every slot created, ascending, in a table that is new each time.
fn setup(site: &Site, slice_ns: f64) -> f64 {
    let mut turn = Turn::new(slice_ns);
    while !turn.is_over() {
        let table = site.table.peer().table(max_slots(site.created.len()));
        let _reader = table.reader();
        for slots in site.created.chunks(PIECE) {
            turn.add(time(|| must(table.create(slots))), slots.len());
        }
    }
    turn.cost()
}

/// A slot that goes and comes back while a vCPU reads 32 pages after each step: pages of that slot
/// (active) or of others (inactive).
struct MovePlan {
    there: Change,
    back: Change,
    read_there: Vec<u64>,
    read_back: Vec<u64>,
}

impl MovePlan {
    fn new(layout: &Layout, active: bool) -> Self {
        let (moves, cycle) = layout.moves(1, 1);
        let there = moves[0];
        let returns = moves[..cycle].iter().rev().find(|change| change.id == there.id);
        let back = *returns.expect("a cycle that ends where it began");
        let others = layout.slots.iter().filter(|slot| slot.id != there.id);
        let elsewhere: Vec<u64> = others.map(|slot| slot.gfn).cycle().take(32).collect();
        let inside = |gfn: u64| (0..32).map(|i| gfn + i % there.npages).collect();
        let (read_there, read_back) = match active {
            true => (inside(there.new_gfn), inside(there.old_gfn)),
            false => (elsewhere.clone(), elsewhere),
        };
        Self { there, back, read_there, read_back }
    }

    fn run(&self, table: &Table, reader: &crate::peer::Reader<'_>) {
        must(table.move_slots(std::slice::from_ref(&self.there)));
        reader.run(Query::GfnHva, &self.read_there);
        must(table.move_slots(std::slice::from_ref(&self.back)));
        reader.run(Query::GfnHva, &self.read_back);
    }
}

/// Bytes of a table of n slots: what its indexes and records take, and all that is allocated for it.
fn bytes(peers: &[Peer], layout: &Layout, results: &mut Results) -> Result<()> {
    let mut ours = None;
    on_a_thread(|| Ok(()))?; // what the first thread allocates is not the table's
    for peer in peers {
        let before = allocated();
        let table = on_a_thread(|| {
            let table = peer.table(max_slots(layout.n()));
            match peer.linear_updates {
                true => table.create_all(&layout.slots)?,
                false => table.create(&layout.slots)?,
            }
            table.quiesce();
            Ok(table)
        })?;
        let held = allocated().checked_sub(before).context("memory that only grows")?;
        let each = [table.live_bytes().unwrap_or(held), held].map(|bytes| bytes as f64 / layout.n() as f64);
        let ours = *ours.get_or_insert(each);
        for (row, (each, ours)) in
            ["bytes a slot", "bytes a slot, allocated"].into_iter().zip(each.into_iter().zip(ours))
        {
            results.cells.push(Cell {
                row: row.into(),
                layout: layout.shape,
                n: layout.n(),
                peer: peer.name().into(),
                unit: "bytes".into(),
                summary: Summary::of(&[each]),
                ratio: each / ours,
                sampled: false,
            });
        }
    }
    Ok(())
}

/// On a thread of its own, which has no freed chunks to allocate from and leaves none: malloc counts those
/// that it keeps for a thread as handed out.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().expect("a thread that ends"))
}

/// What malloc has handed out, in all its arenas, mapped chunks included.
fn allocated() -> usize {
    // SAFETY: no precondition.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Slots from which on a table does not stay in a core's caches while the other peers have their turns.
const LARGE: usize = 1_000;

/// For a large table a turn is long enough to change most slots once. A shorter one would measure how long it takes to
/// fetch the table into the caches again, and so what the peer before has left there.
fn turns_that_fit<'a>(settings: &Settings<'a>, n: usize) -> Settings<'a> {
    match n > LARGE {
        true => Settings { rounds: settings.rounds.min(9), slice_ns: settings.slice_ns * 30.0, ..*settings },
        false => Settings { ..*settings },
    }
}

pub fn measure(peers: &[Peer], layout: &Layout, settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    let settings = &turns_that_fit(settings, layout.n());
    if layout.shape == Shape::Adjacent {
        return series(peers, layout, settings, results);
    }
    create_and_delete(peers, layout, settings, results)?;
    changes(peers, layout, settings, results)?;
    if (settings.wanted)("bytes a slot") {
        bytes(peers, layout, results)?;
    }
    Ok(())
}

/// As `lookups::once`, for the rows that change something: whole cycles, until there were about so
/// many operations.
pub fn once(peer: &Peer, layout: &Layout, name: &str, operations: usize) -> Result<Option<usize>> {
    let part = match name {
        "create one by one" | "delete one by one" => Part::Create,
        "create, one transaction" => Part::CreateAll,
        "create, one transaction in steps" => Part::CreateSteps,
        "move" | "flags only" => {
            let kind = if name == "move" { Kind::Move } else { Kind::Flags };
            let table = crate::lookups::filled(std::slice::from_ref(peer), layout)?.remove(0);
            let _reader = table.reader();
            let changes: Vec<Change> = layout.walk(kind).take(operations).collect();
            apply(kind)(&table, &changes)?;
            return Ok(Some(changes.len()));
        }
        _ => return Ok(None),
    };
    let site = Site::new(peer, layout)?;
    let _reader = site.table.reader();
    let cycles = operations.div_ceil(site.created.len());
    let mut turn = Turn::new(0.0);
    (0..cycles).for_each(|_| site.cycle(part, &mut turn));
    Ok(Some(cycles * site.created.len()))
}

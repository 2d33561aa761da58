// SPDX-License-Identifier: MIT OR Apache-2.0

//! The rows that look something up: standing tables, one for each peer, the same queries to all.
//! Every answer is compared with the expected one before anything is timed.

use crate::measure::{race, time, Contender, Turn, STRETCHES};
use crate::peer::{many_readers, Peer, Query, Reader, Table};
use crate::report::Results;
use crate::workload::{Layout, Order, Shape, TOTAL_PAGES};
use anyhow::{ensure, Result};

pub struct Row {
    pub name: &'static str,
    pub query: Query,
    pub order: Order,
    /// Only on this layout.
    pub only: Option<Shape>,
}

const fn row(name: &'static str, query: Query, order: Order) -> Row {
    Row { name, query, order, only: None }
}

pub const ROWS: &[Row] = &[
    row("gfn random", Query::Gfn, Order::Random),
    row("gfn to hva random", Query::GfnHva, Order::Random),
    row("gfn in a hole", Query::Gfn, Order::Hole),
    row("gfn dependent", Query::GfnDependent, Order::Random),
    row("gfn last-used hit", Query::Gfn, Order::LastUsed),
    row("gfn last-used hit, inline", Query::GfnInline, Order::LastUsed),
    row("gfn 90 % same slot", Query::Gfn, Order::Same90),
    row("gfn sequential", Query::Gfn, Order::Sequential),
    row("gfn random, a section each", Query::GfnSection, Order::Random),
    row("hva 4 KiB", Query::Hva4K, Order::Random),
    row("hva 2 MiB", Query::Hva2M, Order::Random),
    row("hva to gfn", Query::HvaGfn, Order::Random),
    row("id", Query::Id, Order::Random),
    // The 2021 series' own names, on the layout of its test.
    Row { only: Some(Shape::Adjacent), ..row("Map", Query::GfnHva, Order::Sequential) },
    Row { only: Some(Shape::Adjacent), ..row("Unmap", Query::Hva4K, Order::Sequential) },
    Row { only: Some(Shape::Adjacent), ..row("Unmap 2M", Query::Hva2M, Order::Steps2M) },
];

const QUERIES: usize = 65_536;
/// Answers compared for each peer and row; QEMU's scans set the limit.
const CHECKED: usize = 1_000;

pub fn filled(peers: &[Peer], layout: &Layout) -> Result<Vec<Table>> {
    let fill = |peer: &Peer| {
        let table = peer.table(max_slots(layout.n()));
        table.create_all(&layout.slots)?;
        Ok(table)
    };
    peers.iter().map(fill).collect()
}

/// KVM's limit, 509 in 2021 and 32764 since, as the tables of the time were made for.
pub fn max_slots(n: usize) -> u32 {
    if n <= 509 {
        509
    } else {
        32_764
    }
}

pub fn check(reader: &Reader<'_>, peer: &Peer, layout: &Layout, row: &Row) -> Result<()> {
    let Some(queries) = layout.queries(row.query, row.order, CHECKED) else {
        return Ok(());
    };
    let answers = reader.answers(row.query, &queries);
    for (&query, &answer) in queries.iter().zip(&answers) {
        let expected = layout.expected(row.query, query);
        ensure!(
            answer == expected,
            "{}: {} of {query:#x} at n = {}: {answer:#x}, expected {expected:#x}",
            peer.name(),
            row.name,
            layout.n()
        );
    }
    Ok(())
}

/// A window that moves over the queries, so that a slow peer sees all of them in time.
struct Window<'q> {
    queries: &'q [u64],
    at: usize,
    length: usize,
    slice_ns: f64,
}

impl<'q> Window<'q> {
    fn fitting(queries: &'q [u64], slice_ns: f64, mut run: impl FnMut(&[u64])) -> Self {
        let probe = &queries[..queries.len().min(64)];
        run(probe);
        let each = time(|| run(probe)) / probe.len() as f64;
        let wanted = (slice_ns / STRETCHES as f64 / each).max(8.0) as usize;
        let windows = queries.len().div_ceil(wanted);
        Self { queries, at: 0, length: queries.len().div_ceil(windows), slice_ns }
    }

    fn next(&mut self) -> &'q [u64] {
        let end = (self.at + self.length).min(self.queries.len());
        let window = &self.queries[self.at..end];
        self.at = end % self.queries.len();
        window
    }

    /// One turn: a warm-up, then the timed loops.
    fn turn(&mut self, mut run: impl FnMut(&[u64])) -> f64 {
        run(self.next());
        let mut turn = Turn::new(self.slice_ns);
        while !turn.is_over() {
            let window = self.next();
            turn.add(time(|| run(window)), window.len());
        }
        turn.cost()
    }
}

pub struct Settings<'a> {
    pub rounds: usize,
    pub slice_ns: f64,
    pub wanted: &'a dyn Fn(&str) -> bool,
}

pub fn measure(peers: &[Peer], layout: &Layout, settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    let fits = |row: &&Row| row.only.is_none_or(|shape| shape == layout.shape);
    let rows: Vec<&Row> = ROWS.iter().filter(|row| (settings.wanted)(row.name)).filter(fits).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let tables = filled(peers, layout)?;
    let readers: Vec<Reader<'_>> = tables.iter().map(Table::reader).collect();
    for row in rows {
        let count = match row.order {
            Order::Sequential => TOTAL_PAGES as usize,
            Order::Steps2M => TOTAL_PAGES as usize / 512,
            _ => QUERIES,
        };
        let Some(queries) = layout.queries(row.query, row.order, count) else {
            continue;
        };
        let mut contenders = Vec::new();
        for (peer, reader) in peers.iter().zip(&readers) {
            if !peer.has(row.query) {
                continue;
            }
            check(reader, peer, layout, row)?;
            let locked = peer.locked.filter(|_| row.query == Query::Gfn && row.order == Order::Random);
            let ways = [(peer.name(), row.query)].into_iter().chain(locked.map(|name| (name, Query::GfnSection)));
            for (name, query) in ways {
                let run = move |queries: &[u64]| {
                    reader.run(query, queries);
                };
                let mut window = Window::fitting(&queries, settings.slice_ns, run);
                contenders.push(Contender { name, sampled: false, run: Box::new(move || window.turn(run)) });
            }
        }
        results.add(row.name, layout.shape, layout.n(), race(contenders, settings.rounds));
    }
    Ok(())
}

/// 64 vCPUs, each in a slot of its own, taking turns: what a last-used slot for each of them does,
/// and what one for all (dirty_log_perf_test's second pass, before and after).
pub fn measure_many_readers(peers: &[Peer], settings: &Settings<'_>, results: &mut Results) -> Result<()> {
    const READERS: usize = 64;
    let rows = [("64 readers, own last-used slot", true), ("64 readers, one for all", false)];
    let rows = rows.into_iter().filter(|(name, _)| (settings.wanted)(name));
    let layout = Layout::new(Shape::Adjacent, READERS);
    let tables = filled(peers, &layout)?;
    let readers: Vec<Vec<Reader<'_>>> =
        tables.iter().map(|table| (0..READERS).map(|_| table.reader()).collect()).collect();
    let page = |i: usize| layout.slots[i % READERS].gfn + (i / READERS) as u64;
    let queries: Vec<u64> = (0..QUERIES).map(page).collect();
    for (name, own) in rows {
        let mut contenders = Vec::new();
        for (peer, readers) in peers.iter().zip(&readers) {
            let hits = many_readers(readers, &queries, own);
            ensure!(hits == QUERIES as u64, "{}: {name}: {hits} hits", peer.name());
            let run = move |queries: &[u64]| {
                many_readers(readers, queries, own);
            };
            let mut window = Window::fitting(&queries, settings.slice_ns, run);
            let run = Box::new(move || window.turn(run));
            contenders.push(Contender { name: peer.name(), sampled: false, run });
        }
        results.add(name, layout.shape, READERS, race(contenders, settings.rounds));
    }
    Ok(())
}

/// One loop of one row on one peer, and nothing else of note: for an instruction counter or a
/// profiler. The number of operations; None where there is no such row.
pub fn once(peer: &Peer, layout: &Layout, name: &str, operations: usize) -> Result<Option<usize>> {
    let Some(row) = ROWS.iter().find(|row| row.name == name) else {
        return Ok(None);
    };
    let Some(queries) = layout.queries(row.query, row.order, operations) else {
        return Ok(None);
    };
    let tables = filled(std::slice::from_ref(peer), layout)?;
    tables[0].reader().run(row.query, &queries);
    Ok(Some(queries.len()))
}

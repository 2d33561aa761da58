// SPDX-License-Identifier: MIT OR Apache-2.0

//! Readers and a writer at once: throughput, the readers' latency while big transactions commit,
//! and what a reader that sleeps in its section costs.

use crate::histogram::quantile;
use crate::lookups::max_slots;
use crate::measure::Summary;
use crate::peer::{Change, Peer, Query, Table, HISTOGRAM_BUCKETS};
use crate::workload::{Layout, Order, Shape};
use anyhow::{ensure, Result};
use libloading::Library;
use serde::{Deserialize, Serialize};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PER_SECTION: usize = 32;
const THROUGHPUT_SLOTS: usize = 509;
const LATENCY_SLOTS: usize = 32_764;
const TRANSACTION: usize = 10_000;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Concurrency {
    pub throughput: Vec<Throughput>,
    pub latency: Vec<Latency>,
    pub garbage: Option<Garbage>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    pub peer: String,
    pub threads: usize,
    pub writer: bool,
    /// Million lookups a second, all threads together.
    pub lookups: Summary,
    /// Nanoseconds of the writer's time for one move.
    pub per_move: Option<Summary>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub peer: String,
    pub writer: bool,
    /// Of a section with one lookup, in nanoseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub lookups: u64,
    /// Changes that the writer published meanwhile, a second.
    pub changes_per_second: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Garbage {
    /// (moves made while a reader slept in its section, bytes of garbage then).
    pub uncapped: Vec<(usize, u64)>,
    /// After the reader left and a synchronize.
    pub after: u64,
    pub cap: u64,
    pub capped_peak: u64,
    /// Moves that went through before the capped writer had to wait for the sleeping reader.
    pub capped_moves: u64,
    pub capped_writer_waited: bool,
    pub capped_after: u64,
}

#[derive(Clone, Copy)]
pub struct Settings {
    pub rounds: usize,
    pub duration: Duration,
    pub max_threads: usize,
}

struct Beat {
    lookups: f64,
    per_move: Option<f64>,
}

fn table_of(peer: &Peer, layout: &Layout) -> Result<Table> {
    let table = peer.table(max_slots(layout.n()));
    table.create_all(&layout.slots)?;
    Ok(table)
}

/// One stretch of time: `threads` readers, and perhaps a writer that never stops.
fn beat(table: &Table, queries: &[u64], threads: usize, moves: Option<&[Change]>, duration: Duration) -> Result<Beat> {
    let stop = AtomicI32::new(0);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (stop, done) = (&stop, &done);
            let start = queries.len() / threads * thread;
            let mine = [&queries[start..], &queries[..start]].concat();
            scope.spawn(move || {
                let reader = table.reader();
                let count = reader.read_until(&mine, PER_SECTION, stop.as_ptr());
                done.fetch_add(count, Ordering::Relaxed);
            });
        }
        let writer = moves.map(|moves| scope.spawn(|| write_until(table, moves, 1, &stop)));
        std::thread::sleep(duration);
        stop.store(1, Ordering::Relaxed);
        let per_move = writer.map(|writer| writer.join().expect("a writer")).transpose()?;
        Ok::<_, anyhow::Error>(per_move)
    })
    .map(|writer| Beat {
        lookups: done.load(Ordering::Relaxed) as f64 / duration.as_secs_f64() / 1e6,
        per_move: writer.map(|(changes, elapsed)| elapsed.as_nanos() as f64 / changes as f64),
    })
}

/// Moves slots about, `at_once` to a transaction, until told to stop: how many, in what time.
fn write_until(table: &Table, moves: &[Change], at_once: usize, stop: &AtomicI32) -> Result<(u64, Duration)> {
    let begin = Instant::now();
    let mut changes = 0;
    for chunk in moves.chunks(at_once).cycle() {
        if stop.load(Ordering::Relaxed) != 0 {
            break;
        }
        table.move_all(chunk)?;
        changes += chunk.len() as u64;
    }
    Ok((changes.max(1), begin.elapsed()))
}

fn throughput(peers: &[Peer], settings: Settings, progress: &dyn Fn(&str)) -> Result<Vec<Throughput>> {
    let layout = Layout::new(Shape::Holes, THROUGHPUT_SLOTS);
    let queries = layout.queries(Query::Gfn, Order::Random, 8192).expect("random pages");
    let (moves, cycle) = layout.moves(THROUGHPUT_SLOTS, 1);
    let mut all = Vec::new();
    for threads in [1, 2, 4, 8].into_iter().filter(|&threads| threads <= settings.max_threads) {
        for writer in [false, true] {
            progress(&format!("{threads} readers{}", if writer { " and a writer" } else { "" }));
            let mut beats: Vec<Vec<Beat>> = peers.iter().map(|_| Vec::new()).collect();
            for _ in 0..settings.rounds {
                for (peer, beats) in peers.iter().zip(&mut beats) {
                    let table = table_of(peer, &layout)?;
                    let moves = writer.then_some(&moves[..cycle]);
                    beats.push(beat(&table, &queries, threads, moves, settings.duration)?);
                }
            }
            for (peer, beats) in peers.iter().zip(&beats) {
                let lookups: Vec<f64> = beats.iter().map(|beat| beat.lookups).collect();
                let moves: Vec<f64> = beats.iter().filter_map(|beat| beat.per_move).collect();
                all.push(Throughput {
                    peer: peer.name().into(),
                    threads,
                    writer,
                    lookups: Summary::of(&lookups),
                    per_move: writer.then(|| Summary::of(&moves)),
                });
            }
        }
    }
    Ok(all)
}

/// Ticks of the time stamp counter in a nanosecond.
fn ticks_per_ns() -> f64 {
    // SAFETY: every x86-64 has it.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (begin, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(50));
    (ticks() - first) as f64 / begin.elapsed().as_nanos() as f64
}

fn latency_of(peer: &Peer, layout: &Layout, writer: bool, settings: Settings) -> Result<Latency> {
    let queries = layout.queries(Query::Gfn, Order::Random, 8192).expect("random pages");
    let moves = there_and_back(layout);
    let at_once = if peer.transactions { TRANSACTION } else { TRANSACTION / 100 };
    let table = table_of(peer, layout)?;
    let stop = AtomicI32::new(0);
    let mut histogram = vec![0; HISTOGRAM_BUCKETS];
    let written = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            table.reader().sample_until(&queries, &mut histogram, stop.as_ptr());
        });
        let writer = writer.then(|| scope.spawn(|| write_until(&table, &moves, at_once, &stop)));
        std::thread::sleep(settings.duration * 4);
        stop.store(1, Ordering::Relaxed);
        reader.join().expect("a reader");
        writer.map(|writer| writer.join().expect("a writer")).transpose()
    })?;
    let scale = ticks_per_ns();
    let at = |share| quantile(&histogram, share).unwrap_or(0) as f64 / scale;
    Ok(Latency {
        peer: peer.name().into(),
        writer: written.is_some(),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        lookups: histogram.iter().sum(),
        changes_per_second: written.map_or(0.0, |(changes, elapsed)| changes as f64 / elapsed.as_secs_f64()),
    })
}

/// A transaction's worth of slots to a far place, then the same back.
fn there_and_back(layout: &Layout) -> Vec<Change> {
    let far = layout.far();
    let there = layout.shuffled.iter().take(TRANSACTION).map(|slot| Change {
        old_gfn: slot.gfn,
        new_gfn: slot.gfn + far,
        npages: slot.npages,
        id: slot.id,
        flags: 0,
    });
    let there: Vec<Change> = there.collect();
    let back = there.iter().map(|change| Change { old_gfn: change.new_gfn, new_gfn: change.old_gfn, ..*change });
    let back: Vec<Change> = back.collect();
    [there, back].concat()
}

/// The doors that only libmemslots has.
struct Doors<'l> {
    library: &'l Library,
}

impl Doors<'_> {
    fn capped(&self, peer: Peer, max_garbage: usize) -> Result<Table> {
        type New = unsafe extern "C" fn(u32, usize) -> *mut c_void;
        // SAFETY: peer_memslots.c exports it with this type.
        let new = unsafe { self.library.get::<New>(b"bench_memslots_new_capped\0")? };
        // SAFETY: any numbers will do.
        Ok(Table::from_raw(peer, unsafe { new(THROUGHPUT_SLOTS as u32, max_garbage) }))
    }

    fn garbage(&self, table: &Table) -> Result<u64> {
        type Stats = unsafe extern "C" fn(*mut c_void, *mut u64) -> c_int;
        // SAFETY: as above.
        let stats = unsafe { self.library.get::<Stats>(b"bench_memslots_stats\0")? };
        let mut out = [0; 5];
        // SAFETY: the table is alive, and `out` has room for the five.
        let error = unsafe { stats(table.raw(), out.as_mut_ptr()) };
        ensure!(error == 0, "memslots_get_stats: {error}");
        Ok(out[0])
    }

    /// Opens or closes a section of the reader, on its thread.
    fn section(&self, reader: *mut c_void, open: bool) -> Result<()> {
        type Section = unsafe extern "C" fn(*mut c_void, c_int);
        // SAFETY: as above.
        let section = unsafe { self.library.get::<Section>(b"bench_memslots_section\0")? };
        // SAFETY: the reader is alive and of this thread.
        unsafe { section(reader, open.into()) };
        Ok(())
    }

    /// Runs `work` while another thread sleeps in a read section of the table; the thread leaves
    /// when `work` calls what it is given.
    fn beside_a_sleeper<T>(&self, table: &Table, work: impl FnOnce(&dyn Fn()) -> Result<T>) -> Result<T> {
        let (asleep, is_asleep) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(move || -> Result<()> {
                let reader = table.reader();
                self.section(reader.raw(), true)?;
                asleep.send(())?;
                let _ = woken.recv();
                self.section(reader.raw(), false)
            });
            is_asleep.recv()?;
            let wake_up = || {
                let _ = wake.send(());
            };
            let done = work(&wake_up);
            wake_up();
            sleeper.join().expect("a sleeper")?;
            done
        })
    }
}

fn garbage(peer: Peer, library: &Library) -> Result<Garbage> {
    const CAP: usize = 1 << 20;
    let layout = Layout::new(Shape::Holes, THROUGHPUT_SLOTS);
    let (moves, _) = layout.moves(THROUGHPUT_SLOTS, 10_000);
    let doors = Doors { library };

    let table = table_of(&peer, &layout)?;
    let uncapped = doors.beside_a_sleeper(&table, |_| {
        let mut grown = vec![(0, doors.garbage(&table)?)];
        for (index, thousand) in moves.chunks(1000).enumerate() {
            table.move_slots(thousand)?;
            grown.push(((index + 1) * 1000, doors.garbage(&table)?));
        }
        Ok(grown)
    })?;
    table.quiesce();
    let after = doors.garbage(&table)?;

    let capped = doors.capped(peer, CAP)?;
    capped.create_all(&layout.slots)?;
    // The writer itself looks after each move: nobody else can while it waits.
    let (made, peak) = (AtomicU64::new(0), AtomicU64::new(0));
    let (capped_moves, waited) = doors.beside_a_sleeper(&capped, |wake_up| {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<()> {
                for change in &moves {
                    capped.move_slots(std::slice::from_ref(change))?;
                    made.fetch_add(1, Ordering::Relaxed);
                    peak.fetch_max(doors.garbage(&capped)?, Ordering::Relaxed);
                }
                Ok(())
            });
            std::thread::sleep(Duration::from_millis(500));
            let stood_at = made.load(Ordering::Relaxed);
            let waited = !writer.is_finished();
            wake_up();
            writer.join().expect("a writer")?;
            Ok::<_, anyhow::Error>((stood_at, waited))
        })
    })?;
    capped.quiesce();
    Ok(Garbage {
        uncapped,
        after,
        cap: CAP as u64,
        capped_peak: peak.into_inner(),
        capped_moves,
        capped_writer_waited: waited,
        capped_after: doors.garbage(&capped)?,
    })
}

/// `library`: the object of libmemslots' own peer.
pub fn measure(peers: &[Peer], library: &Library, settings: Settings, progress: &dyn Fn(&str)) -> Result<Concurrency> {
    let peers: Vec<Peer> = peers.iter().copied().filter(|peer| peer.concurrent).collect();
    let throughput = throughput(&peers, settings, progress)?;
    let layout = Layout::new(Shape::Holes, LATENCY_SLOTS);
    let mut latency = Vec::new();
    for writer in [false, true] {
        for peer in &peers {
            progress(&format!("latency of {}", peer.name()));
            latency.push(latency_of(peer, &layout, writer, settings)?);
        }
    }
    progress("garbage");
    let garbage = Some(garbage(peers[0], library)?);
    Ok(Concurrency { throughput, latency, garbage })
}

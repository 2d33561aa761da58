// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was due when `synchronize` or `reclaim` was called has run when it returns, whatever readers and other updates
//! do meanwhile.
//!
//! `MEMSLOTS_CASES` is the number of calls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

use memslots::{AsId, Config, Hooks, Memslot, Memslots, SlotId};
use memslots_oracle::library::{opaque_of, region};
use memslots_oracle::op::Request;
use memslots_oracle::run::{cases, say};

const PAGE: u64 = 4096;

/// Releases by the number that is the slot's opaque; a number's place is used again once it has been looked at.
struct Released {
    places: Vec<AtomicU64>,
    count: AtomicU64,
}

impl Released {
    fn new(places: usize) -> Arc<Released> {
        let places = (0..places).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Released { places, count: AtomicU64::new(0) })
    }

    fn has(&self, number: u64) -> bool {
        self.places[number as usize % self.places.len()].load(Ordering::SeqCst) == number
    }
}

struct Counts(Arc<Released>);

impl Hooks for Counts {
    fn release(&self, gone: &Memslot) {
        let number = gone.opaque as u64;
        self.0.places[number as usize % self.0.places.len()].store(number, Ordering::SeqCst);
        self.0.count.fetch_add(1, Ordering::SeqCst);
    }
}

fn table(released: &Arc<Released>) -> Memslots {
    let hooks: Option<Box<dyn Hooks>> = Some(Box::new(Counts(released.clone())));
    Memslots::new(Config { hooks, ..Config::default() }).expect("a table")
}

fn create(table: &Memslots, id: u16, number: u64) {
    let request = Request { id, gpa: u64::from(id) * PAGE, size: PAGE, memfd: -1, ..Request::default() };
    table.create(&region(&request), opaque_of(number as usize)).expect("a slot");
}

/// Numbers that may be in flight: more than an updater can end between two looks.
const PLACES: usize = 1 << 16;

struct Torture {
    table: Memslots,
    released: Arc<Released>,
    /// Slots up to this number have ended.
    ended: AtomicU64,
    /// Those up to this number have been looked at.
    looked_at: AtomicU64,
    stop: AtomicBool,
}

impl Torture {
    /// Sections without a pause.
    fn read(&self) {
        let reader = self.table.reader().expect("a reader");
        while !self.stop.load(Ordering::Relaxed) {
            std::hint::black_box(reader.lock().find_id(AsId(0), SlotId(1)));
        }
    }

    /// Slots that come and go, numbered from 1.
    fn update(&self) {
        for number in 1.. {
            while number - self.looked_at.load(Ordering::SeqCst) >= PLACES as u64 {
                thread::yield_now();
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            create(&self.table, 1, number);
            self.table.delete(AsId(0), SlotId(1)).expect("it is there");
            self.ended.store(number, Ordering::SeqCst);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Synchronizes so often; gives the calls after which a release was late.
    fn synchronize(&self, calls: u64) -> u64 {
        let mut late = 0;
        for _ in 0..calls {
            let due = self.ended.load(Ordering::SeqCst);
            self.table.synchronize().expect("no section of this thread's");
            let first = self.looked_at.load(Ordering::SeqCst) + 1;
            let missing = (first..=due).filter(|number| !self.released.has(*number)).count();
            late += u64::from(missing > 0);
            // What is late is waited for, so that it is not counted twice, nor its place used again.
            while (first..=due).any(|number| !self.released.has(number)) {
                self.table.synchronize().expect("no section of this thread's");
            }
            self.looked_at.store(due, Ordering::SeqCst);
        }
        self.stop.store(true, Ordering::SeqCst);
        late
    }
}

#[test]
fn synchronize_returns_when_what_was_due_has_run() {
    let calls = cases(100_000);
    let released = Released::new(PLACES);
    let torture = Torture {
        table: table(&released),
        released,
        ended: AtomicU64::new(0),
        looked_at: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let late = thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(|| torture.read())));
        scope.spawn(|| torture.update());
        torture.synchronize(calls)
    });
    let ended = torture.ended.load(Ordering::SeqCst);
    say(&format!("grace: {calls} calls of synchronize, {ended} slots ended, {late} calls were early"));
    assert!(ended > 0 && late == 0, "{late} of {calls} calls returned before a release that was due");
}

#[test]
fn reclaim_runs_everything_that_is_due() {
    const SLOTS: u64 = 1_000;
    for in_section in [false, true] {
        let released = Released::new(PLACES);
        let table = table(&released);
        let reader = table.reader().expect("a reader");
        (0..SLOTS).for_each(|n| create(&table, n as u16, n + 1));
        let section = in_section.then(|| reader.lock());
        (0..SLOTS).for_each(|n| table.delete(AsId(0), SlotId(n as u16)).expect("it is there"));
        drop(section);
        table.reclaim();
        assert_eq!(released.count.load(Ordering::SeqCst), SLOTS, "nobody reads, so all of them are due");
        assert_eq!(table.stats().releases_due, 0);
        assert_eq!(table.reclaim(), 0);
    }
}

/// A section holds up what ended after it began, and only until it ends.
#[test]
fn a_section_holds_up_reclaim_and_nothing_else() {
    let released = Released::new(PLACES);
    let table = table(&released);
    let reader = table.reader().expect("a reader");
    (0..100).for_each(|n| create(&table, n, u64::from(n) + 1));
    let section = reader.lock();
    (0..100).for_each(|n| table.delete(AsId(0), SlotId(n)).expect("it is there"));
    table.reclaim();
    assert_eq!(released.count.load(Ordering::SeqCst), 0, "the section may have any of them");
    drop(section);
    table.synchronize().expect("no section is open");
    assert_eq!(released.count.load(Ordering::SeqCst), 100);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Readers against a writer that never stops: what a reader sees is one published content, whole, and everything
//! that it found stays alive until its section ends.
//!
//! The writer moves a group of slots about by transactions. Where the group is follows from the generation alone, so a
//! reader can tell a mix of two contents, or the wrong content, by looking. Every slot's opaque leads to a word that
//! says LIVE until the slot is released; the words themselves are never freed, so a reader may look at any time.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use memslots::{AsId, Config, Errno, Gfn, Gpa, Hooks, Hva, Memslot, Memslots, Region, Section, SlotId};
use memslots_oracle::run::{say, seed, size};
use memslots_oracle::world::{Choose, Seed};

const TRANSACTIONS: u64 = 100_000;
const READERS: usize = 2;
/// Slots that move together, ids 0 to here.
const GROUP: u64 = 200;
/// Frames from one slot of the group to the next; a slot has one less.
const STRIDE: u64 = 4;
/// Frames from one place of the group to the next.
const PLACE: u64 = GROUP * STRIDE * 2;
const PLACES: u64 = 5;
/// Slots that come and go above the group, ids from GROUP on.
const OTHERS: u64 = 300;
const PAGE: u64 = 4096;
const HVA: u64 = 0x7000_0000_0000;

const LIVE: u32 = 0x11fe_11fe;
const DEAD: u32 = 0xdead_dead;

/// What a slot's opaque leads to.
struct Payload {
    state: AtomicU32,
    id: u64,
    /// Readers that use the slot right now and saw it valid.
    users: AtomicU32,
}

/// Every payload of a run. Never freed, so that a reader that is wrong about one finds it DEAD.
#[derive(Default)]
struct Payloads(Mutex<Vec<&'static Payload>>);

/// Those of runs that are over: kept where a leak checker finds them.
static KEPT: Mutex<Vec<&'static Payload>> = Mutex::new(Vec::new());

impl Drop for Payloads {
    fn drop(&mut self) {
        KEPT.lock().unwrap().append(self.0.get_mut().unwrap());
    }
}

impl Payloads {
    fn new_for(&self, id: u64) -> *mut c_void {
        let payload = Payload { state: AtomicU32::new(LIVE), id, users: AtomicU32::new(0) };
        let payload: &'static Payload = Box::leak(Box::new(payload));
        self.0.lock().unwrap().push(payload);
        payload as *const Payload as *mut c_void
    }

    /// Of a slot that was never made.
    fn never_used(&self, opaque: *mut c_void) {
        // SAFETY: payloads are never freed.
        unsafe { &*(opaque as *const Payload) }.state.store(DEAD, Ordering::SeqCst);
    }

    fn in_state(&self, state: u32) -> usize {
        self.0.lock().unwrap().iter().filter(|payload| payload.state.load(Ordering::Relaxed) == state).count()
    }
}

fn payload(slot: &Memslot) -> &'static Payload {
    // SAFETY: every slot of these tables has a payload, and payloads are never freed.
    unsafe { &*(slot.opaque as *const Payload) }
}

/// Poisons what is released, and counts.
struct Poison {
    flushes: bool,
}

impl Hooks for Poison {
    fn wants_flush(&self) -> bool {
        self.flushes
    }

    fn flush(&self, invalid: &Memslot) {
        let users = payload(invalid).users.load(Ordering::SeqCst);
        assert_eq!(users, 0, "slot {} is flushed while a reader that saw it valid is at work", invalid.id);
    }

    fn release(&self, gone: &Memslot) {
        let before = payload(gone).state.swap(DEAD, Ordering::SeqCst);
        assert_eq!(before, LIVE, "slot {} is released twice", gone.id);
    }
}

fn table(flushes: bool, sync: bool) -> Memslots {
    let hooks: Option<Box<dyn Hooks>> = Some(Box::new(Poison { flushes }));
    Memslots::new(Config { hooks, sync, ..Config::default() }).expect("a table")
}

fn region(id: u64, gfn: u64, npages: u64) -> Region {
    Region {
        slot: id as u32,
        guest_phys_addr: gfn * PAGE,
        memory_size: npages * PAGE,
        userspace_addr: HVA + id * STRIDE * PAGE,
        ..Default::default()
    }
}

/// Where a slot of the group is, by the number of the content: each content is one frame or a whole place from the
/// last, so that slots move onto their own old frames, too.
fn place(content: u64, id: u64) -> u64 {
    (content / 2 % PLACES) * PLACE + content % 2 + id * STRIDE
}

/// Checks that a slot is whole: id, memory, size and payload belong together, and the payload lives.
fn check_slot(slot: &Memslot) {
    let id = u64::from(slot.id.0);
    let payload = payload(slot);
    assert_eq!(payload.state.load(Ordering::SeqCst), LIVE, "a reader found slot {id} after its release");
    assert_eq!((payload.id, slot.userspace_addr.0), (id, HVA + id * STRIDE * PAGE));
    let npages = if id < GROUP { STRIDE - 1 } else { 1 };
    assert_eq!((slot.npages.0, slot.as_id.0), (npages, 0));
}

/// One walk over the group: all of it in one place, and that the place of a content that was current meanwhile.
fn check_group(section: &Section<'_>, origin: u64) {
    let before = section.generation(AsId(0)) - origin;
    let mut seen = 0;
    let mut content = None;
    for slot in section.iter(AsId(0)) {
        check_slot(slot);
        let id = u64::from(slot.id.0);
        if id >= GROUP {
            continue;
        }
        let shift = slot.base_gfn.0 - id * STRIDE;
        assert_eq!(id, seen, "the group is walked in order");
        assert_eq!(*content.get_or_insert(shift), shift, "slot {id} is of another content than those before it");
        seen += 1;
    }
    assert_eq!(seen, GROUP, "a walk over part of the group");
    let after = section.generation(AsId(0)) - origin;
    let may_be = (before..=after).any(|candidate| Some(place(candidate, 0)) == content);
    assert!(may_be, "shift {content:x?} is of no content from {before} to {after}");
}

/// Single lookups, whose slots must stay as they were until the section ends.
fn check_lookups(section: &Section<'_>, choose: &mut Seed) {
    let found: Vec<Option<&Memslot>> = (0..4)
        .flat_map(|_| {
            let id = choose.below(GROUP + OTHERS);
            [
                section.find_id(AsId(0), SlotId(id as u16)),
                section.find_gfn(AsId(0), Gfn(choose.below(PLACES * PLACE))),
                section.find_gfn_approx(AsId(0), Gfn(choose.below(PLACES * PLACE))),
                section.find_hva(AsId(0), Hva(HVA + id * STRIDE * PAGE)),
            ]
        })
        .collect();
    let as_found: Vec<Memslot> = found.iter().flatten().map(|slot| **slot).collect();
    if choose.once_in(64) {
        thread::yield_now();
    }
    for (now, then) in found.iter().flatten().zip(as_found) {
        assert_eq!(**now, then, "a slot changed in place");
        check_slot(now);
    }
}

/// Reads until told to stop; gives the number of sections.
fn read(table: &Memslots, origin: u64, start: &Barrier, stop: &AtomicBool, seed: u64) -> u64 {
    let mut choose = Seed(seed);
    let reader = table.reader().expect("a reader");
    start.wait();
    let mut sections = 0;
    while !stop.load(Ordering::Relaxed) {
        let section = reader.lock();
        check_group(&section, origin);
        check_lookups(&section, &mut choose);
        sections += 1;
    }
    sections
}

/// The next content: the group elsewhere, one of its slots replaced by a new one, some others come or gone.
fn turn(table: &Memslots, payloads: &Payloads, content: u64, choose: &mut Seed) -> Result<(), Errno> {
    let mut txn = table.begin()?;
    for id in 0..GROUP {
        txn.move_slot(AsId(0), SlotId(id as u16), Gpa(place(content, id) * PAGE))?;
    }
    let replaced = choose.below(GROUP);
    txn.delete(AsId(0), SlotId(replaced as u16))?;
    let again = region(replaced, place(content, replaced), STRIDE - 1);
    txn.create(&again, payloads.new_for(replaced))?;
    let first = choose.below(OTHERS);
    for n in 0..4 {
        let id = GROUP + (first + n * OTHERS / 4) % OTHERS;
        if txn.delete(AsId(0), SlotId(id as u16)) == Err(Errno::ENOENT) {
            txn.create(&region(id, PLACES * PLACE + id * STRIDE, 1), payloads.new_for(id))?;
        }
    }
    txn.commit()
}

/// Stops the readers when the writer is done, also by a panic: else the test would hang instead of failing.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_never_see_part_of_a_transaction() {
    let seed = seed("stress");
    let transactions = size(TRANSACTIONS);
    let payloads = Payloads::default();
    let table = table(false, false);
    let mut setup = table.begin().unwrap();
    for id in 0..GROUP {
        setup.create(&region(id, place(0, id), STRIDE - 1), payloads.new_for(id)).unwrap();
    }
    setup.commit().unwrap();
    let origin = table.reader().unwrap().lock().generation(AsId(0));
    let (start, stop) = (Barrier::new(READERS + 1), AtomicBool::new(false));
    let sections: u64 = thread::scope(|scope| {
        let running = StopWhenDropped(&stop);
        let (table, start, stop) = (&table, &start, &stop);
        let reader = |n: usize| scope.spawn(move || read(table, origin, start, stop, seed + n as u64));
        let readers: Vec<_> = (0..READERS).map(reader).collect();
        start.wait();
        let mut choose = Seed(seed);
        for content in 1..=transactions {
            turn(table, &payloads, content, &mut choose).expect("a transaction");
        }
        drop(running);
        readers.into_iter().map(|reader| reader.join().expect("a reader")).sum()
    });
    say(&format!("stress: {transactions} transactions over {GROUP} slots, {sections} read-side sections"));
    assert!(sections > 0);
    assert_eq!(table.reader().unwrap().lock().generation(AsId(0)), origin + transactions);
    table.synchronize().expect("no section is open");
    let slots = table.reader().unwrap().lock().count(AsId(0)) as usize;
    assert_eq!(payloads.in_state(LIVE), slots, "what is not in the table is released");
    drop(table);
    assert_eq!(payloads.in_state(LIVE), 0, "what was left is released with the table");
}

/// A reader that marks the slot that it saw valid for as long as it uses it.
fn use_slots(table: &Memslots, stop: &AtomicBool, used: &AtomicU64, seed: u64) {
    let mut choose = Seed(seed);
    let reader = table.reader().expect("a reader");
    while !stop.load(Ordering::Relaxed) {
        let section = reader.lock();
        let Some(slot) = section.find_id(AsId(0), SlotId(choose.below(8) as u16)) else { continue };
        if slot.is_invalid() {
            continue;
        }
        payload(slot).users.fetch_add(1, Ordering::SeqCst);
        (0..choose.below(200)).for_each(|_| std::hint::spin_loop());
        check_slot_state(slot);
        payload(slot).users.fetch_sub(1, Ordering::SeqCst);
        used.fetch_add(1, Ordering::Relaxed);
    }
}

fn check_slot_state(slot: &Memslot) {
    assert_eq!(payload(slot).state.load(Ordering::SeqCst), LIVE, "slot {} is released while in use", slot.id);
}

/// Makes the slots that are used, and waits until they are.
fn set_out(table: &Memslots, payloads: &Payloads, used: &AtomicU64) {
    for id in 0..8 {
        table.create(&region(id, id * STRIDE, 1), payloads.new_for(id)).expect("a slot");
    }
    while used.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
}

/// The kernel's promise to its flush hook: the slot is INVALID to whoever looks, and nobody is left who saw it valid.
#[test]
fn flush_finds_no_reader_that_saw_the_slot_valid() {
    let (seed, updates) = (seed("stress_flush"), size(1_000).min(1_000));
    let (payloads, stop, used) = (Payloads::default(), AtomicBool::new(false), AtomicU64::new(0));
    let table = table(true, false);
    thread::scope(|scope| {
        let _running = StopWhenDropped(&stop);
        for n in 0..READERS as u64 {
            let (table, stop, used) = (&table, &stop, &used);
            scope.spawn(move || use_slots(table, stop, used, seed + n));
        }
        let mut choose = Seed(seed);
        set_out(&table, &payloads, &used);
        for _ in 0..updates {
            let id = choose.below(8);
            let gfn = (1 + choose.below(4)) * 100 + id * STRIDE;
            match choose.below(3) {
                0 => drop(table.delete(AsId(0), SlotId(id as u16))),
                1 => drop(table.move_slot(AsId(0), SlotId(id as u16), Gpa(gfn * PAGE))),
                _ => drop(table.create(&region(id, gfn, 1), payloads.new_for(id))),
            }
        }
    });
    say(&format!("stress_flush: {updates} updates, {} uses", used.load(Ordering::Relaxed)));
}

/// With `sync`, when an update returns nobody is left who could still use what was before.
#[test]
fn a_synchronous_update_returns_when_the_old_state_is_out_of_use() {
    let (seed, updates) = (seed("stress_sync"), size(500).min(500));
    let (payloads, stop, used) = (Payloads::default(), AtomicBool::new(false), AtomicU64::new(0));
    let table = table(false, true);
    thread::scope(|scope| {
        let _running = StopWhenDropped(&stop);
        for n in 0..READERS as u64 {
            let (table, stop, used) = (&table, &stop, &used);
            scope.spawn(move || use_slots(table, stop, used, seed + n));
        }
        let mut choose = Seed(seed);
        set_out(&table, &payloads, &used);
        for _ in 0..updates {
            let id = choose.below(8);
            let opaque = payloads.new_for(id);
            if table.create(&region(id, id * STRIDE, 1), opaque).is_ok() {
                continue;
            }
            let slot = *table.reader().unwrap().lock().find_id(AsId(0), SlotId(id as u16)).expect("it exists");
            table.delete(AsId(0), SlotId(id as u16)).expect("it exists");
            let users = payload(&slot).users.load(Ordering::SeqCst);
            assert_eq!(users, 0, "slot {id} is in use after the update that took it away");
        }
    });
    say(&format!("stress_sync: {updates} updates, {} uses", used.load(Ordering::Relaxed)));
}

/// One thread's share of everything that a thread may do, in any order. Gives how often an update was refused because
/// it would have had to wait for this thread's own section.
fn do_anything(table: &Memslots, payloads: &Payloads, rounds: u64, seed: u64) -> u64 {
    let mut choose = Seed(seed);
    let mut reader = table.reader().expect("a reader");
    let mut refused = 0;
    for _ in 0..rounds {
        let section = choose.once_in(2).then(|| reader.lock());
        let found = section.as_ref().and_then(|section| section.find_id(AsId(0), SlotId(choose.below(OTHERS) as u16)));
        let as_found = found.copied();
        for _ in 0..choose.below(3) {
            refused += u64::from(update(table, payloads, &mut choose) == Err(Errno::EDEADLK));
        }
        if section.is_some() {
            assert_eq!(table.synchronize(), Err(Errno::EDEADLK), "in a section of this thread's own");
        }
        if let (Some(slot), Some(then)) = (found, as_found) {
            assert_eq!(*slot, then, "a slot changed in place");
            check_slot_state(slot);
        }
        drop(section);
        match choose.below(64) {
            0 => reader = table.reader().expect("another reader"),
            1 => drop(table.synchronize()),
            2 => drop(table.reclaim()),
            _ => {}
        }
    }
    refused
}

/// One update, alone or a few in a transaction; which of them succeed is chance.
fn update(table: &Memslots, payloads: &Payloads, choose: &mut Seed) -> Result<(), Errno> {
    let id = choose.below(OTHERS);
    let slot = region(id, choose.below(4) * PLACE + id * STRIDE, 1);
    match choose.below(4) {
        0 => table.delete(AsId(0), SlotId(id as u16)),
        1 => table.move_slot(AsId(0), SlotId(id as u16), Gpa(slot.guest_phys_addr)),
        2 => {
            let opaque = payloads.new_for(id);
            let created = table.create(&slot, opaque).map(drop);
            if created.is_err() {
                payloads.never_used(opaque);
            }
            created
        }
        _ => {
            let mut txn = table.begin()?;
            assert_eq!(table.begin().err(), Some(Errno::EDEADLK), "while this thread has a transaction open");
            for id in id..OTHERS.min(id + 8) {
                let _ = txn.move_slot(AsId(0), SlotId(id as u16), Gpa(slot.guest_phys_addr + id * STRIDE * PAGE));
            }
            txn.commit()
        }
    }
}

fn anything_at_once(name: &str, flushes: bool, rounds: u64) {
    const THREADS: u64 = 4;
    let (seed, payloads) = (seed(name), Payloads::default());
    let table = table(flushes, false);
    let refused: u64 = thread::scope(|scope| {
        let (table, payloads) = (&table, &payloads);
        let share = |n| scope.spawn(move || do_anything(table, payloads, rounds / THREADS, seed + n));
        let threads: Vec<_> = (0..THREADS).map(share).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    say(&format!("{name}: {rounds} rounds, {refused} updates refused from inside a section"));
    assert_eq!(refused > 0, flushes, "only an update that waits can be refused so");
    table.synchronize().expect("no section is open");
    let slots = table.reader().unwrap().lock().count(AsId(0)) as usize;
    assert_eq!(payloads.in_state(LIVE), slots, "what is not in the table is released");
    drop(table);
    assert_eq!(payloads.in_state(LIVE), 0, "what was left is released with the table");
}

#[test]
fn threads_do_anything_at_once() {
    anything_at_once("stress_anything", false, size(400_000).min(400_000));
}

#[test]
fn threads_do_anything_at_once_where_updates_wait() {
    anything_at_once("stress_anything_flush", true, size(40_000).min(40_000));
}

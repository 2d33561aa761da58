// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table against a list: a long random run in which every answer is looked for by hand. The exhaustive comparison,
//! with the kernel's rules and errnos, is the `oracle` crate's; this one needs nothing but the library.

use memslots::{Config, Errno, Gfn, Gpa, Hva, Memslot, Memslots, Region, ID_ANY};
use std::ptr::null_mut;

/// A small generator, so that the library's own tests need no other crate.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn region(id: u16, gfn: u64, npages: u64, hva_page: u64) -> Region {
    Region {
        slot: id as u32,
        guest_phys_addr: gfn << 12,
        memory_size: npages << 12,
        userspace_addr: hva_page << 12,
        ..Region::default()
    }
}

fn overlaps(a: &Memslot, gfn: u64, npages: u64) -> bool {
    a.base_gfn < gfn + npages && gfn < a.base_gfn + a.npages
}

fn check_everything(table: &Memslots, slots: &[Memslot], random: &mut Random, world: u64) {
    let reader = table.reader().unwrap();
    let section = reader.lock();
    let mut by_gfn = slots.to_vec();
    by_gfn.sort_by_key(|slot| slot.base_gfn);
    let mut by_hva = slots.to_vec();
    by_hva.sort_by_key(|slot| (slot.userspace_addr, slot.id));
    assert!(section.iter(0).eq(by_gfn.iter()));
    assert_eq!(section.count(0) as usize, slots.len());
    assert_eq!(section.npages(0), slots.iter().map(|slot| slot.npages).sum::<u64>());
    for _ in 0..50 {
        let (gfn, end) = (random.next(world), random.next(world));
        let expected = by_gfn.iter().find(|slot| slot.contains(Gfn(gfn)));
        assert_eq!(section.find_gfn(0, Gfn(gfn)), expected);
        let below = by_gfn.iter().rev().find(|slot| slot.base_gfn <= gfn);
        assert_eq!(section.find_gfn_approx(0, Gfn(gfn)), below.or(by_gfn.first()));
        let expected = by_gfn.iter().filter(|slot| gfn < end && overlaps(slot, gfn, end - gfn));
        assert!(section.iter_gfn(0, Gfn(gfn)..Gfn(end)).eq(expected));
        let hva_of = |page: u64| page << 12;
        let holds = |slot: &&Memslot, first: u64, last: u64| {
            slot.userspace_addr <= last && first < slot.userspace_addr + (slot.npages << 12)
        };
        let at = hva_of(random.next(world)) + 5;
        assert_eq!(section.find_hva(0, Hva(at)), by_hva.iter().find(|slot| holds(slot, at, at)));
        let last = hva_of(random.next(world));
        let expected = by_hva.iter().filter(|slot| at <= last && holds(slot, at, last));
        assert!(section.iter_hva(0, Hva(at), Hva(last)).eq(expected));
        let id = random.next(900) as u16;
        assert_eq!(section.find_id(0, id), slots.iter().find(|slot| slot.id == id));
    }
}

fn run(seed: u64, steps: u64, world: u64, largest: u64) {
    let mut random = Random(seed);
    let table = Memslots::new(Config::default()).unwrap();
    let mut slots: Vec<Memslot> = Vec::new();
    for step in 0..steps {
        let (gfn, npages, page) = (random.next(world), 1 + random.next(largest), random.next(world));
        // Mostly growing at first, mostly shrinking at the end.
        let grow = random.next(steps) > step / 2;
        if grow {
            let free = (0u16..).find(|id| slots.iter().all(|slot| slot.id != *id)).unwrap();
            let taken = slots.iter().any(|slot| overlaps(slot, gfn, npages));
            let answer = table.create(&region(ID_ANY, gfn, npages, page), null_mut());
            assert_eq!(answer, if taken { Err(Errno::EEXIST) } else { Ok(free) });
            if let Ok(id) = answer {
                let reader = table.reader().unwrap();
                let section = reader.lock();
                slots.push(*section.find_id(0, id).unwrap());
            }
        } else if let Some(index) = (!slots.is_empty()).then(|| random.next(slots.len() as u64) as usize) {
            let slot = slots[index];
            match random.next(3) {
                0 => {
                    table.delete(0, slot.id).unwrap();
                    slots.swap_remove(index);
                }
                1 => {
                    let taken = slots.iter().any(|other| other.id != slot.id && overlaps(other, gfn, slot.npages));
                    let answer = table.move_slot(0, slot.id, Gpa(gfn << 12));
                    assert_eq!(answer, if taken { Err(Errno::EEXIST) } else { Ok(()) });
                    if answer.is_ok() {
                        slots[index].base_gfn = gfn;
                    }
                }
                _ => {
                    table.set_flags(0, slot.id, slot.flags ^ 1).unwrap();
                    slots[index].flags ^= 1;
                }
            }
        }
        if step % 64 == 0 {
            check_everything(&table, &slots, &mut random, world);
        }
    }
}

#[test]
fn small_world() {
    for seed in 1..40 {
        run(seed, 400, 80, 9);
    }
}

#[test]
fn many_slots() {
    run(7, 3_000, 50_000, 40);
}

#[test]
fn host_memory_shared_by_many_slots() {
    // Every slot starts at one of two host pages: equal keys fill whole nodes.
    let table = Memslots::new(Config::default()).unwrap();
    for id in 0..600u16 {
        table.set_region(&region(id, id as u64 * 10, 1 + id as u64 % 7, id as u64 % 2), null_mut()).unwrap();
    }
    let reader = table.reader().unwrap();
    assert_eq!(reader.lock().find_hva(0, Hva(0)).unwrap().id, 0);
    for id in (0..600).step_by(2) {
        let section = reader.lock();
        assert_eq!(section.find_hva(0, Hva(0)).unwrap().id, id);
        assert_eq!(section.iter_hva(0, Hva(0), Hva(0)).count(), (600 - id as usize).div_ceil(2));
        drop(section);
        table.delete(0, id).unwrap();
    }
    assert!(reader.lock().find_hva(0, Hva(0)).is_none());
}

#[test]
fn as_many_address_spaces_as_there_can_be() {
    // The root is larger than any node. What updates replace comes back to the pool, or debug builds would fail at the
    // end.
    let table = Memslots::new(Config { nr_address_spaces: 64, ..Config::default() }).unwrap();
    let reader = table.reader().unwrap();
    for round in 0..40 {
        for as_id in 0..64u16 {
            let region = Region { slot: (as_id as u32) << 16, ..region(0, as_id as u64 * 100 + round, 7, round) };
            table.set_region(&Region { memory_size: 0, ..region }, null_mut()).err();
            table.set_region(&region, null_mut()).unwrap();
        }
        let section = reader.lock();
        assert!((0..64).all(|as_id| section.find_gfn(as_id, Gfn(as_id as u64 * 100 + round)).unwrap().as_id == as_id));
    }
    table.synchronize().unwrap();
    let held = table.stats().pool_bytes;
    assert!(held < 1 << 20, "{held} bytes for 64 slots");
}

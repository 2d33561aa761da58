// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables at the edge of what can be. Random ones, held against a model, are the `oracle` crate's.

use memslots::{AsId, Config, Gfn, Hva, Memslots, Region, SlotId};
use std::ptr::null_mut;

fn region(id: u16, gfn: u64, npages: u64, hva_page: u64) -> Region {
    Region {
        slot: id as u32,
        guest_phys_addr: gfn << 12,
        memory_size: npages << 12,
        userspace_addr: hva_page << 12,
        ..Region::default()
    }
}

#[test]
fn host_memory_shared_by_many_slots() {
    // Every slot starts at one of two host pages: equal keys fill whole nodes.
    let table = Memslots::new(Config::default()).unwrap();
    for id in 0..600u16 {
        table.set_region(&region(id, id as u64 * 10, 1 + id as u64 % 7, id as u64 % 2), null_mut()).unwrap();
    }
    let reader = table.reader().unwrap();
    assert_eq!(reader.lock().find_hva(AsId(0), Hva(0)).unwrap().id, SlotId(0));
    for id in (0..600).step_by(2) {
        let section = reader.lock();
        assert_eq!(section.find_hva(AsId(0), Hva(0)).unwrap().id, SlotId(id));
        assert_eq!(section.iter_hva(AsId(0), Hva(0), Hva(0)).count(), (600 - id as usize).div_ceil(2));
        drop(section);
        table.delete(AsId(0), SlotId(id)).unwrap();
    }
    assert!(reader.lock().find_hva(AsId(0), Hva(0)).is_none());
}

#[test]
fn as_many_address_spaces_as_there_can_be() {
    // The root is larger than any node; what updates replace comes back to the pool, or debug builds would say so at
    // the end.
    let table = Memslots::new(Config { nr_address_spaces: 64, ..Config::default() }).unwrap();
    let reader = table.reader().unwrap();
    for round in 0..40 {
        for as_id in 0..64u16 {
            let region = Region { slot: (as_id as u32) << 16, ..region(0, as_id as u64 * 100 + round, 7, round) };
            table.set_region(&Region { memory_size: 0, ..region }, null_mut()).err();
            table.set_region(&region, null_mut()).unwrap();
        }
        let section = reader.lock();
        assert!((0..64)
            .all(|as_id| section.find_gfn(AsId(as_id), Gfn(as_id as u64 * 100 + round)).unwrap().as_id == AsId(as_id)));
    }
    table.synchronize().unwrap();
    let held = table.stats().pool_bytes;
    assert!(held < 1 << 20, "{held} bytes for 64 slots");
}

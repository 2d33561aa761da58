// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ways that come to the same: a single update without a journal and one that is a transaction of one (hooks, `sync`,
//! `max_garbage`); a list of creates, whose trees are built at once, and its steps one by one.

use memslots::{Config, Errno, Gpa, Hooks, Hva, Memslots, Reader, Refused, Region, ID_ANY};
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;

struct AgreesToAll;

impl Hooks for AgreesToAll {}

/// Xorshift: the same numbers every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Mostly sound, in a crowded place; now and then at or beyond a limit.
    fn region(&mut self, nr_ids: u64) -> Region {
        let edge = |numbers: &mut Self, end: u64| end.wrapping_sub(4096 * numbers.below(4));
        let gpa = match self.below(20) {
            0 => edge(self, 1 << 52),
            1 => edge(self, 0),
            2 => self.below(1 << 20),
            _ => self.below(nr_ids * 3) << 12,
        };
        let size = match self.below(20) {
            0 => 0,
            1 => self.below(9000),
            2 => edge(self, 1 << 43),
            _ => (1 + self.below(3)) << 12,
        };
        let hva = if self.one_in(20) { edge(self, 1 << 47) } else { self.below(nr_ids) << 12 };
        let as_id = 2 * self.one_in(40) as u32 + self.one_in(3) as u32;
        let id = if self.one_in(40) { ID_ANY as u32 } else { self.below(nr_ids + 1) as u32 };
        let flags = if self.one_in(10) { self.below(9) as u32 } else { self.below(2) as u32 };
        Region {
            slot: id | as_id << 16,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
            guest_memfd: self.below(3) as u32,
            ..Region::default()
        }
    }
}

/// All that a reader can see of two address spaces.
fn seen(reader: &Reader) -> impl PartialEq + std::fmt::Debug {
    let section = reader.lock();
    let space = |as_id| {
        let mut regions = vec![Region::default(); section.count(as_id) as usize];
        section.regions(as_id, &mut regions);
        let by_hva: Vec<_> = section.iter_hva(as_id, Hva(0), Hva(u64::MAX)).map(|slot| slot.id).collect();
        (section.generation(as_id), section.npages(as_id), regions, by_hva)
    };
    [space(0), space(1)]
}

fn update(table: &Memslots, op: u64, region: &Region) -> Result<u16, Errno> {
    let (as_id, id) = (region.as_id(), region.id());
    let done = match op {
        0..4 => table.set_region(region, null_mut()),
        4 | 5 => return table.create(region, null_mut()),
        6 | 7 => table.delete(as_id, id),
        8 => table.move_slot(as_id, id, Gpa(region.guest_phys_addr)),
        _ => table.set_flags(as_id, id, region.flags),
    };
    done.map(|()| 0)
}

#[test]
fn a_single_update_is_a_transaction_of_one() {
    for (seed, nr_ids) in [(1, 5), (2, 30), (3, 200), (4, 900)] {
        let plain = || Config { nr_address_spaces: 2, max_slots: nr_ids as u32, ..Config::default() };
        let tables = [
            plain(),
            Config { hooks: Some(Box::new(AgreesToAll)), ..plain() },
            Config { sync: true, ..plain() },
            Config { max_garbage: 20_000, ..plain() },
        ]
        .map(|config| Memslots::new(config).unwrap());
        let mut traces = tables.each_ref().map(|table| {
            // SAFETY: a name, and a file descriptor that is the file's from here on.
            let file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"trace".as_ptr(), 0)) };
            table.trace_start(file.as_raw_fd()).unwrap();
            file
        });
        let readers = tables.each_ref().map(|table| table.reader().unwrap());
        let mut numbers = Numbers(seed);
        for step in 0..2000 {
            let (op, region) = (numbers.below(10), numbers.region(nr_ids));
            let [first, others @ ..] =
                tables.each_ref().map(|table| (update(table, op, &region), table.stats().publications));
            others.into_iter().for_each(|other| assert_eq!(other, first, "step {step}: {op} {region:?}"));
            if step % 10 == 0 {
                let [first, others @ ..] = readers.each_ref().map(seen);
                others.iter().for_each(|other| assert_eq!(*other, first, "step {step}"));
            }
        }
        let [first, others @ ..] = traces.each_mut().map(|file| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(first.lines().count(), 2000);
        assert!(others.iter().all(|other| *other == first), "the traces");
    }
}

#[test]
fn a_list_is_its_steps() {
    let (mut made, mut refused) = (0, 0);
    for seed in 1..400 {
        let mut numbers = Numbers(seed * 7919);
        let n = 1 + numbers.below([3, 20, 57, 58, 300, 1700][seed as usize % 6]);
        let tables = [(); 2].map(|()| Memslots::new(Config { nr_address_spaces: 2, ..Config::default() }).unwrap());
        let readers = tables.each_ref().map(|table| table.reader().unwrap());
        let mut places: Vec<u64> = (0..n).collect();
        (0..n as usize).for_each(|index| places.swap(index, numbers.below(n) as usize));
        let mut list: Vec<_> = (0..n)
            .zip(&places)
            .map(|(id, place)| Region {
                slot: id as u32,
                guest_phys_addr: place << 15,
                memory_size: (1 + place % 8) << 12,
                userspace_addr: (place * 31 % 50) << 12,
                ..Region::default()
            })
            .collect();
        if numbers.one_in(3) {
            let wrong = &mut list[numbers.below(n) as usize];
            match numbers.below(6) {
                0 => wrong.memory_size += 1 << 15,
                1 => wrong.slot = 0,
                2 => wrong.flags = 64,
                3 => wrong.slot |= 1 << 16,
                4 => wrong.memory_size = 0,
                _ => wrong.guest_phys_addr = 1 << 52,
            }
        }
        let answer = tables[0].apply(&list, None);
        let mut txn = tables[1].begin().unwrap();
        let step =
            |(index, region)| txn.set_region(region, null_mut()).map_err(|errno| Refused { errno, at: Some(index) });
        let staged = list.iter().enumerate().try_for_each(step);
        assert_eq!(answer, staged.and_then(|()| txn.commit().map_err(|errno| Refused { errno, at: None })));
        *(if answer.is_ok() { &mut made } else { &mut refused }) += 1;
        // And so it goes on: what was built is as good a tree to change as what has grown.
        for _ in 0..60 {
            let (op, region) = (numbers.below(10), numbers.region(n));
            let [one, other] = tables.each_ref().map(|table| update(table, op, &region));
            assert_eq!(one, other);
        }
        let [one, other] = readers.each_ref().map(seen);
        assert_eq!(one, other, "seed {seed}");
    }
    assert!(made > 100 && refused > 50, "{made} made, {refused} refused");
}

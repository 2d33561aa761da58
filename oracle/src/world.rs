// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chooses operations: a world small enough that collisions are common, with every kind of nonsense in it.
//!
//! One grammar for all drivers. Where the choices come from is behind [`Choose`]: a seed, the bytes of a fuzzer,
//! a property test's generator. Looks at a model as it stands, so that some of the operations are about slots that
//! are there; does not know what operations do.

use crate::model::{Limits, Model, Slot};
use crate::op::{Op, Request, GUEST_MEMFD, ID_ANY, LOG_DIRTY_PAGES, READONLY};

/// Stands for the VM's guest_memfd where there is one.
pub const MEMFD: i32 = 3;
/// Pages of the guest_memfd that belong to one id.
pub const MEMFD_ROOM: u64 = 16;

/// A source of choices.
pub trait Choose {
    /// A number below `n`; `n` is not 0.
    fn below(&mut self, n: u64) -> u64;

    /// True once in `n`.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == n - 1
    }

    /// One of several.
    fn one<T: Copy>(&mut self, of: &[T]) -> T
    where
        Self: Sized,
    {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Choices from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Seed(pub u64);

impl Seed {
    /// The next 64 bits; seeds for others, mostly.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Choose for Seed {
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }
}

/// How large a world is and what happens in it.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Slot ids 0 to here are the common ones.
    pub ids: u16,
    /// Gfns 0 to here are the common ones.
    pub pages: u64,
    /// The VM that the limits are tried of.
    pub limits: Limits,
    /// Whether there are transactions, and so split, merge and resize.
    pub transactions: bool,
    /// Whether an operation may be other than the one that the kernel has.
    pub more_than_set: bool,
}

impl World {
    /// A dozen slots on 64 pages.
    pub fn small(limits: Limits) -> World {
        World { ids: 12, pages: 64, limits, transactions: false, more_than_set: true }
    }

    /// Enough slots for a tree of several levels.
    pub fn wide(limits: Limits) -> World {
        World { ids: 3000, pages: 24_000, ..World::small(limits) }
    }

    /// The same with transactions.
    pub fn with_transactions(self) -> World {
        World { transactions: true, ..self }
    }

    /// The same with nothing but what `KVM_SET_USER_MEMORY_REGION2` can say.
    pub fn set_only(self) -> World {
        World { more_than_set: false, ..self }
    }

    /// `n` operations after those in `ops`, each chosen with a view of what those before it have made.
    pub fn go_on(&self, ops: &mut Vec<Op>, choose: &mut impl Choose, n: usize) {
        let mut model = Model::new(self.limits);
        for op in ops.iter() {
            let _ = model.apply(op, 0);
        }
        for _ in 0..n {
            let op = self.op(choose, &model);
            let _ = model.apply(&op, 0);
            ops.push(op);
        }
    }

    /// `n` operations from an empty table on.
    pub fn ops(&self, choose: &mut impl Choose, n: usize) -> Vec<Op> {
        let mut ops = Vec::new();
        self.go_on(&mut ops, choose, n);
        ops
    }

    /// The next operation on a table like this.
    pub fn op(&self, choose: &mut impl Choose, model: &Model) -> Op {
        let open = model.in_transaction();
        if self.transactions && choose.once_in(if open { 9 } else { 5 }) {
            return bracket(choose, open);
        }
        let known = choose.once_in(3).then(|| self.known(choose, model)).flatten();
        if open && choose.once_in(3) {
            return match known {
                Some(slot) => self.reshape_known(choose, &slot, model),
                None => self.reshape(choose),
            };
        }
        if self.more_than_set && choose.once_in(3) {
            return self.single(choose, known);
        }
        let request = match known {
            Some(slot) => self.nearly(choose, slot.request(self.limits.page_shift)),
            None => self.request(choose),
        };
        match choose.below(8) {
            0 => Op::Set(Request { size: 0, ..request }),
            _ => Op::Set(request),
        }
    }

    /// A slot that is there.
    fn known(&self, choose: &mut impl Choose, model: &Model) -> Option<Slot> {
        let slots = &model.current()[choose.below(self.limits.nr_address_spaces.into()) as usize].slots;
        (!slots.is_empty()).then(|| choose.one(slots))
    }

    /// A slot's own request, but for one thing.
    fn nearly(&self, choose: &mut impl Choose, mut request: Request) -> Request {
        match choose.below(8) {
            0 => request.size = self.size(choose, request.id),
            1 => request.hva = self.hva(choose, request.size),
            2 => request.id = self.id(choose),
            3 => request.flags ^= choose.one(&[LOG_DIRTY_PAGES, READONLY, GUEST_MEMFD]),
            4 => {}
            _ => request.gpa = self.gpa(choose),
        }
        request
    }

    fn reshape_known(&self, choose: &mut impl Choose, slot: &Slot, model: &Model) -> Op {
        let Slot { as_id, id, base_gfn, npages, .. } = *slot;
        let above = model.current()[usize::from(as_id)].by_gfn(base_gfn + npages);
        match (choose.below(4), above) {
            (0 | 1, Some(upper)) => Op::Merge { as_id, lower: id, upper: upper.id },
            (2, _) => Op::Resize { as_id, id, size: self.size(choose, id) },
            _ => {
                let cut = base_gfn + choose.below(npages.min(16) + 1);
                let new_id = if choose.once_in(3) { ID_ANY } else { self.id(choose) };
                Op::Split { as_id, id, at: cut << self.limits.page_shift, new_id }
            }
        }
    }

    /// Creates for the first `n` ids, spread over the world: a table to start from.
    pub fn fill(&self, n: u16) -> Vec<Op> {
        let room = (self.pages / u64::from(self.ids)).max(1);
        let create = |id: u16| {
            let usual = self.usual(id);
            let size = usual.size.min(room << self.limits.page_shift);
            Op::Create(Request { gpa: (u64::from(id) * room) << self.limits.page_shift, size, ..usual })
        };
        (0..n.min(self.ids)).map(create).collect()
    }

    fn single(&self, choose: &mut impl Choose, known: Option<Slot>) -> Op {
        let (as_id, id) = match known {
            Some(slot) => (slot.as_id, slot.id),
            None => (self.as_id(choose), self.id(choose)),
        };
        match choose.below(8) {
            0 => Op::Create(self.request(choose)),
            1 => {
                // Without memfd: which part of the file is free depends on the id.
                let request = self.request(choose);
                Op::Create(Request { id: ID_ANY, flags: request.flags & !GUEST_MEMFD, memfd: -1, ..request })
            }
            2 | 3 => Op::Delete { as_id, id },
            4 | 5 => Op::Move { as_id, id, gpa: self.gpa(choose) },
            _ => Op::Flags { as_id, id, flags: self.flags(choose, id) },
        }
    }

    fn reshape(&self, choose: &mut impl Choose) -> Op {
        let (as_id, id, other) = (self.as_id(choose), self.id(choose), self.id(choose));
        match choose.below(3) {
            0 => {
                let new_id = if choose.once_in(3) { ID_ANY } else { other };
                Op::Split { as_id, id, at: self.gpa(choose), new_id }
            }
            1 => Op::Merge { as_id, lower: id, upper: other },
            _ => Op::Resize { as_id, id, size: self.size(choose, id) },
        }
    }

    fn request(&self, choose: &mut impl Choose) -> Request {
        let id = self.id(choose);
        let mut request = Request { as_id: self.as_id(choose), gpa: self.gpa(choose), ..self.usual(id) };
        request.flags = self.flags(choose, id);
        request.memfd = if request.flags & GUEST_MEMFD != 0 && !choose.once_in(8) { MEMFD } else { -1 };
        match choose.below(24) {
            0 => request.size = self.size(choose, id),
            1 => request.hva = self.hva(choose, request.size),
            2 => request.hva = self.usual(0).hva + request.gpa % (1 << 40), // neighbours continue each other
            3 => request.offset = choose.one(&[0x800, u64::MAX - 0xfff]),
            _ => {}
        }
        request
    }

    /// What an id is most often created as, so that setting it again means something.
    fn usual(&self, id: u16) -> Request {
        let page = 1 << self.limits.page_shift;
        let n = u64::from(id);
        let mut flags = if n % 5 == 4 { READONLY } else { 0 };
        if n % 11 == 6 && self.limits.supported_flags & GUEST_MEMFD != 0 {
            flags = GUEST_MEMFD;
        }
        Request {
            as_id: 0,
            id,
            flags,
            gpa: 0,
            size: [1, 2, 3, 4, 6, 8, 12][(n % 7) as usize] * page,
            hva: 0x1000_0000 + n * 4 * page,
            memfd: if flags & GUEST_MEMFD != 0 { MEMFD } else { -1 },
            offset: n * MEMFD_ROOM * page, // no two ids share a page of the file
        }
    }

    fn as_id(&self, choose: &mut impl Choose) -> u16 {
        if choose.once_in(64) {
            return choose.one(&[self.limits.nr_address_spaces, 2, 0xffff]);
        }
        choose.below(self.limits.nr_address_spaces.into()) as u16
    }

    fn id(&self, choose: &mut impl Choose) -> u16 {
        if choose.once_in(48) {
            let last = (self.limits.max_slots - 1) as u16;
            return choose.one(&[last, last.wrapping_add(1), 0x7fff, 0xffff]);
        }
        choose.below(self.ids.into()) as u16
    }

    fn gpa(&self, choose: &mut impl Choose) -> u64 {
        let gpa = choose.below(self.pages) << self.limits.page_shift;
        if !choose.once_in(24) {
            return gpa;
        }
        let page = 1 << self.limits.page_shift;
        let limit = 1u64 << self.limits.gpa_bits;
        choose.one(&[gpa | 0x800, gpa + 1, limit - page, limit - 4 * page, limit, u64::MAX - 0xfff, u64::MAX - 0x1fff])
    }

    fn size(&self, choose: &mut impl Choose, id: u16) -> u64 {
        let page = 1 << self.limits.page_shift;
        let pages = (1 + choose.below(16)) << self.limits.page_shift;
        if choose.once_in(2) {
            return pages;
        }
        let usual = self.usual(id).size;
        let huge = [((1 << 31) - 1) * page, (1 << 31) * page, 1 << 52, u64::MAX - 0xfff, u64::MAX];
        match choose.below(3) {
            0 => choose.one(&[usual - page, usual + page, usual]),
            1 => choose.one(&[0, 0x800, 0x1800, 1]),
            _ => choose.one(&huge),
        }
    }

    fn hva(&self, choose: &mut impl Choose, size: u64) -> u64 {
        let limit = self.limits.hva_limit;
        choose.one(&[
            0,
            0x1000,
            0x800,
            limit.wrapping_sub(size),
            limit.wrapping_sub(size).wrapping_add(0x1000),
            limit,
            1 << 47,
            0xffff_8880_0000_0000,
            u64::MAX - 0xfff,
        ])
    }

    fn flags(&self, choose: &mut impl Choose, id: u16) -> u32 {
        let usual = self.usual(id).flags;
        match choose.below(32) {
            0 => choose.one(&[GUEST_MEMFD, 8, 1 << 16, 1 << 31, u32::MAX]),
            1 => usual ^ READONLY,
            2 => usual ^ GUEST_MEMFD,
            3 => GUEST_MEMFD | choose.one(&[LOG_DIRTY_PAGES, READONLY]),
            n if n % 3 == 0 && usual & GUEST_MEMFD == 0 => usual | LOG_DIRTY_PAGES,
            _ => usual,
        }
    }
}

fn bracket(choose: &mut impl Choose, open: bool) -> Op {
    if !open || choose.once_in(16) {
        return Op::Begin;
    }
    match choose.below(5) {
        0 => Op::Abort,
        _ => Op::Commit,
    }
}

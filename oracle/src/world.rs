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

/// How often what happens, each against the sum of those that can happen.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// The one operation that the kernel has.
    pub set: u64,
    /// The others that a table has, alone or in a transaction.
    pub create: u64,
    /// As above.
    pub delete: u64,
    /// As above.
    pub move_slot: u64,
    /// As above.
    pub flags: u64,
    /// A create over frames that are free, with the memory that they had, if they had any.
    pub refill: u64,
    /// Only while a transaction is open, as are the next two.
    pub split: u64,
    /// As above.
    pub merge: u64,
    /// As above.
    pub resize: u64,
    /// While none is open; 0: there are no transactions.
    pub begin: u64,
    /// While one is open.
    pub commit: u64,
    /// While one is open.
    pub abort: u64,
    /// A reader's section begins or ends.
    pub section: u64,
    /// Of 12 operations so many are about a slot that is there.
    pub known: u64,
    /// Of 12 regions so many have the memory that belongs to their frames: neighbours continue each other.
    pub at_home: u64,
    /// Once in so many the size is nonsense.
    pub odd_size: u64,
}

/// Anything about anything, mostly the kernel's own operation.
const MIXED: Weights = Weights {
    set: 400,
    create: 50,
    delete: 50,
    move_slot: 50,
    flags: 50,
    refill: 0,
    split: 100,
    merge: 100,
    resize: 100,
    begin: 0,
    commit: 90,
    abort: 22,
    section: 0,
    known: 4,
    at_home: 1,
    odd_size: 2,
};

/// What befalls a slot befalls it again, and its neighbours with it.
const CROWDED: Weights = Weights {
    set: 30,
    create: 30,
    delete: 80,
    move_slot: 70,
    flags: 50,
    refill: 150,
    split: 140,
    merge: 140,
    resize: 100,
    begin: 400,
    commit: 90,
    abort: 25,
    section: 0,
    known: 11,
    at_home: 10,
    odd_size: 24,
};

/// What an operation does.
#[derive(Clone, Copy, Debug)]
enum Verb {
    Set,
    Create,
    Delete,
    Move,
    Flags,
    Refill,
    Split,
    Merge,
    Resize,
    Begin,
    Commit,
    Abort,
    Section,
}

/// How large a world is and what happens in it.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Slot ids 0 to here are the common ones.
    pub ids: u16,
    /// Gfns 0 to here are the common ones.
    pub pages: u64,
    /// Pages of the largest sound slot.
    pub largest: u64,
    /// The VM that the limits are tried of.
    pub limits: Limits,
    /// What happens how often.
    pub weights: Weights,
    /// Readers that have sections.
    pub readers: u16,
}

impl World {
    /// A dozen slots on 64 pages.
    pub fn small(limits: Limits) -> World {
        World { ids: 12, pages: 64, largest: 16, limits, weights: MIXED, readers: 0 }
    }

    /// Enough slots for a tree of several levels.
    pub fn wide(limits: Limits) -> World {
        World { ids: 3000, pages: 24_000, ..World::small(limits) }
    }

    /// A handful of slots that lie next to each other, and transactions in which they are split, merged, resized,
    /// moved, ended and made again over each other's frames, so that a slot goes through several of these.
    pub fn crowded(limits: Limits) -> World {
        World { ids: 7, pages: 28, largest: 7, limits, weights: CROWDED, readers: 0 }
    }

    /// The same with transactions.
    pub fn with_transactions(self) -> World {
        World { weights: Weights { begin: 150, ..self.weights }, ..self }
    }

    /// The same with sections of so many readers.
    pub fn with_readers(self, readers: u16) -> World {
        World { weights: Weights { section: 100, ..self.weights }, readers, ..self }
    }

    /// The same with nothing but what `KVM_SET_USER_MEMORY_REGION2` can say.
    pub fn set_only(self) -> World {
        World { weights: Weights { create: 0, delete: 0, move_slot: 0, flags: 0, refill: 0, ..self.weights }, ..self }
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
        let known = choose.below(12) < self.weights.known;
        let known = known.then(|| self.known(choose, model)).flatten();
        match self.verb(choose, model.in_transaction()) {
            Verb::Set => Op::Set(self.set(choose, known)),
            Verb::Create => Op::Create(self.create(choose)),
            Verb::Refill => Op::Create(self.refill(choose, model)),
            Verb::Split => self.split(choose, known, model),
            Verb::Merge => self.merge(choose, known, model),
            Verb::Begin => Op::Begin,
            Verb::Commit => Op::Commit,
            Verb::Abort => Op::Abort,
            Verb::Section => self.section(choose),
            verb => self.named(choose, verb, known, model),
        }
    }

    fn verb(&self, choose: &mut impl Choose, open: bool) -> Verb {
        let w = &self.weights;
        let in_transaction = |weight: u64| if open { weight } else { 0 };
        let verbs = [
            (w.set, Verb::Set),
            (w.create, Verb::Create),
            (w.delete, Verb::Delete),
            (w.move_slot, Verb::Move),
            (w.flags, Verb::Flags),
            (w.refill, Verb::Refill),
            (in_transaction(w.split), Verb::Split),
            (in_transaction(w.merge), Verb::Merge),
            (in_transaction(w.resize), Verb::Resize),
            (if open { w.begin.div_ceil(32) } else { w.begin }, Verb::Begin), // one in another is refused
            (in_transaction(w.commit), Verb::Commit),
            (in_transaction(w.abort), Verb::Abort),
            (w.section, Verb::Section),
        ];
        let mut left = choose.below(verbs.iter().map(|(weight, _)| weight).sum());
        let chosen = verbs.into_iter().find(|(weight, _)| {
            let chosen = left < *weight;
            left = left.saturating_sub(*weight);
            chosen
        });
        chosen.expect("the sum is that of the weights").1
    }

    fn section(&self, choose: &mut impl Choose) -> Op {
        let reader = choose.below(self.readers.max(1).into()) as u16;
        match choose.below(2) {
            0 => Op::Lock { reader },
            _ => Op::Unlock { reader },
        }
    }

    fn set(&self, choose: &mut impl Choose, known: Option<Slot>) -> Request {
        let request = match known {
            Some(slot) => self.nearly(choose, slot.request(self.limits.page_shift)),
            None => self.request(choose),
        };
        match choose.below(8) {
            0 => Request { size: 0, ..request },
            _ => request,
        }
    }

    fn create(&self, choose: &mut impl Choose) -> Request {
        let request = self.request(choose);
        if choose.once_in(2) {
            return request;
        }
        // Without memfd: which part of the file is free depends on the id.
        Request { id: ID_ANY, flags: request.flags & !GUEST_MEMFD, memfd: -1, ..request }
    }

    /// One of those that name a slot and at most one other thing: often what it was before the transaction.
    fn named(&self, choose: &mut impl Choose, verb: Verb, known: Option<Slot>, model: &Model) -> Op {
        let (as_id, id) = match known {
            Some(slot) => (slot.as_id, slot.id),
            None => (self.as_id(choose), self.id(choose)),
        };
        let before = model.spaces().get(usize::from(as_id)).and_then(|space| space.by_id(id));
        let before = before.filter(|_| choose.once_in(4)).map(|slot| slot.request(self.limits.page_shift));
        match verb {
            Verb::Delete => Op::Delete { as_id, id },
            Verb::Move => Op::Move { as_id, id, gpa: before.map_or_else(|| self.place(choose, known), |was| was.gpa) },
            Verb::Resize => {
                Op::Resize { as_id, id, size: before.map_or_else(|| self.size(choose, id), |was| was.size) }
            }
            _ => {
                let now = known.filter(|_| choose.once_in(2)).map(|slot| slot.flags ^ LOG_DIRTY_PAGES);
                let flags = before.map(|was| was.flags).or(now).unwrap_or_else(|| self.flags(choose, id));
                Op::Flags { as_id, id, flags }
            }
        }
    }

    /// A slot that is there.
    fn known(&self, choose: &mut impl Choose, model: &Model) -> Option<Slot> {
        let spaces = model.current().iter().map(|space| &space.slots).filter(|slots| !slots.is_empty());
        let nr_spaces = spaces.clone().count() as u64;
        let slots = spaces.clone().nth(choose.below(nr_spaces.max(1)) as usize)?;
        Some(choose.one(slots))
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

    fn split(&self, choose: &mut impl Choose, known: Option<Slot>, model: &Model) -> Op {
        let Some(Slot { as_id, id, base_gfn, npages, .. }) = known else {
            let (as_id, id, at) = (self.as_id(choose), self.id(choose), self.gpa(choose));
            return Op::Split { as_id, id, at, new_id: self.new_id(choose, as_id, model) };
        };
        let cut = match npages {
            2.. if !choose.once_in(8) => base_gfn + 1 + choose.below((npages - 1).min(16)),
            _ => base_gfn + choose.below(npages.min(16) + 1),
        };
        Op::Split { as_id, id, at: cut << self.limits.page_shift, new_id: self.new_id(choose, as_id, model) }
    }

    fn merge(&self, choose: &mut impl Choose, known: Option<Slot>, model: &Model) -> Op {
        let of = |slot: &Slot| &model.current()[usize::from(slot.as_id)];
        let pair = known.map(|known| match of(&known).by_gfn(known.end_gfn()) {
            None => (of(&known).by_gfn(known.base_gfn.wrapping_sub(1)).copied(), Some(known)),
            above => (Some(known), above.copied()),
        });
        match pair {
            Some((Some(lower), Some(upper))) => Op::Merge { as_id: lower.as_id, lower: lower.id, upper: upper.id },
            _ => Op::Merge { as_id: self.as_id(choose), lower: self.id(choose), upper: self.id(choose) },
        }
    }

    /// An id for a piece: any, none in particular, or one that is free, be it only since the transaction began.
    fn new_id(&self, choose: &mut impl Choose, as_id: u16, model: &Model) -> u16 {
        let id = self.id(choose);
        match (choose.below(3), model.current().get(usize::from(as_id))) {
            (0, _) => ID_ANY,
            (1, Some(space)) => (id..=id.saturating_add(self.ids)).find(|id| space.by_id(*id).is_none()).unwrap_or(id),
            _ => id,
        }
    }

    /// A slot over frames that are free: with the memory, and often the flags, of the slot that was there before the
    /// transaction, or else with the memory that belongs to them.
    fn refill(&self, choose: &mut impl Choose, model: &Model) -> Request {
        let as_id = choose.below(self.limits.nr_address_spaces.into()) as u16;
        let now = &model.current()[usize::from(as_id)];
        let free = |gfn: &u64| now.by_gfn(*gfn).is_none();
        let Some(start) = (choose.below(self.pages)..self.pages).find(free) else { return self.request(choose) };
        let most = 1 + choose.below(self.largest);
        let npages = (start..start + most).take_while(free).count() as u64;
        let was = model.space(as_id).by_gfn(start).filter(|_| !choose.once_in(5));
        let memory = was.map(|was| was.hva_of(start, self.limits.page_shift));
        let hva = memory.unwrap_or_else(|| self.home(choose, start));
        let toggled = choose.one(&[0, 0, 0, 0, 0, READONLY, LOG_DIRTY_PAGES, GUEST_MEMFD]);
        let flags = (was.map_or(0, |was| was.flags) ^ toggled) & self.limits.supported_flags;
        let id = if choose.once_in(3) { ID_ANY } else { self.new_id(choose, as_id, model) };
        let size = npages << self.limits.page_shift;
        let plain = Request { as_id, id, gpa: start << self.limits.page_shift, size, hva, flags, memfd: -1, offset: 0 };
        if flags & GUEST_MEMFD == 0 {
            return plain;
        }
        let id = if id == ID_ANY { self.id(choose) } else { id };
        Request { id, flags: GUEST_MEMFD, memfd: MEMFD, offset: self.usual(id).offset, ..plain }
    }

    /// The memory that belongs to a frame, in all address spaces; now and then another frame's.
    fn home(&self, choose: &mut impl Choose, gfn: u64) -> u64 {
        self.home_of(if choose.once_in(6) { choose.below(self.pages) } else { gfn })
    }

    fn home_of(&self, gfn: u64) -> u64 {
        self.usual(0).hva + (gfn << self.limits.page_shift)
    }

    /// Where slots fill the world and have the memory of their frames.
    fn is_crowded(&self) -> bool {
        self.weights.at_home > 6
    }

    /// Somewhere else; in a crowded world often where a slot's memory belongs, next to what continues it.
    fn place(&self, choose: &mut impl Choose, known: Option<Slot>) -> u64 {
        let ahead = known.and_then(|slot| slot.hva.checked_sub(self.home_of(0)));
        match ahead.filter(|gpa| *gpa < self.pages << self.limits.page_shift) {
            Some(gpa) if self.is_crowded() && choose.once_in(3) => gpa,
            _ => self.gpa(choose),
        }
    }

    /// Creates for the first `n` ids, spread over the world: a table to start from.
    pub fn fill(&self, n: u16) -> Vec<Op> {
        let room = (self.pages / u64::from(self.ids)).max(1);
        let shift = self.limits.page_shift;
        let create = |id: u16| {
            let usual = self.usual(id);
            if !self.is_crowded() {
                let size = usual.size.min(room << shift);
                return Op::Create(Request { gpa: (u64::from(id) * room) << shift, size, ..usual });
            }
            let (as_id, place) = (id % self.limits.nr_address_spaces, u64::from(id / self.limits.nr_address_spaces));
            let (gpa, size, hva) = ((place * room) << shift, room << shift, self.home_of(place * room));
            Op::Create(Request { as_id, gpa, size, hva, ..usual })
        };
        (0..n.min(self.ids)).map(create).collect()
    }

    fn request(&self, choose: &mut impl Choose) -> Request {
        let id = self.id(choose);
        let mut request = Request { as_id: self.as_id(choose), gpa: self.gpa(choose), ..self.usual(id) };
        request.flags = self.flags(choose, id);
        request.memfd = if request.flags & GUEST_MEMFD != 0 && !choose.once_in(8) { MEMFD } else { -1 };
        if choose.below(12) < self.weights.at_home {
            request.hva = self.home(choose, (request.gpa >> self.limits.page_shift) % (1 << 28));
        }
        match choose.below(24) {
            0 => request.size = self.size(choose, id),
            1 => request.hva = self.hva(choose, request.size),
            2 => request.offset = choose.one(&[0x800, u64::MAX - 0xfff]),
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
            size: [1, 2, 3, 4, 6, 8, 12][(n % 7) as usize].min(self.largest) * page,
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
        let pages = (1 + choose.below(self.largest)) << self.limits.page_shift;
        if !choose.once_in(self.weights.odd_size) {
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

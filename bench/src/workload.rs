// SPDX-License-Identifier: MIT OR Apache-2.0

//! The inputs, the same for all peers: layouts of slots, queries with the answers they must get,
//! sequences of changes. From a fixed seed. Knows no peer.

use crate::peer::{Change, Query, Slot, NO_ANSWER, PAGE_SHIFT};
use fastrand::Rng;
use std::collections::BTreeMap;

/// The tests of the 2021 series map 512 MiB, however many slots that is.
pub const TOTAL_PAGES: u64 = 131_072;
const FIRST_GFN: u64 = 0x10_0000;
const FIRST_HVA: u64 = 0x1000_0000_0000;
const LOG_DIRTY_PAGES: u32 = 1;
const SEED: u64 = 0x6d65_6d73_6c6f_7473;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Random sizes, holes between, hvas and ids in another order than gfns.
    Holes,
    /// Equal sizes without a gap, all orders the same, as `memslot_perf_test` lays them out.
    Adjacent,
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Shape::Holes => "holes",
            Shape::Adjacent => "adjacent",
        }
    }
}

pub struct Layout {
    pub shape: Shape,
    /// In order of creation: a slot's index is its id.
    pub slots: Vec<Slot>,
    /// Ids in another random order, for deletes.
    pub shuffled: Vec<Slot>,
    by_gfn: BTreeMap<u64, Slot>,
    by_hva: BTreeMap<u64, Slot>,
    /// Gaps between slots: first gfn, pages.
    holes: Vec<(u64, u64)>,
}

/// How queries follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any slot, any page of it.
    Random,
    /// A thousand in a row within a slot, then the next slot.
    LastUsed,
    /// Nine of ten in the slot of the one before.
    Same90,
    /// Between slots.
    Hole,
    /// Page by page through everything.
    Sequential,
    /// The same in steps of 2 MiB.
    Steps2M,
}

impl Layout {
    pub fn new(shape: Shape, n: usize) -> Self {
        let mut rng = Rng::with_seed(SEED ^ n as u64);
        let average = (TOTAL_PAGES / n as u64).max(1);
        let mut slots = Vec::with_capacity(n);
        let mut holes = Vec::new();
        let mut gfn = FIRST_GFN;
        for _ in 0..n {
            let npages = match shape {
                Shape::Holes => rng.u64(1..average * 2),
                Shape::Adjacent => average,
            };
            slots.push(Slot { gfn, npages, hva: 0, id: 0, flags: 0 });
            gfn += npages;
            if shape == Shape::Holes {
                let hole = rng.u64(1..=average);
                holes.push((gfn, hole));
                gfn += hole;
            }
        }
        if shape == Shape::Holes {
            rng.shuffle(&mut slots);
        }
        place_in_host(&mut slots, shape, &mut rng);
        let mut shuffled = slots.clone();
        rng.shuffle(&mut shuffled);
        let by_gfn = slots.iter().map(|slot| (slot.gfn, *slot)).collect();
        let by_hva = slots.iter().map(|slot| (slot.hva, *slot)).collect();
        Self { shape, slots, shuffled, by_gfn, by_hva, holes }
    }

    pub fn n(&self) -> usize {
        self.slots.len()
    }

    /// `count` queries of the kind; None where the layout has no such thing.
    pub fn queries(&self, query: Query, order: Order, count: usize) -> Option<Vec<u64>> {
        let mut rng = Rng::with_seed(SEED ^ 0xabcd);
        let pages = self.pages(order, count, &mut rng)?;
        let of_page = |(slot, gfn): (Slot, u64)| {
            let hva = slot.hva + ((gfn - slot.gfn) << PAGE_SHIFT);
            match query {
                Query::Id => u64::from(slot.id),
                Query::HvaGfn | Query::Hva4K => hva,
                Query::Hva2M => hva & !0x1f_ffff,
                _ => gfn,
            }
        };
        if order == Order::Hole {
            return Some(pages.into_iter().map(|(_, gfn)| gfn).collect());
        }
        Some(pages.into_iter().map(of_page).collect())
    }

    /// Slots and pages in them; in a hole the slot means nothing.
    fn pages(&self, order: Order, count: usize, rng: &mut Rng) -> Option<Vec<(Slot, u64)>> {
        let mut slot = self.slots[0];
        let in_order = self.by_gfn.values().cycle();
        match order {
            Order::Random => Some(times(count, || self.any_page(rng))),
            Order::Same90 => Some(times(count, || {
                if rng.u32(..10) == 0 {
                    slot = self.slots[rng.usize(..self.n())];
                }
                (slot, slot.gfn + rng.u64(..slot.npages))
            })),
            Order::LastUsed => {
                let in_a_row = |slot: &Slot| {
                    let slot = *slot;
                    (0..1024).map(move |i| (slot, slot.gfn + i % slot.npages))
                };
                Some(in_order.flat_map(in_a_row).take(count).collect())
            }
            Order::Sequential | Order::Steps2M => {
                let all = |slot: &Slot| {
                    let slot = *slot;
                    (slot.gfn..slot.gfn + slot.npages).map(move |gfn| (slot, gfn))
                };
                let step = if order == Order::Steps2M { 512 } else { 1 };
                let pages = in_order.flat_map(all);
                Some(pages.step_by(step).take(count).collect())
            }
            Order::Hole if self.holes.is_empty() => None,
            Order::Hole => Some(times(count, || {
                let (first, npages) = self.holes[rng.usize(..self.holes.len())];
                (slot, first + rng.u64(..npages))
            })),
        }
    }

    fn any_page(&self, rng: &mut Rng) -> (Slot, u64) {
        let slot = self.slots[rng.usize(..self.n())];
        (slot, slot.gfn + rng.u64(..slot.npages))
    }

    /// What every peer must answer.
    pub fn expected(&self, query: Query, asked: u64) -> u64 {
        match query {
            Query::Id => self.slots.get(asked as usize).map_or(NO_ANSWER, |slot| slot.gfn),
            Query::GfnHva => {
                self.slot_at(asked).map_or(NO_ANSWER, |slot| slot.hva + ((asked - slot.gfn) << PAGE_SHIFT))
            }
            Query::HvaGfn => {
                self.slot_at_hva(asked).map_or(NO_ANSWER, |slot| slot.gfn + ((asked - slot.hva) >> PAGE_SHIFT))
            }
            Query::Hva4K => self.sum_of_range(asked, asked + 0xfff),
            Query::Hva2M => self.sum_of_range(asked, asked + 0x1f_ffff),
            _ => self.slot_at(asked).map_or(NO_ANSWER, |slot| slot.gfn),
        }
    }

    fn slot_at(&self, gfn: u64) -> Option<&Slot> {
        let (_, slot) = self.by_gfn.range(..=gfn).next_back()?;
        (gfn - slot.gfn < slot.npages).then_some(slot)
    }

    fn slot_at_hva(&self, hva: u64) -> Option<&Slot> {
        let (_, slot) = self.by_hva.range(..=hva).next_back()?;
        (hva - slot.hva < slot.npages << PAGE_SHIFT).then_some(slot)
    }

    fn sum_of_range(&self, start: u64, last: u64) -> u64 {
        let below = self.slot_at_hva(start).filter(|slot| slot.hva < start).map(|slot| slot.gfn + 1);
        let inside = self.by_hva.range(start..=last).map(|(_, slot)| slot.gfn + 1);
        below.into_iter().chain(inside).sum()
    }

    /// A distance that takes any slot to where nothing else is.
    pub fn far(&self) -> u64 {
        let highest = self.by_gfn.keys().next_back().copied().unwrap_or(0);
        (highest + TOTAL_PAGES * 2).next_power_of_two()
    }

    /// Moves that end where they began, in cycles: up to `slots` slots to a far place, then back in
    /// another order. At least `count` of them; the length of a cycle is the second value.
    pub fn moves(&self, slots: usize, count: usize) -> (Vec<Change>, usize) {
        let far = self.far();
        self.cycles(slots, count, |slot| Change { new_gfn: slot.gfn + far, ..at_home(slot) })
    }

    /// Dirty logging on for up to `slots` slots, then off: in cycles, as `moves`.
    pub fn flag_changes(&self, slots: usize, count: usize) -> (Vec<Change>, usize) {
        self.cycles(slots, count, |slot| Change { flags: LOG_DIRTY_PAGES, ..at_home(slot) })
    }

    /// Moves, or flags changes, without an end.
    pub fn walk(&self, kind: Kind) -> Walk<'_> {
        let rng = Rng::with_seed(SEED ^ 0x1234);
        Walk { slots: &self.slots, kind, far: self.far(), away: vec![false; self.n()], rng }
    }

    fn cycles(&self, slots: usize, count: usize, there: impl Fn(&Slot) -> Change) -> (Vec<Change>, usize) {
        let mut rng = Rng::with_seed(SEED ^ 0x1234);
        let per_cycle = self.n().min(slots);
        let mut changes = Vec::new();
        while changes.len() < count {
            let mut chosen = rng.choose_multiple(self.slots.iter(), per_cycle);
            rng.shuffle(&mut chosen);
            changes.extend(chosen.iter().map(|slot| there(slot)));
            rng.shuffle(&mut chosen);
            changes.extend(chosen.iter().map(|slot| back(&there(slot))));
        }
        (changes, per_cycle * 2)
    }
}

/// What a walk changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Move,
    Flags,
}

/// Any slot, whenever it was last changed: to a far place (or to dirty logging) if it is at home, else
/// back. Not in permutations and not among a few: a table whose cost depends on how recently a slot was
/// changed, as a hash chain's does, would fare better or worse than with changes that come as they come.
pub struct Walk<'l> {
    slots: &'l [Slot],
    kind: Kind,
    far: u64,
    away: Vec<bool>,
    rng: Rng,
}

impl Walk<'_> {
    fn change(&mut self, index: usize) -> Change {
        let slot = self.slots[index];
        let there = match self.kind {
            Kind::Move => Change { new_gfn: slot.gfn + self.far, ..at_home(&slot) },
            Kind::Flags => Change { flags: LOG_DIRTY_PAGES, ..at_home(&slot) },
        };
        let was_away = self.away[index];
        self.away[index] = !was_away;
        if was_away {
            back(&there)
        } else {
            there
        }
    }

    /// What takes every slot home.
    pub fn home(&mut self) -> Vec<Change> {
        let mut gone: Vec<usize> = (0..self.slots.len()).filter(|&index| self.away[index]).collect();
        self.rng.shuffle(&mut gone);
        gone.into_iter().map(|index| self.change(index)).collect()
    }
}

impl Iterator for Walk<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let index = self.rng.usize(..self.slots.len());
        Some(self.change(index))
    }
}

fn at_home(slot: &Slot) -> Change {
    Change { old_gfn: slot.gfn, new_gfn: slot.gfn, npages: slot.npages, id: slot.id, flags: 0 }
}

fn times<T>(count: usize, make: impl FnMut() -> T) -> Vec<T> {
    std::iter::repeat_with(make).take(count).collect()
}

fn back(change: &Change) -> Change {
    Change { old_gfn: change.new_gfn, new_gfn: change.old_gfn, flags: 0, ..*change }
}

fn place_in_host(slots: &mut [Slot], shape: Shape, rng: &mut Rng) {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    if shape == Shape::Holes {
        rng.shuffle(&mut order);
    }
    let mut hva = FIRST_HVA;
    for index in order {
        slots[index].hva = hva;
        hva += slots[index].npages << PAGE_SHIFT;
        if shape == Shape::Holes {
            hva += rng.u64(0..4) << PAGE_SHIFT;
        }
    }
    for (id, slot) in slots.iter_mut().enumerate() {
        slot.id = id as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_end_where_they_began() {
        let layout = Layout::new(Shape::Holes, 100);
        let (changes, cycle) = layout.moves(64, 1000);
        let mut gfns: Vec<u64> = layout.slots.iter().map(|slot| slot.gfn).collect();
        for cycle in changes.chunks(cycle) {
            for change in cycle {
                assert_eq!(gfns[change.id as usize], change.old_gfn);
                gfns[change.id as usize] = change.new_gfn;
            }
            assert!(layout.slots.iter().all(|slot| gfns[slot.id as usize] == slot.gfn));
        }
    }

    #[test]
    fn a_walk_goes_everywhere_and_home() {
        let layout = Layout::new(Shape::Holes, 100);
        let mut walk = layout.walk(Kind::Move);
        let mut gfns: Vec<u64> = layout.slots.iter().map(|slot| slot.gfn).collect();
        let mut visits = [0; 100];
        let changes: Vec<Change> = walk.by_ref().take(10_001).collect();
        for change in changes.into_iter().chain(walk.home()) {
            assert_eq!(gfns[change.id as usize], change.old_gfn);
            gfns[change.id as usize] = change.new_gfn;
            visits[change.id as usize] += 1;
        }
        assert!(layout.slots.iter().all(|slot| gfns[slot.id as usize] == slot.gfn));
        assert!(visits.iter().all(|visits| (50..150).contains(visits)), "{visits:?}");
    }

    #[test]
    fn queries_hit_and_holes_do_not() {
        let layout = Layout::new(Shape::Holes, 30);
        for order in [Order::Random, Order::LastUsed, Order::Same90, Order::Sequential] {
            let queries = layout.queries(Query::Gfn, order, 5000).expect("queries");
            assert!(queries.iter().all(|&gfn| layout.expected(Query::Gfn, gfn) != NO_ANSWER));
        }
        let holes = layout.queries(Query::Gfn, Order::Hole, 5000).expect("holes");
        assert!(holes.iter().all(|&gfn| layout.expected(Query::Gfn, gfn) == NO_ANSWER));
        let adjacent = Layout::new(Shape::Adjacent, 30);
        assert!(adjacent.queries(Query::Gfn, Order::Hole, 1).is_none());
    }
}

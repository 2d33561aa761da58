// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plans: from any table to any other by calls that the kernel takes one after the other, as few as can be, and with
//! every gap said.

use std::collections::BTreeSet;

use memslots::{plan as between, Kind, Region, Step};
use memslots_oracle::library::region;
use memslots_oracle::model::{Limits, Model, Slot, Space};
use memslots_oracle::op::{Op, Request, GUEST_MEMFD};
use memslots_oracle::real::{kvm_for, Vm};
use memslots_oracle::run::{say, seed, size};
use memslots_oracle::world::{Seed, World};

const PLANS: u64 = 5_000;
const SHIFT: u32 = 12;
/// Frames are counted one by one here.
const LARGEST: u64 = 1 << 24;

fn regions(space: &Space) -> Vec<Region> {
    space.all().into_iter().map(|slot| region(&slot.request(SHIFT))).collect()
}

fn request(r: &Region) -> Request {
    Request {
        as_id: r.as_id().0,
        id: r.id().0,
        flags: r.flags,
        gpa: r.guest_phys_addr,
        size: r.memory_size,
        hva: r.userspace_addr,
        memfd: r.guest_memfd as i32,
        offset: r.guest_memfd_offset,
    }
}

fn frames(space: &Space) -> BTreeSet<u64> {
    space.slots.iter().flat_map(|slot| slot.base_gfn..slot.end_gfn()).collect()
}

/// What a slot is, but for when it was made.
fn content(space: &Space) -> Vec<Slot> {
    space.all().into_iter().map(|slot| Slot { birth: 0, opaque: 0, ..*slot }).collect()
}

/// Calls that no order can spare: a slot of another size or memory needs two.
fn fewest(from: &Space, to: &Space) -> usize {
    let gone = from.slots.iter().filter(|slot| to.by_id(slot.id).is_none()).count();
    let cost = |new: &Slot| match from.by_id(new.id) {
        None => 1,
        Some(old) if Slot { birth: 0, opaque: 0, ..*old } == Slot { birth: 0, opaque: 0, ..*new } => 0,
        Some(old) if movable(old, new) => 1,
        Some(_) => 2,
    };
    gone + to.slots.iter().map(cost).sum::<usize>()
}

fn movable(old: &Slot, new: &Slot) -> bool {
    let fixed = |slot: &Slot| (slot.hva, slot.npages, slot.flags & !1, slot.memfd, slot.offset);
    fixed(old) == fixed(new) && old.flags & 4 == 0
}

/// Slots that move, each to where others are, can go round in a cycle: one of each cycle must be out of the way for a
/// while, which costs a call more. How many at least: the smallest set of slots without which there is no cycle.
fn fewest_out_of_the_way(from: &Space, to: &Space) -> usize {
    let moves = |slot: &&Slot| from.by_id(slot.id).is_some_and(|old| movable(old, slot));
    let moving: Vec<&Slot> = to.slots.iter().filter(moves).collect();
    let waits = |a: &Slot, b: &Slot| {
        let old = from.by_id(b.id).expect("it moves");
        a.id != b.id && old.overlaps(a.base_gfn, a.end_gfn())
    };
    let waits_for = |a: &&Slot| -> u32 { (0..).zip(&moving).map(|(at, b)| u32::from(waits(a, b)) << at).sum() };
    let needs: Vec<u32> = moving.iter().map(waits_for).collect();
    let all = (1u32 << needs.len()) - 1;
    let enough = |out: &u32| is_without_circles(&needs, all & !out);
    (0..=all).filter(enough).map(u32::count_ones).min().expect("all of them are enough") as usize
}

/// Whether the slots `left` can go one after the other, each when none of those that it waits for is left.
fn is_without_circles(needs: &[u32], mut left: u32) -> bool {
    while left != 0 {
        let free = |at: &usize| left >> at & 1 == 1 && needs[*at] & left == 0;
        let Some(at) = (0..needs.len()).find(free) else { return false };
        left &= !(1 << at);
    }
    true
}

/// Follows a plan on the model; gives the calls that could have been spared, or says what is wrong with it.
fn follow(steps: &[Step], from: &Model, to: &Space) -> Result<usize, String> {
    let mut table = from.clone();
    let lasting = &frames(from.space(0)) & &frames(to);
    for (at, step) in steps.iter().enumerate() {
        let had = frames(table.space(0));
        let call = Op::Set(request(&step.region()));
        table.apply(&call, 0).map_err(|errno| format!("call {at}, {call}: errno {errno}"))?;
        let lost = &had - &frames(table.space(0));
        if step.gap == lost.is_disjoint(&lasting) {
            return Err(format!("call {at}, {call}: gap is {}, frames lost are {lost:x?}", step.gap));
        }
        let kind = match (step.before, step.after) {
            (None, Some(_)) => Kind::Create,
            (Some(_), None) => Kind::Delete,
            (Some(old), Some(new)) if old.guest_phys_addr != new.guest_phys_addr => Kind::Move,
            _ => Kind::FlagsOnly,
        };
        if step.kind != kind {
            return Err(format!("call {at}, {call} is said to be {:?}", step.kind));
        }
    }
    if content(table.space(0)) != content(to) {
        return Err("it leads elsewhere".into());
    }
    // Which slots of entangled cycles to choose is a hard problem, and rarely one call more is fine; without cycles
    // there is no excuse.
    let out = fewest_out_of_the_way(from.space(0), to);
    let least = fewest(from.space(0), to) + out;
    if steps.len() < least || steps.len() > least + out {
        return Err(format!("{} calls where {least} are enough", steps.len()));
    }
    Ok(steps.len() - least)
}

fn two_tables(seed: u64) -> (Model, Model) {
    let world = World::small(Limits::default());
    let grow = |model: &mut Model, seed, n| {
        let ops = world.ops(&mut Seed(seed), n);
        for op in ops.iter().filter(|op| op.fields().size < LARGEST) {
            let _ = model.apply(op, 0);
        }
    };
    let table = |seed| {
        let mut model = Model::new(world.limits);
        grow(&mut model, seed, 60);
        model
    };
    let from = table(seed);
    // Half of the time the second table grows out of the first.
    let mut to = if seed & 1 == 0 { from.clone() } else { table(!seed) };
    grow(&mut to, seed ^ 1, 12);
    (from, to)
}

#[test]
fn a_plan_leads_from_any_table_to_any_other() {
    let mut seeds = Seed(seed("plan"));
    let (mut steps, mut gaps, mut spare) = (0, 0, 0);
    for _ in 0..size(PLANS) {
        let seed = seeds.draw();
        let (from, to) = two_tables(seed);
        let plan = between(&regions(from.space(0)), &regions(to.space(0))).expect("a plan");
        let followed = follow(&plan, &from, to.space(0));
        spare +=
            followed.unwrap_or_else(|error| panic!("seed {seed:#x}: {error}\n{:?}\n{:?}", from.space(0), to.space(0)));
        steps += plan.len();
        gaps += plan.iter().filter(|step| step.gap).count();
    }
    say(&format!("plan: {steps} calls, {gaps} gaps, {spare} calls too many"));
    assert!(steps > 0 && gaps > 0 && gaps < steps);
    assert!(spare * 1000 <= steps, "{spare} of {steps} calls could be spared");
}

#[test]
fn exchanging_places_costs_one_call_more() {
    for n in 2..20u64 {
        let at = |id: u64, place: u64| Request {
            id: id as u16,
            gpa: place << SHIFT,
            size: 1 << SHIFT,
            ..Request::default()
        };
        let from: Vec<Region> = (0..n).map(|id| region(&at(id, id))).collect();
        let to: Vec<Region> = (0..n).map(|id| region(&at(id, (id + 1) % n))).collect();
        assert_eq!(between(&from, &to).expect("a plan").len() as u64, n + 1);
    }
}

/// A slot that is remade goes out of the way first: then those that only move need no cycle broken.
#[test]
fn what_is_remade_anyway_makes_room_for_what_moves() {
    let at = |id, gfn: u64, npages: u64, hva| {
        region(&Request { id, gpa: gfn << SHIFT, size: npages << SHIFT, hva, memfd: -1, ..Request::default() })
    };
    let from = [at(1, 10, 4, 0x1000), at(2, 20, 4, 0x2000)];
    let to = [at(1, 20, 4, 0x1000), at(2, 10, 4, 0x9000)];
    assert_eq!(between(&from, &to).expect("a plan").len(), 3, "delete 2, move 1, create 2");
    let (from, to) = ([from[1], from[0]], [to[1], to[0]]);
    assert_eq!(between(&from, &to).expect("a plan").len(), 3, "whatever the order");
}

#[test]
fn no_table_no_plan() {
    let one = region(&Request { id: 1, size: 0x2000, ..Request::default() });
    let overlapping = Region { slot: 2, guest_phys_addr: 0x1000, ..one };
    for bad in [&[one, one][..], &[one, overlapping], &[Region { memory_size: 0, ..one }]] {
        assert_eq!(between(bad, &[]).err(), Some(memslots::Errno::EINVAL));
        assert_eq!(between(&[], bad).err(), Some(memslots::Errno::EINVAL));
    }
}

/// Whether no page of a guest_memfd stands behind two slots: the library takes that, as it does not know what a file
/// is; no VM does.
fn a_vm_can_have(space: &Space) -> bool {
    let requests: Vec<Request> = space.all().iter().map(|slot| slot.request(SHIFT)).collect();
    let bound: Vec<&Request> = requests.iter().filter(|request| request.flags & GUEST_MEMFD != 0).collect();
    let shared =
        |a: &Request, b: &Request| a.memfd == b.memfd && a.offset < b.offset + b.size && b.offset < a.offset + a.size;
    bound.iter().enumerate().all(|(at, a)| bound[..at].iter().all(|b| !shared(a, b)))
}

/// A real VM takes every call of a plan, and has the slots that it leads to.
#[test]
fn a_real_vm_follows_the_plans() {
    let Some(kvm) = kvm_for("plan") else { return };
    let mut seeds = Seed(seed("plan_kvm"));
    let mut followed = 0;
    for _ in 0..size(200).min(200) {
        let seed = seeds.draw();
        let (from, to) = two_tables(seed);
        if !a_vm_can_have(from.space(0)) || !a_vm_can_have(to.space(0)) {
            continue;
        }
        followed += 1;
        let vm = Vm::new(&kvm);
        for slot in from.space(0).all() {
            vm.set(&slot.request(SHIFT)).expect("a slot");
        }
        for step in between(&regions(from.space(0)), &regions(to.space(0))).expect("a plan") {
            let call = request(&step.region());
            assert_eq!(vm.set(&call), Ok(0), "seed {seed:#x}: {}", Op::Set(call));
        }
        vm.holds(to.space(0), 80, 12).unwrap_or_else(|error| panic!("seed {seed:#x}: {error}"));
    }
    assert!(followed > 0, "no two tables that a VM can have");
}

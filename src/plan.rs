// SPDX-License-Identifier: MIT OR Apache-2.0
//! From two states of a table to the calls that lead from one to the other.
//!
//! Pure. Knows regions, and what KVM_SET_USER_MEMORY_REGION can do in one call: create, delete, move, change flags; a
//! slot of another size or hva is deleted and created. The same list serves vhost-user's ADD_MEM_REG and REM_MEM_REG,
//! and VFIO's map and unmap.
//!
//! **Order.** KVM refuses a slot that overlaps another, so the slot that a new slot's frames belonged to goes first.
//! Slots that exchange places wait for each other in a cycle. One slot of each cycle is deleted and created again: one
//! call more, which a cycle needs in any case. Slots whose frames nobody needs go last.
//!
//! **Gaps.** A call opens a gap where frames that have memory before and after the whole list lose it with this call:
//! until a later one gives it back, a running vCPU would take an access there for MMIO. Callers stop vCPUs for those,
//! and only for those.

use crate::error::{Errno, Result};
use crate::hooks::Kind;
use crate::slot::{Region, GUEST_MEMFD, READONLY};

/// A slot in two states. The same (address space, id) on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Before; None where it was not there.
    pub old: Option<Region>,
    /// After; None where it is gone.
    pub new: Option<Region>,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What the call does.
    pub kind: Kind,
    /// The slot before the call.
    pub before: Option<Region>,
    /// The slot after the call.
    pub after: Option<Region>,
    /// Whether frames that have memory before and after the whole list lose it with this call.
    pub gap: bool,
}

impl Step {
    /// What to call KVM_SET_USER_MEMORY_REGION2 with.
    pub fn region(&self) -> Region {
        request(self.before, self.after)
    }

    /// The call that takes this one back.
    pub fn undo(&self) -> Region {
        request(self.after, self.before)
    }
}

fn request(before: Option<Region>, after: Option<Region>) -> Region {
    match (before, after) {
        (_, Some(after)) => after,
        // A delete's flags are checked, and say nothing.
        (Some(before), None) => Region { memory_size: 0, flags: 0, ..before },
        (None, None) => Region::default(),
    }
}

/// The calls that lead from the regions `from` to the regions `to`. Each is a table: no id twice, no overlap.
///
/// # Errors
/// `EINVAL` where one of them is none; `ENOMEM`.
pub fn between(from: &[Region], to: &[Region]) -> Result<Vec<Step>> {
    check_table(from)?;
    check_table(to)?;
    let (old_ids, new_ids) = (by_slot(from)?, by_slot(to)?);
    let mut differences = Vec::new();
    differences.try_reserve_exact(from.len() + to.len()).map_err(|_| Errno::ENOMEM)?;
    differences.extend(from.iter().map(|old| Difference { old: Some(*old), new: find(to, &new_ids, old.slot) }));
    let is_new = |new: &&Region| find(from, &old_ids, new.slot).is_none();
    differences.extend(to.iter().filter(is_new).map(|new| Difference { old: None, new: Some(*new) }));
    steps(&differences)
}

/// Slots, and where each is in a list of regions.
fn by_slot(regions: &[Region]) -> Result<Vec<(u32, usize)>> {
    sorted_by_key(regions.iter().enumerate().map(|(index, region)| (region.slot, index)))
}

fn find(regions: &[Region], by_slot: &[(u32, usize)], slot: u32) -> Option<Region> {
    let at = by_slot.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
    Some(regions[by_slot[at].1])
}

/// The calls that make these differences. A slot may be in the list as gone and, in another entry, as new: then one
/// slot has ended and another has its id, and both are told, whatever else is the same.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn steps(differences: &[Difference]) -> Result<Vec<Step>> {
    let mut planner = Planner::new(differences)?;
    planner.unbind();
    (0..planner.tasks.len()).for_each(|task| planner.finish(task));
    planner.remove_rest();
    Ok(planner.steps)
}

type Place = std::ops::Range<u128>;

/// Where a region is, with the address space in front so that spaces never meet. Ends at 2^64 fit.
fn place(region: &Region) -> Place {
    let start = (region.as_id().0 as u128) << 65 | region.guest_phys_addr as u128;
    start..start + region.memory_size as u128
}

fn meet(a: &Place, b: &Place) -> bool {
    a.start < b.end && b.start < a.end
}

fn check_table(regions: &[Region]) -> Result<()> {
    let empty = regions.iter().any(|region| region.memory_size == 0);
    let ids = sorted_by_key(regions.iter().map(|region| region.slot))?;
    let places = sorted_by_key(regions.iter().map(|region| (place(region).start, place(region).end)))?;
    let same_id = ids.windows(2).any(|pair| pair[0] == pair[1]);
    let overlap = places.windows(2).any(|pair| pair[1].0 < pair[0].1);
    match empty || same_id || overlap {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}

fn sorted_by_key<T: Ord>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(items.len()).map_err(|_| Errno::ENOMEM)?;
    sorted.extend(items);
    sorted.sort_unstable();
    Ok(sorted)
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Untouched,
    /// Waits for others to make room.
    Waiting,
    Done,
}

/// What becomes of one slot.
struct Task {
    /// Where it is; none where it is not there, or not any more.
    old: Option<Region>,
    new: Option<Region>,
    /// Whether the old slot has ended and the new one is another with its id.
    reborn: bool,
    state: State,
    /// Its place among the differences.
    order: usize,
}

impl Task {
    /// Whether one call can do it: KVM moves a slot and changes its flags, but no more.
    fn in_one_call(&self) -> bool {
        let fixed = |region: &Region| {
            let memfd = if region.flags & GUEST_MEMFD != 0 {
                Some((region.guest_memfd, region.guest_memfd_offset))
            } else {
                None
            };
            (region.memory_size, region.userspace_addr, region.flags & (READONLY | GUEST_MEMFD), memfd)
        };
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => !self.reborn && fixed(old) == fixed(new) && old.flags & GUEST_MEMFD == 0,
            _ => true,
        }
    }

    fn is_nothing(&self) -> bool {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) if !self.reborn => {
                let said = |region: &Region| (place(region), region.userspace_addr, region.flags);
                let memfd = |region: &Region| (region.guest_memfd, region.guest_memfd_offset);
                said(old) == said(new) && (old.flags & GUEST_MEMFD == 0 || memfd(old) == memfd(new))
            }
            _ => false,
        }
    }
}

struct Planner {
    tasks: Vec<Task>,
    /// Old and new places in order, each with its task.
    old_places: Vec<(u128, u128, usize)>,
    new_places: Vec<(u128, u128, usize)>,
    steps: Vec<Step>,
    /// Tasks that wait, each for the one behind it, with the next old place that it asks for.
    waiting: Vec<(usize, usize)>,
}

impl Planner {
    fn new(differences: &[Difference]) -> Result<Planner> {
        let tasks = collect_tasks(differences)?;
        let places = |side: fn(&Task) -> &Option<Region>| {
            let mut places = Vec::new();
            places.try_reserve_exact(tasks.len()).map_err(|_| Errno::ENOMEM)?;
            let with_task =
                tasks.iter().enumerate().filter_map(|(index, task)| Some((place(side(task).as_ref()?), index)));
            places.extend(with_task.map(|(range, index)| (range.start, range.end, index)));
            places.sort_unstable();
            Ok::<_, Errno>(places)
        };
        let (old_places, new_places) = (places(|task| &task.old)?, places(|task| &task.new)?);
        let (mut steps, mut waiting) = (Vec::new(), Vec::new());
        steps.try_reserve_exact(2 * tasks.len()).map_err(|_| Errno::ENOMEM)?;
        waiting.try_reserve_exact(tasks.len()).map_err(|_| Errno::ENOMEM)?;
        Ok(Planner { tasks, old_places, new_places, steps, waiting })
    }

    /// Deletes what has a guest_memfd and changes: such a slot can only be deleted, and its part of the file can be
    /// bound again only then.
    fn unbind(&mut self) {
        for index in 0..self.tasks.len() {
            let task = &self.tasks[index];
            if task.old.is_some_and(|old| old.flags & GUEST_MEMFD != 0) && !task.is_nothing() {
                self.remove(index);
            }
        }
    }

    /// Brings a slot to its new place, and before that, others out of the way.
    fn finish(&mut self, task: usize) {
        self.wait(task);
        while let Some((task, next)) = self.waiting.pop() {
            match self.in_the_way(task, next) {
                Some((other, next)) => {
                    self.waiting.push((task, next));
                    self.clear(other);
                }
                None => self.place(task),
            }
        }
    }

    fn wait(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        let Some(new) = task.new.as_ref().filter(|_| task.state == State::Untouched) else { return };
        let start = place(new).start;
        task.state = State::Waiting;
        let first = self.old_places.partition_point(|(_, end, _)| *end <= start);
        self.waiting.push((index, first));
    }

    /// The next slot whose old frames a task needs, and where to look on afterwards.
    fn in_the_way(&self, index: usize, from: usize) -> Option<(usize, usize)> {
        let wanted = self.tasks[index].new.as_ref().map(place)?;
        let rest = self.old_places[from..].iter().enumerate();
        let met = rest.take_while(|(_, (start, _, _))| *start < wanted.end);
        let mut others = met.filter(|(_, (_, _, other))| *other != index);
        others.next().map(|(skipped, (_, _, other))| (*other, from + skipped + 1))
    }

    /// Gets a slot out of its old frames: to its new place if it can; deleted for now where that would be a cycle.
    fn clear(&mut self, index: usize) {
        let task = &self.tasks[index];
        match task.state {
            _ if task.old.is_none() => {}
            // A slot that has to be deleted in any case is deleted now: no cycle goes through it then.
            State::Untouched if task.new.is_some() && task.in_one_call() => self.wait(index),
            State::Untouched | State::Waiting => self.remove(index),
            State::Done => {}
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(old) = self.tasks[index].old.take() else { return };
        if self.tasks[index].new.is_none() {
            self.tasks[index].state = State::Done;
        }
        self.step(Kind::Delete, Some(old), None, index);
    }

    fn place(&mut self, index: usize) {
        let task = &self.tasks[index];
        let (new, one_call) = (task.new, task.in_one_call());
        match task.old {
            None => self.step(Kind::Create, None, new, index),
            Some(_) if task.is_nothing() => {}
            Some(old) if one_call => {
                let moved = new.is_some_and(|new| new.guest_phys_addr != old.guest_phys_addr);
                self.step(if moved { Kind::Move } else { Kind::FlagsOnly }, Some(old), new, index);
            }
            Some(old) => {
                self.step(Kind::Delete, Some(old), None, index);
                self.step(Kind::Create, None, new, index);
            }
        }
        self.tasks[index].state = State::Done;
    }

    fn remove_rest(&mut self) {
        for index in 0..self.tasks.len() {
            if self.tasks[index].state == State::Untouched {
                self.remove(index);
            }
        }
    }

    fn step(&mut self, kind: Kind, before: Option<Region>, after: Option<Region>, index: usize) {
        let gap = before.is_some_and(|before| self.leaves_gap(&before, after.as_ref(), index));
        self.steps.push(Step { kind, before, after, gap });
    }

    /// Whether some slot's new frames are among those that a call takes away. A slot that moves within its own frames
    /// takes none of those away that it keeps.
    fn leaves_gap(&self, before: &Region, after: Option<&Region>, index: usize) -> bool {
        let gone = place(before);
        let first = self.new_places.partition_point(|(_, end, _)| *end <= gone.start);
        let met = self.new_places[first..].iter().take_while(|(start, _, _)| *start < gone.end);
        let mut wanted = met.filter(|(start, end, other)| {
            let itself = *other == index && after.is_some();
            !itself && meet(&(*start..*end), &gone)
        });
        wanted.next().is_some()
    }
}

/// One task a slot: what is said of it as gone and as new is brought together.
fn collect_tasks(differences: &[Difference]) -> Result<Vec<Task>> {
    let slot = |difference: &Difference| difference.old.or(difference.new).map_or(0, |region| region.slot);
    let order = sorted_by_key(differences.iter().enumerate().map(|(index, d)| (slot(d), index)))?;
    let mut tasks: Vec<Task> = Vec::new();
    tasks.try_reserve_exact(differences.len()).map_err(|_| Errno::ENOMEM)?;
    let mut last_slot = None;
    for (slot, order) in order {
        let Difference { old, new } = differences[order];
        match tasks.last_mut().filter(|_| last_slot == Some(slot)) {
            Some(task) => (task.old, task.new, task.reborn) = (task.old.or(old), task.new.or(new), true),
            None => tasks.push(Task { old, new, reborn: false, state: State::Untouched, order }),
        }
        last_slot = Some(slot);
    }
    tasks.sort_unstable_by_key(|task| task.order);
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(slot: u32, gpa: u64) -> Region {
        Region { slot, guest_phys_addr: gpa, memory_size: 0x1000, ..Region::default() }
    }

    fn kinds(steps: &[Step]) -> Vec<Kind> {
        steps.iter().map(|step| step.kind).collect()
    }

    #[test]
    fn a_slot_that_ends_and_another_under_its_id_are_told_as_two() {
        let same = Some(region(1, 0));
        let ended_and_made = [Difference { old: same, new: None }, Difference { old: None, new: same }];
        assert_eq!(kinds(&steps(&ended_and_made).unwrap()), [Kind::Delete, Kind::Create]);
        let made_and_ended = [ended_and_made[1], ended_and_made[0]];
        assert_eq!(kinds(&steps(&made_and_ended).unwrap()), [Kind::Delete, Kind::Create]);
    }

    #[test]
    fn two_states_are_compared_slot_by_slot() {
        let (from, to) = ([region(1, 0), region(2, 0x4000), region(3, 0x8000)], [region(4, 0x4000), region(1, 0)]);
        let calls = between(&from, &to).unwrap();
        assert_eq!(kinds(&calls), [Kind::Delete, Kind::Create, Kind::Delete]);
        assert_eq!(calls.iter().map(|step| step.region().slot).collect::<Vec<_>>(), [2, 4, 3]);
        assert!(between(&from, &from).unwrap().is_empty());
    }
}

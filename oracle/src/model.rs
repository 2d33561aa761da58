// SPDX-License-Identifier: MIT OR Apache-2.0
//! What KVM does with memslots, said as simply as it can be said.
//!
//! A table is a `Vec` of slots, every question a linear scan, a transaction a copy of the `Vec`. Slow on purpose:
//! this is what the library and the real kernel are held against, so it must be right by reading. Knows the
//! operations and the limits of a VM; nothing of the library.

use crate::op::{Op, Outcome, Request, GUEST_MEMFD, ID_ANY, LOG_DIRTY_PAGES, READONLY};
use crate::update::{Lineage, Update};

const MAX_NPAGES: u64 = (1 << 31) - 1;

/// Where a VM's possibilities end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many address spaces there are.
    pub nr_address_spaces: u16,
    /// Slot ids per address space.
    pub max_slots: u32,
    /// log2 of the page size.
    pub page_shift: u32,
    /// The flags that a slot may carry.
    pub supported_flags: u32,
    /// End of the usable host virtual addresses.
    pub hva_limit: u64,
    /// Width of a guest physical address.
    pub gpa_bits: u32,
}

impl Default for Limits {
    /// As KVM on x86-64 with one address space, 4-level page tables and guest_memfd.
    fn default() -> Limits {
        Limits {
            nr_address_spaces: 1,
            max_slots: 32764,
            page_shift: 12,
            supported_flags: LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD,
            hva_limit: (1 << 47) - 4096,
            gpa_bits: 52,
        }
    }
}

/// A slot of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names of the field
pub struct Slot {
    pub as_id: u16,
    pub id: u16,
    pub base_gfn: u64,
    pub npages: u64,
    pub hva: u64,
    pub flags: u32,
    pub memfd: i32,
    pub offset: u64,
    pub opaque: usize,
    /// Counts creations: two slots with the same birth are the same slot.
    pub birth: u64,
}

impl Slot {
    /// The same without the count of creations, of which the library knows nothing.
    pub fn bare(&self) -> Slot {
        Slot { birth: 0, ..*self }
    }

    /// First gfn past the slot.
    pub fn end_gfn(&self) -> u64 {
        self.base_gfn + self.npages
    }

    /// Whether the slot shares a page with `[start, end)`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.base_gfn < end && start < self.end_gfn()
    }
}

/// One address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Ascending by id, so that equal contents are equal vectors.
    pub slots: Vec<Slot>,
    /// Of the published content.
    pub generation: u64,
}

/// A VM's table, with at most one transaction open on it.
#[derive(Clone, Debug)]
pub struct Model {
    limits: Limits,
    published: Vec<Space>,
    staged: Option<Vec<Space>>,
    births: u64,
    /// Of the slots that are staged.
    lineage: Lineage,
    /// Whether slots whose frames lose something are shown INVALID first, which is a publication of its own.
    two_phases: bool,
    /// What the last operation published.
    update: Option<Update>,
}

impl Model {
    /// An empty table.
    pub fn new(limits: Limits) -> Model {
        let space = |i| Space { slots: Vec::new(), generation: i };
        let published = (0..limits.nr_address_spaces.into()).map(space).collect();
        let lineage = Lineage::default();
        Model { limits, published, staged: None, births: 0, lineage, two_phases: false, update: None }
    }

    /// The same table where something has a flush hook, as the kernel always has.
    pub fn with_two_phases(mut self) -> Model {
        self.two_phases = true;
        self
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.staged.is_some()
    }

    /// What readers see of an address space.
    pub fn space(&self, as_id: u16) -> &Space {
        &self.published[usize::from(as_id)]
    }

    /// What readers see, all of it.
    pub fn spaces(&self) -> &[Space] {
        &self.published
    }

    /// What the next change is held against: the open transaction, or else what readers see.
    pub fn current(&self) -> &[Space] {
        self.staged.as_deref().unwrap_or(&self.published)
    }

    /// What the last operation published; None where nothing changed.
    pub fn update(&self) -> Option<&Update> {
        self.update.as_ref()
    }

    /// What an update leaves behind that a hook refused: the old content was shown again after the INVALID phase, where
    /// there was one. A transaction stays open here, as if it had been staged anew.
    pub fn refuse(&mut self, update: &Update) {
        let step = u64::from(self.limits.nr_address_spaces);
        if self.two_phases {
            update.spaces_flushed().for_each(|as_id| self.published[usize::from(as_id)].generation += 2 * step);
        }
    }

    /// Does one operation; `opaque` counts where it makes a slot.
    pub fn apply(&mut self, op: &Op, opaque: usize) -> Outcome {
        self.update = None;
        match op {
            Op::Lock { .. } | Op::Unlock { .. } => {}
            Op::Begin if self.staged.is_some() => return Err(libc::EDEADLK),
            Op::Begin => self.staged = Some(self.published.clone()),
            Op::Abort => (self.staged, self.lineage) = (None, Lineage::default()),
            Op::Commit => {
                if let Some(staged) = self.staged.take() {
                    self.publish(staged);
                }
            }
            change => return self.change(change, opaque),
        }
        Ok(0)
    }

    /// All of the requests or none; the error says which was refused. Opaques count up from `opaque`.
    pub fn apply_all(&mut self, requests: &[Request], opaque: usize) -> Result<(), (i32, usize)> {
        self.apply(&Op::Begin, 0).map_err(|errno| (errno, 0))?;
        for (at, request) in requests.iter().enumerate() {
            if let Err(errno) = self.apply(&Op::Set(*request), opaque + at) {
                self.staged = None;
                return Err((errno, at));
            }
        }
        self.apply(&Op::Commit, 0).map(drop).map_err(|errno| (errno, 0))
    }

    /// Makes the requests the whole of an address space; the error says which was refused. A slot that is asked for
    /// as it is, elsewhere or with other dirty logging, stays the slot that it is.
    pub fn replace_all(&mut self, as_id: u16, requests: &[Request], opaque: usize) -> Result<(), (i32, usize)> {
        self.update = None;
        let before = self.published[usize::from(as_id)].clone();
        let mut next = self.published.clone();
        next[usize::from(as_id)].slots.clear();
        for (at, request) in requests.iter().enumerate() {
            self.births += 1;
            let (limits, lineage, birth) = (&self.limits, &mut self.lineage, self.births);
            let mut edit = Edit { limits, spaces: &mut next, lineage, opaque: opaque + at, birth };
            edit.place(as_id, request, &before).map_err(|errno| (errno, at))?;
        }
        self.publish(next);
        Ok(())
    }

    fn change(&mut self, op: &Op, opaque: usize) -> Outcome {
        self.births += 1;
        let mut next = self.current().to_vec();
        let lineage = &mut self.lineage;
        let mut edit = Edit { limits: &self.limits, spaces: &mut next, lineage, opaque, birth: self.births };
        let id = edit.apply(op)?;
        match &mut self.staged {
            Some(staged) => *staged = next,
            None => self.publish(next),
        }
        Ok(id)
    }

    fn publish(&mut self, next: Vec<Space>) {
        let before = self.published.clone();
        let lineage = std::mem::take(&mut self.lineage);
        let update = Update { before, after: next, lineage, page_shift: self.limits.page_shift };
        if update.changes_nothing() {
            return;
        }
        let step = u64::from(self.limits.nr_address_spaces);
        for (old, new) in self.published.iter_mut().zip(&update.after).filter(|(old, new)| old.slots != new.slots) {
            old.generation += step;
            old.slots = new.slots.clone();
        }
        if self.two_phases {
            update.spaces_flushed().for_each(|as_id| self.published[usize::from(as_id)].generation += step);
        }
        self.update = Some(update);
    }
}

/// One change being made to a copy of the table. An error may leave the copy half done: it is thrown away.
struct Edit<'a> {
    limits: &'a Limits,
    spaces: &'a mut [Space],
    lineage: &'a mut Lineage,
    opaque: usize,
    birth: u64,
}

impl Edit<'_> {
    fn apply(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Set(request) => self.set(request),
            Op::Create(request) => self.create(request),
            Op::Delete { as_id, id } => {
                let slot = self.find(as_id, id)?;
                self.remove(&slot)
            }
            Op::Move { as_id, id, gpa } => {
                let slot = self.find(as_id, id)?;
                self.set(Request { gpa, ..self.request_of(&slot) })
            }
            Op::Flags { as_id, id, flags } => {
                let slot = self.find(as_id, id)?;
                self.set(Request { flags, ..self.request_of(&slot) })
            }
            Op::Split { as_id, id, at, new_id } => self.split(as_id, id, at, new_id),
            Op::Merge { as_id, lower, upper } => self.merge(as_id, lower, upper),
            Op::Resize { as_id, id, size } => self.resize(as_id, id, size),
            _ => unreachable!("not a change of slots"),
        }
    }

    /// The kernel's `kvm_set_memory_region`: the checks in its order, then what kind of change it is.
    fn set(&mut self, r: Request) -> Outcome {
        self.check_arguments(&r)?;
        let old = self.find(r.as_id, r.id).ok();
        if r.size == 0 {
            return self.remove(&old.ok_or(libc::EINVAL)?);
        }
        let mut new = self.slot_of(&r);
        let Some(old) = old else {
            self.check_overlap(&new)?;
            if new.flags & GUEST_MEMFD != 0 && new.memfd < 0 {
                return Err(libc::EBADF);
            }
            self.check_end(&new)?;
            return self.insert(new);
        };
        let immutable = READONLY | GUEST_MEMFD;
        if r.flags & GUEST_MEMFD != 0
            || old.hva != new.hva
            || old.npages != new.npages
            || (old.flags ^ new.flags) & immutable != 0
        {
            return Err(libc::EINVAL);
        }
        if old.base_gfn != new.base_gfn {
            self.check_overlap(&new)?;
            self.check_end(&new)?;
        }
        (new.opaque, new.birth) = (old.opaque, old.birth);
        self.replace(&old, new)
    }

    fn create(&mut self, r: Request) -> Outcome {
        let id = if r.id == ID_ANY { 0 } else { r.id };
        self.check_arguments(&Request { id, ..r })?;
        if r.size == 0 {
            return Err(libc::EINVAL);
        }
        let id = if r.id == ID_ANY { self.lowest_free(r.as_id)? } else { r.id };
        if self.find(r.as_id, id).is_ok() {
            return Err(libc::EEXIST);
        }
        self.set(Request { id, ..r })?;
        Ok(id)
    }

    /// Creates one slot of a table that is made anew; it is the slot of that id `before` where it can be.
    fn place(&mut self, as_id: u16, r: &Request, before: &Space) -> Result<(), i32> {
        if r.as_id != as_id || r.size == 0 {
            return Err(libc::EINVAL);
        }
        self.check_arguments(r)?;
        if self.find(as_id, r.id).is_ok() {
            return Err(libc::EEXIST);
        }
        self.set(*r)?;
        let mut new = self.find(as_id, r.id)?;
        let Some(old) = before.by_id(r.id) else { return Ok(()) };
        let fixed = |s: &Slot| (s.hva, s.npages, s.flags & !LOG_DIRTY_PAGES, s.memfd, s.offset);
        let may_move = r.flags & GUEST_MEMFD == 0;
        if fixed(old) == fixed(&new) && (may_move || old.base_gfn == new.base_gfn) {
            (new.opaque, new.birth) = (old.opaque, old.birth);
            self.replace(&new, new)?;
        }
        Ok(())
    }

    fn split(&mut self, as_id: u16, id: u16, at: u64, new_id: u16) -> Outcome {
        let lower = self.find(as_id, id)?;
        let cut = at >> self.limits.page_shift;
        if lower.flags & GUEST_MEMFD != 0 || !self.aligned(at) || cut <= lower.base_gfn || cut >= lower.end_gfn() {
            return Err(libc::EINVAL);
        }
        let new_id = if new_id == ID_ANY { self.lowest_free(as_id)? } else { new_id };
        if u32::from(new_id) >= self.limits.max_slots {
            return Err(libc::EINVAL);
        }
        if self.find(as_id, new_id).is_ok() {
            return Err(libc::EEXIST);
        }
        let below = cut - lower.base_gfn;
        let upper = Slot {
            id: new_id,
            base_gfn: cut,
            npages: lower.npages - below,
            hva: lower.hva + (below << self.limits.page_shift),
            opaque: self.opaque,
            birth: self.birth,
            ..lower
        };
        self.lineage.cut_from.insert(upper.birth, lower.birth);
        self.replace(&lower, Slot { npages: below, ..lower })?;
        self.insert(upper)?;
        Ok(new_id)
    }

    fn merge(&mut self, as_id: u16, lower: u16, upper: u16) -> Outcome {
        let lower = self.find(as_id, lower)?;
        let upper = self.find(as_id, upper)?;
        let continues = upper.base_gfn == lower.end_gfn()
            && upper.hva == lower.hva + (lower.npages << self.limits.page_shift)
            && upper.flags == lower.flags
            && lower.flags & GUEST_MEMFD == 0;
        if !continues || lower.npages + upper.npages > MAX_NPAGES {
            return Err(libc::EINVAL);
        }
        self.lineage.absorbed.insert(upper.birth);
        self.remove(&upper)?;
        self.replace(&lower, Slot { npages: lower.npages + upper.npages, ..lower })
    }

    fn resize(&mut self, as_id: u16, id: u16, size: u64) -> Outcome {
        let old = self.find(as_id, id)?;
        let request = Request { size, ..self.request_of(&old) };
        self.check_arguments(&request)?;
        if size == 0 || old.flags & GUEST_MEMFD != 0 {
            return Err(libc::EINVAL);
        }
        let new = Slot { npages: size >> self.limits.page_shift, ..old };
        self.check_overlap(&new)?;
        self.check_end(&new)?;
        self.replace(&old, new)
    }

    /// Steps 4 to 12 of the kernel: what can be said without looking at the table.
    fn check_arguments(&self, r: &Request) -> Result<(), i32> {
        let memfd = r.flags & GUEST_MEMFD != 0;
        let hva_end = r.hva.checked_add(r.size).ok_or(libc::EINVAL)?;
        let bad = u32::from(r.id) >= self.limits.max_slots
            || r.flags & !self.limits.supported_flags != 0
            || memfd && r.flags & (LOG_DIRTY_PAGES | READONLY) != 0
            || !self.aligned(r.size)
            || !self.aligned(r.gpa)
            || !self.aligned(r.hva)
            || hva_end > self.limits.hva_limit
            || memfd && (!self.aligned(r.offset) || r.offset.checked_add(r.size).is_none())
            || r.as_id >= self.limits.nr_address_spaces
            || r.gpa.checked_add(r.size).is_none()
            || r.size >> self.limits.page_shift > MAX_NPAGES;
        if bad {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    /// Step 18.
    fn check_overlap(&self, new: &Slot) -> Result<(), i32> {
        let space = &self.spaces[usize::from(new.as_id)];
        if space.slots.iter().any(|s| s.id != new.id && s.overlaps(new.base_gfn, new.end_gfn())) {
            return Err(libc::EEXIST);
        }
        Ok(())
    }

    /// Step 23, which comes after all others: the end of the guest physical address space.
    fn check_end(&self, new: &Slot) -> Result<(), i32> {
        if new.end_gfn() > 1 << (self.limits.gpa_bits - self.limits.page_shift) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    fn find(&self, as_id: u16, id: u16) -> Result<Slot, i32> {
        let space = self.spaces.get(usize::from(as_id)).ok_or(libc::EINVAL)?;
        space.slots.iter().find(|s| s.id == id).copied().ok_or(libc::ENOENT)
    }

    fn lowest_free(&self, as_id: u16) -> Result<u16, i32> {
        let free = |&id: &u32| self.find(as_id, id as u16).is_err();
        (0..self.limits.max_slots).find(free).map(|id| id as u16).ok_or(libc::ENOSPC)
    }

    fn insert(&mut self, slot: Slot) -> Outcome {
        let slots = &mut self.spaces[usize::from(slot.as_id)].slots;
        let at = slots.partition_point(|s| s.id < slot.id);
        slots.insert(at, slot);
        Ok(0)
    }

    fn remove(&mut self, slot: &Slot) -> Outcome {
        self.spaces[usize::from(slot.as_id)].slots.retain(|s| s.id != slot.id);
        Ok(0)
    }

    fn replace(&mut self, old: &Slot, new: Slot) -> Outcome {
        self.remove(old)?;
        self.insert(new)
    }

    fn slot_of(&self, r: &Request) -> Slot {
        let memfd = r.flags & GUEST_MEMFD != 0;
        Slot {
            as_id: r.as_id,
            id: r.id,
            base_gfn: r.gpa >> self.limits.page_shift,
            npages: r.size >> self.limits.page_shift,
            hva: r.hva,
            flags: r.flags,
            memfd: if memfd { r.memfd } else { -1 },
            offset: if memfd { r.offset } else { 0 },
            opaque: self.opaque,
            birth: self.birth,
        }
    }

    fn request_of(&self, slot: &Slot) -> Request {
        slot.request(self.limits.page_shift)
    }

    fn aligned(&self, bytes: u64) -> bool {
        bytes & ((1 << self.limits.page_shift) - 1) == 0
    }
}

impl Slot {
    /// The request that says what the slot is.
    pub fn request(&self, page_shift: u32) -> Request {
        Request {
            as_id: self.as_id,
            id: self.id,
            flags: self.flags,
            gpa: self.base_gfn << page_shift,
            size: self.npages << page_shift,
            hva: self.hva,
            memfd: self.memfd,
            offset: self.offset,
        }
    }

    /// Whether it holds a gfn.
    pub fn holds(&self, gfn: u64) -> bool {
        self.base_gfn <= gfn && gfn - self.base_gfn < self.npages
    }

    /// The memory of a gfn that it holds.
    pub fn hva_of(&self, gfn: u64, page_shift: u32) -> u64 {
        self.hva + ((gfn - self.base_gfn) << page_shift)
    }

    fn last_hva(&self, page_shift: u32) -> u64 {
        self.hva + (self.npages << page_shift) - 1
    }
}

/// What a lookup of an address to write or read through comes to.
pub type Translated = Result<(u64, u64), i32>;

impl Space {
    /// The slot with that id.
    pub fn by_id(&self, id: u16) -> Option<&Slot> {
        self.slots.iter().find(|s| s.id == id)
    }

    /// The slot that holds a gfn.
    pub fn by_gfn(&self, gfn: u64) -> Option<&Slot> {
        self.slots.iter().find(|s| s.holds(gfn))
    }

    /// The slot that holds a gfn, or the one below it, or the lowest.
    pub fn near_gfn(&self, gfn: u64) -> Option<&Slot> {
        let below = self.slots.iter().filter(|s| s.base_gfn <= gfn).max_by_key(|s| s.base_gfn);
        below.or_else(|| self.slots.iter().min_by_key(|s| s.base_gfn))
    }

    /// Of the slots that hold a host virtual address: the one that starts lowest, then the lowest id.
    pub fn by_hva(&self, hva: u64, page_shift: u32) -> Option<&Slot> {
        self.over_hva(hva, hva, page_shift).first().copied()
    }

    /// All slots, ascending by gfn.
    pub fn all(&self) -> Vec<&Slot> {
        self.over_gfn(0, u64::MAX)
    }

    /// The slots that share a page with `[start, end)`, ascending by gfn.
    pub fn over_gfn(&self, start: u64, end: u64) -> Vec<&Slot> {
        let mut found: Vec<_> = self.slots.iter().filter(|s| start < end && s.overlaps(start, end)).collect();
        found.sort_by_key(|s| s.base_gfn);
        found
    }

    /// The slots that share a byte with `[start, last]`, ascending by hva, then id.
    pub fn over_hva(&self, start: u64, last: u64, page_shift: u32) -> Vec<&Slot> {
        let overlaps = |s: &&Slot| s.hva <= last && start <= s.last_hva(page_shift);
        let mut found: Vec<_> = self.slots.iter().filter(|s| start <= last && overlaps(s)).collect();
        found.sort_by_key(|s| (s.hva, s.id));
        found
    }

    /// gpa to hva and the bytes left in the slot: ENOENT in a hole, EROFS for a write where it may not.
    pub fn translate(&self, gpa: u64, write: bool, page_shift: u32) -> Translated {
        let slot = self.by_gfn(gpa >> page_shift).ok_or(libc::ENOENT)?;
        if write && slot.flags & READONLY != 0 {
            return Err(libc::EROFS);
        }
        let into = gpa - (slot.base_gfn << page_shift);
        Ok((slot.hva + into, (slot.npages << page_shift) - into))
    }

    /// How many pages there are in all.
    pub fn npages(&self) -> u64 {
        self.slots.iter().map(|s| s.npages).sum()
    }
}

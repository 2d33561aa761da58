// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a request means for a table: create, delete, replace, nothing, or an errno.
//!
//! Pure: from a snapshot and a request to a decision. Every rule of KVM's stands here, in the kernel's order, and
//! nowhere else; the step numbers are those of `docs/kernel-semantics.md`. Does not know how a decision is carried out.
//!
//! Source of the rules: Linux, `virt/kvm/kvm_main.c`, `kvm_set_memory_region()` and what it calls; observed on 6.18.

use crate::error::{Errno, Result};
use crate::slot::{
    AsId, Gfn, Gpa, Hva, Limits, Memslot, Pages, Region, SlotId, GUEST_MEMFD, LOG_DIRTY_PAGES, MAX_SLOT_PAGES, READONLY,
};
use crate::snapshot::{PublishedRef, Record, Space};
use std::ffi::c_void;
use std::ptr::NonNull;

/// What a request means for the table.
pub(crate) enum Decision {
    /// The slot is what is asked for already.
    Nothing,
    Create(Memslot),
    Delete {
        as_id: AsId,
        old: NonNull<Record>,
    },
    /// The same slot with other frames, flags or size.
    Replace {
        old: NonNull<Record>,
        new: Memslot,
    },
}

impl Decision {
    /// The address space that changes; none where nothing does.
    pub(crate) fn as_id(&self) -> Option<AsId> {
        match *self {
            Decision::Nothing => None,
            Decision::Delete { as_id, .. } => Some(as_id),
            Decision::Create(slot) | Decision::Replace { new: slot, .. } => Some(slot.as_id),
        }
    }
}

/// A state of the table and its limits: what requests are held against.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) limits: &'a Limits,
    /// Alive while the rules are asked: the update lock's holder sees to it.
    pub(crate) state: PublishedRef<'a>,
}

impl Limits {
    fn pages(&self, bytes: u64) -> Pages {
        Pages(bytes >> self.page_shift)
    }

    fn gfn(&self, gpa: Gpa) -> Gfn {
        Gfn(gpa.0 >> self.page_shift)
    }

    /// Whether a slot can have this id.
    fn has_id(&self, id: SlotId) -> bool {
        (id.0 as u32) < self.max_slots
    }

    fn is_aligned(&self, bytes: u64) -> bool {
        bytes & ((1 << self.page_shift) - 1) == 0
    }

    /// Step 5. A delete with a flag that is unknown is refused, too.
    fn check_flags(&self, flags: u32) -> Result<()> {
        let logged_or_readonly = flags & (LOG_DIRTY_PAGES | READONLY) != 0;
        refuse_if(flags & !self.supported_flags != 0, Errno::EINVAL)?;
        refuse_if(flags & GUEST_MEMFD != 0 && logged_or_readonly, Errno::EINVAL)
    }

    /// Steps 8: what is mapped there does not matter, only that it could be.
    fn check_hva(&self, Hva(hva): Hva, size: u64) -> Result<()> {
        let end = hva.checked_add(size).ok_or(Errno::EINVAL)?;
        refuse_if(!self.is_aligned(hva) || end > self.hva_limit, Errno::EINVAL)
    }

    /// Steps 4 to 12: all that can be said without looking at the table.
    fn check(&self, region: &Region) -> Result<()> {
        let Region { guest_phys_addr: gpa, memory_size: size, guest_memfd_offset: offset, .. } = *region;
        refuse_if(!self.has_id(region.id()), Errno::EINVAL)?;
        self.check_flags(region.flags)?;
        refuse_if(!self.is_aligned(size) || !self.is_aligned(gpa), Errno::EINVAL)?;
        self.check_hva(Hva(region.userspace_addr), size)?;
        if region.flags & GUEST_MEMFD != 0 {
            refuse_if(!self.is_aligned(offset) || offset.checked_add(size).is_none(), Errno::EINVAL)?;
        }
        refuse_if(region.as_id().0 as u32 >= self.nr_address_spaces, Errno::EINVAL)?;
        refuse_if(gpa.wrapping_add(size) < gpa, Errno::EINVAL)?;
        refuse_if(self.pages(size) > MAX_SLOT_PAGES, Errno::EINVAL)
    }

    /// The slot that a request describes.
    fn slot(&self, region: &Region, opaque: *mut c_void) -> Memslot {
        let private = region.flags & GUEST_MEMFD != 0;
        Memslot {
            base_gfn: self.gfn(Gpa(region.guest_phys_addr)),
            npages: self.pages(region.memory_size),
            userspace_addr: Hva(region.userspace_addr),
            guest_memfd_offset: if private { region.guest_memfd_offset } else { 0 },
            opaque,
            guest_memfd: if private { region.guest_memfd as i32 } else { -1 },
            flags: region.flags,
            id: region.id(),
            as_id: region.as_id(),
        }
    }
}

fn refuse_if(refused: bool, errno: Errno) -> Result<()> {
    match refused {
        true => Err(errno),
        false => Ok(()),
    }
}

impl<'a> Rules<'a> {
    /// KVM_SET_USER_MEMORY_REGION2, whole.
    #[inline(always)]
    pub(crate) fn set_region(&self, region: &Region, opaque: *mut c_void) -> Result<Decision> {
        self.limits.check(region)?;
        let old = self.record(region.as_id(), region.id());
        if region.memory_size == 0 {
            return old.map(|old| Decision::Delete { as_id: region.as_id(), old }).ok_or(Errno::EINVAL);
        }
        let new = self.limits.slot(region, opaque);
        match old {
            None => self.may_create(&new).map(|()| Decision::Create(new)),
            Some(old) => self.change(old, new),
        }
    }

    /// As a create only. [`SlotId::ANY`] asks for the lowest free id.
    #[inline(always)]
    pub(crate) fn create(&self, region: &Region, opaque: *mut c_void) -> Result<Decision> {
        let mut region = *region;
        let any = region.id() == SlotId::ANY;
        if any {
            region.slot = Region::slot_of(region.as_id(), SlotId(0));
        }
        refuse_if(region.memory_size == 0, Errno::EINVAL)?;
        self.limits.check(&region)?;
        if any {
            region.slot = Region::slot_of(region.as_id(), self.free_id(region.as_id())?);
        }
        refuse_if(self.record(region.as_id(), region.id()).is_some(), Errno::EEXIST)?;
        let new = self.limits.slot(&region, opaque);
        self.may_create(&new).map(|()| Decision::Create(new))
    }

    #[inline(always)]
    pub(crate) fn delete(&self, as_id: AsId, id: SlotId) -> Result<Decision> {
        self.existing(as_id, id).map(|old| Decision::Delete { as_id, old })
    }

    #[inline(always)]
    pub(crate) fn move_slot(&self, as_id: AsId, id: SlotId, gpa: Gpa) -> Result<Decision> {
        let old = self.existing(as_id, id)?;
        let slot = self.state.slot(old);
        refuse_if(!self.limits.is_aligned(gpa.0), Errno::EINVAL)?;
        refuse_if(gpa.0.checked_add(slot.npages.bytes(self.limits.page_shift)).is_none(), Errno::EINVAL)?;
        self.change(old, Memslot { base_gfn: self.limits.gfn(gpa), ..*slot })
    }

    #[inline(always)]
    pub(crate) fn set_flags(&self, as_id: AsId, id: SlotId, flags: u32) -> Result<Decision> {
        let old = self.existing(as_id, id)?;
        self.limits.check_flags(flags)?;
        self.change(old, Memslot { flags, ..*self.state.slot(old) })
    }

    /// The same slot with another size. KVM has no such call; its rules for sizes and overlaps hold all the same.
    pub(crate) fn resize(&self, as_id: AsId, id: SlotId, size: u64) -> Result<Decision> {
        let old = self.existing(as_id, id)?;
        let slot = *self.state.slot(old);
        refuse_if(slot.flags & GUEST_MEMFD != 0 || size == 0, Errno::EINVAL)?;
        let region = Region { memory_size: size, ..Region::of(&slot, self.limits.page_shift) };
        self.limits.check(&region)?;
        let new = Memslot { npages: self.limits.pages(size), ..slot };
        if new == slot {
            return Ok(Decision::Nothing);
        }
        self.may_place(&new)?;
        Ok(Decision::Replace { old, new })
    }

    /// The slot cut in two at `at`: what the lower part becomes, and the new upper one.
    pub(crate) fn split(
        &self,
        (as_id, id): (AsId, SlotId),
        at: Gpa,
        new_id: SlotId,
        opaque: *mut c_void,
    ) -> Result<(NonNull<Record>, Memslot, Memslot)> {
        let old = self.existing(as_id, id)?;
        let slot = self.state.slot(old);
        refuse_if(slot.flags & GUEST_MEMFD != 0 || !self.limits.is_aligned(at.0), Errno::EINVAL)?;
        let kept = Pages(self.limits.gfn(at).0.wrapping_sub(slot.base_gfn.0));
        refuse_if(kept == Pages(0) || kept >= slot.npages, Errno::EINVAL)?;
        let new_id = match new_id {
            SlotId::ANY => self.free_id(as_id)?,
            id => id,
        };
        refuse_if(!self.limits.has_id(new_id), Errno::EINVAL)?;
        refuse_if(self.record(as_id, new_id).is_some(), Errno::EEXIST)?;
        let lower = Memslot { npages: kept, ..*slot };
        let upper = Memslot {
            id: new_id,
            base_gfn: slot.base_gfn + kept,
            npages: slot.npages - kept,
            userspace_addr: Hva(slot.userspace_addr.0 + kept.bytes(self.limits.page_shift)),
            opaque,
            ..*slot
        };
        Ok((old, lower, upper))
    }

    /// Two neighbours made one: the lower one, the upper one, and what the lower one becomes.
    pub(crate) fn merge(
        &self,
        as_id: AsId,
        lower: SlotId,
        upper: SlotId,
    ) -> Result<(NonNull<Record>, NonNull<Record>, Memslot)> {
        let (low, up) = (self.existing(as_id, lower)?, self.existing(as_id, upper)?);
        let (l, u) = (self.state.slot(low), self.state.slot(up));
        let neighbours = l.end_gfn() == u.base_gfn
            && l.userspace_addr.0 + l.npages.bytes(self.limits.page_shift) == u.userspace_addr.0;
        refuse_if(!neighbours || l.flags != u.flags || l.flags & GUEST_MEMFD != 0, Errno::EINVAL)?;
        let npages = l.npages + u.npages;
        refuse_if(npages > MAX_SLOT_PAGES, Errno::EINVAL)?;
        Ok((low, up, Memslot { npages, ..*l }))
    }

    /// What a slot of a whole new table is: the request alone, or the slot that already answers to it, changed.
    pub(crate) fn desired(&self, region: &Region, opaque: *mut c_void) -> Result<(Option<NonNull<Record>>, Memslot)> {
        refuse_if(region.memory_size == 0, Errno::EINVAL)?;
        self.limits.check(region)?;
        let new = self.limits.slot(region, opaque);
        let kept = self.record(region.as_id(), region.id()).filter(|old| {
            let old = self.state.slot(*old);
            let fixed = |slot: &Memslot| {
                let fixed_flags = slot.flags & !LOG_DIRTY_PAGES;
                (slot.userspace_addr, slot.npages, fixed_flags, slot.guest_memfd, slot.guest_memfd_offset)
            };
            let bound_elsewhere = new.flags & GUEST_MEMFD != 0 && old.base_gfn != new.base_gfn;
            fixed(old) == fixed(&new) && !bound_elsewhere
        });
        let opaque = kept.map_or(opaque, |old| self.state.slot(old).opaque);
        Ok((kept, Memslot { opaque, ..new }))
    }

    /// Steps 16 to 18.
    #[inline(always)]
    fn change(&self, old: NonNull<Record>, new: Memslot) -> Result<Decision> {
        let slot = self.state.slot(old);
        let fixed = |slot: &Memslot| (slot.userspace_addr, slot.npages, slot.flags & (READONLY | GUEST_MEMFD));
        refuse_if(new.flags & GUEST_MEMFD != 0 || fixed(slot) != fixed(&new), Errno::EINVAL)?;
        if (slot.base_gfn, slot.flags) == (new.base_gfn, new.flags) {
            return Ok(Decision::Nothing);
        }
        let new = Memslot { opaque: slot.opaque, ..new };
        if slot.base_gfn != new.base_gfn {
            self.may_place(&new)?;
        }
        Ok(Decision::Replace { old, new })
    }

    /// Steps 18, 20 and 23 of a create. What the kernel can say of a guest_memfd beyond -1, only the kernel says.
    #[inline(always)]
    pub(crate) fn may_create(&self, new: &Memslot) -> Result<()> {
        self.may_overlap_none(new)?;
        refuse_if(new.flags & GUEST_MEMFD != 0 && new.guest_memfd < 0, Errno::EBADF)?;
        refuse_if(new.end_gfn() > self.limits.end_gfn(), Errno::EINVAL)
    }

    /// Steps 18 and 23.
    #[inline(always)]
    fn may_place(&self, new: &Memslot) -> Result<()> {
        self.may_overlap_none(new)?;
        refuse_if(new.end_gfn() > self.limits.end_gfn(), Errno::EINVAL)
    }

    fn may_overlap_none(&self, new: &Memslot) -> Result<()> {
        // SAFETY: the state is alive while the rules are asked.
        let other = unsafe { self.space(new.as_id)?.overlapping(new.base_gfn, new.npages, Some(new.id)) };
        refuse_if(other.is_some(), Errno::EEXIST)
    }

    fn space(&self, as_id: AsId) -> Result<&'a Space> {
        self.state.space(as_id).ok_or(Errno::EINVAL)
    }

    fn record(&self, as_id: AsId, id: SlotId) -> Option<NonNull<Record>> {
        // SAFETY: the state is alive while the rules are asked.
        unsafe { self.state.space(as_id)?.find_id(id) }
    }

    #[inline(always)]
    fn existing(&self, as_id: AsId, id: SlotId) -> Result<NonNull<Record>> {
        self.space(as_id)?;
        self.record(as_id, id).ok_or(Errno::ENOENT)
    }

    fn free_id(&self, as_id: AsId) -> Result<SlotId> {
        // SAFETY: the state is alive while the rules are asked.
        let id = unsafe { self.space(as_id)?.lowest_free_id() };
        refuse_if(id >= self.limits.max_slots as usize, Errno::ENOSPC)?;
        Ok(SlotId(id as u16))
    }
}

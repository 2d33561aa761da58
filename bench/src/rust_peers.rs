// SPDX-License-Identifier: MIT OR Apache-2.0

//! The peers written in Rust: rust-vmm's vm-memory, and what one writes first, a `BTreeMap` under
//! a `RwLock`. Each used as its documentation shows. Knows nothing of how it is measured.

use crate::loops::Structure;
use crate::peer::{Change, Slot, PAGE_SHIFT};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use vm_memory::atomic::GuestMemoryLoadGuard;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};

/// `GuestMemoryMmap` (a sorted vector) behind `GuestMemoryAtomic`. It has neither ids nor flags,
/// and nothing by hva.
pub struct VmMemory {
    map: GuestMemoryAtomic<GuestMemoryMmap<()>>,
}

fn address(gfn: u64) -> GuestAddress {
    GuestAddress(gfn << PAGE_SHIFT)
}

fn region(slot: &Slot) -> Option<GuestRegionMmap<()>> {
    let size = (slot.npages << PAGE_SHIFT) as usize;
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    // SAFETY: nothing is mapped there and nobody goes there: only the addresses are looked up.
    let mapping = unsafe { builder.with_raw_mmap_pointer(slot.hva as *mut u8) }.build().ok()?;
    GuestRegionMmap::new(mapping, address(slot.gfn))
}

fn moved(map: &GuestMemoryMmap<()>, change: &Change) -> Option<GuestMemoryMmap<()>> {
    let size = change.npages << PAGE_SHIFT;
    let (without, region) = map.remove_region(address(change.old_gfn), size).ok()?;
    let region = GuestRegionMmap::with_arc(region.get_mmap(), address(change.new_gfn))?;
    without.insert_region(Arc::new(region)).ok()
}

impl Structure for VmMemory {
    const NAME: &'static CStr = c"vm-memory";
    const HAS_HVA: bool = false;
    const HAS_IDS: bool = false;
    const HAS_FLAGS: bool = false;

    type Section<'t> = GuestMemoryLoadGuard<GuestMemoryMmap<()>>;
    type Found = GuestRegionMmap<()>;

    fn new(_max_slots: u32) -> Self {
        Self { map: GuestMemoryAtomic::new(GuestMemoryMmap::new()) }
    }

    #[inline(always)]
    fn section(&self) -> Self::Section<'_> {
        self.map.memory()
    }

    fn create(&self, slot: &Slot) -> Option<()> {
        let guard = self.map.lock().ok()?;
        let map = self.map.memory().insert_region(Arc::new(region(slot)?)).ok()?;
        guard.replace(map);
        Some(())
    }

    fn create_all(&self, slots: &[Slot]) -> Option<()> {
        let guard = self.map.lock().ok()?;
        let mut regions: Vec<_> = slots.iter().map(region).collect::<Option<_>>()?;
        regions.sort_by_key(|region| region.start_addr());
        guard.replace(GuestMemoryMmap::from_regions(regions).ok()?);
        Some(())
    }

    fn remove(&self, slot: &Slot) -> Option<()> {
        let guard = self.map.lock().ok()?;
        let size = slot.npages << PAGE_SHIFT;
        let (map, _) = self.map.memory().remove_region(address(slot.gfn), size).ok()?;
        guard.replace(map);
        Some(())
    }

    fn move_slot(&self, change: &Change) -> Option<()> {
        let guard = self.map.lock().ok()?;
        let map = moved(&self.map.memory(), change)?;
        guard.replace(map);
        Some(())
    }

    fn move_all(&self, changes: &[Change]) -> Option<()> {
        changes.iter().try_for_each(|change| self.move_slot(change))
    }

    fn set_flags(&self, _change: &Change) -> Option<()> {
        None
    }

    #[inline(always)]
    fn find_gfn<'s>(section: &'s Self::Section<'_>, gfn: u64) -> Option<&'s Self::Found> {
        section.find_region(address(gfn))
    }

    fn find_id<'s>(_section: &'s Self::Section<'_>, _id: u64) -> Option<&'s Self::Found> {
        None
    }

    fn found_gfn(found: &Self::Found) -> u64 {
        found.start_addr().raw_value() >> PAGE_SHIFT
    }

    #[inline(always)]
    fn gfn_to_hva(section: &Self::Section<'_>, gfn: u64) -> Option<u64> {
        let region = section.find_region(address(gfn))?;
        let offset = region.to_region_addr(address(gfn))?;
        Some(region.get_host_address(offset).ok()? as u64)
    }

    fn hva_to_gfn(_section: &Self::Section<'_>, _hva: u64) -> Option<u64> {
        None
    }

    fn hva_range(_section: &Self::Section<'_>, _start: u64, _last: u64) -> u64 {
        0
    }
}

/// Slots in a `BTreeMap` by gfn, another from hva to gfn, a vector from id to gfn; all under one
/// `RwLock`. (The slots' hvas do not overlap in these measurements; it could not tell if they did.)
pub struct Maps {
    maps: RwLock<Inner>,
}

#[derive(Default)]
pub struct Inner {
    by_gfn: BTreeMap<u64, Slot>,
    by_hva: BTreeMap<u64, u64>,
    by_id: Vec<Option<u64>>,
}

impl Inner {
    #[inline(always)]
    fn find(&self, gfn: u64) -> Option<&Slot> {
        let (_, slot) = self.by_gfn.range(..=gfn).next_back()?;
        (gfn < slot.gfn + slot.npages).then_some(slot)
    }

    fn overlaps(&self, gfn: u64, npages: u64, id: u32) -> bool {
        let below = self.by_gfn.range(..gfn + npages).rev();
        below.take_while(|(_, slot)| slot.gfn + slot.npages > gfn).any(|(_, slot)| slot.id != id)
    }

    fn insert(&mut self, slot: &Slot) -> Option<()> {
        let id = slot.id as usize;
        if self.by_id.len() <= id {
            self.by_id.resize(id + 1, None);
        }
        if self.by_id[id].is_some() || self.overlaps(slot.gfn, slot.npages, slot.id) {
            return None;
        }
        self.by_id[id] = Some(slot.gfn);
        self.by_gfn.insert(slot.gfn, *slot);
        self.by_hva.insert(slot.hva, slot.gfn);
        Some(())
    }

    fn remove(&mut self, id: u32) -> Option<Slot> {
        let gfn = self.by_id.get_mut(id as usize)?.take()?;
        let slot = self.by_gfn.remove(&gfn)?;
        self.by_hva.remove(&slot.hva);
        Some(slot)
    }

    fn move_slot(&mut self, change: &Change) -> Option<()> {
        let gfn = (*self.by_id.get(change.id as usize)?)?;
        if self.overlaps(change.new_gfn, change.npages, change.id) {
            return None;
        }
        let mut slot = self.by_gfn.remove(&gfn)?;
        slot.gfn = change.new_gfn;
        self.by_id[change.id as usize] = Some(slot.gfn);
        *self.by_hva.get_mut(&slot.hva)? = slot.gfn;
        self.by_gfn.insert(slot.gfn, slot);
        Some(())
    }
}

impl Structure for Maps {
    const NAME: &'static CStr = c"BTreeMap";
    const HAS_HVA: bool = true;
    const HAS_IDS: bool = true;
    const HAS_FLAGS: bool = true;

    type Section<'t> = RwLockReadGuard<'t, Inner>;
    type Found = Slot;

    fn new(_max_slots: u32) -> Self {
        Self { maps: RwLock::default() }
    }

    #[inline(always)]
    fn section(&self) -> Self::Section<'_> {
        self.maps.read().expect("no writer panicked")
    }

    fn create(&self, slot: &Slot) -> Option<()> {
        self.maps.write().ok()?.insert(slot)
    }

    fn create_all(&self, slots: &[Slot]) -> Option<()> {
        let mut maps = self.maps.write().ok()?;
        slots.iter().try_for_each(|slot| maps.insert(slot))
    }

    fn remove(&self, slot: &Slot) -> Option<()> {
        self.maps.write().ok()?.remove(slot.id).map(|_| ())
    }

    fn move_slot(&self, change: &Change) -> Option<()> {
        self.maps.write().ok()?.move_slot(change)
    }

    fn move_all(&self, changes: &[Change]) -> Option<()> {
        let mut maps = self.maps.write().ok()?;
        changes.iter().try_for_each(|change| maps.move_slot(change))
    }

    fn set_flags(&self, change: &Change) -> Option<()> {
        let mut maps = self.maps.write().ok()?;
        let gfn = (*maps.by_id.get(change.id as usize)?)?;
        maps.by_gfn.get_mut(&gfn)?.flags = change.flags;
        Some(())
    }

    #[inline(always)]
    fn find_gfn<'s>(section: &'s Self::Section<'_>, gfn: u64) -> Option<&'s Self::Found> {
        section.find(gfn)
    }

    #[inline(always)]
    fn find_id<'s>(section: &'s Self::Section<'_>, id: u64) -> Option<&'s Self::Found> {
        let gfn = (*section.by_id.get(id as usize)?)?;
        section.by_gfn.get(&gfn)
    }

    fn found_gfn(found: &Self::Found) -> u64 {
        found.gfn
    }

    #[inline(always)]
    fn gfn_to_hva(section: &Self::Section<'_>, gfn: u64) -> Option<u64> {
        let slot = section.find(gfn)?;
        Some(slot.hva + ((gfn - slot.gfn) << PAGE_SHIFT))
    }

    #[inline(always)]
    fn hva_to_gfn(section: &Self::Section<'_>, hva: u64) -> Option<u64> {
        let (start, gfn) = section.by_hva.range(..=hva).next_back()?;
        let slot = section.by_gfn.get(gfn)?;
        (hva - start < slot.npages << PAGE_SHIFT).then(|| gfn + ((hva - start) >> PAGE_SHIFT))
    }

    #[inline(always)]
    fn hva_range(section: &Self::Section<'_>, start: u64, last: u64) -> u64 {
        let mut sum = 0;
        for (hva, gfn) in section.by_hva.range(..=last).rev() {
            let slot = &section.by_gfn[gfn];
            if hva + (slot.npages << PAGE_SHIFT) <= start {
                break;
            }
            sum += gfn + 1;
        }
        sum
    }
}

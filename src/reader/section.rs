// SPDX-License-Identifier: MIT OR Apache-2.0
//! Read-side sections, and what can be asked in one.
//!
//! Knows lookups and walks; not how they are done.

use super::walk::{Iter, Walk};
use super::Reader;
use crate::error::{Errno, Result};
use crate::slot::{Access, AsId, Gfn, Gpa, Hva, Memslot, Pages, Region, SlotId};
use crate::snapshot::{PublishedRef, Space};
use std::marker::PhantomData;
use std::ops::Range;

/// An open read-side section. Every lookup sees the newest publication; what it finds stays valid until the section
/// ends.
pub struct Section<'r> {
    pub(super) reader: &'r Reader,
    pub(super) leave: bool,
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.leave {
            self.reader.leave();
        }
    }
}

impl<'r> Section<'r> {
    /// The newest publication. Alive until the section ends.
    #[inline(always)]
    fn published(&self) -> PublishedRef<'_> {
        // SAFETY: this section is open.
        unsafe { self.reader.published() }
    }

    #[inline(always)]
    fn space(&self, as_id: AsId) -> Option<&Space> {
        self.published().space(as_id)
    }

    /// The slot that holds a frame. A slot that is being deleted or moved is found with `INVALID` set.
    #[inline(always)]
    pub fn find_gfn(&self, as_id: AsId, gfn: Gfn) -> Option<&Memslot> {
        // SAFETY: this section is open.
        let found = self.reader.last_used(as_id, gfn).or_else(|| unsafe { self.reader.find_gfn(as_id, gfn) });
        // SAFETY: of a publication that was current after this section began, so the section keeps it.
        found.map(|slot| unsafe { slot.as_ref() })
    }

    /// As `find_gfn`; in a hole the slot below it, or the lowest slot where none is below. None only for an empty
    /// space.
    pub fn find_gfn_approx(&self, as_id: AsId, gfn: Gfn) -> Option<&Memslot> {
        let published = self.published();
        // SAFETY: the section keeps the publication.
        unsafe { published.space(as_id)?.find_gfn_approx(gfn) }.map(|record| published.slot(record))
    }

    /// The slot with an id.
    #[inline(always)]
    pub fn find_id(&self, as_id: AsId, id: SlotId) -> Option<&Memslot> {
        let published = self.published();
        // SAFETY: the section keeps the publication.
        unsafe { published.space(as_id)?.find_id(id) }.map(|record| published.slot(record))
    }

    /// The slot that holds a byte of host memory: of several, the one that starts lowest, then the lowest id.
    #[inline(always)]
    pub fn find_hva(&self, as_id: AsId, hva: Hva) -> Option<&Memslot> {
        // SAFETY: this section is open, and keeps what is found.
        unsafe { self.reader.find_hva(as_id, hva).map(|slot| slot.as_ref()) }
    }

    /// Where a guest address is in this process, and how many bytes its slot goes on from there.
    ///
    /// # Errors
    /// `ENOENT` in a hole, `EAGAIN` where the slot is being deleted or moved, `EROFS` for a write to a read-only slot,
    /// `EINVAL` where there is no such address space.
    #[inline]
    pub fn gpa_to_hva(&self, as_id: AsId, gpa: Gpa, access: Access) -> Result<(Hva, u64)> {
        let shift = self.reader.page_shift();
        let Some(slot) = self.find_gfn(as_id, Gfn(gpa.0 >> shift)) else {
            return Err(self.space(as_id).map_or(Errno::EINVAL, |_| Errno::ENOENT));
        };
        if slot.is_invalid() {
            return Err(Errno::EAGAIN);
        }
        if access == Access::Write && slot.is_readonly() {
            return Err(Errno::EROFS);
        }
        let size = slot.npages.bytes(shift);
        let offset = index_nospec(gpa.0 - slot.base_gfn.gpa(shift).0, size);
        Ok((Hva(slot.userspace_addr.0 + offset), size - offset))
    }

    /// The guest address of a byte of host memory, by the slot that `find_hva` finds.
    ///
    /// # Errors
    /// `ENOENT` where no slot has it, `EINVAL` where there is no such address space.
    #[inline]
    pub fn hva_to_gpa(&self, as_id: AsId, hva: Hva) -> Result<Gpa> {
        let Some(slot) = self.find_hva(as_id, hva) else {
            return Err(self.space(as_id).map_or(Errno::EINVAL, |_| Errno::ENOENT));
        };
        let shift = self.reader.page_shift();
        Ok(Gpa(slot.base_gfn.gpa(shift).0 + (hva.0 - slot.userspace_addr.0)))
    }

    /// The space's generation: i + k * n for space i of n; another content, another value.
    pub fn generation(&self, as_id: AsId) -> u64 {
        self.space(as_id).map_or(0, |space| space.generation)
    }

    /// Slots in the space.
    pub fn count(&self, as_id: AsId) -> u32 {
        self.space(as_id).map_or(0, |space| space.count)
    }

    /// Pages of all slots in the space.
    pub fn npages(&self, as_id: AsId) -> Pages {
        self.space(as_id).map_or(Pages(0), |space| space.npages)
    }

    /// All slots, ascending by gfn, of the publication that is current now.
    pub fn iter(&self, as_id: AsId) -> Iter<'_> {
        self.iter_gfn(as_id, Gfn(0)..Gfn(u64::MAX))
    }

    /// Exactly the slots with a frame in the range, ascending by gfn.
    pub fn iter_gfn(&self, as_id: AsId, range: Range<Gfn>) -> Iter<'_> {
        // SAFETY: this section is open, and outlives the iterator.
        Iter::new(|walk| unsafe { self.reader.walk_gfn(as_id, range, walk) })
    }

    /// Exactly the slots with a byte in `first..=last`, ascending by hva, then by id.
    pub fn iter_hva(&self, as_id: AsId, first: Hva, last: Hva) -> Iter<'_> {
        // SAFETY: as above.
        Iter::new(|walk| unsafe { self.reader.walk_hva(as_id, first, last, walk) })
    }

    /// The requests that the slots of a space answer to, ascending by gfn: as many as there is room for. Gives how many
    /// there are.
    pub fn regions(&self, as_id: AsId, out: &mut [Region]) -> usize {
        // One publication for both, the slots and their number.
        let Some(space) = self.space(as_id) else { return 0 };
        let shift = self.reader.page_shift();
        // SAFETY: the section keeps the publication.
        let walk = Walk { space, cursor: unsafe { space.walk() }, by_hva: false };
        let slots = Iter { walk, section: PhantomData };
        out.iter_mut().zip(slots).for_each(|(region, slot)| *region = Region::of(slot, shift));
        space.count as usize
    }
}

/// `offset` where it is below `size`, else 0, without a branch: behind a mispredicted check no guest-controlled address
/// outside the slot is formed. The kernel does the same (`array_index_nospec`).
#[inline(always)]
fn index_nospec(offset: u64, size: u64) -> u64 {
    let inside = (!offset & offset.wrapping_sub(size)) >> 63;
    offset & inside.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::index_nospec;

    #[test]
    fn an_offset_that_is_not_inside_becomes_0() {
        let sizes = [4096, 1 << 20, 1 << 43];
        for (size, offset) in sizes.into_iter().flat_map(|size| [0, 1, size - 1].map(|offset| (size, offset))) {
            assert_eq!(index_nospec(offset, size), offset);
            for outside in [size + offset, offset.wrapping_sub(size), 1 << 63 | offset, (1 << 63) + size + offset] {
                assert_eq!(index_nospec(outside, size), 0, "{outside:#x} of {size:#x}");
            }
        }
    }
}

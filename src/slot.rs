// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vocabulary: what a memslot is, what a request for one looks like, flags and limits.
//!
//! Knows nothing but these words. Everything else in the crate is built on them. Ids, address spaces, frames, pages and
//! addresses are types of their own, so that none is taken for another; a number of bytes is a plain `u64`, as it is in
//! the kernel's structures.

use std::ffi::c_void;
use std::fmt;
use std::ops::{Add, AddAssign, Range, Sub, SubAssign};

/// The number of a slot in its address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct SlotId(pub u16);

/// The number of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct AsId(pub u16);

/// A number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pages(pub u64);

/// A guest frame number: a guest physical address in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gfn(pub u64);

/// A guest physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gpa(pub u64);

/// A host virtual address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Hva(pub u64);

/// A page of this process's memory: a host virtual address in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub(crate) struct HostPage(pub(crate) u64);

/// Shown as the number that it is.
macro_rules! shown {
    ($($name:ident as $format:ident),*) => {
        $(impl fmt::$format for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::$format::fmt(&self.0, f)
            }
        })*
    };
}

shown!(SlotId as Display, AsId as Display, Pages as Display, Gfn as LowerHex, Gpa as LowerHex, Hva as LowerHex);

/// A set of address spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AsIds(u64);

const _: () = assert!(MAX_ADDRESS_SPACES <= u64::BITS);

impl AsIds {
    pub(crate) fn insert(&mut self, as_id: AsId) {
        self.0 |= 1 << as_id.0;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The address spaces in the set, lowest first.
    pub(crate) fn iter(self) -> impl Iterator<Item = AsId> {
        let without_lowest = |set: &u64| Some(set & set.wrapping_sub(1));
        std::iter::successors(Some(self.0), without_lowest)
            .take_while(|set| *set != 0)
            .map(|set| AsId(set.trailing_zeros() as u16))
    }
}

impl SlotId {
    /// In a request to create: take the lowest id that is free. Never the id of a slot.
    pub const ANY: SlotId = SlotId(u16::MAX);
}

impl Pages {
    /// The same in bytes.
    pub(crate) const fn bytes(self, page_shift: u32) -> u64 {
        self.0 << page_shift
    }
}

impl Add for Pages {
    type Output = Pages;

    fn add(self, other: Pages) -> Pages {
        Pages(self.0 + other.0)
    }
}

impl AddAssign for Pages {
    fn add_assign(&mut self, other: Pages) {
        self.0 += other.0;
    }
}

impl SubAssign for Pages {
    fn sub_assign(&mut self, other: Pages) {
        self.0 -= other.0;
    }
}

impl Sub for Pages {
    type Output = Pages;

    fn sub(self, other: Pages) -> Pages {
        Pages(self.0 - other.0)
    }
}

impl Add<Pages> for Gfn {
    type Output = Gfn;

    fn add(self, pages: Pages) -> Gfn {
        Gfn(self.0 + pages.0)
    }
}

impl Gfn {
    /// The first byte of the frame.
    pub(crate) fn gpa(self, page_shift: u32) -> Gpa {
        Gpa(self.0 << page_shift)
    }
}

impl Hva {
    /// The page that the byte is in.
    pub(crate) fn page(self, page_shift: u32) -> HostPage {
        HostPage(self.0 >> page_shift)
    }
}

impl HostPage {
    /// The page's first byte.
    pub(crate) fn hva(self, page_shift: u32) -> Hva {
        Hva(self.0 << page_shift)
    }
}

impl Sub for HostPage {
    type Output = Pages;

    fn sub(self, other: HostPage) -> Pages {
        Pages(self.0 - other.0)
    }
}

impl Add<Pages> for HostPage {
    type Output = HostPage;

    fn add(self, pages: Pages) -> HostPage {
        HostPage(self.0 + pages.0)
    }
}

/// Log the pages that the guest writes (`KVM_MEM_LOG_DIRTY_PAGES`).
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// The guest may not write (`KVM_MEM_READONLY`).
pub const READONLY: u32 = 1 << 1;
/// Private memory behind a guest_memfd (`KVM_MEM_GUEST_MEMFD`).
pub const GUEST_MEMFD: u32 = 1 << 2;
/// The slot is on its way out or to another place: found, but not to be used. Never in a request.
pub const INVALID: u32 = 1 << 16;

/// The most pages that one slot can have: the kernel's dirty bitmaps are indexed by 31 bits.
pub const MAX_SLOT_PAGES: Pages = Pages((1 << 31) - 1);

/// The most address spaces that one table can have. KVM has two at most.
pub const MAX_ADDRESS_SPACES: u32 = 64;

/// A published slot. It never changes in place: an update publishes another one.
///
/// Layout: `struct memslot` of the C header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    /// First guest frame.
    pub base_gfn: Gfn,
    /// Size in pages; never 0.
    pub npages: Pages,
    /// Host virtual address of the first byte.
    pub userspace_addr: Hva,
    /// Offset in `guest_memfd`, in bytes.
    pub guest_memfd_offset: u64,
    /// The caller's, given when the slot was created.
    pub opaque: *mut c_void,
    /// The guest_memfd file, or -1 where there is none.
    pub guest_memfd: i32,
    /// `LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD | INVALID`.
    pub flags: u32,
    /// The slot's number in its address space.
    pub id: SlotId,
    /// The address space.
    pub as_id: AsId,
}

// SAFETY: `opaque` is never dereferenced here; what it points to is the caller's to share between threads, as
// `memslots_set_region` documents. All else is plain data that does not change.
unsafe impl Send for Memslot {}
// SAFETY: as above.
unsafe impl Sync for Memslot {}

impl Memslot {
    /// One past the last guest frame. Cannot wrap: a slot's range was checked when it was created.
    pub fn end_gfn(&self) -> Gfn {
        self.base_gfn + self.npages
    }

    /// Whether `gfn` is one of this slot's frames.
    pub fn contains(&self, gfn: Gfn) -> bool {
        gfn.0.wrapping_sub(self.base_gfn.0) < self.npages.0
    }

    /// Where a frame's memory is. For frames that are not the slot's, where it would be if the slot went on.
    pub(crate) fn hva_of(&self, gfn: Gfn, page_shift: u32) -> Hva {
        let pages = Pages(gfn.0.wrapping_sub(self.base_gfn.0));
        Hva(self.userspace_addr.0.wrapping_add(pages.bytes(page_shift)))
    }

    /// The pages of host memory that it maps.
    pub(crate) fn host_pages(&self, page_shift: u32) -> Range<HostPage> {
        let start = self.userspace_addr.page(page_shift);
        start..start + self.npages
    }

    /// Whether the slot is being deleted or moved.
    pub fn is_invalid(&self) -> bool {
        self.flags & INVALID != 0
    }

    /// Whether guest writes are refused.
    pub fn is_readonly(&self) -> bool {
        self.flags & READONLY != 0
    }
}

/// A request: byte for byte `struct kvm_userspace_memory_region2` of linux/kvm.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Slot id in the low 16 bits, address space in the high 16.
    pub slot: u32,
    /// `LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD`.
    pub flags: u32,
    /// First byte in the guest.
    pub guest_phys_addr: u64,
    /// Bytes; 0 deletes.
    pub memory_size: u64,
    /// First byte in this process.
    pub userspace_addr: u64,
    /// Offset in `guest_memfd`, in bytes.
    pub guest_memfd_offset: u64,
    /// The guest_memfd file; looked at only with `GUEST_MEMFD`.
    pub guest_memfd: u32,
    /// Not looked at.
    pub pad1: u32,
    /// Not looked at.
    pub pad2: [u64; 14],
}

impl Region {
    /// The slot id.
    pub fn id(&self) -> SlotId {
        SlotId(self.slot as u16)
    }

    /// The address space.
    pub fn as_id(&self) -> AsId {
        AsId((self.slot >> 16) as u16)
    }

    /// Both in one, as the kernel has them in `slot`.
    pub fn slot_of(as_id: AsId, id: SlotId) -> u32 {
        (as_id.0 as u32) << 16 | id.0 as u32
    }

    /// The request that a slot would be the answer to.
    pub fn of(slot: &Memslot, page_shift: u32) -> Self {
        Region {
            slot: Region::slot_of(slot.as_id, slot.id),
            flags: slot.flags & !INVALID,
            guest_phys_addr: slot.base_gfn.gpa(page_shift).0,
            memory_size: slot.npages.bytes(page_shift),
            userspace_addr: slot.userspace_addr.0,
            guest_memfd_offset: slot.guest_memfd_offset,
            // -1 travels as all ones, as a file descriptor does through the kernel's u32.
            guest_memfd: slot.guest_memfd as u32,
            ..Region::default()
        }
    }
}

/// How an address is going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest reads.
    Read,
    /// The guest writes: refused by a `READONLY` slot.
    Write,
}

/// What is asked of every slot of a table, fixed when the table is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Address spaces.
    pub(crate) nr_address_spaces: u32,
    /// Slots (and ids) in each address space.
    pub(crate) max_slots: u32,
    /// log2 of the page size in bytes.
    pub(crate) page_shift: u32,
    /// Flags that a request may have.
    pub(crate) supported_flags: u32,
    /// Where usable host addresses end.
    pub(crate) hva_limit: u64,
    /// Bits of a guest physical address.
    pub(crate) gpa_bits: u32,
}

impl Limits {
    /// KVM's on this architecture.
    pub(crate) const KVM: Limits = Limits {
        nr_address_spaces: 1,
        max_slots: 32_764,
        page_shift: 12,
        supported_flags: LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD,
        hva_limit: Self::HVA_LIMIT,
        gpa_bits: 52,
    };

    /// The x86-64 kernel's TASK_SIZE_MAX with four-level page tables; elsewhere only wrapping is refused.
    const HVA_LIMIT: u64 = if cfg!(target_arch = "x86_64") { (1 << 47) - 4096 } else { u64::MAX };

    /// The first frame that no slot can have.
    pub(crate) fn end_gfn(&self) -> Gfn {
        Gfn(1 << (self.gpa_bits - self.page_shift))
    }
}

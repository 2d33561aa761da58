// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last-used slot of a reader: by value, with the number of the publication that it came from.
//!
//! Knows the current publication's number; not how a slot is searched for. While the number is current, an access to
//! the same slot is answered by one load and two compares. A miss in a hole leaves it alone, as in the kernel
//! (`docs/kernel-semantics.md`, section 6).

use super::lookup::SearchGfn;
use super::Reader;
use crate::published::{Current, SEQ_STEP};
use crate::slot::{AsId, Gfn, Memslot, Pages, MAX_ADDRESS_SPACES};
use std::cell::Cell;
use std::mem::offset_of;
use std::ptr::NonNull;

/// What a hit needs, on one line at the start of a reader: the C header's inline lookup knows this layout
/// (`struct memslots_reader_hot`).
#[repr(C, align(64))]
pub(super) struct Hot {
    /// Its first word is the current publication's number.
    pub(super) current: *const Current,
    /// Publication and address space that `slot` is of, see `key`; `CLOSED` outside of a section.
    pub(super) key: Cell<u64>,
    pub(super) base_gfn: Cell<Gfn>,
    pub(super) npages: Cell<Pages>,
    pub(super) slot: Cell<*const Memslot>,
    /// Sections open, one inside the other.
    pub(super) depth: Cell<u64>,
    pub(super) misses: Cell<u64>,
    /// What `key` is in the next section; 0 before the first lookup.
    pub(super) kept_key: Cell<u64>,
    /// What a miss calls: the function of `Reader::searches`.
    pub(super) search_gfn: SearchGfn,
}

// What the header asserts of `struct memslots_reader_hot`.
const _: () = {
    assert!(offset_of!(Hot, current) == 0 && offset_of!(Hot, key) == 8 && offset_of!(Hot, base_gfn) == 16);
    assert!(offset_of!(Hot, npages) == 24 && offset_of!(Hot, slot) == 32);
};

/// In a space of no more slots than this a search costs less than a mispredicted branch, and a random lookup is a hit
/// often enough to be mispredicted: there, a slot counts as last used once it was found twice in a row.
pub(super) const FEW: u32 = 16;

/// The last-used slot's key while no section is open: nothing hits then.
pub(super) const CLOSED: u64 = 1 << 63;

/// A publication's number and an address space in one: no other pair of a publication up to this one and a space has
/// the same, nor does one with a space that there cannot be, since publications are a step apart.
#[inline(always)]
pub(super) fn key(seq: u64, as_id: AsId) -> u64 {
    seq.wrapping_add(as_id.0 as u64)
}

const _: () = assert!(SEQ_STEP >= MAX_ADDRESS_SPACES as u64);

impl Reader {
    /// The last-used slot, where it holds the frame, is of the current publication, and a section is open.
    #[inline(always)]
    pub(crate) fn last_used(&self, as_id: AsId, gfn: Gfn) -> Option<NonNull<Memslot>> {
        let hot = &self.hot;
        let hit =
            hot.key.get() == key(self.seq(), as_id) && gfn.0.wrapping_sub(hot.base_gfn.get().0) < hot.npages.get().0;
        // SAFETY: a key that is of some publication was stored with a slot of it.
        hit.then(|| unsafe { NonNull::new_unchecked(hot.slot.get().cast_mut()) })
    }
}

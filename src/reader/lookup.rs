// SPDX-License-Identifier: MIT OR Apache-2.0
//! Searches for what the last-used slot does not answer, compiled for each kind of processor.
//!
//! Knows snapshots; not sections. The search is compiled as one function from here on, so that all of it is for the
//! processor.

use super::last_used::{key, FEW};
use super::walk::Walk;
use super::Reader;
#[cfg(target_arch = "x86_64")]
use crate::index::node::{Avx2, Avx512};
use crate::index::node::{Baseline, Lanes};
use crate::slot::{AsId, Gfn, HostPage, Hva, Memslot, Pages};
use crate::snapshot::Record;
use std::hint::select_unpredictable;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Where a walk is to stand.
type Begun = MaybeUninit<Walk>;

pub(super) type SearchGfn = unsafe extern "C" fn(&Reader, AsId, Gfn) -> Option<NonNull<Memslot>>;

/// What the last-used slot does not answer, compiled for one kind of processor. No reader is of a kind that its
/// processor is not.
pub(super) struct Searches {
    pub(super) gfn: SearchGfn,
    pub(super) hva: unsafe extern "C" fn(&Reader, AsId, Hva) -> Option<NonNull<Memslot>>,
    pub(super) walk_gfn: unsafe extern "C" fn(&Reader, AsId, Gfn, Gfn, &mut Begun),
    pub(super) walk_hva: unsafe extern "C" fn(&Reader, AsId, HostPage, HostPage, &mut Begun),
}

/// The searches of one kind of processor. Extern "C", so that they cannot unwind, and a hit in front of one needs no
/// frame.
macro_rules! searches {
    ($module:ident, $lanes:ident $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;

            pub(super) static SEARCHES: Searches = Searches { gfn, hva, walk_gfn, walk_hva };

            $(#[$feature])?
            unsafe extern "C" fn gfn(reader: &Reader, as_id: AsId, gfn: Gfn) -> Option<NonNull<Memslot>> {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.search_gfn::<$lanes>(as_id, gfn) }
            }

            $(#[$feature])?
            unsafe extern "C" fn hva(reader: &Reader, as_id: AsId, hva: Hva) -> Option<NonNull<Memslot>> {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.search_hva::<$lanes>(as_id, hva) }
            }

            $(#[$feature])?
            unsafe extern "C" fn walk_gfn(reader: &Reader, as_id: AsId, first: Gfn, last: Gfn, walk: &mut Begun) {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.begin_walk(as_id, walk, false, |space| space.walk_gfn::<$lanes>(first, last)) }
            }

            $(#[$feature])?
            unsafe extern "C" fn walk_hva(
                reader: &Reader,
                as_id: AsId,
                first: HostPage,
                last: HostPage,
                walk: &mut Begun,
            ) {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.begin_walk(as_id, walk, true, |space| space.walk_hva::<$lanes>(first, last)) }
            }
        }
    };
}

searches!(baseline, Baseline);
#[cfg(target_arch = "x86_64")]
searches!(avx2, Avx2, #[target_feature(enable = "avx2")]);
#[cfg(target_arch = "x86_64")]
searches!(avx512, Avx512, #[target_feature(enable = "avx512f")]);

impl Searches {
    /// The best that the processor has. `--cfg memslots_no_avx512` is for measuring what others have to do with.
    pub(super) fn of_this_processor() -> &'static Searches {
        #[cfg(target_arch = "x86_64")]
        if !cfg!(memslots_no_avx512) && is_x86_feature_detected!("avx512f") {
            return &avx512::SEARCHES;
        } else if is_x86_feature_detected!("avx2") {
            return &avx2::SEARCHES;
        }
        &baseline::SEARCHES
    }
}

impl Reader {
    /// The slot that holds a frame, where it is not the last-used one; it is, from now on (but see `FEW`).
    ///
    /// # Safety
    /// A section is open.
    #[inline(always)]
    pub(crate) unsafe fn find_gfn(&self, as_id: AsId, gfn: Gfn) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe { (self.hot.search_gfn)(self, as_id, gfn) }
    }

    /// # Safety
    /// As `find_gfn`; the processor is of the kind `L`.
    #[inline(always)]
    unsafe fn search_gfn<L: Lanes>(&self, as_id: AsId, gfn: Gfn) -> Option<NonNull<Memslot>> {
        let hot = &self.hot;
        hot.misses.set(hot.misses.get() + 1);
        // SAFETY: the section keeps what is current after it began.
        let (published, space, found) = unsafe {
            let published = self.published();
            let space = published.space(as_id)?;
            (published, space, space.find_gfn::<L>(gfn)?)
        };
        let slot = Record::slot_pointer(found.record);
        let mut npages = found.npages;
        if space.count <= FEW {
            // No branch on what is random.
            let again = slot.as_ptr().cast_const() == hot.slot.get();
            npages = select_unpredictable(again, npages, Pages(0));
        }
        let key = key(published.seq(), as_id);
        hot.key.set(key);
        hot.kept_key.set(key);
        hot.base_gfn.set(found.base_gfn);
        hot.npages.set(npages);
        hot.slot.set(slot.as_ptr());
        Some(slot)
    }

    /// The slot that holds a byte of host memory: of several, the one that starts lowest, then the lowest id.
    ///
    /// # Safety
    /// A section is open.
    #[inline(always)]
    pub(crate) unsafe fn find_hva(&self, as_id: AsId, hva: Hva) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe { (self.searches.hva)(self, as_id, hva) }
    }

    /// # Safety
    /// As `find_hva`; the processor is of the kind `L`.
    #[inline(always)]
    unsafe fn search_hva<L: Lanes>(&self, as_id: AsId, hva: Hva) -> Option<NonNull<Memslot>> {
        // SAFETY: the section keeps what is current after it began.
        let space = unsafe { self.published() }.space(as_id)?;
        // SAFETY: as above.
        unsafe { space.find_hva_page::<L>(hva.page(self.page_shift())) }.map(Record::slot_pointer)
    }
}

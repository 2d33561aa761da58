// SPDX-License-Identifier: MIT OR Apache-2.0
//! Walks over the slots of one publication.
//!
//! Knows snapshots and cursors; not how a walk is asked for in C.

use super::Reader;
use crate::index::range_tree::{Cursor, Step};
use crate::slot::{AsId, Gfn, Hva, Memslot};
use crate::snapshot::{id_of, Record, Space};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;

/// A walk over part of one publication. No lifetime: its holder keeps the publication alive.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    pub(super) space: *const Space,
    pub(super) cursor: Cursor,
    pub(super) by_hva: bool,
}

impl Walk {
    pub(crate) const OVER: Walk = Walk { space: std::ptr::null(), cursor: Cursor::OVER, by_hva: false };

    /// # Safety
    /// The publication that the walk began on is alive.
    #[inline(always)]
    pub(crate) unsafe fn next(&mut self) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.cursor.step() {
                Step::Found(word) => self.slot(word),
                Step::Over => None,
                Step::Passed | Step::EndOfLeaf => self.search_next(),
            }
        }
    }

    /// `next`, where the entry that comes next is not it. Out of line, and not to unwind, so that the common step needs
    /// no frame.
    ///
    /// # Safety
    /// As `next`.
    #[inline(never)]
    unsafe extern "C" fn search_next(&mut self) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe { self.cursor.next().and_then(|word| self.slot(word)) }
    }

    /// # Safety
    /// As `next`.
    #[inline(always)]
    unsafe fn slot(&self, word: *mut u8) -> Option<NonNull<Memslot>> {
        if !self.by_hva {
            // A slot stands at the start of its record.
            return NonNull::new(word.cast());
        }
        // SAFETY: the caller's promise; words of the hva tree are ids.
        unsafe { (*self.space).find_id(id_of(word)) }.map(Record::slot_pointer)
    }
}

/// An iterator over the slots of one publication.
pub struct Iter<'s> {
    pub(super) walk: Walk,
    pub(super) section: PhantomData<&'s Memslot>,
}

impl Iter<'_> {
    /// `begin` fills a walk in, or says that there is none.
    pub(super) fn new(begin: impl FnOnce(&mut MaybeUninit<Walk>) -> bool) -> Self {
        let mut walk = MaybeUninit::uninit();
        // SAFETY: filled in.
        let walk = if begin(&mut walk) { unsafe { walk.assume_init() } } else { Walk::OVER };
        Iter { walk, section: PhantomData }
    }
}

impl<'s> Iterator for Iter<'s> {
    type Item = &'s Memslot;

    fn next(&mut self) -> Option<&'s Memslot> {
        // SAFETY: the section, which this borrows from, keeps the publication and what is in it.
        unsafe { self.walk.next().map(|slot| slot.as_ref()) }
    }
}

impl std::iter::FusedIterator for Iter<'_> {}

impl Reader {
    /// Begins a walk over the slots of the newest publication with a frame in `range`. False where that is empty.
    ///
    /// # Safety
    /// A section is open. The walk is used in this section only.
    #[inline(always)]
    pub(crate) unsafe fn walk_gfn(&self, as_id: AsId, range: Range<Gfn>, walk: &mut MaybeUninit<Walk>) -> bool {
        if !range.is_empty() {
            // SAFETY: the caller's promise.
            unsafe { (self.searches.walk_gfn)(self, as_id, range.start, Gfn(range.end.0 - 1), walk) };
        }
        !range.is_empty()
    }

    /// As `walk_gfn`, over those with a byte of host memory in `first..=last`.
    ///
    /// # Safety
    /// As `walk_gfn`.
    #[inline(always)]
    pub(crate) unsafe fn walk_hva(&self, as_id: AsId, first: Hva, last: Hva, walk: &mut MaybeUninit<Walk>) -> bool {
        let shift = self.page_shift();
        if first <= last {
            // SAFETY: the caller's promise.
            unsafe { (self.searches.walk_hva)(self, as_id, first.page(shift), last.page(shift), walk) };
        }
        first <= last
    }

    /// # Safety
    /// As `walk_gfn`.
    #[inline(always)]
    pub(super) unsafe fn begin_walk(
        &self,
        as_id: AsId,
        walk: &mut MaybeUninit<Walk>,
        by_hva: bool,
        begin: impl FnOnce(&Space) -> Cursor,
    ) {
        // SAFETY: the section keeps what is current after it began.
        match unsafe { self.published() }.space(as_id) {
            Some(space) => walk.write(Walk { space, cursor: begin(space), by_hva }),
            None => walk.write(Walk::OVER),
        };
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading: sections, lookups with a last-used slot, iterators, and the hva cache of a device.
//!
//! May not know how updates are made. A reader waits for nobody and takes no lock once it is made; inside a section it
//! writes only what is its own.
//!
//! **The last-used slot** is kept by value, with the number of the publication that it came from. While that is current, an
//! access to the same slot is answered by one load and two compares. A miss in a hole leaves it alone, as in the
//! kernel (`docs/kernel-semantics.md`, section 6).

use crate::error::{Errno, Result};
#[cfg(target_arch = "x86_64")]
use crate::index::node::{Avx2, Avx512};
use crate::index::node::{Baseline, Lanes};
use crate::index::range_tree::{Cursor, Step};
use crate::presence::Presence;
use crate::published::{settled, Current, SEQ_STEP};
use crate::shared::Owner;
use crate::slot::{Access, Gfn, Gpa, Hva, Memslot, Region, MAX_ADDRESS_SPACES};
use crate::snapshot::{PublishedRef, Record, Space};
use crossbeam_epoch::{Guard, LocalHandle};
use std::cell::Cell;
use std::hint::select_unpredictable;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// What a hit needs, on one line at the start of a reader: the C header's inline lookup knows this layout
/// (`struct memslots_reader_hot`).
#[repr(C, align(64))]
struct Hot {
    /// Its first word is the current publication's number.
    current: *const Current,
    /// Publication and address space that `slot` is of; see `key`. With `CLOSED` outside of a section; 0 before the first.
    key: Cell<u64>,
    base_gfn: Cell<u64>,
    npages: Cell<u64>,
    slot: Cell<*const Memslot>,
    /// Sections open, one inside the other.
    depth: Cell<u64>,
    misses: Cell<u64>,
    /// What a miss goes on with: that of `Reader::searches`.
    search_gfn: SearchGfn,
}

/// In a space of no more slots than this a search costs less than a wrong guess, and a random lookup is a hit often enough for
/// the processor to guess wrong: there, a slot counts as last used once it was found twice in a row.
const FEW: u32 = 16;

type SearchGfn = unsafe extern "C" fn(&Reader, u16, Gfn) -> Option<NonNull<Memslot>>;

/// What the last-used slot does not answer, compiled for one kind of processor. No reader is of a kind that its processor
/// is not.
struct Searches {
    gfn: SearchGfn,
    hva: unsafe extern "C" fn(&Reader, u16, Hva) -> Option<NonNull<Memslot>>,
    walk_gfn: unsafe extern "C" fn(&Reader, u16, u64, u64, &mut MaybeUninit<Walk>),
    walk_hva: unsafe extern "C" fn(&Reader, u16, u64, u64, &mut MaybeUninit<Walk>),
}

/// The searches of one kind of processor. Extern "C", so that they cannot unwind, and a hit in front of one needs no frame.
macro_rules! searches {
    ($module:ident, $lanes:ident $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;

            pub(super) static SEARCHES: Searches = Searches { gfn, hva, walk_gfn, walk_hva };

            $(#[$feature])?
            unsafe extern "C" fn gfn(reader: &Reader, as_id: u16, gfn: Gfn) -> Option<NonNull<Memslot>> {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.search_gfn::<$lanes>(as_id, gfn) }
            }

            $(#[$feature])?
            unsafe extern "C" fn hva(reader: &Reader, as_id: u16, hva: Hva) -> Option<NonNull<Memslot>> {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.search_hva::<$lanes>(as_id, hva) }
            }

            $(#[$feature])?
            unsafe extern "C" fn walk_gfn(reader: &Reader, as_id: u16, first: u64, last: u64, walk: &mut MaybeUninit<Walk>) {
                // SAFETY: the caller's promise; the processor is of this kind.
                unsafe { reader.begin_walk(as_id, walk, false, |space| space.walk_gfn::<$lanes>(first, last)) }
            }

            $(#[$feature])?
            unsafe extern "C" fn walk_hva(reader: &Reader, as_id: u16, first: u64, last: u64, walk: &mut MaybeUninit<Walk>) {
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
    fn of_this_processor() -> &'static Searches {
        #[cfg(target_arch = "x86_64")]
        if !cfg!(memslots_no_avx512) && is_x86_feature_detected!("avx512f") {
            return &avx512::SEARCHES;
        } else if is_x86_feature_detected!("avx2") {
            return &avx2::SEARCHES;
        }
        &baseline::SEARCHES
    }
}

/// In the last-used slot's key while no section is open: nothing hits then.
const CLOSED: u64 = 1 << 63;

/// A publication's number and an address space in one: no other pair of a publication up to this one and a space has the
/// same, nor does one with a space that there cannot be, since publications are a step apart.
#[inline(always)]
fn key(seq: u64, as_id: u16) -> u64 {
    seq.wrapping_add(as_id as u64)
}

const _: () = assert!(SEQ_STEP >= MAX_ADDRESS_SPACES as u64);

/// One reading thread: a vCPU, an I/O thread. Used by one thread at a time.
pub struct Reader {
    hot: Hot,
    searches: &'static Searches,
    sections: Cell<u64>,
    /// A box's. Not one by type, which would claim that nobody else looks in.
    presence: NonNull<Presence>,
    guard: Cell<Option<Guard>>,
    /// Dropped before `shared`, of whose collector it is a part.
    handle: ManuallyDrop<LocalHandle>,
    shared: Owner,
}

// The inline lookup takes a reader for its hot part.
const _: () = assert!(std::mem::offset_of!(Reader, hot) == 0);

// SAFETY: nothing in a reader has a tie to the thread that made it (a LocalHandle and its guard use no thread-local
// storage), and a Section borrows it, so that it cannot be sent away while one is open. It is not Sync.
unsafe impl Send for Reader {}

impl Reader {
    pub(crate) fn new(shared: Owner) -> Result<Reader> {
        let presence = crate::memory::try_box(Presence::new())?;
        let presence = NonNull::from(Box::leak(presence));
        let handle = match shared.join(presence) {
            Ok(handle) => ManuallyDrop::new(handle),
            Err(errno) => {
                // SAFETY: from a box just now, and nobody has heard of it.
                drop(unsafe { Box::from_raw(presence.as_ptr()) });
                return Err(errno);
            }
        };
        let searches = Searches::of_this_processor();
        let hot = Hot {
            current: &shared.current,
            key: Cell::new(CLOSED),
            base_gfn: Cell::new(0),
            npages: Cell::new(0),
            slot: Cell::new(std::ptr::null()),
            depth: Cell::new(0),
            misses: Cell::new(0),
            search_gfn: searches.gfn,
        };
        Ok(Reader { hot, searches, sections: Cell::new(0), presence, guard: Cell::new(None), handle, shared })
    }

    /// Opens a read-side section. What is found in it stays valid until it ends; sections nest, and the outermost counts.
    /// Never waits.
    #[inline]
    pub fn lock(&self) -> Section<'_> {
        self.enter();
        Section { reader: self, leave: true }
    }

    #[inline(always)]
    pub(crate) fn enter(&self) {
        let depth = self.hot.depth.get();
        if depth == 0 {
            self.guard.set(Some(self.handle.pin()));
            self.presence().begin(self.seq());
            self.sections.set(self.sections.get() + 1);
            self.hot.key.set(self.hot.key.get() & !CLOSED);
        }
        self.hot.depth.set(depth + 1);
    }

    /// Ends a section. False where none is open.
    #[inline(always)]
    pub(crate) fn leave(&self) -> bool {
        let depth = self.hot.depth.get();
        if depth == 0 {
            return false;
        }
        self.hot.depth.set(depth - 1);
        if depth == 1 {
            self.hot.key.set(self.hot.key.get() | CLOSED);
            self.presence().end();
            self.guard.set(None);
        }
        true
    }

    /// The section that is open, without opening one.
    #[inline(always)]
    pub(crate) fn section(&self) -> Option<Section<'_>> {
        self.is_open().then_some(Section { reader: self, leave: false })
    }

    /// Which of the reader's sections is open, or was last: no two have the same number.
    #[inline(always)]
    pub(crate) fn ordinal(&self) -> u64 {
        self.sections.get()
    }

    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        self.hot.depth.get() > 0
    }

    /// The last-used slot, where it holds the frame, is of the current publication, and a section is open.
    #[inline(always)]
    pub(crate) fn last_used(&self, as_id: u16, gfn: Gfn) -> Option<NonNull<Memslot>> {
        let hot = &self.hot;
        let hit = hot.key.get() == key(self.seq(), as_id) && gfn.0.wrapping_sub(hot.base_gfn.get()) < hot.npages.get();
        // SAFETY: a key that is of some publication was stored with a slot of it.
        hit.then(|| unsafe { NonNull::new_unchecked(hot.slot.get().cast_mut()) })
    }

    /// The slot that holds a frame, where it is not the last-used one; it is, from now on (but see `FEW`).
    ///
    /// # Safety
    /// A section is open.
    #[inline(always)]
    pub(crate) unsafe fn find_gfn(&self, as_id: u16, gfn: Gfn) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe { (self.hot.search_gfn)(self, as_id, gfn) }
    }

    /// # Safety
    /// As `find_gfn`; the processor is of the kind `L`.
    #[inline(always)]
    unsafe fn search_gfn<L: Lanes>(&self, as_id: u16, gfn: Gfn) -> Option<NonNull<Memslot>> {
        let hot = &self.hot;
        hot.misses.set(hot.misses.get() + 1);
        // SAFETY: the section keeps what is current after it began.
        let (published, space, found) = unsafe {
            let published = self.published();
            let space = published.space(as_id)?;
            (published, space, space.find_gfn::<L>(gfn)?)
        };
        let slot = NonNull::from(slot_of(found.record));
        let mut npages = found.npages;
        if space.count <= FEW {
            // No branch on what is random.
            let again = slot.as_ptr().cast_const() == hot.slot.get();
            npages = select_unpredictable(again, npages, 0);
        }
        hot.key.set(key(published.seq(), as_id));
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
    pub(crate) unsafe fn find_hva(&self, as_id: u16, hva: Hva) -> Option<NonNull<Memslot>> {
        // SAFETY: the caller's promise.
        unsafe { (self.searches.hva)(self, as_id, hva) }
    }

    /// # Safety
    /// As `find_hva`; the processor is of the kind `L`.
    #[inline(always)]
    unsafe fn search_hva<L: Lanes>(&self, as_id: u16, hva: Hva) -> Option<NonNull<Memslot>> {
        // SAFETY: the section keeps what is current after it began.
        let space = unsafe { self.published() }.space(as_id)?;
        // SAFETY: as above.
        unsafe { space.find_hva_page::<L>(hva.0 >> self.page_shift()) }.map(|record| NonNull::from(slot_of(record)))
    }

    /// Begins a walk over the slots of the newest publication with a frame in `range`. False where that is empty.
    ///
    /// # Safety
    /// A section is open. The walk is used in this section only.
    #[inline(always)]
    pub(crate) unsafe fn walk_gfn(&self, as_id: u16, range: Range<Gfn>, walk: &mut MaybeUninit<Walk>) -> bool {
        let (first, end) = (range.start.0, range.end.0);
        if first < end {
            // SAFETY: the caller's promise.
            unsafe { (self.searches.walk_gfn)(self, as_id, first, end - 1, walk) };
        }
        first < end
    }

    /// As `walk_gfn`, over those with a byte of host memory in `first..=last`.
    ///
    /// # Safety
    /// As `walk_gfn`.
    #[inline(always)]
    pub(crate) unsafe fn walk_hva(&self, as_id: u16, first: Hva, last: Hva, walk: &mut MaybeUninit<Walk>) -> bool {
        let shift = self.page_shift();
        if first <= last {
            // SAFETY: the caller's promise.
            unsafe { (self.searches.walk_hva)(self, as_id, first.0 >> shift, last.0 >> shift, walk) };
        }
        first <= last
    }

    /// # Safety
    /// As `walk_gfn`.
    #[inline(always)]
    unsafe fn begin_walk(
        &self,
        as_id: u16,
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

    /// Sections opened (the outermost), and lookups that the last-used slot did not answer.
    pub fn stats(&self) -> ReaderStats {
        ReaderStats { sections: self.sections.get(), misses: self.hot.misses.get() }
    }

    #[inline(always)]
    fn presence(&self) -> &Presence {
        // SAFETY: alive until the reader is dropped.
        unsafe { self.presence.as_ref() }
    }

    #[inline(always)]
    fn seq(&self) -> u64 {
        self.current().seq.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn current(&self) -> &Current {
        // SAFETY: part of `shared`, which is alive.
        unsafe { &*self.hot.current }
    }

    /// The newest publication.
    ///
    /// # Safety
    /// A section is open; the publication is alive until it ends.
    #[inline(always)]
    unsafe fn published(&self) -> PublishedRef<'_> {
        // SAFETY: current after the section began, and so kept until it ends.
        unsafe { PublishedRef::new(self.current().root()) }
    }

    pub(crate) fn page_shift(&self) -> u32 {
        self.shared.limits.page_shift
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        while self.leave() {}
        self.shared.readers.leave(self.presence);
        // SAFETY: from a box in new(), and out of the registry.
        drop(unsafe { Box::from_raw(self.presence.as_ptr()) });
        // SAFETY: not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.handle) };
    }
}

/// What a reader did. Kept by the reader alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReaderStats {
    /// Sections opened, the outermost of nested ones.
    pub sections: u64,
    /// Lookups by gfn that the last-used slot did not answer.
    pub misses: u64,
}

/// An open read-side section. Every lookup sees the newest publication; what it finds stays valid until the section ends.
pub struct Section<'r> {
    reader: &'r Reader,
    leave: bool,
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.leave {
            self.reader.leave();
        }
    }
}

fn slot_of<'a>(record: NonNull<Record>) -> &'a Memslot {
    // SAFETY: found in a publication that the section keeps alive. Callers bind the lifetime to the section's.
    unsafe { &record.as_ref().slot }
}

impl<'r> Section<'r> {
    /// The newest publication. Alive until the section ends.
    #[inline(always)]
    fn published(&self) -> PublishedRef<'_> {
        // SAFETY: this section is open.
        unsafe { self.reader.published() }
    }

    #[inline(always)]
    fn space(&self, as_id: u16) -> Option<&Space> {
        self.published().space(as_id)
    }

    /// The slot that holds a frame. A slot that is being deleted or moved is found with `INVALID` set.
    #[inline(always)]
    pub fn find_gfn(&self, as_id: u16, gfn: Gfn) -> Option<&Memslot> {
        // SAFETY: this section is open.
        let found = self.reader.last_used(as_id, gfn).or_else(|| unsafe { self.reader.find_gfn(as_id, gfn) });
        // SAFETY: of a publication that was current after this section began, so the section keeps it.
        found.map(|slot| unsafe { slot.as_ref() })
    }

    /// As `find_gfn`; in a hole the slot below it, or the lowest slot where none is below. None only for an empty space.
    pub fn find_gfn_approx(&self, as_id: u16, gfn: Gfn) -> Option<&Memslot> {
        // SAFETY: the section keeps the publication.
        unsafe { self.space(as_id)?.find_gfn_approx(gfn) }.map(slot_of)
    }

    /// The slot with an id.
    #[inline(always)]
    pub fn find_id(&self, as_id: u16, id: u16) -> Option<&Memslot> {
        // SAFETY: the section keeps the publication.
        unsafe { self.space(as_id)?.find_id(id) }.map(slot_of)
    }

    /// The slot that holds a byte of host memory: of several, the one that starts lowest, then the lowest id.
    #[inline(always)]
    pub fn find_hva(&self, as_id: u16, hva: Hva) -> Option<&Memslot> {
        // SAFETY: this section is open, and keeps what is found.
        unsafe { self.reader.find_hva(as_id, hva).map(|slot| slot.as_ref()) }
    }

    /// Where a guest address is in this process, and how many bytes its slot goes on from there.
    ///
    /// # Errors
    /// `ENOENT` in a hole, `EAGAIN` where the slot is being deleted or moved, `EROFS` for a write to a read-only slot, `EINVAL`
    /// where there is no such address space.
    #[inline]
    pub fn gpa_to_hva(&self, as_id: u16, gpa: Gpa, access: Access) -> Result<(Hva, u64)> {
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
        let size = slot.npages << shift;
        let offset = clamp(gpa.0 - (slot.base_gfn << shift), size);
        Ok((Hva(slot.userspace_addr + offset), size - offset))
    }

    /// The guest address of a byte of host memory, by the slot that `find_hva` finds.
    ///
    /// # Errors
    /// `ENOENT` where no slot has it, `EINVAL` where there is no such address space.
    #[inline]
    pub fn hva_to_gpa(&self, as_id: u16, hva: Hva) -> Result<Gpa> {
        let Some(slot) = self.find_hva(as_id, hva) else {
            return Err(self.space(as_id).map_or(Errno::EINVAL, |_| Errno::ENOENT));
        };
        let shift = self.reader.page_shift();
        Ok(Gpa((slot.base_gfn << shift) + (hva.0 - slot.userspace_addr)))
    }

    /// The space's generation: i + k * n for space i of n; another content, another value.
    pub fn generation(&self, as_id: u16) -> u64 {
        self.space(as_id).map_or(0, |space| space.generation)
    }

    /// Slots in the space.
    pub fn count(&self, as_id: u16) -> u32 {
        self.space(as_id).map_or(0, |space| space.count)
    }

    /// Pages of all slots in the space.
    pub fn npages(&self, as_id: u16) -> u64 {
        self.space(as_id).map_or(0, |space| space.npages)
    }

    /// All slots, ascending by gfn, of the publication that is current now.
    pub fn iter(&self, as_id: u16) -> Iter<'_> {
        self.iter_gfn(as_id, Gfn(0)..Gfn(u64::MAX))
    }

    /// Exactly the slots with a frame in the range, ascending by gfn.
    pub fn iter_gfn(&self, as_id: u16, range: Range<Gfn>) -> Iter<'_> {
        // SAFETY: this section is open, and outlives the iterator.
        Iter::new(|walk| unsafe { self.reader.walk_gfn(as_id, range, walk) })
    }

    /// Exactly the slots with a byte in `first..=last`, ascending by hva, then by id.
    pub fn iter_hva(&self, as_id: u16, first: Hva, last: Hva) -> Iter<'_> {
        // SAFETY: as above.
        Iter::new(|walk| unsafe { self.reader.walk_hva(as_id, first, last, walk) })
    }

    /// The requests that the slots of a space answer to, ascending by gfn: as many as there is room for. Gives how many
    /// there are.
    pub fn regions(&self, as_id: u16, out: &mut [Region]) -> usize {
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
fn clamp(offset: u64, size: u64) -> u64 {
    let inside = (!offset & offset.wrapping_sub(size)) >> 63;
    offset & inside.wrapping_neg()
}

// ---- iterators ----

/// A walk over part of one publication. No lifetime: whoever holds one keeps the publication.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    space: *const Space,
    cursor: Cursor,
    by_hva: bool,
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

    /// `next`, where the entry that comes next is not it. Out of line, and not to unwind, so that the common step needs no
    /// frame.
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
        unsafe { (*self.space).find_id(word.addr() as u16) }.map(NonNull::cast)
    }
}

/// An iterator over the slots of one publication.
pub struct Iter<'s> {
    walk: Walk,
    section: PhantomData<&'s Memslot>,
}

impl Iter<'_> {
    /// `begin` fills a walk in, or says that there is none.
    fn new(begin: impl FnOnce(&mut MaybeUninit<Walk>) -> bool) -> Self {
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

// ---- the hva cache ----

/// A range of guest memory that a device keeps coming back to, such as a ring: one compare while the table is what it was.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvaCache {
    seq: u64,
    hva: u64,
    gpa: u64,
    len: u64,
    as_id: u32,
    /// Not a bool: C may hand in a cache that was never filled.
    write: u32,
}

impl HvaCache {
    /// Looks `gpa..gpa + len` up, for the access given.
    ///
    /// # Errors
    /// `ERANGE` where it is not within one slot, `EINVAL` where it is empty or wraps, otherwise as `gpa_to_hva`.
    pub fn new(section: &Section, as_id: u16, gpa: Gpa, len: u64, access: Access) -> Result<HvaCache> {
        if len == 0 || gpa.0.checked_add(len - 1).is_none() {
            return Err(Errno::EINVAL);
        }
        let mut cache =
            HvaCache { seq: 0, hva: 0, gpa: gpa.0, len, as_id: as_id as u32, write: (access == Access::Write) as u32 };
        cache.refill(section)?;
        Ok(cache)
    }

    /// Where the range is in this process; looked up again where the table has changed.
    ///
    /// # Errors
    /// As `new`; the next call looks again.
    #[inline]
    pub fn get(&mut self, section: &Section) -> Result<Hva> {
        if self.seq != section.reader.seq() {
            self.refill(section)?;
        }
        Ok(Hva(self.hva))
    }

    fn refill(&mut self, section: &Section) -> Result<()> {
        // The number before the lookup: what was published in between makes the entry old at once.
        let seq = section.reader.seq();
        self.seq = 0;
        let access = if self.write != 0 { Access::Write } else { Access::Read };
        let (hva, len) = section.gpa_to_hva(self.as_id as u16, Gpa(self.gpa), access)?;
        if len < self.len {
            return Err(Errno::ERANGE);
        }
        // In the middle of a publication: an answer that is good now, and not kept.
        (self.seq, self.hva) = (if seq == settled(seq) { seq } else { 0 }, hva.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::clamp;

    #[test]
    fn an_offset_that_is_not_inside_becomes_0() {
        let sizes = [4096, 1 << 20, 1 << 43];
        for (size, offset) in sizes.into_iter().flat_map(|size| [0, 1, size - 1].map(|offset| (size, offset))) {
            assert_eq!(clamp(offset, size), offset);
            for outside in [size + offset, offset.wrapping_sub(size), 1 << 63 | offset, (1 << 63) + size + offset] {
                assert_eq!(clamp(outside, size), 0, "{outside:#x} of {size:#x}");
            }
        }
    }
}

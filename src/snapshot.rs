// SPDX-License-Identifier: MIT OR Apache-2.0
//! One publication: every address space at one moment, and all questions that can be asked of it.
//!
//! Does not know how snapshots are published, nor who reads them. Immutable once published; all it refers to stays
//! alive until the last reader that could have seen it is gone (`epoch.rs`).

use crate::index::id_table::IdTable;
use crate::index::node::{Baseline, Entry, Lanes};
use crate::index::pool::{lines_of, Object, Pool, LINE};
use crate::index::range_tree::{Cursor, RangeTree};
use crate::index::{Editor, Head, Nursery, Stamp, NURSERY_ID_LINES, NURSERY_LEAF_LINES};
use crate::slot::{AsId, Gfn, HostPage, Memslot, Pages, SlotId};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;
use std::ptr::{without_provenance_mut, NonNull};

/// A slot as the table keeps it: at one address while any reader may hold it. One cache line. The slot stands first, so
/// that what an index leads to is what a reader gets.
#[repr(C, align(64))]
pub(crate) struct Record {
    pub(crate) slot: Memslot,
    /// Written when the record is made, and never after.
    pub(crate) stamp: Stamp,
}

impl Record {
    /// A record in memory that the caller has reserved.
    #[inline(always)]
    pub(crate) fn create(pool: &mut Pool, stamp: Stamp, slot: Memslot) -> NonNull<Record> {
        let record = pool.alloc(RECORD_LINES).cast::<Record>();
        // SAFETY: fresh memory of that size.
        unsafe { record.write(Record { slot, stamp }) };
        record
    }

    /// A record's slot, which it starts with.
    #[inline(always)]
    pub(crate) fn slot_pointer(record: NonNull<Record>) -> NonNull<Memslot> {
        record.cast()
    }

    /// The memory of a record.
    pub(crate) fn object(record: NonNull<Record>) -> Object {
        Object { memory: record.cast(), lines: RECORD_LINES as u8 }
    }
}

pub(crate) const RECORD_LINES: usize = lines_of(size_of::<Record>());
const _: () = assert!(size_of::<Record>() == LINE && std::mem::offset_of!(Record, slot) == 0);

/// One address space at one moment.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Space {
    /// By guest frame; words are records.
    gfn: RangeTree<false>,
    /// By page of host memory; words are ids, so that a move or new flags leave this tree alone.
    hva: RangeTree<true>,
    /// By id; words are records.
    ids: IdTable,
    pub(crate) generation: u64,
    pub(crate) npages: Pages,
    pub(crate) count: u32,
}

/// A slot found by a frame, with what the index knows of it: a lookup need not touch the record.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) record: NonNull<Record>,
    pub(crate) base_gfn: Gfn,
    pub(crate) npages: Pages,
}

/// What one store publishes.
#[repr(C, align(64))]
pub(crate) struct Published {
    head: Head,
    /// Its number, which no other publication of the table has; see `epoch.rs`.
    pub(crate) seq: u64,
    nr_spaces: u32,
    // The spaces follow.
}

/// The hva tree's part of a slot: pages of host memory, under the slot's id.
fn hva_entry(slot: &Memslot, page_shift: u32) -> Entry {
    let pages = slot.host_pages(page_shift);
    Entry { start: pages.start.0, last: pages.end.0 - 1, word: without_provenance_mut(slot.id.0 as usize) }
}

/// The id that a word of the hva tree is.
pub(crate) fn id_of(word: *mut u8) -> SlotId {
    SlotId(word.addr() as u16)
}

/// Calls `visit` for the ranges of a range of host pages that no slot in some address spaces maps, in order.
fn visit_unmapped(spaces: &[Space], pages: Range<HostPage>, page_shift: u32, visit: &mut dyn FnMut(Range<HostPage>)) {
    if pages.is_empty() {
        return;
    }
    let Some((space, others)) = spaces.split_first() else { return visit(pages) };
    let mut start = pages.start;
    space.for_each_mapped(pages.clone(), page_shift, &mut |mapped| {
        visit_unmapped(others, start..mapped.start.min(pages.end), page_shift, visit);
        start = start.max(mapped.end);
    });
    visit_unmapped(others, start..pages.end, page_shift, visit);
}

fn gfn_entry(record: NonNull<Record>) -> Entry {
    // SAFETY: records handed to a space are alive.
    let slot = unsafe { &record.as_ref().slot };
    Entry { start: slot.base_gfn.0, last: slot.end_gfn().0 - 1, word: record.as_ptr().cast() }
}

impl Space {
    pub(crate) const fn empty(generation: u64) -> Space {
        Space {
            gfn: RangeTree::EMPTY,
            hva: RangeTree::EMPTY,
            ids: IdTable::EMPTY,
            generation,
            npages: Pages(0),
            count: 0,
        }
    }

    // ---- questions ----
    //
    // Safety, for all of them: the space belongs to a publication that the caller keeps alive (a read-side section), or
    // to the working copy of the update lock's holder.

    /// The slot that holds a frame.
    ///
    /// # Safety
    /// The space is alive; see above. The processor is of the kind `L`.
    #[inline(always)]
    pub(crate) unsafe fn find_gfn<L: Lanes>(&self, gfn: Gfn) -> Option<Found> {
        // SAFETY: the caller's promise.
        let (leaf, index) = unsafe { self.gfn.first_reaching::<L>(gfn.0) }?;
        // SAFETY: an index that the search answered with.
        let pair = unsafe { leaf.pair(index) };
        if pair.start > gfn.0 {
            return None;
        }
        // SAFETY: words of the gfn tree are records.
        let record = unsafe { NonNull::new_unchecked(pair.word.cast()) };
        // SAFETY: as above.
        let npages = Pages(unsafe { leaf.pages_from(index, pair.start) });
        Some(Found { record, base_gfn: Gfn(pair.start), npages })
    }

    /// The slot that holds a frame, or the one below it, or the lowest.
    ///
    /// # Safety
    /// The space is alive.
    pub(crate) unsafe fn find_gfn_approx(&self, gfn: Gfn) -> Option<NonNull<Record>> {
        // SAFETY: the caller's promise.
        let entry = unsafe { self.gfn.last_from(gfn.0).or_else(|| self.gfn.first()) };
        entry.and_then(|entry| NonNull::new(entry.word.cast()))
    }

    /// The slot with an id.
    ///
    /// # Safety
    /// The space is alive.
    #[inline(always)]
    pub(crate) unsafe fn find_id(&self, id: SlotId) -> Option<NonNull<Record>> {
        // SAFETY: the caller's promise.
        NonNull::new(unsafe { self.ids.get(id) }.cast())
    }

    /// Of the slots that hold a page of host memory, the one that starts lowest; of those, the lowest id.
    ///
    /// # Safety
    /// The space is alive, and the processor of the kind `L`.
    #[inline(always)]
    pub(crate) unsafe fn find_hva_page<L: Lanes>(&self, page: HostPage) -> Option<NonNull<Record>> {
        // SAFETY: the caller's promise.
        let (leaf, index) = unsafe { self.hva.first_reaching::<L>(page.0) }?;
        // SAFETY: an index that the search answered with.
        let pair = unsafe { leaf.pair(index) };
        if pair.start > page.0 {
            return None;
        }
        // SAFETY: the caller's promise.
        unsafe { self.find_id(id_of(pair.word)) }
    }

    /// The lowest id that no slot has.
    ///
    /// # Safety
    /// The space is alive.
    pub(crate) unsafe fn lowest_free_id(&self) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.ids.lowest_free() }
    }

    /// A walk over all slots, in order of gfn. Its words are records.
    ///
    /// # Safety
    /// The space is alive.
    pub(crate) unsafe fn walk(&self) -> Cursor {
        // SAFETY: the caller's promise.
        unsafe { self.walk_gfn::<Baseline>(Gfn(0), Gfn(u64::MAX)) }
    }

    /// A walk over the slots with a page in `first..=last`, in order of gfn. Its words are records.
    ///
    /// # Safety
    /// The space is alive, and the processor of the kind `L`.
    #[inline(always)]
    pub(crate) unsafe fn walk_gfn<L: Lanes>(&self, first: Gfn, last: Gfn) -> Cursor {
        // SAFETY: the caller's promise.
        unsafe { Cursor::new::<L, false>(&self.gfn, first.0, last.0) }
    }

    /// A walk over the slots with a page of host memory in `first..=last`, in order of hva. Its words are ids.
    ///
    /// # Safety
    /// As `walk_gfn`.
    #[inline(always)]
    pub(crate) unsafe fn walk_hva<L: Lanes>(&self, first: HostPage, last: HostPage) -> Cursor {
        // SAFETY: the caller's promise.
        unsafe { Cursor::new::<L, true>(&self.hva, first.0, last.0) }
    }

    /// A slot other than `but` that shares a frame with `base..base + npages`.
    ///
    /// # Safety
    /// The space is alive.
    pub(crate) unsafe fn overlapping(&self, base: Gfn, npages: Pages, but: Option<SlotId>) -> Option<NonNull<Record>> {
        // SAFETY: the caller's promise; an index that the search answered with.
        let first = unsafe { self.gfn.first_reaching::<Baseline>(base.0).map(|(leaf, index)| leaf.pair(index)) }?;
        if first.start >= (base + npages).0 {
            return None;
        }
        let record = NonNull::new(first.word.cast::<Record>())?;
        // SAFETY: words of the gfn tree are records.
        let slot = unsafe { &record.as_ref().slot };
        if Some(slot.id) != but {
            return Some(record);
        }
        // What is left to ask for begins where the slot that is passed over ends.
        let left = (base + npages).0.checked_sub(slot.end_gfn().0).filter(|left| *left > 0)?;
        // SAFETY: the caller's promise.
        unsafe { self.overlapping(slot.end_gfn(), Pages(left), None) }
    }

    // ---- changes, to a working copy ----
    //
    // Safety, for all of them: the editor's working copy is what this space is part of, records are alive and stay so
    // while they are in it, and `bytes_to_edit` are reserved.

    /// Bytes that adding, removing or replacing one slot can allocate at most, whatever its id.
    pub(crate) fn bytes_to_edit(&self) -> usize {
        self.bytes_to_edit_trees() + IdTable::bytes_to_edit(2) + RECORD_LINES * LINE
    }

    /// The same for the slot with this id, and one change of it.
    pub(crate) fn bytes_to_edit_slot(&self, id: SlotId) -> usize {
        self.bytes_to_edit_trees() + self.ids.bytes_to_set(id) + RECORD_LINES * LINE
    }

    fn bytes_to_edit_trees(&self) -> usize {
        // A move takes an entry out of the gfn tree and puts another in, a resize does so in both.
        self.gfn.bytes_to_edit(2) + self.hva.bytes_to_edit(2)
    }

    /// # Safety
    /// See above. The slot's id and frames are free.
    pub(crate) unsafe fn add(&mut self, editor: &mut Editor, record: NonNull<Record>, page_shift: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let slot = &record.as_ref().slot;
            self.gfn.insert(editor, gfn_entry(record));
            self.hva.insert(editor, hva_entry(slot, page_shift));
            self.ids.set(editor, slot.id, record.as_ptr().cast());
            self.npages += slot.npages;
        }
        self.count += 1;
    }

    /// Bytes that `list` and what comes before `build` can allocate at most, a slot; and `build`, for `count` slots.
    pub(crate) const BYTES_TO_LIST: usize = IdTable::bytes_to_edit(1) + RECORD_LINES * LINE;

    pub(crate) fn bytes_to_build(count: usize) -> usize {
        RangeTree::<false>::bytes_to_build(count) + RangeTree::<true>::bytes_to_build(count)
    }

    /// Adds a slot by its id only, to a space whose trees are empty until `build`.
    ///
    /// # Safety
    /// See above. The slot's id is free.
    pub(crate) unsafe fn list(&mut self, editor: &mut Editor, record: NonNull<Record>) {
        // SAFETY: the caller's promise.
        unsafe {
            let slot = &record.as_ref().slot;
            self.ids.set(editor, slot.id, record.as_ptr().cast());
            self.npages += slot.npages;
        }
        self.count += 1;
    }

    /// Builds the trees of a space whose slots have been listed. None where two slots share a frame. `entries` has
    /// room for all of them.
    ///
    /// # Safety
    /// `records` are the listed ones, and `bytes_to_build` are reserved.
    pub(crate) unsafe fn build(
        &mut self,
        editor: &mut Editor,
        records: impl Iterator<Item = NonNull<Record>> + Clone,
        entries: &mut Vec<Entry>,
        page_shift: u32,
    ) -> Option<()> {
        entries.extend(records.clone().map(gfn_entry));
        // SAFETY: the caller's promise.
        self.gfn = unsafe { RangeTree::build(editor, entries) }?;
        entries.clear();
        // SAFETY: listed records are alive.
        entries.extend(records.map(|record| hva_entry(unsafe { &record.as_ref().slot }, page_shift)));
        // SAFETY: the caller's promise.
        self.hva = unsafe { RangeTree::build(editor, entries) }?;
        Some(())
    }

    /// # Safety
    /// See above. The slot is in the space.
    pub(crate) unsafe fn remove(&mut self, editor: &mut Editor, record: NonNull<Record>, page_shift: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let slot = &record.as_ref().slot;
            self.gfn.remove(editor, gfn_entry(record));
            self.hva.remove(editor, hva_entry(slot, page_shift));
            self.ids.clear(editor, slot.id);
            self.npages -= slot.npages;
        }
        self.count -= 1;
    }

    /// Puts a record in the place of another with the same id and hva; frames, size and flags may be others.
    ///
    /// # Safety
    /// See above. `old` is in the space; the new frames are free but for old's.
    #[inline(never)]
    pub(crate) unsafe fn replace(
        &mut self,
        editor: &mut Editor,
        old: NonNull<Record>,
        new: NonNull<Record>,
        page_shift: u32,
    ) {
        // SAFETY: the caller's promise.
        let (was, is) = unsafe { (&old.as_ref().slot, &new.as_ref().slot) };
        // SAFETY: the caller's promise.
        unsafe {
            if (was.base_gfn, was.npages) == (is.base_gfn, is.npages) {
                self.gfn.set_word(editor, gfn_entry(new));
            } else {
                self.gfn.remove(editor, gfn_entry(old));
                self.gfn.insert(editor, gfn_entry(new));
            }
            if was.npages != is.npages {
                self.hva.remove(editor, hva_entry(was, page_shift));
                self.hva.insert(editor, hva_entry(is, page_shift));
            }
            self.ids.replace(editor, is.id, new.as_ptr().cast());
        }
        self.npages = self.npages - was.npages + is.npages;
    }

    /// Puts a record in the place of the one with the same id, frames and size.
    ///
    /// # Safety
    /// See above.
    pub(crate) unsafe fn mark(&mut self, editor: &mut Editor, record: NonNull<Record>) {
        // SAFETY: the caller's promise.
        unsafe {
            self.gfn.set_word(editor, gfn_entry(record));
            self.ids.replace(editor, record.as_ref().slot.id, record.as_ptr().cast());
        }
    }

    /// Calls `visit` for every slot, by gfn. The space is part of a [`PublishedRef`].
    pub(crate) fn for_each_slot<'a>(&'a self, mut visit: impl FnMut(&'a Memslot)) {
        // SAFETY: the publication is alive, and with it its nodes and records.
        unsafe {
            let mut walk = self.walk();
            while let Some(record) = walk.next() {
                visit(&(*record.cast::<Record>()).slot);
            }
        }
    }

    /// Calls `visit` for the host pages of each slot with one in a range, in the order of their first.
    fn for_each_mapped(&self, pages: Range<HostPage>, page_shift: u32, visit: &mut dyn FnMut(Range<HostPage>)) {
        // SAFETY: as in for_each_slot(). Words of the hva tree are ids, of slots that are there.
        unsafe {
            let mut walk = self.walk_hva::<Baseline>(pages.start, HostPage(pages.end.0 - 1));
            while let Some(record) = walk.next().and_then(|word| self.find_id(id_of(word))) {
                visit(record.as_ref().slot.host_pages(page_shift));
            }
        }
    }

    /// Calls `visit` for every record, by id, passing by those below nodes for which `stop` says so.
    ///
    /// # Safety
    /// The space is alive; `visit` may free the record.
    pub(crate) unsafe fn for_each_record(&self, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Record>)) {
        // SAFETY: the caller's promise; words of the id table are records.
        unsafe { self.ids.for_each_word(stop, &mut |word| visit(word.cast())) };
    }

    /// Calls `visit` for every node of every index that has memory of its own, children first, passing by the subtrees
    /// for which `stop` says so.
    ///
    /// # Safety
    /// Nothing else refers to the space any more; `visit` may free.
    pub(crate) unsafe fn for_each_node(&self, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Head>)) {
        let mut visit = |node: NonNull<Head>| {
            // SAFETY: alive until it is visited. What is in the nursery goes with the root.
            if unsafe { node.as_ref() }.lines > 0 {
                visit(node);
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.gfn.for_each_node(stop, &mut visit);
            self.hva.for_each_node(stop, &mut visit);
            self.ids.for_each_node(stop, &mut visit);
        }
    }
}

impl Published {
    /// Lines of a publication of so many address spaces.
    pub(crate) fn lines(nr_spaces: u32) -> usize {
        lines_of(size_of::<Published>() + nr_spaces as usize * size_of::<Space>())
    }

    /// A publication with empty spaces, in memory that the caller has reserved.
    pub(crate) fn create(editor: &mut Editor, nr_spaces: u32) -> NonNull<Published> {
        let lines = Self::lines(nr_spaces);
        let new = editor.pool.alloc(lines).cast::<Published>();
        // SAFETY: fresh memory of that many lines; the spaces behind the header are written before anyone looks.
        unsafe {
            new.write(Published { head: Head::new(editor.stamp, lines, 0, 0), seq: 0, nr_spaces });
            let first = new.add(1).cast::<Space>();
            for as_id in 0..nr_spaces as usize {
                first.add(as_id).write(Space::empty(as_id as u64));
            }
        }
        new
    }

    /// A copy of `base`, to be changed and published, in memory that the caller has reserved. It has those places of a
    /// nursery that are in use, and both where the first space is empty.
    #[inline(always)]
    pub(crate) fn copy_of(editor: &mut Editor, base: PublishedRef) -> NonNull<Published> {
        let (old_lines, bare_lines) = (base.head().lines as usize, Self::lines(base.nr_spaces()));
        let first = &base.spaces()[0];
        // SAFETY: the base's nodes are alive.
        let (has_leaf, has_ids) = unsafe { (first.gfn.is_small(), first.ids.is_small()) };
        let lines = bare_lines
            + match (has_leaf || first.count == 0, has_ids) {
                (true, _) => NURSERY_ID_LINES + NURSERY_LEAF_LINES,
                (false, true) => NURSERY_ID_LINES,
                (false, false) => 0,
            };
        let new = editor.pool.alloc(lines).cast::<Published>();
        // SAFETY: fresh memory of no less than what is copied, all of which the base's pointer covers; stamp and size
        // are written anew, and nobody else has the copy.
        unsafe {
            new.cast::<u8>().copy_from_nonoverlapping(base.published.cast(), lines.min(old_lines) * LINE);
            (*new.as_ptr()).head.stamp = editor.stamp;
            (*new.as_ptr()).head.lines = lines as u8;
            let (nursery, space) = (Self::nursery(new), &mut Self::spaces_mut(new)[0]);
            if let Some(place) = nursery.leaf.filter(|_| has_leaf) {
                space.gfn.follow(place, editor.stamp);
            }
            if let Some(place) = nursery.ids.filter(|_| has_ids) {
                space.ids.follow(place, editor.stamp);
            }
        }
        new
    }

    /// The nursery of the first space, which stands behind the spaces: as much of it as the root has lines for.
    ///
    /// # Safety
    /// The publication is alive.
    #[inline(always)]
    pub(crate) unsafe fn nursery(this: NonNull<Published>) -> Nursery {
        // SAFETY: the caller's promise.
        let (lines, nr_spaces) = unsafe { ((*this.as_ptr()).head.lines as usize, (*this.as_ptr()).nr_spaces) };
        let ids_at = Self::lines(nr_spaces);
        let leaf_at = ids_at + NURSERY_ID_LINES;
        // SAFETY: within the root's lines.
        let place = |line: usize| (lines > line).then(|| unsafe { this.cast::<u8>().add(line * LINE) });
        Nursery { ids: place(ids_at).map(NonNull::cast), leaf: place(leaf_at).map(NonNull::cast) }
    }

    /// The spaces of a publication that is being made.
    ///
    /// # Safety
    /// As [`PublishedRef::new`], but that the spaces change through this and are not reached in another way during
    /// `'a`.
    pub(crate) unsafe fn spaces_mut<'a>(new: NonNull<Published>) -> &'a mut [Space] {
        // SAFETY: create() has written that many behind the header; the caller's promise.
        unsafe {
            let nr_spaces = (*new.as_ptr()).nr_spaces as usize;
            std::slice::from_raw_parts_mut(new.add(1).cast().as_ptr(), nr_spaces)
        }
    }
}

/// A publication to look at, while it is alive and does not change.
///
/// The spaces follow the header in memory, and a `&Published` covers the header only: what is derived from that may not
/// go on to them. This keeps the pointer that covers both.
#[derive(Clone, Copy)]
pub(crate) struct PublishedRef<'a> {
    published: NonNull<Published>,
    lives: PhantomData<&'a Published>,
}

impl<'a> PublishedRef<'a> {
    /// # Safety
    /// The publication is alive and its spaces do not change during `'a`, and the pointer is the one that `Published`
    /// has made or a copy of it, not one that was derived from a reference.
    #[inline(always)]
    pub(crate) unsafe fn new(published: NonNull<Published>) -> Self {
        PublishedRef { published, lives: PhantomData }
    }

    #[inline(always)]
    fn head(self) -> &'a Head {
        // SAFETY: alive; nothing that lies behind the head is reached from here.
        unsafe { &(*self.published.as_ptr()).head }
    }

    /// Bytes that a copy of its root takes at most.
    #[inline(always)]
    pub(crate) fn bytes_to_copy(self) -> usize {
        (Published::lines(self.nr_spaces()) + NURSERY_ID_LINES + NURSERY_LEAF_LINES) * LINE
    }

    /// Its number.
    #[inline(always)]
    pub(crate) fn seq(self) -> u64 {
        // SAFETY: alive.
        unsafe { (*self.published.as_ptr()).seq }
    }

    #[inline(always)]
    fn nr_spaces(self) -> u32 {
        // SAFETY: alive.
        unsafe { (*self.published.as_ptr()).nr_spaces }
    }

    pub(crate) fn spaces(self) -> &'a [Space] {
        self.head().check();
        // SAFETY: create() has written that many behind the header, and they do not change.
        unsafe { std::slice::from_raw_parts(self.published.add(1).cast().as_ptr(), self.nr_spaces() as usize) }
    }

    #[inline(always)]
    pub(crate) fn space(self, as_id: AsId) -> Option<&'a Space> {
        self.head().check();
        if as_id.0 as u32 >= self.nr_spaces() {
            return None;
        }
        // SAFETY: as in spaces().
        Some(unsafe { self.published.add(1).cast::<Space>().add(as_id.0 as usize).as_ref() })
    }

    /// The slot of a record that was found in this publication.
    #[inline(always)]
    pub(crate) fn slot(self, record: NonNull<Record>) -> &'a Memslot {
        // SAFETY: records are alive as long as a publication that they are found in.
        unsafe { &record.as_ref().slot }
    }

    /// Calls `visit` for every slot, by address space and gfn.
    pub(crate) fn for_each_slot(self, mut visit: impl FnMut(&'a Memslot)) {
        for space in self.spaces() {
            space.for_each_slot(&mut visit);
        }
    }

    /// Calls `visit` for the ranges of a range of host pages that no slot of any address space maps, in order.
    pub(crate) fn for_each_unmapped(
        self,
        pages: Range<HostPage>,
        page_shift: u32,
        visit: &mut dyn FnMut(Range<HostPage>),
    ) {
        visit_unmapped(self.spaces(), pages, page_shift, visit);
    }

    /// Calls `visit` for the host pages that slots map: for each once, however many do.
    pub(crate) fn for_each_mapped(self, page_shift: u32, visit: &mut dyn FnMut(Range<HostPage>)) {
        let spaces = self.spaces();
        for (as_id, space) in spaces.iter().enumerate() {
            let mut seen = HostPage(0);
            space.for_each_mapped(HostPage(0)..HostPage(u64::MAX), page_shift, &mut |pages| {
                let new = pages.start.max(seen)..pages.end.max(seen);
                seen = new.end;
                // What a space before this one maps was visited there.
                visit_unmapped(&spaces[..as_id], new, page_shift, visit);
            });
        }
    }

    /// A number that changes when anything below the root does: for checks that nothing has.
    #[cfg(debug_assertions)]
    pub(crate) fn fingerprint(self) -> u64 {
        let mut print = 0xcbf2_9ce4_8422_2325u64;
        let mut mix = |value: u64| print = (print ^ value).wrapping_mul(0x0100_0000_01b3);
        for space in self.spaces() {
            mix(space.generation);
            // SAFETY: as in for_each_slot(); words of the trees and of the id table are alive, too.
            unsafe {
                space.gfn.for_each_entry(&mut |stamp, entry| {
                    [stamp.0, entry.start, entry.last, entry.word.addr() as u64].into_iter().for_each(&mut mix);
                    mix((*entry.word.cast::<Record>()).slot.flags as u64);
                });
                space.hva.for_each_entry(&mut |stamp, entry| {
                    [stamp.0, entry.start, entry.last, entry.word.addr() as u64].into_iter().for_each(&mut mix);
                });
                space.ids.for_each_word(&|_| false, &mut |word| mix(word.addr().get() as u64));
            }
        }
        print
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{object_of, Stamp};
    use std::ptr::null_mut;

    const PAGE_SHIFT: u32 = 12;
    const SPACES: u32 = 3;

    fn slot(id: u16, base_gfn: u64, npages: u64) -> Memslot {
        let base_gfn = Gfn(base_gfn);
        let (npages, userspace_addr) = (Pages(npages), HostPage(0x7000 + 16 * id as u64).hva(PAGE_SHIFT));
        let (guest_memfd_offset, opaque, guest_memfd, flags) = (0, null_mut(), -1, 0);
        let (id, as_id) = (SlotId(id), AsId(1));
        Memslot { base_gfn, npages, userspace_addr, guest_memfd_offset, opaque, guest_memfd, flags, id, as_id }
    }

    /// All questions about a slot that is there.
    ///
    /// # Safety
    /// The space is alive.
    unsafe fn assert_finds(space: &Space, slot: &Memslot) {
        let (last, page) = (Gfn(slot.end_gfn().0 - 1), slot.userspace_addr.page(PAGE_SHIFT));
        // SAFETY: the caller's promise; the baseline is what every processor can do.
        unsafe {
            let record = space.find_id(slot.id).unwrap();
            assert_eq!(record.as_ref().slot.base_gfn, slot.base_gfn);
            let found = space.find_gfn::<Baseline>(last).unwrap();
            assert_eq!((found.record, found.base_gfn, found.npages), (record, slot.base_gfn, slot.npages));
            assert_eq!(space.find_gfn_approx(last), Some(record));
            assert_eq!(space.find_hva_page::<Baseline>(page), Some(record));
            assert_eq!(space.walk_gfn::<Baseline>(last, last).next(), Some(record.as_ptr().cast()));
            assert_eq!(space.walk_hva::<Baseline>(page, page).next().map(id_of), Some(slot.id));
        }
    }

    #[test]
    fn a_copy_changes_and_the_base_does_not() {
        let mut pool = Pool::new();
        pool.reserve(1 << 20).unwrap();
        let mut editor = Editor { pool: &mut pool, stamp: Stamp(1), replaced: None, nursery: Nursery::default() };
        let base = Published::create(&mut editor, SPACES);
        // SAFETY: alive, and not changed any more.
        let work = Published::copy_of(&mut editor, unsafe { PublishedRef::new(base) });
        let slots: Vec<_> = (0..60).map(|id| slot(id, id as u64 * 10, 4)).collect();
        for slot in &slots {
            let record = Record::create(editor.pool, editor.stamp, *slot);
            // SAFETY: the copy is this test's alone, memory is reserved; ids and frames are free.
            unsafe { Published::spaces_mut(work)[1].add(&mut editor, record, PAGE_SHIFT) };
        }
        // SAFETY: the base and the copy are alive, and do not change before they go; they share nothing.
        unsafe {
            let base_spaces = PublishedRef::new(base).spaces();
            let [_, space, _] = PublishedRef::new(work).spaces() else { unreachable!("three spaces") };
            slots.iter().for_each(|slot| assert_finds(space, slot));
            assert_eq!((space.count, space.lowest_free_id()), (60, 60));
            assert_eq!(
                PublishedRef::new(work).space(AsId(2)).map(|space| (space.count, space.generation)),
                Some((0, 2))
            );
            assert!(PublishedRef::new(work).space(AsId(3)).is_none());
            assert_eq!(base_spaces.iter().map(|space| space.count).sum::<u32>(), 0);
            assert!(base_spaces[1].find_gfn::<Baseline>(Gfn(0)).is_none());
            let all = |_: &Head| false;
            space.for_each_record(&all, &mut |record| pool.free(Record::object(record)));
            space.for_each_node(&all, &mut |node| pool.free(object_of(node)));
            pool.free(object_of(base.cast()));
            pool.free(object_of(work.cast()));
        }
    }
}

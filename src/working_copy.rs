// SPDX-License-Identifier: MIT OR Apache-2.0
//! A working copy: the published state with changes that nobody else can see yet.
//!
//! Knows snapshots and how they are edited; not why, nor hooks or VMs. The one type behind single updates,
//! transactions, the INVALID view and bulk set-up. It begins as a copy of the root alone; an edit copies the nodes on
//! its path, and what they replaced is listed behind what is retired. Dropped, it is as if it had never been: the list
//! is taken back, its own nodes and records are freed, and the base was not written to at any time. Published, what is
//! on the list is retired.
//!
//! Whatever an edit can allocate is reserved before it: [`WorkingCopy::reserve`] is the one step that can fail.

use crate::epoch::Lane;
use crate::error::Result;
use crate::index::node::Entry;
use crate::index::pool::{Object, Pool, LINE};
use crate::index::{object_of, Editor, Head, Nursery, Stamp, REPLACED_PER_EDIT};
use crate::published::{Current, Numbers};
use crate::slot::{AsId, Memslot, SlotId};
use crate::snapshot::{Published, PublishedRef, Record, Space};
use std::cell::UnsafeCell;
use std::ptr::NonNull;

/// What the edits of one table share: its memory, its stamps, and where replaced memory goes.
pub(crate) struct Store {
    pub(crate) pool: Pool,
    /// Never used before. Nodes and records that exist have smaller ones.
    next_stamp: u64,
    /// Where a working copy lists what it has replaced so far, but for the base's root and records. Of those that there
    /// are at a time one lists: see [`WorkingCopy::begin_beside`].
    pub(crate) lane: Lane,
}

impl Store {
    pub(crate) fn new(lane: Lane) -> Store {
        Store { pool: Pool::new(), next_stamp: 1, lane }
    }

    /// Roots without slots: the first of a table, and its last.
    ///
    /// # Errors
    /// `ENOMEM`; nothing was made then.
    pub(crate) fn empty_roots<const N: usize>(&mut self, nr_spaces: u32) -> Result<[NonNull<Published>; N]> {
        self.pool.reserve(N * Published::lines(nr_spaces) * LINE)?;
        let mut editor = Editor { pool: &mut self.pool, stamp: Stamp(0), replaced: None, nursery: Nursery::default() };
        Ok(std::array::from_fn(|_| Published::create(&mut editor, nr_spaces)))
    }

    /// Sets the stamp that the next working copy gets.
    #[cfg(test)]
    pub(crate) fn set_next_stamp(&mut self, stamp: u64) {
        self.next_stamp = stamp;
    }
}

/// See the head of this file.
pub(crate) struct WorkingCopy {
    /// Alive, and used by nobody else: a working copy belongs to the holder of the update lock, who uses one at a time.
    store: NonNull<Store>,
    /// The state that was current at the beginning.
    base: NonNull<Published>,
    root: NonNull<Published>,
    /// Of this copy's nodes. Its records have this one or later ones.
    stamp: Stamp,
    /// Whether what it replaces is listed.
    lists: bool,
    /// Whether an edit has panicked half-way.
    broken: bool,
    /// What the base looks like, for the debug check that it stays so.
    #[cfg(debug_assertions)]
    fingerprint: u64,
}

/// A working copy that was published while its base lives on.
pub(crate) struct Publication {
    root: NonNull<Published>,
    stamp: Stamp,
}

impl Publication {
    /// Calls `visit` for what nobody else has: nodes, records and the root.
    ///
    /// # Safety
    /// The publication is alive, and `visit` frees nothing.
    pub(crate) unsafe fn for_each_own_object(&self, visit: &mut dyn FnMut(Object)) {
        // SAFETY: the caller's promise.
        unsafe {
            for_each_own_record(self.root, self.stamp, &mut |record| visit(Record::object(record)));
            for_each_own_node(self.root, self.stamp, &mut |node| visit(object_of(node)));
            visit(object_of(self.root.cast()));
        }
    }
}

/// Calls `visit` for the nodes below a root that an update made, children first.
///
/// # Safety
/// The root and what is below it are alive. `visit` may free the node.
unsafe fn for_each_own_node(root: NonNull<Published>, stamp: Stamp, visit: &mut dyn FnMut(NonNull<Head>)) {
    // SAFETY: the caller's promise.
    unsafe {
        for space in PublishedRef::new(root).spaces() {
            space.for_each_node(&|head| head.stamp != stamp, visit);
        }
    }
}

/// Calls `visit` for the records below a root that an update made.
///
/// # Safety
/// The root and what is below it are alive. `visit` may free the record.
unsafe fn for_each_own_record(root: NonNull<Published>, stamp: Stamp, visit: &mut dyn FnMut(NonNull<Record>)) {
    // SAFETY: the caller's promise. Records of the base have smaller stamps.
    unsafe {
        for space in PublishedRef::new(root).spaces() {
            space.for_each_record(&|head| head.stamp != stamp, &mut |record| {
                if record.as_ref().stamp.0 >= stamp.0 {
                    visit(record);
                }
            });
        }
    }
}

impl WorkingCopy {
    /// A copy of the current state.
    ///
    /// # Errors
    /// `ENOMEM`.
    ///
    /// # Safety
    /// The caller holds the update lock of the table that `store` and `base` are of for as long as the copy lives, and
    /// touches the store through its copies only while one of their functions does not run.
    #[inline(always)]
    pub(crate) unsafe fn begin(store: &UnsafeCell<Store>, base: NonNull<Published>) -> Result<WorkingCopy> {
        // SAFETY: the caller's promise.
        unsafe { Self::begin_with(store, base, 0, true) }
    }

    /// As `begin`, a copy beside another one: for a state that is current for a while only. What it replaces lives on
    /// with the base, and is not listed.
    ///
    /// # Errors
    /// `ENOMEM`.
    ///
    /// # Safety
    /// As `begin`.
    pub(crate) unsafe fn begin_beside(store: &UnsafeCell<Store>, base: NonNull<Published>) -> Result<WorkingCopy> {
        // SAFETY: the caller's promise.
        unsafe { Self::begin_with(store, base, 0, false) }
    }

    /// As `begin`, with memory reserved for one edit of a slot.
    ///
    /// # Errors
    /// `ENOMEM`.
    ///
    /// # Safety
    /// As `begin`.
    #[inline(always)]
    pub(crate) unsafe fn begin_for(
        store: &UnsafeCell<Store>,
        base: NonNull<Published>,
        as_id: AsId,
        id: SlotId,
    ) -> Result<WorkingCopy> {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = PublishedRef::new(base).space(as_id).map_or(0, |space| space.bytes_to_edit_slot(id));
            // The base's root and a record are retired, too.
            (*store.get()).lane.reserve(REPLACED_PER_EDIT + 2)?;
            Self::begin_with(store, base, bytes, true)
        }
    }

    /// # Safety
    /// As `begin`.
    #[inline(always)]
    unsafe fn begin_with(
        store: &UnsafeCell<Store>,
        base: NonNull<Published>,
        bytes: usize,
        lists: bool,
    ) -> Result<WorkingCopy> {
        // SAFETY: the caller's promise. A cell's address is not null.
        let (pointer, store) = unsafe { (NonNull::new_unchecked(store.get()), &mut *store.get()) };
        // SAFETY: the current state is alive under the update lock, and does not change.
        let published = unsafe { PublishedRef::new(base) };
        store.pool.reserve(published.bytes_to_copy() + bytes)?;
        let stamp = Stamp(store.next_stamp);
        store.next_stamp += 1;
        let mut editor = Editor { pool: &mut store.pool, stamp, replaced: None, nursery: Nursery::default() };
        let root = Published::copy_of(&mut editor, published);
        if lists {
            store.lane.begin_list();
        }
        Ok(WorkingCopy {
            store: pointer,
            base,
            root,
            stamp,
            lists,
            broken: false,
            #[cfg(debug_assertions)]
            fingerprint: published.fingerprint(),
        })
    }

    fn store(&mut self) -> &mut Store {
        // SAFETY: see the field.
        unsafe { self.store.as_mut() }
    }

    /// The state as edited so far.
    pub(crate) fn state(&self) -> PublishedRef<'_> {
        // SAFETY: this copy's own, and not edited while it is borrowed.
        unsafe { PublishedRef::new(self.root) }
    }

    /// The state that was current at the beginning, alive as long as this copy.
    pub(crate) fn base(&self) -> PublishedRef<'_> {
        // SAFETY: the update lock's holder is who retires it, and does so after this copy is gone.
        unsafe { PublishedRef::new(self.base) }
    }

    /// The base's root.
    pub(crate) fn base_object(&self) -> Object {
        // SAFETY: as in base().
        unsafe { object_of(self.base.cast()) }
    }

    /// A slot of the base or of this copy.
    pub(crate) fn slot(&self, record: NonNull<Record>) -> &Memslot {
        // SAFETY: records of both live as long as this copy, but for those that free_record() has taken.
        unsafe { &record.as_ref().slot }
    }

    /// The stamp that the next record may have, and all later ones.
    pub(crate) fn next_stamp(&self) -> u64 {
        // SAFETY: see the field.
        unsafe { self.store.as_ref() }.next_stamp
    }

    // ---- editing ----

    /// Reserves what `edits` changes of one slot each in an address space can allocate. Nothing else fails.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, as_id: AsId, edits: usize) -> Result<()> {
        let bytes = self.state().space(as_id).map_or(0, Space::bytes_to_edit);
        self.reserve_replaced(edits * REPLACED_PER_EDIT)?;
        self.store().pool.reserve(edits * bytes)
    }

    /// Room for so many more replaced objects.
    #[inline(always)]
    fn reserve_replaced(&mut self, objects: usize) -> Result<()> {
        self.store().lane.reserve(objects)
    }

    /// Changes one address space. Should that panic, nobody knows what the copy is.
    #[inline(always)]
    fn edit<T>(&mut self, as_id: AsId, change: impl FnOnce(&mut Space, &mut Editor<'_>) -> T) -> T {
        // SAFETY: the store is as the field says. The root is this copy's own until it is published, and nobody looks
        // at it meanwhile.
        let (store, spaces) = unsafe { (self.store.as_mut(), Published::spaces_mut(self.root)) };
        let replaced = if self.lists { Some(store.lane.list()) } else { None };
        // SAFETY: the root is alive.
        let nursery = if as_id == AsId(0) { unsafe { Published::nursery(self.root) } } else { Nursery::default() };
        let mut editor = Editor { pool: &mut store.pool, stamp: self.stamp, replaced, nursery };
        let half_way = HalfWay(&mut self.broken);
        let result = change(&mut spaces[as_id.0 as usize], &mut editor);
        std::mem::forget(half_way);
        result
    }

    /// Sets the figures of an address space.
    pub(crate) fn add_to_generation(&mut self, as_id: AsId, steps: u64) {
        self.edit(as_id, move |space, _| space.generation += steps);
    }

    /// A record of this copy's, from reserved memory. `stamp` is the copy's own, or one from `next_stamp` on.
    #[inline(always)]
    pub(crate) fn new_record(&mut self, stamp: Stamp, slot: Memslot) -> NonNull<Record> {
        debug_assert!(stamp.0 >= self.stamp.0);
        let store = self.store();
        store.next_stamp = store.next_stamp.max(stamp.0 + 1);
        Record::create(&mut store.pool, stamp, slot)
    }

    /// A record with this copy's own stamp.
    #[inline(always)]
    pub(crate) fn new_own_record(&mut self, slot: Memslot) -> NonNull<Record> {
        self.new_record(self.stamp, slot)
    }

    /// Frees a record that this copy made and that it no longer refers to.
    pub(crate) fn free_record(&mut self, record: NonNull<Record>) {
        // SAFETY: of this copy, so alive.
        debug_assert!(unsafe { record.as_ref() }.stamp.0 >= self.stamp.0, "a record of the base");
        // SAFETY: never published.
        unsafe { self.store().pool.free(Record::object(record)) };
    }

    /// Adds a slot. The caller has reserved memory for it, and seen that its id and frames are free.
    #[inline(always)]
    pub(crate) fn add(&mut self, record: NonNull<Record>, shift: u32) {
        let as_id = self.slot(record).as_id;
        // SAFETY: the caller's promise.
        self.edit(as_id, move |space, editor| unsafe { space.add(editor, record, shift) });
    }

    /// Takes a slot out, which the caller has found in this copy.
    #[inline(always)]
    pub(crate) fn remove(&mut self, record: NonNull<Record>, shift: u32) {
        let as_id = self.slot(record).as_id;
        // SAFETY: reserved; the caller's promise.
        self.edit(as_id, move |space, editor| unsafe { space.remove(editor, record, shift) });
    }

    /// Puts a record in the place of another of the same slot, which the caller has found in this copy.
    #[inline(always)]
    pub(crate) fn replace(&mut self, old: NonNull<Record>, new: NonNull<Record>, shift: u32) {
        let as_id = self.slot(new).as_id;
        // SAFETY: reserved; the caller's promise, who has seen that the new frames are free.
        self.edit(as_id, move |space, editor| unsafe { space.replace(editor, old, new, shift) });
    }

    /// Puts a record with other flags in the place of the slot's.
    pub(crate) fn mark(&mut self, record: NonNull<Record>) {
        let as_id = self.slot(record).as_id;
        // SAFETY: reserved; the caller has found the slot, with the same id, frames and size, in this copy.
        self.edit(as_id, move |space, editor| unsafe { space.mark(editor, record) });
    }

    // ---- a whole address space ----

    /// Takes all slots out of an address space. Its nodes count as replaced.
    ///
    /// # Errors
    /// `ENOMEM`; the space is as it was then.
    pub(crate) fn clear(&mut self, as_id: AsId) -> Result<()> {
        let Some(&space) = self.state().space(as_id) else { return Ok(()) };
        debug_assert!(self.lists && self.count_replaced() == 0, "nothing was edited before");
        let mut nodes = 0;
        // SAFETY: alive; nothing is freed.
        unsafe { space.for_each_node(&|_| false, &mut |_| nodes += 1) };
        self.reserve_replaced(nodes)?;
        let replaced = self.store().lane.list();
        // SAFETY: alive; nothing is freed.
        unsafe { space.for_each_node(&|_| false, &mut |node| replaced.push(object_of(node))) };
        self.edit(as_id, |now, _| *now = Space::empty(space.generation));
        Ok(())
    }

    /// Adds a slot by its id only, to a space whose trees are empty until `build`. The caller has seen that the id is
    /// free.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn list(&mut self, stamp: Stamp, slot: Memslot) -> Result<NonNull<Record>> {
        self.reserve_replaced(REPLACED_PER_EDIT)?;
        self.store().pool.reserve(Space::BYTES_TO_LIST)?;
        let record = self.new_record(stamp, slot);
        // SAFETY: reserved; the caller's promise.
        self.edit(slot.as_id, |space, editor| unsafe { space.list(editor, record) });
        Ok(record)
    }

    /// Builds the trees of a space out of the slots that were listed. None where two of them share a frame, or memory
    /// is short; the copy must be dropped then.
    pub(crate) fn build(
        &mut self,
        as_id: AsId,
        records: impl Iterator<Item = NonNull<Record>> + Clone,
        shift: u32,
    ) -> Option<()> {
        let count = self.state().space(as_id)?.count as usize;
        let mut entries: Vec<Entry> = Vec::new();
        entries.try_reserve_exact(count).ok()?;
        self.store().pool.reserve(Space::bytes_to_build(count)).ok()?;
        // SAFETY: reserved; the caller gives what it has listed, and nothing else.
        self.edit(as_id, move |space, editor| unsafe { space.build(editor, records, &mut entries, shift) })
    }

    // ---- the end ----

    /// Makes the copy the current state, and retires what it has replaced, for which there is room; but for the records
    /// that are not part of it, which are left to the caller.
    #[inline(always)]
    pub(crate) fn publish(mut self, current: &Current, numbers: &mut Numbers) {
        debug_assert!(self.lists);
        self.check_base();
        current.publish(self.root, numbers);
        let base = self.base_object();
        let lane = &mut self.store().lane;
        // SAFETY: neither the base's root nor what the copy has replaced is current any more. Nothing is listed twice.
        unsafe {
            lane.retire_listed();
            lane.retire(base);
        }
        std::mem::forget(self);
    }

    /// Makes a copy that was begun beside another one the current state. The base lives on, but for its root perhaps.
    pub(crate) fn publish_beside(self, current: &Current, numbers: &mut Numbers) -> Publication {
        debug_assert!(!self.lists);
        self.check_base();
        current.publish(self.root, numbers);
        let publication = Publication { root: self.root, stamp: self.stamp };
        std::mem::forget(self);
        publication
    }

    /// How many objects only this copy has.
    pub(crate) fn count_own_objects(&self) -> usize {
        let mut own = 1;
        // SAFETY: this copy's own; nothing is freed.
        unsafe {
            for_each_own_node(self.root, self.stamp, &mut |_| own += 1);
            for_each_own_record(self.root, self.stamp, &mut |_| own += 1);
        }
        own
    }

    /// How many objects it has replaced, but for the base's root and records.
    pub(crate) fn count_replaced(&self) -> usize {
        // SAFETY: see the field.
        unsafe { self.store.as_ref() }.lane.listed()
    }

    /// Fails where the base is not what it was.
    fn check_base(&self) {
        #[cfg(debug_assertions)]
        assert_eq!(self.base().fingerprint(), self.fingerprint, "a published snapshot was written to");
    }
}

/// Dropped by a panic in the middle of an edit, and by nothing else.
struct HalfWay<'a>(&'a mut bool);

impl Drop for HalfWay<'_> {
    fn drop(&mut self) {
        *self.0 = true;
    }
}

impl Drop for WorkingCopy {
    fn drop(&mut self) {
        // SAFETY: see the field.
        let store = unsafe { &mut *self.store.as_ptr() };
        if self.lists {
            store.lane.forget_listed();
        }
        if self.broken {
            // After a panic in the middle of a change the copy may be anything: its memory goes with the table.
            return store.pool.expect_leaks();
        }
        // SAFETY: nobody has ever seen what is this copy's own; records first, for nodes lead to them.
        unsafe {
            for_each_own_record(self.root, self.stamp, &mut |record| store.pool.free(Record::object(record)));
            for_each_own_node(self.root, self.stamp, &mut |node| store.pool.free(object_of(node)));
            store.pool.free(object_of(self.root.cast()));
        }
        self.check_base();
    }
}

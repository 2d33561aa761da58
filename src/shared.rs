// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a table, its updates and its readers have in common, and how it ends.
//!
//! Puts the modules below it together: the current publication, the readers, epochs, the update lock and what that
//! protects, the hooks. Does not know how an update is made, nor how a lookup is answered.

use crate::cancel::NoCancel;
use crate::change::Rules;
use crate::epoch::{Domain, Lane};
use crate::error::{Errno, Result};
use crate::hooks::Hooks;
use crate::index::object_of;
use crate::index::pool::Pool;
use crate::journal::Entry;
use crate::kvm::{Backend, OutOfStep};
use crate::ledger::Ledger;
use crate::lock::UpdateLock;
use crate::presence::Readers;
use crate::published::{publications_between, Current, Numbers};
use crate::slot::{AsId, HostPage, Limits, Memslot, Pages, Region, SlotId};
use crate::snapshot::{Published, PublishedRef, Record, Space};
use crate::stats::{Figures, Stats};
use crate::trace::{Op, Trace};
use crate::working_copy::{Publication, Store, WorkingCopy};
use crossbeam_epoch::LocalHandle;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

/// Bytes of garbage from which on every update helps the epoch on.
const MUCH_GARBAGE: usize = 1 << 20;

/// So many bags under way, with a new one, are a sign that a reader is in the way: otherwise a bag is ripe two bags
/// later. If that reader is idle its pin is taken, which costs a system call.
const MANY_BAGS: u64 = 4;

/// The participant of threads that wait for readers without the update lock, one at a time. Ended by hand: see
/// `end_waiter`.
struct Waiter(ManuallyDrop<LocalHandle>);

// SAFETY: as for `Lane`: no tie to a thread, and a mutex around it.
unsafe impl Send for Waiter {}

/// What the update lock protects, beside the store that working copies use.
pub(crate) struct Writer {
    pub(crate) numbers: Numbers,
    pub(crate) publications: u64,
    /// The memory of the last update's journal.
    pub(crate) entries: Vec<Entry>,
    pub(crate) backend: Option<Backend>,
    pub(crate) out_of_step: Option<OutOfStep>,
    /// Empty without an `unmap` hook.
    pub(crate) ledger: Ledger,
    pub(crate) trace: Option<Trace>,
    /// Whether an update panicked half-way: what it had changed nobody knows, and there is no other after it.
    poisoned: bool,
    /// A state without slots, made beforehand so that a table can end without memory. None once it is published.
    last_state: Option<NonNull<Published>>,
}

impl Writer {
    fn new(numbers: Numbers, last_state: NonNull<Published>) -> Writer {
        Writer {
            numbers,
            publications: 0,
            entries: Vec::new(),
            backend: None,
            out_of_step: None,
            ledger: Ledger::new(),
            trace: None,
            poisoned: false,
            last_state: Some(last_state),
        }
    }
}

/// See the head of this file. What readers load comes first; what updates store has lines of its own.
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) current: Current,
    pub(crate) limits: Limits,
    pub(crate) sync: bool,
    /// Bytes of garbage past which an update waits for readers; 0: none.
    pub(crate) max_garbage: usize,
    pub(crate) hooks: Option<Box<dyn Hooks>>,
    /// Stored to by updates, as is all that follows.
    pub(crate) figures: Figures,
    pub(crate) domain: Domain,
    lock: UpdateLock,
    writer: UnsafeCell<Writer>,
    pub(crate) store: UnsafeCell<Store>,
    /// Owners: the table, its readers and its transactions. See [`Owner`].
    owners: AtomicUsize,
    pub(crate) readers: Readers,
    /// None once the table is gone.
    waiter: Mutex<Option<Waiter>>,
}

// SAFETY: the writer and the store are touched by the update lock's holder only; raw pointers in there and in the
// current publication lead to objects that change only under that lock, and are freed only when no reader is left
// (`epoch.rs`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// One of the owners of what is shared: an `Arc` whose allocation can fail.
pub(crate) struct Owner(NonNull<Shared>);

// SAFETY: Shared is Send and Sync, and the count is atomic.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

impl Owner {
    pub(crate) fn new(shared: Shared) -> Result<Owner> {
        match crate::memory::try_box(MaybeUninit::uninit()) {
            Ok(place) => Ok(Owner(NonNull::from(Box::leak(Box::write(place, shared))))),
            Err(errno) => {
                let mut shared = shared;
                // SAFETY: dropped next, and not shared yet.
                unsafe { Shared::end(NonNull::from(&mut shared)) };
                Err(errno)
            }
        }
    }

    /// One more owner. `EDEADLK` if there is none any more: inside the releases that the last owner runs.
    pub(crate) fn another(&self) -> Result<Owner> {
        if self.owners.fetch_add(1, Ordering::Relaxed) == 0 {
            // Only the thread that ends the table is left, and it does not count.
            self.owners.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::EDEADLK);
        }
        Ok(Owner(self.0))
    }

    /// Whether there is no other owner. Only the last one can rely on it.
    pub(crate) fn is_last(&self) -> bool {
        self.owners.load(Ordering::Acquire) == 1
    }

    /// What is shared, for as long as there is an owner.
    ///
    /// # Safety
    /// The answer is not used when the last owner is gone.
    #[inline(always)]
    pub(crate) unsafe fn unbound<'a>(&self) -> &'a Shared {
        // SAFETY: alive while it has an owner.
        unsafe { self.0.as_ref() }
    }
}

impl std::ops::Deref for Owner {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: alive while it has an owner.
        unsafe { self.0.as_ref() }
    }
}

/// What is shared, when nobody shares it any more: goes when the last release has run, or panicked.
struct Last(NonNull<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        // SAFETY: from the box in Owner::new(), and nobody's but ours.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.owners.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            let last = Last(self.0);
            // SAFETY: this was the last owner: all that others did happened before the fence.
            unsafe { Shared::end(last.0) };
        }
    }
}

impl Shared {
    pub(crate) fn new(
        limits: Limits,
        sync: bool,
        max_garbage: usize,
        keep_pins: bool,
        hooks: Option<Box<dyn Hooks>>,
    ) -> Result<Shared> {
        let domain = Domain::new(keep_pins);
        let lane = Lane::new(&domain)?;
        let mut store = Store::new(lane);
        let [root, last_state] = store.empty_roots(limits.nr_address_spaces)?;
        let waiter = Waiter(ManuallyDrop::new(domain.register()));
        let mut numbers = Numbers::new();
        let current = Current::new(root, &mut numbers);
        let writer = Writer::new(numbers, last_state);
        let shared = Shared {
            current,
            limits,
            sync,
            max_garbage,
            hooks,
            figures: Figures::default(),
            domain,
            lock: UpdateLock::new(),
            writer: UnsafeCell::new(writer),
            store: UnsafeCell::new(store),
            owners: AtomicUsize::new(1),
            readers: Readers::new(),
            waiter: Mutex::new(Some(waiter)),
        };
        shared.update()?;
        Ok(shared)
    }

    // ---- the update lock ----

    /// Takes the update lock. `EDEADLK` where this thread holds it already, or where its holder waits for a section of
    /// this thread's; `ENOTRECOVERABLE` after a panic inside an update.
    #[inline(always)]
    pub(crate) fn update(&self) -> Result<Updating<'_>> {
        self.lock.lock(|| self.readers.in_section())?;
        let mut lock = Updating::new(self, false);
        match lock.writer().poisoned {
            true => Err(Errno::ENOTRECOVERABLE),
            false => Ok(lock),
        }
    }

    /// Whether this thread holds the update lock.
    pub(crate) fn is_updating(&self) -> bool {
        self.lock.is_mine()
    }

    // ---- who is reading ----

    /// Readers, open sections, and how many publications ago the oldest of these began.
    pub(crate) fn presences(&self) -> (usize, usize, u64) {
        let census = self.readers.census();
        let now = self.current.seq.load(Ordering::Acquire);
        let lag = census.oldest.map_or(0, |since| publications_between(since, now));
        (census.readers, census.open_sections, lag)
    }

    /// Takes the pins of idle readers away, where these keep them.
    fn take_idle(&self) {
        if self.domain.keeps_pins() {
            // SAFETY: as just said.
            unsafe { self.readers.take_idle() };
        }
    }

    /// A grace period without the update lock. The caller is in no section of its own.
    pub(crate) fn wait_for_readers(&self) {
        let _no_cancel = NoCancel::begin();
        let waiter = self.waiter.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let waiter = waiter.as_ref().expect("there while the table is");
        self.domain.wait_for_readers(&waiter.0, &|| self.take_idle());
    }
}

/// The update lock, held. Belongs to the thread that took it.
pub(crate) struct Updating<'a> {
    /// Alive for 'a. Not a reference by type: a transaction that outlives its table is the last owner, and is passed by
    /// value to what ends it, such as drop(); a reference in there would promise that the memory stays.
    shared: NonNull<Shared>,
    /// Whether something is being changed, or a hook runs: a panic now leaves nobody knows what, and poisons the table.
    pub(crate) in_step: bool,
    alive: PhantomData<&'a Shared>,
    thread: PhantomData<*const ()>,
}

impl<'a> Updating<'a> {
    /// The calling thread has just taken the lock.
    #[inline(always)]
    fn new(shared: &'a Shared, in_step: bool) -> Updating<'a> {
        Updating { shared: NonNull::from(shared), in_step, alive: PhantomData, thread: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> &'a Shared {
        // SAFETY: from a `&'a Shared` in new().
        unsafe { self.shared.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn writer(&mut self) -> &mut Writer {
        // SAFETY: the update lock is held, and `&mut self` says that nobody else looks through it.
        unsafe { &mut *self.shared().writer.get() }
    }

    fn pool(&mut self) -> &mut Pool {
        // SAFETY: as above; no function of a working copy runs meanwhile.
        unsafe { &mut (*self.shared().store.get()).pool }
    }

    #[inline(always)]
    pub(crate) fn lane(&mut self) -> &mut Lane {
        // SAFETY: as above.
        unsafe { &mut (*self.shared().store.get()).lane }
    }

    /// Gives the lock to the calling thread, after the thread that took it has ended.
    pub(crate) fn take_over(&self) {
        self.shared().lock.take_over();
    }

    /// The state that is current. It stays alive while the lock is held.
    pub(crate) fn current(&self) -> PublishedRef<'_> {
        // SAFETY: only the lock's holder retires it, and frees nothing before the lock is given back or drained.
        unsafe { PublishedRef::new(self.shared().current.root()) }
    }

    /// A copy of the current state.
    #[inline(always)]
    pub(crate) fn begin_copy(&self) -> Result<WorkingCopy> {
        // SAFETY: the owner of the copy holds the lock; both are of this table.
        unsafe { WorkingCopy::begin(&self.shared().store, self.shared().current.root()) }
    }

    /// A copy of it beside another one: see [`WorkingCopy::begin_beside`].
    pub(crate) fn begin_beside(&self) -> Result<WorkingCopy> {
        // SAFETY: as above.
        unsafe { WorkingCopy::begin_beside(&self.shared().store, self.shared().current.root()) }
    }

    /// The same, with what one change of an address space can allocate reserved.
    #[inline(always)]
    pub(crate) fn begin_copy_for(&self, as_id: AsId, id: SlotId) -> Result<WorkingCopy> {
        // SAFETY: as above.
        unsafe { WorkingCopy::begin_for(&self.shared().store, self.shared().current.root(), as_id, id) }
    }

    /// A slot of the current state, of a working copy, or of what was retired: nothing of it is freed before a drain.
    pub(crate) fn slot(&self, record: NonNull<Record>) -> &Memslot {
        // SAFETY: draining takes the lock as mutable; a working copy frees only records that it no longer refers to.
        unsafe { &record.as_ref().slot }
    }

    /// Makes a copy the current state, and retires what it has replaced: see [`WorkingCopy::publish`].
    #[inline(always)]
    pub(crate) fn publish(&mut self, copy: WorkingCopy) {
        let current = &self.shared().current;
        let writer = self.writer();
        writer.publications += 1;
        copy.publish(current, &mut writer.numbers);
    }

    /// Makes a copy of [`Updating::begin_beside`] the current state.
    pub(crate) fn publish_beside(&mut self, copy: WorkingCopy) -> Publication {
        let current = &self.shared().current;
        let writer = self.writer();
        writer.publications += 1;
        copy.publish_beside(current, &mut writer.numbers)
    }

    /// What requests are held against.
    pub(crate) fn rules<'s>(&'s self, state: PublishedRef<'s>) -> Rules<'s> {
        Rules { limits: &self.shared().limits, state }
    }

    /// Whether an update returns only when no reader is left with what was before: it always does so, or there is too
    /// much garbage.
    pub(crate) fn waits(&mut self) -> bool {
        let limit = self.shared().max_garbage;
        self.shared().sync || limit > 0 && self.lane().garbage().0 > limit
    }

    /// Writes a line where a trace is on, and this is the process that began it.
    #[inline(always)]
    pub(crate) fn trace(&mut self, op: Op, named: impl FnOnce() -> Region, result: Result<()>) {
        if self.writer().trace.is_some() {
            self.write_line(op, named(), result);
        }
    }

    #[cold]
    fn write_line(&mut self, op: Op, region: Region, result: Result<()>) {
        if self.shared().readers.is_forked() {
            return;
        }
        let _no_cancel = NoCancel::begin();
        let generation = self.current().space(region.as_id()).map_or(0, |space| space.generation);
        if let Some(trace) = &mut self.writer().trace {
            trace.line(generation, op, &region, result);
        }
    }

    /// Notes where the table stands.
    fn note_figures(&mut self) {
        let add = |(slots, npages), space: &Space| (slots + space.count as u64, npages + space.npages);
        let (slots, npages) = self.current().spaces().iter().fold((0, Pages(0)), add);
        let (index_bytes, pool_bytes) = (self.pool().used() as u64, self.pool().held() as u64);
        let (garbage_bytes, garbage_objects) = self.lane().garbage();
        let releases_due = self.lane().releases_due() as u64;
        let writer = self.writer();
        let now = Stats {
            publications: writer.publications,
            slots,
            npages: npages.0,
            index_bytes,
            pool_bytes,
            garbage_bytes: garbage_bytes as u64,
            garbage_objects: garbage_objects as u64,
            releases_due,
            out_of_step: writer.out_of_step.map_or(0, |out| out.count),
            ..Stats::default()
        };
        self.shared().figures.note(&now);
    }

    /// A grace period: returns when no section is left that was open at the call.
    pub(crate) fn wait_for_readers(&mut self) {
        let _no_cancel = NoCancel::begin();
        self.note_figures();
        let shared = self.shared();
        shared.lock.begin_waiting();
        self.lane().wait_for_readers(&shared.domain, &|| shared.take_idle());
        shared.lock.end_waiting();
    }

    /// Helps the epoch on, past readers that are idle.
    pub(crate) fn advance(&mut self) {
        let shared = self.shared();
        shared.take_idle();
        self.lane().advance(&shared.domain);
    }

    /// Gives garbage to the collector (all of it with `now`) and frees what is ripe. Gives the releases run.
    pub(crate) fn collect(&mut self, now: bool) -> usize {
        self.seal(now);
        self.drain()
    }

    /// After a publication: gives garbage to the collector. With `wait`, returns when no reader is left that could use
    /// what was current before; but not where a hook has left a section of this thread open, which would be for ever.
    #[inline(always)]
    pub(crate) fn settle(&mut self, wait: bool) {
        let is_told = self.shared().hooks.is_some();
        let (bag, releases) = (self.lane().next_bag(), self.lane().releases_pending());
        let owed = is_told && (releases > 0 || self.writer().ledger.has(bag));
        self.seal(owed || wait);
        if wait && !self.shared().readers.in_section() {
            self.wait_for_readers();
        } else if self.lane().garbage().0 > MUCH_GARBAGE {
            let shared = self.shared();
            self.lane().advance(&shared.domain);
        }
    }

    /// Gives garbage to the collector: all of it with `now`.
    #[inline(always)]
    fn seal(&mut self, now: bool) {
        let shared = self.shared();
        let sealed = self.lane().sealed();
        // Without memory for a bag the garbage stays where it is, for the next time.
        let _ = self.lane().seal(&shared.domain, now);
        if self.lane().sealed() != sealed && self.lane().bags() >= MANY_BAGS {
            self.advance();
        }
    }

    /// Frees what is ripe. Gives the releases run. Most updates find nothing.
    #[inline(always)]
    pub(crate) fn drain(&mut self) -> usize {
        let shared = self.shared();
        match self.lane().has_ripe(&shared.domain) {
            true => self.drain_ripe(),
            false => 0,
        }
    }

    #[inline(never)]
    fn drain_ripe(&mut self) -> usize {
        let _no_cancel = NoCancel::begin();
        let shared = self.shared();
        // A release that panics leaves others undone until the table ends.
        let was_in_step = std::mem::replace(&mut self.in_step, true);
        // SAFETY: the lock is held; writer and pool are apart.
        let (writer, Store { lane, pool, .. }) = unsafe { (&mut *shared.writer.get(), &mut *shared.store.get()) };
        let released = lane.drain(&shared.domain, pool, &mut |gone| shared.release(gone));
        writer.ledger.give_up(lane.emptied(), |pages| shared.unmap(pages));
        self.in_step = was_in_step;
        released
    }
}

impl Drop for Updating<'_> {
    fn drop(&mut self) {
        self.note_figures();
        if self.in_step && std::thread::panicking() {
            self.writer().poisoned = true;
        }
        self.shared().lock.unlock();
    }
}

// ---- the end ----

impl Shared {
    fn release(&self, gone: &Memslot) {
        if let Some(hooks) = &self.hooks {
            hooks.release(gone);
        }
    }

    fn unmap(&self, pages: Range<HostPage>) {
        if let Some(hooks) = &self.hooks {
            let shift = self.limits.page_shift;
            hooks.unmap(pages.start.hva(shift), (pages.end - pages.start).bytes(shift));
        }
    }

    /// Releases the slots of a state that nobody can see any more, and then gives up the memory that they and earlier
    /// ones had.
    fn tell_the_end(&self, state: PublishedRef, ledger: &mut Ledger) {
        state.for_each_slot(|slot| self.release(slot));
        if self.hooks.as_ref().is_some_and(|hooks| hooks.wants_unmap()) {
            ledger.give_up(u64::MAX, |pages| self.unmap(pages));
            state.for_each_mapped(self.limits.page_shift, &mut |pages| self.unmap(pages));
        }
    }

    /// Ends the table where readers are left: takes every slot away, waits until nobody can see one, and runs every
    /// release that is owed. Needs no memory. No section is this thread's.
    pub(crate) fn close(&self) {
        let _no_cancel = NoCancel::begin();
        match self.lock.lock(|| false) {
            Ok(()) => {}
            // Inside an update of this thread's: what is left goes with the last owner.
            Err(_) => return,
        }
        // A table that is poisoned ends as any other: what readers see is whole.
        let mut lock = Updating::new(self, true);
        let old = self.current.root();
        let writer = lock.writer();
        let Some(last) = writer.last_state.take() else { return };
        writer.backend = None;
        let poisoned = writer.poisoned;
        self.publish_last(last, &mut writer.numbers);
        writer.publications += 1;
        lock.seal(true);
        lock.wait_for_readers();
        lock.drain();
        // SAFETY: the lock is held; lane and pool are apart. No reader is left in what was retired, or in the old
        // state.
        unsafe {
            let Store { lane, pool, .. } = &mut *self.store.get();
            lane.free_pending(pool, &mut |gone| self.release(gone));
            self.tell_the_end(PublishedRef::new(old), &mut (*self.writer.get()).ledger);
            free_publication(old, pool);
            if poisoned {
                pool.expect_leaks();
            }
        }
        lock.in_step = false;
    }

    /// Each address space's generation moves on, where it had a slot.
    fn publish_last(&self, last: NonNull<Published>, numbers: &mut Numbers) {
        // SAFETY: the caller holds the update lock; nobody has seen the last state.
        let (old, new) = unsafe { (PublishedRef::new(self.current.root()), Published::spaces_mut(last)) };
        for (old, new) in old.spaces().iter().zip(new) {
            let step = if old.count > 0 { self.limits.nr_address_spaces as u64 } else { 0 };
            new.generation = old.generation + step;
        }
        self.current.publish(last, numbers);
    }

    /// Ends the participant of those who wait without the update lock. False where one of them was waiting in another
    /// thread when the process forked: it stays as it is, locked, and nobody will ever come back to it.
    fn end_waiter(&self) -> bool {
        let mut waiter = match self.waiter.try_lock() {
            Ok(waiter) => waiter,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        drop(waiter.take().map(|Waiter(handle)| ManuallyDrop::into_inner(handle)));
        true
    }

    /// The last of the table, its readers and its transactions is gone: everything goes, and every release still owed
    /// is run. By pointer, since releases look in here, as does what the collector runs at its end: there is no `&mut
    /// Shared` before all of that is over. In a forked child no hook is called: what they know of is the parent's.
    ///
    /// # Safety
    /// `this` is alive, and dropped next. Nobody else uses it, but for releases.
    unsafe fn end(this: NonNull<Shared>) {
        let _no_cancel = NoCancel::begin();
        // SAFETY: alive.
        let shared = || unsafe { this.as_ref() };
        let forked = shared().readers.is_forked();
        // By another thread when the process forked, or by a transaction that was forgotten.
        let held = shared().lock.is_held();
        // A release that calls back in is refused, as any hook is.
        shared().lock.take_over();
        let in_use = !shared().end_waiter();
        // SAFETY: alive, and nobody else's; what is borrowed as mutable is in cells, and apart.
        let (writer, Store { lane, pool, .. }) = unsafe { (&mut *shared().writer.get(), &mut *shared().store.get()) };
        // SAFETY: all other participants are gone.
        unsafe { lane.leave(&raw mut (*this.as_ptr()).domain) };
        if forked && (held || in_use) {
            // Another thread may have been in an update, or waiting, when the process forked. The memory goes,
            // unlooked at.
            return pool.expect_leaks();
        }
        let mut release = |gone: &Memslot| {
            if !forked {
                shared().release(gone);
            }
        };
        lane.free_all(&shared().domain, pool, &mut release);
        let current = shared().current.root();
        if !forked {
            // SAFETY: alive until it is freed below.
            shared().tell_the_end(unsafe { PublishedRef::new(current) }, &mut writer.ledger);
        }
        // SAFETY: nobody reads or updates any more.
        unsafe { free_publication(current, pool) };
        if let Some(last) = writer.last_state.take() {
            // SAFETY: never published.
            unsafe { free_publication(last, pool) };
        }
        if writer.poisoned || held {
            pool.expect_leaks();
        }
    }
}

/// Frees a publication with all that is below it.
///
/// # Safety
/// Nobody can see it.
unsafe fn free_publication(root: NonNull<Published>, pool: &mut Pool) {
    // SAFETY: alive until freed at the end.
    let published = unsafe { PublishedRef::new(root) };
    for space in published.spaces() {
        // SAFETY: each record is there once, and goes before the nodes that lead to it.
        unsafe {
            space.for_each_record(&|_| false, &mut |record| pool.free(Record::object(record)));
            space.for_each_node(&|_| false, &mut |node| pool.free(object_of(node)));
        }
    }
    // SAFETY: not used any more.
    unsafe { pool.free(object_of(root.cast())) };
}

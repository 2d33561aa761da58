// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reclamation: epochs say when the last reader of what a publication replaced is gone.
//!
//! Does not know what the memory retired here means, but for records, whose release may be owed. Built on
//! crossbeam-epoch with a collector of the table's own, so that dropping the table frees everything.
//!
//! **Retiring.** What a publication replaced is listed in a *bag* under the update lock; what is listed is not written
//! to, since readers may still be on it. When enough has come together the bag is sealed: it gets the next number and
//! goes to the collector. When every read-side section that was open then has ended, some thread that advances the
//! epoch pushes the bag on `ripe`: two instructions and no lock. Only the holder of the update lock takes bags from
//! there and empties them, in the order of their numbers: so a thread that waits for one knows when it is done.
//!
//! **Pinning.** A reader's pin stays between sections (`pin.rs`), so that readers neither fence nor collect.

use crate::error::{Errno, Result};
use crate::index::pool::{Object, Pool, LINE};
use crate::pin::{Hold, KeptPin, Pin};
use crate::slot::Memslot;
use crate::snapshot::Record;
use crate::sync;
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::collections::VecDeque;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that come together before a bag goes to the collector: large enough to be rare, small enough to stay in cache.
const BAG_BYTES: usize = 64 << 10;

/// Entries that the lists of an emptied bag keep room for.
const ROOM_KEPT: usize = 1 << 10;

/// What one or more publications replaced.
#[derive(Default)]
struct Retired {
    /// Nodes, roots, and records whose slot lives on under another record.
    objects: Vec<Object>,
    /// Records whose slot is gone: their release is owed, in this order.
    gone: VecDeque<NonNull<Record>>,
    bytes: usize,
}

impl Retired {
    fn count(&self) -> usize {
        self.objects.len() + self.gone.len()
    }

    #[inline(always)]
    fn push(&mut self, object: Object) {
        debug_assert!(self.objects.len() < self.objects.capacity(), "room was reserved");
        self.bytes += object.bytes();
        self.objects.push(object);
    }

    /// Frees it all and runs the releases. Gives their number.
    ///
    /// # Safety
    /// Nobody can see any of it any more.
    unsafe fn empty(&mut self, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) -> usize {
        // SAFETY: each retired once, from this pool; nobody sees them, by the caller's promise.
        unsafe { pool.free_all(&self.objects) };
        self.objects.clear();
        let mut released = 0;
        while let Some(record) = self.gone.pop_front() {
            // SAFETY: as above; it is freed after the release has seen it.
            unsafe {
                release(&record.as_ref().slot);
                pool.free(Record::object(record));
            }
            released += 1;
        }
        self.bytes = 0;
        self.objects.shrink_to(ROOM_KEPT);
        self.gone.shrink_to(ROOM_KEPT);
        released
    }
}

/// Retired memory that waits for a grace period.
struct Bag {
    /// Bags are numbered as they are sealed, from 1 on.
    number: u64,
    /// Behind it in a list of bags.
    next: *mut Bag,
    retired: Retired,
    /// What it had in it when it was sealed.
    objects: usize,
    releases: usize,
}

/// The readers' side of one table's epochs.
pub(crate) struct Domain {
    /// None once the domain is closed.
    collector: Option<Collector>,
    /// Bags that nobody can see into any more: all that the collector's functions look at.
    ripe: AtomicPtr<Bag>,
    /// Whether readers keep their pins between sections: see `pin.rs`.
    keeps_pins: bool,
    turn: Turn,
    /// Sections that go on without a pin.
    holds: AtomicUsize,
}

/// What a section without a pin has.
pub(crate) struct Holder(NonNull<Domain>);

// SAFETY: a domain that outlives its holders, of which they use an atomic number.
unsafe impl Send for Holder {}
// SAFETY: as above.
unsafe impl Sync for Holder {}

impl Hold for Holder {
    fn begin(&self) {
        // SAFETY: the domain outlives its readers.
        unsafe { self.0.as_ref() }.holds.fetch_add(1, Ordering::Relaxed);
        // That before the section looks at anything.
        fence(Ordering::SeqCst);
    }

    fn end(&self) {
        // SAFETY: as above.
        unsafe { self.0.as_ref() }.holds.fetch_sub(1, Ordering::Release);
    }
}

/// Counts what may have moved the epoch: a reader whose pin is of this turn need not look further. On a line of its
/// own, which all readers load and few updates store to.
#[repr(align(128))]
struct Turn(AtomicU64);

/// A participant in the epochs, and its pin.
pub(crate) struct Participant {
    /// Dropped before the handle, which it is of.
    guard: Option<Guard>,
    handle: LocalHandle,
    /// How often the handle was pinned.
    pins: u32,
    /// The turn that the pin is of.
    turn: u64,
    /// Outlives its participants.
    domain: NonNull<Domain>,
}

/// A handle that was pinned as often is replaced when an updater is at it: crossbeam collects on every 128th pin of a
/// handle, and a reader must not.
const MANY_PINS: u32 = 100;

// SAFETY: handle and guard have no tie to a thread (they use no thread-local storage); `pin.rs` sees to it that one
// thread is at them at a time.
unsafe impl Send for Participant {}

impl Pin for Participant {
    #[inline(always)]
    fn renew(&mut self) {
        // SAFETY: the domain outlives its participants.
        let turn = unsafe { self.domain.as_ref() }.turn.0.load(Ordering::Relaxed);
        if self.turn != turn || self.guard.is_none() {
            self.renew_in(turn);
        }
    }

    fn give_up(&mut self) {
        self.guard = None;
    }

    fn prepare(&mut self) {
        if self.pins >= MANY_PINS && crate::memory::is_there() {
            // SAFETY: as above.
            *self = unsafe { self.domain.as_ref() }.participate();
            self.give_up();
        }
    }
}

impl Participant {
    #[inline(never)]
    fn renew_in(&mut self, turn: u64) {
        self.turn = turn;
        match &mut self.guard {
            // Never collects.
            Some(guard) => {
                guard.repin();
                // crossbeam loads the epoch there without an order. What was published before the epoch came to where
                // the pin is now must be seen by this section: else it could find what is freed one step later.
                fence(Ordering::Acquire);
            }
            None => {
                self.pins += 1;
                self.guard = Some(self.handle.pin());
            }
        }
    }
}

/// A bag on its way through the collector.
struct Sealed {
    ripe: *const AtomicPtr<Bag>,
    bag: *mut Bag,
}

impl Sealed {
    /// Called when no section is left that could see what is in the bag, on whichever thread noticed.
    fn ripen(self) {
        // SAFETY: the domain outlives its collector (see leave()), and the collector runs this.
        let ripe = unsafe { &*self.ripe };
        let mut head = ripe.load(Ordering::Relaxed);
        loop {
            // SAFETY: until it is on the stack the bag is ours.
            unsafe { (*self.bag).next = head };
            match ripe.compare_exchange_weak(head, self.bag, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Waits a little, and longer each time.
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Backoff(0)
    }

    pub(crate) fn wait(&mut self) {
        match self.0 {
            0..16 => std::hint::spin_loop(),
            16..64 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
        self.0 = self.0.saturating_add(1);
    }
}

impl Domain {
    /// `keep_pins` where the kernel has what that takes.
    pub(crate) fn new(keep_pins: bool) -> Self {
        let keeps_pins = keep_pins && sync::has_heavy_fence();
        let turn = Turn(AtomicU64::new(0));
        Domain {
            collector: Some(Collector::new()),
            ripe: AtomicPtr::new(null_mut()),
            keeps_pins,
            turn,
            holds: AtomicUsize::new(0),
        }
    }

    /// Whether readers keep their pins between sections.
    pub(crate) fn keeps_pins(&self) -> bool {
        self.keeps_pins
    }

    /// A participant that is pinned: a handle's first pin collects, and that is over then.
    fn participate(&self) -> Participant {
        let handle = self.register();
        let turn = self.turn.0.load(Ordering::Relaxed);
        Participant { guard: Some(handle.pin()), handle, pins: 1, turn, domain: NonNull::from(self) }
    }

    /// A reader's pin.
    pub(crate) fn pin_of_reader(&self) -> KeptPin<Participant, Holder> {
        KeptPin::new(self.participate(), Holder(NonNull::from(self)), self.keeps_pins)
    }

    /// Whether a section that is open has no pin: nothing may be freed. All that was published before the call is seen
    /// by sections without one that begin later.
    fn is_held(&self) -> bool {
        fence(Ordering::SeqCst);
        self.holds.load(Ordering::Acquire) > 0
    }

    /// Lets the epoch advance by a step, if all pins are of this one.
    fn advance(&self, handle: &LocalHandle) {
        self.turn.0.fetch_add(1, Ordering::Relaxed);
        handle.pin().flush();
    }

    /// A participant: for one thread at a time.
    pub(crate) fn register(&self) -> LocalHandle {
        self.collector.as_ref().expect("open while its table lives").register()
    }

    /// A grace period: returns when every section that is open now has ended. `take_idle` takes the pins of readers
    /// that are idle.
    pub(crate) fn wait_for_readers(&self, handle: &LocalHandle, take_idle: &dyn Fn()) {
        let passed = AtomicBool::new(false);
        let guard = handle.pin();
        // SAFETY: `passed` lives until the closure has run, since this function does not return before.
        unsafe { guard.defer_unchecked(|| passed.store(true, Ordering::Release)) };
        guard.flush();
        drop(guard);
        let mut backoff = Backoff::new();
        while !passed.load(Ordering::Acquire) || self.is_held() {
            take_idle();
            self.advance(handle);
            backoff.wait();
        }
    }
}

/// The updating side: what has been retired, and the way to the collector. Part of what the update lock protects.
pub(crate) struct Lane {
    /// None once the lane is closed.
    handle: Option<LocalHandle>,
    pending: Retired,
    /// Where what a working copy has replaced begins among the objects that are pending: not retired before the copy
    /// is published. None while nothing lists.
    list_begins: Option<usize>,
    /// Bags sealed so far: the newest one's number.
    sealed: u64,
    /// Bags emptied so far: all up to this number.
    emptied: u64,
    /// Ripe bags in the order of their numbers; one with a lower number may still be missing.
    in_turn: *mut Bag,
    /// Empty. One bag at least exists at any time, here or under way, so that sealing can only fail for a while.
    spare: Option<Box<Bag>>,
    /// In bags that are sealed and not yet emptied.
    waiting_bytes: usize,
    waiting_objects: usize,
    waiting_releases: usize,
}

// SAFETY: a LocalHandle has no tie to the thread that made it (it uses no thread-local storage); it must only not be
// used by two threads at once, which the update lock sees to. The bags in the list are the lane's alone.
unsafe impl Send for Lane {}

impl Lane {
    pub(crate) fn new(domain: &Domain) -> Result<Self> {
        Ok(Lane {
            handle: Some(domain.register()),
            pending: Retired::default(),
            list_begins: None,
            sealed: 0,
            emptied: 0,
            in_turn: null_mut(),
            spare: Some(new_bag()?),
            waiting_bytes: 0,
            waiting_objects: 0,
            waiting_releases: 0,
        })
    }

    /// Bytes and objects that are retired and not yet free again.
    pub(crate) fn garbage(&self) -> (usize, usize) {
        (self.waiting_bytes + self.pending.bytes, self.waiting_objects + self.pending.count() - self.listed())
    }

    /// Releases owed, with the collector or not.
    pub(crate) fn releases_due(&self) -> usize {
        self.pending.gone.len() + self.waiting_releases
    }

    /// Releases owed that have not gone to the collector.
    pub(crate) fn releases_pending(&self) -> usize {
        self.pending.gone.len()
    }

    /// Room for what an update is going to retire. Fails with ENOMEM.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, objects: usize) -> Result<()> {
        self.pending.objects.try_reserve(objects).map_err(|_| Errno::ENOMEM)
    }

    /// Room for records whose slots an update ends. Fails with ENOMEM.
    pub(crate) fn reserve_gone(&mut self, records: usize) -> Result<()> {
        self.pending.gone.try_reserve(records).map_err(|_| Errno::ENOMEM)
    }

    /// Retires memory that readers may still look at; there is room.
    ///
    /// # Safety
    /// It is from this table's pool, no longer reachable from the current publication, and was not retired before.
    #[inline(always)]
    pub(crate) unsafe fn retire(&mut self, object: Object) {
        debug_assert!(self.list_begins.is_none(), "the list is what comes last");
        self.pending.push(object);
    }

    /// Begins the list of what a working copy replaces. It ends before anything else is retired.
    #[inline(always)]
    pub(crate) fn begin_list(&mut self) {
        debug_assert!(self.list_begins.is_none(), "another copy lists what it replaces");
        self.list_begins = Some(self.pending.objects.len());
    }

    /// The list, to be added to where there is room.
    #[inline(always)]
    pub(crate) fn list(&mut self) -> &mut Vec<Object> {
        debug_assert!(self.list_begins.is_some());
        &mut self.pending.objects
    }

    /// How many objects are listed.
    pub(crate) fn listed(&self) -> usize {
        self.list_begins.map_or(0, |begin| self.pending.objects.len() - begin)
    }

    /// Retires what is listed, and ends the list.
    ///
    /// # Safety
    /// As `retire`, for each.
    #[inline(always)]
    pub(crate) unsafe fn retire_listed(&mut self) {
        let begin = self.list_begins.take().expect("a copy that lists");
        let lines: usize = self.pending.objects[begin..].iter().map(|object| object.lines as usize).sum();
        self.pending.bytes += lines * LINE;
    }

    /// Ends the list, if there is one: what is on it lives on.
    pub(crate) fn forget_listed(&mut self) {
        if let Some(begin) = self.list_begins.take() {
            self.pending.objects.truncate(begin);
            self.pending.objects.shrink_to(ROOM_KEPT);
        }
    }

    /// Retires a record whose slot is gone, and whose release is owed; there is room.
    ///
    /// # Safety
    /// As `retire`.
    pub(crate) unsafe fn retire_gone(&mut self, record: NonNull<Record>) {
        debug_assert!(self.pending.gone.len() < self.pending.gone.capacity(), "room was reserved");
        self.pending.bytes += Record::object(record).bytes();
        self.pending.gone.push_back(record);
    }

    /// Gives what is pending to the collector where it is enough, or where the caller says so. Fails with ENOMEM, and
    /// then all stays pending.
    #[inline(always)]
    pub(crate) fn seal(&mut self, domain: &Domain, now: bool) -> Result<()> {
        let enough = if now { 1 } else { BAG_BYTES };
        match self.pending.bytes < enough {
            true => Ok(()),
            false => self.seal_pending(domain),
        }
    }

    #[inline(never)]
    fn seal_pending(&mut self, domain: &Domain) -> Result<()> {
        debug_assert!(self.list_begins.is_none(), "what is listed is not retired");
        let mut bag = match self.spare.take() {
            Some(bag) => bag,
            None => new_bag()?,
        };
        self.sealed += 1;
        bag.number = self.sealed;
        std::mem::swap(&mut bag.retired, &mut self.pending);
        (bag.objects, bag.releases) = (bag.retired.count(), bag.retired.gone.len());
        self.waiting_bytes += bag.retired.bytes;
        self.waiting_objects += bag.objects;
        self.waiting_releases += bag.releases;
        let sealed = Sealed { ripe: &domain.ripe, bag: Box::into_raw(bag) };
        let guard = self.handle().pin();
        // SAFETY: ripen() takes no lock, does not allocate, and touches only the bag and what is ripe, which outlives
        // the collector. Nothing in the bag is reachable from the current publication any more.
        unsafe { guard.defer_unchecked(move || sealed.ripen()) };
        drop(guard);
        self.advance(domain);
        Ok(())
    }

    /// The number of the bag that what is retired next goes into.
    pub(crate) fn next_bag(&self) -> u64 {
        self.sealed + 1
    }

    /// All bags up to this number have been emptied.
    pub(crate) fn emptied(&self) -> u64 {
        self.emptied
    }

    /// The newest sealed bag's number: what was retired up to now has at most this one, where nothing is pending.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Whether there may be something to free, which costs no exchange to see.
    #[inline(always)]
    pub(crate) fn has_ripe(&self, domain: &Domain) -> bool {
        !domain.ripe.load(Ordering::Relaxed).is_null() || !self.in_turn.is_null()
    }

    /// Whether all bags up to this number have been emptied.
    pub(crate) fn has_emptied(&self, number: u64) -> bool {
        self.emptied >= number
    }

    /// How many bags are not emptied yet.
    pub(crate) fn bags(&self) -> u64 {
        self.sealed - self.emptied
    }

    /// Whether something is retired and in no bag.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending.bytes > 0
    }

    /// Helps the epoch on.
    pub(crate) fn advance(&self, domain: &Domain) {
        domain.advance(self.handle());
    }

    fn handle(&self) -> &LocalHandle {
        self.handle.as_ref().expect("open while its table lives")
    }

    /// A grace period; and what was sealed before the call is ripe afterwards. `take_idle` as for the domain's.
    pub(crate) fn wait_for_readers(&mut self, domain: &Domain, take_idle: &dyn Fn()) {
        domain.wait_for_readers(self.handle(), take_idle);
        let mut backoff = Backoff::new();
        while self.ripe_up_to(domain) < self.sealed {
            take_idle();
            self.advance(domain);
            backoff.wait();
        }
    }

    /// Takes what has become ripe into the list, and gives the number up to which no bag is missing.
    fn ripe_up_to(&mut self, domain: &Domain) -> u64 {
        let mut newest = domain.ripe.swap(null_mut(), Ordering::Acquire);
        while let Some(bag) = NonNull::new(newest) {
            // SAFETY: what was on the stack is ours since the swap.
            newest = unsafe { (*bag.as_ptr()).next };
            self.put_in_turn(bag.as_ptr());
        }
        let (mut number, mut bag) = (self.emptied, self.in_turn);
        // SAFETY: bags in the list are alive and ours.
        while let Some(at) = unsafe { bag.as_ref() }.filter(|at| at.number == number + 1) {
            (number, bag) = (at.number, at.next);
        }
        number
    }

    fn put_in_turn(&mut self, bag: *mut Bag) {
        let mut place: *mut *mut Bag = &mut self.in_turn;
        // SAFETY: bags in the list are alive and ours; nothing else refers to them or their links.
        unsafe {
            while !(*place).is_null() && (**place).number < (*bag).number {
                place = &raw mut (**place).next;
            }
            (*bag).next = *place;
            *place = bag;
        }
    }

    /// The next bag in turn, where it is ripe.
    fn next_in_turn(&mut self) -> Option<&mut Bag> {
        // SAFETY: bags in the list are alive and ours.
        unsafe { self.in_turn.as_mut() }.filter(|bag| bag.number == self.emptied + 1)
    }

    /// Takes the next bag, which is empty, out of the list.
    fn finish_next(&mut self) {
        // SAFETY: the caller has seen that there is one, from a box in seal_pending().
        let bag = unsafe { Box::from_raw(self.in_turn) };
        debug_assert!(bag.retired.count() == 0 && bag.number == self.emptied + 1);
        self.in_turn = bag.next;
        self.emptied = bag.number;
        self.waiting_objects -= bag.objects;
        self.waiting_releases -= bag.releases;
        self.spare.get_or_insert(bag);
    }

    /// Frees what is ripe, oldest first, and runs the releases owed. Gives their number. Should one panic, the rest is
    /// still there for the next call.
    pub(crate) fn drain(&mut self, domain: &Domain, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) -> usize {
        self.ripe_up_to(domain);
        if domain.is_held() {
            return 0;
        }
        let mut released = 0;
        while let Some(bag) = self.next_in_turn() {
            let bytes = bag.retired.bytes;
            // SAFETY: the bag is ripe: no reader is left that could see what is in it.
            released += unsafe { bag.retired.empty(pool, release) };
            self.waiting_bytes -= bytes;
            self.finish_next();
        }
        released
    }

    /// Ends the collector, which makes every bag ripe.
    ///
    /// # Safety
    /// The domain is alive, and its collector used by nobody: all other participants are gone.
    pub(crate) unsafe fn leave(&mut self, domain: *mut Domain) {
        self.handle = None;
        // SAFETY: the caller's promise. No `&mut Domain` is left when the bags ripen, which look at it.
        let collector = unsafe { (*domain).collector.take() };
        drop(collector);
    }

    /// Frees everything, after `leave`.
    pub(crate) fn free_all(&mut self, domain: &Domain, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) {
        // Of a transaction that was forgotten: what it had replaced is still current.
        self.forget_listed();
        self.drain(domain, pool, release);
        debug_assert!(self.has_emptied(self.sealed), "a bag was lost");
        // SAFETY: the last participant is gone, so nobody can see what is pending.
        unsafe { self.free_pending(pool, release) };
    }

    /// Frees what is in no bag.
    ///
    /// # Safety
    /// Nobody can see it any more.
    pub(crate) unsafe fn free_pending(&mut self, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) {
        // SAFETY: the caller's promise.
        unsafe { self.pending.empty(pool, release) };
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        while let Some(bag) = NonNull::new(self.in_turn) {
            // SAFETY: bags in the list are boxes, and ours.
            let bag = unsafe { Box::from_raw(bag.as_ptr()) };
            self.in_turn = bag.next;
        }
    }
}

fn new_bag() -> Result<Box<Bag>> {
    crate::memory::try_box(Bag { number: 0, next: null_mut(), retired: Retired::default(), objects: 0, releases: 0 })
}

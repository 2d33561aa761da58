// SPDX-License-Identifier: MIT OR Apache-2.0
//! Publication and reclamation: one store makes a snapshot current, epochs say when the last reader of what it
//! replaced is gone.
//!
//! May not know what the objects put aside here mean. Built on crossbeam-epoch with a collector of the table's own, so
//! that dropping the table frees everything.
//!
//! **Publishing.** `seq` is the publication's number, a multiple of `SEQ_STEP`, and never used twice. A publisher marks it
//! BUSY, stores the root, makes it the new number. A reader that remembers an answer with the number of the publication that
//! gave it may use it again while `seq` is that number, and never goes back in time: had it seen the new root by way of a
//! lookup, it would see `seq` BUSY or newer, since that was stored before the root.
//!
//! **Putting aside.** What a publication replaced is chained into `pending` under the update lock. When enough has come
//! together the chain goes to the collector as one bag. When every read-side section that was open then has ended, some
//! thread that happens to advance the epoch, a reader included, pushes the bag on `ripe`: two instructions and no lock. Only
//! threads that hold the update lock take bags from there, free what is in them and run releases.

use crate::index::node::NODE_LINES_MAX;
use crate::index::pool::{lines_of, Pool, LINE};
use crate::index::{Chain, Head, Stack};
use crate::slot::{Memslot, Result, MAX_ADDRESS_SPACES};
use crate::snapshot::{Published, Record, RECORD_LINES};
use crossbeam_epoch::{Collector, LocalHandle};
use std::mem::size_of;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that come together before a bag goes to the collector: large enough to be rare, small enough to stay in cache.
const BAG_BYTES: usize = 64 << 10;

/// From one publication's number to the next. In between is room for the number of an address space, see `reader.rs`.
pub(crate) const SEQ_STEP: u64 = MAX_ADDRESS_SPACES as u64;

/// In `seq` while another publication is about to take its place. Numbers stay below: no number and address space, not
/// even one that there cannot be, come to the same with it and without.
pub(crate) const BUSY: u64 = 1 << 62;

/// The number of the publication that `seq` was last at, while another may be about to take its place.
pub(crate) fn settled(seq: u64) -> u64 {
    seq & !BUSY
}

/// The current publication. On lines of its own: all readers load from here, and only publishing stores.
#[repr(C, align(128))]
pub(crate) struct Current {
    /// First, at a fixed place: the C header's inline lookup loads it.
    pub(crate) seq: AtomicU64,
    root: AtomicPtr<Published>,
}

impl Current {
    pub(crate) fn new(root: NonNull<Published>) -> Self {
        // SAFETY: alive, the caller has just made it.
        let seq = unsafe { root.as_ref() }.seq;
        Current { seq: AtomicU64::new(seq), root: AtomicPtr::new(root.as_ptr()) }
    }

    /// The current publication. It stays alive for as long as a section that was open at the call, or the caller holds
    /// the update lock.
    #[inline(always)]
    pub(crate) fn root(&self) -> NonNull<Published> {
        // SAFETY: there is always one.
        unsafe { NonNull::new_unchecked(self.root.load(Ordering::Acquire)) }
    }

    /// Makes `new` current and gives it its number. Under the update lock.
    pub(crate) fn publish(&self, mut new: NonNull<Published>) {
        let seq = self.seq.load(Ordering::Relaxed);
        // SAFETY: not published yet, so the update lock's holder is alone with it.
        unsafe { new.as_mut() }.seq = seq + SEQ_STEP;
        self.seq.store(seq | BUSY, Ordering::Relaxed);
        // That before the root: see the head of this file.
        fence(Ordering::Release);
        self.root.store(new.as_ptr(), Ordering::Release);
        self.seq.store(seq + SEQ_STEP, Ordering::Release);
    }
}

/// What one or more publications replaced.
struct Bag {
    next: *mut Bag,
    /// Nodes and roots, which start with a [`Head`], by their lines: so they go back to the pool a chain at a time, and nobody
    /// fetches each of them into the cache to see what it is. Those that are larger than nodes are roots, all of one size.
    objects: [Chain; NODE_LINES_MAX + 2],
    /// Records whose slot lives on under another record.
    records: Chain,
    /// Records whose slot is gone: their release is owed.
    owed: Chain,
    /// The bag's own included once it is on its way.
    bytes: usize,
    /// Not of the same type as the bytes: or the compiler adds to both at once, by a load that waits for two stores.
    count: u32,
}

const BAG_LINES: usize = lines_of(size_of::<Bag>());

impl Bag {
    const EMPTY: Bag = Bag {
        next: null_mut(),
        objects: [const { Chain::EMPTY }; NODE_LINES_MAX + 2],
        records: Chain::EMPTY,
        owed: Chain::EMPTY,
        bytes: 0,
        count: 0,
    };
}

/// The readers' side of one table's epochs.
pub(crate) struct Domain {
    /// None once the domain is closed.
    collector: Option<Collector>,
    ripe: Ripe,
    /// Bags ever given to the collector.
    sealed: AtomicUsize,
}

/// Bags that nobody can see into any more. All that the collector's functions look at.
struct Ripe {
    newest: AtomicPtr<Bag>,
    /// Bags ever pushed.
    ripened: AtomicUsize,
}

/// A bag on its way through the collector.
struct Sealed {
    ripe: *const Ripe,
    bag: *mut Bag,
}

impl Sealed {
    /// Called when no section is left that could see what is in the bag, on whichever thread noticed.
    fn ripen(self) {
        // SAFETY: the domain outlives its collector (see leave()), and the collector runs this.
        let ripe = unsafe { &*self.ripe };
        let mut head = ripe.newest.load(Ordering::Relaxed);
        loop {
            // SAFETY: until it is on the stack the bag is ours.
            unsafe { (*self.bag).next = head };
            match ripe.newest.compare_exchange_weak(head, self.bag, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        ripe.ripened.fetch_add(1, Ordering::Release);
    }
}

impl Domain {
    pub(crate) fn new() -> Self {
        Domain {
            collector: Some(Collector::new()),
            ripe: Ripe { newest: AtomicPtr::new(null_mut()), ripened: AtomicUsize::new(0) },
            sealed: AtomicUsize::new(0),
        }
    }

    /// A participant: for one thread at a time.
    pub(crate) fn register(&self) -> LocalHandle {
        self.collector.as_ref().expect("open while its table lives").register()
    }

    /// Waits until every section that is open now has ended, and what was given to the collector before is ripe.
    pub(crate) fn wait_for_readers(&self, handle: &LocalHandle) {
        let due = self.sealed.load(Ordering::Acquire);
        let passed = AtomicBool::new(false);
        let guard = handle.pin();
        // SAFETY: `passed` lives until the closure has run, since this function does not return before.
        unsafe { guard.defer_unchecked(|| passed.store(true, Ordering::Release)) };
        guard.flush();
        drop(guard);
        let mut rounds = 0u32;
        while !passed.load(Ordering::Acquire)
            || (self.ripe.ripened.load(Ordering::Acquire).wrapping_sub(due) as isize) < 0
        {
            handle.pin().flush();
            match rounds {
                0..16 => std::hint::spin_loop(),
                16..64 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
            rounds = rounds.saturating_add(1);
        }
    }

    /// Whether there is something to take, which costs no exchange to see.
    #[inline(always)]
    pub(crate) fn has_ripe(&self) -> bool {
        !self.ripe.newest.load(Ordering::Relaxed).is_null()
    }

    fn take_ripe(&self) -> *mut Bag {
        self.ripe.newest.swap(null_mut(), Ordering::Acquire)
    }
}

/// The updating side: what has been put aside, and the way to the collector. Part of what the update lock protects.
pub(crate) struct Lane {
    /// None once the lane is closed.
    handle: Option<LocalHandle>,
    pending: Bag,
    /// Given to the collector and not yet freed.
    waiting_bytes: usize,
    waiting_objects: u32,
    waiting_releases: usize,
}

// SAFETY: a LocalHandle has no tie to the thread that made it (it uses no thread-local storage); it must only not be used
// by two threads at once, which the update lock sees to.
unsafe impl Send for Lane {}

impl Lane {
    pub(crate) fn new(domain: &Domain) -> Self {
        Lane {
            handle: Some(domain.register()),
            pending: Bag::EMPTY,
            waiting_bytes: 0,
            waiting_objects: 0,
            waiting_releases: 0,
        }
    }

    /// Bytes and objects put aside and not yet free again.
    pub(crate) fn garbage(&self) -> (usize, u32) {
        (self.waiting_bytes + self.pending.bytes, self.waiting_objects + self.pending.count)
    }

    /// Releases owed, with the collector or not.
    pub(crate) fn releases_due(&self) -> usize {
        self.pending.owed.count + self.waiting_releases
    }

    /// Releases owed that have not gone to the collector.
    pub(crate) fn releases_pending(&self) -> usize {
        self.pending.owed.count
    }

    /// Puts aside a node or a root.
    ///
    /// # Safety
    /// It starts with a [`Head`], is from this table's pool, no longer reachable from the current publication, and was not
    /// put aside before.
    pub(crate) unsafe fn retire(&mut self, object: NonNull<Head>) {
        // SAFETY: the caller's promise.
        unsafe {
            let lines = object.as_ref().lines as usize;
            self.pending.bytes += lines * LINE;
            self.pending.count += 1;
            self.pending.objects[lines.min(NODE_LINES_MAX + 1)].push(object.cast());
        }
    }

    /// Puts aside what an editor has replaced.
    pub(crate) fn retire_all(&mut self, replaced: &mut Stack) {
        while let Some(object) = replaced.pop() {
            // SAFETY: editors put aside what starts with a head and the working copy has let go of, each object once.
            unsafe { self.retire(object.cast()) };
        }
    }

    /// Puts aside a record; `gone` where the slot's life has ended and its release is owed.
    ///
    /// # Safety
    /// As `retire`.
    pub(crate) unsafe fn retire_record(&mut self, record: NonNull<Record>, gone: bool) {
        self.pending.bytes += RECORD_LINES * LINE;
        self.pending.count += 1;
        let chain = if gone { &mut self.pending.owed } else { &mut self.pending.records };
        // SAFETY: the caller's promise.
        unsafe { chain.push(Record::link_of(record)) };
    }

    /// Gives what is pending to the collector where it is enough, or where the caller says so. Fails with ENOMEM, and
    /// then all stays pending.
    #[inline(always)]
    pub(crate) fn seal(&mut self, domain: &Domain, pool: &mut Pool, now: bool) -> Result<()> {
        let enough = if now { 1 } else { BAG_BYTES };
        match self.pending.bytes < enough {
            true => Ok(()),
            false => self.seal_pending(domain, pool),
        }
    }

    #[inline(never)]
    fn seal_pending(&mut self, domain: &Domain, pool: &mut Pool) -> Result<()> {
        pool.reserve(BAG_LINES * LINE)?;
        let bag = pool.alloc(BAG_LINES).cast::<Bag>().as_ptr();
        self.pending.bytes += BAG_LINES * LINE;
        self.waiting_bytes += self.pending.bytes;
        self.waiting_objects += self.pending.count;
        self.waiting_releases += self.pending.owed.count;
        let full = std::mem::replace(&mut self.pending, Bag::EMPTY);
        // SAFETY: fresh memory of that many lines.
        unsafe { bag.write(full) };
        domain.sealed.fetch_add(1, Ordering::Release);
        let sealed = Sealed { ripe: &domain.ripe, bag };
        let guard = self.handle().pin();
        // SAFETY: ripen() takes no lock, does not allocate, and touches only the bag and what is ripe, which outlives
        // the collector. Nothing in the bag is reachable from the current publication any more.
        unsafe { guard.defer_unchecked(move || sealed.ripen()) };
        guard.flush();
        Ok(())
    }

    /// Helps the epoch on.
    pub(crate) fn advance(&self) {
        self.handle().pin().flush();
    }

    fn handle(&self) -> &LocalHandle {
        self.handle.as_ref().expect("open while its table lives")
    }

    /// Waits for the readers; see [`Domain::wait_for_readers`].
    pub(crate) fn wait_for_readers(&self, domain: &Domain) {
        domain.wait_for_readers(self.handle());
    }

    /// Frees what is ripe, oldest first, and runs the releases owed. Gives their number.
    pub(crate) fn drain(&mut self, domain: &Domain, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) -> usize {
        let mut newest = domain.take_ripe();
        let mut oldest: *mut Bag = null_mut();
        while !newest.is_null() {
            // SAFETY: what was on the stack is ours since take_ripe().
            let next = unsafe { std::mem::replace(&mut (*newest).next, oldest) };
            (oldest, newest) = (newest, next);
        }
        let mut released = 0;
        while let Some(bag) = NonNull::new(oldest) {
            // SAFETY: as above; a bag is read once, and its memory given back.
            let mut content = unsafe { bag.read() };
            oldest = content.next;
            self.waiting_bytes -= content.bytes;
            self.waiting_objects -= content.count;
            self.waiting_releases -= content.owed.count;
            // SAFETY: came from this pool; what was in it is on our stack.
            unsafe { pool.free(bag.cast(), BAG_LINES) };
            // SAFETY: the bag is ripe: no reader is left that could see what is in it.
            released += unsafe { empty(&mut content, pool, release) };
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
        self.drain(domain, pool, release);
        let mut pending = std::mem::replace(&mut self.pending, Bag::EMPTY);
        // SAFETY: the last participant is gone, so nobody can see these.
        unsafe { empty(&mut pending, pool, release) };
    }
}

/// Frees what is in a bag and runs its releases.
///
/// # Safety
/// Nobody can see any of it any more.
unsafe fn empty(bag: &mut Bag, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) -> usize {
    for chain in bag.objects.iter_mut() {
        let Some(first) = chain.first() else { continue };
        // SAFETY: put aside with its head, as all of the chain, whose objects have as many lines; they came from this pool.
        unsafe { pool.free_chain(chain, first.cast::<Head>().as_ref().lines as usize) };
    }
    // SAFETY: links of records, which came from this pool.
    unsafe { pool.free_chain(&mut bag.records, RECORD_LINES) };
    let owed = bag.owed.count;
    while let Some(link) = bag.owed.pop() {
        // SAFETY: as above; it is freed after the release has seen it.
        unsafe {
            let record = Record::of_link(link);
            release(&record.as_ref().slot);
            pool.free(record.cast(), RECORD_LINES);
        }
    }
    owed
}

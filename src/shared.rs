// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a table, its transactions and its readers have in common: the current publication, the update lock, who is
//! reading, the hooks.
//!
//! May not know how an update is made, nor how a lookup is answered.
//!
//! **Locks.** The update lock (`writer`) is held for an update, from the first check to the last hook, and protects
//! everything in [`Writer`]. The registry lock (`present`) is held for a moment, with nothing below it. Readers take
//! neither after they were made.

use crate::change::Rules;
use crate::epoch::{settled, Current, Domain, Lane, BUSY, SEQ_STEP};
use crate::hooks::Hooks;
use crate::index::pool::Object;
use crate::index::pool::{Pool, LINE};
use crate::index::{object_of, Editor, Stamp};
use crate::kvm::{Backend, OutOfStep};
use crate::slot::{Errno, Limits, Memslot, Region, Result};
use crate::snapshot::{Published, Record, Space};
use crate::trace::{Op, Trace};
use crossbeam_epoch::LocalHandle;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Bytes of the calling thread's identity: a number that no other living thread has.
pub(crate) fn this_thread() -> usize {
    // SAFETY: pthread_self() has no conditions.
    unsafe { libc::pthread_self() as usize }
}

/// Whether a reader is in a read-side section, and whose. On a line of its own, written by that reader alone.
#[repr(align(64))]
pub(crate) struct Presence {
    /// The thread that opened the section, or 0.
    thread: AtomicUsize,
    /// The publication that was current then.
    since: AtomicU64,
}

impl Presence {
    pub(crate) fn new() -> Self {
        Presence { thread: AtomicUsize::new(0), since: AtomicU64::new(0) }
    }

    #[inline(always)]
    pub(crate) fn begin(&self, seq: u64) {
        self.since.store(seq, Ordering::Relaxed);
        self.thread.store(this_thread(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn end(&self) {
        self.thread.store(0, Ordering::Relaxed);
    }
}

/// The readers of a table, by their presence. The pointers are alive: a reader takes its own out before it goes.
struct Registry(Vec<NonNull<Presence>>);

// SAFETY: what is pointed to is atomics.
unsafe impl Send for Registry {}

/// A participant that whoever waits for readers without the update lock uses in turn.
struct Waiter(LocalHandle);

// SAFETY: as for `Lane`: no tie to a thread, and a mutex around it.
unsafe impl Send for Waiter {}

/// Bytes of garbage from which on every update helps the epoch on.
const MUCH_GARBAGE: usize = 1 << 20;

/// Where the table stands, for whoever looks without the update lock: as the last update left it, or as it is while an
/// update waits for readers. Each figure is right; together they may be of two updates.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Figures {
    pub(crate) publications: AtomicU64,
    pub(crate) slots: AtomicU64,
    pub(crate) npages: AtomicU64,
    pub(crate) index_bytes: AtomicU64,
    pub(crate) pool_bytes: AtomicU64,
    pub(crate) garbage_bytes: AtomicU64,
    pub(crate) garbage_objects: AtomicU64,
    pub(crate) releases_due: AtomicU64,
    pub(crate) out_of_step: AtomicU64,
}

/// What the update lock protects.
pub(crate) struct Writer {
    pub(crate) pool: Pool,
    pub(crate) lane: Lane,
    /// The next update's stamp, never used before.
    pub(crate) next_stamp: u64,
    /// What the running update has replaced; its memory is kept from one update to the next.
    pub(crate) replaced: Vec<Object>,
    pub(crate) journal: Vec<crate::transaction::Staged>,
    pub(crate) publications: u64,
    pub(crate) backend: Option<Backend>,
    pub(crate) out_of_step: Option<OutOfStep>,
    pub(crate) trace: Option<Trace>,
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
    /// The process that made the table. In a forked child the other threads are gone, with what they held.
    pid: u32,
    /// Stored to by updates, as is all that follows.
    pub(crate) figures: Figures,
    pub(crate) domain: Domain,
    writer: Mutex<Writer>,
    /// The thread that holds the update lock, or 0.
    updating: AtomicUsize,
    /// Whether it is waiting for readers.
    waiting: AtomicBool,
    /// Owners: the table and its readers. See [`Owner`].
    owners: AtomicUsize,
    present: Mutex<Registry>,
    /// None once the table is gone.
    waiter: Mutex<Option<Waiter>>,
}

// SAFETY: the raw pointers inside (current publication, ripe bags) lead to objects that are only changed under the update
// lock and only freed when no reader is left; see `epoch.rs`. Everything else is Send and Sync by itself.
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
                // SAFETY: dropped next, and nobody has heard of it.
                unsafe { Shared::end(NonNull::from(&mut shared)) };
                Err(errno)
            }
        }
    }

    /// One more owner. `EDEADLK` where there is none any more: inside the releases that the end of it all runs.
    pub(crate) fn another(&self) -> Result<Owner> {
        let one_more = |owners: usize| owners.checked_add(1).filter(|_| owners > 0);
        let owners = self.owners.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        owners.map(|_| Owner(self.0)).map_err(|_| Errno::EDEADLK)
    }

    /// Whether there is no other owner. Only the last one can rely on it.
    pub(crate) fn is_last(&self) -> bool {
        self.owners.load(Ordering::Acquire) == 1
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

/// The first publication number of the next table. Tables are far apart, so that a cache that is used with the wrong table
/// does not hit.
static NEXT_SEQ: AtomicU64 = AtomicU64::new(SEQ_STEP);
const SEQS_PER_TABLE: u64 = SEQ_STEP << 40;

impl Shared {
    pub(crate) fn new(limits: Limits, sync: bool, max_garbage: usize, hooks: Option<Box<dyn Hooks>>) -> Result<Shared> {
        let mut pool = Pool::new();
        pool.reserve(Published::lines(limits.nr_address_spaces) * LINE)?;
        let mut editor = Editor { pool: &mut pool, stamp: Stamp(0), replaced: None };
        let mut root = Published::create(&mut editor, limits.nr_address_spaces);
        // SAFETY: fresh, and nobody else's.
        unsafe { root.as_mut() }.seq = NEXT_SEQ.fetch_add(SEQS_PER_TABLE, Ordering::Relaxed) % BUSY;
        let domain = Domain::new();
        let lane = Lane::new(&domain)?;
        let waiter = Waiter(domain.register());
        let writer = Writer {
            pool,
            lane,
            next_stamp: 1,
            replaced: Vec::new(),
            journal: Vec::new(),
            publications: 0,
            backend: None,
            out_of_step: None,
            trace: None,
        };
        let shared = Shared {
            current: Current::new(root),
            limits,
            sync,
            max_garbage,
            hooks,
            domain,
            figures: Figures::default(),
            present: Mutex::new(Registry(Vec::new())),
            waiter: Mutex::new(Some(waiter)),
            writer: Mutex::new(writer),
            updating: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            owners: AtomicUsize::new(1),
            pid: std::process::id(),
        };
        shared.update()?;
        Ok(shared)
    }

    // ---- the update lock ----

    /// Takes the update lock. `EDEADLK` where this thread holds it already, or where its holder waits for a section of this
    /// thread's; `ENOTRECOVERABLE` after a panic inside an update.
    #[inline(always)]
    pub(crate) fn update(&self) -> Result<Updating<'_>> {
        if self.is_updating() {
            return Err(Errno::EDEADLK);
        }
        let writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(_)) => return Err(Errno::ENOTRECOVERABLE),
            Err(TryLockError::WouldBlock) => self.lock_contended()?,
        };
        self.updating.store(this_thread(), Ordering::Relaxed);
        Ok(Updating { shared: self, writer: ManuallyDrop::new(writer), in_step: false })
    }

    /// Whether this thread holds the update lock.
    pub(crate) fn is_updating(&self) -> bool {
        self.updating.load(Ordering::Relaxed) == this_thread()
    }

    #[cold]
    fn lock_contended(&self) -> Result<MutexGuard<'_, Writer>> {
        if !self.in_section() {
            return self.writer.lock().map_err(|_| Errno::ENOTRECOVERABLE);
        }
        // This thread is in a section. Should the holder be waiting for that, neither would ever go on.
        loop {
            match self.writer.try_lock() {
                Ok(writer) => return Ok(writer),
                Err(TryLockError::Poisoned(_)) => return Err(Errno::ENOTRECOVERABLE),
                Err(TryLockError::WouldBlock) if self.waiting.load(Ordering::Acquire) => return Err(Errno::EDEADLK),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    /// Whether this is a child that the table's process forked. It may only free.
    pub(crate) fn is_forked(&self) -> bool {
        std::process::id() != self.pid
    }

    // ---- who is reading ----

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.present.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a reader. `presence` stays where it is until `leave`.
    pub(crate) fn join(&self, presence: NonNull<Presence>) -> Result<LocalHandle> {
        let mut registry = self.registry();
        registry.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        registry.0.push(presence);
        Ok(self.domain.register())
    }

    pub(crate) fn leave(&self, presence: NonNull<Presence>) {
        if self.is_forked() {
            // The lock may have been held when the process forked; and nobody looks at the registry any more.
            return;
        }
        self.registry().0.retain(|other| *other != presence);
    }

    /// Whether this thread has a section open.
    pub(crate) fn in_section(&self) -> bool {
        let me = this_thread();
        // SAFETY: in the registry, so alive.
        self.registry().0.iter().any(|p| unsafe { p.as_ref() }.thread.load(Ordering::Relaxed) == me)
    }

    /// Readers, open sections, and how many publications ago the oldest of these began.
    pub(crate) fn presences(&self) -> (usize, usize, u64) {
        let now = settled(self.current.seq.load(Ordering::Acquire));
        let registry = self.registry();
        // SAFETY: in the registry, so alive.
        let open =
            || registry.0.iter().map(|p| unsafe { p.as_ref() }).filter(|p| p.thread.load(Ordering::Relaxed) != 0);
        let lag = open().map(|p| now.saturating_sub(settled(p.since.load(Ordering::Relaxed))) / SEQ_STEP).max();
        (registry.0.len(), open().count(), lag.unwrap_or(0))
    }

    /// A grace period without the update lock. The caller is in no section of its own.
    pub(crate) fn wait_for_readers(&self) {
        let waiter = self.waiter.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let waiter = waiter.as_ref().expect("there while the table is");
        self.domain.wait_for_readers(&waiter.0);
    }
}

/// The update lock, held.
pub(crate) struct Updating<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) writer: ManuallyDrop<MutexGuard<'a, Writer>>,
    /// Whether something is being changed, or a hook runs: a panic now leaves nobody knows what, and poisons the table.
    pub(crate) in_step: bool,
}

impl<'a> Updating<'a> {
    /// The state that is current. It stays alive while the lock is held.
    pub(crate) fn current(&self) -> NonNull<Published> {
        self.shared.current.root()
    }

    /// What requests are held against: a state that lives at least as long as the lock.
    pub(crate) fn rules(&self, state: NonNull<Published>) -> Rules<'a> {
        // SAFETY: the caller gives the current state or its working copy, which the lock keeps alive.
        Rules { limits: &self.shared.limits, state: unsafe { state.as_ref() } }
    }

    /// Whether an update returns only when no reader is left with what was before: it always does so, or there is too
    /// much garbage.
    pub(crate) fn waits(&self) -> bool {
        let limit = self.shared.max_garbage;
        self.shared.sync || limit > 0 && self.writer.lane.garbage().0 > limit
    }

    /// Writes a line where a trace is on.
    pub(crate) fn trace(&mut self, op: Op, named: impl FnOnce() -> Region, result: Result<()>) {
        let current = self.current();
        let Some(trace) = &mut self.writer.trace else { return };
        let region = named();
        // SAFETY: the current publication is alive under the update lock.
        let space = unsafe { current.as_ref() }.space(region.as_id());
        trace.line(space.map_or(0, |space| space.generation), op, &region, result);
    }

    /// Notes where the table stands.
    fn note_figures(&self) {
        let (writer, figures) = (&**self.writer, &self.shared.figures);
        let (garbage_bytes, garbage_objects) = writer.lane.garbage();
        // SAFETY: the current publication is alive under the update lock.
        let spaces = unsafe { self.shared.current.root().as_ref() }.spaces();
        let note = |figure: &AtomicU64, now: u64| figure.store(now, Ordering::Relaxed);
        note(&figures.publications, writer.publications);
        let add = |(slots, npages), space: &Space| (slots + space.count as u64, npages + space.npages);
        let (slots, npages) = spaces.iter().fold((0, 0), add);
        note(&figures.slots, slots);
        note(&figures.npages, npages);
        note(&figures.index_bytes, writer.pool.used() as u64);
        note(&figures.pool_bytes, writer.pool.held() as u64);
        note(&figures.garbage_bytes, garbage_bytes as u64);
        note(&figures.garbage_objects, garbage_objects as u64);
        note(&figures.releases_due, writer.lane.releases_due() as u64);
        note(&figures.out_of_step, writer.out_of_step.map_or(0, |out| out.count));
    }

    /// Waits until no section is left that was open at the call.
    pub(crate) fn wait_for_readers(&mut self) {
        self.note_figures();
        self.shared.waiting.store(true, Ordering::Release);
        self.writer.lane.wait_for_readers(&self.shared.domain);
        self.shared.waiting.store(false, Ordering::Release);
    }

    /// Gives garbage to the collector (all of it with `now`) and frees what is ripe. Gives the releases run.
    pub(crate) fn collect(&mut self, now: bool) -> usize {
        self.seal(now);
        self.drain()
    }

    /// After a publication: garbage goes its way. With `wait`, returns when no reader is left that could use what was before;
    /// but not where a hook has left a section of this thread open, which would be for ever.
    #[inline(always)]
    pub(crate) fn settle(&mut self, wait: bool) {
        let owed = self.writer.lane.releases_pending() > 0;
        self.seal(owed || wait);
        if wait && !self.shared.in_section() {
            self.wait_for_readers();
        } else if self.writer.lane.garbage().0 > MUCH_GARBAGE {
            self.writer.lane.advance();
        }
    }

    /// Gives garbage to the collector: all of it with `now`.
    #[inline(always)]
    fn seal(&mut self, now: bool) {
        let writer = &mut **self.writer;
        // Without memory for a bag the garbage stays where it is, for the next time.
        let _ = writer.lane.seal(&self.shared.domain, now);
    }

    /// Frees what is ripe. Gives the releases run. Most updates find nothing.
    #[inline(always)]
    pub(crate) fn drain(&mut self) -> usize {
        match self.shared.domain.has_ripe() {
            true => self.drain_ripe(),
            false => 0,
        }
    }

    #[inline(never)]
    fn drain_ripe(&mut self) -> usize {
        let hooks = self.shared.hooks.as_deref();
        let writer = &mut **self.writer;
        let mut release = |gone: &Memslot| {
            if let Some(hooks) = hooks {
                hooks.release(gone);
            }
        };
        // A release that panics leaves others undone, and nobody knows which.
        let was_in_step = std::mem::replace(&mut self.in_step, true);
        let released = writer.lane.drain(&self.shared.domain, &mut writer.pool, &mut release);
        self.in_step = was_in_step;
        released
    }
}

impl Drop for Updating<'_> {
    fn drop(&mut self) {
        self.note_figures();
        self.shared.updating.store(0, Ordering::Relaxed);
        self.shared.waiting.store(false, Ordering::Release);
        // SAFETY: not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.writer) };
        if std::thread::panicking() && !self.in_step {
            // The panic is the caller's own, between two calls: all is whole.
            self.shared.writer.clear_poison();
        }
    }
}

impl Shared {
    /// The last of the table and its readers is gone: everything goes, and every release still owed is run. By pointer, since
    /// releases look in here, as does what the collector runs at its end: there is no `&mut Shared` before all of that is over.
    ///
    /// # Safety
    /// `this` is alive, and dropped next. Nobody else uses it, but for releases.
    unsafe fn end(this: NonNull<Shared>) {
        // SAFETY: alive. Only fields that nobody refers to meanwhile are borrowed as mutable.
        let (hooks, waiter, writer, domain) = unsafe {
            let this = this.as_ptr();
            (&(*this).hooks, &mut (*this).waiter, &mut (*this).writer, &raw mut (*this).domain)
        };
        // SAFETY: alive.
        let shared = || unsafe { this.as_ref() };
        // By another thread when the process forked, or by a transaction that was forgotten.
        let locked = shared().updating.load(Ordering::Relaxed) != 0;
        // A release that calls back in is refused, as any hook is.
        shared().updating.store(this_thread(), Ordering::Relaxed);
        let mut release = |gone: &Memslot| {
            if let Some(hooks) = hooks {
                hooks.release(gone);
            }
        };
        *waiter.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        let poisoned = writer.is_poisoned();
        let writer = writer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: all other participants are gone.
        unsafe { writer.lane.leave(domain) };
        if locked && shared().is_forked() {
            // Another thread was in the middle of an update when the process forked. The memory goes, unlooked at.
            return writer.pool.expect_leaks();
        }
        writer.lane.free_all(&shared().domain, &mut writer.pool, &mut release);
        // SAFETY: nobody reads or updates any more.
        unsafe { free_publication(shared().current.root(), &mut writer.pool, &mut release) };
        if poisoned || locked {
            writer.pool.expect_leaks();
        }
    }
}

/// Frees a publication with all that is below it, and runs the releases of its slots.
///
/// # Safety
/// Nobody can see it.
unsafe fn free_publication(root: NonNull<Published>, pool: &mut Pool, release: &mut dyn FnMut(&Memslot)) {
    // SAFETY: alive until freed at the end.
    let published = unsafe { root.as_ref() };
    for space in published.spaces() {
        // SAFETY: the nodes are freed after the walk; words of the gfn tree are records, each of them there once.
        unsafe {
            let mut walk = space.walk();
            while let Some(record) = walk.next().and_then(|word| NonNull::new(word.cast::<Record>())) {
                release(&record.as_ref().slot);
                pool.free(Record::object(record));
            }
            space.for_each_node(&|_| false, &mut |node| pool.free(object_of(node)));
        }
    }
    // SAFETY: not used any more.
    unsafe { pool.free(object_of(root.cast())) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Gfn, Memslots};
    use std::ptr::null_mut;

    #[test]
    fn numbers_never_reach_the_marks_above_them() {
        for first in [BUSY, 2 * BUSY, 0].map(|end| end.wrapping_sub(SEQS_PER_TABLE)) {
            NEXT_SEQ.store(first, Ordering::Relaxed);
            for _ in 0..3 {
                let table = Memslots::new(Config::default()).unwrap();
                let reader = table.reader().unwrap();
                table.set_region(&Region { memory_size: 4096, ..Region::default() }, null_mut()).unwrap();
                assert!(reader.lock().find_gfn(0, Gfn(0)).is_some());
                assert!(reader.last_used(0, Gfn(0)).is_none(), "found outside of a section");
            }
        }
    }
}

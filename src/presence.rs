// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may look: readers and their sections, and the process that made the table.
//!
//! Does not know what readers look at, nor how memory is reclaimed.

use crate::epoch::{Holder, Participant};
use crate::error::{Errno, Result};
use crate::pin::{take_idle, KeptPin};
use crate::thread::ThreadId;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// A reader's part in the epochs, and whether it is in a read-side section. On lines of its own, written by that reader
/// alone, but for an updater that moves the pin of one that is idle.
#[repr(align(64))]
pub(crate) struct Presence {
    /// Opened by the number of the thread whose section it is.
    pin: KeptPin<Participant, Holder>,
    /// The publication that was current when the section began.
    since: AtomicU64,
}

impl Presence {
    pub(crate) fn new(pin: KeptPin<Participant, Holder>) -> Self {
        Presence { pin, since: AtomicU64::new(0) }
    }

    /// Opens a section of the calling thread. Takes no lock, allocates nothing and makes no system call.
    ///
    /// # Safety
    /// The reader's thread; no section is open.
    #[inline(always)]
    pub(crate) unsafe fn begin(&self, publication: impl FnOnce() -> u64) {
        // SAFETY: the caller's promise.
        unsafe { self.pin.enter(ThreadId::current().number()) };
        self.since.store(publication(), Ordering::Relaxed);
    }

    /// Ends it.
    ///
    /// # Safety
    /// The reader's thread; a section is open.
    #[inline(always)]
    pub(crate) unsafe fn end(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.pin.leave() };
    }

    fn is_open(&self) -> bool {
        self.pin.open_by() != ThreadId::NONE.number()
    }
}

/// The readers of a table. The registry's lock is held for a moment, with nothing below it; readers take it when they
/// are made and when they go, and never in between.
pub(crate) struct Readers {
    registry: Mutex<Registry>,
    /// The process that made the table. In a forked child the other threads are gone, with what they held.
    pid: u32,
}

/// The pointers are alive: a reader takes its own out before it goes.
struct Registry(Vec<NonNull<Presence>>);

// SAFETY: what is pointed to is atomics.
unsafe impl Send for Registry {}

/// How many readers there are, and what they do.
pub(crate) struct Census {
    pub(crate) readers: usize,
    pub(crate) open_sections: usize,
    /// The oldest open section's publication, if one is open.
    pub(crate) oldest: Option<u64>,
}

impl Readers {
    pub(crate) fn new() -> Self {
        Readers { registry: Mutex::new(Registry(Vec::new())), pid: std::process::id() }
    }

    /// Whether this is a child that the table's process forked.
    pub(crate) fn is_forked(&self) -> bool {
        std::process::id() != self.pid
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a reader. `presence` stays where it is until `leave`.
    pub(crate) fn join(&self, presence: NonNull<Presence>) -> Result<()> {
        let mut registry = self.registry();
        registry.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        registry.0.push(presence);
        Ok(())
    }

    pub(crate) fn leave(&self, presence: NonNull<Presence>) {
        if self.is_forked() {
            // The lock may have been held when the process forked; and nobody looks at the registry any more.
            return;
        }
        self.registry().0.retain(|other| *other != presence);
    }

    /// Whether the calling thread has a section open.
    pub(crate) fn in_section(&self) -> bool {
        let me = ThreadId::current();
        // SAFETY: in the registry, so alive.
        self.registry().0.iter().any(|presence| unsafe { presence.as_ref() }.pin.open_by() == me.number())
    }

    /// Takes the pins of idle readers away: see `pin.rs`. Nothing happens where a reader is being made or freed, or
    /// another thread does the same.
    ///
    /// # Safety
    /// Readers keep their pins.
    pub(crate) unsafe fn take_idle(&self) {
        let registry = match self.registry.try_lock() {
            Ok(registry) => registry,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // SAFETY: in the registry, so alive while that is locked; and so there is one caller at a time.
        unsafe { take_idle(registry.0.iter().map(|presence| &presence.as_ref().pin)) }
    }

    pub(crate) fn census(&self) -> Census {
        let registry = self.registry();
        // SAFETY: in the registry, so alive.
        let open = || registry.0.iter().map(|presence| unsafe { presence.as_ref() }).filter(|it| it.is_open());
        Census {
            readers: registry.0.len(),
            open_sections: open().count(),
            oldest: open().map(|presence| presence.since.load(Ordering::Relaxed)).min(),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading: sections, lookups with a last-used slot, walks, and the hva cache of a device.
//!
//! Does not know how updates are made. A reader waits for nobody and takes no lock once it is made; inside a section it
//! writes only what is its own.

mod hva_cache;
mod last_used;
mod lookup;
mod section;
mod walk;

pub use hva_cache::HvaCache;
pub use section::Section;
pub use walk::Iter;
pub(crate) use walk::Walk;

use crate::error::Result;
use crate::presence::Presence;
use crate::published::Current;
use crate::shared::Owner;
use crate::slot::{Gfn, Pages};
use crate::snapshot::PublishedRef;
use last_used::{Hot, CLOSED};
use lookup::Searches;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// One reading thread: a vCPU, an I/O thread. Used by one thread at a time.
pub struct Reader {
    hot: Hot,
    searches: &'static Searches,
    sections: Cell<u64>,
    /// A box's. Not one by type, which would claim that nobody else looks in.
    presence: NonNull<Presence>,
    shared: Owner,
}

// The inline lookup takes a reader for its hot part.
const _: () = assert!(std::mem::offset_of!(Reader, hot) == 0);

// SAFETY: nothing in a reader has a tie to the thread that made it (a LocalHandle and its guard use no thread-local
// storage), and a Section borrows it, so that it cannot be sent away while one is open. It is not Sync.
unsafe impl Send for Reader {}

impl Reader {
    pub(crate) fn new(shared: Owner) -> Result<Reader> {
        let presence = crate::memory::try_box(Presence::new(shared.domain.pin_of_reader()))?;
        let presence = NonNull::from(Box::leak(presence));
        if let Err(errno) = shared.readers.join(presence) {
            // SAFETY: from the box above, and not shared yet.
            drop(unsafe { Box::from_raw(presence.as_ptr()) });
            return Err(errno);
        }
        let searches = Searches::of_this_processor();
        let hot = Hot {
            current: &shared.current,
            key: Cell::new(CLOSED),
            base_gfn: Cell::new(Gfn(0)),
            npages: Cell::new(Pages(0)),
            slot: Cell::new(std::ptr::null()),
            depth: Cell::new(0),
            misses: Cell::new(0),
            kept_key: Cell::new(0),
            search_gfn: searches.gfn,
        };
        Ok(Reader { hot, searches, sections: Cell::new(0), presence, shared })
    }

    /// Opens a read-side section. What is found in it stays valid until it ends; sections nest, and the outermost
    /// counts. Never waits.
    #[inline]
    pub fn lock(&self) -> Section<'_> {
        self.enter();
        Section { reader: self, leave: true }
    }

    #[inline(always)]
    pub(crate) fn enter(&self) {
        let depth = self.hot.depth.get();
        if depth == 0 {
            // SAFETY: no section is open; a reader is used by one thread at a time.
            unsafe { self.presence().begin(|| self.seq()) };
            self.sections.set(self.sections.get() + 1);
            self.hot.key.set(self.hot.kept_key.get());
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
            self.hot.key.set(CLOSED);
            // SAFETY: the section is open; a reader is used by one thread at a time.
            unsafe { self.presence().end() };
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
        // SAFETY: from a box in new(), and out of the registry, so that no updater comes to it. It goes before
        // `shared`, of whose collector it is a part.
        drop(unsafe { Box::from_raw(self.presence.as_ptr()) });
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

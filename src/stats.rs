// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of a table, written down once: as a struct for callers, and as atomic numbers that an update stores and
//! any thread may load meanwhile.
//!
//! Knows nothing else. The C header's `struct memslots_stats` is its size and these, in this order (`capi/stats.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Where a table stands.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, for threads without the update lock: as the last update left it, or as it is while an update waits
        /// for readers. Each figure is right; together they may be of two updates.
        #[derive(Default)]
        #[repr(align(128))]
        pub(crate) struct Figures {
            $($name: AtomicU64,)*
        }

        impl Figures {
            /// Under the update lock.
            pub(crate) fn note(&self, now: &Stats) {
                $(self.$name.store(now.$name, Ordering::Relaxed);)*
            }

            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

figures! {
    /// Publications ever made.
    publications,
    /// Slots in all address spaces.
    slots,
    /// Pages of all slots.
    npages,
    /// Bytes in use for indexes and records, those of garbage included.
    index_bytes,
    /// Bytes taken from the system for them.
    pool_bytes,
    /// Bytes that wait for readers before they can be used again.
    garbage_bytes,
    /// The same in objects.
    garbage_objects,
    /// Slots that are gone and whose release has not run.
    releases_due,
    /// Readers. Counted when it is asked.
    readers,
    /// Read-side sections that are open. Likewise.
    open_sections,
    /// Publications since the oldest of them began; at least so many where that was very long ago. Likewise.
    oldest_section_lag,
    /// Changes on the attached VM that could not be undone. Not 0: VM and table differ.
    out_of_step,
    /// 1 where readers keep their pins on the epoch between sections, so that a section takes no fence; 0 where they
    /// cannot, since there is no `membarrier(2)` or it is not wanted.
    kept_pins,
}

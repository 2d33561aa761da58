// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reclaiming, and looking at a table.

use super::table::memslots;
use super::{answer, given, sized, value};
use crate::reader::Reader;
use crate::stats::Stats;
use std::ffi::c_int;
use std::mem::{offset_of, size_of};

/// Where a table stands. Grows at the end: `size` says how much of it was written.
#[repr(C)]
pub struct memslots_stats {
    /// Bytes of this struct that are valid.
    pub size: usize,
    /// Publications ever made.
    pub publications: u64,
    /// Slots in all address spaces.
    pub slots: u64,
    /// Pages of all slots.
    pub npages: u64,
    /// Bytes in use for indexes and records, garbage included.
    pub index_bytes: u64,
    /// Bytes taken from the system for them.
    pub pool_bytes: u64,
    /// Bytes that wait for readers before they can be used again.
    pub garbage_bytes: u64,
    /// The same in objects.
    pub garbage_objects: u64,
    /// Slots that are gone and whose release has not run (where there are hooks).
    pub releases_due: u64,
    /// Readers.
    pub readers: u64,
    /// Read-side sections that are open.
    pub open_sections: u64,
    /// Publications since the oldest of them began.
    pub oldest_section_lag: u64,
    /// Changes on the attached VM that could not be undone. Not 0: VM and table differ.
    pub out_of_step: u64,
    /// 1: a section takes no memory fence, since updates call membarrier() where they need one. 0: it takes one, since
    /// the kernel refused membarrier() or config.no_membarrier is set.
    pub kept_pins: u64,
}

// SAFETY: of that layout.
unsafe impl sized::Output for memslots_stats {}

/// A size, and the figures as the table has them: what `memslots_stats` spells out for C.
#[repr(C)]
struct Sized {
    size: usize,
    figures: Stats,
}

const _: () = {
    assert!(size_of::<memslots_stats>() == size_of::<Sized>());
    assert!(offset_of!(memslots_stats, publications) == offset_of!(Sized, figures));
    assert!(offset_of!(memslots_stats, readers) == offset_of!(Sized, figures) + offset_of!(Stats, readers));
    assert!(offset_of!(memslots_stats, kept_pins) == offset_of!(Sized, figures) + offset_of!(Stats, kept_pins));
};

impl memslots_stats {
    fn of(figures: Stats) -> memslots_stats {
        // SAFETY: both are numbers one after the other, and as many, as just asserted.
        unsafe { std::mem::transmute(Sized { size: 0, figures }) }
    }
}

/// What a reader did.
#[repr(C)]
pub struct memslots_reader_stats {
    /// Bytes of this struct that are valid.
    pub size: usize,
    /// Sections opened, the outermost of nested ones.
    pub sections: u64,
    /// Lookups by gfn that the last-used slot did not answer.
    pub misses: u64,
}

// SAFETY: of that layout.
unsafe impl sized::Output for memslots_reader_stats {}

/// Frees what no reader can see any more, and runs every release and unmap that is due. Returns how many releases it
/// ran. Does not wait for readers, but for other threads' updates; any thread. 0 for NULL, and inside an update of this
/// thread.
#[no_mangle]
pub unsafe extern "C" fn memslots_reclaim(table: *mut memslots) -> usize {
    // SAFETY: the caller's table, or NULL.
    value(0, || unsafe { given(table) }.map_or(0, |table| table.table.reclaim()))
}

/// Waits for a grace period: until every read-side section that is open now has ended. Returns only when every release
/// and unmap that was due at the call has run, here or on another thread. From inside a section or an update of this
/// thread it would wait for ever: it returns at once then. Any thread.
#[no_mangle]
pub unsafe extern "C" fn memslots_synchronize(table: *mut memslots) {
    // SAFETY: the caller's table, or NULL.
    unsafe { memslots_try_synchronize(table) };
}

/// As memslots_synchronize, and says so: -EDEADLK where this thread is in a section or inside an update of this table.
/// Also -EINVAL (NULL), -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_try_synchronize(table: *mut memslots) -> c_int {
    // SAFETY: the caller's table, or NULL.
    answer(|| unsafe { given(table) }?.table.synchronize())
}

/// Writes where the table stands, as the last update left it: as much as the caller's struct, of `size` bytes, has room
/// for. Does not wait for updates; any thread, in hooks too.
///
/// Errors: -EINVAL (NULL, a size that has no room for the size).
#[no_mangle]
pub unsafe extern "C" fn memslots_get_stats(table: *mut memslots, stats: *mut memslots_stats, size: usize) -> c_int {
    answer(|| {
        // SAFETY: the caller's table, or NULL.
        let table = unsafe { given(table) }?;
        let now = memslots_stats::of(table.table.stats());
        // SAFETY: the caller says how much room there is.
        unsafe { sized::write(stats, size, &now) }
    })
}

/// Writes what the reader did, as memslots_get_stats does. Never waits; the reader's thread. Errors: -EINVAL (NULL, a
/// size that has no room for the size).
#[no_mangle]
pub unsafe extern "C" fn memslots_reader_get_stats(
    reader: *const Reader,
    stats: *mut memslots_reader_stats,
    size: usize,
) -> c_int {
    answer(|| {
        // SAFETY: the caller's reader, or NULL.
        let did = unsafe { given(reader) }?.stats();
        let now = memslots_reader_stats { size: 0, sections: did.sections, misses: did.misses };
        // SAFETY: the caller says how much room there is.
        unsafe { sized::write(stats, size, &now) }
    })
}

/// Writes the table for a person to `fd`, a line a slot. Waits for other threads' updates, and updates then wait for
/// the write; any thread. Errors: -EINVAL (NULL), what write() fails with, -EDEADLK (inside an update of this thread),
/// -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_dump(table: *mut memslots, fd: c_int) -> c_int {
    // SAFETY: the caller's table, or NULL.
    answer(|| unsafe { given(table) }?.table.dump(fd))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Readers: sections and lookups.
//!
//! The hot calls. There is no panic in them, so nothing to catch.

use super::table::memslots;
use super::{answer, given, memslots_access, value};
use crate::error::{Errno, Result};
use crate::reader::{HvaCache, Reader, Section};
use crate::slot::{Access, AsId, Gfn, Gpa, Hva, Memslot, Pages, Region, SlotId};
use std::ffi::c_int;
use std::ptr::null;

/// Where a device keeps coming back to, such as a ring. Fields are private; on the caller's stack or in a device.
#[repr(C)]
pub struct memslots_hva_cache {
    #[doc(hidden)]
    pub private_: [u64; 5],
}

const _: () = assert!(size_of::<memslots_hva_cache>() == size_of::<HvaCache>());

/// Whether a section of the reader's is open.
#[inline(always)]
pub(super) fn is_open(reader: &Reader) -> bool {
    let open = reader.is_open();
    if cfg!(debug_assertions) && !open {
        eprintln!("memslots: a lookup outside of a read-side section: a bug of the caller");
    }
    open
}

/// The reader's open section.
///
/// # Safety
/// NULL, or a live reader that no other thread uses now.
#[inline(always)]
unsafe fn section<'a>(reader: *const Reader) -> Option<Section<'a>> {
    // SAFETY: the caller's promise.
    unsafe { reader.as_ref() }.filter(|reader| is_open(reader))?.section()
}

/// As `section`, with the errno for a call outside of one.
///
/// # Safety
/// As `section`.
#[inline(always)]
unsafe fn open_section<'a>(reader: *const Reader) -> Result<Section<'a>> {
    if reader.is_null() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the caller's promise.
    unsafe { section(reader) }.ok_or(Errno::EPERM)
}

/// Runs a lookup that answers with an errno.
#[inline(always)]
fn lookup(body: impl FnOnce() -> Result<()>) -> c_int {
    body().map_or_else(Errno::negated, |()| 0)
}

fn access_of(access: u32) -> Result<Access> {
    const READ: u32 = memslots_access::MEMSLOTS_READ as u32;
    const WRITE: u32 = memslots_access::MEMSLOTS_WRITE as u32;
    match access {
        READ => Ok(Access::Read),
        WRITE => Ok(Access::Write),
        _ => Err(Errno::EINVAL),
    }
}

#[inline(always)]
fn pointer(slot: Option<&Memslot>) -> *const Memslot {
    slot.map_or(null(), std::ptr::from_ref)
}

/// Makes a reader, for one thread at a time. Waits for other threads that make or free one, no longer; any thread. On
/// success `*out` is the reader, until memslots_reader_free. It may outlive the table, and finds nothing then.
///
/// Errors: -EINVAL (NULL), -ENOMEM, -EDEADLK (in a release hook that memslots_free runs).
#[no_mangle]
pub unsafe extern "C" fn memslots_reader_new(table: *mut memslots, out: *mut *mut Reader) -> c_int {
    answer(|| {
        // SAFETY: the caller's table, or NULL.
        let table = unsafe { given(table) }?;
        if out.is_null() {
            return Err(Errno::EINVAL);
        }
        let reader = crate::memory::try_box(table.table.reader()?)?;
        // SAFETY: not NULL, and the caller's.
        unsafe { out.write(Box::into_raw(reader)) };
        Ok(())
    })
}

/// Frees a reader, and ends its section where one is open. NULL: nothing happens. Blocking as memslots_reader_new;
/// whichever thread uses it.
#[no_mangle]
pub unsafe extern "C" fn memslots_reader_free(reader: *mut Reader) {
    if !reader.is_null() {
        // SAFETY: from memslots_reader_new, and given up here.
        value((), || drop(unsafe { Box::from_raw(reader) }));
    }
}

/// Opens a read-side section: what is found in it stays valid until it ends. Sections nest, and the outermost counts.
/// Never waits, takes no lock, allocates and frees nothing, makes no system call, and costs the same however many
/// readers there are (where memslots_stats.kept_pins is 0 it takes a memory fence, and may free memory now and then).
/// The reader's thread, on which the section also ends. Keep sections short: what was retired since one began cannot be
/// freed until it ends.
#[no_mangle]
pub unsafe extern "C" fn memslots_read_lock(reader: *mut Reader) {
    // SAFETY: the caller's reader, or NULL.
    if let Some(reader) = unsafe { reader.as_ref() } {
        reader.enter();
    }
}

/// Ends a section. Without an open one, nothing happens. Never waits; the reader's thread.
#[no_mangle]
pub unsafe extern "C" fn memslots_read_unlock(reader: *mut Reader) {
    // SAFETY: the caller's reader, or NULL.
    if let Some(reader) = unsafe { reader.as_ref() } {
        reader.leave();
    }
}

/// The slot that holds a frame, as of the newest publication; NULL where there is none, and outside of a section. A
/// slot that is being deleted or moved is found at its old place with MEMSLOTS_INVALID set.
///
/// Never waits; the reader's thread. Valid until the section ends.
#[no_mangle]
pub unsafe extern "C" fn memslots_find_gfn(reader: *mut Reader, as_id: AsId, gfn: Gfn) -> *const Memslot {
    // SAFETY: the caller's reader, or NULL.
    let Some(reader) = (unsafe { reader.as_ref() }) else { return null() };
    if let Some(hit) = reader.last_used(as_id, gfn) {
        return hit.as_ptr();
    }
    if !is_open(reader) {
        return null();
    }
    // SAFETY: a section is open.
    unsafe { reader.find_gfn(as_id, gfn) }.map_or(null(), |slot| slot.as_ptr())
}

/// As memslots_find_gfn; in a hole the slot below it, or the lowest slot where none is below. NULL only for an address
/// space without slots, and outside of a section.
#[no_mangle]
pub unsafe extern "C" fn memslots_find_gfn_approx(reader: *mut Reader, as_id: AsId, gfn: Gfn) -> *const Memslot {
    // SAFETY: the caller's reader, or NULL.
    unsafe { section(reader) }.map_or(null(), |section| pointer(section.find_gfn_approx(as_id, gfn)))
}

/// The slot with an id; NULL where there is none, and outside of a section. Threads and validity as memslots_find_gfn.
#[no_mangle]
pub unsafe extern "C" fn memslots_find_id(reader: *mut Reader, as_id: AsId, id: SlotId) -> *const Memslot {
    // SAFETY: the caller's reader, or NULL.
    unsafe { section(reader) }.map_or(null(), |section| pointer(section.find_id(as_id, id)))
}

/// The slot that holds a byte of host memory: of several, the one that starts lowest, then the lowest id. NULL where
/// there is none, and outside of a section. Threads and validity as memslots_find_gfn.
#[no_mangle]
pub unsafe extern "C" fn memslots_find_hva(reader: *mut Reader, as_id: AsId, hva: Hva) -> *const Memslot {
    // SAFETY: the caller's reader, or NULL.
    let Some(reader) = (unsafe { reader.as_ref() }).filter(|reader| is_open(reader)) else { return null() };
    // SAFETY: a section is open.
    unsafe { reader.find_hva(as_id, hva) }.map_or(null(), |slot| slot.as_ptr())
}

/// Where a guest physical address is in this process. `access` is MEMSLOTS_READ or MEMSLOTS_WRITE; `*len_left`, where
/// not NULL, becomes the bytes from `gpa` to the end of its slot. Nothing is written on failure. The computation forms
/// no address outside of the slot, not even on a mispredicted path.
///
/// Never waits; the reader's thread. Valid until the section ends. Errors: -ENOENT (a hole), -EAGAIN (the slot is
/// INVALID: try again, it is going or moving), -EROFS (a write to a READONLY slot), -EPERM (outside of a section),
/// -EINVAL (NULL, another `access`, no such address space).
#[no_mangle]
pub unsafe extern "C" fn memslots_gpa_to_hva(
    reader: *mut Reader,
    as_id: AsId,
    gpa: Gpa,
    access: u32,
    hva: *mut u64,
    len_left: *mut u64,
) -> c_int {
    lookup(|| {
        // SAFETY: the caller's reader, or NULL.
        let section = unsafe { open_section(reader) }?;
        if hva.is_null() {
            return Err(Errno::EINVAL);
        }
        let (found, left) = section.gpa_to_hva(as_id, gpa, access_of(access)?)?;
        // SAFETY: not NULL, and the caller's.
        unsafe {
            hva.write(found.0);
            if !len_left.is_null() {
                len_left.write(left);
            }
        }
        Ok(())
    })
}

/// The guest physical address of a byte of host memory, by the slot that memslots_find_hva finds.
///
/// Never waits; the reader's thread. Errors: -ENOENT (no slot has it), -EPERM (outside of a section), -EINVAL (NULL, no
/// such address space).
#[no_mangle]
pub unsafe extern "C" fn memslots_hva_to_gpa(reader: *mut Reader, as_id: AsId, hva: Hva, gpa: *mut u64) -> c_int {
    lookup(|| {
        // SAFETY: the caller's reader, or NULL.
        let section = unsafe { open_section(reader) }?;
        if gpa.is_null() {
            return Err(Errno::EINVAL);
        }
        let found = section.hva_to_gpa(as_id, hva)?;
        // SAFETY: not NULL, and the caller's.
        unsafe { gpa.write(found.0) };
        Ok(())
    })
}

/// The generation of an address space, as of the newest publication: i + k * n for space i of n; another content,
/// another value (Linux, virt/kvm/kvm_main.c). 0 for NULL and for a space that is not there. Never waits; the reader's
/// thread, in a section or not.
#[no_mangle]
pub unsafe extern "C" fn memslots_generation(reader: *const Reader, as_id: AsId) -> u64 {
    // SAFETY: the caller's reader, or NULL.
    unsafe { reader.as_ref() }.map_or(0, |reader| reader.lock().generation(as_id))
}

/// The number of slots in an address space. Otherwise as memslots_generation.
#[no_mangle]
pub unsafe extern "C" fn memslots_count(reader: *const Reader, as_id: AsId) -> u32 {
    // SAFETY: the caller's reader, or NULL.
    unsafe { reader.as_ref() }.map_or(0, |reader| reader.lock().count(as_id))
}

/// The number of pages of all slots in an address space. Otherwise as memslots_generation.
#[no_mangle]
pub unsafe extern "C" fn memslots_npages(reader: *const Reader, as_id: AsId) -> Pages {
    // SAFETY: the caller's reader, or NULL.
    unsafe { reader.as_ref() }.map_or(Pages(0), |reader| reader.lock().npages(as_id))
}

/// The slots of an address space as regions, ascending by gfn: the first `capacity` of them. Returns how many there
/// are; 0 for NULL, and for a space that is not there. Never waits; the reader's thread, in a section or not. What
/// memslots_plan takes.
#[no_mangle]
pub unsafe extern "C" fn memslots_get_regions(
    reader: *mut Reader,
    as_id: AsId,
    out: *mut Region,
    capacity: usize,
) -> usize {
    value(0, || {
        // SAFETY: the caller's reader, or NULL.
        let Some(reader) = (unsafe { reader.as_ref() }) else { return 0 };
        let room = match out.is_null() || capacity > isize::MAX as usize / size_of::<Region>() {
            true => &mut [],
            // SAFETY: not NULL, and the caller says how much room there is; any bits are a Region.
            false => unsafe { std::slice::from_raw_parts_mut(out, capacity) },
        };
        reader.lock().regions(as_id, room)
    })
}

/// Looks a range of guest memory up, `len` bytes from `gpa`, for a device that will come back to it. `access` is
/// MEMSLOTS_READ or MEMSLOTS_WRITE. The cache is for readers of this table only.
///
/// Never waits; the reader's thread. Errors: -ERANGE (not within one slot), -ENOENT (a hole), -EAGAIN (INVALID),
/// -EROFS, -EPERM (outside of a section), -EINVAL (NULL, another `access`, no such address space, an empty range or one
/// that wraps). On an error the cache is as it was.
#[no_mangle]
pub unsafe extern "C" fn memslots_hva_cache_init(
    cache: *mut memslots_hva_cache,
    reader: *mut Reader,
    as_id: AsId,
    gpa: Gpa,
    len: u64,
    access: u32,
) -> c_int {
    lookup(|| {
        // SAFETY: the caller's reader, or NULL.
        let section = unsafe { open_section(reader) }?;
        if cache.is_null() {
            return Err(Errno::EINVAL);
        }
        let new = HvaCache::new(&section, as_id, gpa, len, access_of(access)?)?;
        // SAFETY: not NULL, the caller's, and of that size.
        unsafe { cache.cast::<HvaCache>().write(new) };
        Ok(())
    })
}

/// Where the cached range is in this process: one compare while the table has not changed, and a lookup when it has.
///
/// Never waits; the reader's thread, and one thread at a time for the cache. Valid until the section ends. Errors: as
/// memslots_hva_cache_init, but the next call looks again; nothing is written.
#[no_mangle]
pub unsafe extern "C" fn memslots_hva_cache_get(
    cache: *mut memslots_hva_cache,
    reader: *mut Reader,
    hva: *mut u64,
) -> c_int {
    lookup(|| {
        // SAFETY: the caller's reader, or NULL.
        let section = unsafe { open_section(reader) }?;
        // SAFETY: the caller's cache, or NULL, used by no other thread now; any bits are an HvaCache.
        let cache = unsafe { cache.cast::<HvaCache>().as_mut() }.ok_or(Errno::EINVAL)?;
        if hva.is_null() {
            return Err(Errno::EINVAL);
        }
        let found = cache.get(&section)?;
        // SAFETY: not NULL, and the caller's.
        unsafe { hva.write(found.0) };
        Ok(())
    })
}

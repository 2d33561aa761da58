// SPDX-License-Identifier: MIT OR Apache-2.0
//! Updates: one at a time, a list at once, a whole address space.

use super::table::memslots;
use super::{answer, array, given};
use crate::error::Refused;
use crate::error::{Errno, Result};
use crate::slot::{AsId, Gpa, Region, SlotId};
use std::ffi::{c_int, c_void};

/// The whole of KVM_SET_USER_MEMORY_REGION2: creates, deletes (size 0), moves or changes flags, as the region says of
/// the slot with that id; checks what the kernel checks, in the kernel's order, with the kernel's errno (Linux,
/// virt/kvm/kvm_main.c). What changes nothing publishes nothing. `opaque` counts where it creates.
///
/// Sizes and addresses are bytes. Any thread; waits for other threads' updates, and for readers only where there is a
/// flush hook and a slot goes or moves, or with `sync`.
///
/// Errors: -EINVAL (NULL; alignment, size, flags, ids, ranges; a slot that is to be deleted but not there; another
/// size, hva or READONLY than the slot has; the last frame beyond gpa_bits), -EEXIST (overlaps another slot), -EBADF (a
/// guest_memfd below 0), -ENOMEM, -EDEADLK (inside an update of this thread, or it would wait for this thread's own
/// section), -ENOTRECOVERABLE (an earlier update panicked), and what a `prepare` hook or the attached VM refuses with.
/// On any of them nothing has changed, but for two steps of the generation where the INVALID phase had begun.
#[no_mangle]
pub unsafe extern "C" fn memslots_set_region(
    table: *mut memslots,
    region: *const Region,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's table and region, or NULL.
    answer(|| unsafe { given(table)?.table.set_region(given(region)?, opaque) })
}

/// Creates a slot, and only that. Gives its id, which is 0 or more; for MEMSLOTS_ID_ANY in the low 16 bits of
/// `region->slot` it is the lowest that is free.
///
/// Threads and blocking as memslots_set_region. Errors: as there, and -EEXIST (the id is taken), -ENOSPC (no id is
/// free).
#[no_mangle]
pub unsafe extern "C" fn memslots_create(table: *mut memslots, region: *const Region, opaque: *mut c_void) -> c_int {
    // SAFETY: the caller's table and region, or NULL.
    answer(|| unsafe { given(table)?.table.create(given(region)?, opaque) })
}

/// Deletes a slot.
///
/// Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EINVAL (NULL, no such address space),
/// -ENOMEM, -EDEADLK, -ENOTRECOVERABLE, a hook's or the VM's.
#[no_mangle]
pub unsafe extern "C" fn memslots_delete(table: *mut memslots, as_id: AsId, id: SlotId) -> c_int {
    // SAFETY: the caller's table, or NULL.
    answer(|| unsafe { given(table)?.table.delete(as_id, id) })
}

/// Moves a slot to another guest physical address, in bytes. It may overlap its own old place.
///
/// Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EEXIST (overlaps another slot),
/// -EINVAL (NULL, no such address space, alignment, range, a slot with a guest_memfd), -ENOMEM, -EDEADLK,
/// -ENOTRECOVERABLE, a hook's or the VM's.
#[no_mangle]
pub unsafe extern "C" fn memslots_move(table: *mut memslots, as_id: AsId, id: SlotId, new_gpa: Gpa) -> c_int {
    // SAFETY: the caller's table, or NULL.
    answer(|| unsafe { given(table)?.table.move_slot(as_id, id, new_gpa) })
}

/// Changes a slot's flags, of which only MEMSLOTS_LOG_DIRTY_PAGES can change.
///
/// Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EINVAL (NULL, no such address space,
/// other flags, a slot with a guest_memfd), -ENOMEM, -EDEADLK, -ENOTRECOVERABLE, a hook's or the VM's.
#[no_mangle]
pub unsafe extern "C" fn memslots_set_flags(table: *mut memslots, as_id: AsId, id: SlotId, flags: u32) -> c_int {
    // SAFETY: the caller's table, or NULL.
    answer(|| unsafe { given(table)?.table.set_flags(as_id, id, flags) })
}

/// Makes `n` changes or none, in one publication, each checked against what those before it leave. The cost follows n,
/// not the size of the table. `opaques` is NULL or has n entries. On failure `*failed_at`, where not NULL, is the index
/// of the change that was refused, by the checks, a hook or the VM; n where it was none in particular (-ENOMEM,
/// -EDEADLK).
///
/// Threads and blocking as memslots_set_region; errors as there. n = 0: 0.
#[no_mangle]
pub unsafe extern "C" fn memslots_apply(
    table: *mut memslots,
    regions: *const Region,
    opaques: *const *mut c_void,
    n: usize,
    failed_at: *mut usize,
) -> c_int {
    // SAFETY: the caller's table and arrays, or NULL.
    list(n, failed_at, || unsafe {
        let (table, regions, opaques) = (given(table)?, array(regions, n)?, given_array(opaques, n)?);
        Ok(table.table.apply(regions, opaques))
    })
}

/// Makes `n` regions, in any order, all that an address space has. Works out the difference: a slot that stays the
/// same, moves or changes flags keeps its opaque; another size or hva under the same id is a delete and a create. Slots
/// may exchange places. All of it is one publication. `failed_at` as in memslots_apply: the first region that is
/// refused, has the id of an earlier one, or overlaps an earlier one.
///
/// Threads and blocking as memslots_set_region. Errors: as there, and -EEXIST (an id twice), -EINVAL (size 0, another
/// address space).
#[no_mangle]
pub unsafe extern "C" fn memslots_replace_all(
    table: *mut memslots,
    as_id: AsId,
    regions: *const Region,
    opaques: *const *mut c_void,
    n: usize,
    failed_at: *mut usize,
) -> c_int {
    // SAFETY: the caller's table and arrays, or NULL.
    list(n, failed_at, || unsafe {
        let (table, regions, opaques) = (given(table)?, array(regions, n)?, given_array(opaques, n)?);
        Ok(table.table.replace_all(as_id, regions, opaques))
    })
}

/// An array that may be left out.
///
/// # Safety
/// NULL, or `n` live entries.
unsafe fn given_array<'a, T>(pointer: *const T, n: usize) -> Result<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { array(pointer, n) }.map(Some)
}

/// Runs an update by a list, and says which entry was refused.
fn list(n: usize, failed_at: *mut usize, update: impl FnOnce() -> Result<Result<(), Refused>>) -> c_int {
    answer(|| {
        let Err(refused) = update()? else { return Ok(()) };
        if !failed_at.is_null() {
            // SAFETY: not NULL, and the caller's.
            unsafe { failed_at.write(refused.at.unwrap_or(n)) };
        }
        Err::<(), Errno>(refused.errno)
    })
}

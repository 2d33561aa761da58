// SPDX-License-Identifier: MIT OR Apache-2.0
//! Transactions. A table has room for the one that can be open, so that the handle costs nothing and a stale one is
//! noticed.

use super::plan::memslots_plan_step;
use super::table::memslots;
use super::{answer, given, value};
use crate::shared::Shared;
use crate::slot::{Errno, Gfn, Gpa, Memslot, Region, Result};
use crate::table::Memslots;
use crate::transaction::Transaction;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr::{null, NonNull};

/// A set of changes being prepared, invisible until committed.
pub struct memslots_txn {
    /// The table that it is part of; the transaction inside borrows from it, and goes first.
    shared: NonNull<Shared>,
    /// Only looked at by the thread that holds the update lock.
    open: RefCell<Option<Transaction<'static>>>,
}

impl memslots_txn {
    pub(super) fn none(table: &Memslots) -> Self {
        memslots_txn { shared: NonNull::from(table.shared()), open: RefCell::new(None) }
    }

    /// The cell, where this thread holds the update lock: nobody else looks at it then.
    fn mine(&self) -> Result<&RefCell<Option<Transaction<'static>>>> {
        // SAFETY: the table that this is part of is alive, and keeps it.
        match unsafe { self.shared.as_ref() }.is_updating() {
            true => Ok(&self.open),
            false => Err(Errno::EINVAL),
        }
    }

    /// Whether this thread is inside an update that is not an open transaction: inside a hook.
    pub(super) fn is_in_hook(&self) -> bool {
        self.mine().is_ok_and(|open| open.try_borrow().map_or(true, |open| open.is_none()))
    }

    fn with<T>(&self, step: impl FnOnce(&mut Transaction<'static>) -> Result<T>) -> Result<T> {
        let mut open = self.mine()?.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
        step(open.as_mut().ok_or(Errno::EINVAL)?)
    }

    /// Ends the handle, and gives what it was for.
    fn take(&self) -> Result<Transaction<'static>> {
        let mut open = self.mine()?.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
        open.take().ok_or(Errno::EINVAL)
    }
}

impl Drop for memslots_txn {
    fn drop(&mut self) {
        let _ = self.take();
    }
}

/// Begins a transaction. It holds the update lock until it is committed or aborted, and belongs to the calling thread: on
/// another one, and after its end, every call on it is -EINVAL. Readers see nothing of it.
///
/// Waits for other threads' updates; any thread. Errors: -EINVAL (NULL), -EDEADLK (this thread has one open on this table, is
/// inside a hook of it, or is in a section that another thread's update waits for), -ENOMEM, -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_begin(table: *mut memslots, out: *mut *mut memslots_txn) -> c_int {
    answer(|| {
        // SAFETY: the caller's table, or NULL.
        let handle = unsafe { given(table) }?;
        if out.is_null() {
            return Err(Errno::EINVAL);
        }
        let txn = handle.table.begin()?;
        // SAFETY: the transaction borrows from the table beside it, which lives until memslots_free, and memslots_free drops
        // the transaction first.
        let txn = unsafe { std::mem::transmute::<Transaction<'_>, Transaction<'static>>(txn) };
        *handle.txn.open.try_borrow_mut().map_err(|_| Errno::EDEADLK)? = Some(txn);
        // SAFETY: not NULL, and the caller's.
        unsafe { out.write((&raw const handle.txn).cast_mut()) };
        Ok(())
    })
}

/// As memslots_set_region, in a transaction: checked at once against what its earlier changes leave. An error leaves the
/// transaction as it was. Several changes of one slot come to one, or to nothing; a slot created and deleted in one
/// transaction never was.
///
/// Does not block; the thread that began the transaction. Errors: as memslots_set_region, and -EINVAL (not open, or another
/// thread's).
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_set_region(
    txn: *mut memslots_txn,
    region: *const Region,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's transaction and region, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.set_region(given(region)?, opaque)) })
}

/// As memslots_create, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_create.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_create(
    txn: *mut memslots_txn,
    region: *const Region,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's transaction and region, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.create(given(region)?, opaque)) })
}

/// As memslots_delete, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_delete.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_delete(txn: *mut memslots_txn, as_id: u16, id: u16) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.delete(as_id, id)) })
}

/// As memslots_move, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of memslots_move.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_move(txn: *mut memslots_txn, as_id: u16, id: u16, new_gpa: u64) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.move_slot(as_id, id, Gpa(new_gpa))) })
}

/// As memslots_set_flags, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_set_flags.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_set_flags(txn: *mut memslots_txn, as_id: u16, id: u16, flags: u32) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.set_flags(as_id, id, flags)) })
}

/// Cuts a slot in two at `at_gpa` (bytes). The lower part keeps id and opaque; the upper gets `new_id`, or the lowest free
/// one for MEMSLOTS_ID_ANY, and `opaque`. Gives the upper part's id. Both back the frames that the one did: readers see
/// no gap. Hooks are told of a RESIZE of the slot and a SPLIT from it.
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open, `at_gpa` no
/// page boundary strictly inside the slot, a slot with a guest_memfd, an id beyond the last), -EEXIST (the id is taken),
/// -ENOSPC (none is free), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_split(
    txn: *mut memslots_txn,
    as_id: u16,
    id: u16,
    at_gpa: u64,
    new_id: u16,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.split(as_id, id, Gpa(at_gpa), new_id, opaque)) })
}

/// Makes one slot of two: `upper_id` follows `lower_id` in guest and in host memory, with the same flags. The lower keeps id
/// and opaque; the upper one's life ends. Readers see no gap. Hooks are told of a RESIZE of the lower and a MERGE of the upper.
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open, they do not
/// follow each other, other flags, a guest_memfd, more than 2^31 - 1 pages together), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_merge(txn: *mut memslots_txn, as_id: u16, lower_id: u16, upper_id: u16) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.merge(as_id, lower_id, upper_id)) })
}

/// Gives a slot another size, in bytes. It keeps first frame, hva, flags, id and opaque; readers see the old size or the new
/// one. Hooks are told of a RESIZE (and `flush` is called first where it gives up frames).
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EEXIST (overlaps another slot),
/// -EINVAL (NULL, not open, size 0, alignment, range, a slot with a guest_memfd), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_resize(txn: *mut memslots_txn, as_id: u16, id: u16, new_size: u64) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn)?.with(|txn| txn.resize(as_id, id, new_size)) })
}

/// The slot that holds a frame as the transaction's changes leave it; NULL where there is none. Valid until the next call on
/// the transaction. Does not block; the thread that began the transaction.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_find_gfn(txn: *const memslots_txn, as_id: u16, gfn: u64) -> *const Memslot {
    value(null(), || {
        // SAFETY: the caller's transaction, or NULL.
        let slot = unsafe { given(txn) }
            .and_then(|txn| txn.with(|txn| Ok(txn.find_gfn(as_id, Gfn(gfn)).map_or(null(), std::ptr::from_ref))));
        slot.unwrap_or(null())
    })
}

/// The calls of KVM_SET_USER_MEMORY_REGION that would make the transaction's changes; see memslots_plan.
///
/// Does not block; the thread that began the transaction. Errors: -EINVAL (NULL, not open), -ERANGE (there are more than
/// `capacity`: `*nr_steps` says how many, and nothing else is written), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_plan(
    txn: *const memslots_txn,
    out: *mut memslots_plan_step,
    capacity: usize,
    nr_steps: *mut usize,
) -> c_int {
    // SAFETY: the caller's transaction and array, or NULL.
    answer(|| unsafe {
        let steps = given(txn)?.with(|txn| txn.plan())?;
        super::plan::write_steps(&steps, out, capacity, nr_steps)
    })
}

/// Publishes a transaction's changes, all at once for every reader, and ends it: the handle is gone, success or not. At most
/// two publications, whatever the number of changes: the INVALID phase, where there is a flush hook and something goes or
/// moves, then the result. A hook that refuses rolls everything back, and its errno comes out.
///
/// Waits for readers where memslots_set_region does; the thread that began the transaction. Errors: -EINVAL (NULL, not open),
/// -EDEADLK (it would wait for this thread's own section), -ENOMEM, a hook's or the VM's. Everything is as before then, but
/// for two steps of the generation where the INVALID phase had begun.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_commit(txn: *mut memslots_txn) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { given(txn) }?.take()?.commit())
}

/// Throws a transaction's changes away and ends it. Does not block; the thread that began the transaction. NULL, one that
/// has ended, or another thread's: nothing happens.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_abort(txn: *mut memslots_txn) {
    value((), || {
        // SAFETY: the caller's transaction, or NULL.
        let txn = unsafe { given(txn) }.and_then(|txn| txn.take());
        drop(txn);
    });
}

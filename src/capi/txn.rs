// SPDX-License-Identifier: MIT OR Apache-2.0
//! Transactions. A handle is one of many addresses in the table's own block of memory, of which nothing but the address
//! is used: so it costs nothing, and one that has ended is noticed, also while a newer one is open.

use super::plan::memslots_plan_step;
use super::table::memslots;
use super::{answer, given, value};
use crate::error::{Errno, Result};
use crate::slot::{AsId, Gfn, Gpa, Memslot, Region, SlotId};
use crate::table::Memslots;
use crate::update::Transaction;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr::null;

/// A set of changes being prepared, invisible until committed.
pub struct memslots_txn {
    _address: u8,
}

/// Transactions that a table can begin before a handle's address comes again.
const HANDLES: usize = 1024;

/// Of this alignment is a table's block, which begins with the handles: from a handle's address follows the table's.
pub(super) const BLOCK: usize = 2048;

/// The transaction that is open on a table, and its handle.
pub(super) struct Open {
    handle: usize,
    txn: Transaction<'static>,
}

/// A table's transactions. At the start of its block.
#[repr(C)]
pub(super) struct Transactions {
    handles: [memslots_txn; HANDLES],
    /// Only looked at by the thread that holds the update lock, as is what follows.
    open: ManuallyDrop<RefCell<Option<Open>>>,
    begun: Cell<usize>,
}

impl Transactions {
    pub(super) fn new() -> Self {
        Transactions {
            handles: [const { memslots_txn { _address: 0 } }; HANDLES],
            open: ManuallyDrop::new(RefCell::new(None)),
            begun: Cell::new(0),
        }
    }

    /// Begins a transaction, and gives its handle's place among the handles.
    fn begin(&self, table: &Memslots) -> Result<usize> {
        let txn = table.begin_owned()?;
        let handle = self.begun.replace(self.begun.get().wrapping_add(1)) % HANDLES;
        *self.open.try_borrow_mut().map_err(|_| Errno::EDEADLK)? = Some(Open { handle, txn });
        Ok(handle)
    }

    /// Whether this thread, which holds the update lock, has no transaction open: it is inside a hook.
    pub(super) fn is_in_hook(&self, table: &Memslots) -> bool {
        table.is_updating() && self.open.try_borrow().map_or(true, |open| open.is_none())
    }

    /// Aborts the transaction that is open, whoever began it: at the end of the table no other thread is in an update,
    /// so that one that has a transaction open is gone. Where the process forked in the middle of a call, it is left as
    /// it is.
    pub(super) fn end(&self, table: &Memslots) {
        let Ok(mut open) = self.open.try_borrow_mut() else { return };
        if let Some(Open { txn, .. }) = open.take() {
            if !table.is_updating() {
                txn.take_over();
            }
            drop(txn);
        }
    }
}

/// The table of a transaction's handle, and the handle's place.
///
/// # Safety
/// NULL, or a handle of a table that is alive.
unsafe fn table_of<'a>(txn: *const memslots_txn) -> Result<(&'a memslots, usize)> {
    if txn.is_null() {
        return Err(Errno::EINVAL);
    }
    let table = txn.map_addr(|address| address & !(BLOCK - 1)).cast::<memslots>();
    // SAFETY: the handle was made from the table's own pointer, and the table begins the block.
    Ok((unsafe { &*table }, txn.addr() % BLOCK))
}

/// Runs a step of the transaction that a handle is for.
///
/// # Safety
/// NULL, or a handle of a table that is alive.
unsafe fn with<T>(txn: *const memslots_txn, step: impl FnOnce(&mut Transaction<'static>) -> Result<T>) -> Result<T> {
    // SAFETY: the caller's promise.
    let (table, handle) = unsafe { table_of(txn) }?;
    if !table.table.is_updating() {
        return Err(Errno::EINVAL);
    }
    let mut open = table.txns.open.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
    match open.as_mut().filter(|open| open.handle == handle) {
        Some(open) => step(&mut open.txn),
        None => Err(Errno::EINVAL),
    }
}

/// Ends a handle, and gives what it was for.
///
/// # Safety
/// As `with`.
unsafe fn take(txn: *const memslots_txn) -> Result<Transaction<'static>> {
    // SAFETY: the caller's promise. The step only sees that the handle is that of the open transaction.
    unsafe {
        with(txn, |_| Ok(()))?;
        let (table, _) = table_of(txn)?;
        let mut open = table.txns.open.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
        open.take().map(|open| open.txn).ok_or(Errno::EINVAL)
    }
}

/// Begins a transaction. It holds the update lock until it is committed or aborted, and belongs to the calling thread:
/// on another one, and after its end, every call on it is -EINVAL. Readers see nothing of it.
///
/// Waits for other threads' updates; any thread. Errors: -EINVAL (NULL), -EDEADLK (this thread has one open on this
/// table, is inside a hook of it, or is in a section that another thread's update waits for), -ENOMEM,
/// -ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_begin(table: *mut memslots, out: *mut *mut memslots_txn) -> c_int {
    answer(|| {
        // SAFETY: the caller's table, or NULL.
        let given = unsafe { given(table) }?;
        if out.is_null() {
            return Err(Errno::EINVAL);
        }
        let handle = given.txns.begin(&given.table)?;
        // SAFETY: not NULL, and the caller's. Handles stand at the start of the table's block.
        unsafe { out.write(table.cast::<memslots_txn>().add(handle)) };
        Ok(())
    })
}

/// As memslots_set_region, in a transaction: checked at once against what its earlier changes leave. An error leaves
/// the transaction as it was. Several changes of one slot come to one, or to nothing; a slot created and deleted in one
/// transaction never was.
///
/// Does not block; the thread that began the transaction. Errors: as memslots_set_region, and -EINVAL (not open, or
/// another thread's).
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_set_region(
    txn: *mut memslots_txn,
    region: *const Region,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's transaction and region, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.set_region(given(region)?, opaque)) })
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
    answer(|| unsafe { with(txn, |txn| txn.create(given(region)?, opaque)) })
}

/// As memslots_delete, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_delete.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_delete(txn: *mut memslots_txn, as_id: AsId, id: SlotId) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.delete(as_id, id)) })
}

/// As memslots_move, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_move.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_move(txn: *mut memslots_txn, as_id: AsId, id: SlotId, new_gpa: Gpa) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.move_slot(as_id, id, new_gpa)) })
}

/// As memslots_set_flags, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
/// memslots_set_flags.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_set_flags(txn: *mut memslots_txn, as_id: AsId, id: SlotId, flags: u32) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.set_flags(as_id, id, flags)) })
}

/// Cuts a slot in two at `at_gpa` (bytes). The lower part keeps id and opaque; the upper gets `new_id`, or the lowest
/// free one for MEMSLOTS_ID_ANY, and `opaque`. Gives the upper part's id. Both back the frames that the one did:
/// readers see no gap. Hooks are told of a RESIZE of the slot and a SPLIT from it.
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open,
/// `at_gpa` no page boundary strictly inside the slot, a slot with a guest_memfd, an id beyond the last), -EEXIST (the
/// id is taken), -ENOSPC (none is free), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_split(
    txn: *mut memslots_txn,
    as_id: AsId,
    id: SlotId,
    at_gpa: Gpa,
    new_id: SlotId,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.split(as_id, id, at_gpa, new_id, opaque)) })
}

/// Makes one slot of two: `upper_id` follows `lower_id` in guest and in host memory, with the same flags. The lower
/// keeps id and opaque; the upper one's life ends. Readers see no gap. Hooks are told of a RESIZE of the lower and a
/// MERGE of the upper.
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open,
/// they do not follow each other, other flags, a guest_memfd, more than 2^31 - 1 pages together), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_merge(
    txn: *mut memslots_txn,
    as_id: AsId,
    lower_id: SlotId,
    upper_id: SlotId,
) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.merge(as_id, lower_id, upper_id)) })
}

/// Gives a slot another size, in bytes. It keeps first frame, hva, flags, id and opaque; readers see the old size or
/// the new one. Hooks are told of a RESIZE (and `flush` is called first where it gives up frames).
///
/// Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EEXIST (overlaps another
/// slot), -EINVAL (NULL, not open, size 0, alignment, range, a slot with a guest_memfd), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_resize(txn: *mut memslots_txn, as_id: AsId, id: SlotId, new_size: u64) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { with(txn, |txn| txn.resize(as_id, id, new_size)) })
}

/// The slot that holds a frame as the transaction's changes leave it; NULL where there is none. Valid until the next
/// call on the transaction. Does not block; the thread that began the transaction.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_find_gfn(txn: *const memslots_txn, as_id: AsId, gfn: Gfn) -> *const Memslot {
    value(null(), || {
        // SAFETY: the caller's transaction, or NULL.
        let slot = unsafe { with(txn, |txn| Ok(txn.find_gfn(as_id, gfn).map_or(null(), std::ptr::from_ref))) };
        slot.unwrap_or(null())
    })
}

/// The calls of KVM_SET_USER_MEMORY_REGION that would make the transaction's changes; see memslots_plan.
///
/// Does not block; the thread that began the transaction. Errors: -EINVAL (NULL, not open), -ERANGE (there are more
/// than `capacity`: `*nr_steps` says how many, and nothing else is written), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_plan(
    txn: *const memslots_txn,
    out: *mut memslots_plan_step,
    capacity: usize,
    nr_steps: *mut usize,
) -> c_int {
    // SAFETY: the caller's transaction and array, or NULL.
    answer(|| unsafe {
        let steps = with(txn, |txn| txn.plan())?;
        super::plan::write_steps(&steps, out, capacity, nr_steps)
    })
}

/// Publishes a transaction's changes, all at once for every reader, and ends it: the handle is gone, success or not. At
/// most two publications, whatever the number of changes: the INVALID phase, where there is a flush hook and something
/// goes or moves, then the result. A hook that refuses rolls everything back, and its errno comes out.
///
/// Waits for readers where memslots_set_region does; the thread that began the transaction. Errors: -EINVAL (NULL, not
/// open), -EDEADLK (it would wait for this thread's own section), -ENOMEM, a hook's or the VM's. Everything is as
/// before then, but for two steps of the generation where the INVALID phase had begun.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_commit(txn: *mut memslots_txn) -> c_int {
    // SAFETY: the caller's transaction, or NULL.
    answer(|| unsafe { take(txn) }?.commit())
}

/// Throws a transaction's changes away and ends it. Does not block; the thread that began the transaction. NULL, one
/// that has ended, or another thread's: nothing happens.
#[no_mangle]
pub unsafe extern "C" fn memslots_txn_abort(txn: *mut memslots_txn) {
    // SAFETY: the caller's transaction, or NULL.
    value((), || drop(unsafe { take(txn) }));
}

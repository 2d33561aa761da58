// SPDX-License-Identifier: MIT OR Apache-2.0
//! Iterators, on the caller's stack. As with lookups, there is no panic in them.

use super::reader::is_open;
use crate::reader::{Reader, Walk};
use crate::slot::{AsId, Gfn, Hva, Memslot};
use std::mem::{align_of, size_of, MaybeUninit};
use std::ptr::null;

/// A walk over the slots of one publication. Fields are private; on the caller's stack.
#[repr(C)]
pub struct memslots_iter {
    #[doc(hidden)]
    pub private_: [u64; 18],
}

/// What is in there.
#[repr(C)]
struct State {
    reader: *const Reader,
    /// The section that the walk belongs to: in another one what it points to may be gone.
    ordinal: u64,
    walk: MaybeUninit<Walk>,
}

const _: () = assert!(size_of::<State>() <= size_of::<memslots_iter>());
const _: () = assert!(align_of::<State>() <= align_of::<memslots_iter>());

/// Begins a walk, or one that is over where there is no section or nothing to walk over: `walk` fills it in, or says
/// so.
///
/// # Safety
/// `iter` is NULL or the caller's; `reader` is NULL or live. `walk` is called in a section.
#[inline(always)]
unsafe fn begin(
    iter: *mut memslots_iter,
    reader: *mut Reader,
    walk: impl FnOnce(&Reader, &mut MaybeUninit<Walk>) -> bool,
) {
    // SAFETY: NULL or the caller's, large enough and aligned, as asserted above; any bits are a State.
    let Some(state) = (unsafe { iter.cast::<State>().as_mut() }) else { return };
    state.reader = null();
    // SAFETY: the caller's promise.
    let Some(reader) = (unsafe { reader.as_ref() }).filter(|reader| is_open(reader)) else { return };
    state.ordinal = reader.ordinal();
    if walk(reader, &mut state.walk) {
        state.reader = reader;
    }
}

/// A walk over all slots of an address space, ascending by gfn, of the publication that is newest now.
///
/// Never waits; the reader's thread, inside a section (outside of one the walk is empty). It ends with the section.
#[no_mangle]
pub unsafe extern "C" fn memslots_iter_all(iter: *mut memslots_iter, reader: *mut Reader, as_id: AsId) {
    // SAFETY: the caller's, or NULL.
    unsafe { begin(iter, reader, |reader, walk| reader.walk_gfn(as_id, Gfn(0)..Gfn(u64::MAX), walk)) };
}

/// A walk over exactly the slots with a frame in [start, end), ascending by gfn. An empty range has none. Otherwise as
/// memslots_iter_all.
#[no_mangle]
pub unsafe extern "C" fn memslots_iter_gfn(
    iter: *mut memslots_iter,
    reader: *mut Reader,
    as_id: AsId,
    start: u64,
    end: u64,
) {
    // SAFETY: the caller's, or NULL.
    unsafe { begin(iter, reader, |reader, walk| reader.walk_gfn(as_id, Gfn(start)..Gfn(end), walk)) };
}

/// A walk over exactly the slots with a byte of host memory in [start, last], `last` inclusive, ascending by hva, then
/// by id. Otherwise as memslots_iter_all.
#[no_mangle]
pub unsafe extern "C" fn memslots_iter_hva(
    iter: *mut memslots_iter,
    reader: *mut Reader,
    as_id: AsId,
    start: u64,
    last: u64,
) {
    // SAFETY: the caller's, or NULL.
    unsafe { begin(iter, reader, |reader, walk| reader.walk_hva(as_id, Hva(start), Hva(last), walk)) };
}

/// The next slot, valid until the section ends; NULL at the end, and in another section than the walk began in. Never
/// waits; the reader's thread.
#[no_mangle]
pub unsafe extern "C" fn memslots_iter_next(iter: *mut memslots_iter) -> *const Memslot {
    // SAFETY: NULL, or begun by one of the above.
    let Some(state) = (unsafe { iter.cast::<State>().as_mut() }) else { return null() };
    // SAFETY: NULL where the walk is over; else the reader that it began with, alive while it goes on.
    let Some(reader) = (unsafe { state.reader.as_ref() }) else { return null() };
    if !is_open(reader) || reader.ordinal() != state.ordinal {
        return null();
    }
    // SAFETY: begun in the section that is open, which keeps the publication.
    unsafe { state.walk.assume_init_mut().next() }.map_or(null(), |slot| slot.as_ptr())
}

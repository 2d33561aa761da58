// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C boundary: raw pointers in, checked and converted; `Result` out as a negative errno.
//!
//! No decisions are made here, and nothing here knows how anything works. One file for each noun of the header, which
//! cbindgen makes of these files. A NULL where an object must be is `-EINVAL` (NULL or 0 where there is no error value); a
//! panic becomes `-ENOTRECOVERABLE`, and poisons the table where it was inside an update. The lookups have no panic
//! in them, and would end the process before one reached C.

// C names are C's, and what is public here is so to C.
#![allow(non_camel_case_types, unreachable_pub, dead_code)]

// In the header's order, which rustfmt would not keep for neighbours.
mod table;

mod update;

mod txn;

mod plan;

mod reader;

mod iter;

mod stats;

use crate::error::{Errno, Result};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Log the pages that the guest writes.
pub const MEMSLOTS_LOG_DIRTY_PAGES: u32 = 1;
/// The guest may not write.
pub const MEMSLOTS_READONLY: u32 = 2;
/// Private memory behind a guest_memfd.
pub const MEMSLOTS_GUEST_MEMFD: u32 = 4;
/// The slot is being deleted or moved: found, but not to be used. Never in a request.
pub const MEMSLOTS_INVALID: u32 = 0x10000;

/// As the id of a slot to be created: the lowest that is free.
pub const MEMSLOTS_ID_ANY: u16 = 0xffff;

/// The guest reads.
pub const MEMSLOTS_READ: u32 = 1;
/// The guest writes.
pub const MEMSLOTS_WRITE: u32 = 2;

/// A new slot: `old_slot` is NULL.
pub const MEMSLOTS_CREATE: u32 = 0;
/// The slot ends: `new_slot` is NULL.
pub const MEMSLOTS_DELETE: u32 = 1;
/// Other frames; flags may have changed too.
pub const MEMSLOTS_MOVE: u32 = 2;
/// Other flags and nothing else.
pub const MEMSLOTS_FLAGS_ONLY: u32 = 3;
/// Another size; frames and flags may have changed too.
pub const MEMSLOTS_RESIZE: u32 = 4;
/// `new_slot` was cut out of `old_slot`, which lives on and has a change of its own (RESIZE).
pub const MEMSLOTS_SPLIT: u32 = 5;
/// `old_slot` ends; its frames are part of `new_slot`, which has a change of its own (RESIZE).
pub const MEMSLOTS_MERGE: u32 = 6;

/// An answer as C has it: 0 or more, or a negative errno.
trait Answer {
    fn into_c(self) -> i32;
}

impl Answer for () {
    fn into_c(self) -> i32 {
        0
    }
}

impl Answer for u16 {
    fn into_c(self) -> i32 {
        self as i32
    }
}

/// Runs what a function does, and turns what comes of it into C's.
fn answer<T: Answer>(body: impl FnOnce() -> Result<T>) -> i32 {
    value(Errno::ENOTRECOVERABLE.negated(), || body().map_or_else(Errno::negated, Answer::into_c))
}

/// The same where there is no error value: `otherwise` after a panic. The caller's `errno` stays what it is.
fn value<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's errno, which is always there.
    let errno = unsafe { *libc::__errno_location() };
    let value = catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    value
}

/// What a pointer points to, or EINVAL for NULL.
///
/// # Safety
/// NULL, or a live object that is not changed while the answer is in use.
unsafe fn given<'a, T>(pointer: *const T) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or(Errno::EINVAL)
}

/// The array that a pointer and a length describe. NULL is fine for an empty one.
///
/// # Safety
/// `count` live objects, where it is not 0.
unsafe fn array<'a, T>(pointer: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || count > isize::MAX as usize / size_of::<T>() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Writes as much of a sized struct as the caller has room for. `size` is the struct's first field.
///
/// # Safety
/// `out` has room for `size` bytes.
unsafe fn write_sized<T>(out: *mut T, size: usize, value: &T) -> Result<()> {
    if out.is_null() || size < size_of::<usize>() {
        return Err(Errno::EINVAL);
    }
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise; the source has at least that many bytes.
    unsafe {
        std::ptr::from_ref(value).cast::<u8>().copy_to_nonoverlapping(out.cast(), known);
        out.cast::<usize>().write_unaligned(known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_crate_s() {
        use crate::{hooks::Kind, slot};
        let flags = (MEMSLOTS_LOG_DIRTY_PAGES, MEMSLOTS_READONLY, MEMSLOTS_GUEST_MEMFD, MEMSLOTS_INVALID);
        assert_eq!(flags, (slot::LOG_DIRTY_PAGES, slot::READONLY, slot::GUEST_MEMFD, slot::INVALID));
        assert_eq!(MEMSLOTS_ID_ANY, slot::ID_ANY);
        let kinds = [Kind::Create, Kind::Delete, Kind::Move, Kind::FlagsOnly, Kind::Resize, Kind::Split, Kind::Merge];
        let numbers = [
            MEMSLOTS_CREATE,
            MEMSLOTS_DELETE,
            MEMSLOTS_MOVE,
            MEMSLOTS_FLAGS_ONLY,
            MEMSLOTS_RESIZE,
            MEMSLOTS_SPLIT,
            MEMSLOTS_MERGE,
        ];
        assert_eq!(kinds.map(|kind| kind as u32), numbers);
    }

    #[test]
    fn a_panic_becomes_an_errno() {
        let errno = answer::<()>(|| panic!("on purpose"));
        assert_eq!(errno, -libc::ENOTRECOVERABLE);
    }
}

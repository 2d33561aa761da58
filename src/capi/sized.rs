// SPDX-License-Identifier: MIT OR Apache-2.0
//! The structs that begin with their size, so that they can grow and older programs keep working.
//!
//! One convention for all of them. **What a caller gives** is read as the kernel reads extensible structs
//! (`copy_struct_from_user`): smaller than the first version is `EINVAL`, fields that are missing have their defaults,
//! and bytes that this library does not know must be zero, or else the caller asks for something that it would not get:
//! `E2BIG`. **What a caller is given** is as much as there is room for, and its size field says how much that is.
//!
//! A field that is added goes to the end, never into padding: an older program leaves anything there.

use crate::error::{Errno, Result};
use std::mem::{align_of, size_of};
use std::slice::from_raw_parts;

/// The largest struct that is looked through for zeros. What claims to be larger is no struct, but something else where
/// the size should be, such as the hook that version 0.1 had there.
const LARGEST: usize = 4096;

/// A struct that a caller gives.
///
/// # Safety
/// `repr(C)`; the first field is the `usize` that is its size; any bits are good for every field.
pub(super) unsafe trait Input: Copy {
    /// The size of the struct in the oldest header whose programs are served.
    const SMALLEST: usize;

    /// What the fields are that a caller does not know.
    fn defaults() -> Self;
}

/// A struct that a caller is given.
///
/// # Safety
/// `repr(C)`; the first field is the `usize` that is its size.
pub(super) unsafe trait Output {}

/// What a caller gave, with the defaults for what it does not know; None for NULL. A field of which only a part is
/// there counts as missing.
///
/// # Safety
/// NULL, or as many bytes as the size in it says, though no more than `LARGEST` of them need be there.
pub(super) unsafe fn read<T: Input>(given: *const T) -> Result<Option<T>> {
    const { assert!(T::SMALLEST <= size_of::<T>() && size_of::<T>() <= LARGEST) };
    if given.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise; the size comes first.
    let size = unsafe { given.cast::<usize>().read() };
    if size < T::SMALLEST {
        return Err(Errno::EINVAL);
    }
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are there, by the caller's promise, where it is no larger than that.
    if size > LARGEST || unsafe { !is_zero(given.cast::<u8>().add(known), size - known) } {
        return Err(Errno::E2BIG);
    }
    let mut value = T::defaults();
    let whole = known - known % align_of::<T>();
    // SAFETY: both have that many bytes; any bits are good for the fields.
    unsafe { given.cast::<u8>().copy_to_nonoverlapping((&raw mut value).cast(), whole) };
    Ok(Some(value))
}

/// # Safety
/// `count` bytes are there.
unsafe fn is_zero(bytes: *const u8, count: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { from_raw_parts(bytes, count) }.iter().all(|&byte| byte == 0)
}

/// Fills in the defaults of a struct that a caller is going to give: as much as fits in `size` bytes, zero for what is
/// beyond, and the size. Not where `size` is smaller than any version's.
///
/// # Safety
/// `out` is NULL or has room for `size` bytes.
pub(super) unsafe fn fill<T: Input>(out: *mut T, size: usize) {
    if out.is_null() || size < T::SMALLEST {
        return;
    }
    let defaults = T::defaults();
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise, and no more than the size of either.
    unsafe {
        let bytes = out.cast::<u8>();
        (&raw const defaults).cast::<u8>().copy_to_nonoverlapping(bytes, known);
        bytes.add(known).write_bytes(0, size - known);
        out.cast::<usize>().write(size);
    }
}

/// Gives a caller as much of a struct as there is in `size` bytes.
///
/// # Errors
/// EINVAL for NULL, and where there is no room for the size itself.
///
/// # Safety
/// `out` is NULL or has room for `size` bytes.
pub(super) unsafe fn write<T: Output>(out: *mut T, size: usize, value: &T) -> Result<()> {
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

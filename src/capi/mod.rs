// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C boundary: raw pointers in, checked and converted; `Result` out as a negative errno.
//!
//! No decisions are made here, and nothing here knows how anything works. One file for each noun of the header, which
//! cbindgen makes of these files. A NULL where an object must be is `-EINVAL` (NULL or 0 where there is no error
//! value); a panic becomes `-ENOTRECOVERABLE`, and poisons the table where it was inside an update. The lookups have no
//! panic in them, and would end the process before one reached C.

// C names are C's, and what is public here is so to C.
#![allow(non_camel_case_types, unreachable_pub, dead_code, clippy::enum_variant_names)]

mod sized;

// In the header's order, which rustfmt would not keep for neighbours.
mod hooks;

mod table;

mod update;

mod txn;

mod plan;

mod reader;

mod iter;

mod stats;

use crate::error::{Errno, Result};
use crate::slot::SlotId;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// The id of a slot that is to be created, where any will do: it gets the lowest free one. Never the id of a slot.
pub const MEMSLOTS_ID_ANY: u16 = 0xffff;

/// Flags of a slot, one bit each: the kernel's KVM_MEM_ flags of the same names, and MEMSLOTS_INVALID.
#[repr(C)]
pub enum memslots_slot_flag {
    /// The pages that the guest writes are logged.
    MEMSLOTS_LOG_DIRTY_PAGES = 1,
    /// The guest may not write.
    MEMSLOTS_READONLY = 2,
    /// The slot has private memory behind a guest_memfd.
    MEMSLOTS_GUEST_MEMFD = 4,
    /// The slot is being deleted or moved: lookups find it, but it is not to be used. Never in a request.
    MEMSLOTS_INVALID = 0x10000,
}

/// What an address is looked up for.
#[repr(C)]
pub enum memslots_access {
    /// The guest reads.
    MEMSLOTS_READ = 1,
    /// The guest writes.
    MEMSLOTS_WRITE = 2,
}

/// What an update does to a slot. The first four are the kernel's `enum kvm_mr_change`.
#[repr(C)]
pub enum memslots_change_kind {
    /// A new slot. `old_slot` is NULL, but where the slot was cut out of another that was there before and this is no
    /// SPLIT: then it is that one, as it was.
    MEMSLOTS_CREATE = 0,
    /// The slot ends: `new_slot` is NULL.
    MEMSLOTS_DELETE = 1,
    /// Other frames; flags may have changed too.
    MEMSLOTS_MOVE = 2,
    /// Other flags and nothing else.
    MEMSLOTS_FLAGS_ONLY = 3,
    /// Another size; frames and flags may have changed too.
    MEMSLOTS_RESIZE = 4,
    /// `new_slot` was cut out of `old_slot`, which lives on and has a RESIZE of its own, and lies where it lay in that.
    MEMSLOTS_SPLIT = 5,
    /// `old_slot` ended; all its frames are in `new_slot`, which has the same flags and a RESIZE of its own.
    MEMSLOTS_MERGE = 6,
}

/// Why `pause` is called, one bit each.
#[repr(C)]
pub enum memslots_pause_reason {
    /// Frames that have memory before and after the update lose it in between: KVM cannot resize a slot.
    MEMSLOTS_PAUSE_GAP = 1,
    /// A dirty log ends: what a vCPU writes after its bits were fetched would be in no log.
    MEMSLOTS_PAUSE_LOG = 2,
}

/// An answer as C has it: 0 or more, or a negative errno.
trait Answer {
    fn into_c(self) -> i32;
}

impl Answer for () {
    fn into_c(self) -> i32 {
        0
    }
}

impl Answer for SlotId {
    fn into_c(self) -> i32 {
        self.0 as i32
    }
}

/// Runs what a function does, and turns what comes of it into C's.
fn answer<T: Answer>(body: impl FnOnce() -> Result<T>) -> i32 {
    value(Errno::ENOTRECOVERABLE.negated(), || body().map_or_else(Errno::negated, Answer::into_c))
}

/// The same where there is no error value: `otherwise` after a panic. The caller's `errno` stays what it is.
fn value<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    // SAFETY: the call only says where the calling thread has its errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: there for as long as the thread.
    let errno = unsafe { *place };
    let value = catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise);
    // SAFETY: as above.
    unsafe { *place = errno };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_crate_s() {
        use crate::{hooks::Kind, slot};
        use {memslots_change_kind as kind, memslots_slot_flag as flag};
        assert_eq!(flag::MEMSLOTS_LOG_DIRTY_PAGES as u32, slot::LOG_DIRTY_PAGES);
        assert_eq!(flag::MEMSLOTS_READONLY as u32, slot::READONLY);
        assert_eq!(flag::MEMSLOTS_GUEST_MEMFD as u32, slot::GUEST_MEMFD);
        assert_eq!(flag::MEMSLOTS_INVALID as u32, slot::INVALID);
        assert_eq!(MEMSLOTS_ID_ANY, slot::SlotId::ANY.0);
        assert_eq!(kind::MEMSLOTS_CREATE as u32, Kind::Create as u32);
        assert_eq!(kind::MEMSLOTS_DELETE as u32, Kind::Delete as u32);
        assert_eq!(kind::MEMSLOTS_MOVE as u32, Kind::Move as u32);
        assert_eq!(kind::MEMSLOTS_FLAGS_ONLY as u32, Kind::FlagsOnly as u32);
        assert_eq!(kind::MEMSLOTS_RESIZE as u32, Kind::Resize as u32);
        assert_eq!(kind::MEMSLOTS_SPLIT as u32, Kind::Split as u32);
        assert_eq!(kind::MEMSLOTS_MERGE as u32, Kind::Merge as u32);
    }

    #[test]
    fn a_panic_becomes_an_errno() {
        let errno = answer::<()>(|| panic!("on purpose"));
        assert_eq!(errno, -libc::ENOTRECOVERABLE);
    }
}

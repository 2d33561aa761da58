// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boxes whose allocation can fail without ending the process.
//!
//! Knows nothing else. For the few objects outside of a table's pool: handles and what must not move.

use crate::error::{Errno, Result};
use std::alloc::{alloc, Layout};

/// Whether some kilobytes can be allocated now: for what else would end the process, and can be left.
pub(crate) fn is_there() -> bool {
    try_box([0u64; 512]).is_ok()
}

/// `value` on the heap, or ENOMEM.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>> {
    let layout = Layout::new::<T>();
    assert!(layout.size() > 0);
    // SAFETY: the size is not 0.
    let memory = unsafe { alloc(layout) }.cast::<T>();
    if memory.is_null() {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: fresh memory of T's layout from the global allocator, as Box wants it.
    unsafe {
        memory.write(value);
        Ok(Box::from_raw(memory))
    }
}

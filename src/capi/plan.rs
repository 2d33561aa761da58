// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plan: from two states of a table to a list of calls.

use super::{answer, array};
use crate::error::{Errno, Result};
use crate::plan::{self, Step};
use crate::slot::Region;
use std::ffi::c_int;

/// One call of KVM_SET_USER_MEMORY_REGION2.
#[repr(C)]
pub struct memslots_plan_step {
    /// What to call it with; a size of 0 deletes. For vhost-user and VFIO: what to add or to remove (where it deletes,
    /// gpa and hva are still the slot's).
    pub region: Region,
    /// MEMSLOTS_CREATE, _DELETE, _MOVE or _FLAGS_ONLY.
    pub kind: u32,
    /// 1: frames that have memory before and after the whole list lose it with this call, and get it back with a later
    /// one; a running vCPU would see that.
    pub gap: u32,
}

/// The calls that lead from one table to another, each a list of regions in any order, such that the kernel accepts
/// them one after the other. One call a slot that differs, two where its size or hva do; and one more for a cycle of
/// slots that exchange places, which needs a delete (cycles that share slots may take one more than the least).
/// `*nr_steps` is their number.
///
/// Pure; does not block; any thread. Errors: -EINVAL (NULL; a list in which an id or a frame comes twice, or a size is
/// 0), -ERANGE (there are more than `capacity`: `*nr_steps` says how many, and nothing else is written), -ENOMEM.
#[no_mangle]
pub unsafe extern "C" fn memslots_plan(
    from: *const Region,
    nr_from: usize,
    to: *const Region,
    nr_to: usize,
    out: *mut memslots_plan_step,
    capacity: usize,
    nr_steps: *mut usize,
) -> c_int {
    // SAFETY: the caller's arrays, or NULL.
    answer(|| unsafe {
        let steps = plan::between(array(from, nr_from)?, array(to, nr_to)?)?;
        write_steps(&steps, out, capacity, nr_steps)
    })
}

/// # Safety
/// `out` has room for `capacity` steps; `nr_steps` is NULL or writable.
pub(super) unsafe fn write_steps(
    steps: &[Step],
    out: *mut memslots_plan_step,
    capacity: usize,
    nr_steps: *mut usize,
) -> Result<()> {
    if nr_steps.is_null() || (out.is_null() && capacity > 0) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: not NULL, and the caller's.
    unsafe { nr_steps.write(steps.len()) };
    if steps.len() > capacity {
        return Err(Errno::ERANGE);
    }
    for (index, step) in steps.iter().enumerate() {
        let step = memslots_plan_step { region: step.region(), kind: step.kind as u32, gap: step.gap as u32 };
        // SAFETY: index < capacity.
        unsafe { out.add(index).write(step) };
    }
    Ok(())
}

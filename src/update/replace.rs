// SPDX-License-Identifier: MIT OR Apache-2.0
//! The replacement of a whole address space by a list of regions, in any order.
//!
//! Knows the rules and staging; not how an update is committed. The new indexes are built beside the old ones: whatever
//! is not taken over from the old space has ended.

use super::staging::{Staging, NO_STEP};
use crate::commit::calls;
use crate::error::{Errno, Refused, Result};
use crate::shared::Updating;
use crate::slot::{AsId, Memslot, Region};
use crate::snapshot::Record;
use crate::trace::Op;
use std::ffi::c_void;
use std::ptr::NonNull;

/// Stages the regions as all that an address space has.
pub(super) fn stage(
    lock: &mut Updating,
    as_id: AsId,
    regions: &[Region],
    opaque: impl Fn(usize) -> *mut c_void,
) -> Result<Staging, Refused> {
    if lock.current().space(as_id).is_none() {
        return Err(Errno::EINVAL.into());
    }
    let mut staging = Staging::begin(lock)?;
    staging.copy.clear(as_id)?;
    staging.journal.tell_endings_first();
    for (step, region) in regions.iter().enumerate() {
        staging.step = step;
        place(lock, &mut staging, as_id, region, opaque(step)).map_err(Refused::entry(step))?;
    }
    staging.end_absent(as_id)?;
    trace_calls(lock, &staging)?;
    Ok(staging)
}

/// Puts one region into the new space.
fn place(lock: &Updating, staging: &mut Staging, as_id: AsId, region: &Region, opaque: *mut c_void) -> Result<()> {
    if region.as_id() != as_id {
        return Err(Errno::EINVAL);
    }
    let (kept, new) = lock.rules(lock.current()).desired(region, opaque)?;
    // SAFETY: the working copy is alive.
    if staging.copy.state().space(as_id).is_some_and(|space| unsafe { space.find_id(new.id) }.is_some()) {
        return Err(Errno::EEXIST);
    }
    staging.rules(&lock.shared().limits).may_create(&new)?;
    staging.reserve(as_id, 1)?;
    staging.adopt(kept, new);
    Ok(())
}

/// A replacement's lines in the trace are the calls that have the same effect.
fn trace_calls(lock: &mut Updating, staging: &Staging) -> Result<()> {
    if lock.writer().trace.is_some() {
        let calls = calls(lock, &staging.journal)?;
        calls.iter().for_each(|step| lock.trace(Op::Set, || step.region(), Ok(())));
    }
    Ok(())
}

impl Staging {
    /// Puts a slot into a space that is built anew: with the record that it has already where nothing changes.
    fn adopt(&mut self, kept: Option<NonNull<Record>>, new: Memslot) {
        let same = kept.filter(|old| *self.copy.slot(*old) == new);
        match (same, kept) {
            (Some(record), _) => self.copy.add(record, self.page_shift),
            (None, None) => self.create(new, None),
            (None, Some(old)) => {
                let record = self.copy.new_record(self.journal.next_stamp(), new);
                self.journal.changed(old, record, self.step);
                self.copy.add(record, self.page_shift);
            }
        }
    }

    /// The slots of the base that have no place in the space built anew have ended.
    fn end_absent(&mut self, as_id: AsId) -> Result<()> {
        let Some(old_space) = self.copy.base().space(as_id) else { return Ok(()) };
        let Some(new_space) = self.copy.state().space(as_id) else { return Ok(()) };
        let (journal, copy) = (&mut self.journal, &self.copy);
        // SAFETY: both spaces are alive; words of the gfn tree are records.
        let mut walk = unsafe { old_space.walk() };
        // SAFETY: as above.
        while let Some(record) = unsafe { walk.next() }.and_then(|word| NonNull::new(word.cast::<Record>())) {
            // SAFETY: as above.
            let now = unsafe { new_space.find_id(copy.slot(record).id) };
            let lives_on = now.is_some_and(|now| now == record || journal.before(now) == Some(record));
            if !lives_on {
                journal.reserve(1)?;
                journal.ended(record, false, NO_STEP);
            }
        }
        Ok(())
    }
}

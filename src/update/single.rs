// SPDX-License-Identifier: MIT OR Apache-2.0
//! A single update. Where there is nobody to ask and nothing to wait for, it is one edit of a working copy and one
//! store; otherwise it is a transaction of one change.
//!
//! Knows decisions and the update lock; not the rules that lead to a decision.

use super::staging::Staging;
use crate::change::{Decision, Rules};
use crate::error::Result;
use crate::shared::{Shared, Updating};
use crate::slot::Region;
use crate::snapshot::Record;
use crate::trace::Op;
use crate::working_copy::WorkingCopy;
use std::ptr::NonNull;

/// One update, and its line in the trace.
#[inline(always)]
pub(crate) fn single(
    shared: &Shared,
    op: Op,
    named: impl FnOnce() -> Region,
    decide: impl FnOnce(Rules) -> Result<Decision>,
) -> Result<()> {
    let mut lock = shared.update()?;
    let decision = decide(lock.rules(lock.current()));
    let result = match is_plain(&mut lock) {
        true => decision.and_then(|decision| publish_one(&mut lock, decision)),
        false => decision.and_then(|decision| commit_one(&mut lock, decision)),
    };
    lock.trace(op, named, result);
    result
}

/// Whether there is nobody to ask and nothing to wait for.
#[inline(always)]
fn is_plain(lock: &mut Updating) -> bool {
    lock.shared().hooks.is_none() && lock.writer().backend.is_none() && !lock.waits()
}

#[inline(never)]
fn commit_one(lock: &mut Updating, decision: Decision) -> Result<()> {
    let mut staging = Staging::begin(lock)?;
    staging.stage(decision)?;
    staging.commit(lock).map_err(|refused| refused.errno)
}

/// Makes a change that the rules allow, of a table that is plain.
///
/// # Errors
/// `ENOMEM`; then nothing has changed.
#[inline(always)]
fn publish_one(lock: &mut Updating, decision: Decision) -> Result<()> {
    let (as_id, id) = match decision {
        Decision::Nothing => return Ok(()),
        Decision::Create(slot) | Decision::Replace { new: slot, .. } => (slot.as_id, slot.id),
        Decision::Delete { as_id, old } => (as_id, lock.slot(old).id),
    };
    let mut copy = lock.begin_copy_for(as_id, id)?;
    lock.in_step = true;
    let gone = edit(&mut copy, decision, lock.shared().limits.page_shift);
    copy.add_to_generation(as_id, lock.shared().limits.nr_address_spaces as u64);
    lock.publish(copy);
    if let Some(record) = gone {
        // SAFETY: not current any more, and retired once; there is room. Without hooks there is no release.
        unsafe { lock.lane().retire(Record::object(record)) };
    }
    lock.in_step = false;
    lock.settle(false);
    lock.drain();
    Ok(())
}

/// Edits a working copy, and gives the record that it no longer refers to.
#[inline(always)]
fn edit(copy: &mut WorkingCopy, decision: Decision, shift: u32) -> Option<NonNull<Record>> {
    match decision {
        Decision::Nothing => None,
        Decision::Create(slot) => {
            let record = copy.new_own_record(slot);
            copy.add(record, shift);
            None
        }
        Decision::Delete { old, .. } => {
            copy.remove(old, shift);
            Some(old)
        }
        Decision::Replace { old, new } => {
            let record = copy.new_own_record(new);
            copy.replace(old, record, shift);
            Some(old)
        }
    }
}

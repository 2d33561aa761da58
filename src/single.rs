// SPDX-License-Identifier: MIT OR Apache-2.0
//! One change, where there is nobody to ask and nothing to wait for: what a transaction of one comes to, without its
//! journal and its phases.
//!
//! May know the update lock and the indexes, not the rules. Everything is reserved before the first edit; after that nothing
//! can fail. With hooks, a VM, or readers to wait for, a single update is a `Transaction`.

use crate::change::Decision;
use crate::index::pool::LINE;
use crate::index::{object_of, Editor, Stamp, REPLACED_PER_EDIT};
use crate::shared::Updating;
use crate::slot::{Errno, Result};
use crate::snapshot::{Published, Record, Space};
use std::ptr::NonNull;

impl Updating<'_> {
    /// Whether there is nobody to ask and nothing to wait for.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.shared.hooks.is_none() && self.writer.backend.is_none() && !self.waits()
    }

    /// Makes a change that the rules allow, of a table that is plain.
    ///
    /// # Errors
    /// `ENOMEM`; then nothing has changed.
    #[inline(always)]
    pub(crate) fn publish_one(&mut self, decision: Decision) -> Result<()> {
        let Some(as_id) = decision.as_id() else { return Ok(()) };
        let (shared, base) = (self.shared, self.current());
        let writer = &mut **self.writer;
        // SAFETY: the current publication is alive under the update lock.
        let bytes = unsafe { base.as_ref() }.space(as_id).map_or(0, Space::bytes_to_edit);
        writer.pool.reserve(Published::lines(shared.limits.nr_address_spaces) * LINE + bytes)?;
        writer.replaced.try_reserve(REPLACED_PER_EDIT).map_err(|_| Errno::ENOMEM)?;
        writer.lane.reserve(REPLACED_PER_EDIT + 2, 0)?;
        self.in_step = true;
        let stamp = Stamp(writer.next_stamp);
        writer.next_stamp += 1;
        let mut editor = Editor { pool: &mut writer.pool, stamp, replaced: Some(&mut writer.replaced) };
        // SAFETY: as above; the copy is this update's alone until it is published.
        let mut work = unsafe { Published::copy_of(&mut editor, base.as_ref()) };
        // SAFETY: as above.
        let space = &mut unsafe { work.as_mut() }.spaces_mut()[as_id as usize];
        // SAFETY: reserved; the rules have seen that the old slot is there, and that id and frames of the new one are free.
        let gone = unsafe { edit(space, &mut editor, decision, shared.limits.page_shift) };
        space.generation += shared.limits.nr_address_spaces as u64;
        shared.current.publish(work);
        writer.publications += 1;
        // SAFETY: none of these is current any more. Without hooks there is no release.
        unsafe {
            writer.replaced.drain(..).for_each(|object| writer.lane.retire(object));
            writer.lane.retire(object_of(base.cast()));
            gone.into_iter().for_each(|record| writer.lane.retire(Record::object(record)));
        }
        self.in_step = false;
        self.settle(false);
        self.drain();
        Ok(())
    }
}

/// Edits a working copy, and gives the record that it has let go of.
///
/// # Safety
/// As `Space::add`, `remove` and `replace`.
#[inline(always)]
unsafe fn edit(space: &mut Space, editor: &mut Editor, decision: Decision, shift: u32) -> Option<NonNull<Record>> {
    // SAFETY: the caller's promise.
    unsafe {
        match decision {
            Decision::Nothing => None,
            Decision::Create(slot) => {
                let record = Record::create(editor.pool, editor.stamp, slot);
                space.add(editor, record, shift);
                None
            }
            Decision::Delete(old) => {
                space.remove(editor, old, shift);
                Some(old)
            }
            Decision::Replace { old, new } => {
                let record = Record::create(editor.pool, editor.stamp, new);
                space.replace(editor, old, record, shift);
                Some(old)
            }
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The journal of an update: the changes of each slot since the base, and what they amount to.
//!
//! Knows records and snapshots; not in which order calls are made, nor who is told. There is one entry for each slot
//! that was touched, whatever the number of its changes. A record that the update makes carries its slot's entry as its
//! stamp, which is how a second change of the slot finds it. An entry is never taken out and its number never used
//! again, and no entry refers to another: what became of a slot's frames is looked up in the result.
//!
//! **Kinds** ([`Journal::changes`]) are a pure function of the entries and the result. They say what a hook can rely
//! on: SPLIT only where `old_slot` lives on and has a RESIZE of its own, MERGE only where `new_slot` has a RESIZE of
//! its own and covers `old_slot`. Everything else is a CREATE or a DELETE.

use crate::error::{Errno, Result};
use crate::hooks::Kind;
use crate::index::node::Baseline;
use crate::index::Stamp;
use crate::slot::{AsId, AsIds, Gfn, Memslot, GUEST_MEMFD, READONLY};
use crate::snapshot::{PublishedRef, Record};
use std::ptr::NonNull;

/// What one slot has gone through.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// The slot in the base; none where the update made it.
    pub(crate) before: Option<NonNull<Record>>,
    /// The slot in the working copy; none where it has ended. The same record as before: nothing has changed.
    pub(crate) after: Option<NonNull<Record>>,
    /// Of a slot that was cut out of another: that one in the base, where it was there.
    cut_from: Option<NonNull<Record>>,
    /// Whether the slot ended by a merge.
    merged: bool,
    /// Which step of the update touched the slot first.
    pub(crate) step: usize,
}

// SAFETY: the records belong to the table whose update lock protects the journal.
unsafe impl Send for Entry {}

impl Entry {
    fn is_change(&self) -> bool {
        self.before != self.after
    }

    /// The slot that the entry is about, as it is afterwards or as it was.
    pub(crate) fn record(&self) -> Option<NonNull<Record>> {
        self.after.or(self.before)
    }
}

/// What the changes of one slot amount to.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) old: Option<NonNull<Record>>,
    pub(crate) new: Option<NonNull<Record>>,
    /// Whether readers may have derived something from the old slot that stops being true.
    pub(crate) flushes: bool,
    pub(crate) step: usize,
}

/// See [`Journal::tally`].
pub(crate) struct Tally {
    /// Bit i: something has changed in address space i.
    pub(crate) spaces: AsIds,
    /// Records of the base that are not part of the result.
    pub(crate) records: usize,
}

pub(crate) struct Journal {
    /// The first entry's number.
    first: u64,
    entries: Vec<Entry>,
    /// Whether slots that end are told of before all others.
    endings_first: bool,
}

/// Entries that a journal keeps room for between updates.
const ROOM_KEPT: usize = 16 << 10;

impl Journal {
    /// An empty journal. `entries` is the memory of an earlier one; `first` is larger than the stamp of any record.
    pub(crate) fn new(first: u64, mut entries: Vec<Entry>) -> Journal {
        entries.clear();
        Journal { first, entries, endings_first: false }
    }

    /// The memory, for the next one.
    pub(crate) fn into_memory(mut self) -> Vec<Entry> {
        self.entries.clear();
        self.entries.shrink_to(ROOM_KEPT);
        self.entries
    }

    /// Room for so many more entries.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn reserve(&mut self, entries: usize) -> Result<()> {
        self.entries.try_reserve(entries).map_err(|_| Errno::ENOMEM)
    }

    /// What the record of the next entry is stamped with.
    pub(crate) fn next_stamp(&self) -> Stamp {
        Stamp(self.first + self.entries.len() as u64)
    }

    /// The entry of a record that this update made.
    fn find(&self, record: NonNull<Record>) -> Option<usize> {
        // SAFETY: records of the base and of the working copy are alive.
        let Stamp(stamp) = unsafe { record.as_ref() }.stamp;
        let index = usize::try_from(stamp.checked_sub(self.first)?).ok()?;
        self.entries.get(index).filter(|entry| entry.after == Some(record)).map(|_| index)
    }

    pub(crate) fn entry(&self, record: NonNull<Record>) -> Option<&Entry> {
        self.find(record).map(|index| &self.entries[index])
    }

    // ---- what happens to a slot ----

    /// A slot that was not there, whose record is stamped with `next_stamp`. `cut_from`: see [`Journal::origin`].
    pub(crate) fn created(&mut self, new: NonNull<Record>, cut_from: Option<NonNull<Record>>, step: usize) {
        self.entries.push(Entry { before: None, after: Some(new), cut_from, merged: false, step });
    }

    /// A slot has ended. True where its record is this update's own, and now in nobody's use.
    pub(crate) fn ended(&mut self, record: NonNull<Record>, merged: bool, step: usize) -> bool {
        match self.find(record) {
            Some(index) => {
                let entry = &mut self.entries[index];
                (entry.after, entry.merged) = (None, merged);
                true
            }
            None => {
                self.entries.push(Entry { before: Some(record), after: None, cut_from: None, merged, step });
                false
            }
        }
    }

    /// The stamp that a slot's next record gets.
    pub(crate) fn stamp_of(&self, record: NonNull<Record>) -> Stamp {
        // SAFETY: as in find().
        self.find(record).map_or_else(|| self.next_stamp(), |_| unsafe { record.as_ref() }.stamp)
    }

    /// The record that the slot had in the base, where this update has changed it since.
    pub(crate) fn before(&self, record: NonNull<Record>) -> Option<NonNull<Record>> {
        self.entry(record)?.before
    }

    /// A slot has another record now: one with `stamp_of` the old one, or the one that it had in the base. True where
    /// the old record is this update's own, and now in nobody's use.
    pub(crate) fn changed(&mut self, old: NonNull<Record>, new: NonNull<Record>, step: usize) -> bool {
        match self.find(old) {
            Some(index) => {
                self.entries[index].after = Some(new);
                true
            }
            None => {
                self.entries.push(Entry { before: Some(old), after: Some(new), cut_from: None, merged: false, step });
                false
            }
        }
    }

    /// The slot of the base that a slot is, or was cut out of.
    pub(crate) fn origin(&self, record: NonNull<Record>) -> Option<NonNull<Record>> {
        match self.entry(record) {
            Some(entry) => entry.before.or(entry.cut_from),
            None => Some(record),
        }
    }

    /// From here on, slots that end are told of before all others: so hooks never see two slots in one place.
    pub(crate) fn tell_endings_first(&mut self) {
        self.endings_first = true;
    }

    // ---- the outcome ----

    /// The entries in which something has changed, in the order in which hooks are told.
    pub(crate) fn iter(&self) -> Changed<'_> {
        Changed { entries: &self.entries, index: 0, endings_first: self.endings_first, endings: self.endings_first }
    }

    /// The same, in the order in which the slots were first touched.
    #[inline(always)]
    pub(crate) fn each_changed(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_change())
    }

    /// What has to be known before an update is published, counted in one go.
    #[inline(always)]
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally { spaces: AsIds::default(), records: 0 };
        for entry in self.each_changed() {
            tally.records += entry.before.is_some() as usize;
            if let Some(record) = entry.record() {
                // SAFETY: as in find().
                tally.spaces.insert(unsafe { record.as_ref() }.slot.as_id);
            }
        }
        tally
    }

    /// What hooks are told of, where the update leads to `result`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn changes(&self, result: PublishedRef, page_shift: u32) -> Result<Vec<Outcome>> {
        let fold = Fold { journal: self, result, page_shift };
        let mut changes = Vec::new();
        changes.try_reserve_exact(self.iter().count()).map_err(|_| Errno::ENOMEM)?;
        changes.extend(self.iter().map(|entry| fold.outcome(entry)));
        Ok(changes)
    }
}

/// See [`Journal::iter`].
#[derive(Clone)]
pub(crate) struct Changed<'a> {
    entries: &'a [Entry],
    index: usize,
    endings_first: bool,
    /// In the first of two rounds, which is about slots that ended.
    endings: bool,
}

impl<'a> Iterator for Changed<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        loop {
            let Some(entry) = self.entries.get(self.index) else {
                if !self.endings {
                    return None;
                }
                (self.index, self.endings) = (0, false);
                continue;
            };
            self.index += 1;
            let in_round = !self.endings_first || self.endings == entry.after.is_none();
            if in_round && entry.is_change() {
                return Some(entry);
            }
        }
    }
}

/// A journal and what it led to.
struct Fold<'a> {
    journal: &'a Journal,
    result: PublishedRef<'a>,
    page_shift: u32,
}

impl<'a> Fold<'a> {
    fn outcome(&self, entry: &Entry) -> Outcome {
        let (kind, old, new) = match (entry.before, entry.after) {
            (Some(before), Some(after)) => {
                (kind_of_change(self.slot(before), self.slot(after)), Some(before), Some(after))
            }
            (Some(before), None) => match self.heir(before).filter(|_| entry.merged) {
                Some(heir) => (Kind::Merge, Some(before), Some(heir)),
                None => (Kind::Delete, Some(before), None),
            },
            (None, after) => match (entry.cut_from, after) {
                (Some(from), Some(piece)) if self.is_split(from, piece) => (Kind::Split, Some(from), after),
                (from, _) => (Kind::Create, from, after),
            },
        };
        let flushes = match kind {
            Kind::Delete | Kind::Move => true,
            Kind::Create | Kind::Split => false,
            Kind::FlagsOnly | Kind::Resize | Kind::Merge => old.is_some_and(|old| !self.keeps_memory(self.slot(old))),
        };
        Outcome { kind, old, new, flushes, step: entry.step }
    }

    fn slot(&self, record: NonNull<Record>) -> &'a Memslot {
        // SAFETY: records of the base and the result are alive as long as the result is borrowed: the update lock's
        // holder frees neither meanwhile.
        unsafe { &record.as_ref().slot }
    }

    /// Of a slot that ended by a merge: the one that has all its frames now, was there before, and has another size.
    fn heir(&self, ended: NonNull<Record>) -> Option<NonNull<Record>> {
        let old = self.slot(ended);
        let heir = self.at(old.as_id, old.base_gfn)?;
        let covers = self.covers(self.slot(heir), old) && self.slot(heir).flags == old.flags;
        (covers && self.is_resized(self.journal.entry(heir)?)).then_some(heir)
    }

    /// Whether a piece lies where it lay in the slot that it was cut from, which lives on with another size.
    fn is_split(&self, from: NonNull<Record>, piece: NonNull<Record>) -> bool {
        let old = self.slot(from);
        // SAFETY: the result is alive.
        let now = self.result.space(old.as_id).and_then(|space| unsafe { space.find_id(old.id) });
        let lives_on = now.and_then(|now| self.journal.entry(now)).filter(|entry| entry.before == Some(from));
        lives_on.is_some_and(|entry| self.is_resized(entry)) && self.covers(old, self.slot(piece))
    }

    fn is_resized(&self, entry: &Entry) -> bool {
        match (entry.before, entry.after) {
            (Some(before), Some(after)) => self.slot(before).npages != self.slot(after).npages,
            _ => false,
        }
    }

    /// Whether all frames of `part` are in `whole`, with the same memory.
    fn covers(&self, whole: &Memslot, part: &Memslot) -> bool {
        let hva = whole.hva_of(part.base_gfn, self.page_shift);
        whole.contains(part.base_gfn) && part.end_gfn() <= whole.end_gfn() && hva == part.userspace_addr
    }

    /// Whether every frame of a slot has the same memory in the result, and may be used as before.
    fn keeps_memory(&self, old: &Memslot) -> bool {
        let mut gfn = old.base_gfn;
        while gfn < old.end_gfn() {
            let Some(now) = self.at(old.as_id, gfn).map(|record| self.slot(record)) else { return false };
            let less_access = now.flags & !old.flags & (READONLY | GUEST_MEMFD) != 0;
            if less_access || now.hva_of(gfn, self.page_shift) != old.hva_of(gfn, self.page_shift) {
                return false;
            }
            gfn = now.end_gfn();
        }
        true
    }

    /// The slot that holds a frame in the result.
    fn at(&self, as_id: AsId, gfn: Gfn) -> Option<NonNull<Record>> {
        // SAFETY: the result is alive.
        unsafe { self.result.space(as_id)?.find_gfn::<Baseline>(gfn) }.map(|found| found.record)
    }
}

fn kind_of_change(old: &Memslot, new: &Memslot) -> Kind {
    if old.npages != new.npages {
        return Kind::Resize;
    }
    match old.base_gfn == new.base_gfn {
        true => Kind::FlagsOnly,
        false => Kind::Move,
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks that write down what they are told, in the model's words, and refuse where they are told to.
//!
//! Judges nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use memslots::{Config, Errno, Hooks, Hva, Memslot, Memslots};

use crate::library::{config, seen};
use crate::model::{Limits, Slot};
use crate::update::{Change, Kind};

/// One call of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the hooks' names
pub enum Event {
    Flush(Slot),
    Prepare(Change),
    Cancel(Change),
    Commit(Change),
    Release(Slot),
    Unmap { hva: u64, size: u64 },
}

/// What was heard, and how many changes more are agreed to.
#[derive(Debug)]
pub struct Notes {
    events: Mutex<Vec<Event>>,
    agrees_to: AtomicUsize,
}

impl Notes {
    /// Everything since the last time.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    /// Refuses, with EBUSY, what comes after so many changes; None: nothing.
    pub fn agree_to(&self, changes: Option<usize>) {
        self.agrees_to.store(changes.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    fn add(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn agree(&self) -> Result<(), Errno> {
        match self.agrees_to.load(Ordering::Relaxed) {
            0 => return Err(Errno::EBUSY),
            usize::MAX => {}
            left => self.agrees_to.store(left - 1, Ordering::Relaxed),
        }
        Ok(())
    }
}

/// An empty table with hooks, and what they write down.
pub fn table(limits: &Limits, flushes: bool) -> (Memslots, Arc<Notes>) {
    let notes = Arc::new(Notes { events: Mutex::default(), agrees_to: AtomicUsize::new(usize::MAX) });
    let hooks: Option<Box<dyn Hooks>> = Some(Box::new(Listener { notes: notes.clone(), flushes }));
    (Memslots::new(Config { hooks, ..config(limits) }).expect("a table"), notes)
}

struct Listener {
    notes: Arc<Notes>,
    flushes: bool,
}

fn in_our_words(change: &memslots::Change<'_>) -> Change {
    let kind = match change.kind {
        memslots::Kind::Create => Kind::Create,
        memslots::Kind::Delete => Kind::Delete,
        memslots::Kind::Move => Kind::Move,
        memslots::Kind::FlagsOnly => Kind::FlagsOnly,
        memslots::Kind::Resize => Kind::Resize,
        memslots::Kind::Split => Kind::Split,
        memslots::Kind::Merge => Kind::Merge,
    };
    Change { kind, old: change.old_slot.map(seen), new: change.new_slot.map(seen) }
}

impl Hooks for Listener {
    fn wants_flush(&self) -> bool {
        self.flushes
    }

    fn flush(&self, invalid: &Memslot) {
        self.notes.add(Event::Flush(seen(invalid)));
    }

    fn prepare(&self, change: &memslots::Change<'_>) -> Result<(), Errno> {
        self.notes.agree()?;
        self.notes.add(Event::Prepare(in_our_words(change)));
        Ok(())
    }

    fn cancel(&self, change: &memslots::Change<'_>) {
        self.notes.add(Event::Cancel(in_our_words(change)));
    }

    fn commit(&self, change: &memslots::Change<'_>) {
        self.notes.add(Event::Commit(in_our_words(change)));
    }

    fn release(&self, gone: &Memslot) {
        self.notes.add(Event::Release(seen(gone)));
    }

    fn wants_unmap(&self) -> bool {
        true
    }

    fn unmap(&self, hva: Hva, size: u64) {
        self.notes.add(Event::Unmap { hva: hva.0, size });
    }
}

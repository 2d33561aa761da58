// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reader that opens sections, beside an updater that replaces what it reads, takes the reader's pin and frees.
//!
//! The epochs are written down here as crossbeam-epoch has them, as small as they can be: a global epoch that advances
//! where every pin is of it, and memory that is free two steps after it was retired.

use crate::pin::{take_idle, KeptPin, Pin};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicU64, AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;

/// The reader's own pin and its spare one.
const PINS: usize = 2;

#[derive(Default)]
struct Epochs {
    global: AtomicU64,
    /// Twice the epoch and one more; 0 where it is not pinned.
    pins: [AtomicU64; PINS],
}

impl Epochs {
    /// A step, where every pin is of the current epoch.
    fn advance(&self) {
        let epoch = self.global.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for pin in &self.pins {
            let pinned = pin.load(Ordering::Relaxed);
            if pinned != 0 && pinned != 2 * epoch + 1 {
                return;
            }
        }
        fence(Ordering::Acquire);
        self.global.store(epoch + 1, Ordering::Release);
    }

    /// The epoch of what is retired now.
    fn retire(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.global.load(Ordering::Relaxed)
    }

    fn may_free(&self, retired: u64) -> bool {
        self.global.load(Ordering::Acquire) >= retired + 2
    }
}

struct ModelPin {
    epochs: Arc<Epochs>,
    index: usize,
    is_pinned: bool,
}

impl Pin for ModelPin {
    fn renew(&mut self) {
        let pinned = 2 * self.epochs.global.load(Ordering::Relaxed) + 1;
        let pin = &self.epochs.pins[self.index];
        if std::mem::replace(&mut self.is_pinned, true) {
            pin.store(pinned, Ordering::Release);
        } else {
            pin.store(pinned, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    fn give_up(&mut self) {
        self.is_pinned = false;
        self.epochs.pins[self.index].store(0, Ordering::Release);
    }
}

/// Two publications, of which the first is replaced by the second.
struct World {
    epochs: Arc<Epochs>,
    reader: KeptPin<ModelPin>,
    root: AtomicUsize,
    publications: [UnsafeCell<u32>; 2],
}

impl World {
    fn new() -> World {
        let epochs = Arc::new(Epochs::default());
        let pin = |index| ModelPin { epochs: epochs.clone(), index, is_pinned: false };
        let mut own = pin(0);
        own.renew();
        World {
            reader: KeptPin::new(own, pin(1), true),
            epochs: epochs.clone(),
            root: AtomicUsize::new(0),
            publications: [UnsafeCell::new(1), UnsafeCell::new(1)],
        }
    }

    fn read(&self) {
        // SAFETY: one thread is the reader.
        unsafe { self.reader.enter(1) };
        let root = self.root.load(Ordering::Acquire);
        self.publications[root].with(|publication| {
            // SAFETY: what the model is about: loom says where somebody frees meanwhile.
            assert_eq!(unsafe { *publication }, 1, "freed under a reader");
        });
        // SAFETY: as above.
        unsafe { self.reader.leave() };
    }

    fn take_idle(&self) {
        // SAFETY: one caller at a time.
        unsafe { take_idle(std::iter::once(&self.reader)) };
    }

    /// Frees the first publication, where the epoch says that nobody can be there.
    fn free_if_ripe(&self, retired: u64) -> bool {
        let ripe = self.epochs.may_free(retired);
        if ripe {
            // SAFETY: see read().
            self.publications[0].with_mut(|publication| unsafe { *publication = 0 });
        }
        ripe
    }
}

/// Some sections beside one update that frees what it has replaced as soon as it may.
pub fn sections_beside_an_update(sections: usize) {
    let mut model = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS goes deeper.
    model.preemption_bound.get_or_insert(3);
    model.check(move || {
        let world = Arc::new(World::new());
        let reader = thread::spawn({
            let world = world.clone();
            move || (0..sections).for_each(|_| world.read())
        });
        world.root.store(1, Ordering::Release);
        let retired = world.epochs.retire();
        world.take_idle();
        world.epochs.advance();
        world.epochs.advance();
        let freed = world.free_if_ripe(retired);
        reader.join().expect("a reader");
        // An idle reader is not in the way.
        world.take_idle();
        world.epochs.advance();
        world.epochs.advance();
        assert!(freed || world.free_if_ripe(retired), "an idle reader holds the epoch back");
    });
}

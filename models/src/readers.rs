// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reader that opens sections, beside an updater that replaces what it reads, takes the reader's pin and frees.
//!
//! The epochs are written down here as crossbeam-epoch has them, as small as they can be: a global epoch that advances
//! where every pin is of it, and memory that is free two steps after it was retired.

use crate::pin::{take_idle, Hold, KeptPin, Pin};
use crate::sync::{makes, Mistake};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicU64, AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;

#[derive(Default)]
struct Epochs {
    global: AtomicU64,
    /// The reader's: twice the epoch and one more; 0 where it is not pinned.
    pin: AtomicU64,
    holds: AtomicUsize,
}

impl Epochs {
    /// A step, where every pin is of the current epoch.
    fn advance(&self) {
        let epoch = self.global.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let pinned = self.pin.load(Ordering::Relaxed);
        if pinned != 0 && pinned != 2 * epoch + 1 {
            return;
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
        let ripe = self.global.load(Ordering::Acquire) >= retired + 2;
        fence(Ordering::SeqCst);
        ripe && self.holds.load(Ordering::Acquire) == 0
    }
}

struct ModelHold(Arc<Epochs>);

impl Hold for ModelHold {
    fn begin(&self) {
        self.0.holds.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn end(&self) {
        self.0.holds.fetch_sub(1, Ordering::Release);
    }
}

struct ModelPin {
    epochs: Arc<Epochs>,
    is_pinned: bool,
}

impl ModelPin {
    fn new(epochs: &Arc<Epochs>) -> ModelPin {
        let mut pin = ModelPin { epochs: epochs.clone(), is_pinned: false };
        pin.renew();
        pin
    }
}

impl Pin for ModelPin {
    fn renew(&mut self) {
        let pinned = 2 * self.epochs.global.load(Ordering::Relaxed) + 1;
        let pin = &self.epochs.pin;
        if std::mem::replace(&mut self.is_pinned, true) {
            pin.store(pinned, Ordering::Release);
            if !makes(Mistake::NoFenceAfterRepin) {
                fence(Ordering::Acquire);
            }
        } else {
            pin.store(pinned, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    fn give_up(&mut self) {
        self.is_pinned = false;
        self.epochs.pin.store(0, Ordering::Release);
    }
}

/// Publications, each of which is replaced by the next.
struct World {
    epochs: Arc<Epochs>,
    reader: KeptPin<ModelPin, ModelHold>,
    root: AtomicUsize,
    publications: [UnsafeCell<u32>; UPDATES + 1],
}

impl World {
    fn new() -> World {
        let epochs = Arc::new(Epochs::default());
        World {
            reader: KeptPin::new(ModelPin::new(&epochs), ModelHold(epochs.clone()), true),
            epochs: epochs.clone(),
            root: AtomicUsize::new(0),
            publications: std::array::from_fn(|_| UnsafeCell::new(1)),
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

    /// Publishes the next publication, and retires the one before it. Gives its epoch.
    fn update(&self, next: usize) -> u64 {
        self.root.store(next, Ordering::Release);
        self.epochs.retire()
    }

    /// Frees a publication, where the epoch says that nobody can be there.
    fn free_if_ripe(&self, publication: usize, retired: u64) -> bool {
        let ripe = self.epochs.may_free(retired);
        if ripe {
            // SAFETY: see read().
            self.publications[publication].with_mut(|publication| unsafe { *publication = 0 });
        }
        ripe
    }
}

const UPDATES: usize = 2;

/// Some sections beside updates that free what they have replaced as soon as they may.
pub fn sections_beside_updates(sections: usize) {
    let mut model = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS goes deeper.
    model.preemption_bound.get_or_insert(3);
    model.check(move || {
        let world = Arc::new(World::new());
        let reader = thread::spawn({
            let world = world.clone();
            move || (0..sections).for_each(|_| world.read())
        });
        let retired = world.update(1);
        world.take_idle();
        let retired_next = world.update(2);
        world.epochs.advance();
        world.epochs.advance();
        let freed = world.free_if_ripe(0, retired) & world.free_if_ripe(1, retired_next);
        reader.join().expect("a reader");
        // An idle reader is not in the way.
        world.take_idle();
        world.epochs.advance();
        world.epochs.advance();
        assert!(freed || world.epochs.may_free(retired_next), "an idle reader holds the epoch back");
    });
}

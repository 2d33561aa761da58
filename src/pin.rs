// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pin that holds the epoch back for a reader, kept from one section to the next.
//!
//! Does not know what an epoch is. Checked by `models/`, which compiles this file with primitives of its own
//! (`sync.rs`).
//!
//! A reader that pins the epoch for each section pays for a memory fence each time, and now and then for a collection.
//! So the pin stays. At the beginning of a section the reader moves it to the current epoch, which takes no fence since
//! it was pinned all along; at the end it only says that it is idle. But an idle reader would hold the epoch back for
//! ever. An updater that needs the epoch to advance therefore takes the pins of idle readers away:
//!
//! 1. It *claims* the pins of readers that look idle.
//! 2. It runs the heavy fence. A reader that has not seen the claim by then has said that it is in a section.
//! 3. It looks which readers are idle indeed, and *takes* their pins. The others keep theirs.
//! 4. It gives the taken pins up, and says that they are *gone*.
//!
//! A reader that comes back meets one of these. A claim it takes back, by an exchange that one of the two wins. A pin
//! that is gone it pins anew, at the usual price. While the updater is at a taken pin, the reader does without one and
//! puts a *hold* on all freeing until its section ends: it never waits. That takes an updater which is interrupted
//! between two of its instructions, so it does not matter how much a hold holds up.

use crate::sync::{
    heavy_fence, light_fence, makes, spin, AtomicU64, AtomicU8, Mistake, Ordering, UnsafeCell, PATIENCE,
};

/// One participant's pin on the epoch.
pub(crate) trait Pin {
    /// Pins the current epoch, or moves there what is pinned.
    fn renew(&mut self);

    /// Gives the pin up.
    fn give_up(&mut self);

    /// For an updater that has just given the pin up: what can be done now so that `renew` need not do it.
    fn prepare(&mut self) {}
}

/// What a section without a pin does. A thread that frees memory sees that the section has begun, or else the section
/// sees all that was published before.
pub(crate) trait Hold {
    /// From here on nothing is freed.
    fn begin(&self);

    /// The section is over.
    fn end(&self);
}

/// The reader's, and pinned.
const KEPT: u8 = 0;
/// As `KEPT`, but an updater wants it.
const CLAIMED: u8 = 1;
/// An updater's.
const TAKEN: u8 = 2;
/// The reader's, and not pinned.
const GONE: u8 = 3;

/// What the end of a section gives up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Nothing,
    Pin,
    Hold,
}

pub(crate) struct KeptPin<P, H> {
    /// Who has a section open; 0: nobody. The reader stores.
    open: AtomicU64,
    /// Whose the pin is.
    state: AtomicU8,
    /// The reader's.
    at_end: UnsafeCell<AtEnd>,
    pin: UnsafeCell<P>,
    hold: H,
}

// SAFETY: the protocol above says whose the pin is at any time, and all else is the reader's or atomic; pins have no
// tie to a thread.
unsafe impl<P: Send, H: Sync> Sync for KeptPin<P, H> {}

impl<P: Pin, H: Hold> KeptPin<P, H> {
    /// Where it `keeps` its pin, that is pinned. Otherwise each section pins, and no updater may ever claim it.
    pub(crate) fn new(mut pin: P, hold: H, keeps: bool) -> Self {
        if !keeps {
            pin.give_up();
        }
        KeptPin {
            open: AtomicU64::new(0),
            state: AtomicU8::new(KEPT),
            at_end: UnsafeCell::new(if keeps { AtEnd::Nothing } else { AtEnd::Pin }),
            pin: UnsafeCell::new(pin),
            hold,
        }
    }

    /// Who has a section open; 0: nobody. Whether that is the calling thread is exact.
    #[inline(always)]
    pub(crate) fn open_by(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    // ---- the reader ----

    /// Opens a section of `who`, which is not 0. What is published now or later stays until it ends.
    ///
    /// # Safety
    /// The reader's thread; no section is open.
    #[inline(always)]
    pub(crate) unsafe fn enter(&self, who: u64) {
        let too_early = makes(Mistake::StateBeforeOpen).then(|| self.state.load(Ordering::Acquire));
        self.open.store(who, Ordering::Relaxed);
        if !makes(Mistake::NoLightFence) {
            light_fence();
        }
        match too_early.unwrap_or_else(|| self.state.load(Ordering::Acquire)) {
            // SAFETY: the reader's: a claim that comes now finds the section open.
            KEPT => self.pin.with_mut(|pin| unsafe { (*pin).renew() }),
            // SAFETY: the caller's promise.
            _ => unsafe { self.come_back() },
        }
    }

    /// Finds a pin that an updater has claimed, or taken.
    ///
    /// # Safety
    /// As `enter`.
    #[cold]
    unsafe fn come_back(&self) {
        for _ in 0..PATIENCE {
            match self.state.load(Ordering::Acquire) {
                CLAIMED if !self.take_back() => {}
                TAKEN => spin(),
                _ => {
                    // It is gone, or the claim is: either way the reader's.
                    // SAFETY: as just said.
                    self.pin.with_mut(|pin| unsafe { (*pin).renew() });
                    return self.state.store(KEPT, Ordering::Relaxed);
                }
            }
        }
        if !makes(Mistake::NoHold) {
            self.hold.begin();
            // SAFETY: the reader's.
            self.at_end.with_mut(|at_end| unsafe { *at_end = AtEnd::Hold });
        }
    }

    /// Whether a claim is off, since the reader is back.
    fn take_back(&self) -> bool {
        if makes(Mistake::TakesWithoutAsking) {
            self.state.store(KEPT, Ordering::Relaxed);
            return true;
        }
        self.state.compare_exchange(CLAIMED, KEPT, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Ends the section.
    ///
    /// # Safety
    /// The reader's thread; a section is open.
    #[inline(always)]
    pub(crate) unsafe fn leave(&self) {
        // SAFETY: the reader's.
        if self.at_end.with_mut(|at_end| unsafe { *at_end }) != AtEnd::Nothing {
            // SAFETY: as above.
            unsafe { self.give_up() };
        }
        // What the section did comes before whatever an updater does that finds it ended.
        self.open.store(0, if makes(Mistake::RelaxedLeave) { Ordering::Relaxed } else { Ordering::Release });
    }

    /// # Safety
    /// As `leave`.
    #[inline(never)]
    unsafe fn give_up(&self) {
        // SAFETY: the reader's; its own pin is one that does not stay, and is never claimed.
        self.at_end.with_mut(|at_end| unsafe {
            match *at_end {
                AtEnd::Nothing => {}
                AtEnd::Pin => self.pin.with_mut(|pin| (*pin).give_up()),
                AtEnd::Hold => {
                    self.hold.end();
                    *at_end = AtEnd::Nothing;
                }
            }
        });
    }

    // ---- an updater ----

    fn is_claimed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CLAIMED
    }

    /// Claims the pin of a reader that looks idle. False where there is none.
    fn claim(&self) -> bool {
        self.open_by() == 0 && self.state.compare_exchange(KEPT, CLAIMED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// After the fence: takes a claimed pin, or lets the claim go.
    fn take(&self) {
        // What is idle now was so when it was claimed, or has seen the claim since.
        if self.open.load(Ordering::Acquire) != 0 && !makes(Mistake::NoLook) {
            return self.let_go();
        }
        if self.state.compare_exchange(CLAIMED, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: the updater's, until it says otherwise.
            self.pin.with_mut(|pin| unsafe {
                (*pin).give_up();
                (*pin).prepare();
            });
            let order = if makes(Mistake::RelaxedGone) { Ordering::Relaxed } else { Ordering::Release };
            self.state.store(GONE, order);
        }
    }

    fn let_go(&self) {
        // Where this fails the reader has taken it back.
        let _ = self.state.compare_exchange(CLAIMED, KEPT, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Takes the pins of idle readers away.
///
/// # Safety
/// One caller at a time, and the readers do not go meanwhile.
pub(crate) unsafe fn take_idle<'a, P: Pin + 'a, H: Hold + 'a>(
    readers: impl Iterator<Item = &'a KeptPin<P, H>> + Clone,
) {
    if readers.clone().filter(|reader| reader.claim()).count() == 0 {
        return;
    }
    let fenced = makes(Mistake::NoHeavyFence) || heavy_fence();
    for reader in readers.filter(|reader| reader.is_claimed()) {
        match fenced {
            true => reader.take(),
            false => reader.let_go(),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The current publication, which readers load, and the one place that stores it.
//!
//! Does not know who edits, nor when what is no longer current can be freed.
//!
//! `seq` is the publication's number, a multiple of `SEQ_STEP`, and never used twice. A publisher marks it BUSY, stores
//! the root, and stores the new number. A reader that remembers an answer with the number of the publication that gave
//! it may use it again while `seq` is that number, and never goes back in time: had it seen the new root by way of a
//! lookup, it would see `seq` BUSY or newer, since that was stored before the root.

use crate::slot::MAX_ADDRESS_SPACES;
use crate::snapshot::Published;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicPtr, AtomicU64, Ordering};

/// From one publication's number to the next. In between is room for the number of an address space, see `reader`.
pub(crate) const SEQ_STEP: u64 = MAX_ADDRESS_SPACES as u64;

/// In `seq` while another publication is about to take its place. Numbers stay below: no number and address space, not
/// even one that there cannot be, come to the same with it and without.
pub(crate) const BUSY: u64 = 1 << 62;

/// Numbers of one block. Tables take their publications' numbers from a process-wide counter, a block at a time.
const BLOCK: u64 = SEQ_STEP << 16;

/// The number of the publication that `seq` was last at, while another may be about to take its place.
pub(crate) fn settled(seq: u64) -> u64 {
    seq & !BUSY
}

/// How many publications ago `since` was current. At least so many where a block has ended in between.
pub(crate) fn publications_between(since: u64, now: u64) -> u64 {
    let (since, now) = (settled(since), settled(now));
    now.saturating_sub(since.max(now - now % BLOCK)) / SEQ_STEP
}

/// The next block of the process. Of 2^40 blocks none comes twice: at a million tables a second they last for twelve
/// days.
static NEXT_BLOCK: AtomicU64 = AtomicU64::new(1);

/// A table's supply of publication numbers, of which the process has each one once: a cache that is used with the wrong
/// table does not hit.
pub(crate) struct Numbers {
    next: u64,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        Numbers { next: Self::block() }
    }

    fn block() -> u64 {
        NEXT_BLOCK.fetch_add(1, Ordering::Relaxed) * BLOCK % BUSY
    }

    pub(crate) fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += SEQ_STEP;
        if self.next & (BLOCK - 1) == 0 {
            self.next = Self::block();
        }
        number
    }
}

/// The current publication. On lines of its own: all readers load from here, and only publishing stores.
#[repr(C, align(128))]
pub(crate) struct Current {
    /// First, at a fixed place: the C header's inline lookup loads it.
    pub(crate) seq: AtomicU64,
    root: AtomicPtr<Published>,
}

const _: () = assert!(std::mem::offset_of!(Current, seq) == 0);

impl Current {
    /// The first publication, with its number.
    pub(crate) fn new(mut root: NonNull<Published>, numbers: &mut Numbers) -> Self {
        let seq = numbers.take();
        // SAFETY: the caller has just made it, and is alone with it.
        unsafe { root.as_mut() }.seq = seq;
        Current { seq: AtomicU64::new(seq), root: AtomicPtr::new(root.as_ptr()) }
    }

    /// The current publication. It stays alive for as long as a section that was open at the call, or the caller holds
    /// the update lock.
    #[inline(always)]
    pub(crate) fn root(&self) -> NonNull<Published> {
        // SAFETY: there is always one.
        unsafe { NonNull::new_unchecked(self.root.load(Ordering::Acquire)) }
    }

    /// Makes `new` current and gives it its number. Under the update lock.
    pub(crate) fn publish(&self, mut new: NonNull<Published>, numbers: &mut Numbers) {
        let seq = numbers.take();
        // SAFETY: not published yet, so the update lock's holder is alone with it.
        unsafe { new.as_mut() }.seq = seq;
        self.seq.store(self.seq.load(Ordering::Relaxed) | BUSY, Ordering::Relaxed);
        // That before the root: see the head of this file.
        fence(Ordering::Release);
        self.root.store(new.as_ptr(), Ordering::Release);
        self.seq.store(seq, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_and_none_reaches_the_mark_above_them() {
        let mut tables: Vec<_> = (0..4).map(|_| Numbers::new()).collect();
        let takes = if cfg!(miri) { 100 } else { 2 * BLOCK / SEQ_STEP + 3 };
        let mut seen = std::collections::HashSet::new();
        for _ in 0..takes {
            for table in &mut tables {
                let number = table.take();
                assert!(number > 0 && number < BUSY && number % SEQ_STEP == 0);
                assert!(seen.insert(number), "{number} came again");
            }
        }
    }

    #[test]
    fn publications_are_counted_within_a_block() {
        assert_eq!(publications_between(3 * SEQ_STEP, BUSY + 5 * SEQ_STEP), 2);
        assert_eq!(publications_between(BLOCK - SEQ_STEP, 7 * BLOCK + 2 * SEQ_STEP), 2, "at least so many");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ledger of host memory that no slot maps any more, until no reader can use it either: for the `unmap` hook.
//!
//! Knows page numbers and bags; not slots, nor who is told. A page of host memory that a slot has ever mapped is mapped
//! by a slot of the current state, or stands here, once, or was given up. What a publication takes from the last slot
//! that mapped it comes here, under the number of the bag that the publication's retired memory goes into; what is
//! mapped again leaves. When that bag has been emptied, no reader is left that could reach the memory through any slot:
//! those that mapped it before were retired earlier.

use crate::error::{Errno, Result};
use crate::slot::HostPage;
use std::ops::Range;

/// Pages of host memory, under the number of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: HostPage,
    end: HostPage,
    bag: u64,
}

pub(crate) struct Ledger {
    /// In order, and none shares a page with another.
    pieces: Vec<Piece>,
}

impl Ledger {
    pub(crate) const fn new() -> Ledger {
        Ledger { pieces: Vec::new() }
    }

    /// Room for so many calls of `add` and `remove`, where pages that are added are not here before the first of them:
    /// n ranges that overlap as they like are 2n - 1 pieces at most, and a removal cuts one in two.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn reserve(&mut self, calls: usize) -> Result<()> {
        self.pieces.try_reserve(2 * calls).map_err(|_| Errno::ENOMEM)
    }

    /// The first piece that ends behind a page.
    fn first_behind(&self, page: HostPage) -> usize {
        self.pieces.partition_point(|piece| piece.end <= page)
    }

    /// Pages that no slot maps any more. Those that are here already, since two slots mapped them and went together,
    /// stay.
    pub(crate) fn add(&mut self, pages: Range<HostPage>, bag: u64) {
        let (mut start, mut index) = (pages.start, self.first_behind(pages.start));
        while start < pages.end {
            let next = self.pieces.get(index).copied().filter(|piece| piece.start < pages.end);
            let end = next.map_or(pages.end, |piece| piece.start);
            if start < end {
                self.insert(index, Piece { start, end, bag });
                index += 1;
            }
            start = next.map_or(pages.end, |piece| piece.end);
            index += 1;
        }
        self.check();
    }

    /// Pages that a slot maps again.
    pub(crate) fn remove(&mut self, pages: Range<HostPage>) {
        let (first, end) = (self.first_behind(pages.start), self.pieces.partition_point(|p| p.start < pages.end));
        if first >= end {
            return;
        }
        let before = Piece { end: pages.start, ..self.pieces[first] };
        let behind = Piece { start: pages.end, ..self.pieces[end - 1] };
        self.pieces.drain(first..end);
        for piece in [behind, before] {
            if piece.start < piece.end {
                self.insert(first, piece);
            }
        }
        self.check();
    }

    fn insert(&mut self, index: usize, piece: Piece) {
        debug_assert!(self.pieces.len() < self.pieces.capacity(), "room was reserved");
        self.pieces.insert(index, piece);
    }

    /// Whether something waits for a bag.
    pub(crate) fn has(&self, bag: u64) -> bool {
        self.pieces.iter().any(|piece| piece.bag == bag)
    }

    /// Gives up what waited for a bag up to this one, in the order of the pages.
    pub(crate) fn give_up(&mut self, up_to: u64, mut unmap: impl FnMut(Range<HostPage>)) {
        self.pieces.retain(|piece| {
            let waits = piece.bag > up_to;
            if !waits {
                unmap(piece.start..piece.end);
            }
            waits
        });
    }

    fn check(&self) {
        debug_assert!(self.pieces.iter().all(|piece| piece.start < piece.end), "an empty piece");
        debug_assert!(self.pieces.windows(2).all(|pair| pair[0].end <= pair[1].start), "pieces that meet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Against a map of pages.
    #[test]
    fn pages_are_here_once_and_leave_as_they_came() {
        let (mut ledger, mut pages) = (Ledger::new(), BTreeMap::new());
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for bag in 1..if cfg!(miri) { 200 } else { 20_000 } {
            let start = below(40);
            let range = start..start + 1 + below(8);
            let host_pages = HostPage(range.start)..HostPage(range.end);
            ledger.reserve(range.clone().count()).unwrap();
            match below(3) {
                0 => {
                    ledger.add(host_pages, bag);
                    range.for_each(|page| _ = pages.entry(page).or_insert(bag));
                }
                1 => {
                    ledger.remove(host_pages);
                    range.for_each(|page| _ = pages.remove(&page));
                }
                _ => {
                    let up_to = bag - below(8).min(bag);
                    ledger.give_up(up_to, |given| {
                        for page in given.start.0..given.end.0 {
                            assert!(pages.remove(&page).is_some_and(|bag| bag <= up_to), "page {page}");
                        }
                    });
                }
            }
            let here: Vec<_> =
                ledger.pieces.iter().flat_map(|p| (p.start.0..p.end.0).map(|page| (page, p.bag))).collect();
            assert!(here.into_iter().eq(pages.clone()));
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nothing is freed under a reader, whatever the schedule; and every mistake that one can make there is found.

use memslots_models::readers::sections_beside_updates;
use memslots_models::sync::{with_mistake, Mistake};
use std::panic::{catch_unwind, AssertUnwindSafe};

#[test]
fn nothing_is_freed_under_a_reader() {
    sections_beside_updates(2);
}

#[test]
fn every_mistake_is_found() {
    for mistake in [
        Mistake::NoLightFence,
        Mistake::StateBeforeOpen,
        Mistake::NoHeavyFence,
        Mistake::NoLook,
        Mistake::TakesWithoutAsking,
        Mistake::NoHold,
        Mistake::NoFenceAfterRepin,
        Mistake::RelaxedLeave,
        Mistake::RelaxedGone,
    ] {
        let found = catch_unwind(AssertUnwindSafe(|| with_mistake(mistake, || sections_beside_updates(2))));
        assert!(found.is_err(), "{mistake:?} goes unnoticed");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a table owes its owner: things that it had, has no more, and must give back once no reader can use them.
//!
//! A thing is a number: a page of host memory, or a slot's opaque. Time is counted in operations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// An account of things of one sort.
#[derive(Debug)]
pub struct Ledger {
    /// For messages.
    what: &'static str,
    held: BTreeSet<u64>,
    /// What was lost, and when.
    owed: BTreeMap<u64, u64>,
}

/// A thing in a message.
struct Thing(&'static str, u64);

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}", self.0, self.1)
    }
}

impl Ledger {
    /// An empty account.
    pub fn of(what: &'static str) -> Ledger {
        Ledger { what, held: BTreeSet::new(), owed: BTreeMap::new() }
    }

    /// From now on the table has these. What it had besides is owed; what it has again is not owed any more.
    pub fn holds(&mut self, held: BTreeSet<u64>, now: u64) {
        self.owed.extend(self.held.difference(&held).map(|thing| (*thing, now)));
        self.owed.retain(|thing, _| !held.contains(thing));
        self.held = held;
    }

    /// One is given back, while the oldest section that is open began at `oldest`.
    pub fn is_given(&mut self, thing: u64, oldest: Option<u64>) -> Result<(), String> {
        let named = Thing(self.what, thing);
        if self.held.contains(&thing) {
            return Err(format!("{named} was given back while the table has it"));
        }
        let lost = self.owed.remove(&thing).ok_or(format!("{named} was given back and was not owed"))?;
        match oldest {
            Some(begun) if begun < lost => Err(format!("{named} was given back while a section could use it")),
            _ => Ok(()),
        }
    }

    /// Nothing may be owed now.
    pub fn is_settled(&self) -> Result<(), String> {
        match self.owed.first_key_value() {
            None => Ok(()),
            Some((thing, _)) => {
                Err(format!("{} was not given back, and {} more", Thing(self.what, *thing), self.owed.len() - 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_lost() -> Ledger {
        let mut ledger = Ledger::of("page");
        ledger.holds(BTreeSet::from([1, 2, 3]), 10);
        ledger.holds(BTreeSet::from([3]), 20);
        ledger
    }

    #[test]
    fn each_loss_is_given_back_once() {
        let mut ledger = two_lost();
        assert!(ledger.is_settled().is_err());
        assert_eq!(ledger.is_given(1, None), Ok(()));
        assert!(ledger.is_given(1, None).is_err(), "once");
        assert!(ledger.is_given(3, None).is_err(), "it is held");
        assert!(ledger.is_given(7, None).is_err(), "it never was");
        assert_eq!(ledger.is_given(2, None), Ok(()));
        assert_eq!(ledger.is_settled(), Ok(()));
    }

    #[test]
    fn what_comes_back_is_not_owed() {
        let mut ledger = two_lost();
        ledger.holds(BTreeSet::from([1, 2]), 30);
        assert!(ledger.is_given(1, None).is_err());
        assert_eq!(ledger.is_given(3, None), Ok(()));
        assert_eq!(ledger.is_settled(), Ok(()));
    }

    #[test]
    fn only_sections_that_began_before_the_loss_are_in_the_way() {
        assert_eq!(two_lost().is_given(1, Some(20)), Ok(()));
        assert!(two_lost().is_given(1, Some(19)).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Updates: single ones, lists, transactions, and the replacement of a whole address space.
//!
//! Knows the rules, working copies and journals; not C, nor how an update is committed. Each of them stages changes and
//! gives what it has staged to `commit`.

mod list;
mod replace;
mod single;
mod staging;
mod transaction;

pub(crate) use single::single;
pub use transaction::Transaction;

use crate::error::Refused;
use crate::shared::{Shared, Updating};
use crate::slot::{AsId, Region};
use crate::trace::Op;
use staging::Staging;
use std::ffi::c_void;

/// Makes all changes or none, each held against what those before it leave.
///
/// # Errors
/// The first that is refused.
pub(crate) fn apply(
    shared: &Shared,
    regions: &[Region],
    opaque: impl Fn(usize) -> *mut c_void + Copy,
) -> Result<(), Refused> {
    by_list(shared, |lock| list::stage(lock, regions, opaque))
}

/// Makes the regions all that an address space has.
///
/// # Errors
/// The first region that is refused.
pub(crate) fn replace_all(
    shared: &Shared,
    as_id: AsId,
    regions: &[Region],
    opaque: impl Fn(usize) -> *mut c_void,
) -> Result<(), Refused> {
    by_list(shared, |lock| replace::stage(lock, as_id, regions, opaque))
}

/// An update by a list, with its lines in the trace.
fn by_list(shared: &Shared, stage: impl FnOnce(&mut Updating) -> Result<Staging, Refused>) -> Result<(), Refused> {
    let mut lock = shared.update()?;
    lock.trace(Op::Begin, Region::default, Ok(()));
    match stage(&mut lock) {
        Ok(staging) => staging.commit_traced(&mut lock),
        Err(refused) => {
            lock.trace(Op::Abort, Region::default, Ok(()));
            Err(refused)
        }
    }
}

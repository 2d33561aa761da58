// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memslot table of a virtual machine monitor.
//!
//! A VMM keeps, for each guest, a table of *memslots*: ranges of guest frames (gfn) backed by ranges of its own memory
//! (hva). This crate is that table: every change costs O(log n), any number of changes is seen at once or not at all,
//! readers never wait, and the rules and error numbers are those of Linux's KVM.
//!
//! ```
//! use memslots::{Access, AsId, Config, Gfn, Gpa, Hva, Memslots, Region, SlotId};
//!
//! let table = Memslots::new(Config::default())?;
//! let ram = Region { memory_size: 0x10_0000, userspace_addr: 0x7f00_0000_0000, ..Region::default() };
//! table.set_region(&ram, std::ptr::null_mut())?;
//!
//! let vcpu = table.reader()?; // one for each reading thread
//! let section = vcpu.lock(); // what is found stays valid until it is dropped
//! let slot = section.find_gfn(AsId(0), Gfn(0x42)).expect("mapped");
//! assert_eq!(slot.id, SlotId(0));
//! let (hva, left) = section.gpa_to_hva(AsId(0), Gpa(0x42_010), Access::Write)?;
//! assert_eq!((hva, left), (Hva(0x7f00_0004_2010), 0x10_0000 - 0x42_010));
//! # Ok::<(), memslots::Errno>(())
//! ```
//!
//! # Layers
//!
//! A module knows only those above it in this list, lowest first (a test reads it); a directory is one layer.
//! `docs/design.md` tells why.
//!
//! - `error`: error numbers, and which entry of a list was refused
//! - `slot`: what a memslot is, and what a request for one looks like
//! - `stats`: the figures of a table
//! - `cancel`: holding pthread_cancel() back
//! - `memory`: boxes whose allocation can fail
//! - `index`: the trees, the id table, and the pool that their nodes come from
//! - `snapshot`: every address space at one moment, and all questions that can be asked of it
//! - `change`: what a request means: KVM's rules
//! - `hooks`: what a table tells its owner
//! - `thread`: a thread's number
//! - `sync`: fences and atomics, where a model checker can put its own
//! - `pin`: a reader's pin on the epoch, kept between sections
//! - `epoch`: retired memory, grace periods, the releases that are due
//! - `presence`: readers and their sections
//! - `published`: the current publication
//! - `lock`: the update lock
//! - `working_copy`: a state that is being edited
//! - `journal`: the changes of each slot, and what they amount to
//! - `ledger`: host memory that no slot maps any more
//! - `plan`: from two states to the calls that KVM accepts
//! - `kvm`: the real VM behind a table
//! - `trace`: a line for every change
//! - `shared`: what a table, its updates and its readers have in common
//! - `commit`: the phases of an update, and the roll-back from each
//! - `update`: single updates, lists, transactions, replacement
//! - `reader`: sections, lookups, walks
//! - `table`: the table itself
//! - `capi`: the C functions

#[cfg(not(target_pointer_width = "64"))]
compile_error!("memslots is for 64-bit machines");

mod cancel;
mod capi;
mod change;
mod commit;
mod epoch;
mod error;
mod hooks;
mod index;
mod journal;
pub mod kvm;
mod ledger;
mod lock;
mod memory;
mod pin;
mod plan;
mod presence;
mod published;
mod reader;
mod shared;
mod slot;
mod snapshot;
mod stats;
mod sync;
mod table;
mod thread;
mod trace;
mod update;
mod working_copy;

pub use error::{Errno, Refused, Result};
pub use hooks::{Change, Hooks, Kind};
pub use plan::{between as plan, Difference, Step};
pub use reader::{HvaCache, Iter, Reader, ReaderStats, Section};
pub use slot::{
    Access, AsId, Gfn, Gpa, Hva, Memslot, Pages, Region, SlotId, GUEST_MEMFD, INVALID, LOG_DIRTY_PAGES,
    MAX_ADDRESS_SPACES, MAX_SLOT_PAGES, READONLY,
};
pub use stats::Stats;
pub use table::{Config, Memslots};
pub use update::Transaction;

/// The README's Rust example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

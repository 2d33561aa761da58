// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memslot table of a virtual machine monitor.
//!
//! A VMM keeps, for each guest, a table of *memslots*: ranges of guest frames (gfn) backed by ranges of its own memory (hva).
//! This crate is that table: every change costs O(log n), any number of changes is seen at once or not at all, readers never
//! wait, and the rules and error numbers are those of Linux's KVM.
//!
//! ```
//! use memslots::{Config, Gfn, Gpa, Access, Memslots, Region};
//!
//! let table = Memslots::new(Config::default())?;
//! let ram = Region { slot: 0, guest_phys_addr: 0, memory_size: 0x10_0000, userspace_addr: 0x7f00_0000_0000, ..Region::default() };
//! table.set_region(&ram, std::ptr::null_mut())?;
//!
//! let vcpu = table.reader()?; // one for each reading thread
//! let section = vcpu.lock(); // what is found stays valid until it is dropped
//! let slot = section.find_gfn(0, Gfn(0x42)).expect("mapped");
//! assert_eq!(slot.id, 0);
//! let (hva, left) = section.gpa_to_hva(0, Gpa(0x42_010), Access::Write)?;
//! assert_eq!((hva.0, left), (0x7f00_0004_2010, 0x10_0000 - 0x42_010));
//! # Ok::<(), memslots::Errno>(())
//! ```
//!
//! The rooms, each of which knows only those below it: `capi` (the C functions), `table`, `transaction`, `bulk`, `single`, `reader`, `kvm`,
//! `plan` and `trace`, `shared`, `change` (the rules), `epoch`, `snapshot`, `index`, `slot`. `docs/design.md` tells why.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("memslots is for 64-bit machines");

mod bulk;
mod capi;
mod change;
mod commit;
mod epoch;
mod hooks;
mod index;
pub mod kvm;
mod memory;
mod plan;
mod reader;
mod shared;
mod single;
mod slot;
mod snapshot;
mod table;
mod trace;
mod transaction;

pub use hooks::{Change, Hooks, Kind};
pub use plan::{between as plan, Difference, Step};
pub use reader::{HvaCache, Iter, Reader, ReaderStats, Section};
pub use slot::{
    Access, Errno, Gfn, Gpa, Hva, Memslot, Region, Result, GUEST_MEMFD, ID_ANY, INVALID, LOG_DIRTY_PAGES,
    MAX_ADDRESS_SPACES, MAX_SLOT_PAGES, READONLY,
};
pub use table::{Config, Memslots, Refused, Stats};
pub use transaction::Transaction;

/// The README's Rust example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

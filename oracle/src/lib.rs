// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the memslots library against a naive model and against a real KVM.
//!
//! One operation type ([`op`]) drives everything: [`world`] chooses operations, [`model`] says what KVM does with them
//! and [`update`] what hooks are told of it, [`library`] and [`real`] do them, [`watched`] does them with hooks that
//! listen, [`compare`] plays them side by side, [`shrink`] makes a failing sequence short. For tests and tools only;
//! nothing of it is shipped.

pub mod compare;
pub mod ledger;
pub mod library;
pub mod listener;
pub mod model;
pub mod op;
pub mod real;
pub mod run;
pub mod shrink;
pub mod update;
pub mod watched;
pub mod world;

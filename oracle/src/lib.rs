// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the memslots library against a naive model and against a real KVM.
//!
//! One operation type ([`op`]) drives everything: [`world`] chooses operations, [`model`] says what KVM does with
//! them, [`library`] and [`real`] do them, [`compare`] plays them side by side, [`shrink`] makes a failing sequence
//! short. For tests and tools only; nothing of it is shipped.

pub mod compare;
pub mod library;
pub mod model;
pub mod op;
pub mod real;
pub mod run;
pub mod shrink;
pub mod world;

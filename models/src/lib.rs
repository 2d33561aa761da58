// SPDX-License-Identifier: MIT OR Apache-2.0
//! Models: source files of the library, compiled with loom's primitives in the place of `crate::sync`, so that loom can
//! try every schedule of a few threads.
//!
//! A model that finds nothing proves nothing unless it would find something. So each can make mistakes on purpose, the
//! ones that `sync::Mistake` names, and the tests see that every one of them is found.

#[path = "../../src/pin.rs"]
pub(crate) mod pin;
pub mod sync;

pub mod readers;

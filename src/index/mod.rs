// SPDX-License-Identifier: MIT OR Apache-2.0
//! Persistent indexes: range trees and id tables whose nodes are shared between one snapshot and the next.
//!
//! Does not know what a memslot means, nor how snapshots are published. An update copies each node on its path once,
//! marks the copies with its stamp, and edits those in place from then on. The nodes that it replaced are only listed:
//! readers may still be on them, so nobody writes to them until a grace period has passed (`epoch.rs`).

pub(crate) mod id_table;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod range_tree;

use id_table::IdNode;
use node::Node;
use pool::{Object, Pool};
use std::ptr::NonNull;

/// Which update made an object. No two updates of a table have the same stamp, and an object's never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Stamp(pub(crate) u64);

/// The most objects that the change of one slot replaces: on each level of two trees a node and its neighbour, for an
/// entry taken out and one put in, and the path in the id table.
pub(crate) const REPLACED_PER_EDIT: usize = 2 * 2 * 3 * range_tree::MAX_LEVELS + 4 * id_table::MAX_LEVELS;

/// One update's right to change an index.
pub(crate) struct Editor<'a> {
    pub(crate) pool: &'a mut Pool,
    /// Nodes with this stamp were made by this update and nobody else can see them.
    pub(crate) stamp: Stamp,
    /// Where replaced nodes are listed; there is room for `REPLACED_PER_EDIT` of them. None: they stay in use
    /// elsewhere.
    pub(crate) replaced: Option<&'a mut Vec<Object>>,
    /// Where the first nodes go.
    pub(crate) nursery: Nursery,
}

/// The places of an address space's first nodes: one of ids, and one leaf of guest frames. They are part of the root,
/// so that one allocation and one copy serve for most of what a small space has. A node in here has no memory of its
/// own, and its head says so with 0 lines. It is the root of its index; when it outgrows its place it moves out, and
/// only an index that was empty comes in again.
#[derive(Clone, Copy, Default)]
pub(crate) struct Nursery {
    pub(crate) ids: Option<NonNull<IdNode>>,
    pub(crate) leaf: Option<NonNull<Node>>,
}

/// Entries that the leaf in a nursery has room for.
pub(crate) const NURSERY_CAP: usize = 16;

/// Lines of a nursery's places.
pub(crate) const NURSERY_LEAF_LINES: usize = node::node_lines(NURSERY_CAP);
pub(crate) const NURSERY_ID_LINES: usize = id_table::NODE_LINES;

/// What tree nodes, id nodes and roots start with.
#[repr(C)]
pub(crate) struct Head {
    pub(crate) stamp: Stamp,
    /// Size of the object.
    pub(crate) lines: u8,
    /// Height above the leaves.
    pub(crate) level: u8,
    /// Entries in use.
    pub(crate) len: u8,
    /// Entries that there is room for.
    pub(crate) cap: u8,
    canary: u32,
}

const CANARY: u32 = 0x6d65_6d73;

impl Head {
    pub(crate) fn new(stamp: Stamp, lines: usize, level: u8, cap: u8) -> Self {
        Head { stamp, lines: lines as u8, level, len: 0, cap, canary: CANARY }
    }

    /// Fails where freed memory is taken for an object.
    pub(crate) fn check(&self) {
        debug_assert_eq!(self.canary, CANARY, "not an object of this table, or one that was freed");
    }
}

/// The memory of an object that starts with a head.
///
/// # Safety
/// The object is alive.
pub(crate) unsafe fn object_of(head: NonNull<Head>) -> Object {
    // SAFETY: the caller's promise.
    let lines = unsafe { head.as_ref() }.lines;
    Object { memory: head.cast(), lines }
}

impl Editor<'_> {
    /// Whether this update made the object, and so may change it.
    pub(crate) fn owns(&self, head: &Head) -> bool {
        head.stamp == self.stamp
    }

    /// Gives up an object that the working copy no longer refers to. One that this update made is freed at once, for no
    /// reader has ever seen it; any other is listed as replaced.
    ///
    /// # Safety
    /// The object starts with a [`Head`], came from this editor's pool, and the working copy no longer refers to it.
    pub(crate) unsafe fn drop_object(&mut self, head: NonNull<Head>) {
        // SAFETY: alive until now, by the caller's promise.
        let (owned, object) = unsafe {
            head.as_ref().check();
            (self.owns(head.as_ref()), object_of(head))
        };
        if !owned {
            debug_assert!(object.lines > 0, "a nursery is copied with its root");
            if let Some(replaced) = &mut self.replaced {
                debug_assert!(replaced.len() < replaced.capacity(), "room was reserved");
                replaced.push(object);
            }
        } else if object.lines > 0 {
            // SAFETY: never published, and given up by the caller.
            unsafe { self.pool.free(object) };
        }
    }
}

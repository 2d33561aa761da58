// SPDX-License-Identifier: MIT OR Apache-2.0
//! Persistent indexes: range trees and id tables whose nodes are shared between one snapshot and the next.
//!
//! May not know what a memslot means, nor how snapshots are published. An update copies the nodes on its path
//! once, marks the copies with its stamp, and from then on edits them in place; the nodes that it replaced are
//! put aside for `epoch.rs`, since readers may still be on them.

pub(crate) mod id_table;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod range_tree;

use pool::Pool;
use std::cell::UnsafeCell;
use std::ptr::{null_mut, NonNull};

/// What every object of a table's pool starts with.
///
/// The link is the updating thread's alone; readers never look at it, so that it can change under them.
#[repr(C)]
pub(crate) struct Link {
    /// While the object lives: the stamp of the update that made it. Afterwards: the next one put aside.
    word: UnsafeCell<u64>,
}

impl Link {
    pub(crate) fn stamped(stamp: u64) -> Self {
        Link { word: UnsafeCell::new(stamp) }
    }

    /// The stamp of the update that made the object.
    ///
    /// # Safety
    /// Called by the updating thread, which holds the update lock.
    pub(crate) unsafe fn stamp(&self) -> u64 {
        // SAFETY: only the updating thread reads or writes the word.
        unsafe { *self.word.get() }
    }
}

/// What one update has replaced, through the objects' links, the last one first.
pub(crate) struct Stack {
    top: *mut Link,
}

impl Stack {
    pub(crate) const EMPTY: Stack = Stack { top: null_mut() };

    pub(crate) fn is_empty(&self) -> bool {
        self.top.is_null()
    }

    /// # Safety
    /// The updating thread's; the object starts with a link and is on no stack and in no chain.
    pub(crate) unsafe fn push(&mut self, object: NonNull<Link>) {
        // SAFETY: only the updating thread touches links.
        unsafe { *object.as_ref().word.get() = self.top as u64 };
        self.top = object.as_ptr();
    }

    pub(crate) fn pop(&mut self) -> Option<NonNull<Link>> {
        let top = NonNull::new(self.top)?;
        // SAFETY: what is on the stack is its own until it is taken from it.
        self.top = unsafe { *top.as_ref().word.get() } as *mut Link;
        Some(top)
    }
}

/// A chain of objects put aside, through their links: it takes no memory of its own, so that it cannot fail.
pub(crate) struct Chain {
    head: *mut Link,
    tail: *mut Link,
    pub(crate) count: usize,
}

impl Chain {
    pub(crate) const EMPTY: Chain = Chain { head: null_mut(), tail: null_mut(), count: 0 };

    /// Puts an object at the end.
    ///
    /// # Safety
    /// The updating thread's; the object starts with a link and is in no chain.
    pub(crate) unsafe fn push(&mut self, object: NonNull<Link>) {
        // SAFETY: only the updating thread touches links.
        unsafe { *object.as_ref().word.get() = 0 };
        self.append(&mut Chain { head: object.as_ptr(), tail: object.as_ptr(), count: 1 });
    }

    /// Takes all of `other`.
    pub(crate) fn append(&mut self, other: &mut Chain) {
        if other.head.is_null() {
            return;
        }
        match NonNull::new(self.tail) {
            // SAFETY: a chain's objects are its own until they are taken from it.
            Some(tail) => unsafe { *tail.as_ref().word.get() = other.head as u64 },
            None => self.head = other.head,
        }
        self.tail = other.tail;
        self.count += other.count;
        *other = Chain::EMPTY;
    }

    /// Empties the chain in front of `rest`: its last object leads there. Gives the first, or `rest`.
    pub(crate) fn lay_before(&mut self, rest: *mut Link) -> *mut Link {
        self.append(&mut Chain { head: rest, tail: null_mut(), count: 0 });
        let first = self.head;
        *self = Chain::EMPTY;
        first
    }

    pub(crate) fn first(&self) -> Option<NonNull<Link>> {
        NonNull::new(self.head)
    }

    /// Takes the first object.
    pub(crate) fn pop(&mut self) -> Option<NonNull<Link>> {
        let first = NonNull::new(self.head)?;
        // SAFETY: as in append().
        self.head = unsafe { *first.as_ref().word.get() } as *mut Link;
        self.count -= 1;
        if self.head.is_null() {
            self.tail = null_mut();
        }
        Some(first)
    }
}

/// One update's right to change an index.
pub(crate) struct Editor<'a> {
    pub(crate) pool: &'a mut Pool,
    /// Nodes with this stamp were made by this update and nobody else can see them.
    pub(crate) stamp: u64,
    /// Where replaced nodes go. None: they stay in use elsewhere.
    pub(crate) replaced: Option<&'a mut Stack>,
}

/// What tree nodes, id nodes and roots start with: enough to give one back without knowing what it was.
#[repr(C)]
pub(crate) struct Head {
    pub(crate) link: Link,
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
    pub(crate) fn new(stamp: u64, lines: usize, level: u8, cap: u8) -> Self {
        Head { link: Link::stamped(stamp), lines: lines as u8, level, len: 0, cap, canary: CANARY }
    }

    /// Fails where freed memory is taken for an object.
    pub(crate) fn check(&self) {
        debug_assert_eq!(self.canary, CANARY, "not an object of this table, or one that is gone");
    }
}

impl Editor<'_> {
    /// Whether this update made the object, and so may change it.
    pub(crate) fn owns(&self, head: &Head) -> bool {
        // SAFETY: an editor exists only under the update lock.
        unsafe { head.link.stamp() == self.stamp }
    }

    /// Gives up an object that the working copy no longer refers to: at once where this update made it, for
    /// readers have never seen it; otherwise it is put aside for them.
    ///
    /// # Safety
    /// The object starts with a [`Head`], came from this editor's pool, and the working copy has let go of it.
    pub(crate) unsafe fn drop_object(&mut self, object: NonNull<Head>) {
        // SAFETY: alive until now, by the caller's promise.
        let head = unsafe { object.as_ref() };
        head.check();
        if self.owns(head) {
            // SAFETY: never published, and given up by the caller.
            unsafe { self.pool.free(object.cast(), head.lines as usize) };
        } else if let Some(replaced) = &mut self.replaced {
            // SAFETY: an object leaves the working copy once, so it is on no stack yet.
            unsafe { replaced.push(object.cast()) };
        }
    }
}

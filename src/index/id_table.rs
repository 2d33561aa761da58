// SPDX-License-Identifier: MIT OR Apache-2.0
//! The radix table of 16-bit ids, persistent like the trees, which also knows the lowest free id.
//!
//! Does not know what its words stand for. Five bits a level, and as many levels as the largest id asks for: up to 32
//! ids are one node of five lines, 32,764 are three levels.

use super::node::NODE_LINES_MAX;
use super::pool::{lines_of, LINE};
use super::{Editor, Head, Stamp};
use crate::slot::SlotId;
use std::mem::size_of;
use std::ptr::{null, null_mut, NonNull};

const BITS: u32 = 5;
const WIDTH: usize = 1 << BITS;

/// Levels that 65,536 ids take.
pub(super) const MAX_LEVELS: usize = 4;

#[repr(C, align(64))]
pub(crate) struct IdNode {
    head: Head,
    /// Bit i: no id below child i is free.
    full: u32,
    words: [*mut u8; WIDTH],
}

pub(super) const NODE_LINES: usize = lines_of(size_of::<IdNode>());
const _: () = assert!(NODE_LINES <= NODE_LINES_MAX, "what is larger than the trees' nodes is a root");

/// How many words a node has, and which of its children are full.
#[derive(Clone, Copy)]
struct Census {
    len: u8,
    full: u32,
}

impl Census {
    fn is_full(self) -> bool {
        self.full == u32::MAX
    }
}

/// A table at one moment; copying it is a snapshot.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IdTable {
    root: *const IdNode,
}

impl IdNode {
    fn create(editor: &mut Editor, level: u8) -> NonNull<IdNode> {
        let node = editor.pool.alloc(NODE_LINES).cast::<IdNode>();
        // SAFETY: fresh memory of that many lines.
        unsafe { node.write(IdNode::empty(editor.stamp, NODE_LINES, level)) };
        node
    }

    fn empty(stamp: Stamp, lines: usize, level: u8) -> IdNode {
        IdNode { head: Head::new(stamp, lines, level, WIDTH as u8), full: 0, words: [null_mut(); WIDTH] }
    }

    /// The first node of a table that has none: in the nursery, where there is one and the ids are low.
    fn first(editor: &mut Editor, level: u8) -> NonNull<IdNode> {
        let Some(place) = editor.nursery.ids.filter(|_| level == 0) else { return IdNode::create(editor, level) };
        // SAFETY: the nursery is the working copy's own; the place is free, since only a root is there.
        unsafe { place.write(IdNode::empty(editor.stamp, 0, level)) };
        place
    }

    /// A copy with memory of its own, that this update owns.
    ///
    /// # Safety
    /// `node` is alive.
    unsafe fn copy_of(node: NonNull<IdNode>, editor: &mut Editor) -> NonNull<IdNode> {
        let copy = editor.pool.alloc(NODE_LINES).cast::<IdNode>();
        // SAFETY: fresh memory of a node's size; stamp and size are written anew.
        unsafe {
            copy.copy_from_nonoverlapping(node, 1);
            (*copy.as_ptr()).head.stamp = editor.stamp;
            (*copy.as_ptr()).head.lines = NODE_LINES as u8;
        }
        copy
    }

    fn child(&self, index: usize) -> Option<NonNull<IdNode>> {
        debug_assert!(self.head.level > 0);
        NonNull::new(self.words[index].cast())
    }

    /// To be asked of the node as it was, before it is copied: a load from what was stored a moment ago waits for the
    /// stores.
    fn census(&self) -> Census {
        Census { len: self.head.len, full: self.full }
    }

    /// Puts a word in the place of another, and says what the node has then. `was` is what it had.
    fn set(&mut self, was: Census, index: usize, (old, new): (*mut u8, *mut u8), full: bool) -> Census {
        let len = was.len + old.is_null() as u8 - new.is_null() as u8;
        let census = Census { len, full: was.full & !(1 << index) | (full as u32) << index };
        self.words[index] = new;
        (self.head.len, self.full) = (census.len, census.full);
        census
    }

    /// This node, or the copy of it that this update owns.
    ///
    /// # Safety
    /// `node` is part of the editor's working copy, and the caller puts the result in its place.
    #[inline(always)]
    unsafe fn owned(node: NonNull<IdNode>, editor: &mut Editor) -> NonNull<IdNode> {
        // SAFETY: part of the working copy, so alive.
        let old = unsafe { node.as_ref() };
        old.head.check();
        match editor.owns(&old.head) {
            true => node,
            // SAFETY: as above.
            false => unsafe { IdNode::copied(node, editor) },
        }
    }

    /// # Safety
    /// As `owned`.
    unsafe fn copied(node: NonNull<IdNode>, editor: &mut Editor) -> NonNull<IdNode> {
        // SAFETY: alive; the copy takes its place.
        unsafe {
            let copy = IdNode::copy_of(node, editor);
            editor.drop_object(node.cast());
            copy
        }
    }
}

/// The lowest level at which one node has room for an id.
fn level_of(id: SlotId) -> usize {
    (id.0.checked_ilog2().unwrap_or(0) / BITS) as usize
}

fn index_of(id: SlotId, level: u8) -> usize {
    (id.0 as usize >> (level as u32 * BITS)) % WIDTH
}

impl IdTable {
    pub(crate) const EMPTY: IdTable = IdTable { root: null() };

    /// Bytes that `edits` changes can allocate at most: a copied node and a new one on each level.
    pub(crate) const fn bytes_to_edit(edits: usize) -> usize {
        edits * 2 * MAX_LEVELS * NODE_LINES * LINE
    }

    fn levels(&self) -> usize {
        // SAFETY: the root of a table that someone may read is alive.
        self.root().map_or(0, |root| unsafe { root.as_ref() }.head.level as usize + 1)
    }

    /// Bytes that giving an id its first word can allocate at most, or taking its only word away.
    pub(crate) fn bytes_to_set(&self, id: SlotId) -> usize {
        let levels = self.levels().max(level_of(id) + 1);
        // The path is copied or made, and so are new roots; and one node moves out of the nursery.
        (2 * levels + 1) * NODE_LINES * LINE
    }

    fn root(&self) -> Option<NonNull<IdNode>> {
        NonNull::new(self.root.cast_mut())
    }

    /// Whether the root is in a nursery.
    ///
    /// # Safety
    /// The table's nodes are alive.
    #[inline(always)]
    pub(crate) unsafe fn is_small(&self) -> bool {
        // SAFETY: null or alive.
        unsafe { self.root.as_ref() }.is_some_and(|root| root.head.lines == 0)
    }

    /// After the table's root in a nursery was copied to `place`: leads there.
    ///
    /// # Safety
    /// The copy is the update's alone.
    #[inline(always)]
    pub(crate) unsafe fn follow(&mut self, place: NonNull<IdNode>, stamp: Stamp) {
        // SAFETY: the caller's promise.
        unsafe { (*place.as_ptr()).head.stamp = stamp };
        self.root = place.as_ptr();
    }

    /// The word of an id, or null.
    ///
    /// # Safety
    /// The table's nodes are alive.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, id: SlotId) -> *mut u8 {
        // SAFETY: null or alive.
        let Some(mut node) = (unsafe { self.root.as_ref() }) else {
            return null_mut();
        };
        node.head.check();
        let id = id.0 as usize;
        let mut shift = node.head.level as u32 * BITS;
        let mut index = id >> shift;
        if index >= WIDTH {
            return null_mut();
        }
        while shift > 0 {
            let below = node.words[index].cast::<IdNode>();
            // SAFETY: words above level 0 are null or live nodes.
            let Some(child) = (unsafe { below.as_ref() }) else { return null_mut() };
            node = child;
            shift -= BITS;
            index = id >> shift & (WIDTH - 1);
        }
        node.words[index]
    }

    /// The lowest id without a word: `WIDTH.pow(levels)` where all that there is room for have one.
    ///
    /// # Safety
    /// The table's nodes are alive.
    pub(crate) unsafe fn lowest_free(&self) -> usize {
        let mut next = self.root();
        let mut id = 0;
        while let Some(node) = next {
            // SAFETY: alive, by the caller's promise.
            let at = unsafe { node.as_ref() };
            let index = at.full.trailing_ones() as usize;
            id += index << (at.head.level as u32 * BITS);
            if index == WIDTH || at.head.level == 0 {
                return id;
            }
            next = at.child(index);
        }
        id
    }

    /// Gives an id a word, which is not null.
    ///
    /// # Safety
    /// The editor's working copy is what this table is part of, and `bytes_to_edit` are reserved.
    pub(crate) unsafe fn set(&mut self, editor: &mut Editor, id: SlotId, word: *mut u8) {
        debug_assert!(!word.is_null());
        let mut root = self.root().unwrap_or_else(|| IdNode::first(editor, level_of(id) as u8));
        // SAFETY: the root is part of the working copy.
        while id.0 as usize >> (unsafe { root.as_ref() }.head.level as u32 * BITS) >= WIDTH {
            root = grown(editor, root);
        }
        // SAFETY: as above.
        self.root = unsafe { set_below(editor, root, id, word) }.0.as_ptr();
    }

    /// Gives an id another word. It has one.
    ///
    /// # Safety
    /// As `set`.
    pub(crate) unsafe fn replace(&mut self, editor: &mut Editor, id: SlotId, word: *mut u8) {
        debug_assert!(!word.is_null());
        let mut node = self.root().expect("the id is there");
        let mut place: *mut *mut u8 = (&raw mut self.root).cast();
        loop {
            // From the node as it was: see IdNode::census().
            // SAFETY: part of the working copy, so alive.
            let (level, index, was) = unsafe {
                let at = node.as_ref();
                let index = index_of(id, at.head.level);
                (at.head.level, index, at.words[index])
            };
            debug_assert!(!was.is_null(), "the id is there");
            // SAFETY: the node is part of the working copy, and what is owned takes its place, which is the table's or
            // in the node above, which is owned by this update and so nobody else's.
            unsafe {
                let owned = IdNode::owned(node, editor);
                place.write(owned.as_ptr().cast());
                place = &raw mut (*owned.as_ptr()).words[index];
                if level == 0 {
                    return place.write(word);
                }
                // Words above level 0 are nodes.
                node = NonNull::new_unchecked(was.cast());
            }
        }
    }

    /// Takes an id's word away. It has one.
    ///
    /// # Safety
    /// As `set`.
    pub(crate) unsafe fn clear(&mut self, editor: &mut Editor, id: SlotId) {
        let root = self.root().expect("the id is there");
        // SAFETY: the root is part of the working copy.
        let mut root = unsafe { clear_below(editor, root, id) };
        while let Some(node) = root {
            // SAFETY: as above.
            let at = unsafe { node.as_ref() };
            if at.head.level == 0 || at.head.len > 1 || at.words[0].is_null() {
                break;
            }
            root = at.child(0);
            // SAFETY: its only child has taken its place.
            unsafe { editor.drop_object(node.cast()) };
        }
        self.root = root.map_or(null(), |root| root.as_ptr());
    }

    /// Calls `visit` for every word, by id, passing by the subtrees for which `stop` says so.
    ///
    /// # Safety
    /// The table's nodes are alive.
    pub(crate) unsafe fn for_each_word(&self, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<u8>)) {
        if let Some(root) = self.root() {
            // SAFETY: the caller's promise.
            unsafe { walk_words(root, stop, visit) };
        }
    }

    /// Calls `visit` for every node, children first, passing by the subtrees for which `stop` says so.
    ///
    /// # Safety
    /// Nothing else refers to the nodes any more; `visit` may free.
    pub(crate) unsafe fn for_each_node(&self, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Head>)) {
        if let Some(root) = self.root() {
            // SAFETY: alive until visited.
            unsafe { walk_nodes(root, stop, visit) };
        }
    }
}

/// Calls `visit` for every word of a table, by id, passing by the subtrees for which `stop` says so.
///
/// # Safety
/// The nodes are alive.
unsafe fn walk_words(node: NonNull<IdNode>, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<u8>)) {
    // SAFETY: the caller's promise.
    let at = unsafe { node.as_ref() };
    if stop(&at.head) {
        return;
    }
    for word in at.words.iter().copied().filter_map(NonNull::new) {
        match at.head.level {
            0 => visit(word),
            // SAFETY: words above level 0 are live nodes.
            _ => unsafe { walk_words(word.cast(), stop, visit) },
        }
    }
}

/// A root above `root`, with room for 32 times as many ids.
fn grown(editor: &mut Editor, mut root: NonNull<IdNode>) -> NonNull<IdNode> {
    // SAFETY: part of the working copy, so alive.
    if unsafe { root.as_ref() }.head.lines == 0 {
        // Only a root may be in the nursery.
        // SAFETY: as above.
        root = unsafe { IdNode::copy_of(root, editor) };
    }
    // SAFETY: as above.
    let below = unsafe { root.as_ref() };
    let mut above = IdNode::create(editor, below.head.level + 1);
    // SAFETY: fresh, and nobody else's.
    let at = unsafe { above.as_mut() };
    at.set(at.census(), 0, (null_mut(), root.as_ptr().cast()), below.census().is_full());
    above
}

/// Gives what stands in the node's place, and whether it is full.
///
/// # Safety
/// As `IdTable::set`; `node` is part of the working copy. The caller puts the result in its place.
unsafe fn set_below(editor: &mut Editor, node: NonNull<IdNode>, id: SlotId, word: *mut u8) -> (NonNull<IdNode>, bool) {
    // SAFETY: part of the working copy, so alive.
    let (level, census) = unsafe { (node.as_ref().head.level, node.as_ref().census()) };
    let index = index_of(id, level);
    // SAFETY: as above.
    let was = unsafe { node.as_ref() }.words[index];
    // SAFETY: the caller's promise.
    let mut owned = unsafe { IdNode::owned(node, editor) };
    let (word, full) = match level {
        0 => (word, true),
        _ => {
            let child = NonNull::new(was.cast()).unwrap_or_else(|| IdNode::create(editor, level - 1));
            // SAFETY: a child of the working copy, or new.
            let (child, full) = unsafe { set_below(editor, child, id, word) };
            (child.as_ptr().cast(), full)
        }
    };
    // SAFETY: owned by this update, so nobody else's.
    let census = unsafe { owned.as_mut() }.set(census, index, (was, word), full);
    (owned, census.is_full())
}

/// Gives what stands in the node's place: nothing where nothing is left in it.
///
/// # Safety
/// As `set_below`.
unsafe fn clear_below(editor: &mut Editor, node: NonNull<IdNode>, id: SlotId) -> Option<NonNull<IdNode>> {
    // SAFETY: part of the working copy, so alive.
    let (level, census) = unsafe { (node.as_ref().head.level, node.as_ref().census()) };
    let index = index_of(id, level);
    // SAFETY: as above.
    let was = unsafe { node.as_ref() }.words[index];
    // SAFETY: the caller's promise.
    let mut owned = unsafe { IdNode::owned(node, editor) };
    let below = match level {
        0 => null_mut(),
        // SAFETY: a child of the working copy.
        _ => unsafe { clear_below(editor, NonNull::new(was.cast()).expect("the id is there"), id) }
            .map_or(null_mut(), |child| child.as_ptr().cast()),
    };
    // SAFETY: owned by this update, so nobody else's.
    if unsafe { owned.as_mut() }.set(census, index, (was, below), false).len > 0 {
        return Some(owned);
    }
    // SAFETY: the table lets go of it here.
    unsafe { editor.drop_object(owned.cast()) };
    None
}

/// # Safety
/// The nodes are alive until visited.
unsafe fn walk_nodes(node: NonNull<IdNode>, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Head>)) {
    // SAFETY: not visited yet.
    let at = unsafe { node.as_ref() };
    if stop(&at.head) {
        return;
    }
    if at.head.level > 0 {
        for index in 0..WIDTH {
            if let Some(child) = at.child(index) {
                // SAFETY: as above.
                unsafe { walk_nodes(child, stop, visit) };
            }
        }
    }
    visit(node.cast());
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The B+tree of page ranges, persistent: an update copies the nodes on its path and leaves the old ones to readers.
//!
//! May not know how a node is laid out (`node.rs`), nor what its words stand for. One tree serves two indexes:
//! ranges that never overlap (gfn), and ranges that may, in the order (start, tie) where the tie is the word of a leaf
//! (hva, by slot id). `MULTI` says which.
//!
//! Bounds: a leaf holds at most `LEAF_MAX` entries, and up to `MAX_ENTRIES` while it is the root, for one flat node
//! beats a tree up to there. A node other than those at the tree's right edge is at least a quarter full. Nodes split
//! in halves, except at the right edge, where the left one stays full: ascending insertion leaves full nodes.

use super::node::{
    node_lines, node_lines_for, Entry, Lanes, Node, NodeMut, NodeRef, Page, Pair, LEAF_MAX, MAX_ENTRIES,
};
use super::pool::LINE;
use super::{Editor, Head, Stamp};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const _: () = assert!(MAX_ENTRIES / 2 < LEAF_MAX, "halves of a full root, and one entry more, are leaves");

/// Levels that a tree of 65,535 ranges can have, with room to spare: 8 entries a leaf, 14 an inner node, are five.
pub(crate) const MAX_LEVELS: usize = 8;

/// A tree at one moment; copying it is a snapshot. Does not own its nodes: its table does.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RangeTree<const MULTI: bool> {
    root: Option<NonNull<Node>>,
    /// One past the largest page in any range; 0 where there is none. No page from here on is searched for.
    end: u64,
}

/// Where an entry goes: its start, and its tie where starts may be equal.
#[derive(Clone, Copy)]
struct Key {
    start: u64,
    tie: usize,
}

/// A node on the way to an entry, owned by the update, and which of its entries leads there, as it was.
struct OnTheWay {
    owned: NonNull<Node>,
    is_leaf: bool,
    index: usize,
    was: Entry,
}

fn max_len(level: u8) -> usize {
    match level {
        0 => LEAF_MAX,
        _ => MAX_ENTRIES,
    }
}

/// Neighbours that together hold no more than this become one node; more, and they share.
fn merge_len(level: u8) -> usize {
    max_len(level) * 3 / 4
}

fn min_len(level: u8) -> usize {
    max_len(level) / 4
}

/// Entries of the nodes that `build` makes: as full as may be, but for a few that come later.
fn built_len(level: u8) -> usize {
    max_len(level) * 7 / 8
}

/// How many nodes, of how many entries at most, `build` makes of `len` on one level; those of the root are one.
fn built(level: u8, len: usize) -> (usize, usize) {
    let nodes = if len <= MAX_ENTRIES { 1 } else { len.div_ceil(built_len(level)) };
    (nodes, len.div_ceil(nodes))
}

impl<const MULTI: bool> RangeTree<MULTI> {
    pub(crate) const EMPTY: Self = RangeTree { root: None, end: 0 };

    fn root(&self) -> Option<NodeRef<'_>> {
        // SAFETY: the root of a tree that someone may read is alive.
        self.root.map(|root| unsafe { NodeRef::new(root) })
    }

    /// Bytes that `edits` changes of one entry each can allocate at most.
    pub(crate) fn bytes_to_edit(&self, edits: usize) -> usize {
        let (level, len, cap) = self.root().map_or((0, 0, 0), |root| (root.level() as usize, root.len(), root.cap()));
        if level == 0 && len + edits <= MAX_ENTRIES {
            // A leaf that stays the only one is copied, and again where it grows by a block.
            return (1 + edits) * node_lines_for(cap + edits) * LINE;
        }
        // On each level a node is copied, may be copied again with more room, and a neighbour is made or copied; then
        // there may be a new root.
        edits * (3 * level + 5) * node_lines(MAX_ENTRIES) * LINE
    }

    /// Bytes that `build` allocates at most.
    pub(crate) fn bytes_to_build(mut len: usize) -> usize {
        let (mut level, mut lines) = (0, 0);
        while len > 0 {
            let (nodes, node_len) = built(level, len);
            lines += nodes * node_lines_for(node_len);
            len = if nodes > 1 { nodes } else { 0 };
            level += 1;
        }
        lines * LINE
    }

    // ---- looking ----

    /// The first entry, in order, that reaches `page`: the leaf and the index in it.
    ///
    /// # Safety
    /// The tree's nodes are alive, and the processor is of the kind `L`.
    #[inline(always)]
    pub(crate) unsafe fn first_reaching<L: Lanes>(&self, page: u64) -> Option<(NodeRef<'_>, usize)> {
        if page >= self.end {
            return None;
        }
        // SAFETY: `end` is not 0, so there is a root; `page` is below it, so some entry reaches it.
        Some(unsafe { NodeRef::new(self.root.unwrap_unchecked()).descend(L::of(Page::new(page))) })
    }

    /// The last entry that starts at or below `page`. For ranges that do not overlap.
    ///
    /// # Safety
    /// The tree's nodes are alive.
    pub(crate) unsafe fn last_from(&self, page: u64) -> Option<Entry> {
        let mut node = self.root()?;
        loop {
            let index = node.pairs().partition_point(|pair| pair.start <= page).checked_sub(1)?;
            if node.is_leaf() {
                return Some(node.entry(index));
            }
            // SAFETY: a child of a live node.
            node = unsafe { NodeRef::new(node.child(index)) };
        }
    }

    /// The entry with the smallest start.
    ///
    /// # Safety
    /// The tree's nodes are alive.
    pub(crate) unsafe fn first(&self) -> Option<Entry> {
        // SAFETY: the caller's promise.
        self.root.map(|root| unsafe { first_entry(root) })
    }

    // ---- changing ----

    fn key(entry: Entry) -> Key {
        Key { start: entry.start, tie: if MULTI { entry.word.addr() } else { 0 } }
    }

    /// Puts an entry in. Where ranges may not overlap, it overlaps none.
    ///
    /// # Safety
    /// The editor's working copy is what this tree is part of, and `bytes_to_edit` are reserved.
    pub(crate) unsafe fn insert(&mut self, editor: &mut Editor, entry: Entry) {
        self.end = self.end.max(entry.last + 1);
        let Some(root) = self.root else {
            let root = Self::first_leaf(editor);
            // SAFETY: fresh, and nobody else's.
            unsafe { NodeMut::new(root) }.insert(0, entry);
            self.root = Some(root);
            return;
        };
        // SAFETY: the working copy's root is alive.
        let (left, right) = unsafe { Self::insert_below(editor, root, entry, true, true) };
        self.root = Some(match right {
            None => left,
            Some(right) => new_root(editor, left, right),
        });
    }

    /// An empty leaf for a tree that has none: in the nursery, where there is one.
    fn first_leaf(editor: &mut Editor) -> NonNull<Node> {
        let Some(place) = editor.nursery.leaf.filter(|_| !MULTI) else { return Node::create(editor, 0, 1) };
        // SAFETY: the nursery is the working copy's own; the place is free, since only this tree's root is there.
        unsafe { Node::create_in(place, editor) };
        place
    }

    /// Whether the root is in a nursery.
    ///
    /// # Safety
    /// The tree's nodes are alive.
    #[inline(always)]
    pub(crate) unsafe fn is_small(&self) -> bool {
        self.root().is_some_and(|root| root.head().lines == 0)
    }

    /// After the tree's root in a nursery was copied to `place`: leads there.
    ///
    /// # Safety
    /// The copy is the update's alone.
    #[inline(always)]
    pub(crate) unsafe fn follow(&mut self, place: NonNull<Node>, stamp: Stamp) {
        // SAFETY: the caller's promise.
        unsafe { Node::set_stamp(place, stamp) };
        self.root = Some(place);
    }

    /// Inserts below `node` and gives what stands in its place: itself or its copy, and a new right neighbour where
    /// it had to split.
    ///
    /// # Safety
    /// As `insert`; `node` is part of the working copy.
    unsafe fn insert_below(
        editor: &mut Editor,
        node: NonNull<Node>,
        entry: Entry,
        is_root: bool,
        right_edge: bool,
    ) -> (NonNull<Node>, Option<NonNull<Node>>) {
        // SAFETY: part of the working copy, so alive, and not changed before its place is taken.
        let old = unsafe { NodeRef::new(node) };
        let (len, level) = (old.len(), old.level());
        let limit = if is_root { MAX_ENTRIES } else { max_len(level) };
        // SAFETY: as above.
        let index = unsafe { Self::position(old, Self::key(entry)) };
        if level == 0 {
            // SAFETY: as above.
            return unsafe { insert_entry(editor, node, index, entry, limit, right_edge) };
        }
        let index = index.saturating_sub(1);
        // From the old node: a load from what was stored a moment ago would wait for the stores.
        let was = old.entry(index);
        // SAFETY: the caller puts the result in the node's place.
        let owned = unsafe { Node::owned(node, editor, len) };
        // SAFETY: a child is part of the working copy too.
        let (left, right) =
            unsafe { Self::insert_below(editor, was.child(), entry, false, right_edge && index + 1 == len) };
        let below = match right {
            None => was.with(entry, left),
            Some(_) => entry_of(left),
        };
        if was != below {
            // SAFETY: owned by this update, so nobody else's.
            unsafe { NodeMut::new(owned) }.replace(index, below);
        }
        match right {
            None => (owned, None),
            // SAFETY: as above.
            Some(right) => unsafe { insert_entry(editor, owned, index + 1, entry_of(right), limit, right_edge) },
        }
    }

    /// The tree of a list of entries, which it puts in order. None where two of them share a page and may not; nothing
    /// is made then. What is left of the list afterwards has no meaning.
    ///
    /// # Safety
    /// `bytes_to_build` are reserved.
    pub(crate) unsafe fn build(editor: &mut Editor, entries: &mut [Entry]) -> Option<Self> {
        entries.sort_unstable_by_key(|entry| (entry.start, Self::key(*entry).tie));
        if !MULTI && entries.windows(2).any(|pair| pair[0].last >= pair[1].start) {
            return None;
        }
        let (mut level, mut len) = (0, entries.len());
        while len > 0 {
            let nodes = built(level, len).0;
            for index in 0..nodes {
                let node = Node::of(editor, level, &entries[index * len / nodes..(index + 1) * len / nodes]);
                // What the level above has, in the place of entries that are in a node by now.
                entries[index] = entry_of(node);
            }
            if nodes == 1 {
                break;
            }
            (level, len) = (level + 1, nodes);
        }
        let root = entries.first().filter(|_| len > 0);
        Some(root.map_or(Self::EMPTY, |root| RangeTree { root: NonNull::new(root.word.cast()), end: root.last + 1 }))
    }

    /// Takes an entry out. It is there.
    ///
    /// # Safety
    /// As `insert`.
    pub(crate) unsafe fn remove(&mut self, editor: &mut Editor, entry: Entry) {
        let root = self.root.expect("the entry is there");
        // SAFETY: the working copy's root is alive, and what takes its place is part of the working copy.
        let mut root = unsafe { NodeRef::new(Self::remove_below(editor, root, entry)) };
        while let (1, false) = (root.len(), root.is_leaf()) {
            let child = root.child(0);
            // SAFETY: as above; the only child takes the root's place.
            unsafe {
                editor.drop_object(root.as_ptr().cast());
                root = NodeRef::new(child);
            }
        }
        if root.len() == 0 {
            // SAFETY: the tree lets go of it here.
            unsafe { editor.drop_object(root.as_ptr().cast()) };
            *self = Self::EMPTY;
            return;
        }
        self.root = Some(root.as_ptr());
        if self.end == entry.last + 1 {
            self.end = root.max_last() + 1;
        }
    }

    /// Removes below `node`, and gives what stands in its place.
    ///
    /// # Safety
    /// As `insert`; `node` is part of the working copy.
    unsafe fn remove_below(editor: &mut Editor, node: NonNull<Node>, entry: Entry) -> NonNull<Node> {
        // SAFETY: part of the working copy, so alive, and not changed before its place is taken.
        let old = unsafe { NodeRef::new(node) };
        let (len, level) = (old.len(), old.level());
        // SAFETY: the entry is there.
        let index = unsafe { Self::index_of(old, entry) };
        // From the old node: a load from what was stored a moment ago would wait for the stores.
        let was = old.entry(index);
        // SAFETY: as above; the caller puts the result in the node's place.
        let owned = unsafe { Node::owned(node, editor, len) };
        // SAFETY: owned by this update, so nobody else's.
        let mut at = unsafe { NodeMut::new(owned) };
        if level == 0 {
            debug_assert_eq!(was.start, entry.start, "the entry is there");
            at.remove(index);
            return owned;
        }
        // SAFETY: a child is part of the working copy, and the word of an inner node's entry.
        let child = unsafe { Self::remove_below(editor, was.child(), entry) };
        // SAFETY: as above.
        let child_len = unsafe { NodeRef::new(child) }.len();
        if child_len == 0 {
            at.remove(index);
            // SAFETY: the tree no longer refers to it.
            unsafe { editor.drop_object(child.cast()) };
            return owned;
        }
        at.replace(index, if was.is_bounded_by(entry) { entry_of(child) } else { was.leading_to(child) });
        if child_len < min_len(level - 1) && at.len() > 1 {
            let left = index.min(at.len() - 2);
            // SAFETY: the parent is owned, its children are part of the working copy.
            unsafe { balance(editor, &mut at, left) };
        }
        owned
    }

    /// Gives an entry another word. It is there, and its start, last and tie stay what they are.
    ///
    /// # Safety
    /// As `insert`.
    pub(crate) unsafe fn set_word(&mut self, editor: &mut Editor, entry: Entry) {
        debug_assert!(!MULTI, "where ranges may overlap, the word is the tie");
        let root = self.root.expect("the entry is there");
        // SAFETY: the working copy's root is alive.
        let mut at = unsafe { Self::own(editor, root, entry) };
        self.root = Some(at.owned);
        while !at.is_leaf {
            // SAFETY: a child is part of the working copy, and the word of an inner node's entry.
            let below = unsafe { Self::own(editor, at.was.child(), entry) };
            // SAFETY: owned by this update, so nobody else's.
            unsafe { NodeMut::new(at.owned) }.set_word(at.index, below.owned.as_ptr().cast());
            at = below;
        }
        debug_assert_eq!(at.was.start, entry.start, "the entry is there");
        // SAFETY: as above.
        unsafe { NodeMut::new(at.owned) }.set_word(at.index, entry.word);
    }

    /// Makes a node on the way to an entry this update's own.
    ///
    /// # Safety
    /// As `insert`; `node` is part of the working copy, and the caller puts what is owned in its place.
    #[inline(always)]
    unsafe fn own(editor: &mut Editor, node: NonNull<Node>, entry: Entry) -> OnTheWay {
        // SAFETY: part of the working copy, so alive, and not changed before its place is taken.
        let old = unsafe { NodeRef::new(node) };
        let is_leaf = old.is_leaf();
        // SAFETY: the entry is there.
        let index = unsafe { Self::index_of(old, entry) };
        // From the old node, as the search: a load from what was stored a moment ago would wait for the stores.
        let was = old.entry(index);
        // SAFETY: the caller's promise.
        OnTheWay { owned: unsafe { Node::owned(node, editor, old.len()) }, is_leaf, index, was }
    }

    /// Which entry of a node is one that is there, or leads to it.
    ///
    /// # Safety
    /// The entry is there; the nodes below `node` are alive.
    #[inline(always)]
    unsafe fn index_of(node: NodeRef, entry: Entry) -> usize {
        if !MULTI {
            // SAFETY: the entry itself reaches its start, and where ranges do not overlap it is the first that does.
            return unsafe { node.index_reaching(Page::new(entry.start)) };
        }
        // SAFETY: the caller's promise.
        let position = unsafe { Self::position(node, Self::key(entry)) };
        if node.is_leaf() {
            position
        } else {
            position - 1
        }
    }

    /// In a leaf: how many entries come before the key. In an inner node: how many children start at or before it.
    ///
    /// # Safety
    /// The nodes below it are alive.
    #[inline(always)]
    unsafe fn position(node: NodeRef, key: Key) -> usize {
        let below = node.starting_before(key.start);
        let equal = node.pairs()[below..].iter().take_while(|pair| pair.start == key.start);
        if !MULTI {
            return below + if node.is_leaf() { 0 } else { equal.count() };
        }
        // SAFETY: the caller's promise. Equal starts are rare, so that looking below them is, too.
        below + equal.take_while(|pair| unsafe { tie_of(node, pair.word) } < key.tie + !node.is_leaf() as usize).count()
    }

    // ---- the whole tree ----

    /// Calls `visit` for every entry, with the stamp of its leaf.
    ///
    /// # Safety
    /// The tree's nodes are alive.
    #[cfg(debug_assertions)]
    pub(crate) unsafe fn for_each_entry(&self, visit: &mut dyn FnMut(Stamp, Entry)) {
        let mut leaf = |node: NonNull<Head>| {
            // SAFETY: the caller's promise; a tree's nodes start with their heads.
            let at = unsafe { NodeRef::new(node.cast()) };
            if at.is_leaf() {
                (0..at.len()).for_each(|index| visit(at.head().stamp, at.entry(index)));
            }
        };
        // SAFETY: the caller's promise; nothing is freed.
        unsafe { self.for_each_node(&|_| false, &mut leaf) };
    }

    /// Calls `visit` for every node, children first, passing by the subtrees for which `stop` says so.
    ///
    /// # Safety
    /// Nothing else refers to the nodes any more; `visit` may free.
    pub(crate) unsafe fn for_each_node(&self, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Head>)) {
        if let Some(root) = self.root {
            // SAFETY: alive until visited.
            unsafe { walk_nodes(root, stop, visit) };
        }
    }
}

/// Calls `visit` for every node, children first, passing by the subtrees for which `stop` says so.
///
/// # Safety
/// The nodes are alive until visited.
unsafe fn walk_nodes(node: NonNull<Node>, stop: &dyn Fn(&Head) -> bool, visit: &mut dyn FnMut(NonNull<Head>)) {
    // SAFETY: not visited yet.
    let at = unsafe { NodeRef::new(node) };
    if stop(at.head()) {
        return;
    }
    if !at.is_leaf() {
        for index in 0..at.len() {
            // SAFETY: as above.
            unsafe { walk_nodes(at.child(index), stop, visit) };
        }
    }
    visit(node.cast());
}

/// # Safety
/// The node and those below it are alive.
unsafe fn first_entry(mut node: NonNull<Node>) -> Entry {
    loop {
        // SAFETY: the caller's promise.
        let at = unsafe { NodeRef::new(node) };
        if at.is_leaf() {
            return at.entry(0);
        }
        node = at.child(0);
    }
}

/// The tie of an entry: its word, or that of the first entry below it.
///
/// # Safety
/// `word` stands in the live node `node`.
unsafe fn tie_of(node: NodeRef, word: *mut u8) -> usize {
    match NonNull::new(word.cast::<Node>()) {
        // SAFETY: words of inner nodes are live nodes.
        Some(child) if !node.is_leaf() => unsafe { first_entry(child) }.word.addr(),
        _ => word.addr(),
    }
}

/// An inner node's entry, when something changes below it.
impl Entry {
    /// # Safety
    /// The entry is an inner node's.
    unsafe fn child(self) -> NonNull<Node> {
        // SAFETY: inner nodes' words are nodes.
        unsafe { NonNull::new_unchecked(self.word.cast()) }
    }

    fn leading_to(self, child: NonNull<Node>) -> Entry {
        Entry { word: child.as_ptr().cast(), ..self }
    }

    /// What it is where `new` has come in below.
    fn with(self, new: Entry, child: NonNull<Node>) -> Entry {
        Entry { start: self.start.min(new.start), last: self.last.max(new.last), ..self }.leading_to(child)
    }

    /// Whether its bounds may be others without an entry below.
    fn is_bounded_by(self, gone: Entry) -> bool {
        self.start == gone.start || self.last == gone.last
    }
}

/// What a parent says of a node.
fn entry_of(node: NonNull<Node>) -> Entry {
    // SAFETY: called on nodes of the working copy, which are alive.
    let at = unsafe { NodeRef::new(node) };
    Entry { start: at.pairs()[0].start, last: at.max_last(), word: node.as_ptr().cast() }
}

fn new_root(editor: &mut Editor, left: NonNull<Node>, right: NonNull<Node>) -> NonNull<Node> {
    // SAFETY: part of the working copy, so alive.
    let level = unsafe { NodeRef::new(left) }.level() + 1;
    debug_assert!((level as usize) < MAX_LEVELS);
    let root = Node::create(editor, level, 2);
    // SAFETY: fresh, and nobody else's.
    let mut at = unsafe { NodeMut::new(root) };
    at.insert(0, entry_of(left));
    at.insert(1, entry_of(right));
    root
}

/// Puts an entry into a node, splitting it where it is full; gives what stands in the node's place.
///
/// # Safety
/// As `RangeTree::insert`; `node` is part of the working copy.
unsafe fn insert_entry(
    editor: &mut Editor,
    node: NonNull<Node>,
    index: usize,
    entry: Entry,
    limit: usize,
    right_edge: bool,
) -> (NonNull<Node>, Option<NonNull<Node>>) {
    // SAFETY: part of the working copy, so alive, and not changed before its place is taken.
    let old = unsafe { NodeRef::new(node) };
    let (len, level) = (old.len(), old.level());
    // SAFETY: the caller puts the result in the node's place.
    let left = unsafe { Node::owned(node, editor, (len + 1).min(limit)) };
    // SAFETY: owned by this update, so nobody else's.
    let mut at = unsafe { NodeMut::new(left) };
    if len < limit {
        at.insert(index, entry);
        return (left, None);
    }
    let keep = match right_edge && index == len {
        true => max_len(level).min(len),
        false => len / 2,
    };
    let right = at.split_off(editor, keep, len - keep + 1);
    match index <= keep && keep < max_len(level) {
        true => at.insert(index, entry),
        // SAFETY: fresh, and nobody else's.
        false => unsafe { NodeMut::new(right) }.insert(index - keep, entry),
    }
    (left, Some(right))
}

/// Makes one node of the children at `index` and `index + 1`, or lets them share their entries.
///
/// # Safety
/// `parent` is owned by this update.
unsafe fn balance(editor: &mut Editor, parent: &mut NodeMut, index: usize) {
    let (left, right) = (parent.as_ref().child(index), parent.as_ref().child(index + 1));
    // SAFETY: children of the working copy are alive.
    let (l, r) = unsafe { (NodeRef::new(left), NodeRef::new(right)) };
    let (left_len, right_len, level) = (l.len(), r.len(), l.level());
    let total = left_len + right_len;
    if total <= merge_len(level) {
        // SAFETY: the results take the children's places below; the right one's entries have moved when it goes.
        unsafe {
            let left = Node::owned(left, editor, total);
            NodeMut::new(left).append(r);
            parent.replace(index, entry_of(left));
            parent.remove(index + 1);
            editor.drop_object(right.cast());
        }
        return;
    }
    let half = total / 2;
    // SAFETY: as above.
    let (left, right) = unsafe {
        (Node::owned(left, editor, half.max(left_len)), Node::owned(right, editor, (total - half).max(right_len)))
    };
    // SAFETY: both are owned by this update now, and two.
    let (mut l, mut r) = unsafe { (NodeMut::new(left), NodeMut::new(right)) };
    match left_len < half {
        true => l.take_front_of(&mut r, half - left_len),
        false => l.give_back_to(&mut r, left_len - half),
    }
    parent.replace(index, entry_of(left));
    parent.replace(index + 1, entry_of(right));
}

// ---- walking ----

/// A walk over the entries of one tree that share a page with `first..=last`, in order.
///
/// Most walks end in the leaf that they begin in: so they begin as a lookup does, and the way from the root is noted
/// when the leaf has no more.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    /// None where the walk is over.
    leaf: Option<NonNull<Node>>,
    /// In the leaf, the entry that is looked at next.
    index: u32,
    /// Inner nodes on the way, from the root; 0 until it is noted.
    depth: u32,
    first: u64,
    last: u64,
    root: Option<NonNull<Node>>,
    way: [MaybeUninit<NonNull<Node>>; MAX_LEVELS - 1],
    /// In each of those, the entry behind the one that the way takes.
    indices: [u8; MAX_LEVELS],
}

/// What a cursor came upon.
pub(crate) enum Step {
    /// The word of an entry.
    Found(*mut u8),
    /// An entry that does not reach `first`.
    Passed,
    EndOfLeaf,
    Over,
}

impl Cursor {
    /// A walk that is over.
    pub(crate) const OVER: Cursor = Cursor {
        leaf: None,
        index: 0,
        depth: 0,
        first: 0,
        last: 0,
        root: None,
        way: [MaybeUninit::uninit(); MAX_LEVELS - 1],
        indices: [0; MAX_LEVELS],
    };

    /// # Safety
    /// The tree's nodes are alive, and the processor is of the kind `L`.
    #[inline(always)]
    pub(crate) unsafe fn new<L: Lanes, const MULTI: bool>(tree: &RangeTree<MULTI>, first: u64, last: u64) -> Cursor {
        // SAFETY: the caller's promise.
        match unsafe { tree.first_reaching::<L>(first) } {
            Some((leaf, index)) => {
                Cursor { leaf: Some(leaf.as_ptr()), index: index as u32, first, last, root: tree.root, ..Self::OVER }
            }
            None => Self::OVER,
        }
    }

    /// The word of the next entry.
    ///
    /// # Safety
    /// The nodes of the tree that the walk began on are alive.
    pub(crate) unsafe fn next(&mut self) -> Option<*mut u8> {
        loop {
            // SAFETY: the caller's promise.
            match unsafe { self.step() } {
                Step::Found(word) => return Some(word),
                Step::Over => return None,
                Step::Passed => {}
                // SAFETY: the caller's promise.
                Step::EndOfLeaf => unsafe { self.next_leaf() },
            }
        }
    }

    /// Looks at one entry.
    ///
    /// # Safety
    /// As `next`.
    #[inline(always)]
    pub(crate) unsafe fn step(&mut self) -> Step {
        let Some(leaf) = self.leaf else { return Step::Over };
        // SAFETY: a leaf of a tree that is alive.
        let leaf = unsafe { NodeRef::new(leaf) };
        let index = self.index as usize;
        if index >= leaf.len() {
            return Step::EndOfLeaf;
        }
        // SAFETY: just compared.
        let (Pair { start, word }, last) = unsafe { (leaf.pair(index), leaf.last_of(index)) };
        if start > self.last {
            self.leaf = None;
            return Step::Over;
        }
        self.index += 1;
        match last >= self.first {
            true => Step::Found(word),
            false => Step::Passed,
        }
    }

    /// On to the next leaf with an entry that reaches `first`, or the walk is over.
    ///
    /// # Safety
    /// As `next`.
    #[inline(never)]
    unsafe fn next_leaf(&mut self) {
        if self.depth == 0 {
            // SAFETY: a walk that is not over has a root, of a tree that is alive. The way leads to the leaf that the
            // walk began in.
            unsafe { self.descend(self.root.unwrap_unchecked()) };
        }
        while self.depth > 0 {
            let at = self.depth as usize - 1;
            // SAFETY: noted, as all of the way up to `depth`, and part of a tree that is alive.
            let node = unsafe { NodeRef::new(self.way[at].assume_init()) };
            let Some(index) = node.next_reaching(self.indices[at] as usize, Page::new(self.first)) else {
                self.depth -= 1;
                continue;
            };
            if node.entry(index).start > self.last {
                break;
            }
            self.indices[at] = index as u8 + 1;
            // SAFETY: a child of a live node.
            return unsafe { self.descend(node.child(index)) };
        }
        self.leaf = None;
    }

    /// Notes the way from `node` to the first entry below it that reaches `first`.
    ///
    /// # Safety
    /// As `next`; there is such an entry.
    unsafe fn descend(&mut self, mut node: NonNull<Node>) {
        loop {
            // SAFETY: the root of a tree that is alive, or a child of a live node.
            let at = unsafe { NodeRef::new(node) };
            // SAFETY: the caller's promise; and an inner entry reaches as far as what is below it.
            let index = unsafe { at.index_reaching(Page::new(self.first)) };
            if at.is_leaf() {
                (self.leaf, self.index) = (Some(node), index as u32);
                return;
            }
            let depth = self.depth as usize;
            self.way[depth].write(node);
            self.indices[depth] = index as u8 + 1;
            self.depth += 1;
            node = at.child(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::node::Baseline;
    use crate::index::pool::Object;
    use crate::index::pool::Pool;
    use crate::index::{object_of, Nursery, Stamp, REPLACED_PER_EDIT};
    use std::collections::BTreeSet;
    use std::ptr::without_provenance_mut;

    /// As many as tests take to fill some leaves; under Miri, to fill a few. A prime.
    const MANY: u64 = if cfg!(miri) { 211 } else { 1009 };

    /// A tree with its pool, in which every update has a stamp of its own, so that each copies what it changes.
    struct Bench<const MULTI: bool> {
        tree: RangeTree<MULTI>,
        pool: Pool,
        stamp: u64,
        /// What the next update adds to that: 0 makes all updates one, which changes its nodes where they are.
        stamp_step: u64,
        changes: u64,
        replaced: Vec<Object>,
    }

    impl<const MULTI: bool> Bench<MULTI> {
        fn new() -> Self {
            let (tree, pool, replaced) = (RangeTree::EMPTY, Pool::new(), Vec::with_capacity(REPLACED_PER_EDIT));
            Bench { tree, pool, stamp: 0, stamp_step: 1, changes: 0, replaced }
        }

        fn change(&mut self, change: impl FnOnce(&mut RangeTree<MULTI>, &mut Editor)) {
            self.stamp += self.stamp_step;
            self.changes += 1;
            self.pool.reserve(self.tree.bytes_to_edit(1)).unwrap();
            let mut editor = Editor {
                pool: &mut self.pool,
                stamp: Stamp(self.stamp),
                replaced: Some(&mut self.replaced),
                nursery: Nursery::default(),
            };
            change(&mut self.tree, &mut editor);
            // Miri takes long over all of a large tree, and has a look now and then.
            if !cfg!(miri) || self.changes.is_multiple_of(61) {
                self.assert_sound();
            }
            // Nobody reads: what was replaced can go at once.
            for object in self.replaced.drain(..) {
                // SAFETY: taken out of the tree, and from this pool.
                unsafe { self.pool.free(object) };
            }
        }

        fn insert(&mut self, entry: Entry) {
            // SAFETY: reserved, and the tree is the working copy.
            self.change(|tree, editor| unsafe { tree.insert(editor, entry) });
        }

        fn remove(&mut self, entry: Entry) {
            // SAFETY: as above; tests remove what they have inserted.
            self.change(|tree, editor| unsafe { tree.remove(editor, entry) });
        }

        fn assert_sound(&self) {
            let Some(root) = self.tree.root else { return assert_eq!(self.tree.end, 0) };
            assert_eq!(entry_of(root).last + 1, self.tree.end);
            assert_node_sound(root, true);
        }

        /// The lengths of all leaves, in order.
        fn leaves(&self) -> Vec<u8> {
            let mut leaves = Vec::new();
            let mut note = |head: &Head| (head.level == 0).then(|| leaves.push(head.len));
            // SAFETY: the tree is alive, and visited only.
            unsafe { self.tree.for_each_node(&|_| false, &mut |node| _ = note(node.as_ref())) };
            leaves
        }

        /// The words of all entries, in order.
        fn entries(&self) -> Vec<usize> {
            self.between(0, u64::MAX)
        }

        fn between(&self, first: u64, last: u64) -> Vec<usize> {
            // SAFETY: the tree is alive.
            let mut walk = unsafe { Cursor::new::<Baseline, MULTI>(&self.tree, first, last) };
            // SAFETY: as above.
            std::iter::from_fn(|| unsafe { walk.next() }).map(|word| word.addr()).collect()
        }
    }

    impl<const MULTI: bool> Drop for Bench<MULTI> {
        fn drop(&mut self) {
            let pool = &mut self.pool;
            // SAFETY: the tree is not used any more.
            unsafe {
                let mut free = |node: NonNull<Head>| pool.free(object_of(node));
                self.tree.for_each_node(&|_| false, &mut free);
            }
        }
    }

    fn assert_node_sound(node: NonNull<Node>, right_edge: bool) {
        // SAFETY: part of a live tree.
        let at = unsafe { NodeRef::new(node) };
        at.assert_sound();
        assert!(right_edge || at.len() >= min_len(at.level()), "a node in the middle is too empty");
        if at.is_leaf() {
            return;
        }
        for index in 0..at.len() {
            let child = at.child(index);
            let (said, is) = (at.entry(index), entry_of(child));
            assert_eq!((said.start, said.last, said.word), (is.start, is.last, is.word));
            // SAFETY: as above.
            assert_eq!(unsafe { NodeRef::new(child) }.level() + 1, at.level());
            assert_node_sound(child, right_edge && index + 1 == at.len());
        }
    }

    fn entry(start: u64, npages: u64, id: usize) -> Entry {
        Entry { start, last: start + npages - 1, word: without_provenance_mut(id) }
    }

    /// A permutation of 0..n.
    fn shuffled(n: u64) -> impl Iterator<Item = u64> {
        let step = (n * 5 / 8) | 1;
        assert!((2..n).all(|factor| !n.is_multiple_of(factor)), "a prime, so that every step size reaches everything");
        (0..n).map(move |i| i * step % n)
    }

    #[test]
    fn random_insertion_and_removal_keep_the_tree_sound() {
        let mut bench = Bench::<false>::new();
        for i in shuffled(MANY) {
            bench.insert(entry(i * 3, 2, 0));
        }
        assert_eq!(bench.entries().len(), MANY as usize);
        for i in shuffled(MANY) {
            bench.remove(entry(i * 3, 2, 0));
        }
        assert!(bench.entries().is_empty());
    }

    #[test]
    fn leaves_split_share_and_merge() {
        for stamp_step in [0, 1] {
            let mut bench = Bench::<false>::new();
            bench.stamp_step = stamp_step;
            // The word is the start, by which entries() tells what to remove.
            let at = |start: usize| entry(start as u64, 5, start);
            (0..56).for_each(|i| bench.insert(at(i * 10 + 300)));
            assert_eq!(bench.leaves(), [56], "one flat node");
            bench.insert(at(305));
            assert_eq!(bench.leaves(), [29, 28], "halves of a full root, and one entry more");
            let remove = |bench: &mut Bench<false>, count, last: bool| {
                for _ in 0..count {
                    let all = bench.entries();
                    bench.remove(at(all[if last { all.len() - 1 } else { 0 }]));
                }
            };
            remove(&mut bench, 22, false);
            assert_eq!(bench.leaves(), [17, 18], "the left one took from the right one");
            (0..12).for_each(|i| bench.insert(at(i * 5)));
            remove(&mut bench, 11, true);
            assert_eq!(bench.leaves(), [18, 18], "the left one gave to the right one");
            let all = bench.entries();
            for start in &all {
                let marked = Entry { word: without_provenance_mut(start + 1), ..at(*start) };
                // SAFETY: reserved, and the tree is the working copy.
                bench.change(|tree, editor| unsafe { tree.set_word(editor, marked) });
            }
            assert!(bench.entries().into_iter().eq(all.iter().map(|start| start + 1)));
            all.iter().take(16).for_each(|start| bench.remove(at(*start)));
            assert_eq!(bench.leaves(), [20], "both fit into one");
            all.iter().skip(16).for_each(|start| bench.remove(at(*start)));
            assert_eq!(bench.pool.used(), 0);
        }
    }

    #[test]
    fn a_built_tree_is_as_good_as_one_that_grew() {
        // More than 56 leaves make three levels.
        let (sizes, step): (&[u64], _) = match cfg!(miri) {
            true => (&[0, 57, 1601], 29),
            false => (&[0, 1, 2, 56, 57, 113, 1009, 2003], 2),
        };
        for &n in sizes {
            let mut bench = Bench::<true>::new();
            bench.pool.reserve(RangeTree::<true>::bytes_to_build(n as usize)).unwrap();
            // Pairs with the same start, and every ninth reaches far.
            let mut entries: Vec<_> = (0..n)
                .map(|i| i * ((n / 2) | 1) % n.max(1))
                .map(|i| entry(i / 2 * 10, if i % 9 == 0 { 300 } else { 10 }, i as usize))
                .collect();
            let kept = entries.clone();
            let mut editor =
                Editor { pool: &mut bench.pool, stamp: Stamp(0), replaced: None, nursery: Nursery::default() };
            // SAFETY: reserved.
            bench.tree = unsafe { RangeTree::build(&mut editor, &mut entries) }.unwrap();
            bench.assert_sound();
            let in_order: BTreeSet<_> = kept.iter().map(|entry| (entry.start, entry.word.addr())).collect();
            assert!(bench.entries().into_iter().eq(in_order.iter().map(|(_, word)| *word)));
            kept.iter().step_by(step).for_each(|entry| bench.remove(*entry));
            kept.iter().step_by(step).for_each(|entry| bench.insert(*entry));
            assert_eq!(bench.entries().len(), in_order.len());
        }
    }

    #[test]
    fn what_overlaps_is_not_built() {
        let mut pool = Pool::new();
        pool.reserve(RangeTree::<false>::bytes_to_build(3)).unwrap();
        let mut editor = Editor { pool: &mut pool, stamp: Stamp(0), replaced: None, nursery: Nursery::default() };
        let mut entries = [entry(20, 5, 0), entry(10, 5, 0), entry(14, 1, 0)];
        // SAFETY: reserved.
        assert!(unsafe { RangeTree::<false>::build(&mut editor, &mut entries) }.is_none());
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn ascending_insertion_leaves_full_leaves() {
        let mut bench = Bench::<false>::new();
        let full = if cfg!(miri) { 4 } else { 32 };
        for i in 0..full * LEAF_MAX {
            bench.insert(entry(i as u64, 1, 0));
        }
        assert_eq!(bench.leaves(), vec![LEAF_MAX as u8; full]);
    }

    #[test]
    fn equal_starts_are_in_order_of_their_tie() {
        let mut bench = Bench::<true>::new();
        for i in shuffled(MANY) {
            bench.insert(entry(7, 1 + i, i as usize));
        }
        let many = MANY as usize;
        assert_eq!(bench.entries(), (0..many).collect::<Vec<_>>());
        for i in (0..MANY).filter(|i| i % 3 != 0) {
            bench.remove(entry(7, 1 + i, i as usize));
        }
        assert_eq!(bench.entries(), (0..many).step_by(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_walk_passes_by_what_does_not_reach() {
        // One range over everything, and many small ones: a query at the far end finds both and no more.
        let (mut bench, n) = (Bench::<true>::new(), 2 * MANY);
        bench.insert(entry(0, 100_000, 0));
        for i in 1..n {
            bench.insert(entry(i * 10, 5, i as usize));
        }
        assert_eq!(bench.between(n * 10 - 9, n * 10 - 9), [0, n as usize - 1]);
        // All walks of some length, over many leaves, from and to anywhere.
        let walks = if cfg!(miri) { 4 } else { n / 13 };
        for (first, last) in (0..walks).map(|i| (i * 131, i * 131 + i * 37)) {
            let reached = (1..n).filter(|i| i * 10 <= last && i * 10 + 4 >= first);
            assert_eq!(
                bench.between(first, last),
                std::iter::once(0).chain(reached.map(|i| i as usize)).collect::<Vec<_>>()
            );
        }
        // SAFETY: the tree is alive.
        let (leaf, index) = unsafe { bench.tree.first_reaching::<Baseline>(50_000) }.unwrap();
        assert_eq!(leaf.entry(index).word.addr(), 0);
    }
}

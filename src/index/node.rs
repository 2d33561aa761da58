// SPDX-License-Identifier: MIT OR Apache-2.0
//! One node of a range tree: its layout, the search inside it, and how entries are put in and taken out.
//!
//! May not know the tree around it. All that depends on how memory is laid out stands in this file.
//!
//! A node is a header of one cache line, then `cap` last pages, then `cap` pairs:
//!
//! ```text
//! | head (16 bytes) | block maxima 6 x 8 | last[0..cap] | pair[0..cap] |
//! ```
//!
//! An entry is a range of pages, `start..=last`, and a word: a child in an inner node (whose range then spans
//! from the smallest start to the largest last below it), what the tree is there to find in a leaf. Entries are in
//! order of their start.
//!
//! A `&Node` covers the header and no more, and a pointer derived from it may not reach the arrays. So nobody makes
//! one: to look at a node there is [`NodeRef`], to change it [`NodeMut`]. Both keep the pointer that covers all of the
//! node's memory.
//!
//! **There is one search: the first entry whose `last` is not below a page.** Ranges that do not overlap hold a page
//! only in that entry. Of ranges that do overlap, it is the one with the smallest start that reaches the page. It
//! takes two steps: the first block of eight whose largest `last` reaches the page, from the header's line; then the
//! first entry of that block. Both compare all lanes at once and branch on none of them. A node of few blocks takes one
//! step: it compares them all.
//!
//! SSE2, which every x86-64 has, cannot compare 64-bit integers, but can compare doubles. Pages are below 2^52, so a
//! page with the exponent of 1.0 above it is a double between 1 and 2, and ordered as the page is. `Lanes` is what
//! differs between processors: with AVX-512 a step is one compare, with SSE2 it is four.
//! That only holds where all of the search is compiled for it as one function, from the reader on (`reader.rs`);
//! updates search with the baseline.

use super::pool::{lines_of, LINE};
use super::{Editor, Head, Stamp, NURSERY_CAP};
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::ptr::NonNull;

/// Entries that one step of the search looks at.
const BLOCK: usize = 8;
/// Block maxima in the header. There is one block more: the last needs none, since it is what remains.
const MAXIMA: usize = 6;
/// The most entries that a node has room for.
pub(crate) const MAX_ENTRIES: usize = BLOCK * (MAXIMA + 1);
/// The most entries of a leaf that is not the root. Smaller than inner nodes: an update copies a leaf for each tree,
/// and half of it is wide enough.
pub(crate) const LEAF_MAX: usize = 4 * BLOCK;

/// Lines of the largest node.
pub(crate) const NODE_LINES_MAX: usize = node_lines(MAX_ENTRIES);

/// A page number as the search compares it.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
#[repr(transparent)]
pub(crate) struct Page(f64);

impl Page {
    const EXPONENT: u64 = 0x3ff << 52;
    /// Not below any page: makes the search stay in the last block in use.
    const ABOVE_ALL: Page = Page(f64::INFINITY);

    pub(crate) fn new(page: u64) -> Self {
        debug_assert!(page < 1 << 52, "page shift of at least 12");
        Page(f64::from_bits(Self::EXPONENT | page))
    }

    pub(crate) fn get(self) -> u64 {
        self.0.to_bits() & !(0xfff << 52)
    }

    fn max(self, other: Page) -> Page {
        if other > self {
            other
        } else {
            self
        }
    }
}

/// What an entry has beside its last page.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) start: u64,
    /// A child, a record or an id.
    pub(crate) word: *mut u8,
}

/// One entry, outside of a node.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) word: *mut u8,
}

/// The header of a node. The arrays follow it in memory.
#[repr(C, align(64))]
pub(crate) struct Node {
    head: Head,
    maxima: [Page; MAXIMA],
}

const _: () = assert!(size_of::<Node>() == LINE && offset_of!(Node, maxima) == 16);

/// Lines of a node with room for `cap` entries.
pub(crate) const fn node_lines(cap: usize) -> usize {
    lines_of(size_of::<Node>() + cap * (size_of::<Page>() + size_of::<Pair>()))
}

/// Lines of a node that is made for so many entries.
#[inline(always)]
pub(crate) fn node_lines_for(len: usize) -> usize {
    node_lines(cap_for(len))
}

/// Room for at least `len` entries, in whole blocks, and no less than two: so there is memory behind `last` for four.
fn cap_for(len: usize) -> usize {
    len.next_multiple_of(BLOCK).clamp(2 * BLOCK, MAX_ENTRIES)
}

impl Node {
    /// An empty node that this update owns.
    ///
    /// Lanes that are not in use are zero, which is below every page. The search looks at them by four blocks, also
    /// where there are fewer and pairs behind them.
    pub(crate) fn create(editor: &mut Editor, level: u8, room_for: usize) -> NonNull<Node> {
        let cap = cap_for(room_for);
        let lines = node_lines(cap);
        let node = editor.pool.alloc(lines).cast::<Node>();
        // SAFETY: fresh memory, aligned to a line, with room for the header and cap entries.
        unsafe { Node::write_empty(node, Head::new(editor.stamp, lines, level, cap as u8)) };
        node
    }

    /// An empty leaf in the nursery.
    ///
    /// # Safety
    /// `place` is one for a leaf, and not in use.
    pub(crate) unsafe fn create_in(place: NonNull<Node>, editor: &Editor) {
        // SAFETY: the caller's promise: aligned to a line, with room for the header and that many entries.
        unsafe { Node::write_empty(place, Head::new(editor.stamp, 0, 0, NURSERY_CAP as u8)) };
    }

    /// # Safety
    /// The memory is nobody else's, with room for as many entries as the head says.
    unsafe fn write_empty(node: NonNull<Node>, head: Head) {
        let cap = head.cap as usize;
        // SAFETY: the caller's promise; a node of two blocks has memory for four blocks of last pages.
        unsafe {
            node.write(Node { head, maxima: [Page::ABOVE_ALL; MAXIMA] });
            node.add(1).cast::<Page>().as_ptr().write_bytes(0, cap.next_multiple_of(4 * BLOCK));
        }
    }

    /// A node of these entries, which are in order and no more than `MAX_ENTRIES`.
    pub(crate) fn of(editor: &mut Editor, level: u8, entries: &[Entry]) -> NonNull<Node> {
        let node = Node::create(editor, level, entries.len());
        // SAFETY: fresh, and nobody else's.
        let mut at = unsafe { NodeMut::new(node) };
        at.set_len(entries.len());
        entries.iter().enumerate().for_each(|(index, entry)| at.set(index, *entry));
        at.note_maxima(0);
        node
    }

    /// This node, or the copy of it that this update owns, with room for `room_for` entries. The caller puts the
    /// result where `node` was.
    ///
    /// # Safety
    /// `node` is part of the editor's working copy.
    #[inline(always)]
    pub(crate) unsafe fn owned(node: NonNull<Node>, editor: &mut Editor, room_for: usize) -> NonNull<Node> {
        // SAFETY: part of the working copy, so alive.
        let old = unsafe { NodeRef::new(node) };
        old.head().check();
        match editor.owns(old.head()) && old.cap() >= room_for {
            true => node,
            // SAFETY: as above.
            false => unsafe { Node::copied(node, editor, room_for) },
        }
    }

    /// # Safety
    /// As `owned`.
    #[inline(never)]
    unsafe fn copied(node: NonNull<Node>, editor: &mut Editor, room_for: usize) -> NonNull<Node> {
        // SAFETY: part of the working copy, so alive.
        let old = unsafe { NodeRef::new(node) };
        let copy = Node::copy_of(old, editor, room_for.max(old.len()));
        // SAFETY: the caller puts the copy in the old one's place.
        unsafe { editor.drop_object(node.cast()) };
        copy
    }

    /// Gives a node that was copied with a root the stamp of the update that the copy is of.
    ///
    /// # Safety
    /// The node is that update's alone.
    #[inline(always)]
    pub(crate) unsafe fn set_stamp(node: NonNull<Node>, stamp: Stamp) {
        // SAFETY: the caller's promise.
        unsafe { (*node.as_ptr()).head.stamp = stamp };
    }

    fn copy_of(old: NodeRef, editor: &mut Editor, room_for: usize) -> NonNull<Node> {
        if cap_for(room_for) != old.cap() {
            let copy = Node::create(editor, old.level(), room_for);
            // SAFETY: ours alone until it is published; it has room for what the old one has.
            unsafe { NodeMut::new(copy) }.append(old);
            return copy;
        }
        let lines = old.head().lines as usize;
        debug_assert!(lines > 0, "a nursery is copied with its root");
        let copy = editor.pool.alloc(lines).cast::<Node>();
        // SAFETY: fresh memory of the old node's size, all of which the handle's pointer covers; the stamp is written
        // anew.
        unsafe {
            copy.cast::<u8>().copy_from_nonoverlapping(old.node.cast(), lines * LINE);
            (*copy.as_ptr()).head.stamp = editor.stamp;
        }
        copy
    }
}

/// A node to look at.
///
/// Refers to the header and the arrays, as `&'a Node` would if it covered them: while there is one, the node is alive
/// and does not change.
#[derive(Clone, Copy)]
pub(crate) struct NodeRef<'a> {
    /// Covers all of the node's memory, see `new`.
    node: NonNull<Node>,
    lives: PhantomData<&'a Node>,
}

impl<'a> NodeRef<'a> {
    /// # Safety
    /// The node is alive and does not change during `'a`, and the pointer is the one that `Node` has made or a copy of
    /// it, not one that was derived from a reference.
    #[inline(always)]
    pub(crate) unsafe fn new(node: NonNull<Node>) -> Self {
        NodeRef { node, lives: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn as_ptr(self) -> NonNull<Node> {
        self.node
    }

    /// The head alone: nothing that lies behind it is reached from here.
    #[inline(always)]
    pub(crate) fn head(self) -> &'a Head {
        // SAFETY: the node is alive.
        unsafe { &(*self.node.as_ptr()).head }
    }

    #[inline(always)]
    fn maxima(self) -> &'a [Page; MAXIMA] {
        // SAFETY: the node is alive, and does not change.
        unsafe { &(*self.node.as_ptr()).maxima }
    }

    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        self.head().len as usize
    }

    #[inline(always)]
    pub(crate) fn cap(self) -> usize {
        self.head().cap as usize
    }

    #[inline(always)]
    pub(crate) fn level(self) -> u8 {
        self.head().level
    }

    #[inline(always)]
    pub(crate) fn is_leaf(self) -> bool {
        self.level() == 0
    }

    #[inline(always)]
    fn lasts_ptr(self) -> *mut Page {
        // The arrays follow the header, see Node::create().
        self.node.as_ptr().wrapping_add(1).cast()
    }

    #[inline(always)]
    fn pairs_ptr(self) -> *mut Pair {
        self.lasts_ptr().wrapping_add(self.cap()).cast()
    }

    fn lasts(self) -> &'a [Page] {
        // SAFETY: `len` entries are initialised, and the node does not change.
        unsafe { std::slice::from_raw_parts(self.lasts_ptr(), self.len()) }
    }

    pub(crate) fn pairs(self) -> &'a [Pair] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.pairs_ptr(), self.len()) }
    }

    /// The entry's start and word, without looking at `len`: the search has already answered for the index.
    ///
    /// # Safety
    /// `index < len`.
    #[inline(always)]
    pub(crate) unsafe fn pair(self, index: usize) -> Pair {
        debug_assert!(index < self.len());
        // SAFETY: the caller's promise.
        unsafe { *self.pairs_ptr().add(index) }
    }

    /// How many pages the entry has, likewise; `start` is its own.
    ///
    /// # Safety
    /// `index < len`.
    #[inline(always)]
    pub(crate) unsafe fn pages_from(self, index: usize, start: u64) -> u64 {
        debug_assert!(index < self.len());
        // SAFETY: the caller's promise. The exponent goes with the subtraction.
        unsafe { *self.lasts_ptr().add(index) }.0.to_bits().wrapping_sub(start).wrapping_sub(Page::EXPONENT - 1)
    }

    /// The entry's last page, likewise.
    ///
    /// # Safety
    /// `index < len`.
    #[inline(always)]
    pub(crate) unsafe fn last_of(self, index: usize) -> u64 {
        debug_assert!(index < self.len());
        // SAFETY: the caller's promise.
        unsafe { *self.lasts_ptr().add(index) }.get()
    }

    pub(crate) fn last(self, index: usize) -> u64 {
        self.lasts()[index].get()
    }

    pub(crate) fn entry(self, index: usize) -> Entry {
        let Pair { start, word } = self.pairs()[index];
        Entry { start, last: self.last(index), word }
    }

    /// The child at an index of an inner node.
    pub(crate) fn child(self, index: usize) -> NonNull<Node> {
        debug_assert!(!self.is_leaf());
        NonNull::new(self.pairs()[index].word.cast()).expect("inner nodes have no empty entries")
    }

    /// The first entry whose `last` is not below a page, in a node of any size.
    ///
    /// # Safety
    /// Some entry reaches the page.
    #[inline(always)]
    unsafe fn first_reaching<L: Lanes>(self, page: L) -> usize {
        let cap = self.cap();
        // SAFETY: the caller's promise.
        unsafe {
            match () {
                () if cap <= 2 * BLOCK => self.first_of_blocks::<2, L>(page),
                () if cap <= 4 * BLOCK && L::WIDE => self.first_of_blocks::<4, L>(page),
                () => self.first_in_two_steps(page),
            }
        }
    }

    /// The same, for the node below another. How full it is varies from one to the next, and a branch on that would
    /// often be mispredicted: so the level alone decides.
    ///
    /// # Safety
    /// As `first_reaching`.
    #[inline(always)]
    unsafe fn first_reaching_below<L: Lanes>(self, page: L) -> usize {
        // SAFETY: the caller's promise; leaves below the root have no more than four blocks.
        unsafe {
            match self.is_leaf() && L::WIDE {
                true => self.first_of_blocks::<4, L>(page),
                false => self.first_in_two_steps(page),
            }
        }
    }

    /// # Safety
    /// Some entry reaches the page, and there are no more than `N` blocks, which is two or four.
    #[inline(always)]
    unsafe fn first_of_blocks<const N: usize, L: Lanes>(self, page: L) -> usize {
        self.head().check();
        let mut lanes = 0;
        // No closure here: that would be a function of its own, and not compiled for the processor that `L` is.
        for block in 0..N {
            // SAFETY: a multiple of four blocks is initialised in every node, see Node::create().
            lanes |= unsafe { page.eight(self.lasts_ptr().add(block * BLOCK)) } << (block * BLOCK);
        }
        first_of(N * BLOCK, lanes)
    }

    /// # Safety
    /// Some entry reaches the page.
    #[inline(always)]
    unsafe fn first_in_two_steps(self, page: impl Lanes) -> usize {
        self.head().check();
        // Behind the maxima is the lane of the block that needs none.
        let block = (first_of(BLOCK + 1, page.header(self.maxima())) - (BLOCK - MAXIMA)) * BLOCK;
        debug_assert!(block < self.cap());
        // SAFETY: maxima of blocks that are not in use are above all, so the block is one in use, and blocks are whole.
        block + first_of(BLOCK, unsafe { page.eight(self.lasts_ptr().add(block)) })
    }

    /// The first entry that reaches a page in the leaves below this node, a root: the leaf, and the index in it.
    ///
    /// # Safety
    /// Some entry reaches the page, and the nodes below this one are alive and do not change during `'a`.
    #[inline(always)]
    pub(crate) unsafe fn descend<L: Lanes>(self, page: L) -> (NodeRef<'a>, usize) {
        let mut node = self;
        // SAFETY: some entry reaches the page.
        let mut index = unsafe { node.first_reaching(page) };
        while !node.is_leaf() {
            // SAFETY: the index is of an entry, and inner entries' words are live nodes. Where an inner node's entry
            // reaches the page, so does one of the child's, since the entry's last is the largest below it.
            unsafe {
                node = NodeRef::new(NonNull::new_unchecked(node.pair(index).word.cast()));
                index = node.first_reaching_below(page);
            }
        }
        (node, index)
    }

    /// The first entry of this node that reaches a page.
    ///
    /// # Safety
    /// Some entry does.
    pub(crate) unsafe fn index_reaching(self, page: Page) -> usize {
        // SAFETY: the caller's promise; the baseline is what every processor can do.
        unsafe { self.first_reaching(Baseline::of(page)) }
    }

    /// How many entries start before a page. All before the first that reaches it do; few others, and none where
    /// entries do not overlap.
    #[inline(always)]
    pub(crate) fn starting_before(self, page: u64) -> usize {
        // SAFETY: where no entry reaches the page, the answer is just some index, and all entries start before it.
        let reaching = unsafe { self.index_reaching(Page::new(page)) };
        let pairs = self.pairs();
        let rest = pairs.get(reaching..).unwrap_or_default();
        reaching.min(pairs.len()) + rest.iter().take_while(|pair| pair.start < page).count()
    }

    /// As `index_reaching`, from an index on, and without the promise.
    pub(crate) fn next_reaching(self, from: usize, page: Page) -> Option<usize> {
        let rest = self.lasts().get(from..)?;
        rest.iter().position(|last| *last >= page).map(|skipped| from + skipped)
    }

    /// The largest last page of all entries.
    pub(crate) fn max_last(self) -> u64 {
        let last_block = self.last_block();
        let max = self.maxima()[..last_block].iter().fold(self.max_of_block(last_block), |max, page| max.max(*page));
        max.get()
    }

    /// The block of the last entry.
    fn last_block(self) -> usize {
        self.len().saturating_sub(1) / BLOCK
    }

    /// The largest last page of a block. Lanes that are not in use are below all pages.
    fn max_of_block(self, block: usize) -> Page {
        debug_assert!((block + 1) * BLOCK <= self.cap());
        let first = self.lasts_ptr().wrapping_add(block * BLOCK);
        // One lane at a time, and volatile to keep it so: lanes were stored just now, and a load of two that were
        // stored apart waits until both have left the store buffer. SAFETY: blocks up to cap are whole, their lanes
        // initialised.
        let [a, b, c, d, e, f, g, h]: [Page; BLOCK] =
            std::array::from_fn(|lane| unsafe { first.add(lane).read_volatile() });
        let (a, b, c, d) = (a.max(e), b.max(f), c.max(g), d.max(h));
        a.max(c).max(b.max(d))
    }

    /// Fails where the node breaks its own rules. For tests.
    #[cfg(test)]
    pub(crate) fn assert_sound(self) {
        assert!(self.len() <= self.cap() && self.len() > 0);
        for pair in self.pairs().windows(2) {
            assert!(pair[0].start <= pair[1].start);
        }
        let last_block = (self.len() - 1) / BLOCK;
        for (block, max) in self.maxima().iter().enumerate() {
            if block >= last_block {
                assert_eq!(*max, Page::ABOVE_ALL);
            } else {
                let lasts = &self.lasts()[block * BLOCK..][..BLOCK];
                assert!(lasts.iter().all(|last| last <= max) && lasts.contains(max));
            }
        }
    }
}

/// A node to change: one that this update owns, so that nobody else looks at it.
///
/// As `&'a mut Node` would be if it covered the arrays: while there is one, the node is reached through it alone.
pub(crate) struct NodeMut<'a>(NodeRef<'a>);

impl NodeMut<'_> {
    /// # Safety
    /// As [`NodeRef::new`], but that the node changes through this and is not reached in another way meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn new(node: NonNull<Node>) -> Self {
        // SAFETY: the caller's promise. What this gives out to look at the node borrows from it, so that the node does
        // not change meanwhile.
        NodeMut(unsafe { NodeRef::new(node) })
    }

    #[inline(always)]
    pub(crate) fn as_ref(&self) -> NodeRef<'_> {
        self.0
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends some of another node's entries. There is room.
    fn append_some(&mut self, from: NodeRef, range: Range<usize>) {
        let (at, count) = (self.len(), range.len());
        debug_assert!(at + count <= self.0.cap());
        // SAFETY: room was just checked, the source's entries exist, and the nodes are two.
        unsafe {
            self.0.lasts_ptr().add(at).copy_from_nonoverlapping(from.lasts_ptr().add(range.start), count);
            self.0.pairs_ptr().add(at).copy_from_nonoverlapping(from.pairs_ptr().add(range.start), count);
        }
        self.set_len(at + count);
        self.note_maxima(at);
    }

    /// Puts an entry in at an index. There is room.
    pub(crate) fn insert(&mut self, index: usize, entry: Entry) {
        let len = self.len();
        debug_assert!(len < self.0.cap());
        let (lasts, pairs) = (self.0.lasts_ptr(), self.0.pairs_ptr());
        // One loop for both: its end is one mispredicted branch, and memmove() has one at every step to the length.
        for at in (index..len).rev() {
            // SAFETY: room for one more was just checked.
            unsafe {
                *lasts.add(at + 1) = *lasts.add(at);
                *pairs.add(at + 1) = *pairs.add(at);
            }
        }
        self.set_len(len + 1);
        self.set(index, entry);
        self.note_maxima(index);
    }

    /// Takes the entry at an index out.
    pub(crate) fn remove(&mut self, index: usize) {
        let keep = self.len() - 1;
        let (lasts, pairs) = (self.0.lasts_ptr(), self.0.pairs_ptr());
        // As in insert().
        for at in index..keep {
            // SAFETY: the entries from index + 1 to len exist.
            unsafe {
                *lasts.add(at) = *lasts.add(at + 1);
                *pairs.add(at) = *pairs.add(at + 1);
            }
        }
        self.truncate(keep);
        self.note_maxima(index);
    }

    /// Gives the entry at an index another word.
    pub(crate) fn set_word(&mut self, index: usize, word: *mut u8) {
        debug_assert!(index < self.len());
        // SAFETY: within len.
        unsafe { (*self.0.pairs_ptr().add(index)).word = word };
    }

    /// Replaces the entry at an index.
    pub(crate) fn replace(&mut self, index: usize, entry: Entry) {
        let same_last = self.0.last(index) == entry.last;
        self.set(index, entry);
        let block = index / BLOCK;
        if !same_last && block < self.0.last_block() {
            self.set_maximum(block, self.0.max_of_block(block));
        }
    }

    /// Moves the entries from `at` on into a new node beside this one.
    pub(crate) fn split_off(&mut self, editor: &mut Editor, at: usize, room_for: usize) -> NonNull<Node> {
        let right = Node::create(editor, self.0.level(), room_for.max(self.len() - at));
        // SAFETY: fresh, and nobody else's.
        unsafe { NodeMut::new(right) }.append_some(self.0, at..self.len());
        self.truncate(at);
        self.note_maxima(at);
        right
    }

    /// Takes the first `count` entries of the node to the right. There is room.
    pub(crate) fn take_front_of(&mut self, right: &mut NodeMut, count: usize) {
        self.append_some(right.0, 0..count);
        let left = right.len() - count;
        let (lasts, pairs) = (right.0.lasts_ptr(), right.0.pairs_ptr());
        // SAFETY: the entries exist.
        unsafe {
            lasts.copy_from(lasts.add(count), left);
            pairs.copy_from(pairs.add(count), left);
        }
        right.truncate(left);
        right.note_maxima(0);
    }

    /// Gives its last `count` entries to the node to the right. There is room.
    pub(crate) fn give_back_to(&mut self, right: &mut NodeMut, count: usize) {
        debug_assert!(right.len() + count <= right.0.cap());
        let (keep, right_len) = (self.len() - count, right.len());
        let (lasts, pairs) = (right.0.lasts_ptr(), right.0.pairs_ptr());
        // SAFETY: the entries exist, and there is room for them; the nodes are two.
        unsafe {
            lasts.copy_to(lasts.add(count), right_len);
            pairs.copy_to(pairs.add(count), right_len);
            lasts.copy_from_nonoverlapping(self.0.lasts_ptr().add(keep), count);
            pairs.copy_from_nonoverlapping(self.0.pairs_ptr().add(keep), count);
        }
        right.set_len(right_len + count);
        right.note_maxima(0);
        self.truncate(keep);
        self.note_maxima(keep);
    }

    /// Takes copies of all entries of the node to the right. There is room.
    pub(crate) fn append(&mut self, right: NodeRef) {
        self.append_some(right, 0..right.len());
    }

    fn set(&mut self, index: usize, entry: Entry) {
        debug_assert!(index < self.len() && entry.start <= entry.last);
        // SAFETY: within len.
        unsafe {
            self.0.lasts_ptr().add(index).write(Page::new(entry.last));
            self.0.pairs_ptr().add(index).write(Pair { start: entry.start, word: entry.word });
        }
    }

    fn truncate(&mut self, len: usize) {
        let gone = self.len() - len;
        // SAFETY: lanes up to cap exist.
        unsafe { self.0.lasts_ptr().add(len).write_bytes(0, gone) };
        self.set_len(len);
    }

    fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.0.cap());
        // SAFETY: the node is alive, and reached through this alone.
        unsafe { (*self.0.node.as_ptr()).head.len = len as u8 };
    }

    fn set_maximum(&mut self, block: usize, max: Page) {
        // SAFETY: as above.
        unsafe { (*self.0.node.as_ptr()).maxima[block] = max };
    }

    /// Restores the header's maxima after a change at `index` and behind it: those of all blocks but the last in use,
    /// which is above all, as are those that are not in use, so that the search never leaves the entries. The entry
    /// before `index` counts as changed: its block may have been the last, or be the last now.
    fn note_maxima(&mut self, index: usize) {
        let last_block = self.0.last_block();
        for block in index.saturating_sub(1) / BLOCK..MAXIMA {
            let max = if block < last_block { self.0.max_of_block(block) } else { Page::ABOVE_ALL };
            self.set_maximum(block, max);
        }
    }
}

/// A page, ready to be compared with many others at once, in the way of one kind of processor. Bit n of an answer:
/// lane n is not below the page.
pub(crate) trait Lanes: Copy {
    /// Four blocks are compared in fewer instructions than the two steps take.
    const WIDE: bool = false;

    /// # Safety
    /// The processor is of that kind; and what this is called in is compiled for it, or it will be slow.
    unsafe fn of(page: Page) -> Self;

    /// The lanes of the header's line. Those before the maxima are the head's, which is not read: they are below the
    /// page.
    fn header(self, maxima: &[Page; MAXIMA]) -> u32;

    /// # Safety
    /// Eight pages stand there, at the start of a line.
    unsafe fn eight(self, pages: *const Page) -> u32;
}

/// The first lane of `count`, the last where no other is fit. Never a lane more: a processor that runs on behind a
/// mispredicted branch, with a page number that the guest has chosen, then stays in the node, or within `count` entries
/// of its start.
#[inline(always)]
fn first_of(count: usize, lanes: u32) -> usize {
    (lanes | 1 << (count - 1)).trailing_zeros() as usize
}

pub(crate) use lanes::*;

#[cfg(target_arch = "x86_64")]
mod lanes {
    use super::{Lanes, Page, MAXIMA};
    use std::arch::x86_64::*;

    /// What every x86-64 has: SSE2.
    #[derive(Clone, Copy)]
    pub(crate) struct Baseline(__m128d);

    impl Baseline {
        /// All ones in the halves whose page is not below.
        ///
        /// # Safety
        /// Two pages stand there.
        #[inline(always)]
        unsafe fn two(self, pages: *const Page) -> __m128i {
            // SAFETY: the caller's two pages.
            unsafe { _mm_castpd_si128(_mm_cmpge_pd(_mm_load_pd(pages.cast()), self.0)) }
        }
    }

    /// The lanes of four pairs, one bit each.
    #[inline(always)]
    fn bits(a: __m128i, b: __m128i, c: __m128i, d: __m128i) -> u32 {
        // SAFETY: SSE2.
        unsafe {
            let lanes = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
            _mm_movemask_epi8(_mm_packs_epi16(lanes, _mm_setzero_si128())) as u32
        }
    }

    impl Lanes for Baseline {
        #[inline(always)]
        unsafe fn of(page: Page) -> Self {
            // SAFETY: SSE2.
            Baseline(unsafe { _mm_set1_pd(page.0) })
        }

        #[inline(always)]
        fn header(self, maxima: &[Page; MAXIMA]) -> u32 {
            let pages = maxima.as_ptr();
            // SAFETY: six pages are read.
            unsafe { bits(_mm_setzero_si128(), self.two(pages), self.two(pages.add(2)), self.two(pages.add(4))) }
        }

        #[inline(always)]
        unsafe fn eight(self, pages: *const Page) -> u32 {
            // SAFETY: the caller's eight pages.
            unsafe { bits(self.two(pages), self.two(pages.add(2)), self.two(pages.add(4)), self.two(pages.add(6))) }
        }
    }

    /// The lanes of a header's line, whose maxima are two and four.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn header(page: __m256d, maxima: &[Page; MAXIMA]) -> u32 {
        let pages = maxima.as_ptr().cast::<f64>();
        // SAFETY: six pages are read; the caller's promise.
        unsafe {
            let two = _mm_cmp_pd::<_CMP_GE_OQ>(_mm_load_pd(pages), _mm256_castpd256_pd128(page));
            let four = _mm256_cmp_pd::<_CMP_GE_OQ>(_mm256_load_pd(pages.add(2)), page);
            (_mm_movemask_pd(two) << 2 | _mm256_movemask_pd(four) << 4) as u32
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256d);

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn of(page: Page) -> Self {
            // SAFETY: the caller's promise.
            Avx2(unsafe { _mm256_set1_pd(page.0) })
        }

        #[inline(always)]
        fn header(self, maxima: &[Page; MAXIMA]) -> u32 {
            // SAFETY: that the processor has AVX2 was promised to of().
            unsafe { header(self.0, maxima) }
        }

        #[inline(always)]
        unsafe fn eight(self, pages: *const Page) -> u32 {
            let pages = pages.cast::<f64>();
            // SAFETY: the caller's eight pages; AVX2 as above.
            unsafe {
                let low = _mm256_cmp_pd::<_CMP_GE_OQ>(_mm256_load_pd(pages), self.0);
                let high = _mm256_cmp_pd::<_CMP_GE_OQ>(_mm256_load_pd(pages.add(4)), self.0);
                (_mm256_movemask_pd(low) | _mm256_movemask_pd(high) << 4) as u32
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512i);

    impl Lanes for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        unsafe fn of(page: Page) -> Self {
            // SAFETY: the caller's promise.
            Avx512(unsafe { _mm512_set1_epi64(page.0.to_bits() as i64) })
        }

        #[inline(always)]
        fn header(self, maxima: &[Page; MAXIMA]) -> u32 {
            // Not by a compare under a mask: the compiler loads that into a part of a register, and so lets a lookup
            // wait for the one before. SAFETY: AVX-512 was promised to of(), and includes AVX2.
            unsafe { header(_mm512_castpd512_pd256(_mm512_castsi512_pd(self.0)), maxima) }
        }

        #[inline(always)]
        unsafe fn eight(self, pages: *const Page) -> u32 {
            // As integers, which are in the same order: what stands behind the pages in use may be no double that one
            // compares. SAFETY: the caller's eight pages; AVX-512 as above.
            unsafe { _mm512_cmp_epi64_mask::<_MM_CMPINT_NLT>(_mm512_load_si512(pages.cast()), self.0) as u32 }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    use super::{Lanes, Page, BLOCK, MAXIMA};

    #[derive(Clone, Copy)]
    pub(crate) struct Baseline(Page);

    impl Baseline {
        fn all(self, pages: &[Page]) -> u32 {
            pages.iter().rev().fold(0, |lanes, at| lanes << 1 | (*at >= self.0) as u32)
        }
    }

    impl Lanes for Baseline {
        unsafe fn of(page: Page) -> Self {
            Baseline(page)
        }

        fn header(self, maxima: &[Page; MAXIMA]) -> u32 {
            self.all(maxima) << (BLOCK - MAXIMA)
        }

        unsafe fn eight(self, pages: *const Page) -> u32 {
            // SAFETY: the caller's promise.
            self.all(unsafe { std::slice::from_raw_parts(pages, BLOCK) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::pool::Pool;
    use crate::index::{object_of, Nursery, Stamp};

    /// Asks for every page, in a kind of processor's way, and compares with a plain search.
    ///
    /// # Safety
    /// The processor is of that kind.
    unsafe fn assert_answers<L: Lanes>(node: NodeRef) {
        for page in 0..=node.max_last() {
            let plain = node.lasts().iter().position(|last| last.get() >= page).unwrap();
            // SAFETY: the page is not above all; the caller's promise.
            assert_eq!(unsafe { node.first_reaching(L::of(Page::new(page))) }, plain);
        }
    }

    #[test]
    fn every_kind_of_processor_gives_the_same_answers() {
        let mut pool = Pool::new();
        // Under Miri, a few lengths of the whole range of blocks will do.
        for len in (1..=MAX_ENTRIES).step_by(if cfg!(miri) { 11 } else { 1 }) {
            pool.reserve(node_lines(MAX_ENTRIES) * LINE).unwrap();
            let mut editor = Editor { pool: &mut pool, stamp: Stamp(1), replaced: None, nursery: Nursery::default() };
            let node = Node::create(&mut editor, 0, len);
            // SAFETY: fresh, and nobody else's.
            let mut at = unsafe { NodeMut::new(node) };
            // Ranges that overlap, too: some reach far.
            for index in 0..len {
                let (start, reach) = (index as u64 * 5, if index % 7 == 3 { 90 } else { 2 });
                at.insert(index, Entry { start, last: start + reach, word: std::ptr::null_mut() });
            }
            // SAFETY: the processor is asked.
            unsafe {
                assert_answers::<Baseline>(at.as_ref());
                #[cfg(target_arch = "x86_64")]
                {
                    is_x86_feature_detected!("avx2").then(|| assert_answers::<Avx2>(at.as_ref()));
                    is_x86_feature_detected!("avx512f").then(|| assert_answers::<Avx512>(at.as_ref()));
                }
            }
            // SAFETY: created above, and not used any more.
            unsafe { pool.free(object_of(node.cast())) };
        }
    }
}

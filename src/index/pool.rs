// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory of one table: cache lines handed out in size classes from chunks that grow with the table.
//!
//! Only the updating thread is ever here. Knows nothing of what it hands out but the size. Memory comes back when no
//! reader can see it any more (`epoch.rs`) and is handed out again while it is still warm.
//!
//! An update first calls [`Pool::reserve`], the one step that can fail; what it allocates then cannot. That is
//! what makes a half-made update impossible.
//!
//! Built with `--cfg memslots_no_pool`, every object is an allocation of its own, for the sanitizers to watch.

use crate::error::{Errno, Result};
use std::alloc::{alloc, dealloc, Layout};
use std::ptr::{null_mut, NonNull};

/// Bytes in a cache line: the unit in which sizes are counted, and the alignment of everything.
pub(crate) const LINE: usize = 64;

/// The largest object, in lines: a root with every address space that a table can have.
pub(crate) const MAX_LINES: usize = 88;

/// What is left of a chunk is kept in pieces of this size: a large node's, so that they are asked for.
const SHELF_LINES: usize = 22;

const FIRST_CHUNK: usize = 4 << 10;
const LARGEST_CHUNK: usize = 256 << 10;

/// What freed memory is filled with where assertions are on: a reader that gets here must fail, not limp on.
const POISON: u8 = 0xdb;

/// Lines that `bytes` take.
pub(crate) const fn lines_of(bytes: usize) -> usize {
    bytes.div_ceil(LINE)
}

/// Stands at the start of every chunk, and takes one line.
struct Chunk {
    /// The one after it.
    next: *mut Chunk,
    bytes: usize,
}

/// Memory that the pool has handed out.
#[derive(Clone, Copy)]
pub(crate) struct Object {
    pub(crate) memory: NonNull<u8>,
    pub(crate) lines: u8,
}

// SAFETY: an address and a size; using the memory needs a reason of its own.
unsafe impl Send for Object {}

impl Object {
    pub(crate) fn bytes(&self) -> usize {
        self.lines as usize * LINE
    }
}

/// Stands at the start of every free object.
struct Free {
    next: *mut Free,
}

pub(crate) struct Pool {
    free: [*mut Free; MAX_LINES + 1],
    /// What no class has yet: `bump..end` in the newest chunk.
    bump: *mut u8,
    end: *mut u8,
    oldest: *mut Chunk,
    newest: *mut Chunk,
    held: usize,
    used: usize,
    may_leak: bool,
    /// What is left of the last reservation: an edit that takes more than was reserved for it fails here, also where
    /// free memory would have hidden that.
    #[cfg(debug_assertions)]
    budget: usize,
}

// SAFETY: the pool owns its chunks and free lists alone; it has no tie to a thread.
unsafe impl Send for Pool {}

impl Pool {
    pub(crate) const fn new() -> Self {
        Pool {
            free: [null_mut(); MAX_LINES + 1],
            bump: null_mut(),
            end: null_mut(),
            oldest: null_mut(),
            newest: null_mut(),
            held: 0,
            used: 0,
            may_leak: false,
            #[cfg(debug_assertions)]
            budget: 0,
        }
    }

    /// Bytes taken from the system.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes handed out and not yet given back.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Sees to it that `bytes` can be allocated without failing. `ENOMEM` where they cannot; then nothing changed.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<()> {
        #[cfg(debug_assertions)]
        {
            self.budget = bytes;
        }
        match cfg!(memslots_no_pool) || self.room() >= bytes {
            true => Ok(()),
            false => self.grow(bytes),
        }
    }

    /// A new chunk, with room for `bytes`.
    #[cold]
    fn grow(&mut self, bytes: usize) -> Result<()> {
        // Twice what is asked for, so that the next update, which takes about as much, does not grow the pool again.
        let room = bytes + bytes.min(LARGEST_CHUNK) + LINE;
        let want = room.max((self.held / 4).clamp(FIRST_CHUNK, LARGEST_CHUNK)).next_multiple_of(LINE);
        // SAFETY: the size is not zero, and a multiple of the alignment that fits isize.
        let memory = unsafe { alloc(chunk_layout(want)) };
        if memory.is_null() {
            return Err(Errno::ENOMEM);
        }
        self.shelve_rest();
        let chunk = memory.cast::<Chunk>();
        // SAFETY: fresh memory of at least two lines, aligned to a line.
        unsafe {
            chunk.write(Chunk { next: null_mut(), bytes: want });
            self.bump = memory.add(LINE);
            self.end = memory.add(want);
        }
        // SAFETY: null, or the chunk before this one, which is ours.
        match unsafe { self.newest.as_mut() } {
            Some(newest) => newest.next = chunk,
            None => self.oldest = chunk,
        }
        self.newest = chunk;
        self.held += want;
        Ok(())
    }

    /// `lines` of memory, aligned to a line, contents undefined. The caller has reserved them.
    pub(crate) fn alloc(&mut self, lines: usize) -> NonNull<u8> {
        debug_assert!((1..=MAX_LINES).contains(&lines));
        #[cfg(debug_assertions)]
        {
            self.budget = self.budget.checked_sub(lines * LINE).expect("more was allocated than reserved");
        }
        self.used += lines * LINE;
        if cfg!(memslots_no_pool) {
            // SAFETY: the size is not zero.
            let memory = unsafe { alloc(chunk_layout(lines * LINE)) };
            return NonNull::new(memory).unwrap_or_else(|| std::alloc::handle_alloc_error(chunk_layout(lines * LINE)));
        }
        let head = self.free[lines];
        if let Some(free) = NonNull::new(head) {
            // SAFETY: what stands in a free list is ours, and starts with the address of the next.
            self.free[lines] = unsafe { free.as_ref().next };
            return free.cast();
        }
        assert!(self.room() >= lines * LINE, "allocation without reservation");
        let memory = self.bump;
        // SAFETY: within the newest chunk, as just asserted.
        self.bump = unsafe { memory.add(lines * LINE) };
        // SAFETY: not null: room() is 0 where there is no chunk.
        unsafe { NonNull::new_unchecked(memory) }
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// It came from `alloc` of this pool, with as many lines, and nobody uses it any more.
    #[inline]
    pub(crate) unsafe fn free(&mut self, object: Object) {
        self.used -= object.bytes();
        // SAFETY: the caller's promise.
        unsafe { self.take_back(object) };
    }

    /// Takes back all of a list.
    ///
    /// # Safety
    /// As `free`, for each.
    pub(crate) unsafe fn free_all(&mut self, objects: &[Object]) {
        let mut lines = 0;
        for object in objects {
            lines += object.lines as usize;
            // SAFETY: the caller's promise.
            unsafe { self.take_back(*object) };
        }
        self.used -= lines * LINE;
    }

    /// # Safety
    /// As `free`.
    #[inline(always)]
    unsafe fn take_back(&mut self, object: Object) {
        if cfg!(memslots_no_pool) {
            // SAFETY: allocated by alloc() with this very layout.
            return unsafe { dealloc(object.memory.as_ptr(), chunk_layout(object.bytes())) };
        }
        if cfg!(debug_assertions) {
            // SAFETY: the caller gives up these lines.
            unsafe { object.memory.as_ptr().write_bytes(POISON, object.bytes()) };
        }
        // SAFETY: as above.
        unsafe { self.shelve(object.memory.as_ptr(), object.lines as usize) };
    }

    /// After a panic inside an update: what it had in its hands is not accounted for.
    pub(crate) fn expect_leaks(&mut self) {
        self.may_leak = true;
    }

    fn room(&self) -> usize {
        self.end as usize - self.bump as usize
    }

    /// Puts memory into its class.
    ///
    /// # Safety
    /// `lines` of memory that is ours and unused.
    #[inline(always)]
    unsafe fn shelve(&mut self, memory: *mut u8, lines: usize) {
        let free = memory.cast::<Free>();
        // SAFETY: a line is large and aligned enough.
        unsafe { free.write(Free { next: self.free[lines] }) };
        self.free[lines] = free;
    }

    /// Before a new chunk: what is left of the old one goes into the classes, so that none of it is lost.
    fn shelve_rest(&mut self) {
        while self.room() > 0 {
            let lines = (self.room() / LINE).min(SHELF_LINES);
            let memory = self.bump;
            // SAFETY: `lines` lines from `bump` lie before `end`, in our chunk, handed out to nobody.
            unsafe {
                self.bump = memory.add(lines * LINE);
                self.shelve(memory, lines);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        debug_assert!(self.used == 0 || self.may_leak || std::thread::panicking(), "objects outlive their table");
        // Oldest first: most stand behind each other, and the C library gives memory back to the system where it ends.
        let mut chunk = self.oldest;
        while !chunk.is_null() {
            // SAFETY: every chunk in the list was allocated by grow() with this size; its link is read before it goes.
            unsafe {
                let Chunk { next, bytes } = chunk.read();
                dealloc(chunk.cast(), chunk_layout(bytes));
                chunk = next;
            }
        }
    }
}

fn chunk_layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, LINE).expect("sizes here are far below isize::MAX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_in_its_class() {
        let mut pool = Pool::new();
        pool.reserve(6 * LINE).unwrap();
        let a = pool.alloc(3);
        assert_eq!(pool.used(), 3 * LINE);
        // SAFETY: just allocated, used by nobody.
        unsafe { pool.free(Object { memory: a, lines: 3 }) };
        if !cfg!(memslots_no_pool) {
            assert_eq!(pool.alloc(3), a);
            // SAFETY: as above.
            unsafe { pool.free(Object { memory: a, lines: 3 }) };
        }
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_reservation_is_kept_whatever_is_allocated() {
        let mut pool = Pool::new();
        let mut live = Vec::new();
        for round in 1..200 {
            let lines = 1 + round % 22;
            pool.reserve(lines * LINE).unwrap();
            live.push((pool.alloc(lines), lines));
        }
        for (memory, lines) in live {
            assert_eq!(memory.as_ptr() as usize % LINE, 0);
            // SAFETY: allocated above, used by nobody.
            unsafe { pool.free(Object { memory, lines: lines as u8 }) };
        }
    }
}

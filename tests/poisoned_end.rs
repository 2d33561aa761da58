// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a table that is poisoned, has readers left and releases due, and finds no memory: all is told before
//! it is over.
//!
//! By itself, since it has an allocator of its own, which fails on the thread that says so.

use memslots::{AsId, Change, Config, Gfn, Hooks, Hva, Memslot, Memslots, Region, SlotId};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

#[cfg(memslots_no_pool)]
mod sanitized {
    /// What a panic leaves behind goes with the chunks of the pool. Without a pool it is a leak, and not what is looked
    /// for here.
    #[no_mangle]
    extern "C" fn __asan_default_options() -> *const std::ffi::c_char {
        c"detect_leaks=0".as_ptr()
    }
}

struct Failing;

thread_local! {
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

/// crossbeam-epoch's bags, which have no way to say no.
const NEVER_FAILS: usize = 2072;

// SAFETY: the system's, or null.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match FAILS.get() && layout.size() != NEVER_FAILS {
            true => null_mut(),
            // SAFETY: the caller's promise.
            false => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

const SLOTS: usize = 100;
const PANICS: SlotId = SlotId(77);

/// How often each slot was released, and its page given up.
struct Told {
    released: [AtomicU32; SLOTS],
    unmapped: [AtomicU32; SLOTS],
}

struct Tells(Arc<Told>);

impl Hooks for Tells {
    fn commit(&self, change: &Change<'_>) {
        assert!(change.new_slot.is_none_or(|slot| slot.id != PANICS), "on purpose");
    }

    fn release(&self, gone: &Memslot) {
        self.0.released[gone.id.0 as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn wants_unmap(&self) -> bool {
        true
    }

    fn unmap(&self, hva: Hva, size: u64) {
        (hva.0 >> 12..(hva.0 + size) >> 12)
            .for_each(|page| _ = self.0.unmapped[page as usize].fetch_add(1, Ordering::Relaxed));
    }
}

fn region(slot: usize) -> Region {
    let hva = (slot as u64) << 12;
    Region { slot: slot as u32, guest_phys_addr: hva, memory_size: 4096, userspace_addr: hva, ..Region::default() }
}

/// All slots, some deleted while a section was open, and one whose commit hook panicked.
fn poisoned(told: &Arc<Told>) -> Memslots {
    let hooks = Box::new(Tells(told.clone()));
    let table = Memslots::new(Config { hooks: Some(hooks), ..Config::default() }).unwrap();
    let others = (0..SLOTS).filter(|slot| *slot != PANICS.0 as usize);
    others.for_each(|slot| table.set_region(&region(slot), null_mut()).unwrap());
    let reader = table.reader().unwrap();
    let section = reader.lock();
    (10..30).for_each(|slot| table.delete(AsId(0), SlotId(slot)).unwrap());
    assert!(catch_unwind(AssertUnwindSafe(|| table.set_region(&region(PANICS.0 as usize), null_mut()))).is_err());
    drop(section);
    table
}

#[test]
fn all_is_told_before_the_end_is_over() {
    for readers_left in [0, 3] {
        let zeros = || [const { AtomicU32::new(0) }; SLOTS];
        let told = Arc::new(Told { released: zeros(), unmapped: zeros() });
        let table = poisoned(&told);
        let readers: Vec<_> = (0..readers_left).map(|_| table.reader().unwrap()).collect();
        FAILS.set(true);
        drop(table);
        FAILS.set(false);
        let once = |counts: &[AtomicU32]| counts.iter().all(|count| count.load(Ordering::Relaxed) == 1);
        assert!(once(&told.released) && once(&told.unmapped), "with {readers_left} readers left");
        assert!(readers.iter().all(|reader| reader.lock().find_gfn(AsId(0), Gfn(1)).is_none()));
    }
}

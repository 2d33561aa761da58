// SPDX-License-Identifier: MIT OR Apache-2.0
//! Panics around a table: after one in a hook, readers see one whole state and updates are refused; after one in the
//! caller's own code, everything is as it was.

use memslots::{AsId, Change, Config, Errno, Gfn, Hooks, Memslot, Memslots, Region, SlotId};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::null_mut;
use std::sync::Arc;

#[cfg(memslots_no_pool)]
mod sanitized {
    /// What a panic leaves behind is freed with the chunks of the pool. Without a pool it is a leak, which is not what
    /// these tests look for.
    #[no_mangle]
    extern "C" fn __asan_default_options() -> *const std::ffi::c_char {
        c"detect_leaks=0".as_ptr()
    }
}

struct PanicsOnDelete;

impl Hooks for PanicsOnDelete {
    fn wants_flush(&self) -> bool {
        true
    }

    fn prepare(&self, change: &Change<'_>) -> Result<(), Errno> {
        assert!(change.new_slot.is_some(), "a delete, on purpose");
        Ok(())
    }
}

fn region(slot: u32) -> Region {
    Region {
        slot,
        guest_phys_addr: (slot as u64) << 20,
        memory_size: 4096,
        userspace_addr: (slot as u64) << 20,
        ..Region::default()
    }
}

#[test]
fn a_hook_that_panics_leaves_no_slot_invalid() {
    let table = Memslots::new(Config { hooks: Some(Box::new(PanicsOnDelete)), ..Config::default() }).unwrap();
    table.set_region(&region(1), null_mut()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| table.delete(AsId(0), SlotId(1)))).is_err());
    let reader = table.reader().unwrap();
    assert!(!reader.lock().find_gfn(AsId(0), Gfn(256)).unwrap().is_invalid());
    assert_eq!(table.set_region(&region(2), null_mut()), Err(Errno::ENOTRECOVERABLE));
}

#[test]
fn the_callers_own_panic_aborts_its_transaction_and_no_more() {
    let table = Memslots::new(Config::default()).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut txn = table.begin().unwrap();
        txn.set_region(&region(1), null_mut()).unwrap();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(table.reader().unwrap().lock().find_id(AsId(0), SlotId(1)).is_none());
    table.set_region(&region(1), null_mut()).unwrap();
}

struct PanicsOnRelease;

impl Hooks for PanicsOnRelease {
    fn release(&self, gone: &Memslot) {
        assert_ne!(gone.id, SlotId(1), "on purpose");
    }
}

#[test]
fn a_release_that_panics_leaves_readers_a_whole_state() {
    let table = Memslots::new(Config { hooks: Some(Box::new(PanicsOnRelease)), ..Config::default() }).unwrap();
    (1..4).for_each(|slot| table.set_region(&region(slot), null_mut()).unwrap());
    let reader = table.reader().unwrap();
    let section = reader.lock();
    table.delete(AsId(0), SlotId(1)).unwrap();
    table.delete(AsId(0), SlotId(2)).unwrap();
    drop(section);
    assert!(catch_unwind(AssertUnwindSafe(|| table.synchronize())).is_err());
    assert!(reader.lock().find_id(AsId(0), SlotId(1)).is_none() && reader.lock().find_id(AsId(0), SlotId(3)).is_some());
    assert_eq!(table.set_region(&region(5), null_mut()), Err(Errno::ENOTRECOVERABLE));
}

#[test]
fn a_transaction_that_is_forgotten_keeps_the_lock_and_no_more() {
    let table = Memslots::new(Config::default()).unwrap();
    table.set_region(&region(1), null_mut()).unwrap();
    let mut txn = table.begin().unwrap();
    txn.set_region(&region(2), null_mut()).unwrap();
    std::mem::forget(txn);
    assert_eq!(table.set_region(&region(3), null_mut()), Err(Errno::EDEADLK));
    assert!(table.reader().unwrap().lock().find_id(AsId(0), SlotId(1)).is_some());
}

#[test]
fn a_release_that_panics_at_the_end_leaks_no_hooks() {
    struct Counted(#[expect(dead_code, reason = "it is there to be dropped")] Arc<()>);
    impl Hooks for Counted {
        fn release(&self, _gone: &Memslot) {
            panic!("on purpose");
        }
    }
    let alive = Arc::new(());
    let hooks = Box::new(Counted(alive.clone()));
    let table = Memslots::new(Config { hooks: Some(hooks), ..Config::default() }).unwrap();
    table.set_region(&region(1), null_mut()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(table))).is_err());
    assert_eq!(Arc::strong_count(&alive), 1);
}

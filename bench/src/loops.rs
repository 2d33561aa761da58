// SPDX-License-Identifier: MIT OR Apache-2.0

//! The measured loops of `c/loops.h`, for peers written in Rust: compiled once for each
//! [`Structure`], with its operations inlined. Knows nothing of any structure's insides.

use crate::peer::{Change, Slot, Vtable, HISTOGRAM_BUCKETS, NO_ANSWER};
use std::ffi::{c_int, c_void, CStr};
use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI32, Ordering};

/// A table that a Rust program would use.
pub trait Structure: Send + Sync + Sized + 'static {
    const NAME: &'static CStr;
    const HAS_HVA: bool;
    const HAS_IDS: bool;
    const HAS_FLAGS: bool;

    type Section<'t>;
    type Found;

    fn new(max_slots: u32) -> Self;
    fn section(&self) -> Self::Section<'_>;

    fn create(&self, slot: &Slot) -> Option<()>;
    fn create_all(&self, slots: &[Slot]) -> Option<()>;
    fn remove(&self, slot: &Slot) -> Option<()>;
    fn move_slot(&self, change: &Change) -> Option<()>;
    fn move_all(&self, changes: &[Change]) -> Option<()>;
    fn set_flags(&self, change: &Change) -> Option<()>;

    fn find_gfn<'s>(section: &'s Self::Section<'_>, gfn: u64) -> Option<&'s Self::Found>;
    fn find_id<'s>(section: &'s Self::Section<'_>, id: u64) -> Option<&'s Self::Found>;
    fn found_gfn(found: &Self::Found) -> u64;
    fn gfn_to_hva(section: &Self::Section<'_>, gfn: u64) -> Option<u64>;
    fn hva_to_gfn(section: &Self::Section<'_>, hva: u64) -> Option<u64>;
    /// The sum of (first gfn + 1) of all slots in `[start, last]`.
    fn hva_range(section: &Self::Section<'_>, start: u64, last: u64) -> u64;
}

/// The vtable of a structure.
pub struct Loops<S>(PhantomData<S>);

/// The queries and, where they are wanted, the place for the answers.
struct Run<'a> {
    queries: &'a [u64],
    answers: Option<&'a mut [u64]>,
}

impl<'a> Run<'a> {
    /// SAFETY: the pointers are as `bench.h` says.
    unsafe fn new(queries: *const u64, n: usize, answers: *mut u64) -> Self {
        // SAFETY: the caller's.
        unsafe {
            Self {
                queries: std::slice::from_raw_parts(queries, n),
                answers: (!answers.is_null()).then(|| std::slice::from_raw_parts_mut(answers, n)),
            }
        }
    }

    /// The number of queries that found something; `answer` is asked only when answers are wanted.
    #[inline(always)]
    fn hits<T>(self, mut find: impl FnMut(u64) -> Option<T>, answer: impl Fn(T) -> u64) -> u64 {
        let mut hits = 0;
        match self.answers {
            None => {
                for &query in self.queries {
                    hits += u64::from(black_box(find(query)).is_some());
                }
            }
            Some(answers) => {
                for (&query, place) in self.queries.iter().zip(answers) {
                    let found = find(query);
                    hits += u64::from(found.is_some());
                    *place = found.map_or(NO_ANSWER, &answer);
                }
            }
        }
        hits
    }

    #[inline(always)]
    fn sum(self, value: impl Fn(u64) -> u64) -> u64 {
        let mut sum = 0u64;
        match self.answers {
            None => {
                for &query in self.queries {
                    sum = sum.wrapping_add(value(query));
                }
            }
            Some(answers) => {
                for (&query, place) in self.queries.iter().zip(answers) {
                    *place = value(query);
                    sum = sum.wrapping_add(*place);
                }
            }
        }
        sum
    }
}

/// SAFETY: `raw` is a table made by `table_new` of the same structure; a reader is the table.
unsafe fn table<'t, S>(raw: *mut c_void) -> &'t S {
    // SAFETY: the caller's.
    unsafe { &*raw.cast::<S>() }
}

fn status(done: Option<()>) -> c_int {
    match done {
        Some(()) => 0,
        None => -libc::EINVAL,
    }
}

impl<S: Structure> Loops<S> {
    pub const VTABLE: Vtable = Vtable {
        name: S::NAME.as_ptr(),
        table_new: Self::table_new,
        table_free: Self::table_free,
        reader_new: Self::reader_new,
        reader_free: Self::reader_free,
        create: Self::create,
        create_all: Self::create_all,
        create_steps: Self::create_all,
        remove: Self::remove,
        move_: Self::move_slots,
        move_all: Self::move_all,
        set_flags: if S::HAS_FLAGS { Some(Self::set_flags) } else { None },
        quiesce: Self::reader_free,
        live_bytes: None,
        query: [
            Some(Self::gfn),
            Some(Self::gfn),
            Some(Self::gfn_dependent),
            Some(Self::gfn_section),
            Some(Self::gfn_hva),
            if S::HAS_HVA { Some(Self::hva_gfn) } else { None },
            if S::HAS_HVA { Some(Self::hva_range::<0xfff>) } else { None },
            if S::HAS_HVA { Some(Self::hva_range::<0x1f_ffff>) } else { None },
            if S::HAS_IDS { Some(Self::id) } else { None },
        ],
        many_readers: Self::many_readers,
        read_until: Self::read_until,
        sample_until: Self::sample_until,
    };

    unsafe extern "C" fn table_new(max_slots: u32) -> *mut c_void {
        Box::into_raw(Box::new(S::new(max_slots))).cast()
    }

    unsafe extern "C" fn table_free(raw: *mut c_void) {
        // SAFETY: made by table_new, freed once.
        drop(unsafe { Box::from_raw(raw.cast::<S>()) });
    }

    unsafe extern "C" fn reader_new(raw: *mut c_void) -> *mut c_void {
        raw
    }

    unsafe extern "C" fn reader_free(_raw: *mut c_void) {}

    unsafe extern "C" fn create(raw: *mut c_void, slots: *const Slot, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, slots) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(slots, n)) };
        status(slots.iter().try_for_each(|slot| table.create(slot)))
    }

    unsafe extern "C" fn create_all(raw: *mut c_void, slots: *const Slot, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, slots) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(slots, n)) };
        status(table.create_all(slots))
    }

    unsafe extern "C" fn remove(raw: *mut c_void, slots: *const Slot, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, slots) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(slots, n)) };
        status(slots.iter().try_for_each(|slot| table.remove(slot)))
    }

    unsafe extern "C" fn move_slots(raw: *mut c_void, changes: *const Change, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, changes) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(changes, n)) };
        status(changes.iter().try_for_each(|change| table.move_slot(change)))
    }

    unsafe extern "C" fn move_all(raw: *mut c_void, changes: *const Change, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, changes) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(changes, n)) };
        status(table.move_all(changes))
    }

    unsafe extern "C" fn set_flags(raw: *mut c_void, changes: *const Change, n: usize) -> c_int {
        // SAFETY: bench.h.
        let (table, changes) = unsafe { (table::<S>(raw), std::slice::from_raw_parts(changes, n)) };
        status(changes.iter().try_for_each(|change| table.set_flags(change)))
    }

    unsafe extern "C" fn gfn(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        run.hits(|gfn| S::find_gfn(&section, gfn), S::found_gfn)
    }

    unsafe extern "C" fn gfn_dependent(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        let mut wait = 0; // always 0, which the compiler cannot know
        let find = |gfn: u64| {
            let found = S::find_gfn(&section, gfn | wait);
            let address = found.map_or(0, |found| black_box(std::ptr::from_ref(found)) as usize);
            wait = (address >> 63) as u64;
            found
        };
        run.hits(find, S::found_gfn)
    }

    unsafe extern "C" fn gfn_section(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let wanted = run.answers.is_some();
        let find = |gfn: u64| {
            let section = table.section();
            let found = black_box(S::find_gfn(&section, gfn));
            found.map(|found| if wanted { S::found_gfn(found) } else { 0 })
        };
        run.hits(find, |gfn| gfn)
    }

    unsafe extern "C" fn gfn_hva(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        run.sum(|gfn| S::gfn_to_hva(&section, gfn).unwrap_or(NO_ANSWER))
    }

    unsafe extern "C" fn hva_gfn(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        run.sum(|hva| S::hva_to_gfn(&section, hva).unwrap_or(NO_ANSWER))
    }

    unsafe extern "C" fn hva_range<const LENGTH_MINUS_1: u64>(
        raw: *mut c_void,
        queries: *const u64,
        n: usize,
        answers: *mut u64,
    ) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        run.sum(|hva| S::hva_range(&section, hva, hva + LENGTH_MINUS_1))
    }

    unsafe extern "C" fn id(raw: *mut c_void, queries: *const u64, n: usize, answers: *mut u64) -> u64 {
        // SAFETY: bench.h.
        let (table, run) = unsafe { (table::<S>(raw), Run::new(queries, n, answers)) };
        let section = table.section();
        run.hits(|id| S::find_id(&section, id), S::found_gfn)
    }

    unsafe extern "C" fn many_readers(
        readers: *const *mut c_void,
        nr: usize,
        queries: *const u64,
        n: usize,
        _own: c_int,
    ) -> u64 {
        // SAFETY: bench.h; all readers are one table, which has no last-used slot.
        let (readers, queries) =
            unsafe { (std::slice::from_raw_parts(readers, nr), std::slice::from_raw_parts(queries, n)) };
        // SAFETY: as above.
        let section = unsafe { table::<S>(readers[0]) }.section();
        let found = |&&gfn: &&u64| black_box(S::find_gfn(&section, gfn)).is_some();
        queries.iter().filter(found).count() as u64
    }

    unsafe extern "C" fn read_until(
        raw: *mut c_void,
        queries: *const u64,
        n: usize,
        per_section: usize,
        stop: *const c_int,
    ) -> u64 {
        // SAFETY: bench.h.
        let (table, queries, stop) = unsafe {
            let stop = AtomicI32::from_ptr(stop.cast_mut());
            (table::<S>(raw), std::slice::from_raw_parts(queries, n), stop)
        };
        let mut done = 0;
        for chunk in queries.chunks_exact(per_section).cycle() {
            if stop.load(Ordering::Relaxed) != 0 {
                break;
            }
            let section = table.section();
            for &gfn in chunk {
                black_box(S::find_gfn(&section, gfn));
            }
            done += per_section as u64;
        }
        done
    }

    unsafe extern "C" fn sample_until(
        raw: *mut c_void,
        queries: *const u64,
        n: usize,
        histogram: *mut u64,
        stop: *const c_int,
    ) {
        use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};
        // SAFETY: bench.h.
        let (table, queries, histogram, stop) = unsafe {
            (
                table::<S>(raw),
                std::slice::from_raw_parts(queries, n),
                std::slice::from_raw_parts_mut(histogram, HISTOGRAM_BUCKETS),
                AtomicI32::from_ptr(stop.cast_mut()),
            )
        };
        for &gfn in queries.iter().cycle() {
            if stop.load(Ordering::Relaxed) != 0 {
                return;
            }
            let mut cpu = 0;
            // SAFETY: every x86-64 has them.
            let begin = unsafe {
                _mm_lfence();
                _rdtsc()
            };
            {
                let section = table.section();
                black_box(S::find_gfn(&section, gfn));
            }
            // SAFETY: as above.
            let end = unsafe { __rdtscp(&mut cpu) };
            histogram[crate::histogram::bucket(end - begin)] += 1;
        }
    }
}

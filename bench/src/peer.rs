// SPDX-License-Identifier: MIT OR Apache-2.0

//! A measured structure as the harness sees it: `c/bench.h` in Rust, and owners for the tables and
//! readers behind its raw pointers. Knows nothing of any structure's insides.

use std::ffi::{c_char, c_int, c_void, CStr};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub gfn: u64,
    pub npages: u64,
    pub hva: u64,
    pub id: u32,
    pub flags: u32,
}

/// A move or a flags change of a slot that is now at `old_gfn`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub old_gfn: u64,
    pub new_gfn: u64,
    pub npages: u64,
    pub id: u32,
    pub flags: u32,
}

pub const NO_ANSWER: u64 = u64::MAX;
pub const PAGE_SHIFT: u32 = 12;
pub const HISTOGRAM_BUCKETS: usize = 64 + 32 * 42;

/// The kinds of lookups, in the order of `enum bench_query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Query {
    Gfn,
    GfnInline,
    GfnDependent,
    GfnSection,
    GfnHva,
    HvaGfn,
    Hva4K,
    Hva2M,
    Id,
}

pub const NR_QUERIES: usize = 9;

pub type Updates<T> = unsafe extern "C" fn(*mut c_void, *const T, usize) -> c_int;
pub type Lookups = unsafe extern "C" fn(*mut c_void, *const u64, usize, *mut u64) -> u64;

/// `struct bench_peer`.
#[repr(C)]
pub struct Vtable {
    pub name: *const c_char,
    pub table_new: unsafe extern "C" fn(u32) -> *mut c_void,
    pub table_free: unsafe extern "C" fn(*mut c_void),
    pub reader_new: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    pub reader_free: unsafe extern "C" fn(*mut c_void),
    pub create: Updates<Slot>,
    pub create_all: Updates<Slot>,
    pub create_steps: Updates<Slot>,
    pub remove: Updates<Slot>,
    pub move_: Updates<Change>,
    pub move_all: Updates<Change>,
    pub set_flags: Option<Updates<Change>>,
    pub quiesce: unsafe extern "C" fn(*mut c_void),
    pub live_bytes: Option<unsafe extern "C" fn(*mut c_void) -> usize>,
    pub query: [Option<Lookups>; NR_QUERIES],
    pub many_readers: unsafe extern "C" fn(*const *mut c_void, usize, *const u64, usize, c_int) -> u64,
    pub read_until: unsafe extern "C" fn(*mut c_void, *const u64, usize, usize, *const c_int) -> u64,
    pub sample_until: unsafe extern "C" fn(*mut c_void, *const u64, usize, *mut u64, *const c_int),
}

// SAFETY: a vtable is constant data: functions and a string literal.
unsafe impl Sync for Vtable {}

/// A structure under measurement.
#[derive(Clone, Copy)]
pub struct Peer {
    vtable: &'static Vtable,
    /// Its updates cost in proportion to the table: too dear to build a large table one by one.
    pub linear_updates: bool,
    /// Many threads may use one table.
    pub concurrent: bool,
    /// Many changes are one transaction, all seen at once.
    pub transactions: bool,
    /// Its sections hold a lock: what it is called where it takes the lock for each lookup, as whoever lets
    /// a writer in has to.
    pub locked: Option<&'static str>,
}

/// What the peer answered to an update.
#[derive(Debug)]
pub struct Refused(pub i32);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an update was refused: {}", std::io::Error::from_raw_os_error(-self.0))
    }
}

impl std::error::Error for Refused {}

impl Peer {
    /// `vtable` holds what `bench.h` demands: every entry sound for the pointers it hands out.
    pub fn new(vtable: &'static Vtable) -> Self {
        Self { vtable, linear_updates: false, concurrent: false, transactions: false, locked: None }
    }

    pub fn linear(mut self) -> Self {
        self.linear_updates = true;
        self
    }

    pub fn concurrent(mut self) -> Self {
        self.concurrent = true;
        self
    }

    pub fn transactional(mut self) -> Self {
        self.transactions = true;
        self
    }

    pub fn locked(mut self, name: &'static str) -> Self {
        self.locked = Some(name);
        self
    }

    pub fn name(&self) -> &'static str {
        // SAFETY: the name is a NUL-terminated literal of the peer.
        unsafe { CStr::from_ptr(self.vtable.name) }.to_str().unwrap_or("?")
    }

    pub fn has(&self, query: Query) -> bool {
        self.vtable.query[query as usize].is_some()
    }

    pub fn has_flags(&self) -> bool {
        self.vtable.set_flags.is_some()
    }

    pub fn table(&self, max_slots: u32) -> Table {
        // SAFETY: any number is a valid argument.
        let raw = unsafe { (self.vtable.table_new)(max_slots) };
        assert!(!raw.is_null(), "{}: no table", self.name());
        Table { peer: *self, raw }
    }
}

/// One table of a peer; freed when dropped, after its readers.
pub struct Table {
    peer: Peer,
    raw: *mut c_void,
}

// SAFETY: updates and `reader` of a peer marked `concurrent` may come from any thread; the harness
// gives tables of other peers to one thread only.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

fn result(answer: c_int) -> Result<(), Refused> {
    if answer == 0 {
        Ok(())
    } else {
        Err(Refused(answer))
    }
}

impl Table {
    /// `raw` is a table of `peer`, made by a door of its own.
    pub fn from_raw(peer: Peer, raw: *mut c_void) -> Self {
        assert!(!raw.is_null(), "{}: no table", peer.name());
        Self { peer, raw }
    }

    pub fn raw(&self) -> *mut c_void {
        self.raw
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub fn reader(&self) -> Reader<'_> {
        // SAFETY: the table lives as long as the reader borrows it.
        let raw = unsafe { (self.peer.vtable.reader_new)(self.raw) };
        assert!(!raw.is_null(), "{}: no reader", self.peer.name());
        Reader { table: self, raw }
    }

    fn update<T>(&self, entry: Updates<T>, items: &[T]) -> Result<(), Refused> {
        // SAFETY: the table is alive, the items are `items.len()` of the entry's type.
        result(unsafe { entry(self.raw, items.as_ptr(), items.len()) })
    }

    pub fn create(&self, slots: &[Slot]) -> Result<(), Refused> {
        self.update(self.peer.vtable.create, slots)
    }

    pub fn create_all(&self, slots: &[Slot]) -> Result<(), Refused> {
        self.update(self.peer.vtable.create_all, slots)
    }

    pub fn create_steps(&self, slots: &[Slot]) -> Result<(), Refused> {
        self.update(self.peer.vtable.create_steps, slots)
    }

    pub fn remove(&self, slots: &[Slot]) -> Result<(), Refused> {
        self.update(self.peer.vtable.remove, slots)
    }

    pub fn move_slots(&self, changes: &[Change]) -> Result<(), Refused> {
        self.update(self.peer.vtable.move_, changes)
    }

    pub fn move_all(&self, changes: &[Change]) -> Result<(), Refused> {
        self.update(self.peer.vtable.move_all, changes)
    }

    /// Only where the peer `has_flags`.
    pub fn set_flags(&self, changes: &[Change]) -> Result<(), Refused> {
        let entry = self.peer.vtable.set_flags.expect("a peer with flags");
        self.update(entry, changes)
    }

    /// What its structures take, where the peer can tell that from what it holds for later.
    pub fn live_bytes(&self) -> Option<usize> {
        // SAFETY: the table is alive.
        self.peer.vtable.live_bytes.map(|entry| unsafe { entry(self.raw) })
    }

    pub fn quiesce(&self) {
        // SAFETY: the table is alive; no section of this thread is open.
        unsafe { (self.peer.vtable.quiesce)(self.raw) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: readers borrow the table, so none is left.
        unsafe { (self.peer.vtable.table_free)(self.raw) }
    }
}

/// One reading thread of a table; stays on the thread that made it.
pub struct Reader<'t> {
    table: &'t Table,
    raw: *mut c_void,
}

impl Reader<'_> {
    pub fn raw(&self) -> *mut c_void {
        self.raw
    }

    fn entry(&self, query: Query) -> Lookups {
        self.table.peer.vtable.query[query as usize].expect("a lookup that the peer has")
    }

    /// Runs the loop; the number of hits or the sum of the answers.
    pub fn run(&self, query: Query, queries: &[u64]) -> u64 {
        let entry = self.entry(query);
        // SAFETY: the reader is alive; without `answers` the loop only reads the queries. The
        // dependent loop looks at queries[i + 0].
        unsafe { entry(self.raw, queries.as_ptr(), queries.len(), std::ptr::null_mut()) }
    }

    pub fn answers(&self, query: Query, queries: &[u64]) -> Vec<u64> {
        let entry = self.entry(query);
        let mut answers = vec![0; queries.len()];
        // SAFETY: as above, and there is room for an answer a query.
        unsafe { entry(self.raw, queries.as_ptr(), queries.len(), answers.as_mut_ptr()) };
        answers
    }

    pub fn read_until(&self, queries: &[u64], per_section: usize, stop: *const c_int) -> u64 {
        let entry = self.table.peer.vtable.read_until;
        // SAFETY: `stop` outlives the scope of threads that the harness runs this in.
        unsafe { entry(self.raw, queries.as_ptr(), queries.len(), per_section, stop) }
    }

    pub fn sample_until(&self, queries: &[u64], histogram: &mut [u64], stop: *const c_int) {
        assert_eq!(histogram.len(), HISTOGRAM_BUCKETS);
        let entry = self.table.peer.vtable.sample_until;
        // SAFETY: as above; the histogram has the size that bench.h names.
        unsafe {
            entry(self.raw, queries.as_ptr(), queries.len(), histogram.as_mut_ptr(), stop);
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // SAFETY: the table is still alive, and this is the reader's thread.
        unsafe { (self.table.peer.vtable.reader_free)(self.raw) }
    }
}

/// Query i by reader i modulo their number.
pub fn many_readers(readers: &[Reader<'_>], queries: &[u64], own: bool) -> u64 {
    let raw: Vec<*mut c_void> = readers.iter().map(|reader| reader.raw).collect();
    let entry = readers[0].table.peer.vtable.many_readers;
    // SAFETY: all readers are alive, of one table and on this thread.
    unsafe { entry(raw.as_ptr(), raw.len(), queries.as_ptr(), queries.len(), own.into()) }
}

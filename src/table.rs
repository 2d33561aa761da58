// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table itself: how one is configured, made, changed, looked at and dropped.
//!
//! Knows neither the bytes of a node nor C.

use crate::cancel::NoCancel;
use crate::change::{Decision, Rules};
use crate::error::{Errno, Refused, Result};
use crate::hooks::Hooks;
use crate::kvm::Backend;
use crate::plan::{self, Difference};
use crate::reader::Reader;
use crate::shared::{Owner, Shared};
use crate::slot::{AsId, Gpa, Limits, Memslot, Region, SlotId, MAX_ADDRESS_SPACES};
use crate::snapshot::PublishedRef;
use crate::stats::Stats;
use crate::trace::{self, Op, Trace};
use crate::update::{self, Transaction};
use std::ffi::c_void;
use std::fmt::Write as _;
use std::os::fd::RawFd;

/// How a table is made. The default is KVM's: one address space of 32,764 slots with pages of 4 KiB.
pub struct Config {
    /// Address spaces: 1 to 64.
    pub nr_address_spaces: u32,
    /// Slots in each, and so ids below this: 1 to 65,535.
    pub max_slots: u32,
    /// log2 of the host's page size: 12 to 30.
    pub page_shift: u32,
    /// The flags that a slot may have; others are refused with `EINVAL`.
    pub supported_flags: u32,
    /// Whether an update returns only when no reader is left that could use what was before, as KVM's ioctl does.
    pub sync: bool,
    /// What is told of updates, and may refuse them.
    pub hooks: Option<Box<dyn Hooks>>,
    /// Where usable host addresses end.
    pub hva_limit: u64,
    /// Bits of a guest physical address: more than `page_shift`, at most 64.
    pub gpa_bits: u32,
    /// Bytes of garbage past which an update waits for readers; 0: none.
    pub max_garbage: usize,
    /// Never call `membarrier(2)`: readers take a fence for each section instead. So it is, too, where the kernel
    /// refuses it when the table is made; [`Stats::kept_pins`] says which.
    pub no_membarrier: bool,
}

impl Default for Config {
    fn default() -> Self {
        let Limits { nr_address_spaces, max_slots, page_shift, supported_flags, hva_limit, gpa_bits } = Limits::KVM;
        Config {
            nr_address_spaces,
            max_slots,
            page_shift,
            supported_flags,
            sync: false,
            hooks: None,
            hva_limit,
            gpa_bits,
            max_garbage: 0,
            no_membarrier: false,
        }
    }
}

impl Config {
    /// # Errors
    /// `EINVAL` where a number is outside of its range.
    fn limits(&self) -> Result<Limits> {
        let Config { nr_address_spaces, max_slots, page_shift, supported_flags, hva_limit, gpa_bits, .. } = *self;
        let sound = (1..=MAX_ADDRESS_SPACES).contains(&nr_address_spaces)
            && (1..=0xffff).contains(&max_slots)
            && (12..=30).contains(&page_shift)
            && (page_shift + 1..=64).contains(&gpa_bits)
            && supported_flags & !Limits::KVM.supported_flags == 0;
        if !sound {
            return Err(Errno::EINVAL);
        }
        Ok(Limits { nr_address_spaces, max_slots, page_shift, supported_flags, hva_limit, gpa_bits })
    }
}

/// One VM's memslot table: all of its address spaces.
///
/// Any thread may update it; updates are serialised. Readers are made with [`Memslots::reader`] and never wait for one.
/// Dropping it takes every slot away from readers that are left, waits for the sections that are open (unless one of
/// them is this thread's), and runs every release still owed.
pub struct Memslots {
    shared: Owner,
}

impl Memslots {
    /// An empty table.
    ///
    /// # Errors
    /// `EINVAL` where the configuration is none, `ENOMEM`.
    pub fn new(config: Config) -> Result<Memslots> {
        let limits = config.limits()?;
        let shared = Shared::new(limits, config.sync, config.max_garbage, !config.no_membarrier, config.hooks)?;
        Ok(Memslots { shared: Owner::new(shared)? })
    }

    /// Whether this thread holds the update lock.
    pub(crate) fn is_updating(&self) -> bool {
        self.shared.is_updating()
    }

    /// A reader of this table, for one thread at a time. It may outlive the table, and then finds nothing.
    ///
    /// # Errors
    /// `ENOMEM`; `EDEADLK` in a release that the end of the table runs.
    pub fn reader(&self) -> Result<Reader> {
        Reader::new(self.shared.another()?)
    }

    // ---- updates ----

    /// Begins a transaction, and holds the update lock until it ends. Waits for other threads' updates.
    ///
    /// # Errors
    /// `EDEADLK` where this thread has a transaction open, is inside a hook, or is in a section that another thread's
    /// update waits for; `ENOTRECOVERABLE` after a panic inside an update; `ENOMEM`.
    pub fn begin(&self) -> Result<Transaction<'_>> {
        Transaction::begin(self.shared.update()?)
    }

    /// As [`Memslots::begin`], a transaction that does not borrow the table. What is left of a table that is dropped
    /// meanwhile goes with it.
    ///
    /// # Errors
    /// As there.
    pub fn begin_owned(&self) -> Result<Transaction<'static>> {
        Transaction::begin_owned(self.shared.another()?)
    }

    /// The whole of `KVM_SET_USER_MEMORY_REGION2`: decides create, delete, move or flags-only itself. `opaque` counts
    /// where it creates.
    ///
    /// # Errors
    /// The kernel's; those of [`Memslots::begin`] and [`Transaction::commit`].
    pub fn set_region(&self, region: &Region, opaque: *mut c_void) -> Result<()> {
        self.single(Op::Set, || *region, |rules| rules.set_region(region, opaque))
    }

    /// Creates a slot, and gives its id. See [`Transaction::create`].
    ///
    /// # Errors
    /// As there, and as [`Memslots::set_region`].
    pub fn create(&self, region: &Region, opaque: *mut c_void) -> Result<SlotId> {
        let mut id = SlotId(0);
        self.single(
            Op::Create,
            || *region,
            |rules| {
                let decision = rules.create(region, opaque)?;
                if let Decision::Create(slot) = &decision {
                    id = slot.id;
                }
                Ok(decision)
            },
        )?;
        Ok(id)
    }

    /// Deletes a slot. See [`Transaction::delete`].
    ///
    /// # Errors
    /// As there, and as [`Memslots::set_region`].
    pub fn delete(&self, as_id: AsId, id: SlotId) -> Result<()> {
        self.single(Op::Delete, || trace::named(as_id, id), |rules| rules.delete(as_id, id))
    }

    /// Moves a slot. See [`Transaction::move_slot`].
    ///
    /// # Errors
    /// As there, and as [`Memslots::set_region`].
    pub fn move_slot(&self, as_id: AsId, id: SlotId, gpa: Gpa) -> Result<()> {
        let named = || Region { guest_phys_addr: gpa.0, ..trace::named(as_id, id) };
        self.single(Op::Move, named, |rules| rules.move_slot(as_id, id, gpa))
    }

    /// Changes a slot's flags. See [`Transaction::set_flags`].
    ///
    /// # Errors
    /// As there, and as [`Memslots::set_region`].
    pub fn set_flags(&self, as_id: AsId, id: SlotId, flags: u32) -> Result<()> {
        let named = || Region { flags, ..trace::named(as_id, id) };
        self.single(Op::Flags, named, |rules| rules.set_flags(as_id, id, flags))
    }

    /// Makes all changes or none, in one publication. The cost follows their number, not the table's size.
    ///
    /// # Errors
    /// As [`Memslots::set_region`], with the index of the one that was refused.
    pub fn apply(&self, regions: &[Region], opaques: Option<&[*mut c_void]>) -> Result<(), Refused> {
        update::apply(&self.shared, regions, |index| opaque_at(opaques, index))
    }

    /// Makes the regions, in any order, all that an address space has: works out the difference, and leaves alone what
    /// is equal. A slot that stays, moves or changes flags keeps its opaque; one of another size or hva is deleted and
    /// created under the same id. Slots may exchange places.
    ///
    /// # Errors
    /// `EEXIST` where a region has the id of an earlier one or overlaps it; `EINVAL` for size 0, another address space,
    /// and what `set_region` refuses; those of a commit. With the index of the first culprit.
    pub fn replace_all(&self, as_id: AsId, regions: &[Region], opaques: Option<&[*mut c_void]>) -> Result<(), Refused> {
        update::replace_all(&self.shared, as_id, regions, |index| opaque_at(opaques, index))
    }

    /// One update, and its line in the trace.
    #[inline(always)]
    fn single(
        &self,
        op: Op,
        named: impl FnOnce() -> Region,
        decide: impl FnOnce(Rules) -> Result<Decision>,
    ) -> Result<()> {
        update::single(&self.shared, op, named, decide)
    }

    // ---- reclaiming ----

    /// Frees what no reader can see any more and runs all releases that are due. Does not wait for readers. Gives the
    /// releases run; 0 also where this thread is inside an update of this table.
    pub fn reclaim(&self) -> usize {
        let Ok(mut lock) = self.shared.update() else { return 0 };
        let mut released = lock.collect(true);
        // The epoch moves one step a call, and a bag is ripe two steps after it was sealed: after three calls without
        // one, a reader is in the way.
        let mut calls = 0;
        while calls < 3 && lock.lane().bags() > 0 {
            lock.advance();
            let shared = lock.shared();
            calls = if lock.lane().has_ripe(&shared.domain) { 0 } else { calls + 1 };
            released += lock.drain();
        }
        released
    }

    /// Waits until every read-side section that is open now has ended, and runs what was due.
    ///
    /// # Errors
    /// `EDEADLK` where one of them is this thread's, or this thread is inside an update of this table.
    pub fn synchronize(&self) -> Result<()> {
        if self.shared.readers.in_section() {
            return Err(Errno::EDEADLK);
        }
        let mut due = self.seal()?;
        loop {
            self.shared.wait_for_readers();
            let Some(number) = due else {
                // Without memory for a bag: one that has been emptied since then will do.
                due = self.seal()?;
                continue;
            };
            let mut lock = self.shared.update()?;
            lock.drain();
            if lock.lane().has_emptied(number) {
                return Ok(());
            }
        }
    }

    /// Seals what is retired, and gives the number of the last bag; none where there was no memory for one.
    fn seal(&self) -> Result<Option<u64>> {
        let mut lock = self.shared.update()?;
        lock.collect(true);
        let lane = lock.lane();
        Ok((!lane.has_pending()).then(|| lane.sealed()))
    }

    // ---- a real VM, a trace ----

    /// From here on every commit is also made on this VM. Slots that exist are registered first. The file descriptor
    /// stays the caller's; -1 detaches, and the VM keeps the slots that it has.
    ///
    /// # Errors
    /// `EBADF`, `ENOTTY` where it is no VM; what the kernel refuses an existing slot with, and then none of them is
    /// left there; those of [`Memslots::begin`].
    pub fn attach_kvm(&self, vm_fd: RawFd) -> Result<()> {
        let mut lock = self.shared.update()?;
        if vm_fd == -1 {
            lock.writer().backend = None;
            return Ok(());
        }
        let backend = Backend::new(vm_fd)?;
        let regions = self.all_regions(lock.current())?;
        let writer = lock.writer();
        backend.run(&plan::steps(&regions)?, &mut writer.out_of_step).map_err(|(errno, _)| errno)?;
        writer.backend = Some(backend);
        Ok(())
    }

    fn all_regions(&self, published: PublishedRef) -> Result<Vec<Difference>> {
        let mut all = Vec::new();
        let count = published.spaces().iter().map(|space| space.count as usize).sum();
        all.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        published.for_each_slot(|slot| {
            let region = Region::of(slot, self.shared.limits.page_shift);
            all.push(Difference { old: None, new: Some(region) });
        });
        Ok(all)
    }

    /// Writes every change to `fd`, a line each, until `trace_stop`. The file descriptor stays the caller's. First come
    /// the slots that exist, as lines that make them.
    ///
    /// # Errors
    /// `EBADF` where it is not open, those of [`Memslots::begin`].
    pub fn trace_start(&self, fd: RawFd) -> Result<()> {
        // SAFETY: the call only looks the number up.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(Errno::last());
        }
        let _no_cancel = NoCancel::begin();
        let mut lock = self.shared.update()?;
        let mut trace = Trace::new(fd);
        lock.current().for_each_slot(|slot| {
            trace.line(0, Op::Set, &Region::of(slot, self.shared.limits.page_shift), Ok(()));
        });
        lock.writer().trace = Some(trace);
        Ok(())
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// Those of [`Memslots::begin`].
    pub fn trace_stop(&self) -> Result<()> {
        self.shared.update()?.writer().trace = None;
        Ok(())
    }

    // ---- looking ----

    /// Where the table stands, as the last update left it. Does not wait.
    pub fn stats(&self) -> Stats {
        let (readers, open_sections, oldest_section_lag) = self.shared.presences();
        let (readers, open_sections) = (readers as u64, open_sections as u64);
        let kept_pins = self.shared.domain.keeps_pins() as u64;
        Stats { readers, open_sections, oldest_section_lag, kept_pins, ..self.shared.figures.read() }
    }

    /// Writes the table for a person, a line a slot.
    ///
    /// # Errors
    /// What writing fails with, those of [`Memslots::begin`].
    pub fn dump(&self, fd: RawFd) -> Result<()> {
        let _no_cancel = NoCancel::begin();
        let mut lock = self.shared.update()?;
        let mut line = Line { text: [0; 256], len: 0, fd, failed: Ok(()) };
        for (as_id, space) in lock.current().spaces().iter().enumerate() {
            let (count, npages, generation) = (space.count, space.npages, space.generation);
            let _ = writeln!(line, "address space {as_id}: {count} slots, {npages} pages, generation {generation}");
            space.for_each_slot(|slot| {
                let _ = writeln!(line, "{}", Shown(slot, self.shared.limits.page_shift));
            });
        }
        if let Some(out) = lock.writer().out_of_step {
            let (undo, errno, count) = (out.undo, out.errno, out.count);
            let _ = writeln!(
                line,
                "out of step with the attached VM: {count} changes were not undone; the last: {errno:?}"
            );
            let (slot, gpa, size) = (undo.slot, undo.guest_phys_addr, undo.memory_size);
            let _ = writeln!(line, "  slot {slot:#x} could not be set to gpa {gpa:#x} size {size:#x}");
        }
        line.failed
    }
}

impl Drop for Memslots {
    fn drop(&mut self) {
        // Without readers all of it goes with the last owner, which is this one. From inside a section of this thread's
        // it goes with the last reader.
        if !self.shared.is_last() && !self.shared.readers.is_forked() && !self.shared.readers.in_section() {
            self.shared.close();
        }
    }
}

fn opaque_at(opaques: Option<&[*mut c_void]>, index: usize) -> *mut c_void {
    opaques.and_then(|opaques| opaques.get(index)).copied().unwrap_or(std::ptr::null_mut())
}

/// A slot for a person.
struct Shown<'a>(&'a Memslot, u32);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Memslot { base_gfn, npages, userspace_addr, flags, id, guest_memfd, guest_memfd_offset, .. } = *self.0;
        let (gpa, last) = (base_gfn.gpa(self.1), self.0.end_gfn().gpa(self.1).0.wrapping_sub(1));
        write!(f, "  slot {id:5}  gpa {gpa:#014x}-{last:#014x}  hva {userspace_addr:#014x}  pages {npages:8}")?;
        let names = [(crate::slot::LOG_DIRTY_PAGES, "log-dirty"), (crate::slot::READONLY, "readonly")];
        names.iter().filter(|(bit, _)| flags & bit != 0).try_for_each(|(_, name)| write!(f, "  {name}"))?;
        if guest_memfd >= 0 {
            write!(f, "  guest_memfd {guest_memfd}+{guest_memfd_offset:#x}")?;
        }
        Ok(())
    }
}

/// Lines on their way to a file descriptor, without an allocation.
struct Line {
    text: [u8; 256],
    len: usize,
    fd: RawFd,
    failed: Result<()>,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.text[self.len] = byte;
            self.len += 1;
            if byte == b'\n' || self.len == self.text.len() {
                self.failed = self.failed.and(trace::write_all(self.fd, &self.text[..self.len]));
                self.len = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Gfn;
    use std::ptr::null_mut;

    fn region(id: u32) -> Region {
        Region { slot: id, guest_phys_addr: (id as u64) << 20, memory_size: 4096, ..Region::default() }
    }

    /// Addresses of all that the current state is made of, as numbers.
    fn addresses(table: &Memslots) -> Vec<u64> {
        let lock = table.shared.update().unwrap();
        let mut all = Vec::new();
        for space in lock.current().spaces() {
            // SAFETY: alive under the update lock; nothing is freed.
            unsafe {
                space.for_each_node(&|_| false, &mut |node| all.push(node.addr().get() as u64));
                space.for_each_record(&|_| false, &mut |record| all.push(record.addr().get() as u64));
            }
        }
        all
    }

    /// How many nodes of the first address space have memory of their own.
    fn nodes_outside_of_the_root(table: &Memslots) -> usize {
        let lock = table.shared.update().unwrap();
        let (space, mut nodes) = (lock.current().space(AsId(0)).unwrap(), 0);
        // SAFETY: alive under the update lock; nothing is freed.
        unsafe { space.for_each_node(&|_| false, &mut |_| nodes += 1) };
        nodes
    }

    /// The root has a place for 16 slots by gfn and for the ids up to 31. The hva tree is always outside.
    #[test]
    fn a_small_space_has_its_first_nodes_in_the_root() {
        let table = Memslots::new(Config::default()).unwrap();
        let finds =
            |id: u32| table.reader().unwrap().lock().find_gfn(AsId(0), Gfn((id as u64) << 8)).map(|slot| slot.id.0);
        let create = |id: u32| table.set_region(&region(id), null_mut()).unwrap();
        let delete = |id: u16| table.delete(AsId(0), SlotId(id)).unwrap();
        for round in 0..2 {
            (0..16).for_each(create);
            assert_eq!(nodes_outside_of_the_root(&table), 1, "round {round}");
            create(16);
            assert_eq!(nodes_outside_of_the_root(&table), 2, "the leaf has moved out");
            let mut txn = table.begin().unwrap();
            (17..40).for_each(|id| txn.set_region(&region(id), null_mut()).unwrap());
            txn.abort();
            assert_eq!(nodes_outside_of_the_root(&table), 2);
            create(32);
            assert_eq!(nodes_outside_of_the_root(&table), 5, "ids above 31 take a node above two");
            assert!((0..17).chain([32]).all(|id| finds(id) == Some(id as u16)));
            (0..17).chain([32]).for_each(delete);
            assert_eq!((nodes_outside_of_the_root(&table), finds(3)), (0, None));
        }
        create(31);
        create(7);
        table.move_slot(AsId(0), SlotId(7), Gpa(100 << 20)).unwrap();
        assert_eq!((finds(100), finds(7), finds(31)), (Some(7), None, Some(31)));
        assert_eq!(nodes_outside_of_the_root(&table), 1, "what was empty begins in the root again");
    }

    fn set_next_stamp(table: &Memslots, stamp: u64) {
        let lock = table.shared.update().unwrap();
        // SAFETY: the lock is held.
        unsafe { (*lock.shared().store.get()).set_next_stamp(stamp) };
    }

    /// In 0.1 a node that an aborted transaction had replaced stayed published with an address where its stamp belongs.
    /// When the stamps came to that number, an update took the node for its own and edited it under readers.
    #[test]
    fn no_stamp_makes_an_update_take_a_published_node_for_its_own() {
        let table = Memslots::new(Config::default()).unwrap();
        let slots = if cfg!(miri) { 10 } else { 200 };
        (0..slots).for_each(|id| table.set_region(&region(id), null_mut()).unwrap());
        for victim in [3, slots / 2] {
            let mut txn = table.begin().unwrap();
            txn.set_flags(AsId(0), SlotId(victim as u16), crate::LOG_DIRTY_PAGES).unwrap();
            txn.abort();
            for stamp in addresses(&table) {
                set_next_stamp(&table, stamp);
                let reader = table.reader().unwrap();
                let section = reader.lock();
                let walk = section.iter(AsId(0));
                table.delete(AsId(0), SlotId(victim as u16)).unwrap();
                assert_eq!(
                    walk.count() as u32,
                    slots,
                    "the walk that began before the delete is over what was there then"
                );
                drop(section);
                table.set_region(&region(victim), null_mut()).unwrap();
            }
        }
        assert!(table.reader().unwrap().lock().find_gfn(AsId(0), Gfn(3 << 8)).is_some());
    }

    /// What ends it takes it by value, so that nothing in it may promise that the table's memory stays: Miri would see.
    #[test]
    fn a_transaction_may_be_the_last_of_its_table() {
        for commits in [false, true] {
            let table = Memslots::new(Config::default()).unwrap();
            let mut txn = table.begin_owned().unwrap();
            txn.set_region(&region(1), null_mut()).unwrap();
            drop(table);
            match commits {
                true => txn.commit().unwrap(),
                false => drop(txn),
            }
        }
    }
}

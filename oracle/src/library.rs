// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library as a player: does operations through its Rust interface and compares everything that a reader can
//! ask with the model.

use std::ffi::c_void;

use memslots::{
    Access, AsId, Config, Errno, Gfn, Gpa, Hva, Memslot, Memslots, Pages, Reader, Region, Section, SlotId, Transaction,
};

use crate::compare::Player;
use crate::model::{Limits, Model, Slot, Space};
use crate::op::{Op, Outcome, Request};
use crate::world::{Choose, Seed};

/// A table of the library, with the transaction that may be open on it.
pub struct Library {
    // Dropped before the table that it refers to.
    transaction: Option<Transaction<'static>>,
    reader: Reader,
    table: Box<Memslots>,
    limits: Limits,
}

/// The configuration for limits.
pub fn config(limits: &Limits) -> Config {
    Config {
        nr_address_spaces: limits.nr_address_spaces.into(),
        max_slots: limits.max_slots,
        page_shift: limits.page_shift,
        supported_flags: limits.supported_flags,
        hva_limit: limits.hva_limit,
        gpa_bits: limits.gpa_bits,
        ..Config::default()
    }
}

/// A request as the library takes it.
pub fn region(r: &Request) -> Region {
    Region {
        slot: u32::from(r.id) | u32::from(r.as_id) << 16,
        flags: r.flags,
        guest_phys_addr: r.gpa,
        memory_size: r.size,
        userspace_addr: r.hva,
        guest_memfd_offset: r.offset,
        guest_memfd: r.memfd as u32,
        ..Default::default()
    }
}

/// The opaque pointer that stands for a number.
pub fn opaque_of(number: usize) -> *mut c_void {
    number as *mut c_void
}

fn errno(error: Errno) -> i32 {
    error.0
}

impl Library {
    /// An empty table.
    pub fn new(limits: &Limits) -> Library {
        Library::with(Memslots::new(config(limits)).expect("a table"), limits)
    }

    /// A table made elsewhere, with hooks perhaps, or attached to a VM.
    pub fn with(table: Memslots, limits: &Limits) -> Library {
        let reader = table.reader().expect("a reader");
        Library { transaction: None, reader, table: Box::new(table), limits: *limits }
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The table.
    pub fn table(&self) -> &Memslots {
        &self.table
    }

    fn begin(&mut self) -> Outcome {
        // Refused where this thread has one open.
        self.transaction = Some(self.table.begin_owned().map_err(errno)?);
        Ok(0)
    }

    fn end(&mut self, commit: bool) -> Outcome {
        match self.transaction.take() {
            Some(transaction) if commit => transaction.commit().map(|()| 0).map_err(errno),
            _ => Ok(0),
        }
    }

    fn in_transaction(transaction: &mut Transaction<'_>, op: &Op, opaque: *mut c_void) -> Outcome {
        let done = match *op {
            Op::Set(r) => transaction.set_region(&region(&r), opaque),
            Op::Create(r) => return transaction.create(&region(&r), opaque).map(|id| id.0).map_err(errno),
            Op::Delete { as_id, id } => transaction.delete(AsId(as_id), SlotId(id)),
            Op::Move { as_id, id, gpa } => transaction.move_slot(AsId(as_id), SlotId(id), Gpa(gpa)),
            Op::Flags { as_id, id, flags } => transaction.set_flags(AsId(as_id), SlotId(id), flags),
            Op::Split { as_id, id, at, new_id } => {
                let upper = transaction.split(AsId(as_id), SlotId(id), Gpa(at), SlotId(new_id), opaque);
                return upper.map(|id| id.0).map_err(errno);
            }
            Op::Merge { as_id, lower, upper } => transaction.merge(AsId(as_id), SlotId(lower), SlotId(upper)),
            Op::Resize { as_id, id, size } => transaction.resize(AsId(as_id), SlotId(id), size),
            _ => unreachable!("not a change of slots"),
        };
        done.map(|()| 0).map_err(errno)
    }

    fn single(&mut self, op: &Op, opaque: *mut c_void) -> Outcome {
        let done = match *op {
            Op::Set(r) => self.table.set_region(&region(&r), opaque),
            Op::Create(r) => return self.table.create(&region(&r), opaque).map(|id| id.0).map_err(errno),
            Op::Delete { as_id, id } => self.table.delete(AsId(as_id), SlotId(id)),
            Op::Move { as_id, id, gpa } => self.table.move_slot(AsId(as_id), SlotId(id), Gpa(gpa)),
            Op::Flags { as_id, id, flags } => self.table.set_flags(AsId(as_id), SlotId(id), flags),
            _ => {
                let mut transaction = self.table.begin().map_err(errno)?;
                let id = Self::in_transaction(&mut transaction, op, opaque)?;
                return transaction.commit().map(|()| id).map_err(errno);
            }
        };
        done.map(|()| 0).map_err(errno)
    }
}

impl Player for Library {
    fn name(&self) -> &'static str {
        "the library"
    }

    fn apply(&mut self, op: &Op, opaque: usize, _before: &Model) -> Option<Outcome> {
        let opaque = opaque_of(opaque);
        Some(match op {
            Op::Begin => self.begin(),
            Op::Commit => self.end(true),
            Op::Abort => self.end(false),
            Op::Lock { .. } | Op::Unlock { .. } => return None,
            op => match &mut self.transaction {
                Some(transaction) => Self::in_transaction(transaction, op, opaque),
                None => self.single(op, opaque),
            },
        })
    }

    fn glance(&mut self, model: &Model) -> Result<(), String> {
        let section = self.reader.lock();
        for (as_id, space) in (0..).zip(model.spaces()) {
            let got = (section.generation(AsId(as_id)), section.count(AsId(as_id)), section.npages(AsId(as_id)));
            let wanted = (space.generation, space.slots.len() as u32, Pages(space.npages()));
            same(got, wanted, || format!("as {as_id}: generation, count, npages"))?;
        }
        Ok(())
    }

    fn inspect(&mut self, model: &Model) -> Result<(), String> {
        let section = self.reader.lock();
        let look = Look { section: &section, limits: &self.limits };
        (0..).zip(model.spaces()).try_for_each(|(as_id, space)| look.space(as_id, space))?;
        look.absent_space(self.limits.nr_address_spaces)?;
        match &self.transaction {
            Some(transaction) => staged(transaction, model),
            None => Ok(()),
        }
    }
}

/// Everything that a reader can ask, held against the model.
struct Look<'a> {
    section: &'a Section<'a>,
    limits: &'a Limits,
}

/// Slots whose surroundings are looked at, of a table that has more.
const SAMPLE: usize = 32;

impl Look<'_> {
    fn space(&self, as_id: u16, space: &Space) -> Result<(), String> {
        let all: Vec<_> = self.section.iter(AsId(as_id)).map(seen).collect();
        same(all, expected(space.all()), || format!("as {as_id}: all slots"))?;
        self.regions(as_id, space)?;
        let sample = sample(space);
        for slot in &sample {
            self.around(as_id, slot, space)?;
            same(self.section.find_id(AsId(as_id), SlotId(slot.id)).map(seen), Some(slot.bare()), || "find_id".into())?;
        }
        for id in [0, 1, 7, 12, 0x7ffb, 0x7ffc, 0xffff] {
            let wanted = space.by_id(id).map(Slot::bare);
            same(self.section.find_id(AsId(as_id), SlotId(id)).map(seen), wanted, || {
                format!("as {as_id}: find_id({id})")
            })?;
        }
        self.ranges(as_id, space, &sample)
    }

    /// The slots as requests, and how many there are where there is no room for all.
    fn regions(&self, as_id: u16, space: &Space) -> Result<(), String> {
        let wanted: Vec<Region> =
            space.all().iter().map(|slot| region(&slot.request(self.limits.page_shift))).collect();
        let mut got = vec![Region::default(); wanted.len()];
        let counts = (self.section.regions(AsId(as_id), &mut got), self.section.regions(AsId(as_id), &mut []));
        same(counts, (wanted.len(), wanted.len()), || format!("as {as_id}: the number of regions"))?;
        same(got, wanted, || format!("as {as_id}: regions"))
    }

    /// Lookups at a slot's edges and just past them.
    fn around(&self, as_id: u16, slot: &Slot, space: &Space) -> Result<(), String> {
        let shift = self.limits.page_shift;
        for gfn in [slot.base_gfn.saturating_sub(1), slot.base_gfn, slot.end_gfn() - 1, slot.end_gfn()] {
            let at = format!("as {as_id}, gfn {gfn:#x}");
            let found = self.section.find_gfn(AsId(as_id), Gfn(gfn)).map(seen);
            same(found, space.by_gfn(gfn).map(Slot::bare), || format!("{at}: find_gfn"))?;
            let near = self.section.find_gfn_approx(AsId(as_id), Gfn(gfn)).map(seen);
            same(near, space.near_gfn(gfn).map(Slot::bare), || format!("{at}: find_gfn_approx"))?;
            let gpa = (gfn << shift) + slot.id as u64 % (1 << shift);
            for (access, write) in [(Access::Read, false), (Access::Write, true)] {
                let got = self.section.gpa_to_hva(AsId(as_id), Gpa(gpa), access);
                let got = got.map(|(hva, left)| (hva.0, left)).map_err(errno);
                same(got, space.translate(gpa, write, shift), || format!("{at}: gpa_to_hva {access:?}"))?;
            }
        }
        let end_hva = slot.hva + (slot.npages << shift);
        for hva in [slot.hva.saturating_sub(1), slot.hva, end_hva - 1, end_hva] {
            let found = self.section.find_hva(AsId(as_id), Hva(hva)).map(seen);
            let wanted = space.by_hva(hva, shift);
            same(found, wanted.map(Slot::bare), || format!("as {as_id}: find_hva({hva:#x})"))?;
            let gpa = self.section.hva_to_gpa(AsId(as_id), Hva(hva)).map(|gpa| gpa.0).map_err(errno);
            let wanted = wanted.map(|slot| (slot.base_gfn << shift) + (hva - slot.hva)).ok_or(libc::ENOENT);
            same(gpa, wanted, || format!("as {as_id}: hva_to_gpa({hva:#x})"))?;
        }
        Ok(())
    }

    /// Walks between edges of slots, and over nothing, and over everything.
    fn ranges(&self, as_id: u16, space: &Space, sample: &[Slot]) -> Result<(), String> {
        let shift = self.limits.page_shift;
        let mut choose = Seed(space.generation);
        let mut gfns: Vec<_> = sample.iter().flat_map(|s| [s.base_gfn, s.end_gfn() - 1, s.end_gfn()]).collect();
        let mut hvas: Vec<_> = sample.iter().flat_map(|s| [s.hva, s.hva + (s.npages << shift) - 1]).collect();
        gfns.extend([0, 1, u64::MAX]);
        hvas.extend([0, 1, u64::MAX]);
        for _ in 0..SAMPLE {
            let (start, end) = (choose.one(&gfns), choose.one(&gfns));
            let got: Vec<_> = self.section.iter_gfn(AsId(as_id), Gfn(start)..Gfn(end)).map(seen).collect();
            let wanted = expected(space.over_gfn(start, end));
            same(got, wanted, || format!("as {as_id}: iter_gfn({start:#x}..{end:#x})"))?;
            let (start, last) = (choose.one(&hvas), choose.one(&hvas));
            let got: Vec<_> = self.section.iter_hva(AsId(as_id), Hva(start), Hva(last)).map(seen).collect();
            let wanted = expected(space.over_hva(start, last, shift));
            same(got, wanted, || format!("as {as_id}: iter_hva({start:#x}..={last:#x})"))?;
        }
        Ok(())
    }

    fn absent_space(&self, as_id: u16) -> Result<(), String> {
        let s = self.section;
        same(s.find_gfn(AsId(as_id), Gfn(0)).map(seen), None, || "find_gfn in an absent address space".into())?;
        same(s.find_gfn_approx(AsId(as_id), Gfn(0)).map(seen), None, || {
            "find_gfn_approx in an absent address space".into()
        })?;
        same(s.find_id(AsId(as_id), SlotId(0)).map(seen), None, || "find_id in an absent address space".into())?;
        same(s.find_hva(AsId(as_id), Hva(0)).map(seen), None, || "find_hva in an absent address space".into())?;
        same(s.iter(AsId(as_id)).count(), 0, || "an absent address space".into())?;
        let (gpa, hva) = (s.gpa_to_hva(AsId(as_id), Gpa(0), Access::Read), s.hva_to_gpa(AsId(as_id), Hva(0)));
        same(gpa.err().map(errno), Some(libc::EINVAL), || "gpa_to_hva in an absent address space".into())?;
        same(hva.err().map(errno), Some(libc::EINVAL), || "hva_to_gpa in an absent address space".into())?;
        same((s.generation(AsId(as_id)), s.count(AsId(as_id)), s.npages(AsId(as_id))), (0, 0, Pages(0)), || {
            "an absent address space".into()
        })
    }
}

/// What a transaction sees of itself.
fn staged(transaction: &Transaction<'_>, model: &Model) -> Result<(), String> {
    for (as_id, space) in (0..).zip(model.current()) {
        for slot in sample(space) {
            for gfn in [slot.base_gfn.saturating_sub(1), slot.base_gfn, slot.end_gfn() - 1, slot.end_gfn()] {
                let found = transaction.find_gfn(AsId(as_id), Gfn(gfn)).map(seen);
                same(found, space.by_gfn(gfn).map(Slot::bare), || format!("as {as_id}: staged find_gfn({gfn:#x})"))?;
            }
        }
    }
    Ok(())
}

/// Some of a space's slots; all where they are few.
fn sample(space: &Space) -> Vec<Slot> {
    if space.slots.len() <= SAMPLE {
        return space.slots.clone();
    }
    let mut choose = Seed(space.generation);
    (0..SAMPLE).map(|_| choose.one(&space.slots)).collect()
}

/// A slot of the library as one of the model, but for the model's count of creations.
pub fn seen(slot: &Memslot) -> Slot {
    Slot {
        as_id: slot.as_id.0,
        id: slot.id.0,
        base_gfn: slot.base_gfn.0,
        npages: slot.npages.0,
        hva: slot.userspace_addr.0,
        flags: slot.flags,
        memfd: slot.guest_memfd,
        offset: slot.guest_memfd_offset,
        opaque: slot.opaque as usize,
        birth: 0,
    }
}

fn expected(slots: Vec<&Slot>) -> Vec<Slot> {
    slots.into_iter().map(Slot::bare).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(got: T, wanted: T, what: impl FnOnce() -> String) -> Result<(), String> {
    if got == wanted {
        return Ok(());
    }
    let what = what();
    Err(format!("{what}: the model has {wanted:x?}, the library {got:x?}"))
}

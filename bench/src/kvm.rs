// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--kvm`: the same changes made on a real VM by the raw ioctl, and through an attached table;
//! and on a table without a VM, which is what the table itself costs.

use crate::build_peers::Loaded;
use crate::measure::{time, Summary};
use crate::peer::{Change, Slot, Table};
use crate::workload::{Layout, Shape};
use anyhow::{ensure, Context, Result};
use kvm_ioctls::{Kvm, VmFd};
use libloading::Library;
use serde::{Deserialize, Serialize};
use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;

pub const SLOTS: [usize; 4] = [10, 509, 8_000, 32_764];
const MAX_SLOTS: u32 = 32_764;

/// Nanoseconds a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KvmCell {
    pub row: String,
    pub n: usize,
    pub raw: Summary,
    pub through_table: Summary,
    pub table_alone: Summary,
    /// The table's part of the whole: alone over through.
    pub share: f64,
}

type CreateRaw = unsafe extern "C" fn(c_int, *const Slot, usize) -> c_int;
type ChangeRaw = unsafe extern "C" fn(c_int, *const Change, *const u64, usize) -> c_int;
type Attach = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type DeleteAll = unsafe extern "C" fn(*mut c_void, *const Slot, usize) -> c_int;

struct Raw<'l> {
    library: &'l Library,
    vm: VmFd,
    /// By id.
    hvas: Vec<u64>,
}

fn accepted(what: &str, answer: c_int) {
    assert_eq!(answer, 0, "{what}: {}", std::io::Error::from_raw_os_error(-answer));
}

impl Raw<'_> {
    fn slots(&self, entry: &str, slots: &[Slot]) {
        // SAFETY: kvm.c exports it with this type; the slots are what it reads.
        let answer = unsafe {
            let call = self.library.get::<CreateRaw>(entry.as_bytes()).expect("an entry of kvm.c");
            call(self.vm.as_raw_fd(), slots.as_ptr(), slots.len())
        };
        accepted(entry, answer);
    }

    fn change(&self, changes: &[Change]) {
        // SAFETY: as above; there is an hva for every id.
        let answer = unsafe {
            let call = self.library.get::<ChangeRaw>(b"bench_kvm_change\0").expect("an entry");
            call(self.vm.as_raw_fd(), changes.as_ptr(), self.hvas.as_ptr(), changes.len())
        };
        accepted("a change", answer);
    }
}

/// The inputs of one table size, and the times a change of each row: (row, ns).
struct Work {
    layout: Layout,
    moves: Vec<Change>,
    flags: Vec<Change>,
}

type Times = Vec<(&'static str, f64)>;

impl Work {
    fn new(n: usize) -> Self {
        let layout = Layout::new(Shape::Holes, n);
        let (moves, cycle) = layout.moves(256, 1);
        let (flags, _) = layout.flag_changes(256, 1);
        Self { moves: moves[..cycle].to_vec(), flags: flags[..cycle].to_vec(), layout }
    }

    fn n(&self) -> f64 {
        self.layout.n() as f64
    }

    fn raw(&self, kvm: &Kvm, library: &Library) -> Result<Times> {
        let hvas = self.layout.slots.iter().map(|slot| slot.hva).collect();
        let raw = Raw { library, vm: kvm.create_vm()?, hvas };
        let create = time(|| raw.slots("bench_kvm_create\0", &self.layout.slots));
        let moves = time(|| raw.change(&self.moves));
        let flags = time(|| raw.change(&self.flags));
        let delete = time(|| raw.slots("bench_kvm_remove\0", &self.layout.shuffled));
        Ok(vec![
            ("create", create / self.n()),
            ("move", moves / self.moves.len() as f64),
            ("flags only", flags / self.flags.len() as f64),
            ("delete", delete / self.n()),
            // There is no ioctl for many.
            ("create, one transaction", create / self.n()),
            ("move, one transaction", moves / self.moves.len() as f64),
            ("delete, one transaction", delete / self.n()),
        ])
    }

    fn through_table(&self, memslots: &Loaded, kvm: Option<&Kvm>) -> Result<Times> {
        let attached = |table: &Table| -> Result<Option<VmFd>> {
            let Some(kvm) = kvm else { return Ok(None) };
            let vm = kvm.create_vm()?;
            // SAFETY: peer_memslots.c exports it with this type; the table is alive, the fd a VM's.
            let error = unsafe {
                let attach = memslots.library.get::<Attach>(b"bench_memslots_attach_kvm\0")?;
                attach(table.raw(), vm.as_raw_fd())
            };
            ensure!(error == 0, "memslots_attach_kvm: {error}");
            Ok(Some(vm))
        };
        // SAFETY: as above.
        let delete_all = unsafe { memslots.library.get::<DeleteAll>(b"bench_memslots_delete_all\0")? };
        let slots = &self.layout.slots;
        let (moves, flags) = (&self.moves, &self.flags);

        let table = memslots.peer.table(MAX_SLOTS);
        let vm = attached(&table)?;
        let create = time(|| table.create(slots).expect("creates that KVM takes"));
        let one_move = time(|| table.move_slots(moves).expect("moves that KVM takes"));
        let flag = time(|| table.set_flags(flags).expect("flags that KVM takes"));
        let delete = time(|| table.remove(&self.layout.shuffled).expect("deletes"));
        drop((table, vm));

        let table = memslots.peer.table(MAX_SLOTS);
        let _vm = attached(&table)?;
        let create_all = time(|| table.create_all(slots).expect("creates that KVM takes"));
        let half = moves.len() / 2;
        let move_all = time(|| {
            table.move_all(&moves[..half]).expect("moves that KVM takes");
            table.move_all(&moves[half..]).expect("moves that KVM takes");
        });
        let gone = &self.layout.shuffled;
        // SAFETY: the table is alive, the slots are what it reads.
        let deleted = time(|| accepted("deletes", unsafe { delete_all(table.raw(), gone.as_ptr(), gone.len()) }));
        Ok(vec![
            ("create", create / self.n()),
            ("move", one_move / moves.len() as f64),
            ("flags only", flag / flags.len() as f64),
            ("delete", delete / self.n()),
            ("create, one transaction", create_all / self.n()),
            ("move, one transaction", move_all / moves.len() as f64),
            ("delete, one transaction", deleted / self.n()),
        ])
    }
}

pub fn measure(
    memslots: &Loaded,
    raw: &Library,
    slots: &[usize],
    rounds: usize,
    progress: &dyn Fn(&str),
) -> Result<Vec<KvmCell>> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    let mut cells = Vec::new();
    for &n in slots {
        let work = Work::new(n);
        let mut times: [Vec<Times>; 3] = Default::default();
        for round in 0..rounds {
            progress(&format!("kvm, {n} slots, round {} of {rounds}", round + 1));
            times[0].push(work.raw(&kvm, raw)?);
            times[1].push(work.through_table(memslots, Some(&kvm))?);
            times[2].push(work.through_table(memslots, None)?);
        }
        for (index, &(row, _)) in times[0][0].iter().enumerate() {
            let summary = |which: &[Times]| {
                let samples: Vec<f64> = which.iter().map(|times| times[index].1).collect();
                Summary::of(&samples)
            };
            let [raw, through_table, table_alone] = [0, 1, 2].map(|which| summary(&times[which]));
            let share = table_alone.median / through_table.median;
            cells.push(KvmCell { row: row.into(), n, raw, through_table, table_alone, share });
        }
    }
    Ok(cells)
}

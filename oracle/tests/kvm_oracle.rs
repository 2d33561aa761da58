// SPDX-License-Identifier: MIT OR Apache-2.0
//! The KVM oracle: the same operations to the library, the model and a real VM; the same errno each time, and the
//! same slots in the end.
//!
//! `MEMSLOTS_SEED` and `MEMSLOTS_OPS` choose another run. What fails is shrunk and kept as a trace file.

use std::path::Path;

use kvm_ioctls::Kvm;
use memslots::Memslots;
use memslots_oracle::compare::{play, Divergence, Player, RealPlayer, Tally};
use memslots_oracle::library::{config, Library};
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{Op, Outcome, GUEST_MEMFD};
use memslots_oracle::real::{kvm_for, Vm};
use memslots_oracle::run::{agree, say, seed, size};
use memslots_oracle::world::{Seed, World};

const OPS: u64 = 100_000;
const OPS_ATTACHED: u64 = 20_000;
const OPS_OF_A_VM: usize = 500;

/// Where the shrunk operations of a failure are left.
fn kept() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Every kind of world on VMs in turn.
fn worlds(limits: Limits) -> [(World, u16); 4] {
    let (small, wide) = (World::small(limits), World::wide(limits));
    [(small, 0), (small.set_only(), 0), (wide, 1500), (small, 8)]
}

fn beside_a_vm(kvm: &Kvm, world: &World, ops: &[Op]) -> Result<Tally, Divergence> {
    let mut library = Library::new(&world.limits);
    let (pages, ids) = (world.pages.min(128) + 16, world.ids.min(64));
    let mut real = RealPlayer { vm: Vm::new(kvm), pages, ids };
    play(ops, &mut Model::new(world.limits), &mut [&mut library, &mut real], 100)
}

#[test]
fn library_and_model_answer_as_a_real_vm() {
    let Some(kvm) = kvm_for("kvm_oracle") else { return };
    let limits = Vm::limits(&kvm);
    let mut seeds = Seed(seed("kvm_oracle"));
    let (ops, mut total) = (size(OPS), Tally::default());
    let mut done = 0;
    for (world, filled) in worlds(limits).iter().cycle() {
        if done >= ops {
            break;
        }
        let mut sequence = world.fill(*filled);
        world.go_on(&mut sequence, &mut Seed(seeds.draw()), OPS_OF_A_VM);
        total.add(&agree("kvm_oracle", kept(), &sequence, |ops| beside_a_vm(&kvm, world, ops)));
        done += OPS_OF_A_VM as u64;
    }
    say(&format!("kvm_oracle: {total}"));
    assert!(total.done() + total.withheld >= ops);
    if ops >= OPS {
        check_variety(&total);
    }
}

/// A run in which something never happens proves nothing of it.
fn check_variety(total: &Tally) {
    for (name, answers) in [
        ("set", &[0, libc::EINVAL, libc::EEXIST, libc::EBADF][..]),
        ("create", &[0, libc::EINVAL, libc::EEXIST]),
        ("delete", &[0, libc::ENOENT, libc::EINVAL]),
        ("move", &[0, libc::ENOENT, libc::EINVAL, libc::EEXIST]),
        ("flags", &[0, libc::ENOENT, libc::EINVAL]),
    ] {
        for &answer in answers {
            assert!(total.of(name, answer) > 0, "{name} never came to {answer}: {total}");
        }
    }
    assert!(total.of("set", 0) * 10 > total.done(), "too few succeed: {total}");
}

/// The library with a VM attached: what it publishes, the VM must have accepted.
struct Attached {
    library: Library,
    vm: Vm,
    pages: u64,
    ids: u16,
}

impl Attached {
    fn new(kvm: &Kvm, world: &World) -> Attached {
        let vm = Vm::new(kvm);
        let table = Memslots::new(config(&world.limits)).expect("a table");
        table.attach_kvm(vm.raw_fd()).expect("attached");
        let library = Library::with(table, &world.limits);
        Attached { library, vm, pages: world.pages + 16, ids: world.ids }
    }
}

impl Player for Attached {
    fn name(&self) -> &'static str {
        "the library with a VM attached"
    }

    fn apply(&mut self, op: &Op, opaque: usize, before: &Model) -> Option<Outcome> {
        self.library.apply(op, opaque, before)
    }

    fn glance(&mut self, model: &Model) -> Result<(), String> {
        self.library.glance(model)
    }

    fn inspect(&mut self, model: &Model) -> Result<(), String> {
        self.library.inspect(model)?;
        self.vm.holds(model.space(0), self.pages, self.ids).map_err(|e| format!("the attached VM: {e}"))
    }

    fn largest_slot(&self) -> u64 {
        1 << 36
    }
}

/// Transactions, with split, merge and resize, that reach a real VM by way of the library. Without guest_memfd, whose
/// bindings only the kernel knows: it may refuse what the model takes.
#[test]
fn an_attached_vm_has_the_slots_of_the_table() {
    let Some(kvm) = kvm_for("kvm_attached") else { return };
    let mut limits = Vm::limits(&kvm);
    limits.supported_flags &= !GUEST_MEMFD;
    let world = World::small(limits).with_transactions();
    let mut seeds = Seed(seed("kvm_attached"));
    let (ops, mut total) = (size(OPS_ATTACHED), Tally::default());
    while total.done() + total.withheld < ops {
        let sequence = world.ops(&mut Seed(seeds.draw()), OPS_OF_A_VM);
        let attached = |ops: &[Op]| play(ops, &mut Model::new(limits), &mut [&mut Attached::new(&kvm, &world)], 20);
        total.add(&agree("kvm_attached", kept(), &sequence, attached));
    }
    say(&format!("kvm_attached: {total}"));
    if ops >= OPS_ATTACHED {
        for name in ["commit", "abort", "split", "merge", "resize", "move", "delete"] {
            assert!(total.of(name, 0) > 0, "no {name} succeeded: {total}");
        }
    }
}

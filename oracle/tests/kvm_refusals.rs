// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel that refuses the k-th call of a commit: table and VM are as they were, or the table says how they are not.
//!
//! The kernel is made to refuse by a slot on the VM that the table knows nothing of.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_ioctls::Kvm;
use memslots::{AsId, Errno, Memslots, SlotId};
use memslots_oracle::compare::Player;
use memslots_oracle::library::{config, region, Library};
use memslots_oracle::model::{Limits, Model};
use memslots_oracle::op::{Op, Request, GUEST_MEMFD, LOG_DIRTY_PAGES};
use memslots_oracle::real::{kvm_for, Vm};
use memslots_oracle::world::MEMFD;

const PAGE: u64 = 4096;
const ALIEN: Request =
    Request { as_id: 0, id: 900, flags: 0, gpa: 500 * PAGE, size: PAGE, hva: 0, memfd: -1, offset: 0 };

fn slot(id: u16, gfn: u64, npages: u64) -> Request {
    Request { id, gpa: gfn * PAGE, size: npages * PAGE, hva: 0x1000_0000, memfd: -1, ..Request::default() }
}

/// A table of `n` slots with a VM attached, and the model of it.
fn attached(kvm: &Kvm, n: u16) -> (Library, Vm, Model) {
    let (limits, vm) = (Vm::limits(kvm), Vm::new(kvm));
    let table = Memslots::new(config(&limits)).expect("a table");
    table.attach_kvm(vm.raw_fd()).expect("attached");
    let (mut library, mut model) = (Library::with(table, &limits), Model::new(limits));
    for id in 0..n {
        do_both(&mut library, &mut model, &Op::Create(slot(id, u64::from(id) * 8, 2)));
    }
    (library, vm, model)
}

fn do_both(library: &mut Library, model: &mut Model, op: &Op) {
    let before = model.clone();
    let expected = model.apply(op, 0);
    assert_eq!(library.apply(op, 0, &before), Some(expected), "{op}");
}

/// A change of each kind in turn.
fn change(id: u16) -> Op {
    let gfn = u64::from(id) * 8;
    match id % 4 {
        0 => Op::Move { as_id: 0, id, gpa: (200 + gfn) * PAGE },
        1 => Op::Flags { as_id: 0, id, flags: LOG_DIRTY_PAGES },
        2 => Op::Resize { as_id: 0, id, size: 3 * PAGE },
        _ => Op::Delete { as_id: 0, id },
    }
}

#[test]
fn a_refused_commit_leaves_table_and_vm_as_they_were() {
    let Some(kvm) = kvm_for("kvm_refusals") else { return };
    const N: u16 = 10;
    for k in 0..=N {
        let (mut library, vm, model) = attached(&kvm, N);
        assert_eq!(vm.set(&ALIEN), Ok(0));
        let mut staged = model.clone();
        do_both(&mut library, &mut staged, &Op::Begin);
        for id in 0..=N {
            if id == k {
                do_both(&mut library, &mut staged, &Op::Create(slot(50, 499, 2)));
            }
            if id < N {
                do_both(&mut library, &mut staged, &change(id));
            }
        }
        assert_eq!(library.apply(&Op::Commit, 0, &staged), Some(Err(libc::EEXIST)), "k = {k}");
        library.glance(&model).and_then(|()| library.inspect(&model)).expect("as it was");
        vm.holds(model.space(0), 300, 100).expect("as it was");
        assert_eq!(library.table().stats().out_of_step, 0);
    }
}

#[test]
fn a_refused_attach_leaves_no_slot_on_the_vm() {
    let Some(kvm) = kvm_for("kvm_refused_attach") else { return };
    let (limits, vm) = (Vm::limits(&kvm), Vm::new(&kvm));
    let table = Memslots::new(config(&limits)).expect("a table");
    for id in 0..20 {
        table.create(&region(&slot(id, 490 + u64::from(id), 1)), std::ptr::null_mut()).expect("a slot");
    }
    assert_eq!(vm.set(&ALIEN), Ok(0));
    assert_eq!(table.attach_kvm(vm.raw_fd()), Err(Errno::EEXIST));
    assert_eq!(vm.set(&Request { size: 0, ..ALIEN }), Ok(0));
    vm.holds(Model::new(limits).space(0), 520, 100).expect("nothing");
    assert_eq!(table.attach_kvm(vm.raw_fd()), Ok(()));
}

/// Takes the place of a slot whose guest_memfd is closed: once it is gone, nobody can bring it back.
#[test]
fn an_undo_that_fails_is_said() {
    let Some(kvm) = kvm_for("kvm_out_of_step") else { return };
    if Vm::limits(&kvm).supported_flags & GUEST_MEMFD == 0 {
        return; // it takes a guest_memfd to make an undo fail
    }
    let (library, vm, _) = attached(&kvm, 0);
    let table = library.table();
    // SAFETY: the VM keeps its guest_memfd open.
    let memfd = unsafe { BorrowedFd::borrow_raw(vm.file_for(MEMFD)) };
    let closed_later = memfd.try_clone_to_owned().expect("a copy");
    let private = Request { flags: GUEST_MEMFD, memfd: closed_later.as_raw_fd(), ..slot(1, 498, 2) };
    table.create(&region(&private), std::ptr::null_mut()).expect("a slot");
    drop(closed_later);
    assert_eq!(vm.set(&ALIEN), Ok(0));

    let mut transaction = table.begin().expect("a transaction");
    transaction.delete(AsId(0), SlotId(1)).expect("staged");
    transaction.create(&region(&slot(2, 499, 2)), std::ptr::null_mut()).expect("staged");
    assert_eq!(transaction.commit(), Err(Errno::EEXIST));
    assert_eq!(table.stats().out_of_step, 1);
    let reader = table.reader().expect("a reader");
    assert_eq!(reader.lock().find_id(AsId(0), SlotId(1)).map(|slot| slot.npages.0), Some(2), "the table is as it was");
    assert!(dump(table).contains("out of step"), "{}", dump(table));
}

fn dump(table: &Memslots) -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("dump");
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(path).expect("a file");
    table.dump(file.as_raw_fd()).expect("dumped");
    file.seek(SeekFrom::Start(0)).expect("rewound");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    text
}

#[test]
fn what_is_no_vm_is_refused() {
    let table = Memslots::new(config(&Limits::default())).expect("a table");
    let file = File::open("/dev/null").expect("/dev/null");
    assert_eq!(table.attach_kvm(file.as_raw_fd()), Err(Errno::ENOTTY));
    assert_eq!(table.attach_kvm(-2), Err(Errno::EBADF));
    assert_eq!(table.attach_kvm(-1), Ok(()));
    let Some(kvm) = kvm_for("kvm_no_vm") else { return };
    assert_eq!(table.attach_kvm(kvm.as_raw_fd()), Err(Errno::ENOTTY), "/dev/kvm itself is no VM");
    let vm = kvm.create_vm().expect("a VM");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    assert_eq!(table.attach_kvm(vcpu.as_raw_fd()), Err(Errno::ENOTTY), "nor is a vCPU");
}

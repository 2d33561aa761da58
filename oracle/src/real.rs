// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real VM of the running kernel: the judge of last resort.
//!
//! Makes the ioctls that an operation amounts to and finds out, without changing anything for long, which slots
//! the VM has. Knows the model only as a description of the slots that are expected.

use std::env;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use kvm_bindings::{kvm_create_guest_memfd, kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::model::{Limits, Model, Slot, Space};
use crate::op::{Op, Outcome, Request, GUEST_MEMFD, ID_ANY, LOG_DIRTY_PAGES, READONLY};

const PAGE_SHIFT: u32 = 12;
const PAGE: u64 = 1 << PAGE_SHIFT;
const MEMFD_SIZE: u64 = 1 << 32; // pages come into being when touched, and none is

/// A VM without vCPUs.
pub struct Vm {
    fd: VmFd,
    memfd: Option<OwnedFd>,
    has_region2: bool,
}

/// /dev/kvm for a test of that name. Where there is none it says SKIPPED on the real stderr, past the test
/// harness's capture, and fails where `MEMSLOTS_REQUIRE_KVM` is 1.
pub fn kvm_for(test: &str) -> Option<Kvm> {
    let error = match Kvm::new() {
        Ok(kvm) => return Some(kvm),
        Err(error) => error,
    };
    assert!(env::var("MEMSLOTS_REQUIRE_KVM").as_deref() != Ok("1"), "{test}: MEMSLOTS_REQUIRE_KVM=1, but {error}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no usable /dev/kvm: {error}");
    None
}

impl Vm {
    /// A new VM with no slots.
    pub fn new(kvm: &Kvm) -> Vm {
        let mut vm = Vm { fd: kvm.create_vm().expect("KVM_CREATE_VM"), memfd: None, has_region2: false };
        vm.has_region2 = vm.extension(kvm_bindings::KVM_CAP_USER_MEMORY2) > 0;
        if vm.has_region2 && vm.extension(kvm_bindings::KVM_CAP_GUEST_MEMFD) > 0 {
            vm.memfd = Some(create_memfd(&vm.fd));
        }
        vm
    }

    /// The VM's file descriptor, for the library to attach to.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// What this machine's VMs can do, found out once by asking one.
    pub fn limits(kvm: &Kvm) -> Limits {
        static LIMITS: OnceLock<Limits> = OnceLock::new();
        *LIMITS.get_or_init(|| Vm::new(kvm).probe(kvm))
    }

    fn extension(&self, capability: u32) -> i32 {
        self.fd.check_extension_raw(capability.into())
    }

    fn probe(&self, kvm: &Kvm) -> Limits {
        let one_page = |gpa, hva| {
            let there = self.set(&Request { gpa, hva, size: PAGE, ..Request::default() }).is_ok();
            there && self.set(&Request::default()).is_ok()
        };
        let gpa_bits = (32..=52).rev().find(|bits| one_page((1 << bits) - PAGE, 0)).expect("a usable gpa");
        let hva_bits = if one_page(0, 1 << 47) { 56 } else { 47 };
        let mut supported_flags = LOG_DIRTY_PAGES;
        if kvm.check_extension(Cap::ReadonlyMem) {
            supported_flags |= READONLY;
        }
        if self.memfd.is_some() {
            supported_flags |= GUEST_MEMFD;
        }
        Limits {
            nr_address_spaces: self.extension(kvm_bindings::KVM_CAP_MULTI_ADDRESS_SPACE).max(1) as u16,
            max_slots: kvm.get_nr_memslots() as u32,
            page_shift: PAGE_SHIFT,
            supported_flags,
            hva_limit: (1 << hva_bits) - PAGE,
            gpa_bits,
        }
    }

    /// The ioctl.
    pub fn set(&self, r: &Request) -> Outcome {
        let slot = u32::from(r.id) | u32::from(r.as_id) << 16;
        let result = if self.has_region2 {
            let region = kvm_userspace_memory_region2 {
                slot,
                flags: r.flags,
                guest_phys_addr: r.gpa,
                memory_size: r.size,
                userspace_addr: r.hva,
                guest_memfd_offset: r.offset,
                guest_memfd: self.file_for(r.memfd) as u32,
                ..Default::default()
            };
            // SAFETY: no vCPU ever runs in this VM, so no memory is reached through its slots.
            unsafe { self.fd.set_user_memory_region2(region) }
        } else {
            let region = kvm_userspace_memory_region {
                slot,
                flags: r.flags,
                guest_phys_addr: r.gpa,
                memory_size: r.size,
                userspace_addr: r.hva,
            };
            // SAFETY: as above.
            unsafe { self.fd.set_user_memory_region(region) }
        };
        result.map(|()| 0).map_err(|error| error.errno())
    }

    /// Any fd but -1 stands for this VM's own guest_memfd.
    pub fn file_for(&self, memfd: i32) -> RawFd {
        match &self.memfd {
            Some(own) if memfd >= 0 => own.as_raw_fd(),
            _ => memfd,
        }
    }

    /// Does an operation that the kernel has, or has in other words; None where it has not.
    pub fn apply(&self, op: &Op, before: &Model) -> Option<Outcome> {
        let (request, id) = in_kernel_words(op, before)?;
        Some(self.set(&request).map(|_| id))
    }

    /// Checks that the VM has the slots of an address space 0, and no others among the first `pages` and `ids`.
    pub fn holds(&self, space: &Space, pages: u64, ids: u16) -> Result<(), String> {
        self.covers(space, pages)?;
        let others = space.slots.iter().map(|slot| slot.id).filter(|&id| id >= ids);
        (0..ids).chain(others).try_for_each(|id| self.holds_id(space, id))?;
        self.covers(space, pages)
    }

    /// Which pages are taken, asked by trying to take them.
    fn covers(&self, space: &Space, pages: u64) -> Result<(), String> {
        let spare = (0..ID_ANY).find(|&id| space.by_id(id).is_none()).ok_or("no id left to probe with")?;
        for gfn in 0..pages {
            let probe = Request { id: spare, gpa: gfn << PAGE_SHIFT, size: PAGE, ..Request::default() };
            let taken = match self.set(&probe) {
                Err(libc::EEXIST) => true,
                Ok(_) => self.set(&Request { id: spare, ..Request::default() }).is_err(),
                Err(errno) => return Err(format!("gfn {gfn:#x}: the probe got errno {errno}")),
            };
            if taken != space.by_gfn(gfn).is_some() {
                return Err(format!("gfn {gfn:#x}: the VM has {} slot there", if taken { "a" } else { "no" }));
            }
        }
        Ok(())
    }

    /// Setting a slot to what it is does nothing; if it were anything else, it would be refused here or, where it
    /// could move, show in what is covered afterwards.
    fn holds_id(&self, space: &Space, id: u16) -> Result<(), String> {
        let Some(slot) = space.by_id(id) else {
            let delete = self.set(&Request { id, ..Request::default() });
            return expect(delete, Err(libc::EINVAL), &format!("slot {id}, deleted though it should be absent"));
        };
        let same = slot.request(PAGE_SHIFT);
        let resized = self.set(&Request { size: same.size + PAGE, ..same });
        expect(resized, Err(libc::EINVAL), &format!("slot {id}, resized as it should be there"))?;
        if slot.flags & GUEST_MEMFD != 0 {
            return Ok(()); // such a slot cannot be set again at all
        }
        self.logs_dirty_pages(slot)?;
        expect(self.set(&same), Ok(0), &format!("slot {id}, set to what it should be"))
    }

    fn logs_dirty_pages(&self, slot: &Slot) -> Result<(), String> {
        let got = self.fd.get_dirty_log(slot.id.into(), (slot.npages << PAGE_SHIFT) as usize);
        let wanted = slot.flags & LOG_DIRTY_PAGES != 0;
        if got.is_ok() != wanted {
            return Err(format!("slot {}: GET_DIRTY_LOG says {:?}", slot.id, got.map(|_| ())));
        }
        Ok(())
    }
}

fn create_memfd(fd: &VmFd) -> OwnedFd {
    let args = kvm_create_guest_memfd { size: MEMFD_SIZE, ..Default::default() };
    let raw = fd.create_guest_memfd(args).expect("KVM_CREATE_GUEST_MEMFD");
    // SAFETY: the kernel has just given it to us and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn expect(got: Outcome, wanted: Outcome, what: &str) -> Result<(), String> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: the VM says {got:?}"))
}

/// The request that an operation amounts to on a table as it is, and the id it should answer. None where the
/// kernel has no such operation: a slot that must be there and is not, a create that must not touch what is there.
fn in_kernel_words(op: &Op, before: &Model) -> Option<(Request, u16)> {
    let slot = |as_id: u16, id| before.spaces().get(usize::from(as_id))?.by_id(id).copied();
    let now = |as_id, id| slot(as_id, id).map(|slot: Slot| slot.request(PAGE_SHIFT));
    let request = match *op {
        Op::Set(request) => request,
        Op::Create(request) if request.id == ID_ANY => {
            let free = (0..ID_ANY).find(|&id| slot(request.as_id, id).is_none())?;
            return Some((Request { id: free, ..request }, free));
        }
        Op::Create(request) => {
            let absent = slot(request.as_id, request.id).is_none();
            return absent.then_some((request, request.id));
        }
        Op::Delete { as_id, id } => Request { size: 0, ..now(as_id, id)? },
        Op::Move { as_id, id, gpa } => Request { gpa, ..now(as_id, id)? },
        Op::Flags { as_id, id, flags } => Request { flags, ..now(as_id, id)? },
        _ => return None,
    };
    Some((request, 0))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's region is the kernel's struct, byte for byte; its flags are the kernel's bits, its ioctls the kernel's
//! numbers.

use std::mem::{align_of, offset_of, size_of};

use kvm_bindings::{kvm_userspace_memory_region as First, kvm_userspace_memory_region2 as Theirs};
use memslots::Region as Ours;

macro_rules! same_field {
    ($($ours:ident = $theirs:ident),* $(,)?) => {
        $(
            assert_eq!(offset_of!(Ours, $ours), offset_of!(Theirs, $theirs), stringify!($ours));
            let size = |ours: &Ours, theirs: &Theirs| (size_of_val(&ours.$ours), size_of_val(&theirs.$theirs));
            let (ours, theirs) = size(&Ours::default(), &Theirs::default());
            assert_eq!(ours, theirs, stringify!($ours));
        )*
    };
}

#[test]
fn region_is_the_kernels_struct() {
    assert_eq!((size_of::<Ours>(), align_of::<Ours>()), (size_of::<Theirs>(), align_of::<Theirs>()));
    same_field!(
        slot = slot,
        flags = flags,
        guest_phys_addr = guest_phys_addr,
        memory_size = memory_size,
        userspace_addr = userspace_addr,
        guest_memfd_offset = guest_memfd_offset,
        guest_memfd = guest_memfd,
        pad1 = pad1,
        pad2 = pad2,
    );
}

#[test]
fn flags_are_the_kernels() {
    assert_eq!(memslots::LOG_DIRTY_PAGES, kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES);
    assert_eq!(memslots::READONLY, kvm_bindings::KVM_MEM_READONLY);
    assert_eq!(memslots::GUEST_MEMFD, kvm_bindings::KVM_MEM_GUEST_MEMFD);
}

/// The value of a constant in the C header.
fn in_the_header(name: &str) -> u32 {
    let header = include_str!("../../include/memslots.h");
    let value = header.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(" = ")?.strip_suffix(','));
    value.unwrap_or_else(|| panic!("{name} is not in the header")).parse().expect("a number")
}

#[test]
fn flags_of_the_header_are_the_kernels() {
    assert_eq!(in_the_header("MEMSLOTS_LOG_DIRTY_PAGES"), kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES);
    assert_eq!(in_the_header("MEMSLOTS_READONLY"), kvm_bindings::KVM_MEM_READONLY);
    assert_eq!(in_the_header("MEMSLOTS_GUEST_MEMFD"), kvm_bindings::KVM_MEM_GUEST_MEMFD);
    assert_eq!(in_the_header("MEMSLOTS_INVALID"), 1 << 16); // KVM_MEMSLOT_INVALID, which is not for userspace
}

/// Linux's `_IOW(KVMIO, nr, T)`.
const fn write_request<T>(nr: u64) -> u64 {
    const WRITE: u64 = 1;
    WRITE << 30 | (size_of::<T>() as u64) << 16 | (kvm_bindings::KVMIO as u64) << 8 | nr
}

#[test]
fn requests_are_the_kernels() {
    use memslots::kvm;
    assert_eq!(kvm::KVM_CHECK_EXTENSION, (kvm_bindings::KVMIO as u64) << 8 | 0x03); // _IO: neither size nor direction
    assert_eq!(kvm::KVM_CAP_USER_MEMORY2, kvm_bindings::KVM_CAP_USER_MEMORY2 as u64);
    assert_eq!(kvm::KVM_SET_USER_MEMORY_REGION, write_request::<First>(0x46));
    assert_eq!(kvm::KVM_SET_USER_MEMORY_REGION2, write_request::<Theirs>(0x49));
}

/// Where the kernel lacks the second form it is given the first bytes of one.
#[test]
fn the_first_form_is_the_beginning_of_the_second() {
    assert_eq!(size_of::<First>(), offset_of!(Ours, guest_memfd_offset));
    assert_eq!(offset_of!(First, slot), offset_of!(Ours, slot));
    assert_eq!(offset_of!(First, flags), offset_of!(Ours, flags));
    assert_eq!(offset_of!(First, guest_phys_addr), offset_of!(Ours, guest_phys_addr));
    assert_eq!(offset_of!(First, memory_size), offset_of!(Ours, memory_size));
    assert_eq!(offset_of!(First, userspace_addr), offset_of!(Ours, userspace_addr));
}

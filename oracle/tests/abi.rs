// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's region is the kernel's struct, byte for byte, and its flags are the kernel's bits.

use std::mem::{align_of, offset_of, size_of};

use kvm_bindings::kvm_userspace_memory_region2 as Theirs;
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The virtual machine as minivmm.c sees it, with two of them behind it: the real one (vm_kvm.c) and
// one that only pretends (vm_sim.c). Neither knows anything of the slot table: both are told about
// each slot, as KVM is, and keep their own account.

#ifndef MINIVMM_VM_H
#define MINIVMM_VM_H

#include <memslots.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE  (UINT64_C(1) << PAGE_SHIFT)

struct vm; // each kind has its own

enum vm_exit_reason {
    VM_EXIT_WANTS_WORK, // the guest reads GUEST_PORT_WORK: answer before it runs on
    VM_EXIT_WROTE,      // the guest says that it wrote at gpa
    VM_EXIT_MMIO_WRITE, // the guest's write of value at gpa found no memory that takes it
    VM_EXIT_HALT,
};

struct vm_exit {
    enum vm_exit_reason reason;
    uint64_t gpa;
    uint32_t value;
};

// All that can fail return 0 or a negative errno.
struct vm_kind {
    const char *name;
    int (*open)(struct vm **out);
    void (*close)(struct vm *vm);
    // As KVM_SET_USER_MEMORY_REGION2; any thread, also while the guest runs.
    int (*set_region)(struct vm *vm, const struct memslots_region *region);
    // As KVM_GET_DIRTY_LOG: which of the first 64 pages of the slot were written since the last
    // call.
    int (*dirty_pages)(struct vm *vm, uint32_t slot, uint64_t *bitmap);
    // Runs the guest up to its next exit; always on the same thread.
    int (*run)(struct vm *vm, struct vm_exit *exit);
    void (*answer_work)(struct vm *vm, uint32_t list_gpa);
};

extern const struct vm_kind vm_kvm;
extern const struct vm_kind vm_simulated;

#endif

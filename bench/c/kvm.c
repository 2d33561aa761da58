// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The raw ioctl that `--kvm` measures the library against: KVM_SET_USER_MEMORY_REGION, a call a
// change, from a C loop as a VMM would. Knows KVM, not the library.

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "bench.h"

#define EXPORT __attribute__((visibility("default")))

static int set_region(int vm_fd, uint32_t id, uint32_t flags, uint64_t gfn, uint64_t npages,
                      uint64_t hva)
{
    struct kvm_userspace_memory_region region = {
        .slot = id,
        .flags = flags,
        .guest_phys_addr = gfn << PAGE_SHIFT,
        .memory_size = npages << PAGE_SHIFT,
        .userspace_addr = hva,
    };
    return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

EXPORT int bench_kvm_create(int vm_fd, const struct bench_slot *slots, size_t n)
{
    int error = 0;
    for (size_t i = 0; i < n && !error; i++)
        error = set_region(vm_fd, slots[i].id, slots[i].flags, slots[i].gfn, slots[i].npages,
                           slots[i].hva);
    return error;
}

EXPORT int bench_kvm_remove(int vm_fd, const struct bench_slot *slots, size_t n)
{
    int error = 0;
    for (size_t i = 0; i < n && !error; i++)
        error = set_region(vm_fd, slots[i].id, 0, slots[i].gfn, 0, slots[i].hva);
    return error;
}

// Moves and flags changes alike; `hvas` by id.
EXPORT int bench_kvm_change(int vm_fd, const struct bench_change *changes, const uint64_t *hvas,
                            size_t n)
{
    int error = 0;
    for (size_t i = 0; i < n && !error; i++)
        error = set_region(vm_fd, changes[i].id, changes[i].flags, changes[i].new_gfn,
                           changes[i].npages, hvas[changes[i].id]);
    return error;
}

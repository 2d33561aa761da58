// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A real VM beside the table, for the tests of memslots_attach_kvm. What the VM has is asked of the
// VM itself: KVM_GET_DIRTY_LOG knows a slot with LOG_DIRTY, and says ENOENT for one that is not
// there; and a slot put over another one is refused.

#ifndef MEMSLOTS_C_TESTS_KVM_H
#define MEMSLOTS_C_TESTS_KVM_H

#include "test.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int kvm_fd = -1, vm_fd = -1;
static struct memslots *ms;
static struct memslots_reader *reader;

// Whether there is a VM; says SKIPPED, or fails where KVM is required, if there is none.
static inline bool set_up(void)
{
    const char *required = getenv("MEMSLOTS_REQUIRE_KVM");

    kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    vm_fd = kvm_fd < 0 ? -1 : ioctl(kvm_fd, KVM_CREATE_VM, 0);
    if (vm_fd < 0) {
        CHECK(!(required && strcmp(required, "1") == 0));
        test_skip_reason = "no /dev/kvm";
        if (kvm_fd >= 0)
            close(kvm_fd);
        return false;
    }
    ms = new_table();
    reader = new_reader(ms);
    return true;
}

static inline void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    close(vm_fd);
    close(kvm_fd);
}

static inline struct memslots_region logged(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.flags = MEMSLOTS_LOG_DIRTY_PAGES;
    return region;
}

static inline int set_logged(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = logged(slot, gfn, npages);

    return memslots_set_region(ms, &region, NULL);
}

static inline bool vm_has(uint32_t slot)
{
    uint64_t bitmap[64];
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

    return ioctl(vm_fd, KVM_GET_DIRTY_LOG, &log) == 0;
}

// The VM's own slot calls, past the table.
static inline int vm_set(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = KVM_MEM_LOG_DIRTY_PAGES,
        .guest_phys_addr = gfn * PAGE,
        .memory_size = npages * PAGE,
        .userspace_addr = HVA + gfn * PAGE,
    };

    return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

// Whether the VM has memory at a gfn: another slot put there is refused if so.
static inline bool vm_has_memory_at(uint64_t gfn)
{
    int err = vm_set(30000, gfn, 1);

    if (err == 0)
        vm_set(30000, gfn, 0);
    return err == -EEXIST;
}

#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a kernel that refuses a region. The environment says which: REFUSES is create or delete, and the
// guest physical address at which it happens. The errno is the one that KVM has for regions that overlap.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "ioctl.h"

static int refuses(const struct kvm_userspace_memory_region *region)
{
    const char *which = getenv("REFUSES");
    const char *what = region->memory_size ? "create" : "delete";

    return which && strncmp(which, what, strlen(what)) == 0 &&
           region->guest_phys_addr == strtoull(which + strlen(what), NULL, 0);
}

// KVM_SET_USER_MEMORY_REGION, or its second form, which begins alike and which old headers do not have.
static int is_set_region(unsigned long request)
{
    return _IOC_TYPE(request) == KVMIO && (_IOC_NR(request) == 0x46 || _IOC_NR(request) == 0x49);
}

static int answer(int fd, unsigned long request, void *argument)
{
    if (is_set_region(request) && refuses(argument)) {
        errno = EEXIST;
        return -1;
    }
    return real_ioctl(fd, request, argument);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a kernel that writes entries into a vCPU's dirty ring which name no page of any slot. Their
// offsets are WRONG and up, so that they are seen in a trace: ids that no slot has, address spaces that do not exist, a
// page past the end of a slot. Each takes the place of a good entry, once.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <sys/mman.h>

#include "ioctl.h"

#define WRONG    0xbad0000
#define NR_WRONG 41
#define PAGE     4096

static struct kvm_dirty_gfn *ring;
static size_t entries;

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);
    void *result;

    if (!real)
        real = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    result = real(at, length, protection, flags, fd, offset);
    if (result != MAP_FAILED && fd >= 0 && offset == KVM_DIRTY_LOG_PAGE_OFFSET * PAGE) {
        ring = result;
        entries = length / sizeof(*ring);
    }
    return result;
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap(at, length, protection, flags, fd, offset);
}

// The ids begin where there are free ones and go on past all that QEMU has room for.
static unsigned wrong_slot(unsigned n)
{
    if (n < 20)
        return 1014 + n;
    if (n < 40)
        return (n - 19) << 16;
    return 3;
}

static void spoil(void)
{
    static unsigned done;
    size_t i;

    for (i = 0; i < entries && done < NR_WRONG; i++) {
        if (__atomic_load_n(&ring[i].flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            continue;
        if (ring[i].offset >= WRONG)
            continue;
        ring[i].slot = wrong_slot(done);
        ring[i].offset = WRONG + done++;
    }
}

static int answer(int fd, unsigned long request, void *argument)
{
    int result = real_ioctl(fd, request, argument);

    if (request == KVM_RUN)
        spoil();
    return result;
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The real VM: /dev/kvm, one vCPU in flat 32-bit protected mode, and the port and MMIO exits of the
// guest of guest.h. Knows KVM; knows nothing of the slot table but that its regions are KVM's.

#define _DEFAULT_SOURCE // O_CLOEXEC
#include "vm.h"

#if defined(__x86_64__) && defined(__linux__)

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

// Newer than some distributions' headers. A memslots_region is the struct it takes, byte for byte.
#ifndef KVM_SET_USER_MEMORY_REGION2
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct memslots_region)
#define KVM_CAP_USER_MEMORY2        231
#endif

// Three pages that Intel hosts without "unrestricted guest" need for themselves, away from ours.
#define TSS_GPA 0xfffbd000

struct vm {
    int kvm_fd, vm_fd, vcpu_fd;
    int has_region2;
    struct kvm_run *run;
    int run_size;
};

static void kvm_close(struct vm *vm)
{
    if (vm->run)
        munmap(vm->run, (size_t)vm->run_size);
    if (vm->vcpu_fd >= 0)
        close(vm->vcpu_fd);
    if (vm->vm_fd >= 0)
        close(vm->vm_fd);
    if (vm->kvm_fd >= 0)
        close(vm->kvm_fd);
    free(vm);
}

// One segment over all 4 GiB, as flat as it gets. The type's lowest bit, "accessed", is set
// already, so that the guest needs no descriptor table.
static struct kvm_segment flat_segment(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){
        .limit = 0xffffffff,
        .selector = selector,
        .type = type,
        .present = 1,
        .db = 1,
        .s = 1,
        .g = 1,
    };
}

static int set_up_vcpu(int vcpu_fd)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = GUEST_CODE_GPA, .rflags = 2};

    if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cs = flat_segment(0x08, 0xb); // code: execute, read, accessed
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(0x10, 0x3);
    sregs.cr0 |= 1; // protected mode, paging off
    if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return -errno;
    return 0;
}

static int open_steps(struct vm *vm)
{
    vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm_fd < 0)
        return -errno;
    vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    if (vm->vm_fd < 0)
        return -errno;
    vm->has_region2 = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY2) > 0;
    if (ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_GPA) < 0)
        return -errno;
    vm->vcpu_fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, 0);
    if (vm->vcpu_fd < 0)
        return -errno;
    vm->run_size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (vm->run_size < 0)
        return -errno;
    void *run =
        mmap(NULL, (size_t)vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu_fd, 0);
    if (run == MAP_FAILED)
        return -errno;
    vm->run = run;
    return set_up_vcpu(vm->vcpu_fd);
}

static int kvm_open(struct vm **out)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return -ENOMEM;
    vm->kvm_fd = vm->vm_fd = vm->vcpu_fd = -1;

    int err = open_steps(vm);
    if (err) {
        kvm_close(vm);
        return err;
    }
    *out = vm;
    return 0;
}

static int kvm_set_region(struct vm *vm, const struct memslots_region *region)
{
    unsigned long request =
        vm->has_region2 ? KVM_SET_USER_MEMORY_REGION2 : KVM_SET_USER_MEMORY_REGION;

    // The first form is a prefix of the second: the same pointer serves both.
    return ioctl(vm->vm_fd, request, region) < 0 ? -errno : 0;
}

static int kvm_dirty_pages(struct vm *vm, uint32_t slot, uint64_t *bitmap)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

    return ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

static int read_port_exit(const struct kvm_run *run, struct vm_exit *exit)
{
    if (run->io.direction == KVM_EXIT_IO_IN && run->io.port == GUEST_PORT_WORK) {
        exit->reason = VM_EXIT_WANTS_WORK;
        return 0;
    }
    if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == GUEST_PORT_WROTE) {
        uint32_t gpa;
        memcpy(&gpa, (const char *)run + run->io.data_offset, sizeof(gpa));
        exit->reason = VM_EXIT_WROTE;
        exit->gpa = gpa;
        return 0;
    }
    return -EPROTO;
}

static int kvm_run_guest(struct vm *vm, struct vm_exit *exit)
{
    *exit = (struct vm_exit){0};
    while (ioctl(vm->vcpu_fd, KVM_RUN, 0) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    switch (vm->run->exit_reason) {
    case KVM_EXIT_IO:
        return read_port_exit(vm->run, exit);
    case KVM_EXIT_MMIO:
        if (!vm->run->mmio.is_write)
            return -EPROTO;
        exit->reason = VM_EXIT_MMIO_WRITE;
        exit->gpa = vm->run->mmio.phys_addr;
        memcpy(&exit->value, vm->run->mmio.data, sizeof(exit->value));
        return 0;
    case KVM_EXIT_HLT:
        exit->reason = VM_EXIT_HALT;
        return 0;
    default:
        return -EPROTO;
    }
}

static void kvm_answer_work(struct vm *vm, uint32_t list_gpa)
{
    memcpy((char *)vm->run + vm->run->io.data_offset, &list_gpa, sizeof(list_gpa));
}

#else // no KVM that this program knows how to drive

#include <errno.h>

static int kvm_open(struct vm **out)
{
    (void)out;
    return -ENOSYS;
}

#define kvm_close       NULL
#define kvm_set_region  NULL
#define kvm_dirty_pages NULL
#define kvm_run_guest   NULL
#define kvm_answer_work NULL

#endif

const struct vm_kind vm_kvm = {
    .name = "real VM (/dev/kvm)",
    .open = kvm_open,
    .close = kvm_close,
    .set_region = kvm_set_region,
    .dirty_pages = kvm_dirty_pages,
    .run = kvm_run_guest,
    .answer_work = kvm_answer_work,
};

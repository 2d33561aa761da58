// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The vCPU's thread: runs the guest from exit to exit and resolves the address of each exit through
// the table. A reader: it takes no lock and never waits for the thread that plugs and unplugs.

#include "vmm.h"
#include "guest.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

// LIST_ALWAYS over and over while slots come and go, then LIST_FINALLY, then the end.
static void hand_out_work(struct vcpu *vcpu)
{
    struct vmm *vmm = vcpu->vmm;

    atomic_fetch_add(&vcpu->nr_lists, 1);
    if (vcpu->last_list) {
        vmm->kind->answer_work(vmm->vm, 0);
    } else if (atomic_load(&vmm->plugging)) {
        vmm->kind->answer_work(vmm->vm, LIST_ALWAYS);
    } else {
        vcpu->last_list = true;
        vmm->kind->answer_work(vmm->vm, LIST_FINALLY);
    }
}

// The VM found no memory for a write: the table must know of none either, or of ROM.
static void on_mmio_write(struct vcpu *vcpu, const struct vm_exit *exit)
{
    memslots_read_lock(vcpu->reader);
    const struct memslot *slot = memslots_find_gfn(vcpu->reader, 0, exit->gpa >> PAGE_SHIFT);
    if (slot && !(slot->flags & MEMSLOTS_READONLY))
        complain(vcpu->vmm, "MMIO exit at %#" PRIx64 ", in the RAM of slot %u", exit->gpa,
                 slot->id);
    memslots_read_unlock(vcpu->reader);

    if (exit->value != ((uint32_t)exit->gpa ^ GUEST_COOKIE))
        complain(vcpu->vmm, "MMIO exit at %#" PRIx64 " with %#" PRIx32, exit->gpa, exit->value);
    vcpu->refused_gpa = exit->gpa;
}

// The guest's write must have arrived in the very host page that the table says.
static void check_write_to_ram(struct vcpu *vcpu, uint64_t gpa, uint64_t hva)
{
    const struct memslot *slot = memslots_find_gfn(vcpu->reader, 0, gpa >> PAGE_SHIFT);
    uint32_t value;

    memcpy(&value, (const void *)(uintptr_t)hva, sizeof(value));
    if (value != ((uint32_t)gpa ^ GUEST_COOKIE))
        complain(vcpu->vmm, "wrote %#" PRIx64 ", not found in host memory", gpa);
    if (!slot) {
        complain(vcpu->vmm, "wrote %#" PRIx64 ", whose slot is gone", gpa);
        return;
    }
    struct memory *memory = slot->opaque;
    uint64_t page = (gpa >> PAGE_SHIFT) - slot->base_gfn;
    atomic_fetch_or(&memory->written, UINT64_C(1) << page);
}

static void on_wrote(struct vcpu *vcpu, uint64_t gpa)
{
    uint64_t hva, len_left;
    bool refused = vcpu->refused_gpa == gpa;

    vcpu->refused_gpa = NO_GPA;
    memslots_read_lock(vcpu->reader);
    int err = memslots_gpa_to_hva(vcpu->reader, 0, gpa, MEMSLOTS_WRITE, &hva, &len_left);
    switch (err) {
    case 0:
        vcpu->in_ram++;
        check_write_to_ram(vcpu, gpa, hva);
        break;
    case -EROFS:
        vcpu->in_rom++;
        break;
    case -ENOENT:
        vcpu->in_holes++;
        break;
    default:
        complain(vcpu->vmm, "%#" PRIx64 ": %s", gpa, strerror(-err));
    }
    memslots_read_unlock(vcpu->reader);
    if (refused != (err != 0))
        complain(vcpu->vmm, "%#" PRIx64 ": the VM %s the write, the table says %s", gpa,
                 refused ? "refused" : "took", err ? strerror(-err) : "RAM");
}

void *vcpu_thread(void *arg)
{
    struct vcpu *vcpu = arg;
    struct vm_exit exit;

    for (;;) {
        int err = vcpu->vmm->kind->run(vcpu->vmm->vm, &exit);
        if (err) {
            complain(vcpu->vmm, "the guest cannot go on: %s", strerror(-err));
            return NULL;
        }
        switch (exit.reason) {
        case VM_EXIT_WANTS_WORK:
            hand_out_work(vcpu);
            break;
        case VM_EXIT_MMIO_WRITE:
            on_mmio_write(vcpu, &exit);
            break;
        case VM_EXIT_WROTE:
            on_wrote(vcpu, exit.gpa);
            break;
        case VM_EXIT_HALT:
            return NULL;
        }
    }
}

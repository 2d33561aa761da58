// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A VM that only pretends, for machines without /dev/kvm: a plain array of slots under a lock, and
// the guest of guest_x86.S acted out in C, access by access. Deliberately naive, and without a line
// from the library, so that it can disagree with it.

#define _POSIX_C_SOURCE 200809L // pthread_mutex_t
#include "vm.h"
#include "guest.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct sim_slot {
    struct memslots_region region; // memory_size 0: no such slot
    uint64_t dirty;                // a bit a page, of the first 64
};

// Where the guest stands between two exits.
enum sim_step { ASKING, READING_LIST, WROTE };

struct vm {
    pthread_mutex_t lock; // guards slots: they change while the guest runs
    struct sim_slot *slots;
    size_t nr_slots;
    enum sim_step step;
    uint32_t list; // the guest's esi
    uint32_t gpa;  // its edi
};

static int sim_open(struct vm **out)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return -ENOMEM;
    pthread_mutex_init(&vm->lock, NULL);
    *out = vm;
    return 0;
}

static void sim_close(struct vm *vm)
{
    pthread_mutex_destroy(&vm->lock);
    free(vm->slots);
    free(vm);
}

static int make_room(struct vm *vm, size_t nr_slots)
{
    if (nr_slots <= vm->nr_slots)
        return 0;
    struct sim_slot *slots = realloc(vm->slots, nr_slots * sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    for (size_t i = vm->nr_slots; i < nr_slots; i++)
        slots[i] = (struct sim_slot){0};
    vm->slots = slots;
    vm->nr_slots = nr_slots;
    return 0;
}

static int overlaps(const struct memslots_region *a, const struct memslots_region *b)
{
    return a->guest_phys_addr < b->guest_phys_addr + b->memory_size &&
           b->guest_phys_addr < a->guest_phys_addr + a->memory_size;
}

// As much of the kernel's rules as a well-behaved caller can run into.
static int set_region_locked(struct vm *vm, const struct memslots_region *region)
{
    uint32_t id = region->slot;

    if (region->memory_size == 0 && (id >= vm->nr_slots || vm->slots[id].region.memory_size == 0))
        return -EINVAL;
    for (size_t i = 0; i < vm->nr_slots && region->memory_size; i++) {
        const struct memslots_region *other = &vm->slots[i].region;
        if (i != id && other->memory_size && overlaps(region, other))
            return -EEXIST;
    }
    int err = make_room(vm, (size_t)id + 1);
    if (!err)
        vm->slots[id] = (struct sim_slot){.region = *region};
    return err;
}

static int sim_set_region(struct vm *vm, const struct memslots_region *region)
{
    pthread_mutex_lock(&vm->lock);
    int err = set_region_locked(vm, region);
    pthread_mutex_unlock(&vm->lock);
    return err;
}

static int sim_dirty_pages(struct vm *vm, uint32_t slot, uint64_t *bitmap)
{
    int err = -ENOENT;

    pthread_mutex_lock(&vm->lock);
    if (slot < vm->nr_slots && (vm->slots[slot].region.flags & MEMSLOTS_LOG_DIRTY_PAGES)) {
        *bitmap = vm->slots[slot].dirty;
        vm->slots[slot].dirty = 0;
        err = 0;
    }
    pthread_mutex_unlock(&vm->lock);
    return err;
}

static struct sim_slot *slot_at(struct vm *vm, uint64_t gpa)
{
    for (size_t i = 0; i < vm->nr_slots; i++) {
        const struct memslots_region *r = &vm->slots[i].region;
        if (gpa >= r->guest_phys_addr && gpa - r->guest_phys_addr < r->memory_size)
            return &vm->slots[i];
    }
    return NULL;
}

static uint32_t *host_address(const struct sim_slot *slot, uint64_t gpa)
{
    uint64_t offset = gpa - slot->region.guest_phys_addr;
    return (uint32_t *)(uintptr_t)(slot->region.userspace_addr + offset);
}

// A hole reads as all ones, as on a bus where no one answers.
static uint32_t guest_load(struct vm *vm, uint64_t gpa)
{
    pthread_mutex_lock(&vm->lock);
    const struct sim_slot *slot = slot_at(vm, gpa);
    uint32_t value = slot ? *host_address(slot, gpa) : UINT32_MAX;
    pthread_mutex_unlock(&vm->lock);
    return value;
}

// Says whether there was memory to take the value.
static int guest_store(struct vm *vm, uint64_t gpa, uint32_t value)
{
    pthread_mutex_lock(&vm->lock);
    struct sim_slot *slot = slot_at(vm, gpa);
    int taken = slot && !(slot->region.flags & MEMSLOTS_READONLY);
    if (taken) {
        uint64_t page = (gpa - slot->region.guest_phys_addr) >> PAGE_SHIFT;
        *host_address(slot, gpa) = value;
        if (page < 64)
            slot->dirty |= UINT64_C(1) << page;
    }
    pthread_mutex_unlock(&vm->lock);
    return taken;
}

static void sim_answer_work(struct vm *vm, uint32_t list_gpa)
{
    vm->list = list_gpa;
}

// guest_x86.S, line by line, with an exit wherever the processor would have one.
static int sim_run(struct vm *vm, struct vm_exit *exit)
{
    *exit = (struct vm_exit){0};
    if (vm->step == ASKING) {
        vm->step = READING_LIST;
        exit->reason = VM_EXIT_WANTS_WORK;
        return 0;
    }
    if (vm->step == WROTE) { // the write itself was an exit: go on behind it
        vm->step = READING_LIST;
        exit->reason = VM_EXIT_WROTE;
        exit->gpa = vm->gpa;
        return 0;
    }
    if (vm->list == 0) {
        exit->reason = VM_EXIT_HALT;
        return 0;
    }
    vm->gpa = guest_load(vm, vm->list);
    vm->list += sizeof(uint32_t);
    if (vm->gpa == GUEST_LIST_END) {
        vm->step = ASKING;
        return sim_run(vm, exit);
    }
    exit->gpa = vm->gpa;
    exit->value = vm->gpa ^ GUEST_COOKIE;
    if (guest_store(vm, vm->gpa, exit->value)) {
        exit->reason = VM_EXIT_WROTE;
        return 0;
    }
    vm->step = WROTE;
    exit->reason = VM_EXIT_MMIO_WRITE;
    return 0;
}

const struct vm_kind vm_simulated = {
    .name = "SIMULATED VM",
    .open = sim_open,
    .close = sim_close,
    .set_region = sim_set_region,
    .dirty_pages = sim_dirty_pages,
    .run = sim_run,
    .answer_work = sim_answer_work,
};

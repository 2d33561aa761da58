// SPDX-License-Identifier: MIT OR Apache-2.0
//
// How guest memory comes and goes: the writer's side of the library.

#define _DEFAULT_SOURCE // MAP_ANONYMOUS
#include "vmm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void complain(struct vmm *vmm, const char *format, ...)
{
    if (atomic_fetch_add(&vmm->nr_wrong, 1) >= 10)
        return; // the count is in the report

    va_list args;
    va_start(args, format);
    fputs("minivmm: WRONG: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

uint64_t page_stamp(const struct memory *memory, uint64_t page)
{
    return (memory->gpa + page * PAGE_SIZE) | memory->serial << 40;
}

static struct memory *memory_new(struct vmm *vmm, uint64_t gpa, uint64_t npages)
{
    struct memory *memory = calloc(1, sizeof(*memory));
    if (!memory)
        return NULL;
    memory->host =
        mmap(NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory->host == MAP_FAILED) {
        free(memory);
        return NULL;
    }
    atomic_fetch_add(&vmm->mapped_bytes, npages * PAGE_SIZE);
    memory->gpa = gpa;
    memory->npages = npages;
    memory->serial = ++vmm->nr_memories;
    for (uint64_t page = 0; page < npages; page++) {
        uint64_t stamp = page_stamp(memory, page);
        memcpy(memory->host + page * PAGE_SIZE + STAMP_OFFSET, &stamp, sizeof(stamp));
    }
    return memory;
}

// Called once in a slot's life, when no reader can see it any more: whoever still held it inside a
// read section could use what is known of the memory up to now.
void release_memory(void *ctx, const struct memslot *gone)
{
    struct vmm *vmm = ctx;

    free(gone->opaque);
    atomic_fetch_add(&vmm->nr_released, 1);
}

// Called for memory that no slot maps any more and that no reader can still use.
void unmap_memory(void *ctx, uint64_t hva, uint64_t size)
{
    struct vmm *vmm = ctx;

    if (munmap((void *)(uintptr_t)hva, size) < 0)
        complain(vmm, "munmap: %s", strerror(errno));
    atomic_fetch_sub(&vmm->mapped_bytes, size);
}

// Table first, VM second; unplug() goes the other way. So whatever the VM has, the table has, and
// an exit of the guest can always be resolved.
int plug(struct vmm *vmm, uint64_t gpa, uint64_t npages, uint32_t flags)
{
    struct memory *memory = memory_new(vmm, gpa, npages);
    if (!memory)
        return -ENOMEM;

    struct memslots_region region = {
        .slot = MEMSLOTS_ID_ANY,
        .flags = flags,
        .guest_phys_addr = gpa,
        .memory_size = npages * PAGE_SIZE,
        .userspace_addr = (uint64_t)(uintptr_t)memory->host,
    };
    int id = memslots_create(vmm->table, &region, memory);
    if (id < 0) { // refused: there never was a slot, so neither hook is called
        unmap_memory(vmm, region.userspace_addr, region.memory_size);
        free(memory);
        return id;
    }

    region.slot = (uint32_t)id;
    int err = vmm->kind->set_region(vmm->vm, &region);
    if (err) {
        memslots_delete(vmm->table, 0, (uint16_t)id);
        return err;
    }
    vmm->nr_plugged++;
    return id;
}

int unplug(struct vmm *vmm, uint16_t id)
{
    const struct memslots_region nothing = {.slot = id}; // size 0 deletes, as in KVM

    int err = vmm->kind->set_region(vmm->vm, &nothing);
    if (!err)
        err = memslots_delete(vmm->table, 0, id);
    if (!err)
        vmm->nr_unplugged++;
    return err;
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The I/O threads: look up guest memory and read it, while slots come and go beside them, and check
// everything that they see. They take no lock either: what keeps the memory that they find in place
// is their read section.

#include "vmm.h"

#include <inttypes.h>
#include <string.h>

#define LOOKUPS_PER_SECTION 256
#define SECTIONS_PER_WALK   64

static bool stamp_is_right(const struct memslot *slot, uint64_t page)
{
    const struct memory *memory = slot->opaque;
    uint64_t stamp;

    memcpy(&stamp, memory->host + page * PAGE_SIZE + STAMP_OFFSET, sizeof(stamp));
    return stamp == page_stamp(memory, page);
}

// Slot, opaque and memory must be one thing, and hva and gfn must lead to the same slot.
static void check_hit(struct io_thread *io, const struct memslot *slot, uint64_t gfn)
{
    const struct memory *memory = slot->opaque;
    uint64_t page = gfn - slot->base_gfn;

    if (page >= slot->npages || memory->gpa != slot->base_gfn << PAGE_SHIFT ||
        memory->npages != slot->npages || (uintptr_t)memory->host != slot->userspace_addr ||
        !stamp_is_right(slot, page)) {
        complain(io->vmm, "gfn %#" PRIx64 ": slot %u is not what it should be", gfn, slot->id);
        return;
    }

    // A socket's slot may have been unplugged since; its memory is still ours up to the unlock.
    uint64_t hva = slot->userspace_addr + page * PAGE_SIZE;
    const struct memslot *by_hva = memslots_find_hva(io->reader, 0, hva);
    if (by_hva != slot && (by_hva || slot->base_gfn < SOCKET_GPA >> PAGE_SHIFT))
        complain(io->vmm, "gfn %#" PRIx64 ": its hva leads elsewhere", gfn);
}

// Not boot memory: the guest's code and lists stand there in the stamps' place.
static uint64_t pick_gfn(struct io_thread *io)
{
    uint64_t random = next_random(&io->random);

    if (random & 1) // memory that never goes away, and the holes in between
        return (FIXED_GPA >> PAGE_SHIFT) + (random >> 1) % (io->vmm->nr_fixed * UINT64_C(6));
    return (SOCKET_GPA >> PAGE_SHIFT) + (random >> 1) % (NR_SOCKETS * SOCKET_PAGES);
}

// One walk sees one moment of the table: ordered, nothing twice, and all that never goes away.
static void walk(struct io_thread *io)
{
    struct memslots_iter iter;
    const struct memslot *slot;
    uint64_t end = 0, nr_fixed = 0;

    memslots_iter_all(&iter, io->reader, 0);
    while ((slot = memslots_iter_next(&iter))) {
        if (slot->base_gfn < end)
            complain(io->vmm, "slot %u begins inside the one before it", slot->id);
        end = slot->base_gfn + slot->npages;
        nr_fixed += slot->base_gfn < SOCKET_GPA >> PAGE_SHIFT;
    }
    if (nr_fixed != io->vmm->nr_fixed)
        complain(io->vmm, "a walk found %" PRIu64 " slots that never go away", nr_fixed);
    io->nr_walks++;
}

void *io_thread(void *arg)
{
    struct io_thread *io = arg;

    for (uint64_t section = 0; atomic_load(&io->vmm->reading); section++) {
        memslots_read_lock(io->reader);
        for (int i = 0; i < LOOKUPS_PER_SECTION; i++) {
            uint64_t gfn = pick_gfn(io);
            const struct memslot *slot = memslots_find_gfn(io->reader, 0, gfn);
            if (slot)
                check_hit(io, slot, gfn);
        }
        if (section % SECTIONS_PER_WALK == 0)
            walk(io);
        memslots_read_unlock(io->reader);
        io->nr_lookups += LOOKUPS_PER_SECTION;
    }
    return NULL;
}

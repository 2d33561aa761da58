// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a libmemslots which gives one wrong answer. Which one says the environment, WRONG_ANSWER:
// gfn (a slot that is there is not found), range (a slot is left out of every range), or count (the number of slots is
// too high by one). x-memslots-verify must notice each of them. Or overlap: a slot that is to be at 4 GiB is put where
// RAM is, which the library itself refuses.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <memslots.h>
#include <stdlib.h>
#include <string.h>

static int wrong(const char *what)
{
    const char *which = getenv("WRONG_ANSWER");

    return which && strcmp(which, what) == 0;
}

const struct memslot *memslots_find_gfn(struct memslots_reader *reader, uint16_t as_id,
                                        uint64_t gfn)
{
    const struct memslot *(*real)(struct memslots_reader *, uint16_t, uint64_t) =
        (const struct memslot *(*)(struct memslots_reader *, uint16_t, uint64_t))dlsym(
            RTLD_NEXT, "memslots_find_gfn");
    const struct memslot *slot = real(reader, as_id, gfn);

    return slot && slot->id == 3 && wrong("gfn") ? NULL : slot;
}

const struct memslot *memslots_iter_next(struct memslots_iter *iter)
{
    const struct memslot *(*real)(struct memslots_iter *) =
        (const struct memslot *(*)(struct memslots_iter *))dlsym(RTLD_NEXT, "memslots_iter_next");
    const struct memslot *slot = real(iter);

    return slot && slot->id == 3 && wrong("range") ? real(iter) : slot;
}

uint32_t memslots_count(const struct memslots_reader *reader, uint16_t as_id)
{
    uint32_t (*real)(const struct memslots_reader *, uint16_t) =
        (uint32_t(*)(const struct memslots_reader *, uint16_t))dlsym(RTLD_NEXT, "memslots_count");

    return real(reader, as_id) + wrong("count");
}

int memslots_txn_create(struct memslots_txn *txn, const struct memslots_region *region,
                        void *opaque)
{
    int (*real)(struct memslots_txn *, const struct memslots_region *, void *) =
        (int (*)(struct memslots_txn *, const struct memslots_region *, void *))dlsym(
            RTLD_NEXT, "memslots_txn_create");
    struct memslots_region moved = *region;

    if (wrong("overlap") && region->guest_phys_addr == 1ull << 32)
        moved.guest_phys_addr = 1 << 20;
    return real(txn, &moved, opaque);
}

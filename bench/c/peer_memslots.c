// SPDX-License-Identifier: MIT OR Apache-2.0
//
// libmemslots itself, used as any C program uses it: by its header and its shared object. With
// SYNC its updates return only when no reader is left in the old state, as KVM's ioctl does.
// Beyond the common loops it exports what only this peer has: statistics, the garbage cap, KVM.

#ifdef SYNC
#define PEER_NAME "memslots sync"
#else
#define PEER_NAME "memslots"
#endif

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include <memslots.h>

#include "bench.h"

#define EXPORT __attribute__((visibility("default")))

#define table  memslots
#define reader memslots_reader
typedef struct memslot slot_t;

static struct memslots *table_with(uint32_t max_slots, size_t max_garbage)
{
    struct memslots_config config;
    memslots_config_init(&config);
    config.max_slots = max_slots;
    config.max_garbage = max_garbage;
#ifdef SYNC
    config.sync = 1;
#endif
    struct memslots *memslots;
    return memslots_new(&config, &memslots) ? NULL : memslots;
}

static struct memslots *table_new(uint32_t max_slots)
{
    return table_with(max_slots, 0);
}

static void table_free(struct memslots *memslots)
{
    memslots_free(memslots);
}

static struct memslots_reader *reader_new(struct memslots *memslots)
{
    struct memslots_reader *reader;
    return memslots_reader_new(memslots, &reader) ? NULL : reader;
}

static void reader_free(struct memslots_reader *reader)
{
    memslots_reader_free(reader);
}

static void quiesce(struct memslots *memslots)
{
    memslots_synchronize(memslots);
}

// Nodes, records and tables of ids; not the rest of the pool's chunk, nor what waits to be used again.
static size_t live_bytes(struct memslots *memslots)
{
    struct memslots_stats stats;
    if (memslots_get_stats(memslots, &stats, sizeof(stats)))
        return 0;
    return stats.index_bytes - stats.garbage_bytes;
}
#define HAS_LIVE_BYTES

static inline struct memslots_region region_of(const struct bench_slot *slot)
{
    return (struct memslots_region){
        .slot = slot->id,
        .flags = slot->flags,
        .guest_phys_addr = slot->gfn << PAGE_SHIFT,
        .memory_size = slot->npages << PAGE_SHIFT,
        .userspace_addr = slot->hva,
    };
}

static inline int id_or_error(int result)
{
    return result < 0 ? result : 0;
}

static int create_one(struct memslots *memslots, const struct bench_slot *slot)
{
    struct memslots_region region = region_of(slot);
    return id_or_error(memslots_create(memslots, &region, NULL));
}

static int remove_one(struct memslots *memslots, const struct bench_slot *slot)
{
    return memslots_delete(memslots, 0, (uint16_t)slot->id);
}

static int move_one(struct memslots *memslots, const struct bench_change *change)
{
    return memslots_move(memslots, 0, (uint16_t)change->id, change->new_gfn << PAGE_SHIFT);
}

static int flags_one(struct memslots *memslots, const struct bench_change *change)
{
    return memslots_set_flags(memslots, 0, (uint16_t)change->id, change->flags);
}

// The list that memslots_apply takes is made here, as part of what is measured.
static int create_all(struct memslots *memslots, const struct bench_slot *slots, size_t n)
{
    struct memslots_region *regions = malloc(n * sizeof(*regions));
    if (!regions)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        regions[i] = region_of(&slots[i]);
    int error = memslots_apply(memslots, regions, NULL, n, NULL);
    free(regions);
    return error;
}

static int create_steps(struct memslots *memslots, const struct bench_slot *slots, size_t n)
{
    struct memslots_txn *txn;
    int error = memslots_txn_begin(memslots, &txn);
    if (error)
        return error;
    for (size_t i = 0; i < n && !error; i++) {
        struct memslots_region region = region_of(&slots[i]);
        error = id_or_error(memslots_txn_create(txn, &region, NULL));
    }
    if (!error)
        return memslots_txn_commit(txn);
    memslots_txn_abort(txn);
    return error;
}

#define HAS_CREATE_STEPS

static int move_all(struct memslots *memslots, const struct bench_change *changes, size_t n)
{
    struct memslots_txn *txn;
    int error = memslots_txn_begin(memslots, &txn);
    if (error)
        return error;
    for (size_t i = 0; i < n && !error; i++)
        error =
            memslots_txn_move(txn, 0, (uint16_t)changes[i].id, changes[i].new_gfn << PAGE_SHIFT);
    if (!error)
        return memslots_txn_commit(txn);
    memslots_txn_abort(txn);
    return error;
}

#define section_begin(reader) memslots_read_lock(reader)
#define section_end(reader)   memslots_read_unlock(reader)

static inline const slot_t *find_gfn(struct memslots_reader *reader, uint64_t gfn)
{
    return memslots_find_gfn(reader, 0, gfn);
}

static inline const slot_t *find_gfn_inline_hit(struct memslots_reader *reader, uint64_t gfn)
{
    return memslots_find_gfn_inline(reader, 0, gfn);
}
#define find_gfn_inline find_gfn_inline_hit

// One last-used slot for all: everybody through the first reader.
#define find_gfn_shared(readers, i, gfn) find_gfn((readers)[0], gfn)

static inline uint64_t slot_gfn(const slot_t *slot)
{
    return slot->base_gfn;
}

static inline uint64_t gfn_to_hva(struct memslots_reader *reader, uint64_t gfn)
{
    uint64_t hva, left;
    if (memslots_gpa_to_hva(reader, 0, gfn << PAGE_SHIFT, MEMSLOTS_READ, &hva, &left))
        return NO_ANSWER;
    return hva;
}

static inline uint64_t hva_to_gfn(struct memslots_reader *reader, uint64_t hva)
{
    uint64_t gpa;
    return memslots_hva_to_gpa(reader, 0, hva, &gpa) ? NO_ANSWER : gpa >> PAGE_SHIFT;
}

static inline uint64_t hva_range(struct memslots_reader *reader, uint64_t start, uint64_t last)
{
    struct memslots_iter iter;
    const slot_t *slot;
    uint64_t sum = 0;
    memslots_iter_hva(&iter, reader, 0, start, last);
    while ((slot = memslots_iter_next(&iter)))
        sum += slot->base_gfn + 1;
    return sum;
}

static inline const slot_t *find_id(struct memslots_reader *reader, uint64_t id)
{
    return memslots_find_id(reader, 0, (uint16_t)id);
}

// ---- what only this peer has ----

EXPORT const char *bench_memslots_version(void)
{
    return memslots_version();
}

EXPORT void *bench_memslots_new_capped(uint32_t max_slots, size_t max_garbage)
{
    return table_with(max_slots, max_garbage);
}

// out: garbage bytes, garbage objects, index bytes, pool bytes, oldest section's lag
EXPORT int bench_memslots_stats(void *memslots, uint64_t out[5])
{
    struct memslots_stats stats;
    int error = memslots_get_stats(memslots, &stats, sizeof(stats));
    if (error)
        return error;
    out[0] = stats.garbage_bytes;
    out[1] = stats.garbage_objects;
    out[2] = stats.index_bytes;
    out[3] = stats.pool_bytes;
    out[4] = stats.oldest_section_lag;
    return 0;
}

EXPORT void bench_memslots_section(void *reader, int open)
{
    if (open)
        memslots_read_lock(reader);
    else
        memslots_read_unlock(reader);
}

EXPORT int bench_memslots_attach_kvm(void *memslots, int vm_fd)
{
    return memslots_attach_kvm(memslots, vm_fd);
}

EXPORT int bench_memslots_delete_all(void *memslots, const struct bench_slot *slots, size_t n)
{
    struct memslots_txn *txn;
    int error = memslots_txn_begin(memslots, &txn);
    if (error)
        return error;
    for (size_t i = 0; i < n && !error; i++)
        error = memslots_txn_delete(txn, 0, (uint16_t)slots[i].id);
    if (!error)
        return memslots_txn_commit(txn);
    memslots_txn_abort(txn);
    return error;
}

#include "loops.h"

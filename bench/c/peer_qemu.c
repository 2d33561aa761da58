// SPDX-License-Identifier: MIT OR Apache-2.0
//
// QEMU's table: an unsorted array of slots, doubled when it is full, a slot's place being its id;
// everything else is found by looking at one after another. Changes happen in place, under a lock
// that is left out here: one thread.

#define PEER_NAME "qemu"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define FIRST_ALLOCATION 16

typedef struct slot {
    uint64_t start_addr;
    uint64_t memory_size; // 0: free
    uint64_t ram;
    uint32_t flags;
    uint64_t rest[7]; // id, dirty bitmap, guest_memfd...: 88 bytes, as QEMU's
} slot_t;

struct table {
    slot_t *slots;
    uint32_t allocated, used, max_slots;
};

struct reader {
    struct table *table;
};

#define section_begin(reader) ((void)(reader))
#define section_end(reader)   ((void)(reader))

static int grow(struct table *table, uint32_t wanted)
{
    if (wanted <= table->allocated)
        return 0;
    uint32_t allocated = table->allocated ? table->allocated : FIRST_ALLOCATION;
    while (allocated < wanted)
        allocated *= 2;
    slot_t *slots = realloc(table->slots, allocated * sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    memset(slots + table->allocated, 0, (allocated - table->allocated) * sizeof(*slots));
    table->slots = slots;
    table->allocated = allocated;
    return 0;
}

static struct table *table_new(uint32_t max_slots)
{
    struct table *table = calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->max_slots = max_slots;
    if (grow(table, FIRST_ALLOCATION)) {
        free(table);
        return NULL;
    }
    return table;
}

static void table_free(struct table *table)
{
    free(table->slots);
    free(table);
}

static struct reader *reader_new(struct table *table)
{
    struct reader *reader = malloc(sizeof(*reader));
    if (reader)
        reader->table = table;
    return reader;
}

static void reader_free(struct reader *reader)
{
    free(reader);
}

static void quiesce(struct table *table)
{
    (void)table;
}

static slot_t *free_slot(struct table *table)
{
    for (uint32_t i = 0; i < table->allocated; i++)
        if (table->slots[i].memory_size == 0)
            return &table->slots[i];
    return NULL;
}

static slot_t *matching_slot(struct table *table, uint64_t gfn, uint64_t npages)
{
    uint64_t start = gfn << PAGE_SHIFT, size = npages << PAGE_SHIFT;
    for (uint32_t i = 0; i < table->allocated; i++) {
        slot_t *slot = &table->slots[i];
        if (slot->start_addr == start && slot->memory_size == size)
            return slot;
    }
    return NULL;
}

static void fill(slot_t *slot, const struct bench_slot *wanted)
{
    slot->start_addr = wanted->gfn << PAGE_SHIFT;
    slot->memory_size = wanted->npages << PAGE_SHIFT;
    slot->ram = wanted->hva;
    slot->flags = wanted->flags;
}

// As QEMU creates: the lowest free place. (The harness's ids ascend, so the places are the ids
// after create_all; the answers to id lookups are only compared there.)
static int create_one(struct table *table, const struct bench_slot *wanted)
{
    slot_t *slot = free_slot(table);
    if (!slot) {
        uint32_t place = table->allocated;
        int error = grow(table, place + 1);
        if (error)
            return error;
        slot = &table->slots[place];
    }
    fill(slot, wanted);
    table->used++;
    return 0;
}

static int create_all(struct table *table, const struct bench_slot *wanted, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int error = grow(table, wanted[i].id + 1);
        if (error)
            return error;
        fill(&table->slots[wanted[i].id], &wanted[i]);
        table->used++;
    }
    return 0;
}

static int remove_one(struct table *table, const struct bench_slot *gone)
{
    slot_t *slot = matching_slot(table, gone->gfn, gone->npages);
    if (!slot)
        return -ENOENT;
    slot->memory_size = 0;
    table->used--;
    return 0;
}

static int move_one(struct table *table, const struct bench_change *change)
{
    slot_t *slot = matching_slot(table, change->old_gfn, change->npages);
    if (!slot)
        return -ENOENT;
    slot->start_addr = change->new_gfn << PAGE_SHIFT;
    return 0;
}

static int flags_one(struct table *table, const struct bench_change *change)
{
    slot_t *slot = matching_slot(table, change->old_gfn, change->npages);
    if (!slot)
        return -ENOENT;
    slot->flags = change->flags;
    return 0;
}

static int move_all(struct table *table, const struct bench_change *changes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int error = move_one(table, &changes[i]);
        if (error)
            return error;
    }
    return 0;
}

static inline const slot_t *find_gfn(struct reader *reader, uint64_t gfn)
{
    const struct table *table = reader->table;
    uint64_t addr = gfn << PAGE_SHIFT;
    for (uint32_t i = 0; i < table->allocated; i++) {
        const slot_t *slot = &table->slots[i];
        if (addr - slot->start_addr < slot->memory_size)
            return slot;
    }
    return NULL;
}

#define find_gfn_shared(readers, i, gfn) find_gfn((readers)[i], gfn)

static inline uint64_t slot_gfn(const slot_t *slot)
{
    return slot->start_addr >> PAGE_SHIFT;
}

static inline uint64_t gfn_to_hva(struct reader *reader, uint64_t gfn)
{
    const slot_t *slot = find_gfn(reader, gfn);
    if (!slot)
        return NO_ANSWER;
    return slot->ram + ((gfn << PAGE_SHIFT) - slot->start_addr);
}

static inline uint64_t hva_to_gfn(struct reader *reader, uint64_t hva)
{
    const struct table *table = reader->table;
    for (uint32_t i = 0; i < table->allocated; i++) {
        const slot_t *slot = &table->slots[i];
        if (hva - slot->ram < slot->memory_size)
            return (slot->start_addr + (hva - slot->ram)) >> PAGE_SHIFT;
    }
    return NO_ANSWER;
}

static inline uint64_t hva_range(struct reader *reader, uint64_t start, uint64_t last)
{
    const struct table *table = reader->table;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < table->allocated; i++) {
        const slot_t *slot = &table->slots[i];
        if (slot->memory_size && slot->ram <= last && slot->ram + slot->memory_size > start)
            sum += slot_gfn(slot) + 1;
    }
    return sum;
}

static inline const slot_t *find_id(struct reader *reader, uint64_t id)
{
    const struct table *table = reader->table;
    if (id >= table->allocated || table->slots[id].memory_size == 0)
        return NULL;
    return &table->slots[id];
}

#include "loops.h"

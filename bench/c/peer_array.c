// SPDX-License-Identifier: MIT OR Apache-2.0
//
// KVM's table before the 2021 series: one array sorted by gfn, binary search, an index by id, hva
// by looking at every slot, and every update copies the whole array. No grace periods here.

#define PEER_NAME "array"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define SLOT_INVALID (1u << 16)
#define NO_INDEX     0xffff

typedef struct slot {
    uint64_t base_gfn, npages, userspace_addr, guest_memfd_offset;
    void *opaque;
    int32_t guest_memfd;
    uint32_t flags;
    uint16_t id, as_id;
} slot_t;

struct slots {
    uint64_t generation;
    uint32_t count;
    uint32_t last_used;    // an index, checked before it is believed
    uint16_t *id_to_index; // stands behind the slots: one allocation, one copy
    slot_t slots[];
};

struct table {
    struct slots *active;
    uint32_t max_slots;
};

struct reader {
    struct table *table;
};

#define section_begin(reader) ((void)(reader))
#define section_end(reader)   ((void)(reader))

// A copy with room for `count` slots.
static struct slots *slots_copy(const struct slots *from, uint32_t count, uint32_t max_slots)
{
    size_t ids = max_slots * sizeof(uint16_t);
    struct slots *to = malloc(sizeof(*to) + count * sizeof(slot_t) + ids);
    if (!to)
        return NULL;
    uint32_t kept = from->count < count ? from->count : count;
    memcpy(to, from, sizeof(*to) + kept * sizeof(slot_t));
    to->id_to_index = (uint16_t *)(to->slots + count);
    memcpy(to->id_to_index, from->id_to_index, ids);
    return to;
}

static void install(struct table *table, struct slots *slots)
{
    slots->generation = table->active->generation + 1;
    free(table->active);
    __atomic_store_n(&table->active, slots, __ATOMIC_RELEASE);
}

static struct table *table_new(uint32_t max_slots)
{
    struct table *table = malloc(sizeof(*table));
    struct slots *slots = calloc(1, sizeof(*slots) + max_slots * sizeof(uint16_t));
    if (!table || !slots) {
        free(table);
        free(slots);
        return NULL;
    }
    slots->id_to_index = (uint16_t *)slots->slots;
    memset(slots->id_to_index, 0xff, max_slots * sizeof(uint16_t));
    table->active = slots;
    table->max_slots = max_slots;
    return table;
}

static void table_free(struct table *table)
{
    free(table->active);
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

static inline int contains(const slot_t *slot, uint64_t gfn)
{
    return gfn >= slot->base_gfn && gfn < slot->base_gfn + slot->npages;
}

// The first index whose slot starts above gfn.
static inline uint32_t upper_bound(const struct slots *slots, uint64_t gfn)
{
    uint32_t low = 0, high = slots->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (slots->slots[middle].base_gfn <= gfn)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void put(struct slots *slots, uint32_t index, const slot_t *slot)
{
    slots->slots[index] = *slot;
    slots->id_to_index[slot->id] = (uint16_t)index;
}

// Closes the gap at `from`, or opens one at `to`, by shifting what stands between.
static void shift(struct slots *slots, uint32_t from, uint32_t to)
{
    for (; from < to; from++)
        put(slots, from, &slots->slots[from + 1]);
    for (; from > to; from--)
        put(slots, from, &slots->slots[from - 1]);
}

static int overlaps(const struct slots *slots, uint64_t start, uint64_t end, uint32_t id)
{
    for (uint32_t i = 0; i < slots->count; i++) {
        const slot_t *slot = &slots->slots[i];
        if (slot->id != id && slot->base_gfn < end && slot->base_gfn + slot->npages > start)
            return 1;
    }
    return 0;
}

static slot_t slot_of(const struct bench_slot *wanted)
{
    return (slot_t){
        .base_gfn = wanted->gfn,
        .npages = wanted->npages,
        .userspace_addr = wanted->hva,
        .guest_memfd = -1,
        .flags = wanted->flags,
        .id = (uint16_t)wanted->id,
    };
}

static int create_one(struct table *table, const struct bench_slot *wanted)
{
    struct slots *old = table->active;
    if (old->id_to_index[wanted->id] != NO_INDEX ||
        overlaps(old, wanted->gfn, wanted->gfn + wanted->npages, wanted->id))
        return -EEXIST;
    struct slots *slots = slots_copy(old, old->count + 1, table->max_slots);
    if (!slots)
        return -ENOMEM;
    slot_t slot = slot_of(wanted);
    uint32_t index = upper_bound(slots, slot.base_gfn);
    shift(slots, slots->count++, index);
    put(slots, index, &slot);
    install(table, slots);
    return 0;
}

// DELETE and MOVE: one copy, published with the slot invalid, then the former array is changed
// and published in its turn.
static int invalidate(struct table *table, uint32_t index, struct slots **former)
{
    struct slots *slots = slots_copy(table->active, table->active->count, table->max_slots);
    if (!slots)
        return -ENOMEM;
    slots->slots[index].flags |= SLOT_INVALID;
    slots->generation = table->active->generation + 1;
    *former = table->active;
    __atomic_store_n(&table->active, slots, __ATOMIC_RELEASE);
    return 0;
}

static int remove_one(struct table *table, const struct bench_slot *gone)
{
    uint32_t index = table->active->id_to_index[gone->id];
    if (index == NO_INDEX)
        return -ENOENT;
    struct slots *slots;
    int error = invalidate(table, index, &slots);
    if (error)
        return error;
    shift(slots, index, --slots->count);
    slots->id_to_index[gone->id] = NO_INDEX;
    install(table, slots);
    return 0;
}

static int move_one(struct table *table, const struct bench_change *change)
{
    uint32_t index = table->active->id_to_index[change->id];
    if (index == NO_INDEX)
        return -ENOENT;
    if (overlaps(table->active, change->new_gfn, change->new_gfn + change->npages, change->id))
        return -EEXIST;
    struct slots *slots;
    int error = invalidate(table, index, &slots);
    if (error)
        return error;
    slot_t slot = slots->slots[index];
    slot.base_gfn = change->new_gfn;
    uint32_t target = upper_bound(slots, slot.base_gfn);
    target -= target > index;
    shift(slots, index, target);
    put(slots, target, &slot);
    install(table, slots);
    return 0;
}

static int flags_one(struct table *table, const struct bench_change *change)
{
    struct slots *old = table->active;
    uint32_t index = old->id_to_index[change->id];
    if (index == NO_INDEX)
        return -ENOENT;
    struct slots *slots = slots_copy(old, old->count, table->max_slots);
    if (!slots)
        return -ENOMEM;
    slots->slots[index].flags = change->flags;
    install(table, slots);
    return 0;
}

static int by_gfn(const void *left, const void *right)
{
    const slot_t *a = left, *b = right;
    return (a->base_gfn > b->base_gfn) - (a->base_gfn < b->base_gfn);
}

// One copy, sorted once.
static int create_all(struct table *table, const struct bench_slot *wanted, size_t n)
{
    struct slots *old = table->active;
    struct slots *slots = slots_copy(old, old->count + (uint32_t)n, table->max_slots);
    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        slots->slots[slots->count++] = slot_of(&wanted[i]);
    qsort(slots->slots, slots->count, sizeof(slot_t), by_gfn);
    for (uint32_t i = 0; i < slots->count; i++)
        slots->id_to_index[slots->slots[i].id] = (uint16_t)i;
    install(table, slots);
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
    struct slots *slots = __atomic_load_n(&reader->table->active, __ATOMIC_ACQUIRE);
    uint32_t last = __atomic_load_n(&slots->last_used, __ATOMIC_RELAXED);
    if (last < slots->count && contains(&slots->slots[last], gfn))
        return &slots->slots[last];
    uint32_t index = upper_bound(slots, gfn);
    if (index == 0 || !contains(&slots->slots[index - 1], gfn))
        return NULL;
    __atomic_store_n(&slots->last_used, index - 1, __ATOMIC_RELAXED);
    return &slots->slots[index - 1];
}

#define find_gfn_shared(readers, i, gfn) find_gfn((readers)[i], gfn)

static inline uint64_t slot_gfn(const slot_t *slot)
{
    return slot->base_gfn;
}

static inline uint64_t gfn_to_hva(struct reader *reader, uint64_t gfn)
{
    const slot_t *slot = find_gfn(reader, gfn);
    if (!slot || slot->flags & SLOT_INVALID)
        return NO_ANSWER;
    return slot->userspace_addr + ((gfn - slot->base_gfn) << PAGE_SHIFT);
}

static inline uint64_t hva_to_gfn(struct reader *reader, uint64_t hva)
{
    const struct slots *slots = __atomic_load_n(&reader->table->active, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < slots->count; i++) {
        const slot_t *slot = &slots->slots[i];
        if (hva - slot->userspace_addr < slot->npages << PAGE_SHIFT)
            return slot->base_gfn + ((hva - slot->userspace_addr) >> PAGE_SHIFT);
    }
    return NO_ANSWER;
}

static inline uint64_t hva_range(struct reader *reader, uint64_t start, uint64_t last)
{
    const struct slots *slots = __atomic_load_n(&reader->table->active, __ATOMIC_ACQUIRE);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < slots->count; i++) {
        const slot_t *slot = &slots->slots[i];
        uint64_t end = slot->userspace_addr + (slot->npages << PAGE_SHIFT);
        if (slot->userspace_addr <= last && end > start)
            sum += slot->base_gfn + 1;
    }
    return sum;
}

static inline const slot_t *find_id(struct reader *reader, uint64_t id)
{
    const struct slots *slots = __atomic_load_n(&reader->table->active, __ATOMIC_ACQUIRE);
    uint16_t index = slots->id_to_index[id];
    return index == NO_INDEX ? NULL : &slots->slots[index];
}

#include "loops.h"

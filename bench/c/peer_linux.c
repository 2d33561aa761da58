// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Linux's rbtree and interval tree, from Debian's source package, under a two-set memslot table of
// our own that works as KVM's does since 2021: every slot has a node of each kind for each set,
// readers use the active set, an update changes the other one, swaps, waits for the readers and
// repeats the change. Updates take a lock (KVM's are under slots_lock), and a vCPU's lookup is a
// function, as kvm_vcpu_gfn_to_memslot() is, but where the row says inline. With GRACE the wait is
// liburcu's (SRCU's place); without, nothing waits.

#ifdef GRACE
#define _LGPL_SOURCE // liburcu's read side inline: its fastest
#define PEER_NAME    "linux+urcu"
#include <urcu/urcu-memb.h>
#else
#define PEER_NAME "linux"
#endif

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

// Own headers of the shim first, then Linux's files, compiled into this unit as the kernel's
// inline helpers are.
#include <linux/compiler.h>
#include <lib/rbtree.c>
#include <lib/interval_tree.c>

#include "bench.h"

#define HASH_BITS    7
#define SLOT_INVALID (1u << 16)

typedef struct slot slot_t;

struct id_node {
    slot_t *next;
    slot_t **link; // what points here
};

struct slot {
    struct id_node id_node[2];
    struct interval_tree_node hva_node[2];
    struct rb_node gfn_node[2];
    uint64_t base_gfn, npages, userspace_addr, guest_memfd_offset;
    void *opaque;
    int32_t guest_memfd;
    uint32_t flags;
    uint16_t id, as_id;
};

struct set {
    uint64_t generation;
    slot_t *last_used;
    struct rb_root_cached hva_tree;
    struct rb_root gfn_tree;
    slot_t *ids[1 << HASH_BITS];
    int index; // 0 or 1: which node of a slot is in here
};

struct table {
    struct set sets[2];
    struct set *active;
    pthread_mutex_t lock;
};

struct reader {
    struct table *table;
    slot_t *last_used;
    uint64_t generation;
};

#ifdef GRACE
static __thread unsigned registrations;

static void register_reader(void)
{
    if (registrations++ == 0)
        urcu_memb_register_thread();
}

static void unregister_reader(void)
{
    if (--registrations == 0)
        urcu_memb_unregister_thread();
}

#define section_begin(reader) ((void)(reader), urcu_memb_read_lock())
#define section_end(reader)   ((void)(reader), urcu_memb_read_unlock())
#define wait_for_readers()    urcu_memb_synchronize_rcu()
#else
#define register_reader()
#define unregister_reader()
#define section_begin(reader) ((void)(reader))
#define section_end(reader)   ((void)(reader))
#define wait_for_readers()
#endif

#define update_begin(table) pthread_mutex_lock(&(table)->lock)
#define update_end(table)   pthread_mutex_unlock(&(table)->lock)

// ---- one set ----

static inline int contains(const slot_t *slot, uint64_t gfn)
{
    return gfn >= slot->base_gfn && gfn < slot->base_gfn + slot->npages;
}

static inline slot_t *gfn_entry(struct rb_node *node, int index)
{
    return container_of(node - index, slot_t, gfn_node[0]);
}

static inline slot_t *hva_entry(struct interval_tree_node *node, int index)
{
    return container_of(node - index, slot_t, hva_node[0]);
}

static inline slot_t **id_bucket(struct set *set, uint32_t id)
{
    return &set->ids[(uint32_t)(id * 0x61C88647u) >> (32 - HASH_BITS)];
}

static inline slot_t *set_find_gfn(struct set *set, uint64_t gfn)
{
    int index = set->index;
    struct rb_node *node = READ_ONCE(set->gfn_tree.rb_node);
    while (node) {
        slot_t *slot = gfn_entry(node, index);
        if (gfn < slot->base_gfn)
            node = READ_ONCE(node->rb_left);
        else if (gfn < slot->base_gfn + slot->npages)
            return slot;
        else
            node = READ_ONCE(node->rb_right);
    }
    return NULL;
}

static inline slot_t *set_find_id(struct set *set, uint32_t id)
{
    for (slot_t *slot = *id_bucket(set, id); slot; slot = slot->id_node[set->index].next)
        if (slot->id == id)
            return slot;
    return NULL;
}

// Is there a slot of another id in [start, end)?
static int set_overlaps(struct set *set, uint64_t start, uint64_t end, uint32_t id)
{
    slot_t *first = NULL; // the lowest slot that ends past start
    struct rb_node *node = set->gfn_tree.rb_node;
    while (node) {
        slot_t *slot = gfn_entry(node, set->index);
        if (slot->base_gfn + slot->npages > start) {
            first = slot;
            node = node->rb_left;
        } else {
            node = node->rb_right;
        }
    }
    while (first && first->base_gfn < end) {
        if (first->id != id)
            return 1;
        node = rb_next(&first->gfn_node[set->index]);
        first = node ? gfn_entry(node, set->index) : NULL;
    }
    return 0;
}

static void set_insert_gfn(struct set *set, slot_t *slot)
{
    struct rb_node **link = &set->gfn_tree.rb_node, *parent = NULL;
    while (*link) {
        parent = *link;
        link = slot->base_gfn < gfn_entry(parent, set->index)->base_gfn ? &parent->rb_left
                                                                        : &parent->rb_right;
    }
    rb_link_node(&slot->gfn_node[set->index], parent, link);
    rb_insert_color(&slot->gfn_node[set->index], &set->gfn_tree);
}

static void set_unlink_id(struct set *set, slot_t *slot)
{
    struct id_node *node = &slot->id_node[set->index];
    *node->link = node->next;
    if (node->next)
        node->next->id_node[set->index].link = node->link;
}

static void set_link_id(struct set *set, slot_t *slot)
{
    struct id_node *node = &slot->id_node[set->index];
    slot_t **bucket = id_bucket(set, slot->id);
    node->next = *bucket;
    node->link = bucket;
    if (node->next)
        node->next->id_node[set->index].link = &node->next;
    *bucket = slot;
}

static void set_replace(struct set *set, slot_t *old, slot_t *new)
{
    int index = set->index;
    if (old) {
        set_unlink_id(set, old);
        interval_tree_remove(&old->hva_node[index], &set->hva_tree);
        if (set->last_used == old)
            set->last_used = new;
    }
    if (!new) {
        rb_erase(&old->gfn_node[index], &set->gfn_tree);
        return;
    }
    new->hva_node[index].start = new->userspace_addr;
    new->hva_node[index].last = new->userspace_addr + (new->npages << PAGE_SHIFT) - 1;
    set_link_id(set, new);
    interval_tree_insert(&new->hva_node[index], &set->hva_tree);
    if (old && old->base_gfn == new->base_gfn) {
        rb_replace_node(&old->gfn_node[index], &new->gfn_node[index], &set->gfn_tree);
        return;
    }
    if (old)
        rb_erase(&old->gfn_node[index], &set->gfn_tree);
    set_insert_gfn(set, new);
}

// ---- the table ----

static struct table *table_new(uint32_t max_slots)
{
    (void)max_slots;
    struct table *table = calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->sets[1].index = 1;
    table->active = &table->sets[0];
    pthread_mutex_init(&table->lock, NULL);
    return table;
}

static void table_free(struct table *table)
{
    struct rb_node *node;
    while ((node = table->active->gfn_tree.rb_node)) {
        slot_t *slot = gfn_entry(node, table->active->index);
        rb_erase(node, &table->active->gfn_tree);
        free(slot);
    }
    pthread_mutex_destroy(&table->lock);
    free(table);
}

static struct reader *reader_new(struct table *table)
{
    struct reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return NULL;
    reader->table = table;
    register_reader();
    return reader;
}

static void reader_free(struct reader *reader)
{
    unregister_reader();
    free(reader);
}

static inline struct set *active_set(struct table *table)
{
    return __atomic_load_n(&table->active, __ATOMIC_ACQUIRE);
}

static struct set *inactive_set(struct table *table)
{
    return &table->sets[!table->active->index];
}

#define UPDATING (UINT64_C(1) << 63)

static void swap_sets(struct table *table)
{
    struct set *next = inactive_set(table);
    uint64_t generation = table->active->generation;
    __atomic_store_n(&next->generation, generation | UPDATING, __ATOMIC_RELAXED);
    __atomic_store_n(&table->active, next, __ATOMIC_RELEASE);
    wait_for_readers();
    __atomic_store_n(&next->generation, generation + 1, __ATOMIC_RELAXED);
}

static void activate(struct table *table, slot_t *old, slot_t *new)
{
    swap_sets(table);
    set_replace(inactive_set(table), old, new);
}

// CREATE and FLAGS_ONLY: one swap.
static void change_in_one_step(struct table *table, slot_t *old, slot_t *new)
{
    set_replace(inactive_set(table), old, new);
    activate(table, old, new);
}

// MOVE and DELETE: readers see the slot as invalid first.
static int change_in_two_steps(struct table *table, slot_t *old, slot_t *new)
{
    slot_t *invalid = malloc(sizeof(*invalid));
    if (!invalid)
        return -ENOMEM;
    *invalid = *old;
    invalid->flags |= SLOT_INVALID;
    set_replace(inactive_set(table), old, invalid);
    swap_sets(table);
    set_replace(inactive_set(table), old, new);
    activate(table, invalid, new);
    free(invalid);
    return 0;
}

static int create_locked(struct table *table, const struct bench_slot *wanted)
{
    if (set_find_id(table->active, wanted->id))
        return -EEXIST;
    if (set_overlaps(table->active, wanted->gfn, wanted->gfn + wanted->npages, wanted->id))
        return -EEXIST;
    slot_t *slot = calloc(1, sizeof(*slot));
    if (!slot)
        return -ENOMEM;
    slot->base_gfn = wanted->gfn;
    slot->npages = wanted->npages;
    slot->userspace_addr = wanted->hva;
    slot->flags = wanted->flags;
    slot->id = (uint16_t)wanted->id;
    slot->guest_memfd = -1;
    change_in_one_step(table, NULL, slot);
    return 0;
}

static int remove_locked(struct table *table, const struct bench_slot *gone)
{
    slot_t *slot = set_find_id(table->active, gone->id);
    if (!slot)
        return -ENOENT;
    int error = change_in_two_steps(table, slot, NULL);
    if (error)
        return error;
    free(slot);
    return 0;
}

static int change_locked(struct table *table, const struct bench_change *change, int moves)
{
    slot_t *old = set_find_id(table->active, change->id);
    if (!old)
        return -ENOENT;
    if (moves &&
        set_overlaps(table->active, change->new_gfn, change->new_gfn + old->npages, old->id))
        return -EEXIST;
    slot_t *new = malloc(sizeof(*new));
    if (!new)
        return -ENOMEM;
    *new = *old;
    if (moves) {
        new->base_gfn = change->new_gfn;
        int error = change_in_two_steps(table, old, new);
        if (error) {
            free(new);
            return error;
        }
    } else {
        new->flags = change->flags;
        change_in_one_step(table, old, new);
    }
    free(old);
    return 0;
}

static int create_one(struct table *table, const struct bench_slot *slot)
{
    update_begin(table);
    int error = create_locked(table, slot);
    update_end(table);
    return error;
}

static int remove_one(struct table *table, const struct bench_slot *slot)
{
    update_begin(table);
    int error = remove_locked(table, slot);
    update_end(table);
    return error;
}

static int move_one(struct table *table, const struct bench_change *change)
{
    update_begin(table);
    int error = change_locked(table, change, 1);
    update_end(table);
    return error;
}

static int flags_one(struct table *table, const struct bench_change *change)
{
    update_begin(table);
    int error = change_locked(table, change, 0);
    update_end(table);
    return error;
}

// KVM has no way to many at once: one by one.
static int create_all(struct table *table, const struct bench_slot *slots, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int error = create_one(table, &slots[i]);
        if (error)
            return error;
    }
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

static void quiesce(struct table *table)
{
    (void)table; // frees at once
}

// ---- lookups ----

// A vCPU's way: its own last-used slot while the generation stands, else the tree.
static inline const slot_t *find_gfn_in_place(struct reader *reader, uint64_t gfn)
{
    struct set *set = active_set(reader->table);
    uint64_t generation = __atomic_load_n(&set->generation, __ATOMIC_RELAXED);
    if (unlikely(generation != reader->generation)) {
        reader->generation = generation;
        reader->last_used = NULL;
    }
    slot_t *slot = reader->last_used;
    if (slot && contains(slot, gfn))
        return slot;
    slot = set_find_gfn(set, gfn);
    if (slot)
        reader->last_used = slot;
    return slot;
}

#define find_gfn_inline find_gfn_in_place

static __attribute__((noinline)) const slot_t *find_gfn(struct reader *reader, uint64_t gfn)
{
    return find_gfn_in_place(reader, gfn);
}

// Everybody else's way: the set's last-used slot, shared by all.
static inline const slot_t *find_gfn_shared(struct reader *const *readers, size_t i, uint64_t gfn)
{
    struct set *set = active_set(readers[i]->table);
    slot_t *slot = __atomic_load_n(&set->last_used, __ATOMIC_RELAXED);
    if (slot && contains(slot, gfn))
        return slot;
    slot = set_find_gfn(set, gfn);
    if (slot)
        __atomic_store_n(&set->last_used, slot, __ATOMIC_RELAXED);
    return slot;
}

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
    struct set *set = active_set(reader->table);
    struct interval_tree_node *node = interval_tree_iter_first(&set->hva_tree, hva, hva);
    if (!node)
        return NO_ANSWER;
    const slot_t *slot = hva_entry(node, set->index);
    return slot->base_gfn + ((hva - slot->userspace_addr) >> PAGE_SHIFT);
}

static inline uint64_t hva_range(struct reader *reader, uint64_t start, uint64_t last)
{
    struct set *set = active_set(reader->table);
    struct interval_tree_node *node = interval_tree_iter_first(&set->hva_tree, start, last);
    uint64_t sum = 0;
    for (; node; node = interval_tree_iter_next(node, start, last))
        sum += hva_entry(node, set->index)->base_gfn + 1;
    return sum;
}

static inline const slot_t *find_id(struct reader *reader, uint64_t id)
{
    return set_find_id(active_set(reader->table), (uint32_t)id);
}

#include "loops.h"

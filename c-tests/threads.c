// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Readers beside a writer that never rests: every slot that they see is one that was published, whole
// and still theirs, and of a transaction they see all or nothing.

#include "test.h"

#include <pthread.h>
#include <stdatomic.h>

enum { NR_READERS = 3, NR_GROUP = 64, NR_LOOSE = 64 };

// What a slot's opaque points to: says what the slot must be. Poisoned when the slot is released.
struct tag {
    uint64_t base_gfn, npages, serial;
    uint64_t magic;
};
#define ALIVE UINT64_C(0x616c697665616c69)
#define DEAD  UINT64_C(0xdeaddeaddeaddead)

static struct memslots *ms;
static atomic_bool stop;
static _Atomic uint64_t nr_wrong, nr_seen, nr_released;

static void wrong(const char *what)
{
    if (atomic_fetch_add(&nr_wrong, 1) < 5)
        printf("    a reader saw: %s\n", what);
}

// Freed memory is kept, so that a late reader finds the poison and not something new.
static void release(void *ctx, const struct memslot *gone)
{
    struct tag *tag = gone->opaque;

    (void)ctx;
    if (tag)
        tag->magic = DEAD;
    atomic_fetch_add(&nr_released, 1);
}

// The group: slots 0..63 each have two places, and all go to the other one in one transaction.
static uint64_t group_gfn(uint32_t slot, int phase)
{
    return 1000 + 8 * (uint64_t)slot + (phase ? 4 : 0);
}

static void check_group(struct memslots_reader *reader)
{
    struct memslots_iter iter;
    const struct memslot *slot;
    int nr[2] = {0, 0};

    memslots_iter_gfn(&iter, reader, 0, 1000, 1000 + 8 * NR_GROUP);
    while ((slot = memslots_iter_next(&iter))) {
        if (slot->id >= NR_GROUP || slot->npages != 3)
            wrong("a slot that is not of the group");
        else if (slot->base_gfn == group_gfn(slot->id, 0))
            nr[0]++;
        else if (slot->base_gfn == group_gfn(slot->id, 1))
            nr[1]++;
        else
            wrong("a slot of the group where it never was");
    }
    if (!(nr[0] == NR_GROUP && nr[1] == 0) && !(nr[1] == NR_GROUP && nr[0] == 0))
        wrong("part of a transaction");
}

static uint64_t pick(uint64_t *state, uint64_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % below;
}

static void check_loose(struct memslots_reader *reader, uint64_t gfn)
{
    const struct memslot *slot = memslots_find_gfn(reader, 0, gfn);

    if (!slot)
        return;
    const struct tag *tag = slot->opaque;
    atomic_fetch_add_explicit(&nr_seen, 1, memory_order_relaxed);
    if (gfn < slot->base_gfn || gfn - slot->base_gfn >= slot->npages)
        wrong("a slot that does not hold the gfn");
    if (tag->magic != ALIVE)
        wrong("a slot that was released");
    else if (tag->npages != slot->npages)
        wrong("a slot with another's opaque");
    if (slot->userspace_addr != HVA + tag->base_gfn * PAGE)
        wrong("a slot with another's hva");
}

static void *read_on(void *arg)
{
    uint64_t random = 1 + (uint64_t)(uintptr_t)arg;
    struct memslots_reader *reader = new_reader(ms);
    uint64_t last_generation = 0;

    while (!atomic_load(&stop)) {
        memslots_read_lock(reader);
        for (int i = 0; i < 50; i++)
            check_loose(reader, 5000 + pick(&random, NR_LOOSE * 8));
        check_group(reader);
        memslots_read_unlock(reader);
        uint64_t generation = memslots_generation(reader, 0);
        if (generation < last_generation)
            wrong("time running backwards");
        last_generation = generation;
    }
    memslots_reader_free(reader);
    return NULL;
}

static void exchange_the_group(int phase)
{
    struct memslots_txn *txn = begin(ms);

    for (uint16_t i = 0; i < NR_GROUP; i++)
        CHECK_EQ(memslots_txn_move(txn, 0, i, group_gfn(i, phase) * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
}

// Slots 100 and up come, move, change flags and go.
static void churn_a_loose_one(uint64_t *random, struct tag *tags, uint64_t *nr_tags)
{
    uint32_t i = (uint32_t)pick(random, NR_LOOSE);
    uint16_t id = (uint16_t)(100 + i);
    uint64_t gfn = 5000 + 8 * (uint64_t)i;

    switch (pick(random, 4)) {
    case 0:
    case 1: {
        struct tag *tag = &tags[*nr_tags];
        struct memslots_region region = ram(id, gfn, 1 + pick(random, 4));
        *tag = (struct tag){gfn, region.memory_size / PAGE, *nr_tags, ALIVE};
        if (memslots_create(ms, &region, tag) == id)
            ++*nr_tags;
        else
            memslots_delete(ms, 0, id);
        break;
    }
    case 2:
        memslots_move(ms, 0, id, (gfn + pick(random, 4)) * PAGE);
        break;
    case 3:
        memslots_set_flags(ms, 0, id, (uint32_t)pick(random, 2) * MEMSLOTS_LOG_DIRTY_PAGES);
        break;
    }
}

static void ignore(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

static void churn(bool with_flush, int rounds)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = with_flush ? ignore : NULL,
                                     .release = release};
    struct memslots_config config = default_config();
    struct tag *tags = calloc((size_t)rounds * 4 + 1, sizeof(*tags));
    pthread_t threads[NR_READERS];
    uint64_t random = 12345, nr_tags = 0;

    REQUIRE(tags);
    config.ops = &ops;
    ms = new_table_with(&config);
    atomic_store(&stop, false);
    atomic_store(&nr_wrong, 0);
    atomic_store(&nr_seen, 0);
    atomic_store(&nr_released, 0);
    for (uint32_t i = 0; i < NR_GROUP; i++)
        REQUIRE(set(ms, i, group_gfn(i, 0), 3) == 0);
    for (uintptr_t i = 0; i < NR_READERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, read_on, (void *)(i * 7919)) == 0);
    for (int round = 1; round <= rounds; round++) {
        for (int i = 0; i < 4; i++)
            churn_a_loose_one(&random, tags, &nr_tags);
        exchange_the_group(round & 1);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < NR_READERS; i++)
        pthread_join(threads[i], NULL);
    memslots_free(ms);
    CHECK_EQ(atomic_load(&nr_wrong), 0);
    CHECK(atomic_load(&nr_seen) > 0);
    CHECK_EQ(atomic_load(&nr_released), nr_tags + NR_GROUP);
    for (uint64_t i = 0; i < nr_tags; i++)
        CHECK(tags[i].magic == DEAD);
    free(tags);
}

static void without_waiting(void)
{
    churn(false, under_valgrind() ? 200 : 3000);
}

static void with_the_invalid_phase(void)
{
    churn(true, under_valgrind() ? 50 : 1000);
}

// Many threads that update: what each did is there in the end.
enum { NR_WRITERS = 4, NR_EACH = 200 };

static void *write_on(void *arg)
{
    uint32_t first = (uint32_t)(uintptr_t)arg * NR_EACH;

    for (uint32_t i = first; i < first + NR_EACH; i++) {
        if (set(ms, i, i * UINT64_C(4), 2) != 0)
            wrong("an update refused");
        if (i % 2 && memslots_delete(ms, 0, (uint16_t)i) != 0)
            wrong("a delete refused");
    }
    return NULL;
}

static void many_writers(void)
{
    pthread_t threads[NR_WRITERS];

    ms = new_table();
    atomic_store(&nr_wrong, 0);
    for (uintptr_t i = 0; i < NR_WRITERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, write_on, (void *)i) == 0);
    for (int i = 0; i < NR_WRITERS; i++)
        pthread_join(threads[i], NULL);
    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(atomic_load(&nr_wrong), 0);
    CHECK_EQ(memslots_count(reader, 0), NR_WRITERS * NR_EACH / 2);
    CHECK_EQ(memslots_generation(reader, 0), NR_WRITERS * NR_EACH * 3 / 2);
    for (uint32_t i = 0; i < NR_WRITERS * NR_EACH; i++)
        CHECK_EQ(id_at(reader, 0, i * UINT64_C(4)), i % 2 ? -1 : (int)i);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(without_waiting);
    RUN(with_the_invalid_phase);
#ifndef THREAD_SANITIZER // which does not see what is done for those that wait for the lock; see tsan
    RUN(many_writers);
#endif
    return test_result();
}

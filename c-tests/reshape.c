// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Split, merge and resize: what takes a delete and a create in KVM, as one change that readers see
// at once, and that tells the hooks old and new.

#define _POSIX_C_SOURCE 200809L // clock_gettime
#include "test.h"

#include <time.h>

struct seen {
    uint32_t kind;
    int old_id, new_id;
    uint64_t old_npages, new_npages;
};

static struct seen commits[16];
static int nr_commits;
static intptr_t released[16];
static int nr_released;

static void commit(void *ctx, const struct memslots_change *change)
{
    const struct memslot *before = change->old_slot, *after = change->new_slot;

    (void)ctx;
    if (nr_commits == 16)
        return;
    commits[nr_commits++] = (struct seen){
        .kind = change->kind,
        .old_id = before ? before->id : -1,
        .new_id = after ? after->id : -1,
        .old_npages = before ? before->npages : 0,
        .new_npages = after ? after->npages : 0,
    };
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    if (nr_released < 16)
        released[nr_released++] = (intptr_t)gone->opaque;
}

static struct memslots *ms;
static struct memslots_reader *reader;

// 1: [100, 110), 2: [110, 120) and contiguous in hva too, 3: [300, 310).
static void set_up(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .commit = commit,
                                            .release = release};
    struct memslots_config config = default_config();

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    for (uint32_t i = 1; i <= 3; i++) {
        struct memslots_region region = ram(i, i == 3 ? 300 : 90 + 10 * (uint64_t)i, 10);
        REQUIRE(memslots_set_region(ms, &region, (void *)(intptr_t)i) == 0);
    }
    nr_commits = nr_released = 0;
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static struct memslot slot_at(uint64_t gfn)
{
    struct memslot copy = {.id = MEMSLOTS_ID_ANY};

    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, gfn);
    if (slot)
        copy = *slot;
    memslots_read_unlock(reader);
    return copy;
}

static void check_slot(uint64_t gfn, int id, uint64_t base, uint64_t npages, intptr_t opaque)
{
    struct memslot slot = slot_at(gfn);

    CHECK_EQ(slot.id, id);
    CHECK_EQ(slot.base_gfn, base);
    CHECK_EQ(slot.npages, npages);
    CHECK_EQ((intptr_t)slot.opaque, opaque);
    CHECK_EQ(slot.userspace_addr, HVA + base * PAGE);
}

static bool saw(uint32_t kind, int old_id, int new_id, uint64_t old_npages, uint64_t new_npages)
{
    for (int i = 0; i < nr_commits; i++) {
        const struct seen *s = &commits[i];
        if (s->kind == kind && s->old_id == old_id && s->new_id == new_id &&
            s->old_npages == old_npages && s->new_npages == new_npages)
            return true;
    }
    return false;
}

static void split(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 103 * PAGE, 7, (void *)70), 7);
    CHECK_EQ(id_at(reader, 0, 105), 1);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation + 1);
    check_slot(100, 1, 100, 3, 1);
    check_slot(103, 7, 103, 7, 70);
    check_slot(109, 7, 103, 7, 70);
    CHECK_EQ(memslots_npages(reader, 0), 30);
    CHECK_EQ(memslots_count(reader, 0), 4);
    CHECK(saw(MEMSLOTS_RESIZE, 1, 1, 10, 3));
    CHECK(saw(MEMSLOTS_SPLIT, 1, 7, 10, 7));
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 0);
    tear_down();
}

static void split_with_any_id(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, MEMSLOTS_ID_ANY, NULL), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 0, 107 * PAGE, MEMSLOTS_ID_ANY, NULL), 4);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_slot(104, 1, 100, 5, 1);
    check_slot(106, 0, 105, 2, 0);
    check_slot(107, 4, 107, 3, 0);
    tear_down();
}

static void a_split_that_cannot_be(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 9, 105 * PAGE, 7, NULL), -ENOENT);
    CHECK_EQ(memslots_txn_split(txn, 1, 1, 105 * PAGE, 7, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 100 * PAGE, 7, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 110 * PAGE, 7, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 50 * PAGE, 7, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE + 1, 7, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 2, NULL), -EEXIST);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 1, NULL), -EEXIST);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 32764, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(nr_commits, 0);
    tear_down();
}

static void merge(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 2), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation + 1);
    check_slot(100, 1, 100, 20, 1);
    check_slot(119, 1, 100, 20, 1);
    CHECK_EQ(memslots_npages(reader, 0), 30);
    CHECK_EQ(memslots_count(reader, 0), 2);
    CHECK(saw(MEMSLOTS_RESIZE, 1, 1, 10, 20));
    CHECK(saw(MEMSLOTS_MERGE, 2, 1, 10, 20));
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    CHECK_EQ(released[0], 2);
    tear_down();
}

static void a_merge_that_cannot_be(void)
{
    struct memslots_region rom = ram(4, 310, 10), elsewhere = ram(5, 320, 10);

    set_up();
    rom.flags = MEMSLOTS_READONLY;
    elsewhere.flags = MEMSLOTS_READONLY;
    elsewhere.userspace_addr += PAGE;
    CHECK_EQ(memslots_set_region(ms, &rom, NULL), 0);
    CHECK_EQ(memslots_set_region(ms, &elsewhere, NULL), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 9), -ENOENT);
    CHECK_EQ(memslots_txn_merge(txn, 0, 9, 1), -ENOENT);
    CHECK_EQ(memslots_txn_merge(txn, 1, 1, 2), -EINVAL);
    CHECK_EQ(memslots_txn_merge(txn, 0, 2, 1), -EINVAL); // not in this order
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 1), -EINVAL);
    CHECK_EQ(memslots_txn_merge(txn, 0, 2, 3), -EINVAL); // a hole between them
    CHECK_EQ(memslots_txn_merge(txn, 0, 3, 4), -EINVAL); // other flags
    CHECK_EQ(memslots_txn_merge(txn, 0, 4, 5), -EINVAL); // not one piece of host memory
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_count(reader, 0), 5);
    tear_down();
}

static void resize(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_resize(txn, 0, 3, 50 * PAGE), 0);
    CHECK_EQ(memslots_txn_resize(txn, 0, 2, 4 * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_slot(349, 3, 300, 50, 3);
    check_slot(113, 2, 110, 4, 2);
    CHECK_EQ(slot_at(114).id, MEMSLOTS_ID_ANY);
    CHECK_EQ(memslots_npages(reader, 0), 64);
    CHECK_EQ(nr_commits, 2);
    CHECK(saw(MEMSLOTS_RESIZE, 3, 3, 10, 50));
    CHECK(saw(MEMSLOTS_RESIZE, 2, 2, 10, 4));
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 0);
    tear_down();
}

static void a_resize_that_cannot_be(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_resize(txn, 0, 9, PAGE), -ENOENT);
    CHECK_EQ(memslots_txn_resize(txn, 1, 1, PAGE), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, 11 * PAGE), -EEXIST);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, PAGE + 1), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, 0), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 3, (UINT64_C(1) << 31) * PAGE), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 3, UINT64_MAX - PAGE + 1), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 3, 10 * PAGE), 0); // as it is
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(nr_commits, 0);
    tear_down();
}

static void split_then_merge_is_as_before(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 7, NULL), 7);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 7), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_slot(109, 1, 100, 10, 1);
    CHECK_EQ(memslots_count(reader, 0), 3);
    tear_down();
    CHECK_EQ(nr_released, 3); // 7 never was
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now); // not what others do to this machine
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int nr_merges;

static int told(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    nr_merges += change->kind == MEMSLOTS_MERGE && change->new_slot->id == 10;
    return 0;
}

// All slots into the lowest, from the right: each merged slot is merged again.
static double merge_right_to_left(uint16_t nr)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT,
                                            .prepare = told}; // somebody is told who absorbed whom
    struct memslots_config config = default_config();

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    nr_merges = 0;
    for (uint16_t i = 0; i < nr; i++)
        REQUIRE(set(ms, 10 + i, 10000 + i, 1) == 0);
    struct memslots_txn *txn = begin(ms);
    double began = seconds();
    for (uint16_t i = nr - 1; i > 0; i--)
        CHECK_EQ(memslots_txn_merge(txn, 0, 10 + i - 1, 10 + i), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    double took = seconds() - began;
    CHECK_EQ(nr_merges, nr - 1);
    CHECK_EQ(id_at(reader, 0, 10000 + nr - 1), 10);
    tear_down();
    return took;
}

// Four times as many take a bit more than four times as long. Square would be sixteen times.
static void many_merges_are_not_square(void)
{
    double least = 1e9;

    if (under_valgrind()) {
        merge_right_to_left(500); // nothing to be measured
        return;
    }
    for (int i = 0; i < 5; i++) {
        double few = merge_right_to_left(5000), many = merge_right_to_left(20000);
        if (many / few < least)
            least = many / few;
    }
    if (least >= 9)
        printf("    four times as many take %.1f times as long\n", least);
    CHECK(least < 9);
}

int main(void)
{
    RUN(split);
    RUN(split_with_any_id);
    RUN(a_split_that_cannot_be);
    RUN(merge);
    RUN(a_merge_that_cannot_be);
    RUN(resize);
    RUN(a_resize_that_cannot_be);
    RUN(split_then_merge_is_as_before);
    RUN(many_merges_are_not_square);
    return test_result();
}

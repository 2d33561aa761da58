// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Generations: address space i of n begins at i and goes on by n with each publication that changes
// it; no other step, and no value twice.

#include "test.h"

enum { NR_SPACES = 3 };

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(const struct memslots_ops *ops)
{
    struct memslots_config config = default_config();

    config.nr_address_spaces = NR_SPACES;
    config.ops = ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void they_begin_apart(void)
{
    set_up(NULL);
    for (uint16_t as_id = 0; as_id < NR_SPACES; as_id++)
        CHECK_EQ(memslots_generation(reader, as_id), as_id);
    tear_down();
}

static void a_step_a_change_and_only_where_it_is(void)
{
    set_up(NULL);
    for (uint32_t as_id = 0; as_id < NR_SPACES; as_id++) {
        uint32_t slot = as_id << 16 | 5;
        CHECK_EQ(set(ms, slot, 100, 10), 0);
        CHECK_EQ(memslots_generation(reader, (uint16_t)as_id), as_id + NR_SPACES);
        CHECK_EQ(memslots_set_flags(ms, (uint16_t)as_id, 5, MEMSLOTS_LOG_DIRTY_PAGES), 0);
        CHECK_EQ(memslots_generation(reader, (uint16_t)as_id), as_id + 2 * NR_SPACES);
        CHECK_EQ(memslots_move(ms, (uint16_t)as_id, 5, 0), 0);
        CHECK_EQ(memslots_generation(reader, (uint16_t)as_id), as_id + 3 * NR_SPACES);
        CHECK_EQ(memslots_delete(ms, (uint16_t)as_id, 5), 0);
        CHECK_EQ(memslots_generation(reader, (uint16_t)as_id), as_id + 4 * NR_SPACES);
        for (uint32_t later = as_id + 1; later < NR_SPACES; later++)
            CHECK_EQ(memslots_generation(reader, (uint16_t)later), later);
    }
    tear_down();
}

static void no_step_for_nothing_and_for_a_refusal(void)
{
    set_up(NULL);
    set(ms, 1, 0, 10);
    set(ms, 1, 0, 10);
    set(ms, 2, 5, 10);
    set(ms, 2, 0, 0);
    memslots_move(ms, 0, 1, 0);
    memslots_set_flags(ms, 0, 1, 0);
    memslots_delete(ms, 0, 9);
    CHECK_EQ(memslots_generation(reader, 0), NR_SPACES);
    tear_down();
}

static void one_step_a_transaction(void)
{
    set_up(NULL);
    struct memslots_txn *txn = begin(ms);
    for (uint32_t i = 0; i < 100; i++) {
        struct memslots_region region = ram(i, i, 1);
        CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    }
    struct memslots_region other = ram(2u << 16, 0, 1);
    CHECK_EQ(memslots_txn_set_region(txn, &other, NULL), 0);
    CHECK_EQ(memslots_generation(reader, 0), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_generation(reader, 0), NR_SPACES);
    CHECK_EQ(memslots_generation(reader, 1), 1);
    CHECK_EQ(memslots_generation(reader, 2), 2 + NR_SPACES);
    tear_down();
}

static int refuse_moves(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    return change->kind == MEMSLOTS_MOVE ? -EBUSY : 0;
}

static void ignore(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

// Where there is a flush hook, what goes or moves takes two: INVALID, then gone. As in the kernel,
// also where the second is refused.
static void two_steps_with_a_flush_hook(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = ignore, .prepare = refuse_moves};

    set_up(&ops);
    CHECK_EQ(set(ms, 1, 0, 10), 0);
    CHECK_EQ(memslots_generation(reader, 0), NR_SPACES);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_generation(reader, 0), 2 * NR_SPACES);
    CHECK_EQ(memslots_move(ms, 0, 1, 100 * PAGE), -EBUSY);
    CHECK_EQ(memslots_generation(reader, 0), 4 * NR_SPACES);
    CHECK_EQ(id_at(reader, 0, 0), 1);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(memslots_generation(reader, 0), 6 * NR_SPACES);
    tear_down();
}

int main(void)
{
    RUN(they_begin_apart);
    RUN(a_step_a_change_and_only_where_it_is);
    RUN(no_step_for_nothing_and_for_a_refusal);
    RUN(one_step_a_transaction);
    RUN(two_steps_with_a_flush_hook);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Handles of transactions that have ended, while a newer one is open: every call on them is refused,
// on any thread, and does nothing to the newer one.

#define _POSIX_C_SOURCE 200809L
#include "thread.h"

static int nr_refused_hooks, nr_released;

static int refuse_slot_9(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    if (!change->new_slot || change->new_slot->id != 9)
        return 0;
    nr_refused_hooks++;
    return -EPERM;
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .prepare = refuse_slot_9,
                                        .release = release};

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(void)
{
    struct memslots_config config = default_config();

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    nr_released = 0;
    REQUIRE(set(ms, 1, 100, 10) == 0 && set(ms, 2, 110, 10) == 0);
}

static void tear_down(int nr_slots)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, nr_slots);
}

static int txn_set(struct memslots_txn *txn, uint32_t slot, uint64_t gfn)
{
    struct memslots_region region = ram(slot, gfn, 10);

    return memslots_txn_set_region(txn, &region, NULL);
}

// All that can be called on a transaction.
static void check_ended(struct memslots_txn *txn)
{
    struct memslots_region region = ram(3, 300, 1);
    struct memslots_plan_step steps[4];
    size_t nr_steps = 77;

    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_create(txn, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), -EINVAL);
    CHECK_EQ(memslots_txn_move(txn, 0, 1, 0), -EINVAL);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 19, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 2), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, PAGE), -EINVAL);
    CHECK_EQ(memslots_txn_plan(txn, steps, 4, &nr_steps), -EINVAL);
    CHECK_EQ(nr_steps, 77);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
    CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
    memslots_txn_abort(txn);
}

static void *check_ended_on_a_thread(void *txn)
{
    check_ended(txn);
    return NULL;
}

// What the open transaction is to be: slots 1 and 2 as they were, and 5 at 500.
static void check_untouched(struct memslots_txn *txn)
{
    struct memslots_plan_step steps[4] = {{.kind = 0}};
    size_t nr_steps = 0;

    CHECK_EQ(memslots_txn_plan(txn, steps, 4, &nr_steps), 0);
    CHECK_EQ(nr_steps, 1);
    CHECK_EQ(steps[0].region.slot, 5);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) != NULL);
    CHECK(memslots_txn_find_gfn(txn, 0, 119) != NULL);
    CHECK(memslots_txn_find_gfn(txn, 0, 300) == NULL);
    CHECK(memslots_txn_find_gfn(txn, 0, 500) != NULL);
}

// Begins another transaction, and uses the one that has ended while that is open.
static void use_while_another_is_open(struct memslots_txn *ended)
{
    check_ended(ended);
    struct memslots_txn *open = begin(ms);
    CHECK(open != ended);
    CHECK_EQ(txn_set(open, 5, 500), 0);
    check_ended(ended);
    pthread_join(start(check_ended_on_a_thread, ended), NULL);
    pthread_join(start(check_ended_on_a_thread, open), NULL);
    check_untouched(open);
    CHECK_EQ(memslots_txn_commit(open), 0);
    CHECK_EQ(id_at(reader, 0, 500), 5);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    CHECK_EQ(id_at(reader, 0, 100), 1);
}

static void after_a_commit(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(txn_set(txn, 7, 700), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    use_while_another_is_open(txn);
    tear_down(4);
}

static void after_a_commit_that_was_refused(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(txn_set(txn, 9, 900), 0);
    CHECK_EQ(memslots_txn_commit(txn), -EPERM);
    CHECK_EQ(nr_refused_hooks, 1);
    use_while_another_is_open(txn);
    tear_down(3);
}

static void after_an_abort(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(txn_set(txn, 7, 700), 0);
    memslots_txn_abort(txn);
    use_while_another_is_open(txn);
    tear_down(3);
}

static void *begin_and_commit(void *arg)
{
    struct memslots_txn **txn = arg;

    *txn = begin(ms);
    CHECK_EQ(memslots_txn_commit(*txn), 0);
    return NULL;
}

static void another_thread_s_that_has_ended(void)
{
    struct memslots_txn *txn = NULL;

    set_up();
    pthread_join(start(begin_and_commit, &txn), NULL);
    use_while_another_is_open(txn);
    tear_down(3);
}

static void many_that_have_ended(void)
{
    enum { NR = 1000 }; // fewer than have to come before an address does again
    struct memslots_txn *ended[NR];

    set_up();
    for (int i = 0; i < NR; i++) {
        ended[i] = begin(ms);
        if (i % 2)
            memslots_txn_abort(ended[i]);
        else
            CHECK_EQ(memslots_txn_commit(ended[i]), 0);
    }
    struct memslots_txn *open = begin(ms);
    CHECK_EQ(txn_set(open, 5, 500), 0);
    for (int i = 0; i < NR; i++)
        check_ended(ended[i]);
    check_untouched(open);
    memslots_txn_abort(open);
    tear_down(2);
}

static void one_of_another_table(void)
{
    struct memslots *other = new_table();

    set_up();
    REQUIRE(set(other, 1, 100, 10) == 0);
    struct memslots_txn *txn = begin(ms), *others = begin(other);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
    CHECK(memslots_txn_find_gfn(others, 0, 100) != NULL);
    CHECK_EQ(memslots_txn_commit(others), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_free(other);
    tear_down(2);
}

int main(void)
{
    RUN(after_a_commit);
    RUN(after_a_commit_that_was_refused);
    RUN(after_an_abort);
    RUN(another_thread_s_that_has_ended);
    RUN(many_that_have_ended);
    RUN(one_of_another_table);
    return test_result();
}

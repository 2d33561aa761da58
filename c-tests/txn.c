// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Transactions: any number of changes, seen all at once or not at all.

#include "test.h"

#include <pthread.h>

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};
    struct memslots_config config = default_config();

    config.nr_address_spaces = 2;
    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    nr_released = 0;
    set(ms, 1, 100, 10);
    set(ms, 2, 200, 10);
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static int txn_set(struct memslots_txn *txn, uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    return memslots_txn_set_region(txn, &region, NULL);
}

static int txn_create(struct memslots_txn *txn, uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    return memslots_txn_create(txn, &region, NULL);
}

static int txn_id_at(struct memslots_txn *txn, uint16_t as_id, uint64_t gfn)
{
    const struct memslot *slot = memslots_txn_find_gfn(txn, as_id, gfn);

    return slot ? slot->id : -1;
}

static void nothing_is_seen_before_the_commit(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 2, 100 * PAGE), 0);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    CHECK_EQ(id_at(reader, 0, 200), 2);
    CHECK_EQ(memslots_count(reader, 0), 2);
    CHECK_EQ(memslots_generation(reader, 0), generation);

    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 300), 3);
    CHECK_EQ(id_at(reader, 0, 100), 2);
    CHECK_EQ(id_at(reader, 0, 200), -1);
    CHECK_EQ(memslots_count(reader, 0), 2);
    CHECK_EQ(memslots_npages(reader, 0), 20);
    tear_down();
}

static void the_transaction_sees_itself(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_id_at(txn, 0, 100), 1);
    CHECK_EQ(txn_id_at(txn, 0, 300), -1);
    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(txn_id_at(txn, 0, 309), 3);
    CHECK_EQ(txn_id_at(txn, 0, 100), -1);
    CHECK_EQ(txn_id_at(txn, 1, 300), -1);
    CHECK_EQ(txn_id_at(txn, 2, 300), -1);
    memslots_txn_abort(txn);
    tear_down();
}

static void abort_leaves_no_trace(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 2, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    memslots_txn_abort(txn);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 2);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 0);
    CHECK_EQ(set(ms, 3, 300, 10), 0);
    tear_down();
    CHECK_EQ(nr_released, 3);
}

static void each_change_is_checked_against_those_before(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_create(txn, 3, 105, 10), -EEXIST);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), -ENOENT);
    CHECK_EQ(txn_set(txn, 1, 0, 0), -EINVAL);
    CHECK_EQ(txn_create(txn, 3, 105, 10), 3);
    CHECK_EQ(txn_create(txn, 3, 400, 10), -EEXIST);
    CHECK_EQ(txn_create(txn, MEMSLOTS_ID_ANY, 0, 1), 0);
    CHECK_EQ(txn_create(txn, MEMSLOTS_ID_ANY, 1, 1), 1);
    CHECK_EQ(memslots_txn_move(txn, 0, 2, 110 * PAGE), -EEXIST);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 9, 0), -ENOENT);
    CHECK_EQ(txn_set(txn, 2, 200, 11), -EINVAL);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_count(reader, 0), 4);
    CHECK_EQ(id_at(reader, 0, 114), 3);
    CHECK_EQ(id_at(reader, 0, 0), 0);
    CHECK_EQ(id_at(reader, 0, 1), 1);
    CHECK_EQ(id_at(reader, 0, 200), 2);
    tear_down();
}

static void an_error_leaves_the_rest_good(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(txn_set(txn, 4, 305, 10), -EEXIST);
    CHECK_EQ(txn_id_at(txn, 0, 310), -1);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 305), 3);
    CHECK_EQ(memslots_count(reader, 0), 3);
    tear_down();
}

static void all_address_spaces_at_once(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 1u << 16 | 1, 100, 10), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(txn_set(txn, 2u << 16, 100, 10), -EINVAL);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 1, 100), 1);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    tear_down();
}

static void no_changes_no_publication(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);

    CHECK_EQ(memslots_txn_commit(begin(ms)), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(txn_set(txn, 1, 100, 10), 0); // equal: nothing
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    tear_down();
}

static void what_comes_and_goes_inside_never_was(void)
{
    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 3, 400 * PAGE), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 3, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 3), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_count(reader, 0), 2);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 0);
    tear_down();
}

static void a_resize_by_hand_is_seen_at_once(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(txn_set(txn, 1, 100, 50), 0);
    CHECK_EQ(id_at(reader, 0, 140), -1);
    CHECK_EQ(id_at(reader, 0, 109), 1);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 149), 1);
    CHECK_EQ(memslots_npages(reader, 0), 60);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    tear_down();
}

static void a_second_update_of_the_thread_is_edeadlk(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms), *second = NULL;
    struct memslots_region region = ram(7, 700, 1);

    CHECK_EQ(memslots_txn_begin(ms, &second), -EDEADLK);
    CHECK(second == NULL);
    CHECK_EQ(set(ms, 7, 700, 1), -EDEADLK);
    CHECK_EQ(memslots_create(ms, &region, NULL), -EDEADLK);
    CHECK_EQ(memslots_delete(ms, 0, 1), -EDEADLK);
    CHECK_EQ(memslots_move(ms, 0, 1, 0), -EDEADLK);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), -EDEADLK);
    CHECK_EQ(memslots_apply(ms, &region, NULL, 1, NULL), -EDEADLK);
    CHECK_EQ(memslots_replace_all(ms, 0, &region, NULL, 1, NULL), -EDEADLK);
    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 300), 3);
    CHECK_EQ(set(ms, 7, 700, 1), 0);
    tear_down();
}

static void another_table_is_another_matter(void)
{
    set_up();
    struct memslots *other = new_table();
    struct memslots_txn *txn = begin(ms), *second = begin(other);

    CHECK_EQ(txn_set(second, 1, 1, 1), 0);
    CHECK_EQ(txn_set(txn, 3, 300, 1), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(memslots_txn_commit(second), 0);
    memslots_free(other);
    tear_down();
}

// A handle is gone after commit and abort; the memory behind it is not, so that a mistake is told.
static void after_its_end_every_call_is_einval(void)
{
    struct memslots_region region = ram(3, 300, 1);

    set_up();
    for (int aborted = 0; aborted < 2; aborted++) {
        struct memslots_txn *txn = begin(ms);
        size_t nr_steps;
        CHECK_EQ(memslots_txn_set_flags(txn, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), 0);
        if (aborted)
            memslots_txn_abort(txn);
        else
            CHECK_EQ(memslots_txn_commit(txn), 0);
        CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), -EINVAL);
        CHECK_EQ(memslots_txn_create(txn, &region, NULL), -EINVAL);
        CHECK_EQ(memslots_txn_delete(txn, 0, 1), -EINVAL);
        CHECK_EQ(memslots_txn_move(txn, 0, 1, 0), -EINVAL);
        CHECK_EQ(memslots_txn_set_flags(txn, 0, 1, 0), -EINVAL);
        CHECK_EQ(memslots_txn_split(txn, 0, 1, 105 * PAGE, 9, NULL), -EINVAL);
        CHECK_EQ(memslots_txn_merge(txn, 0, 1, 2), -EINVAL);
        CHECK_EQ(memslots_txn_resize(txn, 0, 1, PAGE), -EINVAL);
        CHECK_EQ(memslots_txn_plan(txn, NULL, 0, &nr_steps), -EINVAL);
        CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
        CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
        memslots_txn_abort(txn);
    }
    CHECK_EQ(memslots_count(reader, 0), 2);
    tear_down();
}

static void *meddle(void *txn)
{
    struct memslots_region region = ram(3, 300, 1);

    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), -EINVAL);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
    CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
    memslots_txn_abort(txn);
    return NULL;
}

static void it_belongs_to_its_thread(void)
{
    pthread_t thread;

    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    REQUIRE(pthread_create(&thread, NULL, meddle, txn) == 0);
    pthread_join(thread, NULL);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    tear_down();
}

static void free_aborts_what_is_open(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(txn_set(txn, 3, 300, 10), 0);
    tear_down();
    CHECK_EQ(nr_released, 2);
}

static void ten_thousand_changes_in_one_publication(void)
{
    const uint32_t nr = under_valgrind() ? 1000 : 10000;
    struct memslots_stats before, after;

    set_up();
    for (uint32_t i = 0; i < nr; i++)
        CHECK_EQ(set(ms, 10 + i, 1000 + 4 * (uint64_t)i, 2), 0);
    memslots_get_stats(ms, &before, sizeof(before));
    struct memslots_txn *txn = begin(ms);
    for (uint32_t i = 0; i < nr; i++) {
        if (i % 2)
            CHECK_EQ(memslots_txn_delete(txn, 0, (uint16_t)(10 + i)), 0);
        else
            CHECK_EQ(memslots_txn_move(txn, 0, (uint16_t)(10 + i), (1001 + 4 * (uint64_t)i) * PAGE),
                     0);
    }
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_get_stats(ms, &after, sizeof(after));
    CHECK_EQ(after.publications - before.publications, 1);
    CHECK_EQ(memslots_count(reader, 0), 2 + nr / 2);
    for (uint32_t i = 0; i < nr; i++)
        CHECK_EQ(id_at(reader, 0, 1002 + 4 * (uint64_t)i), i % 2 ? -1 : (int)(10 + i));
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, nr / 2);
    tear_down();
}

int main(void)
{
    RUN(nothing_is_seen_before_the_commit);
    RUN(the_transaction_sees_itself);
    RUN(abort_leaves_no_trace);
    RUN(each_change_is_checked_against_those_before);
    RUN(an_error_leaves_the_rest_good);
    RUN(all_address_spaces_at_once);
    RUN(no_changes_no_publication);
    RUN(what_comes_and_goes_inside_never_was);
    RUN(a_resize_by_hand_is_seen_at_once);
    RUN(a_second_update_of_the_thread_is_edeadlk);
    RUN(another_table_is_another_matter);
    RUN(after_its_end_every_call_is_einval);
    RUN(it_belongs_to_its_thread);
    RUN(free_aborts_what_is_open);
    RUN(ten_thousand_changes_in_one_publication);
    return test_result();
}

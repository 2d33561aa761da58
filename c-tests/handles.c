// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A transaction's handle: good for its own transaction, on the thread that began it, and for nothing else.

#include "test.h"

#include <pthread.h>

// Every function that takes a handle refuses this one, and what is open meanwhile stays as it is.
static void is_refused(struct memslots_txn *txn)
{
    struct memslots_region region = ram(7, 700, 10);
    struct memslots_plan_step step;
    size_t nr_steps = 99;

    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_create(txn, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), -EINVAL);
    CHECK_EQ(memslots_txn_move(txn, 0, 1, 500 * PAGE), -EINVAL);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), -EINVAL);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 102 * PAGE, MEMSLOTS_ID_ANY, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 2), -EINVAL);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, PAGE), -EINVAL);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
    CHECK_EQ(memslots_txn_plan(txn, &step, 1, &nr_steps), -EINVAL);
    CHECK_EQ(nr_steps, 99);
    CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
    memslots_txn_abort(txn); // nothing happens
}

static struct memslots *table(void)
{
    struct memslots *ms = new_table();

    REQUIRE(set(ms, 1, 100, 10) == 0 && set(ms, 2, 110, 10) == 0);
    return ms;
}

static void one_that_was_committed(void)
{
    struct memslots *ms = table();
    struct memslots_txn *a = begin(ms);

    CHECK_EQ(memslots_txn_commit(a), 0);
    is_refused(a);
    struct memslots_txn *b = begin(ms);
    CHECK_EQ(memslots_txn_delete(b, 0, 2), 0);
    is_refused(a); // also while a newer one is open
    CHECK(memslots_txn_find_gfn(b, 0, 100) != NULL);
    CHECK_EQ(memslots_txn_commit(b), 0);
    is_refused(b);

    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    CHECK_EQ(id_at(reader, 0, 110), -1);
    CHECK_EQ(id_at(reader, 0, 700), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void one_that_was_aborted(void)
{
    struct memslots *ms = table();
    struct memslots_txn *a = begin(ms);

    memslots_txn_abort(a);
    is_refused(a);
    struct memslots_txn *b = begin(ms);
    is_refused(a);
    memslots_txn_abort(a);
    CHECK_EQ(memslots_txn_commit(b), 0);
    memslots_free(ms);
}

// A handle is not the next one's, nor that of any of the next thousand.
static void handles_are_not_used_again_at_once(void)
{
    struct memslots *ms = table();
    struct memslots_txn *first = begin(ms);

    CHECK_EQ(memslots_txn_commit(first), 0);
    for (int i = 0; i < 1000; i++) {
        struct memslots_txn *txn = begin(ms);
        CHECK(txn != first);
        CHECK_EQ(memslots_txn_delete(first, 0, 1), -EINVAL);
        CHECK_EQ(memslots_txn_commit(txn), 0);
    }
    memslots_free(ms);
}

static void *refused_on_another_thread(void *txn)
{
    is_refused(txn);
    return NULL;
}

static void one_of_another_thread(void)
{
    struct memslots *ms = table();
    struct memslots_txn *txn = begin(ms);
    pthread_t thread;

    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    REQUIRE(pthread_create(&thread, NULL, refused_on_another_thread, txn) == 0);
    pthread_join(thread, NULL);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_free(ms);
}

static void one_of_another_table(void)
{
    struct memslots *ms = table(), *other = table();
    struct memslots_txn *txn = begin(ms), *others = begin(other);

    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK(memslots_txn_find_gfn(txn, 0, 100) == NULL);
    CHECK(memslots_txn_find_gfn(others, 0, 100) != NULL);
    CHECK_EQ(memslots_txn_commit(others), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_free(ms);
    memslots_free(other);
}

int main(void)
{
    RUN(one_that_was_committed);
    RUN(one_that_was_aborted);
    RUN(handles_are_not_used_again_at_once);
    RUN(one_of_another_thread);
    RUN(one_of_another_table);
    return test_result();
}

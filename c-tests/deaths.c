// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Threads that die in a read-side section or with a transaction open. The C library gives what
// pthread_self() said in them to a new thread, which must not be taken for the dead one.

#define _POSIX_C_SOURCE 200809L
#include "child.h"
#include "thread.h"

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};

static struct memslots *ms;
static struct memslots_reader *reader; // of the thread that dies
static struct memslots_txn *txn;       // of the thread that dies

static void set_up(uint32_t sync)
{
    struct memslots_config config = default_config();

    config.ops = &ops;
    config.sync = sync;
    ms = new_table_with(&config);
    nr_released = 0;
    for (uint32_t i = 0; i < 10; i++)
        REQUIRE(set(ms, i, i * UINT64_C(10), 5) == 0);
}

// ---- a thread with the pthread_self() of one that is gone ----

enum likeness { UNKNOWN, ANOTHER, SAME };

struct heir {
    pthread_t dead;
    void *(*body)(void *);
    atomic_int likeness;
};

static void *run_if_same(void *arg)
{
    struct heir *heir = arg;

    atomic_store(&heir->likeness, pthread_equal(pthread_self(), heir->dead) ? SAME : ANOTHER);
    return heir->likeness == SAME ? heir->body(NULL) : NULL;
}

// Runs `first` on a thread, and when that is gone begins `second` on another with the same pthread_self().
static pthread_t begin_after(void *(*first)(void *), void *(*second)(void *))
{
    static struct heir heir;

    heir.dead = start(first, NULL);
    heir.body = second;
    pthread_join(heir.dead, NULL);
    for (int i = 0; i < 100; i++) {
        atomic_store(&heir.likeness, UNKNOWN);
        pthread_t thread = start(run_if_same, &heir);
        while (atomic_load(&heir.likeness) == UNKNOWN)
            nap();
        if (atomic_load(&heir.likeness) == SAME)
            return thread;
        pthread_join(thread, NULL);
    }
    REQUIRE(!"a thread with the same pthread_self()");
    return heir.dead;
}

static void one_after_the_other(void *(*first)(void *), void *(*second)(void *))
{
    pthread_join(begin_after(first, second), NULL);
}

// ---- in a section ----

static void *die_in_a_section(void *arg)
{
    reader = new_reader(ms);
    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, 10) != NULL);
    return arg;
}

static void *update_without_waiting(void *arg)
{
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(set(ms, 1, 500, 5), 0);
    return arg;
}

static void a_section_whose_thread_is_gone_holds_releases_back(void)
{
    set_up(0);
    one_after_the_other(die_in_a_section, update_without_waiting);
    memslots_reclaim(ms);
    CHECK_EQ(nr_released, 0);
    memslots_reader_free(reader); // by another thread: ends the section
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    memslots_free(ms);
    CHECK_EQ(nr_released, 11);
}

static atomic_bool is_waiting;

static void *free_the_reader_soon(void *arg)
{
    while (!atomic_load(&is_waiting))
        nap();
    long_nap();
    memslots_reader_free(reader);
    return arg;
}

// These would be refused as from inside a section of their own.
static void *wait_for_the_reader(void *arg)
{
    pthread_t other = start(free_the_reader_soon, NULL);

    atomic_store(&is_waiting, true);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(nr_released, 1);
    CHECK_EQ(memslots_try_synchronize(ms), 0);
    pthread_join(other, NULL);
    return arg;
}

static void the_next_thread_waits_for_it_as_any_other(void)
{
    set_up(1);
    atomic_store(&is_waiting, false);
    one_after_the_other(die_in_a_section, wait_for_the_reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

static void *free_while_it_waits(void *arg)
{
    pthread_t other = start(free_the_reader_soon, NULL);

    atomic_store(&is_waiting, true);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10); // not put off
    pthread_join(other, NULL);
    return arg;
}

static void the_next_thread_may_free_the_table(void)
{
    set_up(0);
    atomic_store(&is_waiting, false);
    one_after_the_other(die_in_a_section, free_while_it_waits);
}

// ---- with a transaction open ----

static void *die_in_a_transaction(void *arg)
{
    struct memslots_region region = ram(20, 900, 5);

    txn = begin(ms);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 3), 0);
    return arg;
}

static void *use_the_dead_thread_s(void *arg)
{
    struct memslots_region region = ram(21, 950, 5);

    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_delete(txn, 0, 4), -EINVAL);
    CHECK(memslots_txn_find_gfn(txn, 0, 900) == NULL);
    CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
    memslots_txn_abort(txn);
    CHECK_EQ(memslots_txn_commit(txn), -EINVAL);
    return arg;
}

static void a_transaction_whose_thread_is_gone_is_aborted_by_free(void)
{
    set_up(0);
    one_after_the_other(die_in_a_transaction, use_the_dead_thread_s);
    struct memslots_reader *mine = new_reader(ms);
    CHECK_EQ(id_at(mine, 0, 900), -1);
    CHECK_EQ(id_at(mine, 0, 30), 3);
    memslots_reader_free(mine);
    CHECK_EQ(nr_released, 0);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

static void so_it_is_where_readers_are_left(void)
{
    set_up(0);
    struct memslots_reader *mine = new_reader(ms);
    one_after_the_other(die_in_a_transaction, use_the_dead_thread_s);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
    CHECK_EQ(id_at(mine, 0, 30), -1);
    memslots_reader_free(mine);
}

static void *free_the_table(void *arg)
{
    memslots_free(ms);
    return arg;
}

static void the_next_thread_may_free_that_table_too(void)
{
    set_up(0);
    one_after_the_other(die_in_a_transaction, free_the_table);
    CHECK_EQ(nr_released, 10);
}

static void *die_in_both(void *arg)
{
    die_in_a_transaction(arg);
    return die_in_a_section(arg);
}

static void a_thread_that_dies_in_both(void)
{
    set_up(0);
    atomic_store(&is_waiting, false);
    one_after_the_other(die_in_both, free_while_it_waits);
}

static atomic_int result;

static void *update(void *arg)
{
    atomic_store(&result, set(ms, 30, 2000, 1));
    return arg;
}

// Its lock is held for good: who updates waits, and is not told that it is his own.
static void updates_wait_in_vain(void *arg)
{
    set_up(0);
    atomic_store(&result, 1);
    begin_after(die_in_a_transaction, update);
    start(update, NULL);
    long_nap();
    CHECK_EQ(atomic_load(&result), 1);
    (void)arg;
}

static void a_transaction_whose_thread_is_gone_holds_the_lock(void)
{
    CHECK_EQ(in_child(updates_wait_in_vain, NULL).exit_status, 0);
}

int main(void)
{
    RUN(a_section_whose_thread_is_gone_holds_releases_back);
    RUN(the_next_thread_waits_for_it_as_any_other);
    RUN(the_next_thread_may_free_the_table);
    RUN(a_transaction_whose_thread_is_gone_is_aborted_by_free);
    RUN(so_it_is_where_readers_are_left);
    RUN(the_next_thread_may_free_that_table_too);
    RUN(a_thread_that_dies_in_both);
    RUN(a_transaction_whose_thread_is_gone_holds_the_lock);
    return test_result();
}

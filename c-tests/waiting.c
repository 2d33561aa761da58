// SPDX-License-Identifier: MIT OR Apache-2.0
//
// When an update waits for readers and when it does not: the INVALID phase before a flush hook, and
// sync = 1. From inside its own read section a thread is refused, never hung.

#define _POSIX_C_SOURCE 200809L // nanosleep, barriers
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static atomic_int nr_flushed;

static void count_flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
    atomic_fetch_add(&nr_flushed, 1);
}

static const struct memslots_ops with_flush = {MEMSLOTS_OPS_INIT, .flush = count_flush};

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(const struct memslots_ops *ops, uint32_t sync)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    config.sync = sync;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    for (uint32_t i = 1; i <= 3; i++)
        REQUIRE(set(ms, i, i * UINT64_C(100), 10) == 0);
    atomic_store(&nr_flushed, 0);
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void without_flush_and_sync_nothing_waits(void)
{
    set_up(NULL, 0);
    memslots_read_lock(reader);
    CHECK_EQ(set(ms, 4, 400, 1), 0);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_move(ms, 0, 1, 0), 0);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    memslots_read_unlock(reader);
    tear_down();
}

static void with_flush_only_delete_and_move_wait(void)
{
    set_up(&with_flush, 0);
    memslots_read_lock(reader);
    CHECK_EQ(set(ms, 4, 400, 1), 0);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_move(ms, 0, 1, 0), -EDEADLK);
    CHECK_EQ(memslots_delete(ms, 0, 1), -EDEADLK);
    CHECK_EQ(memslots_replace_all(ms, 0, NULL, NULL, 0, NULL), -EDEADLK);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_commit(txn), -EDEADLK);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_find_gfn(reader, 0, 100)->flags, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_read_unlock(reader);
    CHECK_EQ(atomic_load(&nr_flushed), 0);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(atomic_load(&nr_flushed), 1);
    tear_down();
}

static void with_sync_every_kind_waits(void)
{
    set_up(NULL, 1);
    memslots_read_lock(reader);
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(set(ms, 4, 400, 1), -EDEADLK);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), -EDEADLK);
    CHECK_EQ(memslots_move(ms, 0, 1, 0), -EDEADLK);
    CHECK_EQ(memslots_delete(ms, 0, 1), -EDEADLK);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 3);
    memslots_read_unlock(reader);
    CHECK_EQ(set(ms, 4, 400, 1), 0);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    tear_down();
}

// A thread that sits in a section until it is told to leave, and says what it sees.
struct sitter {
    pthread_t thread;
    pthread_barrier_t inside;
    atomic_bool leave, left;
    unsigned flags_seen; // of the slot at gfn 100, looked up as the last thing
};

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

static void *sit(void *arg)
{
    struct sitter *sitter = arg;
    struct memslots_reader *own = new_reader(ms);

    memslots_read_lock(own);
    const struct memslot *at_first = memslots_find_gfn(own, 0, 100);
    CHECK(at_first && !(at_first->flags & MEMSLOTS_INVALID));
    pthread_barrier_wait(&sitter->inside);
    while (!atomic_load(&sitter->leave))
        nap();
    const struct memslot *slot = memslots_find_gfn(own, 0, 100);
    sitter->flags_seen = slot ? slot->flags : UINT32_MAX;
    CHECK(at_first && at_first->npages == 10);
    atomic_store(&sitter->left, true);
    memslots_read_unlock(own);
    memslots_reader_free(own);
    return NULL;
}

static void sit_down(struct sitter *sitter)
{
    memset(sitter, 0, sizeof(*sitter));
    pthread_barrier_init(&sitter->inside, NULL, 2);
    REQUIRE(pthread_create(&sitter->thread, NULL, sit, sitter) == 0);
    pthread_barrier_wait(&sitter->inside);
}

static void stand_up(struct sitter *sitter)
{
    atomic_store(&sitter->leave, true);
    pthread_join(sitter->thread, NULL);
    pthread_barrier_destroy(&sitter->inside);
}

static atomic_bool update_is_done;
static int update_result;

static void *delete_slot_1(void *arg)
{
    (void)arg;
    update_result = memslots_delete(ms, 0, 1);
    atomic_store(&update_is_done, true);
    return NULL;
}

// The delete waits for the sitter, who meanwhile finds the slot INVALID; only then is it flushed.
static void the_invalid_phase(void)
{
    struct sitter sitter;
    pthread_t updater;

    set_up(&with_flush, 0);
    sit_down(&sitter);
    atomic_store(&update_is_done, false);
    uint64_t generation = memslots_generation(reader, 0);
    REQUIRE(pthread_create(&updater, NULL, delete_slot_1, NULL) == 0);
    for (int i = 0; i < 50 || memslots_generation(reader, 0) == generation; i++)
        nap();
    CHECK_EQ(atomic_load(&nr_flushed), 0);
    CHECK(!atomic_load(&update_is_done));
    CHECK_EQ(id_at(reader, 0, 100), 1); // there, but
    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, 100)->flags & MEMSLOTS_INVALID);
    CHECK(memslots_find_id(reader, 0, 1)->flags & MEMSLOTS_INVALID);
    CHECK(memslots_find_hva(reader, 0, HVA + 100 * PAGE)->flags & MEMSLOTS_INVALID);
    CHECK(!(memslots_find_gfn(reader, 0, 200)->flags & MEMSLOTS_INVALID));
    memslots_read_unlock(reader);
    stand_up(&sitter);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    CHECK(sitter.flags_seen & MEMSLOTS_INVALID);
    CHECK_EQ(atomic_load(&nr_flushed), 1);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    tear_down();
}

static void *set_flags_of_slot_1(void *arg)
{
    (void)arg;
    update_result = memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES);
    atomic_store(&update_is_done, true);
    return NULL;
}

// Once the call has returned no reader is left that could still use what was before.
static void sync_waits_for_the_old_readers(void)
{
    struct sitter sitter;
    pthread_t updater;

    set_up(NULL, 1);
    sit_down(&sitter);
    atomic_store(&update_is_done, false);
    uint64_t generation = memslots_generation(reader, 0);
    REQUIRE(pthread_create(&updater, NULL, set_flags_of_slot_1, NULL) == 0);
    for (int i = 0; i < 50 || memslots_generation(reader, 0) == generation; i++)
        nap();
    CHECK(!atomic_load(&update_is_done));
    memslots_read_lock(reader); // new lookups see it already
    CHECK_EQ(memslots_find_gfn(reader, 0, 100)->flags, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_read_unlock(reader);
    stand_up(&sitter);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    CHECK(atomic_load(&sitter.left));
    tear_down();
}

// Sections that were opened after the change are not waited for.
static void synchronize_does_not_wait_for_newcomers(void)
{
    struct sitter sitter;
    struct memslots_stats stats;

    set_up(NULL, 0);
    sit_down(&sitter);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.open_sections, 1);
    CHECK_EQ(memslots_delete(ms, 0, 2), 0); // does not wait for the sitter either
    stand_up(&sitter);
    memslots_synchronize(ms);
    tear_down();
}

// A section of another reader on the same thread counts as the thread's own.
static void two_readers_of_one_thread(void)
{
    set_up(&with_flush, 0);
    struct memslots_reader *second = new_reader(ms);

    memslots_read_lock(second);
    memslots_read_lock(reader);
    memslots_read_unlock(reader);
    CHECK_EQ(memslots_delete(ms, 0, 1), -EDEADLK);
    CHECK_EQ(memslots_try_synchronize(ms), -EDEADLK);
    memslots_read_unlock(second);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    memslots_reader_free(second);
    tear_down();
}

// And a section of another table does not.
static void another_table_s_section_is_no_matter(void)
{
    set_up(&with_flush, 0);
    struct memslots *other = new_table();
    struct memslots_reader *others = new_reader(other);

    memslots_read_lock(others);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(memslots_try_synchronize(ms), 0);
    memslots_read_unlock(others);
    memslots_reader_free(others);
    memslots_free(other);
    tear_down();
}

// The cross: another thread's delete waits for this thread's section, and in it this thread calls what
// would wait for that delete. It is told so; neither hangs.
static void an_update_that_waits_for_us(void)
{
    pthread_t updater;
    struct memslots_stats stats;
    struct memslots_region region = ram(8, 800, 1);
    struct memslots_txn *txn = NULL;

    set_up(&with_flush, 0);
    memslots_read_lock(reader);
    uint64_t generation = memslots_generation(reader, 0);
    atomic_store(&update_is_done, false);
    REQUIRE(pthread_create(&updater, NULL, delete_slot_1, NULL) == 0);
    while (memslots_generation(reader, 0) == generation) // until it has published INVALID
        nap();
    CHECK_EQ(memslots_set_region(ms, &region, NULL), -EDEADLK);
    CHECK_EQ(memslots_create(ms, &region, NULL), -EDEADLK);
    CHECK_EQ(memslots_set_flags(ms, 0, 2, MEMSLOTS_LOG_DIRTY_PAGES), -EDEADLK);
    CHECK_EQ(memslots_txn_begin(ms, &txn), -EDEADLK);
    CHECK_EQ(memslots_try_synchronize(ms), -EDEADLK);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0); // does not wait
    CHECK_EQ(memslots_reclaim(ms), 0);
    CHECK(!atomic_load(&update_is_done));
    CHECK(memslots_find_gfn(reader, 0, 100)->flags & MEMSLOTS_INVALID);
    memslots_read_unlock(reader);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    CHECK_EQ(memslots_set_region(ms, &region, NULL), 0);
    tear_down();
}

static void *stand_up_soon(void *sitter)
{
    for (int i = 0; i < 50; i++)
        nap();
    stand_up(sitter);
    return NULL;
}

// The same from a section that began only after the delete had begun to wait for an older one.
static void an_update_that_waits_for_another(void)
{
    struct sitter sitter;
    pthread_t updater, helper;

    set_up(&with_flush, 0);
    sit_down(&sitter);
    uint64_t generation = memslots_generation(reader, 0);
    REQUIRE(pthread_create(&updater, NULL, delete_slot_1, NULL) == 0);
    while (memslots_generation(reader, 0) == generation)
        nap();
    memslots_read_lock(reader);
    REQUIRE(pthread_create(&helper, NULL, stand_up_soon, &sitter) == 0);
    int err = set(ms, 8, 800, 1); // in its turn or not at all, but it comes back
    CHECK(err == 0 || err == -EDEADLK);
    memslots_read_unlock(reader);
    pthread_join(helper, NULL);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    CHECK_EQ(id_at(reader, 0, 800), err ? -1 : 8);
    tear_down();
}

// Readers come and go while an update waits for an old section.
static void readers_come_and_go_meanwhile(void)
{
    struct sitter sitter;
    pthread_t updater;

    set_up(&with_flush, 0);
    sit_down(&sitter);
    uint64_t generation = memslots_generation(reader, 0);
    REQUIRE(pthread_create(&updater, NULL, delete_slot_1, NULL) == 0);
    while (memslots_generation(reader, 0) == generation)
        nap();
    for (int i = 0; i < 100; i++) {
        struct memslots_reader *another = new_reader(ms);
        CHECK_EQ(id_at(another, 0, 200), 2);
        memslots_reader_free(another);
    }
    stand_up(&sitter);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    tear_down();
}

// Whoever watches a VM gets an answer just when something hangs.
static void statistics_do_not_wait(void)
{
    struct sitter sitter;
    struct memslots_stats stats;
    pthread_t updater;

    set_up(&with_flush, 0);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    uint64_t before = stats.publications;
    sit_down(&sitter);
    uint64_t generation = memslots_generation(reader, 0);
    REQUIRE(pthread_create(&updater, NULL, delete_slot_1, NULL) == 0);
    while (memslots_generation(reader, 0) == generation)
        nap();
    for (int i = 0; i < 50; i++)
        nap(); // the update waits by now
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK(!atomic_load(&sitter.left)); // nobody had to make way for the answer
    CHECK_EQ(stats.readers, 2);
    CHECK_EQ(stats.open_sections, 1);
    CHECK_EQ(stats.slots, 3);
    CHECK(stats.publications >= before);
    stand_up(&sitter);
    pthread_join(updater, NULL);
    CHECK_EQ(update_result, 0);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.open_sections, 0);
    CHECK_EQ(stats.slots, 2);
    CHECK_EQ(stats.publications, before + 2); // INVALID, and gone
    tear_down();
}

static struct memslots_txn *opened;
static atomic_bool second_is_in;

static void *update_too(void *arg)
{
    (void)arg;
    CHECK_EQ(set(ms, 9, 900, 1), 0); // waits for the transaction of the other thread
    atomic_store(&second_is_in, true);
    return NULL;
}

static void updates_of_other_threads_wait_their_turn(void)
{
    pthread_t thread;

    set_up(NULL, 0);
    atomic_store(&second_is_in, false);
    opened = begin(ms);
    CHECK_EQ(memslots_txn_delete(opened, 0, 1), 0);
    REQUIRE(pthread_create(&thread, NULL, update_too, NULL) == 0);
    for (int i = 0; i < 50; i++)
        nap();
    CHECK(!atomic_load(&second_is_in));
    CHECK_EQ(id_at(reader, 0, 900), -1);
    CHECK_EQ(memslots_txn_commit(opened), 0);
    pthread_join(thread, NULL);
    CHECK_EQ(id_at(reader, 0, 900), 9);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    tear_down();
}

int main(void)
{
    RUN(without_flush_and_sync_nothing_waits);
    RUN(with_flush_only_delete_and_move_wait);
    RUN(with_sync_every_kind_waits);
    RUN(the_invalid_phase);
    RUN(sync_waits_for_the_old_readers);
    RUN(synchronize_does_not_wait_for_newcomers);
    RUN(two_readers_of_one_thread);
    RUN(another_table_s_section_is_no_matter);
    RUN(an_update_that_waits_for_us);
    RUN(an_update_that_waits_for_another);
    RUN(readers_come_and_go_meanwhile);
    RUN(statistics_do_not_wait);
    RUN(updates_of_other_threads_wait_their_turn);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// release: once in a slot's life, when no reader can see it any more, and never on a thread that
// only reads; and the calls that see to it: reclaim, synchronize, free.

#define _POSIX_C_SOURCE 200809L // pthread_barrier_t
#include "test.h"

#include <pthread.h>

struct log {
    int order[1024]; // the opaques that were released
    int nr;
    pthread_t on_thread;
};

static void release(void *ctx, const struct memslot *gone)
{
    struct log *log = ctx;

    log->on_thread = pthread_self();
    if (log->nr < 1024)
        log->order[log->nr++] = (int)(intptr_t)gone->opaque;
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};

static struct memslots *table(struct log *log)
{
    struct memslots_config config = default_config();

    memset(log, 0, sizeof(*log));
    config.ops = &ops;
    config.ctx = log;
    return new_table_with(&config);
}

static int set_opaque(struct memslots *ms, uint32_t slot, uint64_t gfn, int opaque)
{
    struct memslots_region region = ram(slot, gfn, 1);

    return memslots_set_region(ms, &region, (void *)(intptr_t)opaque);
}

static void without_readers_it_is_prompt(void)
{
    struct log log;
    struct memslots *ms = table(&log);

    set_opaque(ms, 1, 10, 1);
    memslots_delete(ms, 0, 1);
    memslots_synchronize(ms);
    CHECK_EQ(log.nr, 1);
    CHECK_EQ(log.order[0], 1);
    CHECK_EQ(memslots_reclaim(ms), 0);
    memslots_free(ms);
    CHECK_EQ(log.nr, 1);
}

static void an_open_section_holds_it_back(void)
{
    struct log log;
    struct memslots *ms = table(&log);
    struct memslots_reader *reader = new_reader(ms);

    set_opaque(ms, 1, 10, 1);
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 10);
    REQUIRE(slot);
    memslots_delete(ms, 0, 1);
    for (int i = 0; i < 100; i++) {
        memslots_reclaim(ms);
        set_opaque(ms, 2, 20, 2);
        memslots_move(ms, 0, 2, 30 * PAGE);
        memslots_move(ms, 0, 2, 20 * PAGE);
    }
    CHECK_EQ(log.nr, 0);
    CHECK_EQ((intptr_t)slot->opaque, 1);
    memslots_read_unlock(reader);
    CHECK_EQ(log.nr, 0); // not on a reading thread
    memslots_synchronize(ms);
    CHECK_EQ(log.nr, 1);
    CHECK_EQ(log.order[0], 1);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(log.nr, 2);
}

static void the_outermost_section_counts(void)
{
    struct log log;
    struct memslots *ms = table(&log);
    struct memslots_reader *reader = new_reader(ms);

    set_opaque(ms, 1, 10, 1);
    for (int depth = 0; depth < 3; depth++)
        memslots_read_lock(reader);
    for (int depth = 0; depth < 2; depth++)
        memslots_read_unlock(reader);
    memslots_delete(ms, 0, 1);
    for (int i = 0; i < 100; i++) {
        set_opaque(ms, 2, 20 + (uint64_t)(i & 1), 2);
        memslots_reclaim(ms);
    }
    CHECK_EQ(log.nr, 0);
    CHECK_EQ(memslots_try_synchronize(ms), -EDEADLK);
    memslots_read_unlock(reader);
    CHECK_EQ(memslots_try_synchronize(ms), 0);
    CHECK_EQ(log.nr, 1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void not_for_a_move_or_flags(void)
{
    struct log log;
    struct memslots *ms = table(&log);

    set_opaque(ms, 1, 10, 1);
    memslots_move(ms, 0, 1, 20 * PAGE);
    memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES);
    set_opaque(ms, 1, 20, 9);
    memslots_synchronize(ms);
    CHECK_EQ(log.nr, 0);
    memslots_free(ms);
    CHECK_EQ(log.nr, 1);
    CHECK_EQ(log.order[0], 1);
}

static void in_the_order_of_the_deletes(void)
{
    struct log log;
    struct memslots *ms = table(&log);

    for (int i = 0; i < 100; i++)
        set_opaque(ms, (uint32_t)i, (uint64_t)i, i);
    for (int i = 0; i < 100; i++)
        memslots_delete(ms, 0, (uint16_t)(i * 37 % 100));
    memslots_synchronize(ms);
    CHECK_EQ(log.nr, 100);
    for (int i = 0; i < log.nr; i++)
        CHECK_EQ(log.order[i], i * 37 % 100);
    memslots_free(ms);
}

static void free_releases_what_is_left(void)
{
    struct log log;
    struct memslots *ms = table(&log);
    int seen[100] = {0};

    for (int i = 0; i < 100; i++)
        set_opaque(ms, (uint32_t)i, (uint64_t)i, i);
    memslots_delete(ms, 0, 42);
    memslots_free(ms);
    CHECK_EQ(log.nr, 100);
    for (int i = 0; i < log.nr; i++)
        seen[log.order[i]]++;
    for (int i = 0; i < 100; i++)
        CHECK_EQ(seen[i], 1);
}

static void a_refused_create_was_never_a_slot(void)
{
    struct log log;
    struct memslots *ms = table(&log);

    set_opaque(ms, 1, 10, 1);
    CHECK_EQ(set_opaque(ms, 2, 10, 2), -EEXIST);
    memslots_free(ms);
    CHECK_EQ(log.nr, 1);
    CHECK_EQ(log.order[0], 1);
}

static void reclaim_counts_what_it_ran(void)
{
    struct log log;
    struct memslots *ms = table(&log);
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_stats stats;
    size_t ran = 0;

    for (int i = 0; i < 10; i++)
        set_opaque(ms, (uint32_t)i, (uint64_t)i, i);
    memslots_read_lock(reader);
    for (int i = 0; i < 10; i++)
        memslots_delete(ms, 0, (uint16_t)i);
    CHECK_EQ(memslots_reclaim(ms), 0);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.releases_due, 10);
    memslots_read_unlock(reader);
    for (int i = 0; i < 100 && log.nr < 10; i++)
        ran += memslots_reclaim(ms);
    CHECK_EQ(ran, 10);
    CHECK_EQ(log.nr, 10);
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.releases_due, 0);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// A release hook may look at the table, and may not change it.
struct meddler {
    struct memslots *ms;
    int err, calls;
};

static void release_and_meddle(void *ctx, const struct memslot *gone)
{
    struct meddler *meddler = ctx;

    (void)gone;
    if (meddler->calls++ == 0)
        meddler->err = set(meddler->ms, 5, 50, 1);
}

static void a_release_that_updates_is_edeadlk(void)
{
    const struct memslots_ops meddling = {MEMSLOTS_OPS_INIT, .release = release_and_meddle};
    struct meddler meddler = {0};
    struct memslots_config config = default_config();
    config.ops = &meddling;
    config.ctx = &meddler;

    meddler.ms = new_table_with(&config);
    set(meddler.ms, 1, 10, 1);
    memslots_delete(meddler.ms, 0, 1);
    memslots_synchronize(meddler.ms);
    CHECK_EQ(meddler.calls, 1);
    CHECK_EQ(meddler.err, -EDEADLK);
    memslots_free(meddler.ms);
}

struct other_thread {
    struct memslots *ms;
    pthread_barrier_t inside, leave;
};

static void *read_for_a_while(void *arg)
{
    struct other_thread *other = arg;
    struct memslots_reader *reader = new_reader(other->ms);

    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, 10) != NULL);
    pthread_barrier_wait(&other->inside);
    pthread_barrier_wait(&other->leave);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    return NULL;
}

// synchronize waits for the section of the other thread, and releases on its own.
static void synchronize_waits_for_other_threads(void)
{
    struct log log;
    struct other_thread other = {.ms = table(&log)};
    pthread_t thread;

    pthread_barrier_init(&other.inside, NULL, 2);
    pthread_barrier_init(&other.leave, NULL, 2);
    set_opaque(other.ms, 1, 10, 1);
    REQUIRE(pthread_create(&thread, NULL, read_for_a_while, &other) == 0);
    pthread_barrier_wait(&other.inside);
    memslots_delete(other.ms, 0, 1);
    memslots_reclaim(other.ms);
    CHECK_EQ(log.nr, 0);
    pthread_barrier_wait(&other.leave);
    memslots_synchronize(other.ms);
    CHECK_EQ(log.nr, 1);
    CHECK(pthread_equal(log.on_thread, pthread_self()));
    pthread_join(thread, NULL);
    memslots_free(other.ms);
    pthread_barrier_destroy(&other.inside);
    pthread_barrier_destroy(&other.leave);
}

int main(void)
{
    RUN(without_readers_it_is_prompt);
    RUN(an_open_section_holds_it_back);
    RUN(the_outermost_section_counts);
    RUN(not_for_a_move_or_flags);
    RUN(in_the_order_of_the_deletes);
    RUN(free_releases_what_is_left);
    RUN(a_refused_create_was_never_a_slot);
    RUN(reclaim_counts_what_it_ran);
    RUN(a_release_that_updates_is_edeadlk);
    RUN(synchronize_waits_for_other_threads);
    return test_result();
}

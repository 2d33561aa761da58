// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_reclaim runs all releases that are due, however many and however they came together;
// synchronize and free run what reclaim would, and leave none.

#define _POSIX_C_SOURCE 200809L
#include "thread.h"

enum { NR = 1000 };
static int nr_released[NR];

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    nr_released[gone->id]++;
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(void)
{
    struct memslots_config config = default_config();

    config.ops = &ops;
    memset(nr_released, 0, sizeof(nr_released));
    ms = new_table_with(&config);
    reader = new_reader(ms);
    for (uint32_t i = 0; i < NR; i++)
        REQUIRE(set(ms, i, i * UINT64_C(10), 5) == 0);
}

// How many have been released; none twice.
static int nr_gone(void)
{
    int nr = 0;

    for (int i = 0; i < NR; i++) {
        CHECK(nr_released[i] <= 1);
        nr += nr_released[i];
    }
    return nr;
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_gone(), NR);
}

static struct memslots_stats stats(void)
{
    struct memslots_stats stats;

    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    return stats;
}

static void delete_each(uint16_t first, uint16_t end)
{
    for (uint16_t id = first; id < end; id++)
        CHECK_EQ(memslots_delete(ms, 0, id), 0);
}

// One update each, so that they are in as many bags.
static void make_all_due(void)
{
    memslots_read_lock(reader);
    delete_each(0, NR);
    CHECK_EQ(nr_gone(), 0);
    CHECK_EQ(memslots_reclaim(ms), 0); // a section is open
    memslots_read_unlock(reader);
    CHECK_EQ(stats().releases_due, NR);
    CHECK_EQ(stats().open_sections, 0);
}

static void one_call_runs_a_thousand(void)
{
    set_up();
    make_all_due();
    CHECK_EQ(memslots_reclaim(ms), NR);
    CHECK_EQ(nr_gone(), NR);
    CHECK_EQ(stats().releases_due, 0);
    CHECK_EQ(stats().garbage_bytes, 0);
    CHECK_EQ(memslots_reclaim(ms), 0);
    tear_down();
}

static void so_does_synchronize(void)
{
    set_up();
    make_all_due();
    memslots_synchronize(ms);
    CHECK_EQ(nr_gone(), NR);
    CHECK_EQ(stats().releases_due, 0);
    tear_down();
}

// It may hold back what came before it, too: epochs are not that exact.
static void a_section_that_is_open_holds_back_what_came_after_it(void)
{
    struct sitter sitter;

    set_up();
    memslots_read_lock(reader);
    delete_each(0, 500);
    memslots_read_unlock(reader);
    sit_down(&sitter, ms);
    delete_each(500, NR);
    for (int i = 0; i < 10; i++)
        memslots_reclaim(ms);
    for (int i = 500; i < NR; i++)
        CHECK_EQ(nr_released[i], 0);
    int nr_before = nr_gone();
    stand_up(&sitter);
    CHECK_EQ(memslots_reclaim(ms), NR - nr_before);
    CHECK_EQ(nr_gone(), NR);
    tear_down();
}

// In one bag, and no reader was ever in a section.
static void without_any_section_nothing_stays(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    for (uint16_t id = 0; id < NR; id++)
        CHECK_EQ(memslots_txn_delete(txn, 0, id), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_reclaim(ms);
    CHECK_EQ(nr_gone(), NR);
    CHECK_EQ(stats().releases_due, 0);
    tear_down();
}

int main(void)
{
    RUN(one_call_runs_a_thousand);
    RUN(so_does_synchronize);
    RUN(a_section_that_is_open_holds_back_what_came_after_it);
    RUN(without_any_section_nothing_stays);
    return test_result();
}

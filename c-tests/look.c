// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Looking at a table from outside: memslots_dump and the counters.

#define _POSIX_C_SOURCE 200809L // fileno
#include "test.h"

#include <unistd.h>

static char text[1 << 16];

static const char *dump(struct memslots *ms)
{
    FILE *file = tmpfile();
    REQUIRE(file);
    CHECK_EQ(memslots_dump(ms, fileno(file)), 0);
    rewind(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = 0;
    fclose(file);
    return text;
}

static int nr_lines_with(const char *where, const char *what)
{
    int nr = 0;

    for (const char *at = where; (at = strstr(at, what)); at += strlen(what))
        nr++;
    return nr;
}

static void the_dump_has_a_line_a_slot(void)
{
    struct memslots *ms = new_table();
    struct memslots_region rom = ram(12, 0x1234, 16);

    int empty = nr_lines_with(dump(ms), "\n");
    rom.flags = MEMSLOTS_READONLY;
    CHECK_EQ(memslots_set_region(ms, &rom, NULL), 0);
    for (uint32_t i = 0; i < 10; i++)
        set(ms, i, i * 16, 16);
    CHECK_EQ(nr_lines_with(dump(ms), "\n"), empty + 11);
    CHECK(strstr(text, "1234") != NULL);
    memslots_free(ms);
}

static void a_dump_that_cannot_be_written(void)
{
    struct memslots *ms = new_table();
    int pipes[2];

    set(ms, 0, 0, 1);
    CHECK_EQ(memslots_dump(ms, -1), -EBADF);
    REQUIRE(pipe(pipes) == 0);
    CHECK_EQ(memslots_dump(ms, pipes[0]), -EBADF); // not open for writing
    close(pipes[0]);
    close(pipes[1]);
    memslots_free(ms);
}

static struct memslots_stats stats_of(struct memslots *ms)
{
    struct memslots_stats stats;

    memset(&stats, 0xa5, sizeof(stats));
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    return stats;
}

static void the_table_s_counters(void)
{
    struct memslots_config config = default_config();
    config.nr_address_spaces = 2;
    struct memslots *ms = new_table_with(&config);
    struct memslots_stats stats = stats_of(ms);

    CHECK_EQ(stats.slots, 0);
    CHECK_EQ(stats.npages, 0);
    CHECK_EQ(stats.readers, 0);
    CHECK_EQ(stats.open_sections, 0);
    CHECK_EQ(stats.out_of_step, 0);

    uint64_t before = stats.publications;
    set(ms, 0, 0, 10);
    set(ms, 1u << 16, 0, 5);
    set(ms, 0, 0, 10); // nothing
    stats = stats_of(ms);
    CHECK_EQ(stats.publications, before + 2);
    CHECK_EQ(stats.slots, 2);
    CHECK_EQ(stats.npages, 15);
    CHECK(stats.index_bytes > 0);
    CHECK(stats.pool_bytes > 0);

    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(stats_of(ms).readers, 1);
    memslots_reader_free(reader);
    CHECK_EQ(stats_of(ms).readers, 0);
    memslots_free(ms);
}

static void how_far_a_section_lags(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 0, 0, 10);
    memslots_read_lock(reader);
    CHECK_EQ(stats_of(ms).open_sections, 1);
    CHECK_EQ(stats_of(ms).oldest_section_lag, 0);
    for (uint32_t i = 1; i <= 10; i++)
        set(ms, i, i * 100, 10);
    CHECK_EQ(stats_of(ms).oldest_section_lag, 10);
    CHECK(stats_of(ms).garbage_objects > 0); // the section holds what was replaced
    CHECK(stats_of(ms).garbage_bytes > 0);
    memslots_read_unlock(reader);
    CHECK_EQ(stats_of(ms).open_sections, 0);
    CHECK_EQ(stats_of(ms).oldest_section_lag, 0);
    memslots_synchronize(ms);
    CHECK_EQ(stats_of(ms).garbage_objects, 0);
    CHECK_EQ(stats_of(ms).garbage_bytes, 0);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// Memory does not grow with the number of changes, only with what there is.
static void churn_costs_no_memory(void)
{
    struct memslots *ms = new_table();
    const int rounds = under_valgrind() ? 2000 : 50000;

    for (uint32_t i = 0; i < 100; i++)
        set(ms, i, i * 100, 10);
    for (int i = 0; i < 1000; i++)
        memslots_move(ms, 0, 50, (5000 + (i & 1)) * PAGE);
    memslots_synchronize(ms);
    uint64_t settled = stats_of(ms).pool_bytes;
    for (int i = 0; i < rounds; i++)
        memslots_move(ms, 0, 50, (5000 + (i & 1)) * PAGE);
    memslots_synchronize(ms);
    CHECK(stats_of(ms).pool_bytes <= settled * 2);
    memslots_free(ms);
}

static void max_garbage_bounds_it(void)
{
    struct memslots_config config = default_config();
    config.max_garbage = 64 * 1024;
    struct memslots *ms = new_table_with(&config);

    for (uint32_t i = 0; i < 200; i++)
        set(ms, i, i * 100, 10);
    for (int i = 0; i < 2000; i++) {
        memslots_move(ms, 0, 50, (5000 + (i & 1)) * PAGE);
        CHECK(stats_of(ms).garbage_bytes <= 2 * config.max_garbage);
    }
    memslots_free(ms);
}

static struct memslots_reader_stats reader_stats_of(const struct memslots_reader *reader)
{
    struct memslots_reader_stats stats;

    CHECK_EQ(memslots_reader_get_stats(reader, &stats, sizeof(stats)), 0);
    return stats;
}

static void a_reader_s_counters(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    for (uint32_t i = 0; i < 100; i++)
        set(ms, i, i * 10, 10);
    CHECK_EQ(reader_stats_of(reader).sections, 0);
    CHECK_EQ(reader_stats_of(reader).misses, 0);
    for (uint64_t section = 0; section < 5; section++) {
        memslots_read_lock(reader);
        memslots_read_lock(reader); // nested: no section of its own
        for (uint64_t gfn = 0; gfn < 1000; gfn++)
            CHECK(memslots_find_gfn(reader, 0, gfn) != NULL);
        memslots_read_unlock(reader);
        memslots_read_unlock(reader);
    }
    CHECK_EQ(reader_stats_of(reader).sections, 5);
    CHECK_EQ(reader_stats_of(reader).misses,
             500); // one a slot a pass: the other nine pages are last-used hits
    memslots_reader_free(reader);
    memslots_free(ms);
}

// A search among so few costs less than a mispredicted branch: see FEW in src/reader.rs.
static void of_few_slots_one_found_twice_is_remembered(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    for (uint32_t i = 0; i < 16; i++)
        set(ms, i, i * 10, 10);
    memslots_read_lock(reader);
    for (uint64_t gfn = 0; gfn < 160; gfn++)
        CHECK(memslots_find_gfn(reader, 0, gfn) != NULL);
    memslots_read_unlock(reader);
    CHECK_EQ(reader_stats_of(reader).misses,
             32); // two a slot: the other eight pages are last-used hits
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(the_dump_has_a_line_a_slot);
    RUN(a_dump_that_cannot_be_written);
    RUN(the_table_s_counters);
    RUN(how_far_a_section_lags);
    RUN(churn_costs_no_memory);
    RUN(max_garbage_bounds_it);
    RUN(a_reader_s_counters);
    RUN(of_few_slots_one_found_twice_is_remembered);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Hooks that call back into their own table: refused or harmless, at its end too; and what was found with them: lists
// that are of one publication, deletes that hooks see before what takes their place, an errno that stays.

#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

struct owner {
    struct memslots *ms;
    struct memslots_reader *reader;
    int commits, releases;
    uint32_t kinds[8];
    bool ends_table, leaves_section_open, at_the_end;
};

static void on_commit(void *ctx, const struct memslots_change *change)
{
    struct owner *owner = ctx;
    struct memslots_stats stats;

    if (owner->commits < 8)
        owner->kinds[owner->commits] = change->kind;
    owner->commits++;
    CHECK_EQ(memslots_get_stats(owner->ms, &stats, sizeof(stats)), 0);
    if (owner->ends_table)
        memslots_free(owner->ms); // does nothing here
    if (owner->leaves_section_open)
        memslots_read_lock(owner->reader);
}

static void on_release(void *ctx, const struct memslot *gone)
{
    struct owner *owner = ctx;
    struct memslots_region region = ram(40000, 5000, 1);
    struct memslots_reader *reader;

    (void)gone;
    owner->releases++;
    region.slot = 900 + (uint32_t)owner->releases;
    region.guest_phys_addr += (uint64_t)owner->releases * PAGE;
    CHECK_EQ(memslots_set_region(owner->ms, &region, NULL), -EDEADLK);
    CHECK_EQ(memslots_reclaim(owner->ms), 0);
    if (owner->at_the_end)
        CHECK_EQ(memslots_reader_new(owner->ms, &reader), -EDEADLK);
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .commit = on_commit,
                                        .release = on_release};

static void make(struct owner *owner, uint32_t sync)
{
    struct memslots_config config = default_config();

    memset(owner, 0, sizeof(*owner));
    config.ops = &ops;
    config.ctx = owner;
    config.sync = sync;
    owner->ms = new_table_with(&config);
}

static void releases_at_the_end_are_hooks_too(void)
{
    struct owner owner;

    make(&owner, 0);
    for (uint32_t id = 0; id < 10; id++)
        CHECK_EQ(set(owner.ms, id, id * 10, 2), 0);
    for (uint16_t id = 0; id < 5; id++)
        CHECK_EQ(memslots_delete(owner.ms, 0, id), 0);
    owner.at_the_end = true;
    memslots_free(owner.ms);
    CHECK_EQ(owner.releases, 10);
}

static void a_hook_cannot_end_its_table(void)
{
    struct owner owner;

    make(&owner, 0);
    owner.ends_table = true;
    CHECK_EQ(set(owner.ms, 1, 10, 2), 0);
    owner.ends_table = false;
    CHECK_EQ(set(owner.ms, 2, 20, 2), 0);
    CHECK_EQ(owner.commits, 2);
    memslots_free(owner.ms);
    CHECK_EQ(owner.releases, 2);
}

static void a_section_that_a_hook_leaves_open_does_not_hang(void)
{
    struct owner owner;

    make(&owner, 1);
    REQUIRE(memslots_reader_new(owner.ms, &owner.reader) == 0);
    owner.leaves_section_open = true;
    alarm(60); // for ever is too long
    CHECK_EQ(set(owner.ms, 1, 10, 2), 0);
    CHECK_EQ(set(owner.ms, 2, 20, 2), -EDEADLK); // now it would wait for us
    alarm(0);
    memslots_read_unlock(owner.reader);
    memslots_reader_free(owner.reader);
    memslots_free(owner.ms);
}

static void a_replacement_deletes_first(void)
{
    struct owner owner;
    struct memslots_region region = ram(5, 100, 2);

    make(&owner, 0);
    CHECK_EQ(set(owner.ms, 5, 100, 4), 0);
    owner.commits = 0;
    CHECK_EQ(memslots_replace_all(owner.ms, 0, &region, NULL, 1, NULL), 0);
    CHECK_EQ(owner.commits, 2);
    CHECK_EQ(owner.kinds[0], MEMSLOTS_DELETE);
    CHECK_EQ(owner.kinds[1], MEMSLOTS_CREATE);
    memslots_free(owner.ms);
}

static atomic_bool stop;

static void *fill_and_empty(void *ms)
{
    struct memslots_region regions[20];

    for (uint32_t id = 0; id < 20; id++)
        regions[id] = ram(id, id * 10, 1);
    while (!atomic_load(&stop)) {
        memslots_replace_all(ms, 0, regions, NULL, 20, NULL);
        memslots_replace_all(ms, 0, NULL, NULL, 0, NULL);
    }
    return NULL;
}

static void a_list_of_regions_is_of_one_publication(void)
{
    struct memslots *ms = new_table_with(NULL);
    struct memslots_reader *reader;
    pthread_t thread;

    REQUIRE(memslots_reader_new(ms, &reader) == 0);
    atomic_store(&stop, false);
    REQUIRE(pthread_create(&thread, NULL, fill_and_empty, ms) == 0);
    for (int i = 0; i < (under_valgrind() ? 2000 : 500000); i++) {
        struct memslots_region out[20];
        for (int at = 0; at < 20; at++)
            out[at].slot = UINT32_MAX;
        size_t count = memslots_get_regions(reader, 0, out, 20), written = 0;
        while (written < 20 && out[written].slot != UINT32_MAX)
            written++;
        CHECK(count == written && (count == 0 || count == 20));
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void errno_stays(void)
{
    struct memslots *ms = new_table_with(NULL);

    errno = ECHILD;
    CHECK(memslots_dump(ms, -1) < 0);
    CHECK(memslots_attach_kvm(ms, 0) < 0);
    CHECK_EQ(errno, ECHILD);
    memslots_free(ms);
}

static void to_and_fro_takes_one_line(void)
{
    struct memslots *ms = new_table_with(NULL);
    struct memslots_stats stats;
    struct memslots_txn *txn;
    int refused = 0;

    CHECK_EQ(set(ms, 1, 10, 2), 0);
    REQUIRE(memslots_txn_begin(ms, &txn) == 0);
    for (int i = 0; i < (under_valgrind() ? 1000 : 200000); i++)
        refused |= memslots_txn_set_flags(txn, 0, 1, i & 1 ? 0 : MEMSLOTS_LOG_DIRTY_PAGES);
    CHECK_EQ(refused, 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    REQUIRE(memslots_get_stats(ms, &stats, sizeof(stats)) == 0);
    CHECK_EQ(stats.publications, 1); // the create
    memslots_free(ms);
}

int main(void)
{
    RUN(releases_at_the_end_are_hooks_too);
    RUN(a_hook_cannot_end_its_table);
    RUN(a_section_that_a_hook_leaves_open_does_not_hang);
    RUN(a_replacement_deletes_first);
    RUN(a_list_of_regions_is_of_one_publication);
    RUN(errno_stays);
    RUN(to_and_fro_takes_one_line);
    return test_result();
}

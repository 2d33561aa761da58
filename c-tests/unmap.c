// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The unmap hook: host memory that no slot maps any more and no reader can use, in exact pieces, each once.

#include "test.h"

#define MOST 16

static struct {
    uint64_t hva, size;
} told[MOST];
static int nr_told, nr_released;

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    REQUIRE(nr_told < MOST);
    told[nr_told].hva = hva;
    told[nr_told++].size = size;
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    CHECK_EQ(nr_told, 0); // all releases that are due come first
    nr_released++;
}

static struct memslots *table(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release, .unmap = unmap};
    struct memslots_config config = default_config();

    config.ops = &ops;
    config.nr_address_spaces = 2;
    nr_told = nr_released = 0;
    return new_table_with(&config);
}

// What has been told since the last look: nothing, or one piece, by frames above HVA.
static void check_told(struct memslots *ms, uint64_t gfn, uint64_t npages)
{
    memslots_synchronize(ms);
    CHECK_EQ(nr_told, npages ? 1 : 0);
    if (npages && nr_told) {
        CHECK_EQ(told[0].hva, HVA + gfn * PAGE);
        CHECK_EQ(told[0].size, npages * PAGE);
    }
    nr_told = 0;
}

static void merge_gives_up_nothing(void)
{
    struct memslots *ms = table();

    REQUIRE(set(ms, 1, 0, 16) == 0 && set(ms, 2, 16, 16) == 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 2), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_told(ms, 0, 0);
    CHECK_EQ(nr_released, 1); // the upper slot's life has ended
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    check_told(ms, 0, 32);
    memslots_free(ms);
    CHECK_EQ(nr_told, 0);
}

static void split_and_delete_gives_up_the_deleted_part(void)
{
    struct memslots *ms = table();

    REQUIRE(set(ms, 1, 0, 32) == 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 16 * PAGE, 2, NULL), 2);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_told(ms, 0, 16);
    memslots_free(ms);
    CHECK_EQ(nr_told, 1); // the rest, at the end
    CHECK_EQ(told[0].hva, HVA + 16 * PAGE);
    CHECK_EQ(told[0].size, 16 * PAGE);
}

static void shrinking_gives_up_the_tail(void)
{
    struct memslots *ms = table();

    REQUIRE(set(ms, 1, 0, 32) == 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, 20 * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    check_told(ms, 20, 12);
    CHECK_EQ(nr_released, 0);
    memslots_free(ms);
}

static void aliases_wait_for_the_last(void)
{
    struct memslots *ms = table();
    struct memslots_region alias = ram(1 << 16, 1000, 8); // in the other space

    alias.userspace_addr = HVA + 4 * PAGE;
    REQUIRE(set(ms, 1, 0, 16) == 0 && memslots_set_region(ms, &alias, NULL) == 0);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    memslots_synchronize(ms);
    CHECK_EQ(nr_told, 2); // but for the pages of the alias
    CHECK_EQ(told[0].hva, HVA);
    CHECK_EQ(told[0].size, 4 * PAGE);
    CHECK_EQ(told[1].hva, HVA + 12 * PAGE);
    CHECK_EQ(told[1].size, 4 * PAGE);
    nr_told = 0;
    CHECK_EQ(memslots_delete(ms, 1, 0), 0);
    check_told(ms, 4, 8);
    memslots_free(ms);
    CHECK_EQ(nr_told, 0);
}

static void a_reader_holds_it_back(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    REQUIRE(set(ms, 1, 0, 16) == 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    for (int i = 0; i < 20; i++)
        memslots_reclaim(ms);
    CHECK_EQ(nr_told, 0);
    memslots_read_unlock(reader);
    check_told(ms, 0, 16);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void what_is_mapped_again_is_left_out(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    REQUIRE(set(ms, 1, 0, 16) == 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(set(ms, 2, 4, 12), 0);
    memslots_read_unlock(reader);
    check_told(ms, 0, 4);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_told, 1);
    CHECK_EQ(told[0].hva, HVA + 4 * PAGE);
}

static void moves_and_flags_give_up_nothing(void)
{
    struct memslots *ms = table();

    REQUIRE(set(ms, 1, 0, 16) == 0);
    CHECK_EQ(memslots_move(ms, 0, 1, 100 * PAGE), 0);
    CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    check_told(ms, 0, 0);
    memslots_free(ms);
    CHECK_EQ(nr_told, 1);
}

int main(void)
{
    RUN(merge_gives_up_nothing);
    RUN(split_and_delete_gives_up_the_deleted_part);
    RUN(shrinking_gives_up_the_tail);
    RUN(aliases_wait_for_the_last);
    RUN(a_reader_holds_it_back);
    RUN(what_is_mapped_again_is_left_out);
    RUN(moves_and_flags_give_up_nothing);
    return test_result();
}

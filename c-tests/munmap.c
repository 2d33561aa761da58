// SPDX-License-Identifier: MIT OR Apache-2.0
//
// An unmap hook that calls munmap(): host memory goes when no slot maps it and no reader can still use
// it, each page once, and never a page that a slot still maps.

#define _DEFAULT_SOURCE // MAP_ANONYMOUS, mincore
#include "test.h"

#include <sys/mman.h>

enum { NR_PAGES = 64 };
static char *memory; // page i is what gfn i is mapped to
static char as_it_is[NR_PAGES + 1];
static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    CHECK(hva % PAGE == 0 && size > 0 && size % PAGE == 0);
    CHECK(hva >= (uintptr_t)memory && hva + size <= (uintptr_t)memory + NR_PAGES * PAGE);
    // No hook is called for a page twice: somebody else may have it by then.
    for (uint64_t page = (hva - (uintptr_t)memory) / PAGE; size > 0; page++, size -= PAGE) {
        CHECK(as_it_is[page] == 'm');
        as_it_is[page] = '-';
        CHECK(munmap(memory + page * PAGE, PAGE) == 0);
    }
}

static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release, .unmap = unmap};

static struct memslots *ms;
static struct memslots_reader *reader;

static struct memslots_region backed(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.userspace_addr = (uintptr_t)memory + gfn * PAGE;
    return region;
}

static int set_backed(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = backed(slot, gfn, npages);

    return memslots_set_region(ms, &region, NULL);
}

static void set_up(void)
{
    struct memslots_config config = default_config();

    memory =
        mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    memset(as_it_is, 'm', NR_PAGES);
    nr_released = 0;
    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
}

// Whether the pages of the slots that a reader finds are there to be used.
static void check_slots_are_backed(void)
{
    uint64_t hva;

    memslots_read_lock(reader);
    for (uint64_t gfn = 0; gfn < 2 * NR_PAGES; gfn++) {
        if (memslots_gpa_to_hva(reader, 0, gfn * PAGE, MEMSLOTS_WRITE, &hva, NULL) == 0)
            CHECK(as_it_is[(hva - (uintptr_t)memory) / PAGE] == 'm');
    }
    memslots_read_unlock(reader);
}

// Pages from `first` on: 'm' where one is mapped, '-' where it has gone.
static void check_pages(int line, uint64_t first, const char *want)
{
    memslots_synchronize(ms);
    check_slots_are_backed();
    if (strncmp(as_it_is + first, want, strlen(want)) != 0) {
        printf("    line %d: %.*s, should be %s\n", line, (int)strlen(want), as_it_is + first,
               want);
        test_failures++;
    }
    for (size_t i = 0; i < strlen(want); i++) {
        unsigned char in_core;
        bool is_there = mincore(memory + (first + i) * PAGE, PAGE, &in_core) == 0;
        CHECK_EQ(is_there, want[i] == 'm');
    }
}
#define CHECK_PAGES(first, want) check_pages(__LINE__, first, want)

// At the end all that a slot ever mapped has gone, and nothing else.
static void tear_down(const char *want)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK(strncmp(as_it_is, want, strlen(want)) == 0);
    for (size_t i = strlen(want); i < NR_PAGES; i++)
        CHECK(as_it_is[i] == 'm');
    for (size_t i = 0; i < NR_PAGES; i++) {
        if (as_it_is[i] == 'm')
            munmap(memory + i * PAGE, PAGE);
    }
}

static void after_a_merge_nothing_goes(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 4), 0);
    CHECK_EQ(set_backed(1, 4, 4), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_merge(txn, 0, 0, 1), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_PAGES(0, "mmmmmmmm");
    CHECK_EQ(nr_released, 1); // the upper slot's life is over, and its memory in use
    CHECK_EQ(memslots_delete(ms, 0, 0), 0);
    CHECK_PAGES(0, "--------m");
    tear_down("--------");
}

static void after_a_split_the_part_that_is_deleted(void)
{
    set_up();
    CHECK_EQ(set_backed(2, 0, 8), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 2, 4 * PAGE, 3, NULL), 3);
    CHECK_EQ(memslots_txn_delete(txn, 0, 2), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_PAGES(0, "----mmmm");
    CHECK_EQ(nr_released, 1);
    tear_down("--------");
}

static void after_a_split_by_itself_nothing(void)
{
    set_up();
    CHECK_EQ(set_backed(2, 0, 8), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 2, 4 * PAGE, 3, NULL), 3);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_PAGES(0, "mmmmmmmm");
    CHECK_EQ(memslots_delete(ms, 0, 3), 0);
    CHECK_PAGES(0, "mmmm----");
    tear_down("--------");
}

static void the_tail_that_a_resize_gives_up(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 8), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_resize(txn, 0, 0, 5 * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_PAGES(0, "mmmmm---m");
    CHECK_EQ(nr_released, 0);
    tear_down("--------");
}

static void not_while_another_slot_has_it(void)
{
    set_up();
    struct memslots_region alias = backed(1, 2, 4); // pages 2 to 5, elsewhere in the guest

    alias.guest_phys_addr = 100 * PAGE;
    CHECK_EQ(set_backed(0, 0, 4), 0);
    CHECK_EQ(memslots_set_region(ms, &alias, NULL), 0);
    CHECK_EQ(memslots_delete(ms, 0, 0), 0);
    CHECK_PAGES(0, "--mmmmm");
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_PAGES(0, "------m");
    tear_down("------");
}

static void not_after_a_move(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 4), 0);
    CHECK_EQ(memslots_move(ms, 0, 0, 50 * PAGE), 0);
    CHECK_PAGES(0, "mmmm");
    tear_down("----");
}

static void not_while_a_section_is_open(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 4), 0);
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 0);
    CHECK_EQ(memslots_delete(ms, 0, 0), 0);
    memslots_reclaim(ms);
    CHECK_EQ(set_backed(5, 40, 1), 0);
    CHECK(slot && as_it_is[0] == 'm');
    memory[0] = 1; // and it can be used
    memslots_read_unlock(reader);
    CHECK_PAGES(0, "----m");
    CHECK_EQ(memslots_delete(ms, 0, 5), 0);
    CHECK_PAGES(38, "mm-m");
    memslots_reader_free(reader);
    memslots_free(ms);
    munmap(memory, NR_PAGES * PAGE);
}

static void what_is_mapped_again_stays(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 8), 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_delete(ms, 0, 0), 0);
    CHECK_EQ(set_backed(1, 3, 2), 0);
    memslots_read_unlock(reader);
    CHECK_PAGES(0, "---mm---m");
    tear_down("--------");
}

static void a_refused_update_unmaps_nothing(void)
{
    set_up();
    CHECK_EQ(set_backed(0, 0, 4), 0);
    CHECK_EQ(set_backed(1, 2, 4), -EEXIST);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 0), 0);
    memslots_txn_abort(txn);
    CHECK_PAGES(0, "mmmmmm");
    tear_down("----");
}

int main(void)
{
    RUN(after_a_merge_nothing_goes);
    RUN(after_a_split_the_part_that_is_deleted);
    RUN(after_a_split_by_itself_nothing);
    RUN(the_tail_that_a_resize_gives_up);
    RUN(not_while_another_slot_has_it);
    RUN(not_after_a_move);
    RUN(not_while_a_section_is_open);
    RUN(what_is_mapped_again_stays);
    RUN(a_refused_update_unmaps_nothing);
    return test_result();
}

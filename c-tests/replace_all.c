// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_replace_all: a whole address space as it shall be; the library works out the difference.

#include "test.h"

static intptr_t released[64];
static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    if (nr_released < 64)
        released[nr_released++] = (intptr_t)gone->opaque;
}

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};
    struct memslots_config config = default_config();

    config.ops = &ops;
    config.nr_address_spaces = 2;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    nr_released = 0;
    for (uint32_t i = 1; i <= 3; i++) {
        struct memslots_region region = ram(i, i * UINT64_C(100), 10);
        REQUIRE(memslots_set_region(ms, &region, (void *)(intptr_t)i) == 0);
    }
    set(ms, 1u << 16, 0, 10);
}

static void tear_down(void)
{
    CHECK_EQ(id_at(reader, 1, 0), 0); // the other space is none of its business
    CHECK_EQ(memslots_count(reader, 1), 1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static intptr_t opaque_at(uint64_t gfn)
{
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, gfn);
    intptr_t opaque = slot ? (intptr_t)slot->opaque : -1;
    memslots_read_unlock(reader);
    return opaque;
}

static void the_same_again_is_nothing(void)
{
    struct memslots_region to[] = {ram(3, 300, 10), ram(1, 100, 10), ram(2, 200, 10)};

    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, 3, NULL), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(opaque_at(100), 1);
    tear_down();
}

static void all_differences_at_once(void)
{
    struct memslots_region to[] = {ram(5, 500, 5), ram(1, 100, 10), ram(2, 250, 10),
                                   ram(3, 300, 20)};
    void *opaques[] = {(void *)50, (void *)60, (void *)70, (void *)80};

    set_up();
    to[1].flags = MEMSLOTS_LOG_DIRTY_PAGES;
    to[2].userspace_addr = HVA + 200 * PAGE; // as it was: a move
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_replace_all(ms, 0, to, opaques, 4, NULL), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation + 2);
    CHECK_EQ(memslots_count(reader, 0), 4);
    CHECK_EQ(memslots_npages(reader, 0), 45);
    CHECK_EQ(opaque_at(500), 50);
    CHECK_EQ(opaque_at(100), 1); // flags only: keeps its opaque
    CHECK_EQ(opaque_at(250), 2); // so does a move
    CHECK_EQ(opaque_at(200), -1);
    CHECK_EQ(opaque_at(319), 80); // another size: another slot
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    CHECK_EQ(released[0], 3);
    tear_down();
}

static void another_hva_is_another_slot(void)
{
    struct memslots_region to[] = {ram(1, 100, 10), ram(2, 200, 10), ram(3, 300, 10)};
    void *opaques[] = {(void *)60, (void *)70, (void *)80};

    set_up();
    to[1].userspace_addr += PAGE;
    CHECK_EQ(memslots_replace_all(ms, 0, to, opaques, 3, NULL), 0);
    CHECK_EQ(opaque_at(100), 1);
    CHECK_EQ(opaque_at(200), 70);
    CHECK_EQ(opaque_at(300), 3);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    CHECK_EQ(released[0], 2);
    tear_down();
}

static void slots_exchange_places(void)
{
    struct memslots_region to[] = {ram(1, 200, 10), ram(2, 300, 10), ram(3, 100, 10)};

    set_up();
    to[0].userspace_addr = HVA + 100 * PAGE;
    to[1].userspace_addr = HVA + 200 * PAGE;
    to[2].userspace_addr = HVA + 300 * PAGE;
    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, 3, NULL), 0);
    CHECK_EQ(opaque_at(200), 1);
    CHECK_EQ(opaque_at(300), 2);
    CHECK_EQ(opaque_at(100), 3);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 0);
    tear_down();
}

static void by_nothing(void)
{
    set_up();
    CHECK_EQ(memslots_replace_all(ms, 0, NULL, NULL, 0, NULL), 0);
    CHECK_EQ(memslots_count(reader, 0), 0);
    CHECK_EQ(memslots_npages(reader, 0), 0);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 3);
    tear_down();
}

static void refused(const struct memslots_region *to, size_t n, int want, size_t culprit)
{
    size_t failed_at = 99;
    uint64_t generation = memslots_generation(reader, 0);

    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, n, &failed_at), want);
    CHECK_EQ(failed_at, culprit);
    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, n, NULL), want);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 3);
    for (int i = 1; i <= 3; i++)
        CHECK_EQ(opaque_at((uint64_t)i * 100), i);
}

static void the_first_culprit_is_named(void)
{
    struct memslots_region overlapping[] = {ram(4, 100, 10), ram(5, 0, 10), ram(6, 105, 10),
                                            ram(7, 107, 10)};
    struct memslots_region twice[] = {ram(4, 100, 10), ram(5, 0, 10), ram(4, 500, 10)};
    struct memslots_region empty[] = {ram(4, 100, 10), ram(5, 0, 0)};
    struct memslots_region unaligned[] = {ram(4, 100, 10), ram(5, 0, 10), ram(6, 900, 1)};
    struct memslots_region bad_id[] = {ram(32764, 100, 10), ram(5, 0, 10)};

    unaligned[1].guest_phys_addr = 1;
    set_up();
    refused(overlapping, 4, -EEXIST, 2);
    refused(twice, 3, -EEXIST, 2);
    refused(empty, 2, -EINVAL, 1);
    refused(unaligned, 3, -EINVAL, 1);
    refused(bad_id, 2, -EINVAL, 0);
    CHECK_EQ(memslots_replace_all(ms, 2, overlapping, NULL, 1, NULL), -EINVAL);
    tear_down();
}

static void hundreds(void)
{
    enum { NR = 500 };
    static struct memslots_region to[NR];

    set_up();
    for (int round = 1; round <= 5; round++) {
        for (uint32_t i = 0; i < NR; i++) { // every round each slot stands where another stood
            uint64_t place = (i * 7 + (uint64_t)round) % NR;
            to[i] = ram(i, 1000 + place * 4, 3);
            to[i].userspace_addr = HVA + i * 4 * PAGE;
        }
        CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, NR, NULL), 0);
        CHECK_EQ(memslots_count(reader, 0), NR);
        for (uint32_t i = 0; i < NR; i++)
            CHECK_EQ(id_at(reader, 0, to[i].guest_phys_addr / PAGE + 2), i);
    }
    tear_down();
}

int main(void)
{
    RUN(the_same_again_is_nothing);
    RUN(all_differences_at_once);
    RUN(another_hva_is_another_slot);
    RUN(slots_exchange_places);
    RUN(by_nothing);
    RUN(the_first_culprit_is_named);
    RUN(hundreds);
    return test_result();
}

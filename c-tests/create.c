// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_create: only ever creates, and finds the lowest free id when asked to.

#include "test.h"

static int create(struct memslots *ms, uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    return memslots_create(ms, &region, NULL);
}

static void returns_the_id(void)
{
    struct memslots *ms = new_table();

    CHECK_EQ(create(ms, 17, 0, 1), 17);
    CHECK_EQ(create(ms, 32763, 1, 1), 32763);
    memslots_free(ms);
}

static void a_taken_id_is_eexist(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(create(ms, 17, 0, 1), 17);
    CHECK_EQ(create(ms, 17, 0, 1), -EEXIST); // set_region would do nothing
    CHECK_EQ(create(ms, 17, 9, 1), -EEXIST); // set_region would move it
    CHECK_EQ(create(ms, 18, 0, 1), -EEXIST); // the range is taken
    CHECK_EQ(memslots_count(reader, 0), 1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void checks_what_set_region_checks(void)
{
    struct memslots *ms = new_table();
    struct memslots_region region = ram(1, 0, 1);

    CHECK_EQ(create(ms, 0, 0, 0), -EINVAL);
    CHECK_EQ(create(ms, 32764, 0, 1), -EINVAL);
    CHECK_EQ(create(ms, 0x10000, 0, 1), -EINVAL);
    region.flags = 1u << 20;
    CHECK_EQ(memslots_create(ms, &region, NULL), -EINVAL);
    region = ram(1, 0, 1);
    region.userspace_addr++;
    CHECK_EQ(memslots_create(ms, &region, NULL), -EINVAL);
    memslots_free(ms);
}

static void any_is_the_lowest_free_id(void)
{
    struct memslots *ms = new_table();

    for (uint32_t i = 0; i < 100; i++)
        CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, i * 2, 1), i);
    CHECK_EQ(memslots_delete(ms, 0, 70), 0);
    CHECK_EQ(memslots_delete(ms, 0, 7), 0);
    CHECK_EQ(memslots_delete(ms, 0, 64), 0);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1001, 1), 7);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1003, 1), 64);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1005, 1), 70);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1007, 1), 100);
    CHECK_EQ(create(ms, 102, 1009, 1), 102);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1011, 1), 101);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 1013, 1), 103);
    memslots_free(ms);
}

static void any_is_no_id(void)
{
    struct memslots_config config = default_config();
    config.max_slots = 65535;
    struct memslots *ms = new_table_with(&config);

    CHECK_EQ(set(ms, MEMSLOTS_ID_ANY, 0, 1), -EINVAL);
    CHECK_EQ(memslots_delete(ms, 0, MEMSLOTS_ID_ANY), -ENOENT);
    memslots_free(ms);
}

static void a_refused_create_leaks_no_id(void)
{
    struct memslots *ms = new_table();

    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 0, 10), 0);
    for (int i = 0; i < 1000; i++) {
        CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 5, 10), -EEXIST);
        CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 20, 0), -EINVAL);
    }
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 20, 1), 1);
    memslots_free(ms);
}

static void a_full_table_is_enospc(void)
{
    struct memslots_config config = default_config();
    config.max_slots = 100;
    struct memslots *ms = new_table_with(&config);

    for (uint32_t i = 0; i < 100; i++)
        CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, i, 1), i);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 500, 1), -ENOSPC);
    CHECK_EQ(create(ms, 100, 500, 1), -EINVAL);
    CHECK_EQ(memslots_delete(ms, 0, 99), 0);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 500, 1), 99);
    memslots_free(ms);
}

static void every_address_space_has_its_own_ids(void)
{
    struct memslots_config config = default_config();
    config.nr_address_spaces = 2;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 0, 10), 0);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY, 10, 10), 1);
    CHECK_EQ(create(ms, MEMSLOTS_ID_ANY | 1u << 16, 0, 10), 0);
    CHECK_EQ(id_at(reader, 1, 9), 0);
    CHECK_EQ(id_at(reader, 1, 10), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(returns_the_id);
    RUN(a_taken_id_is_eexist);
    RUN(checks_what_set_region_checks);
    RUN(any_is_the_lowest_free_id);
    RUN(any_is_no_id);
    RUN(a_refused_create_leaks_no_id);
    RUN(a_full_table_is_enospc);
    RUN(every_address_space_has_its_own_ids);
    return test_result();
}

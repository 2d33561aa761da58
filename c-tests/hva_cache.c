// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_hva_cache: a range's host address, kept as long as the table does not change.

#include "test.h"

static struct memslots *ms;
static struct memslots_reader *reader;
static struct memslots_hva_cache cache;

static void set_up(void)
{
    struct memslots_region rom = ram(2, 200, 10);

    ms = new_table();
    reader = new_reader(ms);
    rom.flags = MEMSLOTS_READONLY;
    set(ms, 1, 100, 10);
    memslots_set_region(ms, &rom, NULL);
    set(ms, 3, 110, 10); // touches slot 1
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static int init(uint64_t gpa, uint64_t len, uint32_t access)
{
    memslots_read_lock(reader);
    int err = memslots_hva_cache_init(&cache, reader, 0, gpa, len, access);
    memslots_read_unlock(reader);
    return err;
}

static int get(uint64_t *hva)
{
    memslots_read_lock(reader);
    int err = memslots_hva_cache_get(&cache, reader, hva);
    memslots_read_unlock(reader);
    return err;
}

static void gives_the_address(void)
{
    uint64_t hva = 0;

    set_up();
    CHECK_EQ(init(100 * PAGE + 16, 64, MEMSLOTS_WRITE), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(get(&hva), 0);
        CHECK_EQ(hva, HVA + 100 * PAGE + 16);
    }
    tear_down();
}

static void within_one_slot(void)
{
    set_up();
    CHECK_EQ(init(100 * PAGE, 10 * PAGE, MEMSLOTS_WRITE), 0);
    CHECK_EQ(init(100 * PAGE, 10 * PAGE + 1, MEMSLOTS_WRITE), -ERANGE);
    CHECK_EQ(init(109 * PAGE, PAGE + 1, MEMSLOTS_WRITE), -ERANGE);
    CHECK_EQ(init(119 * PAGE, PAGE + 1, MEMSLOTS_WRITE), -ERANGE);
    CHECK_EQ(init(119 * PAGE, UINT64_MAX, MEMSLOTS_WRITE), -EINVAL); // wraps
    CHECK_EQ(init(119 * PAGE, UINT64_MAX - 119 * PAGE, MEMSLOTS_WRITE), -ERANGE);
    CHECK_EQ(init(119 * PAGE, 0, MEMSLOTS_WRITE), -EINVAL);
    CHECK_EQ(init(50 * PAGE, 8, MEMSLOTS_WRITE), -ENOENT);
    CHECK_EQ(init(200 * PAGE, 8, MEMSLOTS_WRITE), -EROFS);
    CHECK_EQ(init(200 * PAGE, 8, MEMSLOTS_READ), 0);
    tear_down();
}

static void follows_the_table(void)
{
    uint64_t hva = 0;

    set_up();
    CHECK_EQ(init(105 * PAGE, 8, MEMSLOTS_WRITE), 0);
    CHECK_EQ(get(&hva), 0);
    CHECK_EQ(hva, HVA + 105 * PAGE);

    set(ms, 4, 500, 1); // another slot's change
    CHECK_EQ(get(&hva), 0);
    CHECK_EQ(hva, HVA + 105 * PAGE);

    memslots_delete(ms, 0, 1);
    hva = 77;
    CHECK_EQ(get(&hva), -ENOENT);
    CHECK_EQ(hva, 77);

    struct memslots_region elsewhere = ram(9, 100, 10);
    elsewhere.userspace_addr = HVA + (UINT64_C(1) << 30);
    CHECK_EQ(memslots_set_region(ms, &elsewhere, NULL), 0);
    CHECK_EQ(get(&hva), 0);
    CHECK_EQ(hva, elsewhere.userspace_addr + 5 * PAGE);
    tear_down();
}

static void a_range_that_no_longer_fits(void)
{
    uint64_t hva = 77;

    set_up();
    CHECK_EQ(init(105 * PAGE, 5 * PAGE, MEMSLOTS_WRITE), 0);
    memslots_delete(ms, 0, 1);
    CHECK_EQ(set(ms, 1, 100, 9), 0);
    CHECK_EQ(get(&hva), -ERANGE);
    CHECK_EQ(hva, 77);
    tear_down();
}

static void of_a_second_address_space(void)
{
    struct memslots_config config = default_config();
    uint64_t hva = 0;

    config.nr_address_spaces = 2;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    set(ms, 1u << 16, 0, 10);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, 8, MEMSLOTS_READ), -ENOENT);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 1, 0, 8, MEMSLOTS_READ), 0);
    CHECK_EQ(memslots_hva_cache_get(&cache, reader, &hva), 0);
    CHECK_EQ(hva, HVA);
    memslots_read_unlock(reader);
    memslots_delete(ms, 1, 0);
    CHECK_EQ(get(&hva), -ENOENT);
    tear_down();
}

static void shared_by_readers(void)
{
    uint64_t hva = 0;

    set_up();
    struct memslots_reader *other = new_reader(ms);
    CHECK_EQ(init(100 * PAGE, 8, MEMSLOTS_WRITE), 0);
    memslots_read_lock(other);
    CHECK_EQ(memslots_hva_cache_get(&cache, other, &hva), 0);
    CHECK_EQ(hva, HVA + 100 * PAGE);
    memslots_read_unlock(other);
    memslots_reader_free(other);
    tear_down();
}

int main(void)
{
    RUN(gives_the_address);
    RUN(within_one_slot);
    RUN(follows_the_table);
    RUN(a_range_that_no_longer_fits);
    RUN(of_a_second_address_space);
    RUN(shared_by_readers);
    return test_result();
}

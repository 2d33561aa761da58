// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_set_region decides by itself what a region means: create, delete, move, flags, nothing.

#include "test.h"

struct fixture {
    struct memslots *ms;
    struct memslots_reader *reader;
};

static struct fixture set_up(void)
{
    struct memslots *ms = new_table();

    REQUIRE(set(ms, 3, 100, 10) == 0);
    return (struct fixture){ms, new_reader(ms)};
}

static void tear_down(struct fixture *f)
{
    memslots_reader_free(f->reader);
    memslots_free(f->ms);
}

static void creates_where_the_id_is_free(void)
{
    struct fixture f = set_up();
    int opaque;
    struct memslots_region region = ram(9, 200, 5);

    region.flags = MEMSLOTS_READONLY;
    CHECK_EQ(memslots_set_region(f.ms, &region, &opaque), 0);
    memslots_read_lock(f.reader);
    const struct memslot *slot = memslots_find_id(f.reader, 0, 9);
    REQUIRE(slot);
    CHECK_EQ(slot->base_gfn, 200);
    CHECK_EQ(slot->npages, 5);
    CHECK_EQ(slot->userspace_addr, HVA + 200 * PAGE);
    CHECK_EQ(slot->flags, MEMSLOTS_READONLY);
    CHECK_EQ(slot->id, 9);
    CHECK_EQ(slot->as_id, 0);
    CHECK_EQ(slot->guest_memfd, -1);
    CHECK(slot->opaque == &opaque);
    memslots_read_unlock(f.reader);
    CHECK_EQ(memslots_count(f.reader, 0), 2);
    CHECK_EQ(memslots_npages(f.reader, 0), 15);
    tear_down(&f);
}

static void deletes_with_size_zero(void)
{
    struct fixture f = set_up();

    CHECK_EQ(set(f.ms, 3, 0, 0), 0);
    CHECK_EQ(id_at(f.reader, 0, 100), -1);
    CHECK_EQ(memslots_count(f.reader, 0), 0);
    CHECK_EQ(memslots_npages(f.reader, 0), 0);
    CHECK_EQ(set(f.ms, 3, 0, 0), -EINVAL);
    tear_down(&f);
}

static void moves_where_the_gpa_differs(void)
{
    struct fixture f = set_up();
    struct memslots_region region = ram(3, 105, 10);

    region.userspace_addr = HVA + 100 * PAGE;
    CHECK_EQ(memslots_set_region(f.ms, &region, NULL), 0);
    CHECK_EQ(id_at(f.reader, 0, 104), -1);
    CHECK_EQ(id_at(f.reader, 0, 114), 3);
    CHECK_EQ(memslots_npages(f.reader, 0), 10);
    tear_down(&f);
}

static void a_move_may_carry_flags(void)
{
    struct fixture f = set_up();
    struct memslots_region region = ram(3, 300, 10);

    region.userspace_addr = HVA + 100 * PAGE;
    region.flags = MEMSLOTS_LOG_DIRTY_PAGES;
    CHECK_EQ(memslots_set_region(f.ms, &region, NULL), 0);
    memslots_read_lock(f.reader);
    const struct memslot *slot = memslots_find_gfn(f.reader, 0, 300);
    REQUIRE(slot);
    CHECK_EQ(slot->flags, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_read_unlock(f.reader);
    tear_down(&f);
}

static void changes_flags_in_place(void)
{
    struct fixture f = set_up();
    struct memslots_region region = ram(3, 100, 10);

    memslots_read_lock(f.reader);
    const struct memslot *before = memslots_find_id(f.reader, 0, 3);
    region.flags = MEMSLOTS_LOG_DIRTY_PAGES;
    CHECK_EQ(memslots_set_region(f.ms, &region, NULL), 0);
    const struct memslot *after = memslots_find_id(f.reader, 0, 3);
    REQUIRE(before && after);
    CHECK(before != after); // a published slot never changes
    CHECK_EQ(before->flags, 0);
    CHECK_EQ(after->flags, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_read_unlock(f.reader);
    tear_down(&f);
}

static void nothing_is_nothing(void)
{
    struct fixture f = set_up();
    uint64_t generation = memslots_generation(f.reader, 0);

    memslots_read_lock(f.reader);
    const struct memslot *before = memslots_find_id(f.reader, 0, 3);
    CHECK_EQ(set(f.ms, 3, 100, 10), 0);
    CHECK(memslots_find_id(f.reader, 0, 3) == before);
    memslots_read_unlock(f.reader);
    CHECK_EQ(memslots_generation(f.reader, 0), generation);
    tear_down(&f);
}

static void opaque_counts_only_on_create(void)
{
    struct fixture f = set_up();
    int first, second;
    struct memslots_region region = ram(4, 500, 1);

    CHECK_EQ(memslots_set_region(f.ms, &region, &first), 0);
    region.flags = MEMSLOTS_LOG_DIRTY_PAGES;
    CHECK_EQ(memslots_set_region(f.ms, &region, &second), 0);
    region.guest_phys_addr += PAGE;
    CHECK_EQ(memslots_set_region(f.ms, &region, NULL), 0);
    memslots_read_lock(f.reader);
    const struct memslot *slot = memslots_find_gfn(f.reader, 0, 501);
    REQUIRE(slot);
    CHECK(slot->opaque == &first);
    memslots_read_unlock(f.reader);
    tear_down(&f);
}

static void the_named_calls_do_the_same(void)
{
    struct fixture f = set_up();

    CHECK_EQ(memslots_move(f.ms, 0, 3, 50 * PAGE), 0);
    CHECK_EQ(id_at(f.reader, 0, 59), 3);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 3, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    memslots_read_lock(f.reader);
    CHECK_EQ(memslots_find_id(f.reader, 0, 3)->flags, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_read_unlock(f.reader);
    CHECK_EQ(memslots_delete(f.ms, 0, 3), 0);
    CHECK_EQ(memslots_count(f.reader, 0), 0);
    tear_down(&f);
}

static void the_named_calls_say_enoent(void)
{
    struct fixture f = set_up();

    CHECK_EQ(memslots_delete(f.ms, 0, 4), -ENOENT);
    CHECK_EQ(memslots_move(f.ms, 0, 4, 0), -ENOENT);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 4, 0), -ENOENT);
    CHECK_EQ(memslots_delete(f.ms, 1, 3), -EINVAL);
    CHECK_EQ(memslots_move(f.ms, 1, 3, 0), -EINVAL);
    CHECK_EQ(memslots_set_flags(f.ms, 1, 3, 0), -EINVAL);
    tear_down(&f);
}

static void the_named_calls_check_as_well(void)
{
    struct fixture f = set_up();

    CHECK_EQ(set(f.ms, 4, 200, 10), 0);
    CHECK_EQ(memslots_move(f.ms, 0, 3, 195 * PAGE), -EEXIST);
    CHECK_EQ(memslots_move(f.ms, 0, 3, 195 * PAGE + 1), -EINVAL);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 3, MEMSLOTS_READONLY), -EINVAL);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 3, 8), -EINVAL);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 3, MEMSLOTS_INVALID), -EINVAL);
    uint64_t generation = memslots_generation(f.reader, 0);
    CHECK_EQ(memslots_move(f.ms, 0, 3, 100 * PAGE), 0);
    CHECK_EQ(memslots_set_flags(f.ms, 0, 3, 0), 0);
    CHECK_EQ(memslots_generation(f.reader, 0), generation);
    tear_down(&f);
}

int main(void)
{
    RUN(creates_where_the_id_is_free);
    RUN(deletes_with_size_zero);
    RUN(moves_where_the_gpa_differs);
    RUN(a_move_may_carry_flags);
    RUN(changes_flags_in_place);
    RUN(nothing_is_nothing);
    RUN(opaque_counts_only_on_create);
    RUN(the_named_calls_do_the_same);
    RUN(the_named_calls_say_enoent);
    RUN(the_named_calls_check_as_well);
    return test_result();
}

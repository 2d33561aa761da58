// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_apply: a list of changes, all or none, and which of them was refused.

#include "test.h"

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(void)
{
    ms = new_table();
    reader = new_reader(ms);
    set(ms, 1, 100, 10);
    set(ms, 2, 200, 10);
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void all_in_order(void)
{
    int first, second;
    void *opaques[] = {NULL, &first, &second};
    struct memslots_region changes[] = {ram(1, 0, 0), ram(3, 105, 10), ram(4, 300, 1)};

    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_apply(ms, changes, opaques, 3, NULL), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation + 1);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    CHECK_EQ(id_at(reader, 0, 105), 3);
    memslots_read_lock(reader);
    CHECK(memslots_find_id(reader, 0, 3)->opaque == &first);
    CHECK(memslots_find_id(reader, 0, 4)->opaque == &second);
    memslots_read_unlock(reader);
    tear_down();
}

static void one_is_refused_none_is_made(void)
{
    struct memslots_region changes[] = {ram(3, 300, 10), ram(1, 0, 0), ram(4, 305, 1),
                                        ram(5, 9, 1)};
    size_t failed_at = 99;

    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_apply(ms, changes, NULL, 4, &failed_at), -EEXIST);
    CHECK_EQ(failed_at, 2);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 2);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    CHECK_EQ(memslots_apply(ms, changes, NULL, 4, NULL), -EEXIST);
    tear_down();
}

static void each_kind_of_refusal(void)
{
    struct memslots_region changes[3];
    size_t failed_at;

    set_up();
    for (size_t at = 0; at < 3; at++) {
        for (int bad = 0; bad < 3; bad++) {
            for (uint32_t i = 0; i < 3; i++)
                changes[i] = ram(10 + i, 1000 + 10 * (uint64_t)i, 10);
            if (bad == 0)
                changes[at].flags = 1u << 30;
            if (bad == 1)
                changes[at].memory_size = 0; // delete what is not there
            if (bad == 2)
                changes[at].slot |= 7u << 16;
            failed_at = 99;
            CHECK_EQ(memslots_apply(ms, changes, NULL, 3, &failed_at), -EINVAL);
            CHECK_EQ(failed_at, at);
        }
    }
    CHECK_EQ(memslots_count(reader, 0), 2);
    tear_down();
}

static void nothing_to_apply(void)
{
    struct memslots_region change = ram(1, 100, 10);

    set_up();
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(memslots_apply(ms, NULL, NULL, 0, NULL), 0);
    CHECK_EQ(memslots_apply(ms, &change, NULL, 1, NULL), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    tear_down();
}

static void the_same_slot_twice(void)
{
    struct memslots_region changes[] = {ram(3, 300, 10), ram(3, 0, 0), ram(3, 400, 20)};

    set_up();
    CHECK_EQ(memslots_apply(ms, changes, NULL, 3, NULL), 0);
    CHECK_EQ(id_at(reader, 0, 300), -1);
    CHECK_EQ(id_at(reader, 0, 419), 3);
    CHECK_EQ(memslots_count(reader, 0), 3);
    tear_down();
}

static int refuse_slot_5(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    return change->new_slot && change->new_slot->id == 5 ? -EIO : 0;
}

static void a_hook_s_refusal_is_placed_too(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .prepare = refuse_slot_5};
    struct memslots_config config = default_config();
    struct memslots_region changes[] = {ram(3, 300, 10), ram(5, 400, 10), ram(6, 500, 1)};
    size_t failed_at = 99;

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    CHECK_EQ(memslots_apply(ms, changes, NULL, 3, &failed_at), -EIO);
    CHECK_EQ(failed_at, 1);
    CHECK_EQ(memslots_count(reader, 0), 0);
    tear_down();
}

int main(void)
{
    RUN(all_in_order);
    RUN(one_is_refused_none_is_made);
    RUN(each_kind_of_refusal);
    RUN(nothing_to_apply);
    RUN(the_same_slot_twice);
    RUN(a_hook_s_refusal_is_placed_too);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Finding one slot: by gfn, by gfn or the one below, by id, by hva.

#include "test.h"

static void gfn(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 10);
    set(ms, 2, 110, 1);
    set(ms, 3, 200, 5);
    CHECK_EQ(id_at(reader, 0, 0), -1);
    CHECK_EQ(id_at(reader, 0, 99), -1);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    CHECK_EQ(id_at(reader, 0, 109), 1);
    CHECK_EQ(id_at(reader, 0, 110), 2);
    CHECK_EQ(id_at(reader, 0, 111), -1);
    CHECK_EQ(id_at(reader, 0, 204), 3);
    CHECK_EQ(id_at(reader, 0, 205), -1);
    CHECK_EQ(id_at(reader, 0, UINT64_MAX), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// A miss in between leaves the last-used slot alone; a hit must not outlive the slot.
static void gfn_follows_every_change(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 10);
    CHECK_EQ(id_at(reader, 0, 105), 1);
    CHECK_EQ(id_at(reader, 0, 50), -1);
    CHECK_EQ(id_at(reader, 0, 105), 1);
    memslots_move(ms, 0, 1, 50 * PAGE);
    CHECK_EQ(id_at(reader, 0, 105), -1);
    CHECK_EQ(id_at(reader, 0, 55), 1);
    memslots_delete(ms, 0, 1);
    CHECK_EQ(id_at(reader, 0, 55), -1);
    set(ms, 2, 55, 1);
    CHECK_EQ(id_at(reader, 0, 55), 2);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// Inside one section, too: each lookup answers from the newest published state.
static void gfn_follows_inside_one_section(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 10);
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 100);
    REQUIRE(slot);
    memslots_delete(ms, 0, 1);
    CHECK(memslots_find_gfn(reader, 0, 100) == NULL);
    CHECK_EQ(slot->base_gfn, 100); // still there to be read
    CHECK_EQ(slot->npages, 10);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static int approx(struct memslots_reader *reader, uint64_t gfn)
{
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn_approx(reader, 0, gfn);
    int id = slot ? slot->id : -1;
    memslots_read_unlock(reader);
    return id;
}

static void gfn_approx(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(approx(reader, 100), -1);
    set(ms, 1, 100, 10);
    set(ms, 2, 200, 10);
    CHECK_EQ(approx(reader, 0), 1); // none below: the lowest
    CHECK_EQ(approx(reader, 99), 1);
    CHECK_EQ(approx(reader, 100), 1);
    CHECK_EQ(approx(reader, 110), 1);
    CHECK_EQ(approx(reader, 199), 1);
    CHECK_EQ(approx(reader, 200), 2);
    CHECK_EQ(approx(reader, 210), 2);
    CHECK_EQ(approx(reader, UINT64_MAX), 2);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void id(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    const uint16_t ids[] = {0, 1, 63, 64, 255, 256, 4095, 4096, 32763};

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
        CHECK_EQ(set(ms, ids[i], ids[i] * 2, 1), 0);
    memslots_read_lock(reader);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        const struct memslot *slot = memslots_find_id(reader, 0, ids[i]);
        REQUIRE(slot);
        CHECK_EQ(slot->id, ids[i]);
        CHECK_EQ(slot->base_gfn, ids[i] * 2);
        CHECK(slot == memslots_find_gfn(reader, 0, ids[i] * 2));
    }
    CHECK(memslots_find_id(reader, 0, 2) == NULL);
    CHECK(memslots_find_id(reader, 0, 4097) == NULL);
    CHECK(memslots_find_id(reader, 0, 32764) == NULL);
    CHECK(memslots_find_id(reader, 0, MEMSLOTS_ID_ANY) == NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static int id_at_hva(struct memslots_reader *reader, uint64_t hva)
{
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_hva(reader, 0, hva);
    int found = slot ? slot->id : -1;
    memslots_read_unlock(reader);
    return found;
}

static int set_hva(struct memslots *ms, uint32_t slot, uint64_t gfn, uint64_t npages, uint64_t hva)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.userspace_addr = hva;
    return memslots_set_region(ms, &region, NULL);
}

static void hva(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set_hva(ms, 1, 100, 10, HVA);
    set_hva(ms, 2, 50, 1, HVA + 10 * PAGE);
    CHECK_EQ(id_at_hva(reader, HVA - 1), -1);
    CHECK_EQ(id_at_hva(reader, HVA), 1);
    CHECK_EQ(id_at_hva(reader, HVA + 10 * PAGE - 1), 1);
    CHECK_EQ(id_at_hva(reader, HVA + 10 * PAGE), 2);
    CHECK_EQ(id_at_hva(reader, HVA + 11 * PAGE), -1);
    CHECK_EQ(id_at_hva(reader, 0), -1);
    CHECK_EQ(id_at_hva(reader, UINT64_MAX), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void hva_of_several_the_lowest_start_then_the_lowest_id(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set_hva(ms, 9, 100, 10, HVA + 5 * PAGE);
    set_hva(ms, 5, 200, 10, HVA + 5 * PAGE);
    set_hva(ms, 7, 300, 100, HVA);
    CHECK_EQ(id_at_hva(reader, HVA + 5 * PAGE), 7);
    CHECK_EQ(id_at_hva(reader, HVA + 99 * PAGE), 7);
    memslots_delete(ms, 0, 7);
    CHECK_EQ(id_at_hva(reader, HVA + 5 * PAGE), 5);
    CHECK_EQ(id_at_hva(reader, HVA), -1);
    memslots_delete(ms, 0, 5);
    CHECK_EQ(id_at_hva(reader, HVA + 14 * PAGE), 9);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// A long slot far below must be found behind many short ones.
static void hva_under_many_others(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set_hva(ms, 2000, 1u << 20, 1u << 16, HVA);
    for (uint32_t i = 0; i < 500; i++)
        CHECK_EQ(set_hva(ms, i, i * 2, 1, HVA + (i + 1) * 4 * PAGE), 0);
    for (uint32_t i = 0; i < 500; i++)
        CHECK_EQ(id_at_hva(reader, HVA + (i + 1) * 4 * PAGE), 2000);
    memslots_delete(ms, 0, 2000);
    for (uint32_t i = 0; i < 500; i++) {
        CHECK_EQ(id_at_hva(reader, HVA + (i + 1) * 4 * PAGE), i);
        CHECK_EQ(id_at_hva(reader, HVA + (i + 1) * 4 * PAGE + PAGE), -1);
    }
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void no_such_address_space(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    const uint16_t nowhere[] = {1, 2, 0x7fff, 0xffff};
    uint64_t out = 77, left = 77;
    struct memslots_hva_cache cache;

    set(ms, 0, 0, 10);
    memslots_read_lock(reader);
    for (size_t i = 0; i < 4; i++) {
        uint16_t as_id = nowhere[i];
        CHECK(memslots_find_gfn(reader, as_id, 0) == NULL);
        CHECK(memslots_find_gfn_approx(reader, as_id, 0) == NULL);
        CHECK(memslots_find_id(reader, as_id, 0) == NULL);
        CHECK(memslots_find_hva(reader, as_id, HVA) == NULL);
        CHECK_EQ(memslots_gpa_to_hva(reader, as_id, 0, MEMSLOTS_READ, &out, &left), -EINVAL);
        CHECK_EQ(memslots_hva_to_gpa(reader, as_id, HVA, &out), -EINVAL);
        CHECK_EQ(memslots_hva_cache_init(&cache, reader, as_id, 0, 8, MEMSLOTS_READ), -EINVAL);
        CHECK_EQ(memslots_generation(reader, as_id), 0);
        CHECK_EQ(memslots_count(reader, as_id), 0);
        CHECK_EQ(memslots_npages(reader, as_id), 0);
        CHECK_EQ(memslots_get_regions(reader, as_id, NULL, 0), 0);
    }
    memslots_read_unlock(reader);
    CHECK_EQ(out, 77);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// The header's own copy of the last-used hit must answer as the function does, whatever happened since.
static void the_inline_lookup(void)
{
    struct memslots_config config = default_config();
    config.nr_address_spaces = 2;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 10);
    set(ms, 2, 110, 10);
    set(ms, 1u << 16 | 7, 100, 10);
    CHECK(memslots_find_gfn_inline(reader, 0, 100) == NULL); // outside of a section
    memslots_read_lock(reader);
    for (uint64_t gfn = 95; gfn < 125; gfn++) {
        for (uint16_t as_id = 0; as_id < 3; as_id++) {
            const struct memslot *slot = memslots_find_gfn_inline(reader, as_id, gfn);
            CHECK(slot == memslots_find_gfn(reader, as_id, gfn));
            CHECK(slot == memslots_find_gfn_inline(reader, as_id, gfn));
        }
    }
    CHECK(memslots_find_gfn_inline(reader, 0, 105) != NULL);
    memslots_delete(ms, 0, 1);
    CHECK(memslots_find_gfn_inline(reader, 0, 105) == NULL);
    CHECK(memslots_find_gfn_inline(reader, 0, 115) != NULL);
    memslots_move(ms, 0, 2, 200 * PAGE);
    CHECK(memslots_find_gfn_inline(reader, 0, 115) == NULL);
    CHECK(memslots_find_gfn_inline(reader, 0, 205) != NULL);
    memslots_read_unlock(reader);
    CHECK(memslots_find_gfn_inline(reader, 0, 205) == NULL);
    memslots_free(ms);
    memslots_read_lock(reader);
    CHECK(memslots_find_gfn_inline(reader, 0, 205) == NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
}

// Every gfn of a table of a few thousand slots, against what was put in.
static void a_large_table(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    const uint32_t nr = under_valgrind() ? 500 : 5000;

    for (uint32_t i = 0; i < nr; i++) {
        uint32_t at = i * 7919 % nr; // in no order
        CHECK_EQ(set(ms, at, at * UINT64_C(4), 3), 0);
    }
    CHECK_EQ(memslots_count(reader, 0), nr);
    memslots_read_lock(reader);
    for (uint64_t gfn = 0; gfn < nr * UINT64_C(4); gfn++) {
        const struct memslot *slot = memslots_find_gfn(reader, 0, gfn);
        const struct memslot *by_hva = memslots_find_hva(reader, 0, HVA + gfn * PAGE + 1);
        CHECK(slot == by_hva);
        CHECK_EQ(slot ? slot->id : -1, gfn % 4 < 3 ? (long long)(gfn / 4) : -1);
    }
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(gfn);
    RUN(gfn_follows_every_change);
    RUN(gfn_follows_inside_one_section);
    RUN(gfn_approx);
    RUN(id);
    RUN(hva);
    RUN(hva_of_several_the_lowest_start_then_the_lowest_id);
    RUN(hva_under_many_others);
    RUN(no_such_address_space);
    RUN(the_inline_lookup);
    RUN(a_large_table);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Read-side sections: they nest, nothing is found outside of them, and what was found stays.

#include "test.h"

static void outside_nothing_is_found(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_iter iter;
    struct memslots_hva_cache cache;
    uint64_t out = 77, left = 77;

    set(ms, 1, 0, 10);
    memslots_read_lock(reader); // a warm last-used slot and cache must not answer either
    CHECK(memslots_find_gfn(reader, 0, 0) != NULL);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, 8, MEMSLOTS_READ), 0);
    memslots_read_unlock(reader);

    CHECK(memslots_find_gfn(reader, 0, 0) == NULL);
    CHECK(memslots_find_gfn_approx(reader, 0, 0) == NULL);
    CHECK(memslots_find_id(reader, 0, 1) == NULL);
    CHECK(memslots_find_hva(reader, 0, HVA) == NULL);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, 0, MEMSLOTS_READ, &out, &left), -EPERM);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA, &out), -EPERM);
    CHECK_EQ(memslots_hva_cache_get(&cache, reader, &out), -EPERM);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, 8, MEMSLOTS_READ), -EPERM);
    CHECK_EQ(out, 77);
    CHECK_EQ(left, 77);
    memslots_iter_all(&iter, reader, 0);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_iter_gfn(&iter, reader, 0, 0, 100);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_iter_hva(&iter, reader, 0, 0, UINT64_MAX);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void the_totals_need_no_section(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 0, 10);
    CHECK_EQ(memslots_generation(reader, 0), 1);
    CHECK_EQ(memslots_count(reader, 0), 1);
    CHECK_EQ(memslots_npages(reader, 0), 10);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void they_nest(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 0, 10);
    for (int depth = 0; depth < 1000; depth++)
        memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 0);
    REQUIRE(slot);
    for (int depth = 999; depth > 0; depth--) {
        memslots_read_unlock(reader);
        CHECK(memslots_find_gfn(reader, 0, 0) == slot);
    }
    memslots_delete(ms, 0, 1);
    CHECK_EQ(slot->npages, 10); // the outermost section still holds it
    memslots_read_unlock(reader);
    CHECK(memslots_find_gfn(reader, 0, 0) == NULL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void one_unlock_too_many_does_no_harm(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 0, 10);
    memslots_read_unlock(reader);
    CHECK(memslots_find_gfn(reader, 0, 0) == NULL);
    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, 0) != NULL);
    memslots_read_unlock(reader);
    memslots_read_unlock(reader);
    CHECK_EQ(id_at(reader, 0, 0), 1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// An iterator of a section that has ended, used in the next one, must not walk what is gone.
static void an_iterator_ends_with_its_section(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_iter iter;

    set(ms, 1, 0, 10);
    set(ms, 2, 10, 10);
    memslots_read_lock(reader);
    memslots_iter_all(&iter, reader, 0);
    CHECK(memslots_iter_next(&iter) != NULL);
    memslots_read_unlock(reader);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void one_reader_s_section_is_not_another_s(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *inside = new_reader(ms), *outside = new_reader(ms);

    set(ms, 1, 0, 10);
    memslots_read_lock(inside);
    CHECK(memslots_find_gfn(inside, 0, 0) != NULL);
    CHECK(memslots_find_gfn(outside, 0, 0) == NULL);
    memslots_read_unlock(inside);
    memslots_reader_free(inside);
    memslots_reader_free(outside);
    memslots_free(ms);
}

static void synchronizing_inside_is_edeadlk(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(memslots_try_synchronize(ms), 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_try_synchronize(ms), -EDEADLK);
    memslots_read_unlock(reader);
    CHECK_EQ(memslots_try_synchronize(ms), 0);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(outside_nothing_is_found);
    RUN(the_totals_need_no_section);
    RUN(they_nest);
    RUN(one_unlock_too_many_does_no_harm);
    RUN(an_iterator_ends_with_its_section);
    RUN(one_reader_s_section_is_not_another_s);
    RUN(synchronizing_inside_is_edeadlk);
    return test_result();
}

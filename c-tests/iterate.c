// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The iterators: all slots, those of a gfn range, those of an hva range; exactly those, in order,
// and all of one publication. And memslots_get_regions, the whole table as an array.

#include "test.h"

// The ids that an iterator yields, as a string: "1 2 3".
static const char *ids(struct memslots_iter *iter)
{
    static char line[256];
    const struct memslot *slot;
    size_t length = 0;

    line[0] = 0;
    while ((slot = memslots_iter_next(iter)) && length < sizeof(line) - 8)
        length += (size_t)sprintf(line + length, "%s%u", length ? " " : "", slot->id);
    return line;
}

#define CHECK_IDS(iter, want)                                                                      \
    do {                                                                                           \
        const char *got_ = ids(iter);                                                              \
        if (strcmp(got_, want) != 0) {                                                             \
            printf("    %s:%d: yields \"%s\", should \"%s\"\n", __FILE__, __LINE__, got_, want);   \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

static struct memslots *ms;
static struct memslots_reader *reader;
static struct memslots_iter iter;

static void set_up(void)
{
    ms = new_table();
    reader = new_reader(ms);
    set(ms, 5, 300, 10);
    set(ms, 2, 100, 10);
    set(ms, 9, 110, 10);
    set(ms, 1, 400, 1);
    memslots_read_lock(reader);
}

static void tear_down(void)
{
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void all(void)
{
    set_up();
    memslots_iter_all(&iter, reader, 0);
    CHECK_IDS(&iter, "2 9 5 1");
    CHECK(memslots_iter_next(&iter) == NULL); // and goes on ending
    memslots_iter_all(&iter, reader, 1);
    CHECK_IDS(&iter, "");
    tear_down();
}

static void all_of_nothing(void)
{
    ms = new_table();
    reader = new_reader(ms);
    memslots_read_lock(reader);
    memslots_iter_all(&iter, reader, 0);
    CHECK_IDS(&iter, "");
    memslots_iter_gfn(&iter, reader, 0, 0, UINT64_MAX);
    CHECK_IDS(&iter, "");
    memslots_iter_hva(&iter, reader, 0, 0, UINT64_MAX);
    CHECK_IDS(&iter, "");
    tear_down();
}

static void gfn_range(uint64_t start, uint64_t end, const char *want)
{
    memslots_iter_gfn(&iter, reader, 0, start, end);
    CHECK_IDS(&iter, want);
}

static void gfn_exactly_those_that_overlap(void)
{
    set_up();
    gfn_range(0, UINT64_MAX, "2 9 5 1");
    gfn_range(0, 100, "");
    gfn_range(0, 101, "2");
    gfn_range(100, 101, "2");
    gfn_range(105, 106, "2");
    gfn_range(109, 110, "2");
    gfn_range(109, 111, "2 9");
    gfn_range(110, 300, "9");
    gfn_range(120, 300, "");
    gfn_range(119, 301, "9 5");
    gfn_range(200, 401, "5 1");
    gfn_range(401, UINT64_MAX, "");
    tear_down();
}

static void an_empty_gfn_range_has_nothing(void)
{
    set_up();
    gfn_range(105, 105, "");
    gfn_range(106, 105, "");
    gfn_range(0, 0, "");
    gfn_range(UINT64_MAX, 0, "");
    tear_down();
}

static void hva_range(uint64_t start, uint64_t last, const char *want)
{
    memslots_iter_hva(&iter, reader, 0, start, last);
    CHECK_IDS(&iter, want);
}

static void hva_exactly_those_last_included(void)
{
    set_up();
    hva_range(0, UINT64_MAX, "2 9 5 1");
    hva_range(0, HVA + 100 * PAGE - 1, "");
    hva_range(0, HVA + 100 * PAGE, "2");
    hva_range(HVA + 110 * PAGE - 1, HVA + 110 * PAGE - 1, "2");
    hva_range(HVA + 110 * PAGE - 1, HVA + 110 * PAGE, "2 9");
    hva_range(HVA + 120 * PAGE, HVA + 300 * PAGE - 1, "");
    hva_range(HVA + 305 * PAGE, HVA + 305 * PAGE, "5");
    hva_range(HVA + 401 * PAGE, UINT64_MAX, "");
    hva_range(HVA + 2, HVA + 1, "");
    hva_range(HVA + 101 * PAGE, HVA + 100 * PAGE, "");
    tear_down();
}

static void hva_in_the_order_of_hva(void)
{
    struct memslots_region low = ram(7, 5000, 10), same = ram(8, 6000, 300);

    set_up();
    low.userspace_addr = HVA;
    same.userspace_addr = HVA + 100 * PAGE; // over 2, 9 and 5, and begins with 2
    CHECK_EQ(memslots_set_region(ms, &low, NULL), 0);
    CHECK_EQ(memslots_set_region(ms, &same, NULL), 0);
    hva_range(0, UINT64_MAX, "7 2 8 9 5 1");
    hva_range(HVA + 250 * PAGE, HVA + 250 * PAGE, "8");
    hva_range(HVA + 309 * PAGE, HVA + 400 * PAGE, "8 5 1");
    tear_down();
}

static void one_iterator_walks_one_publication(void)
{
    set_up();
    memslots_iter_all(&iter, reader, 0);
    CHECK(memslots_iter_next(&iter) != NULL);
    memslots_delete(ms, 0, 9);
    memslots_move(ms, 0, 1, 0);
    set(ms, 3, 350, 1);
    CHECK_IDS(&iter, "9 5 1");
    memslots_iter_all(&iter, reader, 0);
    CHECK_IDS(&iter, "1 2 5 3");
    tear_down();
}

static void two_iterators_of_one_reader(void)
{
    struct memslots_iter other;

    set_up();
    memslots_iter_all(&iter, reader, 0);
    memslots_iter_hva(&other, reader, 0, 0, UINT64_MAX);
    CHECK_EQ(memslots_iter_next(&iter)->id, 2);
    CHECK_EQ(memslots_iter_next(&other)->id, 2);
    CHECK_EQ(memslots_iter_next(&iter)->id, 9);
    CHECK_IDS(&other, "9 5 1");
    CHECK_IDS(&iter, "5 1");
    tear_down();
}

static void many(void)
{
    enum { NR = 1000 };
    uint64_t expected = 0;
    const struct memslot *slot;

    ms = new_table();
    reader = new_reader(ms);
    for (uint32_t i = 0; i < NR; i++)
        CHECK_EQ(set(ms, i, (i * 613 % NR) * UINT64_C(5), 2), 0);
    memslots_read_lock(reader);
    memslots_iter_all(&iter, reader, 0);
    while ((slot = memslots_iter_next(&iter)))
        CHECK_EQ(slot->base_gfn, 5 * expected++);
    CHECK_EQ(expected, NR);
    for (uint64_t start = 0; start < 5 * NR; start += 97) {
        uint64_t seen = 0, want = 0;
        for (uint64_t i = 0; i < NR; i++)
            want += 5 * i < start + 200 && 5 * i + 2 > start;
        memslots_iter_gfn(&iter, reader, 0, start, start + 200);
        while ((slot = memslots_iter_next(&iter)))
            seen++;
        CHECK_EQ(seen, want);
    }
    tear_down();
}

static void regions_as_an_array(void)
{
    struct memslots_region out[5];

    set_up();
    memset(out, 0xa5, sizeof(out));
    CHECK_EQ(memslots_get_regions(reader, 0, out, 5), 4);
    CHECK_EQ(out[0].slot, 2);
    CHECK_EQ(out[0].guest_phys_addr, 100 * PAGE);
    CHECK_EQ(out[0].memory_size, 10 * PAGE);
    CHECK_EQ(out[0].userspace_addr, HVA + 100 * PAGE);
    CHECK_EQ(out[0].flags, 0);
    CHECK_EQ(out[3].slot, 1);
    CHECK_EQ(out[4].slot, 0xa5a5a5a5);

    memset(out, 0xa5, sizeof(out));
    CHECK_EQ(memslots_get_regions(reader, 0, out, 2), 4); // how many there are, not how many fit
    CHECK_EQ(out[1].slot, 9);
    CHECK_EQ(out[2].slot, 0xa5a5a5a5);
    CHECK_EQ(memslots_get_regions(reader, 0, NULL, 0), 4);
    tear_down();
}

int main(void)
{
    RUN(all);
    RUN(all_of_nothing);
    RUN(gfn_exactly_those_that_overlap);
    RUN(an_empty_gfn_range_has_nothing);
    RUN(hva_exactly_those_last_included);
    RUN(hva_in_the_order_of_hva);
    RUN(one_iterator_walks_one_publication);
    RUN(two_iterators_of_one_reader);
    RUN(many);
    RUN(regions_as_an_array);
    return test_result();
}

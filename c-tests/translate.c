// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Between guest and host addresses: memslots_gpa_to_hva and memslots_hva_to_gpa, and the three ways
// in which there is no address.

#include "test.h"

struct answer {
    int err;
    uint64_t hva, left;
};

static struct answer to_hva(struct memslots_reader *reader, uint64_t gpa, uint32_t access)
{
    struct answer a = {0, 77, 77};

    memslots_read_lock(reader);
    a.err = memslots_gpa_to_hva(reader, 0, gpa, access, &a.hva, &a.left);
    memslots_read_unlock(reader);
    return a;
}

static void every_byte_of_a_slot(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 2);
    for (uint64_t offset = 0; offset < 2 * PAGE; offset++) {
        struct answer a = to_hva(reader, 100 * PAGE + offset, MEMSLOTS_WRITE);
        CHECK_EQ(a.err, 0);
        CHECK_EQ(a.hva, HVA + 100 * PAGE + offset);
        CHECK_EQ(a.left, 2 * PAGE - offset);
    }
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void a_hole_is_enoent(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    const uint64_t holes[] = {0, 100 * PAGE - 1, 102 * PAGE, UINT64_MAX};

    set(ms, 1, 100, 2);
    for (size_t i = 0; i < 4; i++) {
        struct answer a = to_hva(reader, holes[i], MEMSLOTS_READ);
        CHECK_EQ(a.err, -ENOENT);
        CHECK_EQ(a.hva, 77); // outputs are written on success only
        CHECK_EQ(a.left, 77);
    }
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void rom_takes_no_write(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_region rom = ram(1, 100, 2);

    rom.flags = MEMSLOTS_READONLY;
    CHECK_EQ(memslots_set_region(ms, &rom, NULL), 0);
    CHECK_EQ(to_hva(reader, 100 * PAGE, MEMSLOTS_READ).err, 0);
    struct answer a = to_hva(reader, 100 * PAGE, MEMSLOTS_WRITE);
    CHECK_EQ(a.err, -EROFS);
    CHECK_EQ(a.hva, 77);
    CHECK_EQ(to_hva(reader, 102 * PAGE, MEMSLOTS_WRITE).err, -ENOENT);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void access_is_read_or_write(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    set(ms, 1, 100, 2);
    CHECK_EQ(to_hva(reader, 100 * PAGE, 0).err, -EINVAL);
    CHECK_EQ(to_hva(reader, 100 * PAGE, 1u << 31).err, -EINVAL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// What a slot on its way out answers is seen from inside its flush hook.
struct going {
    struct memslots_reader *reader;
    int during_flush;
    unsigned flags;
    int calls;
};

static void look_at_it(void *ctx, const struct memslot *invalid)
{
    struct going *going = ctx;
    uint64_t hva, left;

    going->calls++;
    memslots_read_lock(going->reader);
    going->during_flush =
        memslots_gpa_to_hva(going->reader, 0, invalid->base_gfn * PAGE, MEMSLOTS_READ, &hva, &left);
    const struct memslot *slot = memslots_find_gfn(going->reader, 0, invalid->base_gfn);
    going->flags = slot ? slot->flags : 0;
    memslots_read_unlock(going->reader);
}

static void an_invalid_slot_is_eagain(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = look_at_it};
    struct going going = {0};
    struct memslots_config config = default_config();
    config.ops = &ops;
    config.ctx = &going;
    struct memslots *ms = new_table_with(&config);

    going.reader = new_reader(ms);
    set(ms, 1, 100, 2);
    CHECK_EQ(memslots_move(ms, 0, 1, 200 * PAGE), 0);
    CHECK_EQ(going.during_flush, -EAGAIN);
    CHECK(going.flags & MEMSLOTS_INVALID);
    CHECK_EQ(to_hva(going.reader, 100 * PAGE, MEMSLOTS_READ).err, -ENOENT);
    CHECK_EQ(to_hva(going.reader, 200 * PAGE, MEMSLOTS_READ).err, 0);
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(going.during_flush, -EAGAIN);
    CHECK_EQ(going.calls, 2);
    memslots_reader_free(going.reader);
    memslots_free(ms);
}

static void hva_to_gpa(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_region region = ram(1, 100, 10);
    uint64_t gpa = 77;

    region.userspace_addr = HVA + 3 * PAGE;
    CHECK_EQ(memslots_set_region(ms, &region, NULL), 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA + 3 * PAGE - 1, &gpa), -ENOENT);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA + 13 * PAGE, &gpa), -ENOENT);
    CHECK_EQ(gpa, 77);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA + 3 * PAGE, &gpa), 0);
    CHECK_EQ(gpa, 100 * PAGE);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA + 13 * PAGE - 1, &gpa), 0);
    CHECK_EQ(gpa, 110 * PAGE - 1);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void larger_pages(void)
{
    struct memslots_config config = default_config();
    config.page_shift = 16;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_region region = ram(1, 16, 32); // 64 KiB pages: gfn 1, 2 pages

    CHECK_EQ(memslots_set_region(ms, &region, NULL), 0);
    struct answer a = to_hva(reader, 47 * PAGE, MEMSLOTS_WRITE);
    CHECK_EQ(a.err, 0);
    CHECK_EQ(a.hva, HVA + 47 * PAGE);
    CHECK_EQ(a.left, PAGE);
    CHECK_EQ(id_at(reader, 0, 2), 1);
    CHECK_EQ(id_at(reader, 0, 3), -1);
    CHECK_EQ(memslots_npages(reader, 0), 2);
    CHECK_EQ(set(ms, 2, 48, 8), -EINVAL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(every_byte_of_a_slot);
    RUN(a_hole_is_enoent);
    RUN(rom_takes_no_write);
    RUN(access_is_read_or_write);
    RUN(an_invalid_slot_is_eagain);
    RUN(hva_to_gpa);
    RUN(larger_pages);
    return test_result();
}

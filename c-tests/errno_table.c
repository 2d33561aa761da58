// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The errno of KVM_SET_USER_MEMORY_REGION2, row by row, as observed on a real kernel (x86-64, 4-level
// page tables): every row that a userspace library can answer. The row numbers are those of
// docs/errno-table.md. Rows of the ioctl's own entry (bad pointers, the first form, another process)
// and of the dirty log have no counterpart here.

#include "test.h"

#define ROW(number, got, want)                                                                     \
    do {                                                                                           \
        int got_ = (got);                                                                          \
        if (got_ != (want)) {                                                                      \
            printf("    row %d: %s is %d, should be %d\n", number, #got, got_, (int)(want));       \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

static struct memslots *ms;

static void fresh(void)
{
    struct memslots_config config = default_config();

    memslots_free(ms);
    config.hva_limit = (UINT64_C(1) << 47) - PAGE;
    config.supported_flags = MEMSLOTS_LOG_DIRTY_PAGES | MEMSLOTS_READONLY | MEMSLOTS_GUEST_MEMFD;
    ms = new_table_with(&config);
}

// The whole of a region, in bytes, for what ram() cannot say.
static int raw(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva)
{
    struct memslots_region region = {0};

    region.slot = slot;
    region.flags = flags;
    region.guest_phys_addr = gpa;
    region.memory_size = size;
    region.userspace_addr = hva;
    return memslots_set_region(ms, &region, NULL);
}

// At its usual hva, whatever the gpa.
static int at(uint32_t slot, uint32_t flags, uint64_t gfn, uint64_t npages)
{
    return raw(slot, flags, gfn * PAGE, npages * PAGE, HVA + (slot & 0xff) * 0x1000 * PAGE);
}

#define LOG MEMSLOTS_LOG_DIRTY_PAGES
#define RO  MEMSLOTS_READONLY
#define FD  MEMSLOTS_GUEST_MEMFD

static void a_entry(void)
{
    struct memslots_region region = ram(1, 0x100, 16);

    fresh();
    ROW(6, at(0, 8, 0, 16), -EINVAL);
    ROW(7, at(0, MEMSLOTS_INVALID, 0, 16), -EINVAL);
    ROW(8, at(0, UINT32_C(1) << 31, 0, 16), -EINVAL);
    region.guest_memfd_offset = UINT64_MAX;
    region.guest_memfd = region.pad1 = UINT32_MAX;
    memset(region.pad2, 0xff, sizeof(region.pad2));
    ROW(9, memslots_set_region(ms, &region, NULL), 0);
}

static void b_create_sizes_and_alignment(void)
{
    fresh();
    ROW(11, at(0, 0, 0x100, 16), 0);
    ROW(12, at(1, 0, 0, 0), -EINVAL);
    ROW(13, raw(1, 0, 0, 0x1800, HVA), -EINVAL);
    ROW(14, raw(1, 0, 0, 0x800, HVA), -EINVAL);
    ROW(15, raw(1, 0, 0x800, PAGE, HVA), -EINVAL);
    ROW(16, raw(1, 0, 0, PAGE, HVA + 0x800), -EINVAL);
    ROW(43, at(2, RO, 0x200, 1), 0);
    ROW(44, at(3, RO | LOG, 0x300, 1), 0);
    ROW(45, at(4, 0, 0, 1), 0);
}

static void b_create_hva(void)
{
    const uint64_t limit = UINT64_C(0x7ffffffff000);

    fresh();
    ROW(17, raw(1, 0, 0x10 * PAGE, PAGE, 0), 0);
    ROW(18, raw(2, 0, 0x20 * PAGE, PAGE, 0x10000), 0);
    ROW(20, raw(3, 0, 0x30 * PAGE, PAGE, UINT64_C(0xffff888000000000)), -EINVAL);
    ROW(21, raw(3, 0, 0x30 * PAGE, PAGE, UINT64_C(0x0000800000000000)), -EINVAL);
    ROW(22, raw(3, 0, 0x30 * PAGE, PAGE, limit - PAGE), 0);
    ROW(23, raw(4, 0, 0x40 * PAGE, 2 * PAGE, limit - PAGE), -EINVAL);
    ROW(24, raw(4, 0, 0x40 * PAGE, 2 * PAGE, UINT64_MAX - PAGE + 1), -EINVAL);
    ROW(25, raw(4, 0, 0x40 * PAGE, UINT64_C(1) << 46, limit - PAGE), -EINVAL);
}

static void b_create_ids(void)
{
    fresh();
    ROW(26, at(32763, 0, 0x100, 1), 0);
    ROW(27, at(32764, 0, 0x200, 1), -EINVAL);
    ROW(28, at(32767, 0, 0x200, 1), -EINVAL);
    ROW(29, at(65535, 0, 0x200, 1), -EINVAL);
    ROW(30, at(0x10000, 0, 0x200, 1), -EINVAL);
    ROW(31, at(0x20000, 0, 0x200, 1), -EINVAL);
    ROW(32, at(0xffff0000, 0, 0x200, 1), -EINVAL);
}

static void b_create_gpa(void)
{
    const uint64_t top = UINT64_C(1) << 40; // in pages: 52 bits of gpa

    fresh();
    ROW(33, at(0, 0, (UINT64_C(1) << 52) - 1, 2), -EINVAL);
    ROW(34, at(0, 0, (UINT64_C(1) << 52) - 1, 1), -EINVAL);
    ROW(35, at(0, 0, (UINT64_C(1) << 52) - 2, 1), -EINVAL);
    ROW(36, at(0, 0, UINT64_C(1) << 36, 1), 0);
    ROW(37, at(1, 0, top - 1, 1), 0);
    ROW(38, at(2, 0, top - 1, 2), -EEXIST);
    ROW(39, at(2, 0, top, 1), -EINVAL);
    ROW(37, at(1, 0, 0, 0), 0);
    ROW(40, at(2, 0, top - 1, 2), -EINVAL);
    ROW(41, raw(2, 0, (UINT64_C(1) << 36) * PAGE, ((UINT64_C(1) << 31) - 1) * PAGE, 0), -EEXIST);
    ROW(42, raw(2, 0, (UINT64_C(1) << 36) * PAGE, (UINT64_C(1) << 31) * PAGE, 0), -EINVAL);
}

static void c_overlap(void)
{
    fresh();
    ROW(46, at(0, 0, 100, 10), 0);
    ROW(46, at(1, 0, 100, 10), -EEXIST);
    ROW(47, at(1, 0, 91, 10), -EEXIST);
    ROW(48, at(1, 0, 109, 10), -EEXIST);
    ROW(49, at(1, 0, 90, 30), -EEXIST);
    ROW(50, at(1, 0, 105, 1), -EEXIST);
    ROW(51, at(1, 0, 90, 10), 0);
    ROW(52, at(2, 0, 110, 10), 0);
    ROW(53, at(3, 0, 121, 9), 0);
    ROW(53, at(4, 0, 120, 1), 0);
    ROW(54, raw(5, 0, 500 * PAGE, 10 * PAGE, HVA), 0);
    ROW(55, raw(6, 0, 100 * PAGE, PAGE, HVA + 1), -EINVAL);
    ROW(56, at(6, 8, 100, 1), -EINVAL);
}

static void d_change(void)
{
    const uint64_t top = UINT64_C(1) << 40;

    fresh();
    at(0, 0, 100, 10);
    at(1, 0, 200, 10);
    ROW(57, at(0, 0, 100, 10), 0);
    ROW(58, raw(0, 0, 100 * PAGE, 10 * PAGE, HVA + PAGE), -EINVAL);
    ROW(59, at(0, 0, 100, 11), -EINVAL);
    ROW(60, at(0, 0, 100, 9), -EINVAL);
    ROW(61, at(0, RO, 100, 10), -EINVAL);
    ROW(62, at(0, LOG, 100, 10), 0);
    ROW(63, at(0, 0, 100, 10), 0);
    ROW(64, at(0, 0, 300, 10), 0);
    ROW(65, at(0, 0, 301, 10), 0);
    ROW(66, at(0, LOG, 400, 10), 0);
    ROW(68, at(0, LOG, 500, 11), -EINVAL);
    ROW(69, raw(0, LOG, 500 * PAGE, 10 * PAGE, HVA + PAGE), -EINVAL);
    ROW(70, at(0, LOG | RO, 500, 10), -EINVAL);
    ROW(71, at(0, LOG, 200, 10), -EEXIST);
    ROW(72, at(0, LOG, 210, 10), 0);
    ROW(73, at(0, LOG, 200, 11), -EINVAL);
    ROW(74, at(0, LOG, top, 10), -EINVAL);
    ROW(75, at(0, LOG, 210, 10), 0);
    ROW(76, at(2, 0, 215, 1), -EEXIST);
    ROW(78, at(0, LOG, 600, 10), 0);
    at(3, RO, 700, 10);
    ROW(79, at(3, 0, 700, 10), -EINVAL);
    ROW(80, at(3, RO | LOG, 700, 10), 0);
    ROW(81, at(3, RO | LOG, 800, 10), 0);
}

static void e_delete(void)
{
    fresh();
    at(0, 0, 100, 10);
    ROW(82, at(0, 0, 100, 0), 0);
    ROW(83, at(0, 0, 100, 0), -EINVAL);
    ROW(84, at(0, 0, 900, 3), 0);
    ROW(85, raw(0, 0, 1, 0, 0), -EINVAL);
    ROW(86, raw(0, 0, 0, 0, 1), -EINVAL);
    ROW(87, raw(0, 0, 0, 0, UINT64_C(0xffff888000000000)), -EINVAL);
    ROW(88, raw(0, 8, 0, 0, 0), -EINVAL);
    ROW(89, raw(0x10000, 0, 0, 0, 0), -EINVAL);
    ROW(90, raw(0, RO, 0, 0, 0), 0);
    at(0, 0, 900, 3);
    ROW(91, raw(0, 0, UINT64_C(0xfffffffffffff000), 0, 0), 0);
}

// What can be said without the file: whether it can be bound is the kernel's to say.
static int memfd(uint32_t slot, uint32_t flags, uint64_t gfn, uint64_t npages, uint64_t offset)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.flags = flags;
    region.guest_memfd = 5;
    region.guest_memfd_offset = offset;
    return memslots_set_region(ms, &region, NULL);
}

static void g_guest_memfd(void)
{
    struct memslots_region region = ram(0, 0, 16);

    fresh();
    region.flags = FD;
    region.guest_memfd = UINT32_MAX;
    ROW(127, memslots_set_region(ms, &region, NULL), -EBADF);
    region.guest_memfd_offset = 0x800;
    ROW(131, memslots_set_region(ms, &region, NULL), -EINVAL);
    ROW(130, memfd(0, FD, 0, 16, 0x800), -EINVAL);
    ROW(133, memfd(0, FD, 0, 16, UINT64_MAX - PAGE + 1), -EINVAL);
    ROW(134, raw(0, FD, 0, PAGE, UINT64_C(0xffff888000000000)), -EINVAL);
    ROW(135, memfd(0, FD | LOG, 0, 16, 0), -EINVAL);
    ROW(136, memfd(0, FD | RO, 0, 16, 0), -EINVAL);
    ROW(137, memfd(0, FD, UINT64_C(1) << 40, 16, 0), -EINVAL);
    ROW(138, memfd(0, FD, 0, 16, 0), 0);
    ROW(141, memfd(1, FD, 16, 16, 16 * PAGE), 0);
    ROW(142, memfd(2, FD, 0, 16, 64 * PAGE), -EEXIST);
    region.guest_memfd_offset = 0;
    region.slot = 2;
    ROW(142, memslots_set_region(ms, &region, NULL), -EEXIST);
    ROW(143, memfd(0, FD, 0, 16, 0), -EINVAL);
    ROW(144, memfd(0, FD, 100, 16, 0), -EINVAL);
    ROW(145, memfd(0, 0, 0, 16, 0), -EINVAL);
    ROW(146, memfd(0, LOG, 0, 16, 0), -EINVAL);
    ROW(147, memfd(3, 0, 300, 16, 0), 0);
    ROW(147, memfd(3, FD, 300, 16, 128 * PAGE), -EINVAL);
    ROW(148, memfd(0, FD, 0, 0, 0), 0);
    ROW(149, memfd(0, FD, 0, 16, 0), 0);
    ROW(150, memfd(0, 0, 0, 0, 0), 0);
}

static void a_slot_knows_its_guest_memfd(void)
{
    fresh();
    CHECK_EQ(memfd(4, FD, 64, 16, 32 * PAGE), 0);
    struct memslots_reader *reader = new_reader(ms);
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_id(reader, 0, 4);
    REQUIRE(slot);
    CHECK_EQ(slot->guest_memfd, 5);
    CHECK_EQ(slot->guest_memfd_offset, 32 * PAGE);
    CHECK_EQ(slot->flags, FD);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
}

// Hosts differ in what their KVM can address and in what their user space may hold.
static void limits_are_the_configuration_s(void)
{
    struct memslots_config config = default_config();

    memslots_free(ms);
    config.gpa_bits = 36;
    config.hva_limit = UINT64_C(1) << 40;
    config.supported_flags = MEMSLOTS_LOG_DIRTY_PAGES;
    config.nr_address_spaces = 2;
    ms = new_table_with(&config);
    CHECK_EQ(raw(0, 0, (UINT64_C(1) << 36) - PAGE, PAGE, 0), 0);
    CHECK_EQ(raw(1, 0, UINT64_C(1) << 36, PAGE, 0), -EINVAL);
    CHECK_EQ(raw(1, 0, 0, PAGE, (UINT64_C(1) << 40) - PAGE), 0);
    CHECK_EQ(raw(2, 0, PAGE, PAGE, UINT64_C(1) << 40), -EINVAL);
    CHECK_EQ(raw(2, RO, PAGE, PAGE, 0), -EINVAL);
    CHECK_EQ(raw(2, FD, PAGE, PAGE, 0), -EINVAL);
    CHECK_EQ(raw(0x10000, 0, 0, PAGE, 0), 0);
    CHECK_EQ(raw(0x20000, 0, 0, PAGE, 0), -EINVAL);
}

// Where the gpa may have all 64 bits, the rule against wrapping is all there is; it costs the last page.
static void all_of_64_bits(void)
{
    struct memslots_config config = default_config();
    const uint64_t last = UINT64_MAX - PAGE + 1;

    memslots_free(ms);
    config.gpa_bits = 64;
    ms = new_table_with(&config);
    CHECK_EQ(raw(0, 0, last, PAGE, 0), -EINVAL);
    CHECK_EQ(raw(0, 0, last - PAGE, 2 * PAGE, 0), -EINVAL);
    CHECK_EQ(raw(0, 0, last - PAGE, PAGE, 0), 0);
    CHECK_EQ(raw(1, 0, last - PAGE, 2 * PAGE, 0), -EINVAL); // wraps, before it overlaps
    CHECK_EQ(raw(1, 0, last - 2 * PAGE, 2 * PAGE, 0), -EEXIST);
    CHECK_EQ(raw(1, 0, last - 2 * PAGE, PAGE, 0), 0);
    CHECK_EQ(memslots_move(ms, 0, 1, last), -EINVAL);

    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(id_at(reader, 0, last / PAGE - 1), 0);
    CHECK_EQ(id_at(reader, 0, last / PAGE), -1);
    memslots_reader_free(reader);
}

static void a_refusal_changes_nothing(void)
{
    fresh();
    at(0, 0, 100, 10);
    struct memslots_reader *reader = new_reader(ms);
    uint64_t generation = memslots_generation(reader, 0);

    CHECK_EQ(at(1, 0, 105, 10), -EEXIST);
    CHECK_EQ(at(0, 0, 100, 11), -EINVAL);
    CHECK_EQ(at(1, 0, 0, 0), -EINVAL);
    CHECK_EQ(at(0, RO, 100, 10), -EINVAL);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 1);
    CHECK_EQ(memslots_npages(reader, 0), 10);
    CHECK_EQ(id_at(reader, 0, 100), 0);
    memslots_reader_free(reader);
}

int main(void)
{
    RUN(a_entry);
    RUN(b_create_sizes_and_alignment);
    RUN(b_create_hva);
    RUN(b_create_ids);
    RUN(b_create_gpa);
    RUN(c_overlap);
    RUN(d_change);
    RUN(e_delete);
    RUN(g_guest_memfd);
    RUN(a_slot_knows_its_guest_memfd);
    RUN(limits_are_the_configuration_s);
    RUN(all_of_64_bits);
    RUN(a_refusal_changes_nothing);
    memslots_free(ms);
    return test_result();
}

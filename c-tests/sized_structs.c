// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The structs that begin with their size: a program built against a smaller or larger one than the
// library's must be served, and nonsense be refused.

#include "test.h"

static int new_with_size(size_t size)
{
    struct memslots_config config = default_config();
    struct memslots *ms = NULL;

    config.size = size;
    int err = memslots_new(&config, &ms);
    memslots_free(ms);
    return err;
}

static void config_of_nonsense_size(void)
{
    CHECK_EQ(new_with_size(0), -EINVAL);
    CHECK_EQ(new_with_size(1), -EINVAL);
    CHECK_EQ(new_with_size(7), -EINVAL);
    CHECK_EQ(new_with_size(offsetof(struct memslots_config, hva_limit) - 1), -EINVAL);
    CHECK_EQ(new_with_size(SIZE_MAX), -E2BIG);
}

// As a program would have it that was built before the last members were added.
static void an_older_config(void)
{
    struct memslots_config config = default_config();
    struct memslots *ms = NULL;

    config.size = offsetof(struct memslots_config, hva_limit);
    config.hva_limit = 1; // not to be looked at
    config.gpa_bits = 1;  // nor this
    config.max_garbage = 1;
    config.max_slots = 10;
    CHECK_EQ(memslots_new(&config, &ms), 0);
    CHECK_EQ(set(ms, 9, 1000, 10), 0);
    CHECK_EQ(set(ms, 10, 2000, 10), -EINVAL);
    memslots_free(ms);
}

// As a later program would have it, with members that this library cannot honour.
static void a_newer_config(void)
{
    struct {
        struct memslots_config known;
        char unknown[64];
    } config;
    struct memslots *ms = NULL;

    memset(&config, 0, sizeof(config));
    config.known = default_config();
    config.known.size = sizeof(config);
    CHECK_EQ(memslots_new(&config.known, &ms), 0); // it asks for nothing that is not there
    memslots_free(ms);
    ms = NULL;
    for (size_t i = 0; i < sizeof(config.unknown); i++) {
        memset(config.unknown, 0, sizeof(config.unknown));
        config.unknown[i] = 1;
        CHECK_EQ(memslots_new(&config.known, &ms), -E2BIG);
        CHECK(ms == NULL);
    }
}

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static int new_with_ops(const void *ops, struct memslots **ms)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    return memslots_new(&config, ms);
}

static void ops_of_every_size(void)
{
    struct {
        struct memslots_ops known;
        unsigned char unknown[sizeof(struct memslots_ops)];
    } ops;
    struct memslots *ms = NULL;

    for (size_t size = 0; size <= sizeof(ops); size++) {
        memset(&ops, 0, sizeof(ops));
        ops.known = (struct memslots_ops){MEMSLOTS_OPS_INIT, .release = release};
        ops.known.size = size;
        if (size < sizeof(ops.known)) {
            CHECK_EQ(new_with_ops(&ops, &ms), -EINVAL);
            CHECK(ms == NULL);
            continue;
        }
        nr_released = 0;
        CHECK_EQ(new_with_ops(&ops, &ms), 0);
        set(ms, 1, 0, 10);
        memslots_free(ms);
        CHECK_EQ(nr_released, 1);
        ms = NULL;
        if (size > sizeof(ops.known)) { // the last byte that it claims is not zero
            ops.unknown[size - sizeof(ops.known) - 1] = 1;
            CHECK_EQ(new_with_ops(&ops, &ms), -E2BIG);
            CHECK(ms == NULL);
        }
    }
}

static void ignore(void *ctx, const struct memslot *slot)
{
    (void)ctx;
    (void)slot;
}

// What a program for version 0.1 has in memory, compiled anew: hooks from the first word on.
static void hooks_of_version_0_1(void)
{
    void (*ops[5 + sizeof(struct memslots_ops) / sizeof(void *)])(void *,
                                                                  const struct memslot *) = {0};
    struct memslots *ms = NULL;

    ops[4] = release; // no flush: the first word is NULL
    CHECK_EQ(new_with_ops(ops, &ms), -EINVAL);
    ops[0] = ignore; // a flush
    CHECK_EQ(new_with_ops(ops, &ms), -E2BIG);
    CHECK(ms == NULL);
}

static int stop(void *ctx, uint32_t why)
{
    (void)ctx;
    return (int)why;
}

static void go_on(void *ctx)
{
    (void)ctx;
}

static void a_pause_without_a_resume(void)
{
    struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .pause = stop};
    struct memslots *ms = NULL;

    CHECK_EQ(new_with_ops(&ops, &ms), -EINVAL);
    CHECK(ms == NULL);
    ops.resume = go_on;
    CHECK_EQ(new_with_ops(&ops, &ms), 0);
    memslots_free(ms);
}

static void stats_of_every_size(void)
{
    struct memslots *ms = new_table();
    struct {
        struct memslots_stats known;
        unsigned char beyond[64];
    } out;

    set(ms, 1, 0, 10);
    for (size_t size = 0; size <= sizeof(out); size++) {
        memset(&out, 0xa5, sizeof(out));
        int err = memslots_get_stats(ms, &out.known, size);
        if (size < sizeof(size_t)) {
            CHECK_EQ(err, -EINVAL);
        } else {
            CHECK_EQ(err, 0);
            CHECK(out.known.size <= size);
        }
        for (size_t i = size; i < sizeof(out); i++) // not a byte more than there is room for
            CHECK(((unsigned char *)&out)[i] == 0xa5);
    }
    CHECK_EQ(memslots_get_stats(ms, &out.known, sizeof(out.known)), 0);
    CHECK_EQ(out.known.size, sizeof(out.known));
    CHECK_EQ(out.known.slots, 1);
    memslots_free(ms);
}

static void reader_stats_of_every_size(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct {
        struct memslots_reader_stats known;
        unsigned char beyond[64];
    } out;

    for (size_t size = 0; size <= sizeof(out); size++) {
        memset(&out, 0xa5, sizeof(out));
        int err = memslots_reader_get_stats(reader, &out.known, size);
        CHECK_EQ(err, size < sizeof(size_t) ? -EINVAL : 0);
        for (size_t i = size; i < sizeof(out); i++)
            CHECK(((unsigned char *)&out)[i] == 0xa5);
    }
    memslots_reader_free(reader);
    memslots_free(ms);
}

// The region is the kernel's own struct: its layout is fixed for ever.
static void the_region_is_the_kernel_s(void)
{
    CHECK_EQ(sizeof(struct memslots_region), 160);
    CHECK_EQ(offsetof(struct memslots_region, slot), 0);
    CHECK_EQ(offsetof(struct memslots_region, flags), 4);
    CHECK_EQ(offsetof(struct memslots_region, guest_phys_addr), 8);
    CHECK_EQ(offsetof(struct memslots_region, memory_size), 16);
    CHECK_EQ(offsetof(struct memslots_region, userspace_addr), 24);
    CHECK_EQ(offsetof(struct memslots_region, guest_memfd_offset), 32);
    CHECK_EQ(offsetof(struct memslots_region, guest_memfd), 40);
    CHECK_EQ(offsetof(struct memslots_region, pad2), 48);
}

int main(void)
{
    RUN(config_of_nonsense_size);
    RUN(an_older_config);
    RUN(a_newer_config);
    RUN(ops_of_every_size);
    RUN(hooks_of_version_0_1);
    RUN(a_pause_without_a_resume);
    RUN(stats_of_every_size);
    RUN(reader_stats_of_every_size);
    RUN(the_region_is_the_kernel_s);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The structs that begin with their size: a program built against a smaller or larger one than the
// library's must be served, and nonsense be refused.

#include "test.h"

#define SMALLEST_CONFIG offsetof(struct memslots_config, hva_limit)

// A config of any size: what a later version may have added follows.
union any_config {
    struct memslots_config known;
    unsigned char bytes[4096 + 64];
};

static union any_config config;

static void set_up_config(size_t size)
{
    memset(&config, 0, sizeof(config));
    config.known = default_config();
    config.known.size = size;
}

static int new_with_config(void)
{
    struct memslots *ms = NULL;
    int err = memslots_new(&config.known, &ms);

    CHECK((err == 0) == (ms != NULL));
    memslots_free(ms);
    return err;
}

// Too small is refused, what is missing has its default, and what is beyond must be zero.
static void config_of_every_size(void)
{
    for (size_t size = 0; size <= 2 * sizeof(config.known); size++) {
        set_up_config(size);
        CHECK_EQ(new_with_config(), size < SMALLEST_CONFIG ? -EINVAL : 0);
        for (size_t i = sizeof(config.known); i < size; i++) {
            config.bytes[i] = 1;
            CHECK_EQ(new_with_config(), -E2BIG);
            config.bytes[i] = 0;
        }
        config.bytes[size < sizeof(config.known) ? sizeof(config.known) : size] =
            1; // not looked at
        CHECK_EQ(new_with_config(), size < SMALLEST_CONFIG ? -EINVAL : 0);
    }
}

static void config_of_nonsense_size(void)
{
    set_up_config(4096);
    CHECK_EQ(new_with_config(), 0);
    config.known.size = 4097;
    CHECK_EQ(new_with_config(), -E2BIG);
    config.known.size = SIZE_MAX; // not looked through to its end
    CHECK_EQ(new_with_config(), -E2BIG);
}

// As a program would have it that was built before the last members were added.
static void an_older_config(void)
{
    for (size_t size = SMALLEST_CONFIG; size < SMALLEST_CONFIG + sizeof(uint64_t); size++) {
        struct memslots *ms = NULL;

        set_up_config(size);
        config.known.hva_limit = 1; // not to be looked at, and no part of it
        config.known.gpa_bits = 1;  // nor this
        config.known.max_garbage = 1;
        config.known.max_slots = 10;
        CHECK_EQ(memslots_new(&config.known, &ms), 0);
        CHECK_EQ(set(ms, 9, 1000, 10), 0);
        CHECK_EQ(set(ms, 10, 2000, 10), -EINVAL);
        memslots_free(ms);
    }
}

// No byte is written beyond the caller's struct, and what it has beyond the library's is zero: so
// memslots_new accepts what memslots_config_init filled in, whichever of the two is newer.
static void defaults_of_every_size(void)
{
    for (size_t size = 0; size <= 2 * sizeof(config.known); size++) {
        memset(&config, 0xa5, sizeof(config));
        memslots_config_init_sized(&config.known, size);
        for (size_t i = size < SMALLEST_CONFIG ? 0 : size; i < sizeof(config); i++)
            CHECK(config.bytes[i] == 0xa5);
        if (size < SMALLEST_CONFIG)
            continue;
        CHECK_EQ(config.known.size, size);
        CHECK_EQ(new_with_config(), 0);
        for (size_t i = sizeof(config.known); i < size; i++)
            CHECK(config.bytes[i] == 0);
    }
}

// The function, for programs that cannot use the macro, fills in the struct of version 0.2.0.
static void defaults_without_the_macro(void)
{
    memset(&config, 0xa5, sizeof(config));
    (memslots_config_init)(&config.known);
    CHECK_EQ(config.known.size, sizeof(config.known)); // this version's
    CHECK(config.bytes[config.known.size] == 0xa5);
    CHECK_EQ(new_with_config(), 0);
}

// Hooks of any size: what a later version may have added follows.
static union any_ops {
    struct memslots_ops known;
    unsigned char bytes[4096 + 64];
} ops;

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static void set_up_ops(size_t size)
{
    memset(&ops, 0, sizeof(ops));
    ops.known.size = size;
    ops.known.release = release;
}

// The status of a table with these hooks; where it could be made, that they are called.
static int new_with_ops(const void *hooks)
{
    struct memslots_config with_ops = default_config();
    struct memslots *ms = NULL;

    with_ops.ops = (const struct memslots_ops *)hooks;
    int err = memslots_new(&with_ops, &ms);
    CHECK((err == 0) == (ms != NULL));
    nr_released = 0;
    if (!err)
        CHECK_EQ(set(ms, 1, 100, 10), 0);
    memslots_free(ms);
    return err;
}

static void ops_of_every_size(void)
{
    for (size_t size = 0; size <= 2 * sizeof(ops.known); size++) {
        set_up_ops(size);
        CHECK_EQ(new_with_ops(&ops), size < sizeof(ops.known) ? -EINVAL : 0);
        CHECK_EQ(nr_released, size < sizeof(ops.known) ? 0 : 1);
        for (size_t i = sizeof(ops.known); i < size; i++) {
            ops.bytes[i] = 1;
            CHECK_EQ(new_with_ops(&ops), -E2BIG);
            ops.bytes[i] = 0;
        }
    }
    set_up_ops(4096);
    CHECK_EQ(new_with_ops(&ops), 0);
    CHECK_EQ(nr_released, 1);
    ops.known.size = 4097;
    CHECK_EQ(new_with_ops(&ops), -E2BIG);
    ops.known.size = SIZE_MAX;
    CHECK_EQ(new_with_ops(&ops), -E2BIG);
}

// Version 0.1 had a hook where the size is now, set or NULL. On the heap, so that memcheck sees whether
// anything beyond it is read.
static void ops_of_version_0_1(void)
{
    void (**hooks)(void) = (void (**)(void))calloc(5, sizeof(*hooks)); // flush ... release

    REQUIRE(hooks);
    hooks[4] = (void (*)(void))release;
    CHECK_EQ(new_with_ops(hooks), -EINVAL);
    hooks[0] = (void (*)(void))release;
    CHECK_EQ(new_with_ops(hooks), -E2BIG);
    free(hooks);
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
    set_up_ops(sizeof(ops.known));
    ops.known.pause = stop;
    CHECK_EQ(new_with_ops(&ops), -EINVAL);
    ops.known.resume = go_on;
    CHECK_EQ(new_with_ops(&ops), 0);
    ops.known.pause = NULL;
    CHECK_EQ(new_with_ops(&ops), 0);
}

// A program's hooks are copied: it may change or lose its own.
static void ops_are_copied(void)
{
    struct memslots_config with_ops = default_config();
    struct memslots *ms = NULL;

    set_up_ops(sizeof(ops.known));
    with_ops.ops = &ops.known;
    REQUIRE(memslots_new(&with_ops, &ms) == 0);
    memset(&ops, 0xa5, sizeof(ops));
    nr_released = 0;
    CHECK_EQ(set(ms, 1, 100, 10), 0);
    memslots_free(ms);
    CHECK_EQ(nr_released, 1);
}

// What programs are compiled with cannot change any more.
static void the_layout_of_ops(void)
{
    CHECK_EQ(offsetof(struct memslots_ops, size), 0);
    CHECK_EQ(offsetof(struct memslots_ops, pause), 8);
    CHECK_EQ(offsetof(struct memslots_ops, resume), 16);
    CHECK_EQ(offsetof(struct memslots_ops, dirty), 24);
    CHECK_EQ(offsetof(struct memslots_ops, flush), 32);
    CHECK_EQ(offsetof(struct memslots_ops, prepare), 40);
    CHECK_EQ(offsetof(struct memslots_ops, cancel), 48);
    CHECK_EQ(offsetof(struct memslots_ops, commit), 56);
    CHECK_EQ(offsetof(struct memslots_ops, release), 64);
    CHECK_EQ(offsetof(struct memslots_ops, unmap), 72);
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
            CHECK_EQ(out.known.size, size < sizeof(out.known) ? size : sizeof(out.known));
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
    RUN(config_of_every_size);
    RUN(config_of_nonsense_size);
    RUN(an_older_config);
    RUN(defaults_of_every_size);
    RUN(defaults_without_the_macro);
    RUN(ops_of_every_size);
    RUN(ops_of_version_0_1);
    RUN(a_pause_without_a_resume);
    RUN(ops_are_copied);
    RUN(the_layout_of_ops);
    RUN(stats_of_every_size);
    RUN(reader_stats_of_every_size);
    RUN(the_region_is_the_kernel_s);
    return test_result();
}

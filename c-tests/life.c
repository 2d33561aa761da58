// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The life of a table and of its readers; what the defaults are and which configurations are refused.

#include "test.h"

static void defaults_are_those_of_kvm(void)
{
    struct memslots_config config;

    memset(&config, 0xa5, sizeof(config));
    memslots_config_init(&config);
    CHECK_EQ(config.size, sizeof(config));
    CHECK_EQ(config.nr_address_spaces, 1);
    CHECK_EQ(config.max_slots, 32764);
    CHECK_EQ(config.sync, 0);
    CHECK_EQ(config.no_membarrier, 0);
    CHECK_EQ(config.max_garbage, 0);
    CHECK_EQ(config.gpa_bits, 52);
    CHECK(config.ops == NULL);
    CHECK(config.supported_flags & MEMSLOTS_LOG_DIRTY_PAGES);
    CHECK(config.supported_flags & MEMSLOTS_READONLY);
    CHECK(!(config.supported_flags & MEMSLOTS_INVALID));
#ifdef __x86_64__
    CHECK_EQ(config.page_shift, 12);
    CHECK_EQ(config.hva_limit, (UINT64_C(1) << 47) - 4096);
#endif
}

static void null_config_means_defaults(void)
{
    struct memslots *ms = NULL;

    CHECK_EQ(memslots_new(NULL, &ms), 0);
    CHECK(ms != NULL);
    CHECK_EQ(set(ms, 32763, 0, 16), 0);
    CHECK_EQ(set(ms, 32764, 16, 16), -EINVAL);
    memslots_free(ms);
}

static void a_new_table_is_empty(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(memslots_count(reader, 0), 0);
    CHECK_EQ(memslots_npages(reader, 0), 0);
    CHECK_EQ(memslots_generation(reader, 0), 0);
    CHECK_EQ(id_at(reader, 0, 0), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void readers_come_and_go(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *first = new_reader(ms);

    CHECK_EQ(set(ms, 7, 100, 10), 0);
    for (int i = 0; i < 200; i++) {
        struct memslots_reader *reader = new_reader(ms);
        CHECK_EQ(id_at(reader, 0, 109), 7);
        memslots_reader_free(reader);
    }
    CHECK_EQ(id_at(first, 0, 100), 7);
    memslots_reader_free(first);
    memslots_free(ms);
}

static int nr_released;

static void count_release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static void a_reader_may_outlive_its_table(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = count_release};
    struct memslots_config config = default_config();
    config.ops = &ops;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);

    nr_released = 0;
    CHECK_EQ(set(ms, 7, 100, 10), 0);
    CHECK_EQ(id_at(reader, 0, 100), 7);
    memslots_free(ms);
    CHECK_EQ(nr_released, 1);
    CHECK_EQ(id_at(reader, 0, 100), -1);
    CHECK_EQ(memslots_count(reader, 0), 0);
    memslots_reader_free(reader);
}

// Freed from inside the caller's own section: what that has found stays good until the reader goes.
static void a_table_freed_inside_a_section(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = count_release};
    struct memslots_config config = default_config();
    config.ops = &ops;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);

    nr_released = 0;
    CHECK_EQ(set(ms, 7, 100, 10), 0);
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 100);
    REQUIRE(slot);
    memslots_free(ms);
    CHECK_EQ(nr_released, 0);
    CHECK_EQ(slot->npages, 10);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    CHECK_EQ(nr_released, 1);
}

static void a_reader_freed_inside_its_section(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);

    memslots_read_lock(reader);
    memslots_read_lock(reader);
    memslots_reader_free(reader); // ends it
    CHECK_EQ(memslots_try_synchronize(ms), 0);
    memslots_free(ms);
}

static void tables_do_not_know_each_other(void)
{
    enum { NR = 50 };
    struct memslots *ms[NR];

    for (int i = 0; i < NR; i++) {
        ms[i] = new_table();
        CHECK_EQ(set(ms[i], (uint32_t)i, 0, 1), 0);
    }
    for (int i = 0; i < NR; i++) {
        struct memslots_reader *reader = new_reader(ms[i]);
        CHECK_EQ(id_at(reader, 0, 0), i);
        CHECK_EQ(memslots_count(reader, 0), 1);
        memslots_reader_free(reader);
        memslots_free(ms[i]);
    }
}

static void refused(struct memslots_config config)
{
    struct memslots *ms = (struct memslots *)&config; // any value, to see it left alone

    CHECK_EQ(memslots_new(&config, &ms), -EINVAL);
    CHECK(ms == (struct memslots *)&config);
}

static void nonsense_configurations_are_refused(void)
{
    struct memslots_config config = default_config();

    config.nr_address_spaces = 0;
    refused(config);
    config = default_config();
    config.nr_address_spaces = UINT32_MAX;
    refused(config);
    config = default_config();
    config.max_slots = 0;
    refused(config);
    config = default_config();
    config.max_slots = 65536;
    refused(config);
    config = default_config();
    config.page_shift = 64;
    refused(config);
    config = default_config();
    config.supported_flags |= MEMSLOTS_INVALID;
    refused(config);
    config = default_config();
    config.no_membarrier = 2;
    refused(config);
}

static void the_widest_table(void)
{
    struct memslots_config config = default_config();
    config.max_slots = 65535;
    struct memslots *ms = new_table_with(&config);
    struct memslots_reader *reader = new_reader(ms);

    CHECK_EQ(set(ms, 65534, 5, 5), 0);
    CHECK_EQ(set(ms, 65535, 50, 5), -EINVAL);
    CHECK_EQ(id_at(reader, 0, 5), 65534);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void version_is_that_of_the_header(void)
{
    char version[64];

    snprintf(version, sizeof(version), "%d.%d.%d", MEMSLOTS_VERSION_MAJOR, MEMSLOTS_VERSION_MINOR,
             MEMSLOTS_VERSION_PATCH);
    CHECK(strncmp(memslots_version(), version, strlen(version)) == 0);
}

int main(void)
{
    RUN(defaults_are_those_of_kvm);
    RUN(null_config_means_defaults);
    RUN(a_new_table_is_empty);
    RUN(readers_come_and_go);
    RUN(a_reader_may_outlive_its_table);
    RUN(a_table_freed_inside_a_section);
    RUN(a_reader_freed_inside_its_section);
    RUN(tables_do_not_know_each_other);
    RUN(nonsense_configurations_are_refused);
    RUN(the_widest_table);
    RUN(version_is_that_of_the_header);
    return test_result();
}

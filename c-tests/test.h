// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The little that the C tests need: checks that say where and what, and short names for the usual
// table. A test program is a main() that RUN()s its cases and returns test_result(); each case
// prints one line, PASS, FAIL or SKIPPED, which c-tests/run counts.

#ifndef MEMSLOTS_C_TESTS_TEST_H
#define MEMSLOTS_C_TESTS_TEST_H

#include <memslots.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_failures; // of the running case
static int test_failed_cases;
static const char *test_skip_reason;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("    %s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                     \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

#define CHECK_EQ(got, want)                                                                        \
    do {                                                                                           \
        long long got_ = (long long)(got), want_ = (long long)(want);                              \
        if (got_ != want_) {                                                                       \
            printf("    %s:%d: %s is %lld, should be %lld\n", __FILE__, __LINE__, #got, got_,      \
                   want_);                                                                         \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

// What a test cannot go on without.
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("    %s:%d: cannot go on without: %s\n", __FILE__, __LINE__, #condition);       \
            printf("FAIL %s\n", __FILE__);                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define RUN(test) test_run(__FILE__, #test, test)

static inline void test_run(const char *file, const char *name, void (*test)(void))
{
    test_failures = 0;
    test_skip_reason = NULL;
    test();
    if (test_failures) {
        printf("FAIL %s: %s\n", file, name);
        test_failed_cases++;
    } else if (test_skip_reason) {
        printf("SKIPPED %s: %s: %s\n", file, name, test_skip_reason);
    } else {
        printf("PASS %s: %s\n", file, name);
    }
    fflush(stdout);
}

static inline int test_result(void)
{
    return test_failed_cases ? 1 : 0;
}

// Set by c-tests/run where everything takes twenty times as long.
static inline bool under_valgrind(void)
{
    return getenv("MEMSLOTS_TEST_VALGRIND") != NULL;
}

#define PAGE_SHIFT 12
#define PAGE       (UINT64_C(1) << PAGE_SHIFT)
#define HVA        UINT64_C(0x7f0000000000) // never touched, only calculated with

// A slot that is mapped one to one above HVA.
static inline struct memslots_region ram(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region;

    memset(&region, 0, sizeof(region));
    region.slot = slot;
    region.guest_phys_addr = gfn * PAGE;
    region.memory_size = npages * PAGE;
    region.userspace_addr = HVA + gfn * PAGE;
    return region;
}

static inline struct memslots_config default_config(void)
{
    struct memslots_config config;

    memslots_config_init(&config);
    config.page_shift = PAGE_SHIFT;
    return config;
}

static inline struct memslots *new_table_with(const struct memslots_config *config)
{
    struct memslots *ms = NULL;

    REQUIRE(memslots_new(config, &ms) == 0 && ms);
    return ms;
}

static inline struct memslots *new_table(void)
{
    struct memslots_config config = default_config();

    return new_table_with(&config);
}

static inline struct memslots_reader *new_reader(struct memslots *ms)
{
    struct memslots_reader *reader = NULL;

    REQUIRE(memslots_reader_new(ms, &reader) == 0 && reader);
    return reader;
}

static inline struct memslots_txn *begin(struct memslots *ms)
{
    struct memslots_txn *txn = NULL;

    REQUIRE(memslots_txn_begin(ms, &txn) == 0 && txn);
    return txn;
}

static inline int set(struct memslots *ms, uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);

    return memslots_set_region(ms, &region, NULL);
}

// The id found at a gfn, in a section of its own; -1 where there is none.
static inline int id_at(struct memslots_reader *reader, uint16_t as_id, uint64_t gfn)
{
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, as_id, gfn);
    int id = slot ? slot->id : -1;
    memslots_read_unlock(reader);
    return id;
}

#endif

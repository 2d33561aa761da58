// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What a reader does in its sections, beside an updater that never stops: it allocates nothing and frees nothing, also
// when it comes back after a while and its pin on the epoch is gone. Without membarrier() it does, now and then, which
// is how the test knows that it would see it.

#define _GNU_SOURCE // RTLD_NEXT
#include "thread.h"

#include <dlfcn.h>

static _Thread_local bool in_section;
static atomic_long nr_malloc, nr_free;

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

void *malloc(size_t size)
{
    static void *(*real)(size_t);

    if (!real)
        *(void **)&real = next("malloc");
    if (in_section)
        atomic_fetch_add(&nr_malloc, 1);
    return real(size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
    static int (*real)(void **, size_t, size_t);

    if (!real)
        *(void **)&real = next("posix_memalign");
    if (in_section)
        atomic_fetch_add(&nr_malloc, 1);
    return real(out, align, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    static void *(*real)(size_t, size_t);

    if (!real)
        *(void **)&real = next("aligned_alloc");
    if (in_section)
        atomic_fetch_add(&nr_malloc, 1);
    return real(align, size);
}

void free(void *block)
{
    static void (*real)(void *);

    if (!real)
        *(void **)&real = next("free");
    if (in_section && block)
        atomic_fetch_add(&nr_free, 1);
    real(block);
}

enum { NR_SLOTS = 500, NR_READERS = 2 };

static struct memslots *ms;
static atomic_bool over;
static long nr_sections; // of each reader

static void *update(void *arg)
{
    for (uint32_t i = 0; !atomic_load(&over); i++)
        memslots_set_flags(ms, 0, (uint16_t)(i % NR_SLOTS), i / NR_SLOTS % 2);
    return arg;
}

static void look_up(struct memslots_reader *reader, uint64_t i)
{
    uint64_t hva;

    in_section = true;
    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, i % NR_SLOTS * 10) != NULL);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, i % NR_SLOTS * 10 * PAGE, MEMSLOTS_READ, &hva, NULL),
             0);
    memslots_read_unlock(reader);
    CHECK(memslots_find_hva(reader, 0, hva) != NULL);
    memslots_read_unlock(reader);
    in_section = false;
}

// Bursts of sections, and between them so much time that the pin is taken away.
static void *read_on(void *arg)
{
    struct memslots_reader *reader = new_reader(ms);

    for (long i = 0; i < nr_sections; i++) {
        look_up(reader, (uint64_t)i);
        if (i % (nr_sections / 400) == 0)
            nap();
    }
    memslots_reader_free(reader);
    return arg;
}

static void run_with(uint32_t no_membarrier)
{
    struct memslots_config config;
    pthread_t readers[NR_READERS], updater;

    memslots_config_init(&config);
    config.no_membarrier = no_membarrier;
    REQUIRE(memslots_new(&config, &ms) == 0);
    for (uint32_t i = 0; i < NR_SLOTS; i++)
        set(ms, i, 10 * i, 5);
    nr_sections = under_valgrind() ? 4000 : 2 * 1000 * 1000;
    atomic_store(&nr_malloc, 0);
    atomic_store(&nr_free, 0);
    atomic_store(&over, false);
    updater = start(update, NULL);
    for (int i = 0; i < NR_READERS; i++)
        readers[i] = start(read_on, NULL);
    for (int i = 0; i < NR_READERS; i++)
        pthread_join(readers[i], NULL);
    atomic_store(&over, true);
    pthread_join(updater, NULL);
}

static uint64_t kept_pins(void)
{
    struct memslots_stats stats;

    REQUIRE(memslots_get_stats(ms, &stats, sizeof(stats)) == 0);
    return stats.kept_pins;
}

static void sections_allocate_nothing(void)
{
    struct memslots_stats stats;

    run_with(0);
    if (!kept_pins()) {
        test_skip_reason = "no membarrier() here";
    } else {
        CHECK_EQ(atomic_load(&nr_malloc), 0);
        CHECK_EQ(atomic_load(&nr_free), 0);
    }
    memslots_synchronize(ms);
    REQUIRE(memslots_get_stats(ms, &stats, sizeof(stats)) == 0);
    CHECK_EQ(stats.garbage_objects, 0);
    memslots_free(ms);
}

static void without_membarrier_the_test_sees_them(void)
{
    run_with(1);
    CHECK_EQ(kept_pins(), 0);
    if (!under_valgrind()) // which has an allocator of its own
        CHECK(atomic_load(&nr_free) > 0);
    memslots_free(ms);
}

// An idle reader, and one that is gone with its pin, are in nobody's way.
static void idle_readers_hold_nothing_back(void)
{
    struct memslots_stats stats;
    struct memslots_reader *idle;

    ms = new_table();
    idle = new_reader(ms);
    set(ms, 1, 10, 5);
    for (int i = 0; i < 200; i++) {
        memslots_read_lock(idle);
        CHECK(memslots_find_id(idle, 0, 1) != NULL);
        memslots_read_unlock(idle);
        for (uint32_t k = 0; k < 200; k++)
            CHECK_EQ(memslots_set_flags(ms, 0, 1, k & 1), 0);
        memslots_synchronize(ms);
        REQUIRE(memslots_get_stats(ms, &stats, sizeof(stats)) == 0);
        CHECK_EQ(stats.garbage_bytes, 0);
    }
    memslots_reader_free(idle);
    memslots_free(ms);
}

int main(void)
{
    RUN(sections_allocate_nothing);
    RUN(without_membarrier_the_test_sees_them);
    RUN(idle_readers_hold_nothing_back);
    return test_result();
}

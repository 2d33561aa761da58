// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The library as a plug-in: opened, used on threads that outlive the dlclose, closed, opened again.
// Not linked against it. The name comes from MEMSLOTS_SO, which c-tests/run sets.

#define _DEFAULT_SOURCE
#include "test.h"

#include <dlfcn.h>
#include <pthread.h>

static void *library;
static pthread_barrier_t used, closed;

// ISO C has no cast from an object's pointer to a function's; POSIX promises the representation.
#define FUNCTION(name)                                                                             \
    __extension__ __typeof__(&(name)) name##_ = (__typeof__(&(name)))dlsym(library, #name)

static void open_library(void)
{
    const char *name = getenv("MEMSLOTS_SO");

    library = dlopen(name ? name : "libmemslots.so", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        printf("    %s\n", dlerror());
    REQUIRE(library);
}

static void use_library(void)
{
    FUNCTION(memslots_new);
    FUNCTION(memslots_free);
    FUNCTION(memslots_set_region);
    FUNCTION(memslots_delete);
    FUNCTION(memslots_reader_new);
    FUNCTION(memslots_reader_free);
    FUNCTION(memslots_read_lock);
    FUNCTION(memslots_read_unlock);
    FUNCTION(memslots_find_gfn);
    struct memslots *ms = NULL;
    struct memslots_reader *reader = NULL;
    struct memslots_region region = ram(3, 100, 10);

    REQUIRE(memslots_new_(NULL, &ms) == 0);
    REQUIRE(memslots_reader_new_(ms, &reader) == 0);
    CHECK_EQ(memslots_set_region_(ms, &region, NULL), 0);
    memslots_read_lock_(reader);
    const struct memslot *slot = memslots_find_gfn_(reader, 0, 109);
    CHECK(slot && slot->id == 3);
    memslots_read_unlock_(reader);
    CHECK_EQ(memslots_delete_(ms, 0, 3), 0);
    memslots_reader_free_(reader);
    memslots_free_(ms);
}

static void open_use_close_again_and_again(void)
{
    for (int i = 0; i < 10; i++) {
        open_library();
        use_library();
        CHECK_EQ(dlclose(library), 0);
    }
}

static void *use_and_outlive(void *arg)
{
    use_library();
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&closed);
    return arg; // thread-local destructors run now
}

static void threads_outlive_the_dlclose(void)
{
    enum { NR = 4 };
    pthread_t threads[NR];

    pthread_barrier_init(&used, NULL, NR + 1);
    pthread_barrier_init(&closed, NULL, NR + 1);
    open_library();
    for (int i = 0; i < NR; i++)
        REQUIRE(pthread_create(&threads[i], NULL, use_and_outlive, NULL) == 0);
    pthread_barrier_wait(&used);
    CHECK_EQ(dlclose(library), 0);
    pthread_barrier_wait(&closed);
    for (int i = 0; i < NR; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    pthread_barrier_destroy(&used);
    pthread_barrier_destroy(&closed);
}

int main(void)
{
    RUN(open_use_close_again_and_again);
    RUN(threads_outlive_the_dlclose);
    return test_result();
}

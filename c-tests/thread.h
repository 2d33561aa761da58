// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Threads that come, wait for each other, and die.

#ifndef MEMSLOTS_C_TESTS_THREAD_H
#define MEMSLOTS_C_TESTS_THREAD_H

#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static inline void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

// Long enough for another thread to come to where it waits.
static inline void long_nap(void)
{
    for (int i = 0; i < (under_valgrind() ? 300 : 30); i++)
        nap();
}

static inline pthread_t start(void *(*body)(void *), void *arg)
{
    pthread_t thread;

    REQUIRE(pthread_create(&thread, NULL, body, arg) == 0);
    return thread;
}

// A thread in a read-side section, from sit_down() to stand_up(). It has a reader of its own.
struct sitter {
    struct memslots *ms;
    pthread_t thread;
    atomic_bool inside, leave;
};

static inline void *sit(void *arg)
{
    struct sitter *sitter = arg;
    struct memslots_reader *reader = new_reader(sitter->ms);

    memslots_read_lock(reader);
    atomic_store(&sitter->inside, true);
    while (!atomic_load(&sitter->leave))
        nap();
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    return NULL;
}

static inline void sit_down(struct sitter *sitter, struct memslots *ms)
{
    sitter->ms = ms;
    atomic_store(&sitter->inside, false);
    atomic_store(&sitter->leave, false);
    sitter->thread = start(sit, sitter);
    while (!atomic_load(&sitter->inside))
        nap();
}

static inline void stand_up(struct sitter *sitter)
{
    atomic_store(&sitter->leave, true);
    pthread_join(sitter->thread, NULL);
}

#endif

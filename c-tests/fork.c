// SPDX-License-Identifier: MIT OR Apache-2.0
//
// After fork the child may exec, or free what it inherited; the parent goes on as if nothing was.

#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static struct memslots *table(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};
    struct memslots_config config = default_config();
    config.ops = &ops;
    config.max_garbage = 64 << 20; // where a child hangs, the parent does not fill the machine
    struct memslots *ms = new_table_with(&config);

    nr_released = 0;
    for (uint32_t i = 0; i < 100; i++)
        REQUIRE(set(ms, i, i * 2, 1) == 0);
    return ms;
}

static int exit_status_of(pid_t child)
{
    int status = -1;

    REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void the_child_may_free(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    memslots_read_lock(reader);
    memslots_delete(ms, 0, 7);
    memslots_read_unlock(reader);
    pid_t child = fork();
    if (child == 0) {
        memslots_reader_free(reader);
        memslots_free(ms);
        _exit(nr_released == 0 ? 0 : 1); // what the hooks know of is the parent's
    }
    CHECK_EQ(exit_status_of(child), 0);

    CHECK_EQ(id_at(reader, 0, 16), 8);
    CHECK_EQ(set(ms, 7, 14, 1), 0);
    memslots_synchronize(ms);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 101);
}

static void the_child_may_exec(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    memslots_read_lock(reader); // even from inside a section
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    CHECK_EQ(exit_status_of(child), 0);
    CHECK(memslots_find_gfn(reader, 0, 0) != NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static struct memslots *shared;
static atomic_bool inside, leave;

static void *sit(void *arg)
{
    struct memslots_reader *reader = new_reader(shared);

    memslots_read_lock(reader);
    CHECK(memslots_find_gfn(reader, 0, 0) != NULL);
    atomic_store(&inside, true);
    while (!atomic_load(&leave))
        nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    return arg;
}

static void *delete_one(void *arg)
{
    CHECK_EQ(memslots_delete(shared, 0, 7), 0);
    return arg;
}

static void ignore(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

// Forked while one thread reads and another, with the lock in its hand, waits for it. In the child
// neither is there any more, and free must not wait for them.
static void the_child_may_free_what_other_threads_held(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = ignore, .release = release};
    struct memslots_config config = default_config();
    pthread_t sitter, updater;

    config.ops = &ops;
    shared = new_table_with(&config);
    nr_released = 0;
    for (uint32_t i = 0; i < 100; i++)
        REQUIRE(set(shared, i, i * 2, 1) == 0);
    struct memslots_reader *reader = new_reader(shared);
    uint64_t generation = memslots_generation(reader, 0);
    atomic_store(&inside, false);
    atomic_store(&leave, false);
    REQUIRE(pthread_create(&sitter, NULL, sit, NULL) == 0);
    while (!atomic_load(&inside))
        ;
    REQUIRE(pthread_create(&updater, NULL, delete_one, NULL) == 0);
    while (memslots_generation(reader, 0) == generation)
        ;
    pid_t child = fork();
    if (child == 0) {
        alarm(20); // a hang is a failure, not a hang
        memslots_reader_free(reader);
        memslots_free(shared);
        execl("/bin/true", "true",
              (char *)NULL); // what the other threads were at is lost to the child
        _exit(127);
    }
    CHECK_EQ(exit_status_of(child), 0);
    atomic_store(&leave, true);
    pthread_join(sitter, NULL);
    pthread_join(updater, NULL);
    CHECK_EQ(id_at(reader, 0, 14), -1);
    memslots_reader_free(reader);
    memslots_free(shared);
    CHECK_EQ(nr_released, 100);
}

static void *move_about(void *arg)
{
    for (uint64_t i = 0; !atomic_load(&leave); i++)
        CHECK_EQ(memslots_move(shared, 0, (uint16_t)(i % 100), (i % 100 * 2 + i / 100 % 2) * PAGE),
                 0);
    return arg;
}

static atomic_int sections_wanted;

// In a section until the next one is wanted, so that garbage piles up, but not for ever.
static void *sit_again_and_again(void *arg)
{
    struct memslots_reader *reader = new_reader(shared);

    while (!atomic_load(&leave)) {
        memslots_read_lock(reader);
        int wanted = atomic_load(&sections_wanted);
        while (!atomic_load(&leave) && atomic_load(&sections_wanted) == wanted)
            nanosleep(&(struct timespec){.tv_nsec = 100 * 1000}, NULL);
        memslots_read_unlock(reader);
    }
    memslots_reader_free(reader);
    return arg;
}

// Forked in the middle of whatever an update does, with bags of garbage in the queue.
static void the_child_may_free_in_the_middle_of_an_update(void)
{
    const int forks = under_valgrind() ? 5 : 100;
    struct memslots_stats stats;
    pthread_t sitter, updater;

    shared = table();
    struct memslots_reader *reader = new_reader(shared);
    atomic_store(&leave, false);
    REQUIRE(pthread_create(&sitter, NULL, sit_again_and_again, NULL) == 0);
    REQUIRE(pthread_create(&updater, NULL, move_about, NULL) == 0);
    for (int i = 0; i < forks && !test_failures; i++) {
        atomic_fetch_add(&sections_wanted, 1);
        do {
            CHECK_EQ(memslots_get_stats(shared, &stats, sizeof(stats)), 0);
        } while (stats.garbage_bytes < 256 * 1024);
        pid_t child = fork();
        if (child == 0) {
            alarm(20); // a hang is a failure, not a hang
            memslots_reader_free(reader);
            memslots_free(shared);
            if (nr_released != 0 && nr_released != 100)
                abort(); // neither left as it was nor taken down
            execl("/bin/true", "true", (char *)NULL);
            _exit(127);
        }
        CHECK_EQ(exit_status_of(child), 0);
    }
    atomic_store(&leave, true);
    pthread_join(updater, NULL);
    pthread_join(sitter, NULL);
    memslots_synchronize(shared);
    CHECK_EQ(memslots_get_stats(shared, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.garbage_bytes, 0);
    memslots_reader_free(reader);
    memslots_free(shared);
    CHECK_EQ(nr_released, 100);
}

int main(void)
{
    RUN(the_child_may_free);
    RUN(the_child_may_exec);
    RUN(the_child_may_free_what_other_threads_held);
    RUN(the_child_may_free_in_the_middle_of_an_update);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Threads that end where they should not, or are told to: in a section, with a transaction open, in the middle of a
// call. And forks at such moments.

#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct memslots *ms;
static struct memslots_reader *reader;
static atomic_int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    atomic_fetch_add(&nr_released, 1);
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

static void set_up(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = flush, .release = release};
    struct memslots_config config = default_config();

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    atomic_store(&nr_released, 0);
    for (uint32_t i = 0; i < 10; i++)
        REQUIRE(set(ms, i, 10 * i, 5) == 0);
}

// Runs a function on a thread of its own, until it has ended; gives the thread's pthread_self().
static pthread_t run_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread;

    REQUIRE(pthread_create(&thread, NULL, function, argument) == 0);
    pthread_join(thread, NULL);
    return thread;
}

// As a child process, with a time limit. The exit status, or -1 where it died.
static int in_child(int (*function)(void))
{
    int status;

    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(under_valgrind() ? 60 : 10);
        _exit(function());
    }
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
    if (under_valgrind() && WIFEXITED(status) && WEXITSTATUS(status) == 99)
        return 0; // what the threads had that are not in the child is lost there, and memcheck says so
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// ---- threads that die ----

static void *dies_in_a_section(void *unused)
{
    memslots_read_lock(reader);
    return unused;
}

static void *updates(void *result)
{
    *(int *)result = memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES); // waits for nobody
    return NULL;
}

static void *deletes(void *result)
{
    *(int *)result = memslots_delete(ms, 0, 2); // waits for readers
    return NULL;
}

static void a_thread_that_dies_in_a_section(void)
{
    set_up();
    int err = 1;
    pthread_t dead = run_thread(dies_in_a_section, NULL);
    pthread_t next = run_thread(updates, &err);
    CHECK(pthread_equal(dead,
                        next)); // the C library gives the stack and the number of the dead again
    CHECK_EQ(err, 0);
    memslots_reader_free(reader); // which ends the section
    next = run_thread(deletes, &err);
    CHECK(pthread_equal(dead, next));
    CHECK_EQ(err, 0);
    memslots_synchronize(ms);
    CHECK_EQ(nr_released, 1);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

static struct memslots_txn *left_open;

static void *dies_in_a_transaction(void *unused)
{
    left_open = begin(ms);
    CHECK_EQ(memslots_txn_delete(left_open, 0, 3), 0);
    return unused;
}

static void *tries_its_handle(void *unused)
{
    CHECK_EQ(memslots_txn_delete(left_open, 0, 4), -EINVAL);
    CHECK_EQ(memslots_txn_commit(left_open), -EINVAL);
    memslots_txn_abort(left_open); // nothing happens
    return unused;
}

static void a_thread_that_dies_with_a_transaction_open(void)
{
    set_up();
    pthread_t dead = run_thread(dies_in_a_transaction, NULL);
    pthread_t next = run_thread(tries_its_handle, NULL);
    CHECK(pthread_equal(dead, next));
    CHECK_EQ(id_at(reader, 0, 30), 3);
    memslots_free(ms); // aborts it
    CHECK_EQ(nr_released, 10);
    CHECK_EQ(id_at(reader, 0, 30), -1);
    memslots_reader_free(reader);
}

// ---- forks ----

static int frees(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    return nr_released;
}

static sem_t begun, go_on;

static void *has_a_transaction(void *unused)
{
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(memslots_txn_delete(txn, 0, 3), 0);
    sem_post(&begun);
    sem_wait(&go_on);
    CHECK_EQ(memslots_txn_delete(txn, 0, 4), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    return unused;
}

static void a_fork_while_another_thread_has_a_transaction(void)
{
    FILE *trace = tmpfile();
    char line[512], lines = 0, commits = 0;
    pthread_t thread;

    set_up();
    REQUIRE(trace && memslots_trace_start(ms, fileno(trace)) == 0);
    sem_init(&begun, 0, 0);
    sem_init(&go_on, 0, 0);
    REQUIRE(pthread_create(&thread, NULL, has_a_transaction, NULL) == 0);
    sem_wait(&begun);
    CHECK_EQ(in_child(frees), 0); // no hook is called there
    sem_post(&go_on);
    pthread_join(thread, NULL);
    CHECK_EQ(id_at(reader, 0, 30), -1);
    CHECK_EQ(id_at(reader, 0, 40), -1);
    rewind(trace);
    while (fgets(line, sizeof(line), trace)) {
        lines++;
        commits += strstr(line, "op=commit") != NULL;
        CHECK(!strstr(line, "op=abort")); // as the child's would be
    }
    CHECK_EQ(lines, 10 + 4);
    CHECK_EQ(commits, 1);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
    fclose(trace);
}

static void a_fork_with_a_transaction_of_its_own(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 3), 0);
    CHECK_EQ(in_child(frees), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 30), -1);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

static void a_fork_inside_a_section(void)
{
    set_up();
    memslots_read_lock(reader);
    CHECK_EQ(in_child(frees), 0);
    CHECK(memslots_find_gfn(reader, 0, 30) != NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

static void *waits_for_readers(void *unused)
{
    CHECK_EQ(memslots_delete(ms, 0, 5), 0);
    return unused;
}

static void a_fork_while_another_thread_waits_for_readers(void)
{
    struct timespec a_while = {.tv_nsec = 50000000};
    pthread_t thread;

    set_up();
    memslots_read_lock(reader);
    REQUIRE(pthread_create(&thread, NULL, waits_for_readers, NULL) == 0);
    nanosleep(&a_while, NULL);
    CHECK_EQ(in_child(frees), 0);
    memslots_read_unlock(reader);
    pthread_join(thread, NULL);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 10);
}

// ---- pthread_cancel ----

static void (*called)(void);
static sem_t inside;
static atomic_int nr_calls_returned;

static void tell_and_sleep(void)
{
    struct timespec a_while = {.tv_nsec = 20000000};

    sem_post(&inside);
    nanosleep(&a_while, NULL); // a cancellation point
    nanosleep(&a_while, NULL);
}

static void sleepy_flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
    tell_and_sleep();
}

static int sleepy_prepare(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    tell_and_sleep();
    return 0;
}

static void sleepy_commit(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    tell_and_sleep();
}

static void sleepy_release(void *ctx, const struct memslot *gone)
{
    release(ctx, gone);
    tell_and_sleep();
}

static void sleepy_unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    (void)hva;
    (void)size;
    tell_and_sleep();
}

static void *calls(void *unused)
{
    called();
    atomic_fetch_add(&nr_calls_returned, 1);
    pthread_testcancel();
    return unused;
}

// Cancels a thread that is in a call: the call is finished, and then the thread ends.
static void cancel_in(void (*call)(void), bool told)
{
    struct timespec a_while = {.tv_nsec = 20000000};
    pthread_t thread;
    void *result = NULL;

    called = call;
    sem_init(&inside, 0, 0);
    atomic_store(&nr_calls_returned, 0);
    REQUIRE(pthread_create(&thread, NULL, calls, NULL) == 0);
    if (told)
        sem_wait(&inside);
    else
        nanosleep(&a_while, NULL);
    pthread_cancel(thread);
    if (!told) {
        nanosleep(&a_while, NULL);
        memslots_read_unlock(reader); // what it waits for
    }
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_EQ(nr_calls_returned, 1);
    CHECK_EQ(set(ms, 50, 5000, 5), 0); // the lock is free
    CHECK_EQ(memslots_delete(ms, 0, 50), 0);
}

static void delete_3(void)
{
    CHECK_EQ(memslots_delete(ms, 0, 3), 0);
}

static void delete_4_and_synchronize(void)
{
    CHECK_EQ(memslots_delete(ms, 0, 4), 0);
    memslots_synchronize(ms);
}

static void synchronize(void)
{
    memslots_synchronize(ms);
}

static void set_up_with(const struct memslots_ops *ops)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    atomic_store(&nr_released, 0);
    for (uint32_t i = 0; i < 10; i++)
        REQUIRE(set(ms, i, 10 * i, 5) == 0);
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void a_thread_that_is_cancelled_in_a_hook(void)
{
    const struct memslots_ops ops[] = {{MEMSLOTS_OPS_INIT, .flush = sleepy_flush},
                                       {MEMSLOTS_OPS_INIT, .prepare = sleepy_prepare},
                                       {MEMSLOTS_OPS_INIT, .commit = sleepy_commit},
                                       {MEMSLOTS_OPS_INIT, .release = sleepy_release},
                                       {MEMSLOTS_OPS_INIT, .unmap = sleepy_unmap}};

    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        set_up_with(&ops[i]);
        cancel_in(delete_4_and_synchronize, true);
        CHECK_EQ(id_at(reader, 0, 40), -1);
        tear_down();
    }
}

static void a_thread_that_is_cancelled_while_it_waits_for_readers(void)
{
    set_up();
    memslots_read_lock(reader);
    cancel_in(delete_3, false);
    CHECK_EQ(id_at(reader, 0, 30), -1);
    memslots_read_lock(reader);
    cancel_in(synchronize, false);
    tear_down();
    CHECK_EQ(nr_released, 12); // also those that were made to see that the lock is free
}

// ---- longjmp ----

static jmp_buf out;

static int jumps(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    longjmp(out, 1);
}

static void *is_made_to_wait(void *unused)
{
    memslots_delete(ms, 0, 2);
    _exit(3); // the lock was free
    return unused;
}

static int after_a_longjmp(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .prepare = jumps};
    struct memslots_config config = default_config();
    struct timespec a_while = {.tv_nsec = 50000000};
    pthread_t thread;

    config.ops = &ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    if (setjmp(out) == 0) {
        set(ms, 1, 0, 5);
        return 1; // it came back
    }
    if (set(ms, 2, 10, 5) != -EDEADLK || id_at(reader, 0, 0) != -1)
        return 2;
    REQUIRE(pthread_create(&thread, NULL, is_made_to_wait, NULL) == 0);
    nanosleep(&a_while, NULL);
    return 0;
}

static void a_longjmp_out_of_a_hook(void)
{
    CHECK_EQ(in_child(after_a_longjmp), 0);
}

int main(void)
{
    RUN(a_thread_that_dies_in_a_section);
    RUN(a_thread_that_dies_with_a_transaction_open);
    RUN(a_fork_while_another_thread_has_a_transaction);
    RUN(a_fork_with_a_transaction_of_its_own);
    RUN(a_fork_inside_a_section);
    RUN(a_fork_while_another_thread_waits_for_readers);
    RUN(a_thread_that_is_cancelled_in_a_hook);
    RUN(a_thread_that_is_cancelled_while_it_waits_for_readers);
    RUN(a_longjmp_out_of_a_hook);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// pthread_cancel() of a thread that is in a call which runs hooks, waits or writes: the request is held
// back until the call has returned, so that the update is whole and the update lock free.

#define _GNU_SOURCE // F_SETPIPE_SZ, pthread_tryjoin_np
#include "thread.h"

#include <fcntl.h>
#include <unistd.h>

static struct memslots *ms;
static struct memslots_reader *reader;
static int nr_released, nr_created;

// ---- a call on a thread that is cancelled meanwhile ----

struct call {
    const char *name;
    void (*run)(void);
    pthread_t thread;
    atomic_bool has_returned, went_on;
};

static void *run_and_die(void *arg)
{
    struct call *call = arg;

    call->run();
    atomic_store(&call->has_returned, true);
    pthread_testcancel();
    atomic_store(&call->went_on, true);
    return NULL;
}

static void begin_call(struct call *call)
{
    atomic_store(&call->has_returned, false);
    atomic_store(&call->went_on, false);
    call->thread = start(run_and_die, call);
}

static void check_ended(struct call *call, void *result)
{
    if (!atomic_load(&call->has_returned) || atomic_load(&call->went_on)) {
        printf("    %s: %s\n", call->name,
               atomic_load(&call->went_on) ? "the request was lost" : "cancelled in the call");
        test_failures++;
    }
    CHECK(result == PTHREAD_CANCELED);
}

static void end_call(struct call *call)
{
    void *result = NULL;

    pthread_join(call->thread, &result);
    check_ended(call, result);
}

// ---- hooks that wait to be cancelled ----

static atomic_bool lingers; // the next hook is the one
static atomic_bool is_in_hook, is_cancelled;

// Calls what would end a thread whose cancellation is not held back.
static void linger(void)
{
    if (atomic_exchange(&lingers, false)) {
        atomic_store(&is_in_hook, true);
        while (!atomic_load(&is_cancelled))
            nap();
    }
    pthread_testcancel();
    nap();
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
    linger();
}

static int prepare(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    linger();
    return change->new_slot && change->new_slot->id == 99 ? -EPERM : 0;
}

static void change_hook(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    linger();
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
    linger();
}

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    CHECK(hva >= HVA && size > 0);
    linger();
}

static const struct memslots_ops all_ops = {
    MEMSLOTS_OPS_INIT,     .flush = flush,     .prepare = prepare, .cancel = change_hook,
    .commit = change_hook, .release = release, .unmap = unmap};
static const struct memslots_ops release_only = {MEMSLOTS_OPS_INIT, .release = release};
static const struct memslots_ops unmap_only = {MEMSLOTS_OPS_INIT, .unmap = unmap};

// ---- the table: slots 0 to 9 ----

static void set_up(const struct memslots_ops *ops, uint32_t sync)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    config.sync = sync;
    atomic_store(&lingers, false);
    ms = new_table_with(&config);
    reader = new_reader(ms);
    nr_released = 0;
    nr_created = 10;
    for (uint32_t i = 0; i < 10; i++)
        REQUIRE(set(ms, i, i * UINT64_C(10), 5) == 0);
}

static void free_table(void)
{
    memslots_free(ms);
    ms = NULL;
}

static void tear_down(void)
{
    if (ms) {
        CHECK_EQ(memslots_set_flags(ms, 0, 9, MEMSLOTS_LOG_DIRTY_PAGES), 0); // the lock is free
        free_table();
    }
    memslots_reader_free(reader);
    CHECK_EQ(nr_released, nr_created);
}

// ---- calls; each checks that it was made ----

static void set_region(void)
{
    CHECK_EQ(set(ms, 20, 1000, 1), 0);
    CHECK(memslots_count(reader, 0) == 11);
    nr_created++;
}

static void create(void)
{
    struct memslots_region region = ram(21, 1010, 1);

    CHECK_EQ(memslots_create(ms, &region, NULL), 21);
    nr_created++;
}

static void delete (void)
{
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(memslots_count(reader, 0), 9);
}

static void move(void)
{
    CHECK_EQ(memslots_move(ms, 0, 2, 2000 * PAGE), 0);
}

static void set_flags(void)
{
    CHECK_EQ(memslots_set_flags(ms, 0, 3, MEMSLOTS_LOG_DIRTY_PAGES), 0);
}

static void apply(void)
{
    struct memslots_region changes[] = {ram(4, 0, 0), ram(22, 1020, 1)};

    CHECK_EQ(memslots_apply(ms, changes, NULL, 2, NULL), 0);
    CHECK_EQ(memslots_count(reader, 0), 10);
    nr_created++;
}

static void replace_all(void)
{
    struct memslots_region to[] = {ram(23, 1030, 1), ram(9, 90, 5)};

    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, 2, NULL), 0);
    CHECK_EQ(memslots_count(reader, 0), 2);
    nr_created++;
}

static struct memslots_txn *staged(uint32_t id)
{
    struct memslots_txn *txn = begin(ms);
    struct memslots_region region = ram(id, 1040, 1);

    CHECK_EQ(memslots_txn_delete(txn, 0, 5), 0);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    return txn;
}

static void transaction(void)
{
    CHECK_EQ(memslots_txn_commit(staged(24)), 0);
    nr_created++;
}

static void refused_transaction(void)
{
    CHECK_EQ(memslots_txn_commit(staged(99)), -EPERM);
    CHECK_EQ(memslots_count(reader, 0), 10);
}

static void aborted_transaction(void)
{
    memslots_txn_abort(staged(24));
    CHECK_EQ(memslots_count(reader, 0), 10);
}

static void reclaim(void)
{
    CHECK_EQ(memslots_reclaim(ms), 1);
}

static void synchronize(void)
{
    int before = nr_released;

    memslots_synchronize(ms);
    CHECK_EQ(nr_released, before + 1);
}

static void try_synchronize(void)
{
    CHECK_EQ(memslots_try_synchronize(ms), 0);
}

static void free_it(void)
{
    free_table();
    CHECK_EQ(nr_released, nr_created);
}

static void free_the_reader(void)
{
    memslots_reader_free(reader);
    reader = NULL;
    CHECK_EQ(nr_released, nr_created);
}

// ---- in a hook ----

static void cancel_in_hook(struct call *call)
{
    atomic_store(&is_in_hook, false);
    atomic_store(&is_cancelled, false);
    atomic_store(&lingers, true);
    begin_call(call);
    while (!atomic_load(&is_in_hook) && !atomic_load(&call->went_on))
        nap();
    CHECK(atomic_load(&is_in_hook));
    pthread_cancel(call->thread);
    atomic_store(&is_cancelled, true);
    end_call(call);
}

static void updates_with_every_hook(void)
{
    struct call calls[] = {
        {.name = "set_region", .run = set_region},
        {.name = "create", .run = create},
        {.name = "delete", .run = delete},
        {.name = "move", .run = move},
        {.name = "set_flags", .run = set_flags},
        {.name = "apply", .run = apply},
        {.name = "replace_all", .run = replace_all},
        {.name = "txn_commit", .run = transaction},
        {.name = "txn_commit refused", .run = refused_transaction},
    };

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&all_ops, 0);
        cancel_in_hook(&calls[i]);
        tear_down();
    }
}

// One slot is gone, and its release is due; of the first 10 others none is.
static void make_a_release_due(void)
{
    memslots_read_lock(reader);
    CHECK_EQ(memslots_delete(ms, 0, 8), 0);
    memslots_read_unlock(reader);
    CHECK_EQ(nr_released, 0);
}

static void releases(void)
{
    struct call calls[] = {
        {.name = "reclaim", .run = reclaim},
        {.name = "synchronize", .run = synchronize},
        {.name = "try_synchronize", .run = try_synchronize},
        {.name = "free", .run = free_it},
    };

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&release_only, 0);
        make_a_release_due();
        cancel_in_hook(&calls[i]);
        tear_down();
    }
}

static void synchronize_without_release(void)
{
    memslots_synchronize(ms);
}

static void unmaps(void)
{
    struct call calls[] = {
        {.name = "synchronize", .run = synchronize_without_release},
        {.name = "free", .run = free_table},
    };

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&unmap_only, 0);
        make_a_release_due();
        cancel_in_hook(&calls[i]);
        nr_created = 0; // as far as release has heard
        tear_down();
    }
}

static void the_release_in_an_update(void)
{
    struct call call = {.name = "delete", .run = delete};

    set_up(&release_only, 1); // which waits, and then has something to release
    cancel_in_hook(&call);
    CHECK_EQ(nr_released, 1);
    tear_down();
}

static void the_releases_of_the_last_reader(void)
{
    struct call call = {.name = "reader_free", .run = free_the_reader};

    set_up(&release_only, 0);
    memslots_read_lock(reader);
    free_table();
    memslots_read_unlock(reader);
    CHECK_EQ(nr_released, 0);
    cancel_in_hook(&call);
    CHECK_EQ(nr_released, 10);
}

// ---- while it waits for readers ----

static void cancel_while_it_waits(struct call *call)
{
    struct sitter sitter;

    sit_down(&sitter, ms);
    begin_call(call);
    long_nap();
    CHECK(!atomic_load(&call->has_returned));
    pthread_cancel(call->thread);
    long_nap();
    CHECK(!atomic_load(&call->has_returned));
    stand_up(&sitter);
    end_call(call);
}

static void waits_for_readers(void)
{
    struct call calls[] = {
        {.name = "synchronize", .run = synchronize_without_release},
        {.name = "try_synchronize", .run = try_synchronize},
        {.name = "free", .run = free_it},
        {.name = "flush", .run = delete},
        {.name = "flush and refused", .run = refused_transaction},
        {.name = "replace_all", .run = replace_all},
    };

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&all_ops, 0);
        cancel_while_it_waits(&calls[i]);
        tear_down();
    }
}

static void waits_for_readers_with_sync(void)
{
    struct call calls[] = {
        {.name = "set_region", .run = set_region},
        {.name = "move", .run = move},
        {.name = "apply", .run = apply},
        {.name = "txn_commit", .run = transaction},
    };

    for (int with_hooks = 0; with_hooks < 2; with_hooks++) {
        for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
            set_up(with_hooks ? &release_only : NULL, 1);
            cancel_while_it_waits(&calls[i]);
            if (!with_hooks)
                nr_created = 0;
            tear_down();
        }
    }
}

// ---- while it writes to a pipe that is full ----

static int pipe_ends[2];

static void fill_pipe(void)
{
    char page[4096] = {0};

    REQUIRE(fcntl(pipe_ends[1], F_SETFL, O_NONBLOCK) == 0);
    while (write(pipe_ends[1], page, sizeof(page)) > 0)
        ;
    while (write(pipe_ends[1], page, 1) > 0)
        ;
    REQUIRE(fcntl(pipe_ends[1], F_SETFL, 0) == 0);
}

static void empty_pipe(void)
{
    char page[4096];

    while (read(pipe_ends[0], page, sizeof(page)) > 0)
        ;
}

static void open_pipe(void)
{
    REQUIRE(pipe(pipe_ends) == 0);
    REQUIRE(fcntl(pipe_ends[1], F_SETPIPE_SZ, 4096) > 0);
    REQUIRE(fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK) == 0);
}

static void cancel_while_it_writes(struct call *call)
{
    void *result = NULL;

    fill_pipe();
    begin_call(call);
    long_nap();
    CHECK(!atomic_load(&call->has_returned));
    pthread_cancel(call->thread);
    long_nap();
    while (pthread_tryjoin_np(call->thread, &result) == EBUSY) {
        empty_pipe();
        nap();
    }
    check_ended(call, result);
    empty_pipe();
}

static void dump(void)
{
    CHECK_EQ(memslots_dump(ms, pipe_ends[1]), 0);
}

static void trace_start(void)
{
    CHECK_EQ(memslots_trace_start(ms, pipe_ends[1]), 0);
    CHECK_EQ(memslots_trace_stop(ms), 0);
}

static void writes(void)
{
    struct call calls[] = {
        {.name = "dump", .run = dump},
        {.name = "trace_start", .run = trace_start},
    };

    open_pipe();
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&release_only, 0);
        cancel_while_it_writes(&calls[i]);
        tear_down();
    }
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

static void traced_updates(void)
{
    struct call calls[] = {
        {.name = "set_region", .run = set_region},
        {.name = "delete", .run = delete},
        {.name = "apply", .run = apply},
        {.name = "replace_all", .run = replace_all},
        {.name = "txn_commit", .run = transaction},
        {.name = "txn_abort", .run = aborted_transaction},
    };

    open_pipe();
    for (int with_hooks = 0; with_hooks < 2; with_hooks++) {
        for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
            set_up(with_hooks ? &release_only : NULL, 0);
            CHECK_EQ(memslots_trace_start(ms, pipe_ends[1]), 0);
            empty_pipe();
            cancel_while_it_writes(&calls[i]);
            CHECK_EQ(memslots_trace_stop(ms), 0);
            if (!with_hooks)
                nr_created = 0;
            tear_down();
        }
    }
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

// ---- while it waits for the update lock ----

static void detach(void)
{
    CHECK_EQ(memslots_attach_kvm(ms, -1), 0);
}

static void trace_stop(void)
{
    CHECK_EQ(memslots_trace_stop(ms), 0);
}

static void waits_for_the_lock(void)
{
    struct call calls[] = {
        {.name = "set_region", .run = set_region},
        {.name = "create", .run = create},
        {.name = "delete", .run = delete},
        {.name = "move", .run = move},
        {.name = "set_flags", .run = set_flags},
        {.name = "apply", .run = apply},
        {.name = "replace_all", .run = replace_all},
        {.name = "txn_begin", .run = transaction},
        {.name = "txn_begin and abort", .run = aborted_transaction},
        {.name = "reclaim", .run = reclaim},
        {.name = "synchronize", .run = synchronize},
        {.name = "attach_kvm", .run = detach},
        {.name = "trace_stop", .run = trace_stop},
    };

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        set_up(&release_only, 0);
        if (calls[i].run == reclaim || calls[i].run == synchronize)
            make_a_release_due();
        struct memslots_txn *txn = begin(ms);
        begin_call(&calls[i]);
        long_nap();
        CHECK(!atomic_load(&calls[i].has_returned));
        pthread_cancel(calls[i].thread);
        long_nap();
        CHECK(!atomic_load(&calls[i].has_returned));
        CHECK_EQ(memslots_txn_commit(txn), 0);
        end_call(&calls[i]);
        tear_down();
    }
}

int main(void)
{
    RUN(updates_with_every_hook);
    RUN(releases);
    RUN(unmaps);
    RUN(the_release_in_an_update);
    RUN(the_releases_of_the_last_reader);
    RUN(waits_for_readers);
    RUN(waits_for_readers_with_sync);
    RUN(writes);
    RUN(traced_updates);
    RUN(waits_for_the_lock);
    return test_result();
}

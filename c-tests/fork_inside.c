// SPDX-License-Identifier: MIT OR Apache-2.0
//
// fork() in the middle of something: with a transaction open, in a section, in a hook, while another
// thread is at any of it. The child may free what it inherited, and then no hook is called and nothing
// written; or exec. The parent goes on as if nothing was.

#define _POSIX_C_SOURCE 200809L
#include "child.h"
#include "thread.h"

static struct memslots *ms;
static struct memslots_reader *reader;
static int nr_hooks; // calls of any

// ---- what the child does ----

static void free_both(void *arg)
{
    int before = nr_hooks;

    (void)arg;
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_hooks, before);
}

static void free_the_table_first(void *arg)
{
    int before = nr_hooks;

    (void)arg;
    memslots_free(ms);
    memslots_reader_free(reader);
    CHECK_EQ(nr_hooks, before);
}

static void free_the_table_only(void *arg)
{
    int before = nr_hooks;

    (void)arg;
    memslots_free(ms);
    CHECK_EQ(nr_hooks, before);
}

static void exec(void *arg)
{
    (void)arg; // child.h does it
}

// Each of it in a child of its own.
static void fork_now(void)
{
    void (*const children[])(void *) = {free_both, free_the_table_first, free_the_table_only, exec};

    for (size_t i = 0; i < sizeof(children) / sizeof(children[0]); i++) {
        struct ending ending = in_child(children[i], NULL);
        if (ending.exit_status != 0)
            printf("    child %zu: signal %d, %s\n", i, ending.signal, ending.said);
        CHECK_EQ(ending.exit_status, 0);
    }
}

// ---- hooks, in one of which it is done ----

enum hook { NONE, FLUSH, PREPARE, CANCEL, COMMIT, RELEASE, UNMAP };
static enum hook forks_in;
static int nr_released;
static atomic_bool stays; // the hook waits for another thread to fork
static atomic_bool is_in_hook;

static void in_hook(enum hook hook)
{
    nr_hooks++;
    if (hook != forks_in)
        return;
    forks_in = NONE;
    if (!atomic_load(&stays)) {
        fork_now();
        return;
    }
    atomic_store(&is_in_hook, true);
    while (atomic_load(&stays))
        nap();
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
    in_hook(FLUSH);
}

static int prepare(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    in_hook(PREPARE);
    return change->new_slot && change->new_slot->id == 99 ? -EPERM : 0;
}

static void cancel(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    in_hook(CANCEL);
}

static void commit(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    in_hook(COMMIT);
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
    in_hook(RELEASE);
}

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    CHECK(hva >= HVA && size > 0);
    in_hook(UNMAP);
}

static void set_up(void)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .flush = flush,   .prepare = prepare,
                                            .cancel = cancel,  .commit = commit, .release = release,
                                            .unmap = unmap};
    struct memslots_config config = default_config();

    config.ops = &ops;
    forks_in = NONE;
    atomic_store(&stays, false);
    ms = new_table_with(&config);
    reader = new_reader(ms);
    for (uint32_t i = 0; i < 50; i++)
        REQUIRE(set(ms, i, i * UINT64_C(10), 5) == 0);
    nr_hooks = nr_released = 0;
}

// The parent's table is whole: it has `nr` slots, takes updates, and releases each slot once.
static void tear_down(uint32_t nr, int nr_ever)
{
    forks_in = NONE;
    CHECK_EQ(memslots_count(reader, 0), nr);
    CHECK_EQ(memslots_set_flags(ms, 0, 40, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    memslots_synchronize(ms);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, nr_ever);
}

static int txn_set(struct memslots_txn *txn, uint32_t slot, uint64_t gfn)
{
    struct memslots_region region = ram(slot, gfn, 1);

    return memslots_txn_set_region(txn, &region, NULL);
}

// ---- with a transaction open; the trace is the parent's ----

static FILE *trace;

static void start_trace(void)
{
    trace = tmpfile();
    REQUIRE(trace && memslots_trace_start(ms, fileno(trace)) == 0);
}

// The lines from the first "begin" on: these operations, and no other.
static void check_trace(const char *want)
{
    char line[512], ops[512] = "";

    CHECK_EQ(memslots_trace_stop(ms), 0);
    rewind(trace);
    while (fgets(line, sizeof(line), trace)) {
        char *op = strstr(line, "op=");
        REQUIRE(op);
        op[strcspn(op, " ")] = 0;
        if (ops[0] || strcmp(op, "op=begin") == 0)
            strcat(strcat(ops, op + 3), " ");
    }
    fclose(trace);
    if (strcmp(ops, want) != 0) {
        printf("    traced: %s\n", ops);
        test_failures++;
    }
}

static void its_own_transaction_is_open(void)
{
    set_up();
    start_trace();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(txn_set(txn, 60, 900), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 7), 0);
    fork_now();
    CHECK_EQ(txn_set(txn, 61, 910), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK_EQ(id_at(reader, 0, 900), 60);
    CHECK_EQ(id_at(reader, 0, 910), 61);
    check_trace("begin set delete set commit ");
    tear_down(51, 52);
}

static atomic_bool is_open, may_commit;

static void *open_and_commit_later(void *arg)
{
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(txn_set(txn, 60, 900), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 7), 0);
    atomic_store(&is_open, true);
    while (!atomic_load(&may_commit))
        nap();
    CHECK_EQ(txn_set(txn, 61, 910), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    return arg;
}

static void another_thread_s_transaction_is_open(void)
{
    set_up();
    start_trace();
    atomic_store(&is_open, false);
    atomic_store(&may_commit, false);
    pthread_t thread = start(open_and_commit_later, NULL);
    while (!atomic_load(&is_open))
        nap();
    fork_now();
    atomic_store(&may_commit, true);
    pthread_join(thread, NULL);
    CHECK_EQ(id_at(reader, 0, 900), 60);
    CHECK_EQ(id_at(reader, 0, 910), 61);
    check_trace("begin set delete set commit ");
    tear_down(51, 52);
}

// ---- in a section ----

static void in_a_section(void)
{
    set_up();
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 70);
    fork_now();
    CHECK(slot && slot->id == 7);
    CHECK(memslots_find_gfn(reader, 0, 71) == slot);
    memslots_read_unlock(reader);
    tear_down(50, 50);
}

static void while_another_thread_is_in_a_section(void)
{
    struct sitter sitter;

    set_up();
    sit_down(&sitter, ms);
    fork_now();
    stand_up(&sitter);
    tear_down(50, 50);
}

// ---- in a hook ----

static void delete_and_create(void)
{
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(memslots_txn_delete(txn, 0, 7), 0);
    CHECK_EQ(txn_set(txn, 60, 900), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_synchronize(ms);
    CHECK_EQ(id_at(reader, 0, 900), 60);
}

static void refused(void)
{
    struct memslots_txn *txn = begin(ms);

    CHECK_EQ(memslots_txn_delete(txn, 0, 7), 0);
    CHECK_EQ(txn_set(txn, 99, 900), 0);
    CHECK_EQ(memslots_txn_commit(txn), -EPERM);
    CHECK_EQ(id_at(reader, 0, 70), 7);
}

static void in_each_hook(void)
{
    static const enum hook hooks[] = {FLUSH, PREPARE, COMMIT, RELEASE, UNMAP};

    for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++) {
        set_up();
        forks_in = hooks[i];
        delete_and_create();
        CHECK_EQ(forks_in, NONE);
        tear_down(50, 51);
    }
    set_up();
    forks_in = CANCEL;
    refused();
    CHECK_EQ(forks_in, NONE);
    tear_down(50, 50);
}

// What the table's end calls: the child is inside of memslots_free itself.
static void end_with(enum hook hook, bool reader_left)
{
    set_up();
    struct memslots_reader *last = reader;
    if (!reader_left)
        memslots_reader_free(reader);
    reader = NULL;
    forks_in = hook;
    memslots_free(ms);
    CHECK_EQ(forks_in, NONE);
    CHECK_EQ(nr_released, 50);
    if (reader_left)
        memslots_reader_free(last);
}

static void in_the_hooks_of_the_end(void)
{
    end_with(RELEASE, false);
    end_with(RELEASE, true);
    end_with(UNMAP, false);
    end_with(UNMAP, true);
}

static void *run_delete_and_create(void *arg)
{
    delete_and_create();
    return arg;
}

static void while_another_thread_is_in_a_hook(void)
{
    static const enum hook hooks[] = {FLUSH, PREPARE, COMMIT, RELEASE, UNMAP};

    for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++) {
        set_up();
        forks_in = hooks[i];
        atomic_store(&stays, true);
        atomic_store(&is_in_hook, false);
        struct memslots_reader *mine = reader;
        reader = new_reader(ms);
        pthread_t thread = start(run_delete_and_create, NULL);
        while (!atomic_load(&is_in_hook))
            nap();
        fork_now();
        atomic_store(&stays, false);
        pthread_join(thread, NULL);
        memslots_reader_free(mine);
        tear_down(50, 51);
    }
}

// ---- while another thread waits ----

static void *synchronize(void *arg)
{
    memslots_synchronize(ms);
    return arg;
}

static void *delete_one(void *arg)
{
    CHECK_EQ(memslots_delete(ms, 0, 7), 0);
    return arg;
}

// For this thread's reader: nobody else has one, so that the child's free ends all there is.
static void while_another_thread_waits_for_readers(void)
{
    void *(*const calls[])(void *) = {synchronize, delete_one};

    for (uint32_t i = 0; i < 2; i++) {
        set_up();
        memslots_read_lock(reader);
        pthread_t thread = start(calls[i], NULL);
        long_nap();
        fork_now();
        memslots_read_unlock(reader);
        pthread_join(thread, NULL);
        tear_down(50 - i, 50);
    }
}

static void while_another_thread_waits_for_the_lock(void)
{
    set_up();
    struct memslots_txn *txn = begin(ms);
    pthread_t thread = start(delete_one, NULL);
    long_nap();
    fork_now();
    CHECK_EQ(memslots_txn_commit(txn), 0);
    pthread_join(thread, NULL);
    tear_down(49, 50);
}

int main(void)
{
    RUN(its_own_transaction_is_open);
    RUN(another_thread_s_transaction_is_open);
    RUN(in_a_section);
    RUN(while_another_thread_is_in_a_section);
    RUN(in_each_hook);
    RUN(in_the_hooks_of_the_end);
    RUN(while_another_thread_is_in_a_hook);
    RUN(while_another_thread_waits_for_readers);
    RUN(while_another_thread_waits_for_the_lock);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The list "System calls, for seccomp filters" at the head of memslots.h. What a row is for is
// called in a process that the kernel kills at any call that the row does not name: on its first
// thread, and on another one, which malloc treats otherwise. And no row names a call for nothing:
// without any one of them the process dies. What malloc calls is only allowed: it depends on the C
// library.
//
// The thread that makes the calls has a filter; those that get in its way have none.

#define _GNU_SOURCE // O_CLOEXEC, strsignal
#include "child.h"
#include "kvm.h"
#include "thread.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { NONE = -1 }; // no call's number; ends a row

#define ROW(...) ((const int[]){__VA_ARGS__, NONE})

#ifdef SYS_readlink
#define READLINK SYS_readlink
#else
#define READLINK SYS_readlinkat
#endif

// What the GNU C library's may call.
static const int as_malloc[] = {SYS_brk,       SYS_mmap,     SYS_mremap,
                                SYS_munmap,    SYS_mprotect, SYS_madvise,
                                SYS_getrandom, SYS_futex,    SYS_sched_getaffinity,
                                SYS_openat,    SYS_read,     SYS_close,
                                NONE};

#define WRITES SYS_write, SYS_rt_sigprocmask, SYS_rt_sigpending, SYS_rt_sigtimedwait

struct group {
    void (*prepare)(void); // what may call anything
    void (*call)(void);
    const int *row;
    bool as_malloc;
};

// ---- the filter ----

static struct sock_filter filter[128];
static unsigned short nr_filter;

static void add(struct sock_filter instruction)
{
    REQUIRE(nr_filter < sizeof(filter) / sizeof(filter[0]));
    filter[nr_filter++] = instruction;
}

static void load(size_t offset)
{
    add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void answer_if(int loaded, uint32_t answer)
{
    add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)loaded, 0, 1));
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer));
}

static void allow(const int *calls, int left_out)
{
    for (; *calls != NONE; calls++) {
        if (*calls != left_out)
            answer_if(*calls, SECCOMP_RET_ALLOW);
    }
}

// From here on this thread may make these calls, end the process, and say what a check has found.
static void confine(const struct group *group, int left_out)
{
    struct sock_fprog program = {.filter = filter};

    nr_filter = 0;
    load(offsetof(struct seccomp_data, nr));
    allow(group->row, left_out);
    if (group->as_malloc)
        allow(as_malloc, left_out);
    answer_if(SYS_exit_group, SECCOMP_RET_ALLOW);
    add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0));
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    load(offsetof(struct seccomp_data, args)); // the lower half of the first
    answer_if(STDOUT_FILENO, SECCOMP_RET_ALLOW);
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    program.len = nr_filter;
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

// ---- a group in a child ----

struct run {
    const struct group *group;
    int left_out;
    bool on_a_thread;
};

static void *call_confined(void *arg)
{
    const struct run *run = arg;

    confine(run->group, run->left_out);
    run->group->call();
    fflush(stdout);
    _exit(test_failures ? 1 : 0); // also where others are at work
}

static bool readers_stay; // in their sections

// Whoever dies where it waits must come to that, however long it takes.
static void run_group(void *arg)
{
    struct run *run = arg;

    readers_stay = run->left_out == SYS_sched_yield || run->left_out == SYS_clock_nanosleep;
    if (run->group->prepare)
        run->group->prepare();
    if (run->on_a_thread)
        pthread_join(start(call_confined, run), NULL);
    call_confined(run);
}

// Whether there is something to see.
static bool can_confine(void)
{
    if (under_valgrind())
        test_skip_reason = "valgrind makes system calls of its own";
    else if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL) < 0 && errno == EINVAL)
        test_skip_reason = "no seccomp filters here";
    return !test_skip_reason;
}

static void check_enough(const struct group *group)
{
    for (int on_a_thread = 0; on_a_thread < 2; on_a_thread++) {
        struct run run = {group, NONE, on_a_thread};
        struct ending ending = in_child(run_group, &run);
        if (ending.signal)
            printf("    on the %s thread: %s\n", on_a_thread ? "second" : "first",
                   strsignal(ending.signal));
        CHECK_EQ(ending.signal, 0);
        CHECK_EQ(ending.exit_status, 0);
    }
}

static void check_needed(const struct group *group)
{
    for (const int *call = group->row; *call != NONE; call++) {
        struct run run = {group, *call, false};
        struct ending ending = in_child(run_group, &run);
        if (ending.signal != SIGSYS)
            printf("    without system call %d\n", *call);
        CHECK_EQ(ending.signal, SIGSYS);
    }
}

static void check_group(const struct group *group)
{
    check_enough(group);
    check_needed(group);
}

// ---- those who get in the way ----

static atomic_bool is_crowded; // they are at work
static atomic_int turns;       // that one of them has had

static void await_crowd(void)
{
    while (!atomic_load(&is_crowded))
        nap();
}

static void *hold_the_lock(void *arg)
{
    struct memslots_region region = ram(900, 900000, 1);

    for (await_crowd();; atomic_fetch_add(&turns, 1)) {
        struct memslots_txn *txn = begin(ms);
        memslots_txn_set_region(txn, &region, NULL);
        nap();
        memslots_txn_abort(txn);
        nap(); // or nobody else would ever have the lock
    }
    return arg;
}

static void *read_on(void *arg)
{
    struct memslots_reader *own = new_reader(ms);

    for (await_crowd();;) {
        memslots_read_lock(own);
        do
            nap();
        while (readers_stay);
        memslots_read_unlock(own);
    }
    return arg;
}

static void start_crowd(void)
{
    start(hold_the_lock, NULL);
    start(read_on, NULL);
}

// Leaves much for readers to free.
static void *churn(void *arg)
{
    for (;; atomic_fetch_add(&turns, 1)) {
        for (uint64_t i = 0; i < 1000; i++)
            memslots_move(ms, 0, 9, (90000 + i % 2) * PAGE);
        memslots_reader_free(new_reader(ms));
    }
    return arg;
}

static void *count_readers(void *arg)
{
    struct memslots_stats stats;

    for (;; atomic_fetch_add(&turns, 1))
        memslots_get_stats(ms, &stats, sizeof(stats));
    return arg;
}

// ---- tables ----

static int refuse_99(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    return change->new_slot && change->new_slot->id == 99 ? -EPERM : 0;
}

static void hear_of_slot(void *ctx, const struct memslot *slot)
{
    (void)ctx;
    (void)slot;
}

static void hear_of_change(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
}

static void hear_of_memory(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    (void)hva;
    (void)size;
}

static const struct memslots_ops every_hook = {
    MEMSLOTS_OPS_INIT,        .flush = hear_of_slot,    .prepare = refuse_99,
    .cancel = hear_of_change, .commit = hear_of_change, .release = hear_of_slot,
    .unmap = hear_of_memory,
};

enum { NR_SLOTS = 10 }; // slot i is at i * 100, and has 50 pages

static void fill(struct memslots *table)
{
    for (uint32_t i = 0; i < NR_SLOTS; i++)
        REQUIRE(set(table, i, i * UINT64_C(100), 50) == 0);
}

static struct memslots *filled_table(const struct memslots_ops *ops)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    struct memslots *table = new_table_with(&config);
    fill(table);
    return table;
}

// ---- sections and lookups ----

static void prepare_lookups(void)
{
    ms = filled_table(NULL);
    reader = new_reader(ms);
    start(churn, NULL);
}

static void look_up(uint64_t gfn)
{
    uint64_t out = 0, rest = 0;

    CHECK(memslots_find_gfn(reader, 0, gfn) && memslots_find_gfn_inline(reader, 0, gfn + 1));
    CHECK(memslots_find_gfn_approx(reader, 0, gfn + 60) != NULL);
    CHECK(memslots_find_id(reader, 0, 3) != NULL);
    CHECK(memslots_find_hva(reader, 0, HVA + gfn * PAGE) != NULL);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, gfn * PAGE, MEMSLOTS_WRITE, &out, &rest), 0);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, out, &out), 0);
    CHECK_EQ(out, gfn * PAGE);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, 99 * PAGE, MEMSLOTS_READ, &out, NULL), -ENOENT);
}

static void walk(void)
{
    struct memslots_iter iter;
    int found = 0;

    for (memslots_iter_all(&iter, reader, 0); memslots_iter_next(&iter);)
        found++;
    for (memslots_iter_gfn(&iter, reader, 0, 0, 900); memslots_iter_next(&iter);)
        found++;
    for (memslots_iter_hva(&iter, reader, 0, HVA, HVA + 900 * PAGE - 1); memslots_iter_next(&iter);)
        found++;
    CHECK_EQ(found, NR_SLOTS + 2 * (NR_SLOTS - 1)); // one of them lies beyond
}

static void look_around(void)
{
    struct memslots_region regions[NR_SLOTS];
    struct memslots_reader_stats stats;

    CHECK(memslots_generation(reader, 0) > 0);
    CHECK_EQ(memslots_count(reader, 0), NR_SLOTS);
    CHECK_EQ(memslots_npages(reader, 0), NR_SLOTS * 50);
    CHECK_EQ(memslots_get_regions(reader, 0, regions, NR_SLOTS), NR_SLOTS);
    CHECK_EQ(memslots_reader_get_stats(reader, &stats, sizeof(stats)), 0);
}

static void sections_and_lookups(void)
{
    struct memslots_hva_cache cache;
    uint64_t hva;

    for (uint64_t i = 0; i < 1000 || atomic_load(&turns) < 50; i++) {
        memslots_read_lock(reader);
        if (i == 0)
            CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, PAGE, MEMSLOTS_READ), 0);
        look_up(i % 9 * 100);
        memslots_read_lock(reader);
        walk();
        CHECK_EQ(memslots_hva_cache_get(&cache, reader, &hva), 0);
        memslots_read_unlock(reader);
        memslots_read_unlock(reader);
        look_around();
    }
}

static void of_sections_and_lookups(void)
{
    check_group(&(struct group){prepare_lookups, sections_and_lookups, ROW(NONE), false});
}

static void prepare_lookups_without_membarrier(void)
{
    struct memslots_config config = default_config();

    config.no_membarrier = 1;
    ms = new_table_with(&config);
    fill(ms);
    reader = new_reader(ms);
    start(churn, NULL);
}

static void of_sections_without_membarrier(void)
{
    check_group(
        &(struct group){prepare_lookups_without_membarrier, sections_and_lookups, ROW(NONE), true});
}

// ---- what calls nothing ----

static void what_is_known(void)
{
    struct memslots_config config;

    memslots_config_init(&config);
    (memslots_config_init)(&config);
    CHECK_EQ(config.nr_address_spaces, 1);
    CHECK(memslots_version() != NULL);
}

static void of_what_is_known(void)
{
    check_group(&(struct group){NULL, what_is_known, ROW(NONE), false});
}

// ---- statistics ----

// So many that it takes a while to count them.
static void prepare_readers(void)
{
    ms = filled_table(NULL);
    for (int i = 0; i < 2000; i++)
        new_reader(ms);
    start(count_readers, NULL);
}

static void statistics(void)
{
    struct memslots_stats stats;

    for (int i = 0; i < 1000 || atomic_load(&turns) < 1000; i++)
        CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
}

static void of_statistics(void)
{
    check_group(&(struct group){prepare_readers, statistics, ROW(SYS_futex), false});
}

// ---- new tables, plans ----

static void new_tables(void)
{
    struct memslots_config config = default_config();
    struct memslots *table;

    for (uint32_t i = 0; i < 500; i++) {
        config.nr_address_spaces = i % 64 + 1;
        config.ops = i & 1 ? &every_hook : NULL;
        CHECK_EQ(memslots_new(&config, &table), 0);
    }
    config.page_shift = 0;
    CHECK_EQ(memslots_new(&config, &table), -EINVAL);
}

static void *have_a_heap(void *arg)
{
    void *volatile block = malloc(64);

    free(block);
    atomic_fetch_add(&turns, 1);
    for (;;)
        pause();
    return arg;
}

// With so many the C library looks how many processors there are before it gives a heap to another.
static void prepare_heaps(void)
{
    for (int i = 0; i < 8; i++)
        start(have_a_heap, NULL);
    while (atomic_load(&turns) < 8)
        nap();
}

static void of_new_tables(void)
{
    check_group(&(struct group){prepare_heaps, new_tables, ROW(SYS_getpid, SYS_membarrier), true});
}

enum { MANY = 10000 };

static struct memslots_region many[MANY];
static struct memslots_plan_step steps[2 * MANY + 1];

static void list_many(uint64_t npages)
{
    for (uint32_t i = 0; i < MANY; i++)
        many[i] = ram(1000 + i, (1000 + i) * UINT64_C(1000), npages);
}

static void plans(void)
{
    size_t nr_steps;

    list_many(1);
    for (size_t nr = 1; nr <= MANY; nr *= 10) {
        CHECK_EQ(memslots_plan(many, nr, many + nr / 2, nr / 2, steps, 2 * MANY + 1, &nr_steps), 0);
        CHECK_EQ(memslots_plan(NULL, 0, many, nr, steps, 0, &nr_steps), -ERANGE);
    }
}

static void of_plans(void)
{
    check_group(&(struct group){NULL, plans, ROW(NONE), true});
}

// ---- readers ----

static struct memslots_reader *last_reader; // of a table that is gone

static void prepare_to_make_readers(void)
{
    struct memslots *table = filled_table(&every_hook);

    prepare_readers();
    last_reader = new_reader(table);
    memslots_read_lock(last_reader);
    memslots_free(table);
}

static void readers(void)
{
    for (int i = 0; i < 1000 || atomic_load(&turns) < 1000; i++) {
        struct memslots_reader *own = NULL;
        CHECK_EQ(memslots_reader_new(ms, &own), 0);
        if (i & 1)
            memslots_read_lock(own);
        memslots_reader_free(own);
    }
    memslots_reader_free(last_reader);
}

static void of_readers(void)
{
    const int *row = ROW(SYS_getpid, SYS_futex);

    check_group(&(struct group){prepare_to_make_readers, readers, row, true});
}

// ---- updates ----

static void single_updates(void)
{
    struct memslots_region region = ram(20, 2000, 10);

    CHECK_EQ(memslots_create(ms, &region, NULL), 20);
    CHECK_EQ(memslots_create(ms, &region, NULL), -EEXIST);
    CHECK_EQ(memslots_set_flags(ms, 0, 20, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_move(ms, 0, 20, 3000 * PAGE), 0);
    CHECK_EQ(memslots_delete(ms, 0, 20), 0);
    CHECK_EQ(set(ms, 20, 2000, 10), 0);
    CHECK_EQ(set(ms, 20, 2000, 0), 0);
    if (set(ms, 99, 9900, 1) == 0) // a hook may refuse it
        CHECK_EQ(memslots_delete(ms, 0, 99), 0);
}

static void lists(void)
{
    struct memslots_region two[] = {ram(20, 2000, 10), ram(21, 2100, 10)}, all[NR_SLOTS];

    for (uint32_t i = 0; i < NR_SLOTS; i++)
        all[i] = ram(i, i * UINT64_C(100), 50);
    CHECK_EQ(memslots_apply(ms, two, NULL, 2, NULL), 0);
    CHECK_EQ(memslots_replace_all(ms, 0, all, NULL, NR_SLOTS, NULL), 0);
}

static void transactions(void)
{
    struct memslots_region first = ram(20, 2000, 10), second = ram(21, 2100, 10);
    struct memslots_plan_step plan[10];
    size_t nr_steps;

    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_create(txn, &first, NULL), 20);
    CHECK_EQ(memslots_txn_set_region(txn, &second, NULL), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 120 * PAGE, 22, NULL), 22);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 22), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 20, 2005 * PAGE, MEMSLOTS_ID_ANY, NULL), 10);
    CHECK_EQ(memslots_txn_resize(txn, 0, 10, 20 * PAGE), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 21, 4000 * PAGE), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 2, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK(memslots_txn_find_gfn(txn, 0, 4000) != NULL);
    CHECK_EQ(memslots_txn_plan(txn, plan, 10, &nr_steps), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    txn = begin(ms);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 2, 0), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 10), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 20), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 21), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    txn = begin(ms);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    memslots_txn_abort(txn);
}

static void update(void)
{
    single_updates();
    lists();
    transactions();
    memslots_reclaim(ms);
    memslots_read_lock(reader); // leaves its pin, which who waits for readers takes away
    memslots_read_unlock(reader);
    memslots_synchronize(ms);
    CHECK_EQ(memslots_try_synchronize(ms), 0);
}

static void update_many(void)
{
    list_many(1);
    CHECK_EQ(memslots_apply(ms, many, NULL, MANY, NULL), 0);
    list_many(0);
    CHECK_EQ(memslots_apply(ms, many, NULL, MANY, NULL), 0);
    memslots_synchronize(ms);
}

static void update_in_a_crowd(void)
{
    for (int i = 0; i < 20; i++)
        update();
    atomic_store(&is_crowded, true);
    do
        update();
    while (atomic_load(&turns) < 10);
}

static void updates(void)
{
    update_in_a_crowd();
    update_many();
}

static struct memslots_config how; // the table is made

static void prepare_updates(void)
{
    ms = new_table_with(&how);
    fill(ms);
    reader = new_reader(ms);
    start_crowd();
}

#define UPDATE_ROW SYS_futex, SYS_membarrier, SYS_sched_yield, SYS_clock_nanosleep

static const int update_row[] = {UPDATE_ROW, NONE};

static void of_updates(void)
{
    how = default_config();
    check_group(&(struct group){prepare_updates, updates, update_row, true});
}

static void of_updates_with_hooks_and_waits(void)
{
    for (int i = 1; i < 8; i++) {
        how = default_config();
        how.ops = i & 1 ? &every_hook : NULL;
        how.sync = i & 2 ? 1 : 0;
        how.max_garbage = i & 4 ? 64 * 1024 : 0;
        check_enough(&(struct group){prepare_updates, updates, update_row, true});
    }
}

static int open_null(void)
{
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

    REQUIRE(fd >= 0);
    return fd;
}

static void prepare_traced_updates(void)
{
    prepare_updates();
    REQUIRE(memslots_trace_start(ms, open_null()) == 0);
}

static void of_traced_updates(void)
{
    const int *row = ROW(UPDATE_ROW, SYS_getpid, WRITES);

    how = default_config();
    check_group(&(struct group){prepare_traced_updates, updates, row, true});
}

// ---- with a VM ----

// Whether there are VMs. Only the process that has made one can use it: a child makes its own.
static bool has_vm(void)
{
    if (!set_up())
        return false;
    tear_down();
    return true;
}

static void prepare_vm(void)
{
    REQUIRE(set_up());
    fill(ms);
    start_crowd();
}

static void attachment(void)
{
    atomic_store(&is_crowded, true);
    do {
        CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
        CHECK_EQ(memslots_attach_kvm(ms, kvm_fd), -ENOTTY);
        CHECK_EQ(memslots_attach_kvm(ms, 12345), -EBADF);
        CHECK_EQ(memslots_attach_kvm(ms, -1), 0);
    } while (atomic_load(&turns) < 10);
}

static void of_attachment(void)
{
    const int *row = ROW(SYS_fcntl, READLINK, SYS_ioctl, SYS_futex);

    if (has_vm())
        check_group(&(struct group){prepare_vm, attachment, row, true});
}

static void prepare_attached_updates(void)
{
    prepare_vm();
    REQUIRE(memslots_attach_kvm(ms, vm_fd) == 0);
}

static void of_attached_updates(void)
{
    const int *row = ROW(UPDATE_ROW, SYS_ioctl);

    if (has_vm())
        check_group(&(struct group){prepare_attached_updates, update_in_a_crowd, row, true});
}

// ---- dumps and traces ----

static int null_fd, nobody_s_pipe;

static void prepare_dumps(void)
{
    int ends[2];

    how = default_config();
    prepare_updates();
    null_fd = open_null();
    REQUIRE(pipe(ends) == 0);
    close(ends[0]);
    nobody_s_pipe = ends[1];
}

static void dumps(void)
{
    atomic_store(&is_crowded, true);
    for (int i = 0; i < 100 || atomic_load(&turns) < 10; i++) {
        CHECK_EQ(memslots_dump(ms, null_fd), 0);
        CHECK_EQ(memslots_dump(ms, nobody_s_pipe), -EPIPE);
    }
}

static void of_dumps(void)
{
    check_group(&(struct group){prepare_dumps, dumps, ROW(WRITES, SYS_futex), false});
}

static void traces(void)
{
    atomic_store(&is_crowded, true);
    for (int i = 0; i < 100 || atomic_load(&turns) < 10; i++) {
        CHECK_EQ(memslots_trace_start(ms, i & 1 ? null_fd : nobody_s_pipe), 0);
        CHECK_EQ(memslots_trace_start(ms, 12345), -EBADF);
        CHECK_EQ(memslots_trace_stop(ms), 0);
    }
}

static void of_traces(void)
{
    const int *row = ROW(WRITES, SYS_futex, SYS_fcntl);

    check_group(&(struct group){prepare_dumps, traces, row, false});
}

// ---- the end ----

enum { NR_TABLES = 100 };

static struct memslots *tables[NR_TABLES];

// Lets a reader go once the table's end waits for it.
static void *stand_up_later(void *sitter)
{
    await_crowd();
    do
        long_nap();
    while (readers_stay);
    stand_up(sitter);
    return NULL;
}

static void *begin_and_die(void *table)
{
    REQUIRE(memslots_txn_delete(begin(table), 0, 1) == 0);
    return NULL;
}

static void prepare_ends(void)
{
    static struct sitter sitter;

    for (int i = 0; i < NR_TABLES; i++) {
        tables[i] = filled_table(i & 1 ? &every_hook : NULL);
        if (i & 2)
            new_reader(tables[i]);
        if (i & 4)
            pthread_join(start(begin_and_die, tables[i]), NULL);
    }
    sit_down(&sitter, tables[0]);
    start(stand_up_later, &sitter);
}

static void ends(void)
{
    atomic_store(&is_crowded, true);
    for (int i = 0; i < NR_TABLES; i++)
        memslots_free(tables[i]);
}

#define END_ROW SYS_getpid, SYS_futex, SYS_membarrier, SYS_sched_yield, SYS_clock_nanosleep

static void of_ends(void)
{
    check_group(&(struct group){prepare_ends, ends, ROW(END_ROW), true});
}

static void prepare_traced_ends(void)
{
    int fd = open_null();

    prepare_ends();
    for (int i = 0; i < NR_TABLES; i++) {
        if (!(i & 4)) // no transaction is open
            REQUIRE(memslots_trace_start(tables[i], fd) == 0);
    }
    for (int i = 0; i < NR_TABLES; i += 16)
        pthread_join(start(begin_and_die, tables[i]), NULL);
}

static void of_traced_ends(void)
{
    const int *row = ROW(END_ROW, WRITES);

    check_group(&(struct group){prepare_traced_ends, ends, row, true});
}

// ---- a hook that does not return ----

static void leave(void *ctx, const struct memslot *slot)
{
    (void)ctx;
    (void)slot;
    pthread_exit(NULL);
}

static const struct memslots_ops leaves = {MEMSLOTS_OPS_INIT, .flush = leave};

static void *exit_at_once(void *arg)
{
    pthread_exit(arg);
}

static void prepare_to_leave(void)
{
    pthread_join(start(exit_at_once, NULL), NULL); // for the C library to load its unwinder
    ms = filled_table(&leaves);
}

static void call_what_does_not_return(void)
{
    memslots_delete(ms, 0, 1);
}

// With what the update and abort() make.
static void of_a_hook_that_does_not_return(void)
{
    const int *row = ROW(SYS_write, UPDATE_ROW, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_getpid,
                         SYS_gettid, SYS_tgkill);
    struct group group = {prepare_to_leave, call_what_does_not_return, row, true};

    for (int on_a_thread = 0; on_a_thread < 2; on_a_thread++) {
        struct run run = {&group, NONE, on_a_thread};
        check_hook_must_return(run_group, &run, "flush");
    }
}

static void of_nothing(void)
{
    can_confine(); // says why not
}

int main(void)
{
    static char output[BUFSIZ];

    // Otherwise the first line would allocate, in a process that may not.
    setvbuf(stdout, output, _IOFBF, sizeof(output));
    if (!can_confine()) {
        RUN(of_nothing);
        return test_result();
    }
    RUN(of_sections_and_lookups);
    RUN(of_sections_without_membarrier);
    RUN(of_what_is_known);
    RUN(of_statistics);
    RUN(of_new_tables);
    RUN(of_plans);
    RUN(of_readers);
    RUN(of_updates);
    RUN(of_updates_with_hooks_and_waits);
    RUN(of_traced_updates);
    RUN(of_attachment);
    RUN(of_attached_updates);
    RUN(of_dumps);
    RUN(of_traces);
    RUN(of_ends);
    RUN(of_traced_ends);
    RUN(of_a_hook_that_does_not_return);
    return test_result();
}

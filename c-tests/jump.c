// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A hook must return. One that longjmp() takes the thread out of leaves the update where it is: the
// update lock stays held, so that nobody builds on what is half done. Readers go on.

#define _POSIX_C_SOURCE 200809L
#include "child.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <time.h>

static jmp_buf out;
static bool armed; // from then on hooks do not return
static struct memslots *ms;
static struct memslots_reader *reader;

static void leave_slot(void *ctx, const struct memslot *slot)
{
    (void)ctx;
    (void)slot;
    if (armed)
        longjmp(out, 1);
}

static void leave_unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    (void)hva;
    (void)size;
    if (armed)
        longjmp(out, 1);
}

static void leave_change(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    if (armed)
        longjmp(out, 1);
}

static int leave_prepare(void *ctx, const struct memslots_change *change)
{
    leave_change(ctx, change);
    return 0;
}

static int refuse_slot_2(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    return change->new_slot && change->new_slot->id == 2 ? -EPERM : 0;
}

// ---- calls that run a hook; slot 1 is at gfn 10, slot 2 to be at 20 ----

static void delete_1_and_create_2(void)
{
    struct memslots_txn *txn = begin(ms);
    struct memslots_region region = ram(2, 20, 1);

    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    memslots_txn_commit(txn);
}

static void delete_1_and_synchronize(void)
{
    memslots_delete(ms, 0, 1);
    memslots_synchronize(ms);
}

// ---- afterwards ----

static atomic_bool updated;

static void *update(void *arg)
{
    set(ms, 9, 90, 1);
    atomic_store(&updated, true);
    return arg;
}

static void check_another_thread_waits(void)
{
    pthread_t thread;

    REQUIRE(pthread_create(&thread, NULL, update, NULL) == 0);
    nanosleep(&(struct timespec){.tv_nsec = 200 * 1000 * 1000}, NULL);
    CHECK(!atomic_load(&updated));
    CHECK_EQ(id_at(reader, 0, 90), -1);
}

static void check_this_thread_is_refused(void)
{
    struct memslots_txn *txn = NULL;

    CHECK_EQ(set(ms, 3, 30, 1), -EDEADLK);
    CHECK_EQ(memslots_delete(ms, 0, 0), -EDEADLK);
    CHECK_EQ(memslots_txn_begin(ms, &txn), -EDEADLK);
    CHECK(txn == NULL);
    CHECK_EQ(memslots_try_synchronize(ms), -EDEADLK);
    CHECK_EQ(memslots_reclaim(ms), 0);
    memslots_synchronize(ms); // comes back
    memslots_free(ms);        // and this does nothing, as in a hook
}

struct jump {
    struct memslots_ops ops;
    void (*call)(void);
    int id_at_10, id_at_20; // as readers have it then
    bool invalid;           // slot 1, to readers
};

static void jump_out(void *arg)
{
    const struct jump *jump = arg;
    struct memslots_config config = default_config();

    config.ops = &jump->ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    REQUIRE(set(ms, 0, 0, 1) == 0 && set(ms, 1, 10, 1) == 0);
    armed = true;
    if (setjmp(out) == 0) {
        jump->call();
        CHECK(!"reached: no hook was left");
    }
    check_this_thread_is_refused();
    memslots_read_lock(reader);
    const struct memslot *slot = memslots_find_gfn(reader, 0, 10);
    CHECK_EQ(slot ? slot->id : -1, jump->id_at_10);
    CHECK_EQ(slot && (slot->flags & MEMSLOTS_INVALID), jump->invalid);
    memslots_read_unlock(reader);
    CHECK_EQ(id_at(reader, 0, 20), jump->id_at_20);
    CHECK_EQ(id_at(reader, 0, 0), 0);
    check_another_thread_waits();
}

static void a_jump_out_of_a_hook_leaves_the_lock_held(void)
{
    struct jump jumps[] = {
        {{MEMSLOTS_OPS_INIT, .flush = leave_slot}, delete_1_and_create_2, 1, -1, true},
        {{MEMSLOTS_OPS_INIT, .prepare = leave_prepare}, delete_1_and_create_2, 1, -1, false},
        {{MEMSLOTS_OPS_INIT, .prepare = refuse_slot_2, .cancel = leave_change},
         delete_1_and_create_2,
         1,
         -1,
         false},
        {{MEMSLOTS_OPS_INIT, .commit = leave_change}, delete_1_and_create_2, -1, 2, false},
        {{MEMSLOTS_OPS_INIT, .release = leave_slot}, delete_1_and_synchronize, -1, -1, false},
        {{MEMSLOTS_OPS_INIT, .unmap = leave_unmap}, delete_1_and_synchronize, -1, -1, false},
    };

    for (size_t i = 0; i < sizeof(jumps) / sizeof(jumps[0]); i++) {
        struct ending ending = in_child(jump_out, &jumps[i]);
        if (ending.exit_status != 0)
            printf("    of jump %zu: signal %d, %s\n", i, ending.signal, ending.said);
        CHECK_EQ(ending.exit_status, 0);
    }
}

int main(void)
{
    RUN(a_jump_out_of_a_hook_leaves_the_lock_held);
    return test_result();
}

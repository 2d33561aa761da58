// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A hook must return. A C++ exception that leaves one ends the process, with a line that names the
// hook, wherever the hook was called from and whoever is waiting to catch. So does pthread_exit().

#include "child.h"

#include <pthread.h>
#include <stdexcept>

namespace
{

enum Way { THROW, EXIT };
Way way;

void leave()
{
    if (way == EXIT)
        pthread_exit(nullptr);
    throw std::runtime_error("on purpose");
}

void leave_slot(void *, const memslot *)
{
    leave();
}

void leave_change(void *, const memslots_change *)
{
    leave();
}

int leave_prepare(void *, const memslots_change *)
{
    leave();
    return 0;
}

int refuse_slot_2(void *, const memslots_change *change)
{
    return change->new_slot && change->new_slot->id == 2 ? -EPERM : 0;
}

void leave_unmap(void *, uint64_t, uint64_t)
{
    leave();
}

memslots *table(const memslots_ops &ops)
{
    memslots_config config = default_config();

    config.ops = &ops;
    return new_table_with(&config);
}

// ---- what calls the hooks ----

void create(memslots *ms)
{
    set(ms, 1, 10, 1);
}

void create_and_delete(memslots *ms)
{
    set(ms, 1, 10, 1);
    memslots_delete(ms, 0, 1);
}

void refused_commit(memslots *ms)
{
    memslots_txn *txn = begin(ms);
    memslots_region first = ram(1, 10, 1), second = ram(2, 20, 1);

    memslots_txn_set_region(txn, &first, nullptr);
    memslots_txn_set_region(txn, &second, nullptr);
    memslots_txn_commit(txn);
}

void later_update(memslots *ms)
{
    create_and_delete(ms);
    set(ms, 3, 30, 1);
    for (uint64_t i = 0; i < 2000; i++)
        memslots_move(ms, 0, 3, (30 + i % 2) * PAGE);
}

void reclaim(memslots *ms)
{
    memslots_reader *reader = new_reader(ms);

    set(ms, 1, 10, 1);
    memslots_read_lock(reader);
    memslots_delete(ms, 0, 1);
    memslots_read_unlock(reader);
    memslots_reclaim(ms);
}

void synchronize(memslots *ms)
{
    create_and_delete(ms);
    memslots_synchronize(ms);
}

void free_it(memslots *ms)
{
    set(ms, 1, 10, 1);
    memslots_free(ms);
}

void free_with_a_reader(memslots *ms)
{
    new_reader(ms);
    free_it(ms);
}

void free_last_reader(memslots *ms)
{
    memslots_reader *reader = new_reader(ms);

    set(ms, 1, 10, 1);
    memslots_read_lock(reader);
    memslots_free(ms);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
}

// ---- the cases ----

struct Case {
    const char *hook;
    const memslots_ops *ops;
    void (*call)(memslots *);
};

void *run_on_thread(void *arg)
{
    auto run = static_cast<const Case *>(arg);

    run->call(table(*run->ops));
    return nullptr;
}

// The caller would catch it: nothing is left to catch.
void run(void *arg)
{
    pthread_t thread;

    try {
        if (way == EXIT) {
            REQUIRE(pthread_create(&thread, nullptr, run_on_thread, arg) == 0);
            pthread_join(thread, nullptr);
        } else {
            run_on_thread(arg);
        }
    } catch (...) {
        std::printf("    it came through\n");
    }
    test_failures++; // not reached
}

memslots_ops no_hooks()
{
    memslots_ops ops{};

    ops.size = sizeof(ops);
    return ops;
}

void each_hook()
{
    memslots_ops flush = no_hooks(), prepare = no_hooks(), cancel = no_hooks(), commit = no_hooks();

    flush.flush = leave_slot;
    prepare.prepare = leave_prepare;
    cancel.prepare = refuse_slot_2;
    cancel.cancel = leave_change;
    commit.commit = leave_change;
    Case cases[] = {
        {"flush", &flush, create_and_delete},  {"prepare", &prepare, create},
        {"prepare", &prepare, refused_commit}, {"cancel", &cancel, refused_commit},
        {"commit", &commit, create},
    };
    for (Case &each : cases)
        check_hook_must_return(run, &each, each.hook);
}

// Those that run later, from wherever they may run.
void each_late_hook(const char *hook, const memslots_ops &ops)
{
    void (*const calls[])(memslots *) = {later_update,       reclaim,         synchronize, free_it,
                                         free_with_a_reader, free_last_reader};

    for (auto call : calls) {
        Case each = {hook, &ops, call};
        check_hook_must_return(run, &each, hook);
    }
}

void every_hook()
{
    memslots_ops release = no_hooks(), unmap = no_hooks();

    release.release = leave_slot;
    unmap.unmap = leave_unmap;
    each_hook();
    each_late_hook("release", release);
    each_late_hook("unmap", unmap);
}

void an_exception_out_of_a_hook()
{
    way = THROW;
    every_hook();
}

void a_thread_that_ends_in_a_hook()
{
    way = EXIT;
    every_hook();
}

int nr_caught;

void catch_yourself(void *, const memslot *)
{
    try {
        throw std::runtime_error("on purpose");
    } catch (const std::exception &) {
        nr_caught++;
    }
}

void an_exception_inside_a_hook_is_its_own_matter()
{
    memslots_ops ops = no_hooks();

    ops.flush = ops.release = catch_yourself;
    memslots *ms = table(ops);
    create_and_delete(ms);
    CHECK_EQ(nr_caught, 1);
    memslots_free(ms);
    CHECK_EQ(nr_caught, 2);
}

} // namespace

int main()
{
    RUN(an_exception_out_of_a_hook);
    RUN(a_thread_that_ends_in_a_hook);
    RUN(an_exception_inside_a_hook_is_its_own_matter);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The hooks: in the kernel's order, told old and new, able to refuse, and not able to update.

#include "test.h"

// What was called, in order: "P+1" prepare of the create of slot 1; P, X (cancel), C (commit) with
// + create, - delete, > move, f flags, r resize; F flush and R release with the id alone.
static char calls[4096];
static int refuse_id = -1;
static uint32_t refuse_kind = UINT32_MAX;

static void note(const char *what, char kind, unsigned id)
{
    size_t length = strlen(calls);

    if (kind)
        snprintf(calls + length, sizeof(calls) - length, "%s%s%c%u", length ? " " : "", what, kind,
                 id);
    else
        snprintf(calls + length, sizeof(calls) - length, "%s%s%u", length ? " " : "", what, id);
}

static void note_change(const char *what, const struct memslots_change *change)
{
    static const char kinds[] = "+->frsm";
    const struct memslot *slot = change->new_slot ? change->new_slot : change->old_slot;

    CHECK(change->kind <= MEMSLOTS_MERGE);
    CHECK((change->old_slot == NULL) == (change->kind == MEMSLOTS_CREATE));
    CHECK((change->new_slot == NULL) == (change->kind == MEMSLOTS_DELETE));
    note(what, kinds[change->kind], slot->id);
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    CHECK(invalid->flags & MEMSLOTS_INVALID);
    note("F", 0, invalid->id);
}

static int prepare(void *ctx, const struct memslots_change *change)
{
    const struct memslot *slot = change->new_slot ? change->new_slot : change->old_slot;

    (void)ctx;
    note_change("P", change);
    return slot->id == refuse_id || change->kind == refuse_kind ? -EDOM : 0;
}

static void cancel(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    note_change("X", change);
}

static void commit(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    note_change("C", change);
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    note("R", 0, gone->id);
}

static const struct memslots_ops all = {MEMSLOTS_OPS_INIT, .flush = flush,   .prepare = prepare,
                                        .cancel = cancel,  .commit = commit, .release = release};
static const struct memslots_ops all_but_flush = {
    MEMSLOTS_OPS_INIT, .prepare = prepare, .cancel = cancel, .commit = commit, .release = release};

static struct memslots *ms;
static struct memslots_reader *reader;

static void set_up(const struct memslots_ops *ops)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    refuse_id = -1;
    refuse_kind = UINT32_MAX;
    for (uint32_t i = 1; i <= 3; i++)
        set(ms, i, i * UINT64_C(100), 10);
    calls[0] = 0;
}

static void tear_down(void)
{
    refuse_id = -1;
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void check_calls(int line, const char *want)
{
    if (strcmp(calls, want) != 0) {
        printf("    %s:%d: called \"%s\", should \"%s\"\n", __FILE__, line, calls, want);
        test_failures++;
    }
    calls[0] = 0;
}

#define CHECK_CALLS(want) check_calls(__LINE__, want)

static void every_single_change(void)
{
    set_up(&all);
    set(ms, 4, 400, 1);
    CHECK_CALLS("P+4 C+4");
    memslots_set_flags(ms, 0, 4, MEMSLOTS_LOG_DIRTY_PAGES);
    CHECK_CALLS("Pf4 Cf4");
    memslots_move(ms, 0, 4, 500 * PAGE);
    CHECK_CALLS("F4 P>4 C>4");
    memslots_delete(ms, 0, 4);
    memslots_synchronize(ms);
    CHECK_CALLS("F4 P-4 C-4 R4");
    set(ms, 1, 100, 10);
    set(ms, 5, 105, 1);
    memslots_delete(ms, 0, 9);
    CHECK_CALLS("");
    tear_down();
    CHECK_CALLS("R1 R2 R3");
}

static void without_flush(void)
{
    set_up(&all_but_flush);
    memslots_move(ms, 0, 1, 500 * PAGE);
    memslots_delete(ms, 0, 1);
    memslots_synchronize(ms);
    CHECK_CALLS("P>1 C>1 P-1 C-1 R1");
    tear_down();
}

static void a_transaction_does_all_of_one_kind_then_the_next(void)
{
    struct memslots_region region = ram(4, 400, 1);

    set_up(&all);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 2), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 3, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 1, 200 * PAGE), 0);
    CHECK_CALLS("");
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_synchronize(ms);
    CHECK_CALLS("F2 F1 P+4 P-2 Pf3 P>1 C+4 C-2 Cf3 C>1 R2");
    tear_down();
}

static void several_changes_of_one_slot_are_one(void)
{
    struct memslots_region region = ram(4, 400, 1);

    set_up(&all_but_flush);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 4, 500 * PAGE), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 4, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 1, 600 * PAGE), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 2, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 2, 700 * PAGE), 0);
    region = ram(9, 900, 1);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 9), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_synchronize(ms);
    CHECK_CALLS("P+4 P-1 P>2 C+4 C-1 C>2 R1");
    tear_down();
}

static void a_refusal_cancels_in_reverse(void)
{
    struct memslots_region regions[] = {ram(4, 400, 1), ram(2, 0, 0), ram(5, 500, 1),
                                        ram(6, 600, 1)};
    size_t failed_at = 99;

    set_up(&all_but_flush);
    uint64_t generation = memslots_generation(reader, 0);
    refuse_id = 5;
    CHECK_EQ(memslots_apply(ms, regions, NULL, 4, &failed_at), -EDOM);
    CHECK_EQ(failed_at, 2);
    CHECK_CALLS("P+4 P-2 P+5 X-2 X+4");
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(memslots_count(reader, 0), 3);
    CHECK_EQ(id_at(reader, 0, 200), 2);
    memslots_synchronize(ms);
    CHECK_CALLS("");
    tear_down();
}

static void any_kind_may_be_refused(void)
{
    struct memslots_txn *txn;

    set_up(&all);
    for (uint32_t kind = MEMSLOTS_CREATE; kind <= MEMSLOTS_RESIZE; kind++) {
        refuse_kind = kind;
        switch (kind) {
        case MEMSLOTS_CREATE:
            CHECK_EQ(set(ms, 4, 400, 1), -EDOM);
            CHECK_CALLS("P+4");
            break;
        case MEMSLOTS_DELETE:
            CHECK_EQ(memslots_delete(ms, 0, 1), -EDOM);
            CHECK_CALLS("F1 P-1");
            break;
        case MEMSLOTS_MOVE:
            CHECK_EQ(memslots_move(ms, 0, 1, 0), -EDOM);
            CHECK_CALLS("F1 P>1");
            break;
        case MEMSLOTS_FLAGS_ONLY:
            CHECK_EQ(memslots_set_flags(ms, 0, 1, MEMSLOTS_LOG_DIRTY_PAGES), -EDOM);
            CHECK_CALLS("Pf1");
            break;
        default:
            txn = begin(ms);
            CHECK_EQ(memslots_txn_resize(txn, 0, 1, 20 * PAGE), 0);
            CHECK_EQ(memslots_txn_commit(txn), -EDOM);
            CHECK_CALLS("Pr1");
            break;
        }
        memslots_read_lock(reader);
        const struct memslot *slot = memslots_find_gfn(reader, 0, 100);
        REQUIRE(slot);
        CHECK_EQ(slot->id, 1);
        CHECK_EQ(slot->npages, 10);
        CHECK_EQ(slot->flags, 0);
        memslots_read_unlock(reader);
        CHECK_EQ(memslots_count(reader, 0), 3);
    }
    memslots_synchronize(ms);
    CHECK_CALLS("");
    tear_down();
    CHECK_CALLS("R1 R2 R3");
}

// The opaque of a create that a hook refused stays the caller's.
static void a_refused_slot_is_not_released(void)
{
    set_up(&all);
    refuse_id = 4;
    for (int i = 0; i < 10; i++)
        CHECK_EQ(set(ms, 4, 400, 1), -EDOM);
    calls[0] = 0;
    tear_down();
    CHECK_CALLS("R1 R2 R3");
}

// Old and new as they are told.
static struct memslot told_old, told_new;

static int remember(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    if (change->old_slot)
        told_old = *change->old_slot;
    if (change->new_slot)
        told_new = *change->new_slot;
    return 0;
}

static void old_and_new(void)
{
    const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .prepare = remember};
    int opaque;
    struct memslots_region region = ram(1, 100, 10);

    set_up(&ops);
    memslots_delete(ms, 0, 1);
    CHECK_EQ(memslots_set_region(ms, &region, &opaque), 0);
    CHECK(told_new.opaque == &opaque);
    region.guest_phys_addr = 500 * PAGE;
    region.flags = MEMSLOTS_LOG_DIRTY_PAGES;
    CHECK_EQ(memslots_set_region(ms, &region, NULL), 0);
    CHECK_EQ(told_old.base_gfn, 100);
    CHECK_EQ(told_old.flags, 0);
    CHECK_EQ(told_new.base_gfn, 500);
    CHECK_EQ(told_new.flags, MEMSLOTS_LOG_DIRTY_PAGES);
    CHECK(told_old.opaque == &opaque);
    CHECK(told_new.opaque == &opaque);
    tear_down();
}

// Each hook tries every kind of update of its own table.
static int meddling[6];
static int nr_meddled;

static void meddle(void)
{
    struct memslots_region region = ram(77, 7700, 1);
    struct memslots_txn *txn = NULL;

    if (!ms || nr_meddled++)
        return;
    meddling[0] = memslots_set_region(ms, &region, NULL);
    meddling[1] = memslots_create(ms, &region, NULL);
    meddling[2] = memslots_delete(ms, 0, 2);
    meddling[3] = memslots_txn_begin(ms, &txn);
    meddling[4] = memslots_apply(ms, &region, NULL, 1, NULL);
    meddling[5] = memslots_replace_all(ms, 0, &region, NULL, 1, NULL);
}

static void meddle_flush(void *ctx, const struct memslot *slot)
{
    (void)ctx;
    (void)slot;
    meddle();
}

static int meddle_prepare(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    meddle();
    return 0;
}

static void meddle_commit(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    meddle();
}

static void a_hook_that_updates_is_edeadlk(void)
{
    const struct memslots_ops ops[] = {{MEMSLOTS_OPS_INIT, .flush = meddle_flush},
                                       {MEMSLOTS_OPS_INIT, .prepare = meddle_prepare},
                                       {MEMSLOTS_OPS_INIT, .commit = meddle_commit},
                                       {MEMSLOTS_OPS_INIT, .release = meddle_flush}};

    for (size_t i = 0; i < 4; i++) {
        nr_meddled = 1; // not while it is set up
        set_up(&ops[i]);
        nr_meddled = 0;
        memset(meddling, 0, sizeof(meddling));
        CHECK_EQ(memslots_delete(ms, 0, 1), 0);
        memslots_synchronize(ms);
        CHECK(nr_meddled > 0);
        for (size_t kind = 0; kind < 6; kind++)
            CHECK_EQ(meddling[kind], -EDEADLK);
        CHECK_EQ(memslots_count(reader, 0), 2);
        tear_down();
    }
}

int main(void)
{
    RUN(every_single_change);
    RUN(without_flush);
    RUN(a_transaction_does_all_of_one_kind_then_the_next);
    RUN(several_changes_of_one_slot_are_one);
    RUN(a_refusal_cancels_in_reverse);
    RUN(any_kind_may_be_refused);
    RUN(a_refused_slot_is_not_released);
    RUN(old_and_new);
    RUN(a_hook_that_updates_is_edeadlk);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Out of memory where something ends: in each call by itself, the first allocation fails, then the
// second, and so on; then all from the first on, from the second on. In the end every slot that ever
// was is released once, every page that was mapped given up once, and nothing is leaked. A call that
// says -ENOMEM leaves readers with what was there before, and can be made when there is memory again.

#define _GNU_SOURCE // RTLD_NEXT
#include "oom.h"

#include <linux/kvm.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

// ---- a VM that takes every call ----

enum { VM_FD = 12345 };
static long nr_vm_calls;

int fcntl(int fd, int command, ...)
{
    (void)command;
    return fd == VM_FD ? 0 : -1;
}

int ioctl(int fd, unsigned long request, ...)
{
    (void)fd;
    nr_vm_calls += request == KVM_SET_USER_MEMORY_REGION;
    return 0; // KVM_CHECK_EXTENSION: no newer form of it
}

ssize_t readlink(const char *path, char *name, size_t size)
{
    static const char vm[] = "anon_inode:kvm-vm";

    (void)path;
    memcpy(name, vm, size < sizeof(vm) - 1 ? size : sizeof(vm) - 1);
    return sizeof(vm) - 1;
}

// ---- who has heard of what ----

enum { NR_OPAQUES = 1024, NR_PAGES = 1 << 16 };
static int nr_slots_of[NR_OPAQUES]; // how many have had this opaque
static int nr_released[NR_OPAQUES];
static bool is_mapped[NR_PAGES]; // by a slot, and not given up since
static int nr_wrong_unmaps, nr_prepared, nr_cancelled, nr_committed;
static int refused_id = -1;

static int opaque_of(const struct memslot *slot)
{
    return (int)(intptr_t)slot->opaque;
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

static int prepare(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    if (change->new_slot && change->new_slot->id == refused_id)
        return -EPERM;
    nr_prepared++;
    return 0;
}

static void cancel(void *ctx, const struct memslots_change *change)
{
    (void)ctx;
    (void)change;
    nr_cancelled++;
}

static void commit(void *ctx, const struct memslots_change *change)
{
    const struct memslot *slot = change->new_slot;

    (void)ctx;
    nr_committed++;
    if (!slot)
        return;
    if (change->kind == MEMSLOTS_CREATE || change->kind == MEMSLOTS_SPLIT)
        nr_slots_of[opaque_of(slot)]++;
    uint64_t first = (slot->userspace_addr - HVA) / PAGE;
    for (uint64_t page = first; page < first + slot->npages; page++)
        is_mapped[page] = true;
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    nr_released[opaque_of(gone)]++;
}

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    for (uint64_t page = (hva - HVA) / PAGE; size > 0; page++, size -= PAGE) {
        nr_wrong_unmaps += !is_mapped[page];
        is_mapped[page] = false;
    }
}

static void check_all_is_told(void)
{
    for (int i = 0; i < NR_OPAQUES; i++)
        CHECK_EQ(nr_released[i], nr_slots_of[i]);
    for (int i = 0; i < NR_PAGES; i++)
        CHECK(!is_mapped[i]);
    CHECK_EQ(nr_wrong_unmaps, 0);
    CHECK_EQ(nr_prepared, nr_cancelled + nr_committed);
}

// ---- the table: slots 0 to 99, ten pages each, with opaques 1 to 100 ----

enum { NR = 100 };
static struct memslots *ms;
static struct memslots_reader *reader;
static struct memslots_txn *txn;

static bool with_flush;

static const struct memslots_ops all_ops = {MEMSLOTS_OPS_INIT, .flush = flush,   .prepare = prepare,
                                            .cancel = cancel,  .commit = commit, .release = release,
                                            .unmap = unmap};
static const struct memslots_ops ops_without_flush = {MEMSLOTS_OPS_INIT,  .prepare = prepare,
                                                      .cancel = cancel,   .commit = commit,
                                                      .release = release, .unmap = unmap};

static uint64_t gfn_of(uint32_t i)
{
    return 1000 + 20 * (uint64_t)i;
}

static void *opaque(int i)
{
    return (void *)(intptr_t)i;
}

static void set_up(void)
{
    struct memslots_config config = default_config();

    memset(nr_slots_of, 0, sizeof(nr_slots_of));
    memset(nr_released, 0, sizeof(nr_released));
    nr_prepared = nr_cancelled = nr_committed = 0;
    refused_id = -1;
    config.ops = with_flush ? &all_ops : &ops_without_flush;
    txn = NULL;
    ms = new_table_with(&config);
    reader = new_reader(ms);
    for (uint32_t i = 0; i < NR; i++) {
        struct memslots_region region = ram(i, gfn_of(i), 10);
        REQUIRE(memslots_set_region(ms, &region, opaque((int)i + 1)) == 0);
    }
}

static void tear_down(void)
{
    memslots_reader_free(reader);
    memslots_free(ms);
    ms = NULL;
    reader = NULL;
}

// ---- calls that are made while memory fails, and what comes before them ----

struct scenario {
    const char *name;
    void (*before)(void);
    int (*call)(void); // 0, or the error that it gave
    int refused;       // with this, memory or not
};

static void nothing(void)
{
}

static void free_reader(void)
{
    memslots_reader_free(reader);
    reader = NULL;
}

// Some deletes, and more garbage than goes into one bag.
static void delete_some(uint16_t first)
{
    for (uint16_t id = first; id < first + 10; id++)
        CHECK_EQ(memslots_delete(ms, 0, id), 0);
    for (int i = 0; i < 300; i++)
        CHECK_EQ(memslots_set_flags(ms, 0, 50, i % 2 ? 0 : MEMSLOTS_LOG_DIRTY_PAGES), 0);
}

// Meets the end of memory only when it is published: what it owes is in no bag then.
static void delete_without_a_bag(uint16_t id)
{
    long after = 0;
    int err;

    do {
        has_failed = false;
        nr_left = after++;
        err = memslots_delete(ms, 0, id);
        nr_left = -1;
    } while (err == -ENOMEM);
    CHECK_EQ(err, 0);
    CHECK(has_failed);
}

// Releases are due: some in bags, some not. With flush, updates wait for readers.
static void much_due(void)
{
    for (uint16_t first = 0; first < 40; first += 10) {
        if (!with_flush)
            memslots_read_lock(reader);
        delete_some(first);
        if (!with_flush && first == 30)
            delete_without_a_bag(40);
        if (!with_flush)
            memslots_read_unlock(reader);
    }
}

static int free_table(void)
{
    memslots_free(ms);
    ms = NULL;
    check_all_is_told(); // readers left or not
    return 0;
}

static int free_in_a_section(void)
{
    memslots_read_lock(reader);
    memslots_free(ms);
    ms = NULL;
    CHECK(memslots_find_gfn(reader, 0, gfn_of(60)) != NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    reader = NULL;
    return 0;
}

static int synchronize(void)
{
    return memslots_try_synchronize(ms);
}

static int reclaim(void)
{
    memslots_reclaim(ms);
    return 0;
}

// Everything that a transaction can do.
static void stage(void)
{
    struct memslots_region more = ram(200, 5000, 10);

    txn = begin(ms);
    for (uint16_t i = 60; i < 80; i++)
        CHECK_EQ(memslots_txn_delete(txn, 0, i), 0);
    CHECK_EQ(memslots_txn_create(txn, &more, opaque(201)), 200);
    CHECK_EQ(memslots_txn_move(txn, 0, 80, 6000 * PAGE), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 81, MEMSLOTS_LOG_DIRTY_PAGES), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 82, (gfn_of(82) + 4) * PAGE, 202, opaque(203)), 202);
    CHECK_EQ(memslots_txn_resize(txn, 0, 83, 3 * PAGE), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 84, (gfn_of(84) + 4) * PAGE, 204, opaque(205)), 204);
    CHECK_EQ(memslots_txn_delete(txn, 0, 84), 0);
}

static void stage_on_a_vm(void)
{
    nr_vm_calls = 0;
    CHECK_EQ(memslots_attach_kvm(ms, VM_FD), 0);
    CHECK_EQ(nr_vm_calls, NR);
    stage();
}

static void stage_and_refuse(void)
{
    refused_id = 202;
    stage();
}

static int commit_txn(void)
{
    int err = memslots_txn_commit(txn);

    txn = NULL;
    return err;
}

static int abort_txn(void)
{
    memslots_txn_abort(txn);
    txn = NULL;
    return 0;
}

static int replace_all(void)
{
    struct memslots_region to[50];
    void *opaques[50];

    for (uint32_t i = 0; i < 50; i++) {
        to[i] = ram(i + 60, gfn_of(i + 60) + (i < 10), 10); // some with other memory
        opaques[i] = opaque(300 + (int)i);
    }
    return memslots_replace_all(ms, 0, to, opaques, 50, NULL);
}

static int apply(void)
{
    struct memslots_region changes[40];
    void *opaques[40];

    for (uint32_t i = 0; i < 40; i++) {
        changes[i] = i < 20 ? ram(i, 0, 0) : ram(400 + i, 9000 + 20 * (uint64_t)i, 10);
        opaques[i] = opaque(400 + (int)i);
    }
    return memslots_apply(ms, changes, opaques, 40, NULL);
}

static void attach(void)
{
    CHECK_EQ(memslots_attach_kvm(ms, VM_FD), 0);
}

static int attach_now(void)
{
    return memslots_attach_kvm(ms, VM_FD);
}

// ---- each call, each allocation ----

static void call_while_memory_fails(const struct scenario *scenario, long after)
{
    static struct view before, now;

    scenario->before();
    if (reader)
        look(reader, &before);
    has_failed = false;
    nr_left = after;
    int err = scenario->call();
    nr_left = -1;
    if (err == 0)
        return;
    CHECK(err == scenario->refused || (has_failed && err == -ENOMEM));
    look(reader, &now);
    if (err == -ENOMEM)
        CHECK(memcmp(&before, &now, sizeof(before)) == 0);
    now.generation = before.generation;
    CHECK(memcmp(&before, &now, sizeof(before)) == 0);
}

static void fail_in_turn(const struct scenario *scenario)
{
    long nr = -1;

    do {
        nr++;
        nr_live = 0;
        counting = true;
        set_up();
        call_while_memory_fails(scenario, nr);
        tear_down();
        counting = false;
        check_all_is_told();
        if (nr_live != 0 || test_failures)
            printf("    %s: with allocation %ld, %ld blocks leaked\n", scenario->name, nr, nr_live);
        CHECK_EQ(nr_live, 0);
    } while (has_failed && !test_failures);
    printf("    %s: %ld allocations\n", scenario->name, nr);
}

static const struct scenario scenarios[] = {
    {"free", free_reader, free_table, 0},
    {"free with a reader left", nothing, free_table, 0},
    {"free with much due", much_due, free_table, 0},
    {"free with a transaction open", stage, free_table, 0},
    {"free in a section", much_due, free_in_a_section, 0},
    {"synchronize", much_due, synchronize, 0},
    {"reclaim", much_due, reclaim, 0},
    {"abort", stage, abort_txn, 0},
    {"commit", stage, commit_txn, 0},
    {"commit on a VM", stage_on_a_vm, commit_txn, 0},
    {"commit, refused", stage_and_refuse, commit_txn, -EPERM},
    {"replace_all", nothing, replace_all, 0},
    {"replace_all on a VM", attach, replace_all, 0},
    {"apply", nothing, apply, 0},
    {"apply on a VM", attach, apply, 0},
    {"attach", nothing, attach_now, 0},
};

static void every_scenario(void)
{
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        fail_in_turn(&scenarios[i]);
}

static void one_allocation_fails(void)
{
    all_fail = false;
    with_flush = false;
    every_scenario();
    with_flush = true;
    every_scenario();
}

static void all_fail_from_one_on(void)
{
    all_fail = true;
    with_flush = false;
    every_scenario();
    with_flush = true;
    every_scenario();
}

int main(void)
{
    static char buffer[BUFSIZ];

    setvbuf(stdout, buffer, _IOFBF, sizeof(buffer)); // or printf would allocate one
    set_up();
    tear_down(); // what the process allocates once and for all is no leak
    RUN(one_allocation_fails);
    RUN(all_fail_from_one_on);
    return test_result();
}

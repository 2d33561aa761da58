// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Out of memory: each scenario is run with its first allocation failing, then with its second, and so
// on until it meets none. A call that meets it says -ENOMEM and leaves everything as it was; in the
// end nothing is leaked.

#define _GNU_SOURCE // RTLD_NEXT
#include "oom.h"

static struct memslots *ms;
static struct memslots_reader *reader;
static int nr_released, nr_created;

// The call must be made, or say -ENOMEM, change nothing, and be made when it is called once more.
#define STEP(call)                                                                                 \
    do {                                                                                           \
        static struct view before_, after_;                                                        \
        look(reader, &before_);                                                                    \
        int err_ = (call);                                                                         \
        if (err_ < 0) {                                                                            \
            CHECK(has_failed);                                                                     \
            CHECK_EQ(err_, -ENOMEM);                                                               \
            look(reader, &after_);                                                                 \
            CHECK(memcmp(&before_, &after_, sizeof(before_)) == 0);                                \
            CHECK((call) >= 0);                                                                    \
        }                                                                                          \
    } while (0)

static int create(uint32_t slot, uint64_t gfn, uint64_t npages)
{
    struct memslots_region region = ram(slot, gfn, npages);
    int id = memslots_create(ms, &region, &nr_created);

    nr_created += id >= 0;
    return id;
}

// 0 or the first error; on an error the transaction is as it was, and the next change may go.
static int change_much(struct memslots_txn *txn)
{
    int first = 0;

    for (uint32_t i = 0; i < 20; i++) {
        struct memslots_region region = ram(60 + i, 10000 + 10 * (uint64_t)i, 5);
        int err = memslots_txn_set_region(txn, &region, NULL);
        first = first ? first : err;
    }
    int errors[] = {
        memslots_txn_delete(txn, 0, 0),
        memslots_txn_move(txn, 0, 1, 20000 * PAGE),
        memslots_txn_set_flags(txn, 0, 2, MEMSLOTS_LOG_DIRTY_PAGES),
        memslots_txn_split(txn, 0, 3, (1000 + 3 * 20 + 4) * PAGE, 50, NULL),
        memslots_txn_resize(txn, 0, 4, 3 * PAGE),
        memslots_txn_merge(txn, 0, 3, 50),
    };
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        first = first < 0 ? first : errors[i] < 0 ? errors[i] : 0;
    return first;
}

static int one_transaction(void)
{
    struct memslots_txn *txn = NULL;
    int err = memslots_txn_begin(ms, &txn);

    if (err)
        return err;
    err = change_much(txn);
    if (err) {
        memslots_txn_abort(txn);
        return err;
    }
    return memslots_txn_commit(txn);
}

static int replace_all(void)
{
    struct memslots_region to[30];

    for (uint32_t i = 0; i < 30; i++)
        to[i] = ram(i + 5, 30000 + 10 * (uint64_t)i, 5);
    return memslots_replace_all(ms, 0, to, NULL, 30, NULL);
}

static int apply(void)
{
    struct memslots_region changes[] = {ram(5, 0, 0), ram(5, 1, 1), ram(90, 3, 1),
                                        ram(6, 30010, 5)};

    changes[3].flags = MEMSLOTS_LOG_DIRTY_PAGES;
    return memslots_apply(ms, changes, NULL, 4, NULL);
}

// As at the start of a VM: nothing but creates, for a table without slots.
static int apply_to_nothing(void)
{
    struct memslots_region slots[100];

    for (uint32_t i = 0; i < 100; i++)
        slots[i] = ram(i * 7, 50000 - 20 * (uint64_t)i, 10);
    return memslots_apply(ms, slots, NULL, 100, NULL);
}

static void flush(void *ctx, const struct memslot *invalid)
{
    (void)ctx;
    (void)invalid;
}

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    nr_released += gone->opaque == &nr_created;
}

// How often each page above HVA was given up.
static unsigned char given_up[65536];

static void unmap(void *ctx, uint64_t hva, uint64_t size)
{
    (void)ctx;
    for (uint64_t page = (hva - HVA) / PAGE; size; page++, size -= PAGE)
        given_up[page]++;
}

static const struct memslots_ops ops_without_flush = {MEMSLOTS_OPS_INIT, .release = release};
static const struct memslots_ops ops_with_flush = {MEMSLOTS_OPS_INIT, .flush = flush,
                                                   .release = release};
static const struct memslots_ops ops_with_unmap = {MEMSLOTS_OPS_INIT, .release = release,
                                                   .unmap = unmap};

// Until there is one: a call that makes an object says -ENOMEM or makes it.
#define MAKE(object, call)                                                                         \
    do {                                                                                           \
        int err_ = (call);                                                                         \
        if (err_) {                                                                                \
            CHECK(has_failed);                                                                     \
            CHECK_EQ(err_, -ENOMEM);                                                               \
            CHECK(object == NULL);                                                                 \
            CHECK_EQ((call), 0);                                                                   \
        }                                                                                          \
    } while (0)

// The slots of apply_to_nothing() were there once: their pages are given up once.
static void check_given_up(void)
{
    for (uint64_t i = 0; i < 100; i++)
        for (uint64_t page = 0; page < 10; page++)
            CHECK_EQ(given_up[50000 - 20 * i + page], 1);
}

static void scenario(const struct memslots_ops *ops)
{
    struct memslots_config config = default_config();

    config.ops = ops;
    ms = NULL;
    reader = NULL;
    nr_created = nr_released = 0;
    memset(given_up, 0, sizeof(given_up));
    MAKE(ms, memslots_new(&config, &ms));
    MAKE(reader, memslots_reader_new(ms, &reader));
    for (uint32_t i = 0; i < 45; i++)
        STEP(create(MEMSLOTS_ID_ANY, 1000 + 20 * (uint64_t)i, 10));
    STEP(create(32763, 9000, 10)); // elsewhere among the ids
    STEP(memslots_move(ms, 0, 10, 0));
    STEP(memslots_set_flags(ms, 0, 11, MEMSLOTS_LOG_DIRTY_PAGES));
    STEP(memslots_delete(ms, 0, 12));
    STEP(one_transaction());
    STEP(replace_all());
    STEP(apply());
    STEP(memslots_replace_all(ms, 0, NULL, NULL, 0, NULL));
    STEP(apply_to_nothing());
    STEP(memslots_try_synchronize(ms));
    STEP(create(200, 60000, 10));
    memslots_delete(ms, 0, 7); // something that is due when the table ends
    memslots_free(ms);
    CHECK_EQ(nr_released, nr_created); // all of it, whatever malloc says, with a reader left
    if (ops->unmap)
        check_given_up();
    CHECK_EQ(id_at(reader, 0, 60000), -1);
    memslots_reader_free(reader);
    CHECK_EQ(nr_released, nr_created);
}

static void fail_each_in_turn(const struct memslots_ops *ops)
{
    long nr_failed = 0;

    scenario(ops); // what the process allocates once and for all is no leak
    do {
        nr_left = nr_failed++;
        nr_live = 0;
        has_failed = false;
        counting = true;
        scenario(ops);
        counting = false;
        if (nr_live != 0)
            printf("    allocation %ld failed: %ld blocks leaked\n", nr_failed, nr_live);
        CHECK_EQ(nr_live, 0);
    } while (has_failed && !test_failures);
    printf("    %ld allocations failed, one at a time\n", nr_failed - 1);
    CHECK(nr_failed > 5); // the library allocates, and through us
}

static void every_allocation(void)
{
    fail_each_in_turn(&ops_without_flush);
}

static void every_allocation_with_the_invalid_phase(void)
{
    fail_each_in_turn(&ops_with_flush);
}

static void every_allocation_with_unmap(void)
{
    fail_each_in_turn(&ops_with_unmap);
}

int main(void)
{
    static char buffer[BUFSIZ];

    setvbuf(stdout, buffer, _IOFBF, sizeof(buffer)); // or printf would allocate one
    RUN(every_allocation);
    RUN(every_allocation_with_the_invalid_phase);
    RUN(every_allocation_with_unmap);
    return test_result();
}

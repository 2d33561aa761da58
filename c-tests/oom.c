// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Out of memory: each scenario is run with its first allocation failing, then with its second, and so
// on until it meets none. A call that meets it says -ENOMEM and leaves everything as it was; in the
// end nothing is leaked.
//
// This program's malloc and friends stand before the C library's. Not failed are the allocations that
// crossbeam-epoch makes for itself, with no way to say no: a collector (640 bytes) and a participant
// (2304), both aligned to 128, when a table or a reader is made, and its bags of deferred work (2072).
// That is the library's one stated exception; the sizes are those of 0.9.21 on 64-bit machines.

#define _GNU_SOURCE // RTLD_NEXT
#include "test.h"

#include <dlfcn.h>

static bool counting;     // inside a scenario
static long nr_left = -1; // allocations to go until the one that fails; -1: none will
static bool has_failed;   // it has been
static long nr_live;      // blocks of the scenario that are not freed

static struct {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    int (*posix_memalign)(void **, size_t, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void (*free)(void *);
} libc;

static void find_libc(void)
{
    static bool found;

    if (found)
        return;
    found = true; // dlsym of functions that exist does not allocate
    *(void **)&libc.malloc = dlsym(RTLD_NEXT, "malloc");
    *(void **)&libc.calloc = dlsym(RTLD_NEXT, "calloc");
    *(void **)&libc.realloc = dlsym(RTLD_NEXT, "realloc");
    *(void **)&libc.posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    *(void **)&libc.aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
    *(void **)&libc.free = dlsym(RTLD_NEXT, "free");
}

static bool is_crossbeam_s(size_t align, size_t size)
{
    return (align == 128 && (size == 640 || size == 2304)) || size == 2072;
}

// Whether this allocation is the one.
static bool fails(size_t align, size_t size)
{
    find_libc();
    if (!counting || is_crossbeam_s(align, size) || nr_left < 0)
        return false;
    if (nr_left-- > 0)
        return false;
    has_failed = true;
    return true;
}

static void *counted(void *block)
{
    nr_live += counting && block;
    return block;
}

void *malloc(size_t size)
{
    return fails(0, size) ? NULL : counted(libc.malloc(size));
}

void *calloc(size_t nr, size_t size)
{
    return fails(0, nr * size) ? NULL : counted(libc.calloc(nr, size));
}

void *realloc(void *block, size_t size)
{
    if (fails(0, size))
        return NULL;
    return block ? libc.realloc(block, size) : counted(libc.realloc(block, size));
}

int posix_memalign(void **out, size_t align, size_t size)
{
    if (fails(align, size))
        return ENOMEM;
    int err = libc.posix_memalign(out, align, size);
    nr_live += counting && !err;
    return err;
}

void *aligned_alloc(size_t align, size_t size)
{
    return fails(align, size) ? NULL : counted(libc.aligned_alloc(align, size));
}

void free(void *block)
{
    find_libc();
    nr_live -= counting && block;
    libc.free(block);
}

// What a table looks like from outside; in buffers of our own, as nothing may be allocated meanwhile.
struct view {
    struct memslots_region regions[128];
    size_t nr;
    uint64_t generation, npages;
    uint32_t count;
};

static void look(struct memslots_reader *reader, struct view *view)
{
    memset(view, 0, sizeof(*view));
    memslots_read_lock(reader);
    view->nr = memslots_get_regions(reader, 0, view->regions, 128);
    memslots_read_unlock(reader);
    view->generation = memslots_generation(reader, 0);
    view->npages = memslots_npages(reader, 0);
    view->count = memslots_count(reader, 0);
}

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

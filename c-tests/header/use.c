// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What programs do with the header, in the language that C99 to C17 and C++17 to C++20 have in common.
// Compiled as each of them by c-tests/run, with warnings as errors; never linked.

#include <memslots.h>
#include <memslots.h>

// Constants of one enum are joined and stored in the fields of fixed width.
void fill_in(struct memslots_region *region);

void fill_in(struct memslots_region *region)
{
    region->slot = MEMSLOTS_ID_ANY;
    region->flags = MEMSLOTS_LOG_DIRTY_PAGES | MEMSLOTS_READONLY;
}

// They are compared with such fields.
int is_to_be_told(const struct memslots_change *change, const struct memslot *slot);

int is_to_be_told(const struct memslots_change *change, const struct memslot *slot)
{
    switch (change->kind) {
    case MEMSLOTS_CREATE:
    case MEMSLOTS_DELETE:
        return !(slot->flags & MEMSLOTS_INVALID);
    default:
        return change->kind <= MEMSLOTS_FLAGS_ONLY && slot->id != MEMSLOTS_ID_ANY;
    }
}

// A variable may have the enum's type.
int translate(struct memslots_reader *reader, uint64_t gpa, int is_write, uint64_t *hva);

int translate(struct memslots_reader *reader, uint64_t gpa, int is_write, uint64_t *hva)
{
    enum memslots_access access = is_write ? MEMSLOTS_WRITE : MEMSLOTS_READ;

    return memslots_gpa_to_hva(reader, 0, gpa, access, hva, NULL);
}

// Hooks begin with their size. C names the others; GCC's -Wextra wants all of them in C++.
static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
}

#if !defined(__cplusplus)
static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release};
#elif __cplusplus >= 202002L
static const struct memslots_ops ops = {
    MEMSLOTS_OPS_INIT, .pause = NULL,  .resume = NULL, .dirty = NULL,      .flush = NULL,
    .prepare = NULL,   .cancel = NULL, .commit = NULL, .release = release, .unmap = NULL};
#else
static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                        release,           NULL};
#endif

int make_a_table(struct memslots **out);

int make_a_table(struct memslots **out)
{
    struct memslots_config config;

    memslots_config_init(&config);
    config.ops = &ops;
    return memslots_new(&config, out);
}

// Why vCPUs are stopped is made of bits.
int is_for_a_gap(uint32_t why);

int is_for_a_gap(uint32_t why)
{
    return (why & MEMSLOTS_PAUSE_GAP) && !(why & MEMSLOTS_PAUSE_LOG);
}

// The last-used slot is looked at in the program itself.
const struct memslot *find(struct memslots_reader *reader, uint64_t gfn);

const struct memslot *find(struct memslots_reader *reader, uint64_t gfn)
{
    return memslots_find_gfn_inline(reader, 0, gfn);
}

// The version can be asked for by the preprocessor.
#if MEMSLOTS_VERSION_MAJOR == 0 && MEMSLOTS_VERSION_MINOR < 2
#error "an older header"
#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Allocations that fail when they are told to, and what a table looks like from outside.
//
// A program's malloc and friends stand before the C library's. Not failed are the allocations that
// crossbeam-epoch makes for itself, with no way to say no: a collector (640 bytes) and a participant
// (2304), both aligned to 128, when a table or a reader is made, and its bags of deferred work (2072).
// That is the library's one stated exception; the sizes are those of 0.9.21 on 64-bit machines.

#ifndef MEMSLOTS_C_TESTS_OOM_H
#define MEMSLOTS_C_TESTS_OOM_H

#include "test.h"

#include <dlfcn.h>

static bool counting;     // inside a scenario
static long nr_left = -1; // allocations to go until the one that fails; -1: none will
static bool has_failed;   // it has been
static bool all_fail;     // and so will those after it
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
    if (all_fail)
        nr_left = 0;
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

static inline void look(struct memslots_reader *reader, struct view *view)
{
    memset(view, 0, sizeof(*view));
    memslots_read_lock(reader);
    view->nr = memslots_get_regions(reader, 0, view->regions, 128);
    memslots_read_unlock(reader);
    view->generation = memslots_generation(reader, 0);
    view->npages = memslots_npages(reader, 0);
    view->count = memslots_count(reader, 0);
}

#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What the harness and a measured structure ("peer") know of each other. A peer is one shared
// object that exports `bench_peer`; every entry runs a whole loop, so that no indirect call stands
// in a measured one. src/peer.rs mirrors these types. Knows nothing of any peer.

#ifndef MEMSLOTS_BENCH_H
#define MEMSLOTS_BENCH_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define NO_ANSWER  UINT64_MAX

struct bench_slot {
    uint64_t gfn, npages, hva;
    uint32_t id, flags;
};

// A move or a flags change of a slot that is now at old_gfn.
struct bench_change {
    uint64_t old_gfn, new_gfn, npages;
    uint32_t id, flags;
};

// One kind of lookup: what a query is, and what `answers` gets for it (NO_ANSWER where there is
// nothing). Without `answers` a loop returns the number of hits or a sum, equal for all peers.
enum bench_query {
    QUERY_GFN,           // gfn -> slot, one section            answer: the slot's first gfn
    QUERY_GFN_INLINE,    // the same, by the inline last-used hit where the peer has one
    QUERY_GFN_DEPENDENT, // the same, each lookup waiting for the one before
    QUERY_GFN_SECTION,   // the same, a read section each
    QUERY_GFN_HVA,       // gfn -> hva                           answer: the hva
    QUERY_HVA_GFN,       // hva -> gfn                           answer: the gfn
    QUERY_HVA_4K,        // [hva, hva + 4 KiB): all slots        answer: sum of (first gfn + 1)
    QUERY_HVA_2M,        // [hva, hva + 2 MiB): all slots        answer: as above
    QUERY_ID,            // id -> slot                           answer: the slot's first gfn
    NR_QUERIES,
};

// Ticks of the time stamp counter: 64 exact buckets, then 32 for each doubling.
#define HISTOGRAM_BUCKETS (64 + 32 * 42)

struct bench_peer {
    const char *name;
    void *(*table_new)(uint32_t max_slots);
    void (*table_free)(void *table);
    // On the thread that will use it.
    void *(*reader_new)(void *table);
    void (*reader_free)(void *reader);

    // Updates, one by one; 0 or a negative errno. `create_all`: the best way to many at
    // once; `create_steps`: where each is answered before the next is known, and all are seen at once.
    int (*create)(void *table, const struct bench_slot *, size_t n);
    int (*create_all)(void *table, const struct bench_slot *, size_t n);
    int (*create_steps)(void *table, const struct bench_slot *, size_t n);
    int (*remove)(void *table, const struct bench_slot *, size_t n);
    int (*move)(void *table, const struct bench_change *, size_t n);
    int (*move_all)(void *table, const struct bench_change *, size_t n);
    int (*set_flags)(void *table, const struct bench_change *, size_t n);
    // Nothing is owed afterwards: garbage is freed.
    void (*quiesce)(void *table);
    // What the table's structures take, without what is held for later. NULL: all that it allocated.
    size_t (*live_bytes)(void *table);

    // NULL: the peer has no such lookup.
    uint64_t (*query[NR_QUERIES])(void *reader, const uint64_t *queries, size_t n,
                                  uint64_t *answers);
    // Query i by reader i % nr; `own`: with each reader's own last-used slot, else with one for all.
    uint64_t (*many_readers)(void *const *readers, size_t nr, const uint64_t *queries, size_t n,
                             int own);
    // Sections of `per_section` lookups until *stop; returns the number of lookups.
    uint64_t (*read_until)(void *reader, const uint64_t *queries, size_t n, size_t per_section,
                           const int *stop);
    // Sections of one lookup until *stop, the time of each in the histogram.
    void (*sample_until)(void *reader, const uint64_t *queries, size_t n, uint64_t *histogram,
                         const int *stop);
};

#endif

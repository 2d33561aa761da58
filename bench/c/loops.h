// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The measured loops, compiled into each C peer around its own inline operations. A peer defines,
// before it includes this file:
//
//   struct table, struct reader, slot_t, PEER_NAME
//   table_new, table_free, reader_new, reader_free, quiesce
//   section_begin(reader), section_end(reader)
//   find_gfn(reader, gfn) -> const slot_t *       find_gfn_shared(readers, i, gfn) -> the same
//   gfn_to_hva(reader, gfn), hva_to_gfn(reader, hva) -> uint64_t or NO_ANSWER
//   hva_range(reader, start, last) -> sum of (first gfn + 1) of the slots in it
//   find_id(reader, id) -> const slot_t *         slot_gfn(const slot_t *)
//   create_one, remove_one (table, const struct bench_slot *), move_one, flags_one (table,
//   const struct bench_change *), create_all, move_all
//   create_steps, with HAS_CREATE_STEPS, where it is another than create_all
//   live_bytes(table), with HAS_LIVE_BYTES, where malloc's count is not what its structures take
//
// src/loops.rs says the same in Rust. Knows nothing of any peer's insides.

#include "bench.h"

#include <x86intrin.h>

#ifndef find_gfn_inline
#define find_gfn_inline find_gfn
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

// A loop that stays one function of its own, even where another compiles to the same: profilers and
// count-instructions go by its name.
#ifdef __clang__
#define LOOP static __attribute__((noinline))
#else
#define LOOP static __attribute__((noipa))
#endif

// The compiler must have this value in hand here, and may not look through it.
#define consume(value) __asm__ volatile("" : "+r"(value))

static ALWAYS_INLINE uint64_t slot_answer(const slot_t *slot)
{
    return slot ? slot_gfn(slot) : NO_ANSWER;
}

#define GFN_LOOP(name, find)                                                                       \
    static ALWAYS_INLINE uint64_t name(struct reader *reader, const uint64_t *queries, size_t n,   \
                                       uint64_t *answers)                                          \
    {                                                                                              \
        uint64_t hits = 0;                                                                         \
        for (size_t i = 0; i < n; i++) {                                                           \
            const slot_t *slot = find(reader, queries[i]);                                         \
            consume(slot);                                                                         \
            hits += slot != NULL;                                                                  \
            if (answers)                                                                           \
                answers[i] = slot_answer(slot);                                                    \
        }                                                                                          \
        return hits;                                                                               \
    }

GFN_LOOP(gfn_loop, find_gfn)
GFN_LOOP(gfn_inline_loop, find_gfn_inline)

static ALWAYS_INLINE uint64_t dependent_loop(struct reader *reader, const uint64_t *queries,
                                             size_t n, uint64_t *answers)
{
    uint64_t hits = 0;
    size_t wait = 0; // always 0, which the compiler cannot know
    for (size_t i = 0; i < n; i++) {
        const slot_t *slot = find_gfn(reader, queries[i + wait]);
        consume(slot);
        wait = (uintptr_t)slot >> 63;
        hits += slot != NULL;
        if (answers)
            answers[i] = slot_answer(slot);
    }
    return hits;
}

static ALWAYS_INLINE uint64_t section_loop(struct reader *reader, const uint64_t *queries, size_t n,
                                           uint64_t *answers)
{
    uint64_t hits = 0;
    for (size_t i = 0; i < n; i++) {
        section_begin(reader);
        const slot_t *slot = find_gfn(reader, queries[i]);
        consume(slot);
        hits += slot != NULL;
        if (answers)
            answers[i] = slot_answer(slot);
        section_end(reader);
    }
    return hits;
}

static ALWAYS_INLINE uint64_t id_loop(struct reader *reader, const uint64_t *queries, size_t n,
                                      uint64_t *answers)
{
    uint64_t hits = 0;
    for (size_t i = 0; i < n; i++) {
        const slot_t *slot = find_id(reader, queries[i]);
        consume(slot);
        hits += slot != NULL;
        if (answers)
            answers[i] = slot_answer(slot);
    }
    return hits;
}

#define VALUE_LOOP(name, expression)                                                               \
    static ALWAYS_INLINE uint64_t name(struct reader *reader, const uint64_t *queries, size_t n,   \
                                       uint64_t *answers)                                          \
    {                                                                                              \
        uint64_t sum = 0;                                                                          \
        for (size_t i = 0; i < n; i++) {                                                           \
            uint64_t query = queries[i];                                                           \
            uint64_t value = expression;                                                           \
            sum += value;                                                                          \
            if (answers)                                                                           \
                answers[i] = value;                                                                \
        }                                                                                          \
        return sum;                                                                                \
    }

VALUE_LOOP(gfn_hva_loop, gfn_to_hva(reader, query))
VALUE_LOOP(hva_gfn_loop, hva_to_gfn(reader, query))
VALUE_LOOP(hva_4k_loop, hva_range(reader, query, query + 0xfff))
VALUE_LOOP(hva_2m_loop, hva_range(reader, query, query + 0x1fffff))

// The entry of a loop in the table: with and without answers are two compilations.
#define ENTRY(loop)                                                                                \
    LOOP uint64_t loop##_entry(void *reader, const uint64_t *queries, size_t n, uint64_t *answers) \
    {                                                                                              \
        section_begin(reader);                                                                     \
        uint64_t sum =                                                                             \
            answers ? loop(reader, queries, n, answers) : loop(reader, queries, n, NULL);          \
        section_end(reader);                                                                       \
        return sum;                                                                                \
    }

ENTRY(gfn_loop)
ENTRY(gfn_inline_loop)
ENTRY(dependent_loop)
ENTRY(id_loop)
ENTRY(gfn_hva_loop)
ENTRY(hva_gfn_loop)
ENTRY(hva_4k_loop)
ENTRY(hva_2m_loop)

LOOP uint64_t section_loop_entry(void *reader, const uint64_t *queries, size_t n, uint64_t *answers)
{
    return answers ? section_loop(reader, queries, n, answers)
                   : section_loop(reader, queries, n, NULL);
}

LOOP uint64_t many_readers_entry(void *const *readers, size_t nr, const uint64_t *queries, size_t n,
                                 int own)
{
    struct reader *const *all = (struct reader *const *)readers;
    uint64_t hits = 0;
    for (size_t r = 0; r < nr; r++)
        section_begin(all[r]);
    for (size_t i = 0, r = 0; i < n; i++) {
        const slot_t *slot =
            own ? find_gfn(all[r], queries[i]) : find_gfn_shared(all, r, queries[i]);
        consume(slot);
        hits += slot != NULL;
        r = r + 1 == nr ? 0 : r + 1;
    }
    for (size_t r = nr; r-- > 0;)
        section_end(all[r]);
    return hits;
}

LOOP uint64_t read_until_entry(void *reader, const uint64_t *queries, size_t n, size_t per_section,
                               const int *stop)
{
    uint64_t done = 0;
    for (size_t i = 0; !__atomic_load_n(stop, __ATOMIC_RELAXED); i += per_section) {
        if (i + per_section > n)
            i = 0;
        section_begin(reader);
        done += per_section;
        gfn_loop(reader, queries + i, per_section, NULL);
        section_end(reader);
    }
    return done;
}

static size_t histogram_bucket(uint64_t ticks)
{
    if (ticks < 64)
        return ticks;
    unsigned shift = 58 - __builtin_clzll(ticks);
    size_t bucket = 64 + (shift - 1) * 32 + ((ticks >> shift) - 32);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

LOOP void sample_until_entry(void *reader, const uint64_t *queries, size_t n, uint64_t *histogram,
                             const int *stop)
{
    unsigned cpu;
    for (size_t i = 0; !__atomic_load_n(stop, __ATOMIC_RELAXED); i = i + 1 == n ? 0 : i + 1) {
        _mm_lfence();
        uint64_t begin = __rdtsc();
        section_begin(reader);
        const slot_t *slot = find_gfn(reader, queries[i]);
        consume(slot);
        section_end(reader);
        uint64_t end = __rdtscp(&cpu);
        histogram[histogram_bucket(end - begin)]++;
    }
}

#define UPDATE_LOOP(name, one, what)                                                               \
    LOOP int name(void *table, const struct what *items, size_t n)                                 \
    {                                                                                              \
        for (size_t i = 0; i < n; i++) {                                                           \
            int error = one(table, &items[i]);                                                     \
            if (error)                                                                             \
                return error;                                                                      \
        }                                                                                          \
        return 0;                                                                                  \
    }

UPDATE_LOOP(create_entry, create_one, bench_slot)
UPDATE_LOOP(remove_entry, remove_one, bench_slot)
UPDATE_LOOP(move_entry, move_one, bench_change)
UPDATE_LOOP(flags_entry, flags_one, bench_change)

LOOP int create_all_entry(void *table, const struct bench_slot *slots, size_t n)
{
    return create_all(table, slots, n);
}

#ifdef HAS_CREATE_STEPS
LOOP int create_steps_entry(void *table, const struct bench_slot *slots, size_t n)
{
    return create_steps(table, slots, n);
}
#else
#define create_steps_entry create_all_entry
#endif

LOOP int move_all_entry(void *table, const struct bench_change *changes, size_t n)
{
    return move_all(table, changes, n);
}

static void *table_new_entry(uint32_t max_slots)
{
    return table_new(max_slots);
}

static void table_free_entry(void *table)
{
    table_free(table);
}

static void *reader_new_entry(void *table)
{
    return reader_new(table);
}

static void reader_free_entry(void *reader)
{
    reader_free(reader);
}

static void quiesce_entry(void *table)
{
    quiesce(table);
}

#ifdef HAS_LIVE_BYTES
static size_t live_bytes_entry(void *table)
{
    return live_bytes(table);
}
#else
#define live_bytes_entry NULL
#endif

__attribute__((visibility("default"))) const struct bench_peer bench_peer = {
    .name = PEER_NAME,
    .table_new = table_new_entry,
    .table_free = table_free_entry,
    .reader_new = reader_new_entry,
    .reader_free = reader_free_entry,
    .create = create_entry,
    .create_all = create_all_entry,
    .create_steps = create_steps_entry,
    .remove = remove_entry,
    .move = move_entry,
    .move_all = move_all_entry,
    .set_flags = flags_entry,
    .quiesce = quiesce_entry,
    .live_bytes = live_bytes_entry,
    .query =
        {
            [QUERY_GFN] = gfn_loop_entry,
            [QUERY_GFN_INLINE] = gfn_inline_loop_entry,
            [QUERY_GFN_DEPENDENT] = dependent_loop_entry,
            [QUERY_GFN_SECTION] = section_loop_entry,
            [QUERY_GFN_HVA] = gfn_hva_loop_entry,
            [QUERY_HVA_GFN] = hva_gfn_loop_entry,
            [QUERY_HVA_4K] = hva_4k_loop_entry,
            [QUERY_HVA_2M] = hva_2m_loop_entry,
            [QUERY_ID] = id_loop_entry,
        },
    .many_readers = many_readers_entry,
    .read_until = read_until_entry,
    .sample_until = sample_until_entry,
};

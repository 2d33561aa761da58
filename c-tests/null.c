// SPDX-License-Identifier: MIT OR Apache-2.0
//
// NULL everywhere: an errno, NULL or 0, never a crash.

#include "test.h"

static void updates(void)
{
    struct memslots *ms = new_table();
    struct memslots_region region = ram(0, 0, 1);

    CHECK_EQ(memslots_set_region(NULL, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_set_region(ms, NULL, NULL), -EINVAL);
    CHECK_EQ(memslots_create(NULL, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_create(ms, NULL, NULL), -EINVAL);
    CHECK_EQ(memslots_delete(NULL, 0, 0), -EINVAL);
    CHECK_EQ(memslots_move(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_set_flags(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_apply(NULL, &region, NULL, 1, NULL), -EINVAL);
    CHECK_EQ(memslots_apply(ms, NULL, NULL, 1, NULL), -EINVAL);
    CHECK_EQ(memslots_replace_all(NULL, 0, &region, NULL, 1, NULL), -EINVAL);
    CHECK_EQ(memslots_replace_all(ms, 0, NULL, NULL, 1, NULL), -EINVAL);
    memslots_free(ms);
}

static void life(void)
{
    memslots_config_init(NULL);
    CHECK_EQ(memslots_new(NULL, NULL), -EINVAL);
    memslots_free(NULL);
}

static void transactions(void)
{
    struct memslots *ms = new_table();
    struct memslots_txn *txn = NULL;
    struct memslots_region region = ram(0, 0, 1);

    CHECK_EQ(memslots_txn_begin(NULL, &txn), -EINVAL);
    CHECK_EQ(memslots_txn_begin(ms, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_set_region(NULL, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_create(NULL, &region, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_delete(NULL, 0, 0), -EINVAL);
    CHECK_EQ(memslots_txn_move(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_txn_set_flags(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_txn_split(NULL, 0, 0, 0, 0, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_merge(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_txn_resize(NULL, 0, 0, 0), -EINVAL);
    CHECK_EQ(memslots_txn_commit(NULL), -EINVAL);
    CHECK_EQ(memslots_txn_plan(NULL, NULL, 0, NULL), -EINVAL);
    CHECK(memslots_txn_find_gfn(NULL, 0, 0) == NULL);
    memslots_txn_abort(NULL);

    txn = begin(ms);
    CHECK_EQ(memslots_txn_set_region(txn, NULL, NULL), -EINVAL);
    CHECK_EQ(memslots_txn_create(txn, NULL, NULL), -EINVAL);
    memslots_txn_abort(txn);
    memslots_free(ms);
}

static void readers(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = NULL;
    uint64_t out = 77, left = 77;

    CHECK_EQ(memslots_reader_new(NULL, &reader), -EINVAL);
    CHECK_EQ(memslots_reader_new(ms, NULL), -EINVAL);
    memslots_reader_free(NULL);
    memslots_read_lock(NULL);
    memslots_read_unlock(NULL);
    CHECK(memslots_find_gfn(NULL, 0, 0) == NULL);
    CHECK(memslots_find_gfn_approx(NULL, 0, 0) == NULL);
    CHECK(memslots_find_id(NULL, 0, 0) == NULL);
    CHECK(memslots_find_hva(NULL, 0, 0) == NULL);
    CHECK_EQ(memslots_gpa_to_hva(NULL, 0, 0, MEMSLOTS_READ, &out, &left), -EINVAL);
    CHECK_EQ(memslots_hva_to_gpa(NULL, 0, 0, &out), -EINVAL);
    CHECK_EQ(memslots_generation(NULL, 0), 0);
    CHECK_EQ(memslots_count(NULL, 0), 0);
    CHECK_EQ(memslots_npages(NULL, 0), 0);
    CHECK_EQ(memslots_get_regions(NULL, 0, NULL, 0), 0);
    CHECK_EQ(out, 77);
    CHECK_EQ(left, 77);
    memslots_free(ms);
}

static void iterators_and_caches(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_iter iter;
    struct memslots_hva_cache cache;
    uint64_t hva = 77;

    CHECK_EQ(set(ms, 0, 0, 1), 0);
    memslots_read_lock(reader);
    memslots_iter_all(NULL, reader, 0);
    memslots_iter_gfn(NULL, reader, 0, 0, 1);
    memslots_iter_hva(NULL, reader, 0, 0, 1);
    CHECK(memslots_iter_next(NULL) == NULL);
    memslots_iter_all(&iter, NULL, 0);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_iter_gfn(&iter, NULL, 0, 0, 1);
    CHECK(memslots_iter_next(&iter) == NULL);
    memslots_iter_hva(&iter, NULL, 0, 0, UINT64_MAX);
    CHECK(memslots_iter_next(&iter) == NULL);
    CHECK_EQ(memslots_hva_cache_init(NULL, reader, 0, 0, 1, MEMSLOTS_READ), -EINVAL);
    CHECK_EQ(memslots_hva_cache_init(&cache, NULL, 0, 0, 1, MEMSLOTS_READ), -EINVAL);
    CHECK_EQ(memslots_hva_cache_get(NULL, reader, &hva), -EINVAL);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, 1, MEMSLOTS_READ), 0);
    CHECK_EQ(memslots_hva_cache_get(&cache, NULL, &hva), -EINVAL);
    CHECK_EQ(hva, 77);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// An out parameter that is NULL is refused or not wanted, as the header says; it is not written to.
static void out_parameters(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_hva_cache cache;
    uint64_t hva = 0;

    CHECK_EQ(set(ms, 0, 0, 1), 0);
    memslots_read_lock(reader);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, 8, MEMSLOTS_READ, &hva, NULL), 0);
    CHECK_EQ(hva, HVA + 8);
    CHECK_EQ(memslots_gpa_to_hva(reader, 0, 0, MEMSLOTS_READ, NULL, NULL), -EINVAL);
    CHECK_EQ(memslots_hva_to_gpa(reader, 0, HVA, NULL), -EINVAL);
    CHECK_EQ(memslots_hva_cache_init(&cache, reader, 0, 0, 1, MEMSLOTS_READ), 0);
    CHECK_EQ(memslots_hva_cache_get(&cache, reader, NULL), -EINVAL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

static void looking_on(void)
{
    struct memslots *ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    struct memslots_stats stats;
    struct memslots_reader_stats reader_stats;
    size_t nr = 0;

    CHECK_EQ(memslots_reclaim(NULL), 0);
    memslots_synchronize(NULL);
    CHECK_EQ(memslots_try_synchronize(NULL), -EINVAL);
    CHECK_EQ(memslots_get_stats(NULL, &stats, sizeof(stats)), -EINVAL);
    CHECK_EQ(memslots_get_stats(ms, NULL, sizeof(stats)), -EINVAL);
    CHECK_EQ(memslots_reader_get_stats(NULL, &reader_stats, sizeof(reader_stats)), -EINVAL);
    CHECK_EQ(memslots_reader_get_stats(reader, NULL, sizeof(reader_stats)), -EINVAL);
    CHECK_EQ(memslots_dump(NULL, 1), -EINVAL);
    CHECK_EQ(memslots_attach_kvm(NULL, -1), -EINVAL);
    CHECK_EQ(memslots_trace_start(NULL, 1), -EINVAL);
    CHECK_EQ(memslots_trace_stop(NULL), -EINVAL);
    CHECK_EQ(memslots_plan(NULL, 1, NULL, 0, NULL, 0, &nr), -EINVAL);
    CHECK_EQ(memslots_plan(NULL, 0, NULL, 1, NULL, 0, &nr), -EINVAL);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(updates);
    RUN(life);
    RUN(transactions);
    RUN(readers);
    RUN(iterators_and_caches);
    RUN(out_parameters);
    RUN(looking_on);
    return test_result();
}

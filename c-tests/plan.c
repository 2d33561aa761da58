// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_plan: from one table to another in calls that KVM would take one by one. Each plan is
// played on a second table, which has KVM's rules, and must arrive.

#include "test.h"

enum { MAX = 512 };

static struct memslots_plan_step steps[4 * MAX];

static struct memslots *table_of(const struct memslots_region *regions, size_t nr)
{
    struct memslots *ms = new_table();

    for (size_t i = 0; i < nr; i++)
        REQUIRE(memslots_set_region(ms, &regions[i], NULL) == 0);
    return ms;
}

static bool has_region(const struct memslots_region *regions, size_t nr,
                       const struct memslots_region *wanted)
{
    for (size_t i = 0; i < nr; i++) {
        const struct memslots_region *r = &regions[i];
        if (r->slot == wanted->slot && r->flags == wanted->flags &&
            r->guest_phys_addr == wanted->guest_phys_addr &&
            r->memory_size == wanted->memory_size && r->userspace_addr == wanted->userspace_addr)
            return true;
    }
    return false;
}

static bool is_mapped(struct memslots_reader *reader, uint64_t gfn)
{
    return id_at(reader, 0, gfn) >= 0;
}

// Which frames that have memory in the end have some now; they may only ever gain it.
struct frames {
    bool mapped[MAX];
};

static struct frames kept_frames(struct memslots_reader *now, struct memslots_reader *in_the_end,
                                 uint64_t nr_gfns)
{
    struct frames frames = {{false}};

    REQUIRE(nr_gfns <= MAX);
    for (uint64_t gfn = 0; gfn < nr_gfns; gfn++)
        frames.mapped[gfn] = is_mapped(now, gfn) && is_mapped(in_the_end, gfn);
    return frames;
}

// A gap: one of them has lost it.
static bool there_is_a_gap(const struct frames *before, const struct frames *after)
{
    for (size_t gfn = 0; gfn < MAX; gfn++) {
        if (before->mapped[gfn] && !after->mapped[gfn])
            return true;
    }
    return false;
}

// Plays the plan; nr_gfns: how far up there are frames.
static size_t check_plan(const struct memslots_region *from, size_t nr_from,
                         const struct memslots_region *to, size_t nr_to, uint64_t nr_gfns)
{
    static struct memslots_region arrived[MAX];
    size_t nr_steps = SIZE_MAX;
    struct memslots *ms = table_of(from, nr_from);
    struct memslots *end = table_of(to, nr_to);
    struct memslots_reader *reader = new_reader(ms), *end_reader = new_reader(end);

    CHECK_EQ(memslots_plan(from, nr_from, to, nr_to, steps, 4 * MAX, &nr_steps), 0);
    REQUIRE(nr_steps <= 4 * MAX);
    for (size_t i = 0; i < nr_steps; i++) {
        struct frames before = kept_frames(reader, end_reader, nr_gfns);
        CHECK_EQ(memslots_set_region(ms, &steps[i].region, NULL), 0);
        struct frames after = kept_frames(reader, end_reader, nr_gfns);
        CHECK_EQ(steps[i].gap, there_is_a_gap(&before, &after));
        CHECK(steps[i].kind <= MEMSLOTS_FLAGS_ONLY);
    }
    CHECK_EQ(memslots_count(reader, 0), nr_to);
    memslots_read_lock(reader);
    size_t nr = memslots_get_regions(reader, 0, arrived, MAX);
    memslots_read_unlock(reader);
    CHECK_EQ(nr, nr_to);
    for (size_t i = 0; i < nr_to && i < nr; i++)
        CHECK(has_region(arrived, nr, &to[i]));
    memslots_reader_free(reader);
    memslots_reader_free(end_reader);
    memslots_free(ms);
    memslots_free(end);
    return nr_steps;
}

static struct memslots_region ram_at(uint32_t slot, uint64_t gfn, uint64_t npages, uint64_t hva_gfn)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.userspace_addr = HVA + hva_gfn * PAGE;
    return region;
}

static void nothing_to_do(void)
{
    struct memslots_region same[] = {ram(1, 10, 10), ram(2, 30, 10)};
    struct memslots_region other_order[] = {ram(2, 30, 10), ram(1, 10, 10)};

    CHECK_EQ(check_plan(same, 2, same, 2, 50), 0);
    CHECK_EQ(check_plan(same, 2, other_order, 2, 50), 0);
    CHECK_EQ(check_plan(NULL, 0, NULL, 0, 1), 0);
}

static void one_call_a_difference(void)
{
    struct memslots_region from[] = {ram(1, 10, 10), ram(2, 30, 10), ram(3, 50, 10)};
    struct memslots_region to[] = {ram(1, 10, 10), ram_at(2, 70, 10, 30), ram(4, 30, 5)};

    to[0].flags = MEMSLOTS_LOG_DIRTY_PAGES;
    CHECK_EQ(check_plan(from, 3, to, 3, 100), 4);
    CHECK_EQ(check_plan(NULL, 0, to, 3, 100), 3);
    CHECK_EQ(check_plan(from, 3, NULL, 0, 100), 3);
}

static void a_resize_is_delete_and_create(void)
{
    struct memslots_region from[] = {ram(1, 10, 10)}, to[] = {ram(1, 10, 20)};

    CHECK_EQ(check_plan(from, 1, to, 1, 50), 2);
    CHECK_EQ(steps[0].kind, MEMSLOTS_DELETE);
    CHECK(steps[0].gap);
    CHECK_EQ(steps[1].kind, MEMSLOTS_CREATE);
    CHECK(!steps[1].gap);
}

static void a_chain_of_moves_goes_from_its_end(void)
{
    struct memslots_region from[] = {ram(1, 0, 10), ram(2, 10, 10), ram(3, 20, 10)};
    struct memslots_region to[] = {ram_at(1, 10, 10, 0), ram_at(2, 20, 10, 10),
                                   ram_at(3, 30, 10, 20)};

    CHECK_EQ(check_plan(from, 3, to, 3, 50), 3);
}

static void a_circle_takes_one_call_more(void)
{
    struct memslots_region from[] = {ram(1, 0, 10), ram(2, 10, 10), ram(3, 20, 10)};
    struct memslots_region to[] = {ram_at(1, 10, 10, 0), ram_at(2, 20, 10, 10),
                                   ram_at(3, 0, 10, 20)};

    CHECK_EQ(check_plan(from, 3, to, 3, 50), 4);
}

static void capacity_too_small(void)
{
    struct memslots_region to[] = {ram(1, 0, 10), ram(2, 10, 10), ram(3, 20, 10)};
    size_t nr_steps = 99;

    memset(steps, 0xa5, sizeof(steps));
    CHECK_EQ(memslots_plan(NULL, 0, to, 3, steps, 2, &nr_steps), -ERANGE);
    CHECK_EQ(nr_steps, 3); // so much room it takes
    CHECK_EQ(steps[2].kind, 0xa5a5a5a5);
    nr_steps = 99;
    CHECK_EQ(memslots_plan(NULL, 0, to, 3, NULL, 0, &nr_steps), -ERANGE);
    CHECK_EQ(nr_steps, 3);
    CHECK_EQ(memslots_plan(NULL, 0, to, 3, steps, 3, NULL), -EINVAL);
}

static void what_is_no_table(void)
{
    struct memslots_region overlapping[] = {ram(1, 0, 10), ram(2, 5, 10)};
    struct memslots_region twice[] = {ram(1, 0, 10), ram(1, 50, 10)};
    size_t nr_steps = 99;

    CHECK_EQ(memslots_plan(overlapping, 2, NULL, 0, steps, MAX, &nr_steps), -EINVAL);
    CHECK_EQ(memslots_plan(NULL, 0, overlapping, 2, steps, MAX, &nr_steps), -EINVAL);
    CHECK_EQ(memslots_plan(twice, 2, NULL, 0, steps, MAX, &nr_steps), -EINVAL);
    CHECK_EQ(memslots_plan(NULL, 0, twice, 2, steps, MAX, &nr_steps), -EINVAL);
    CHECK_EQ(nr_steps, 99);
}

static uint64_t random_state = 88172645463325252;

static uint64_t pick(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

// A random table: some of the ids, in random places and sizes, few hvas so that moves are frequent.
static size_t random_table(struct memslots_region *out, uint32_t nr_ids, uint64_t *nr_gfns)
{
    uint32_t order[MAX];
    size_t nr = 0;
    uint64_t gfn = 0;

    for (uint32_t i = 0; i < nr_ids; i++)
        order[i] = i;
    for (uint32_t i = 0; i < nr_ids; i++) {
        uint32_t other = (uint32_t)pick(nr_ids), id = order[i];
        order[i] = order[other];
        order[other] = id;
    }
    for (uint32_t i = 0; i < nr_ids; i++) {
        if (pick(4) == 0)
            continue;
        gfn += pick(3);
        out[nr] = ram_at(order[i], gfn, 1 + pick(3), order[i] * 16);
        out[nr].flags = pick(4) ? 0 : MEMSLOTS_LOG_DIRTY_PAGES;
        gfn += out[nr++].memory_size / PAGE;
    }
    *nr_gfns = gfn > *nr_gfns ? gfn : *nr_gfns;
    return nr;
}

static void random_tables(void)
{
    static struct memslots_region from[MAX], to[MAX];
    const int rounds = under_valgrind() ? 30 : 1000;

    for (int round = 0; round < rounds && !test_failures; round++) {
        uint64_t seed = random_state, nr_gfns = 0;
        uint32_t nr_ids = 2 + (uint32_t)pick(14);
        size_t nr_from = random_table(from, nr_ids, &nr_gfns);
        size_t nr_to = random_table(to, nr_ids, &nr_gfns);
        size_t nr_steps = check_plan(from, nr_from, to, nr_to, nr_gfns);
        CHECK(nr_steps <= nr_from + nr_to);
        if (test_failures)
            printf("    seed %" PRIu64 "\n", seed);
    }
}

static void a_transaction_s_plan(void)
{
    struct memslots *ms = new_table();
    struct memslots_region region = ram(4, 40, 10);
    size_t nr_steps = 99;

    set(ms, 1, 0, 10);
    set(ms, 2, 10, 10);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_plan(txn, steps, MAX, &nr_steps), 0);
    CHECK_EQ(nr_steps, 0);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 1), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 2, 0), 0);
    CHECK_EQ(memslots_txn_plan(txn, steps, MAX, &nr_steps), 0);
    CHECK_EQ(nr_steps, 3);
    memslots_txn_abort(txn);
    for (size_t i = 0; i < nr_steps && i < MAX; i++)
        CHECK_EQ(memslots_set_region(ms, &steps[i].region, NULL), 0);
    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(id_at(reader, 0, 0), 2);
    CHECK_EQ(id_at(reader, 0, 10), -1);
    CHECK_EQ(id_at(reader, 0, 49), 4);
    memslots_reader_free(reader);
    memslots_free(ms);
}

// Which parts of guest_memfd files are bound: KVM lets no second slot have a part before the first is
// gone, wherever in the guest the two are.
struct binding {
    uint32_t slot, fd;
    uint64_t first, end;
};

static void check_bindings(const struct memslots_region *from, size_t nr_from, size_t nr_steps)
{
    struct binding bound[MAX];
    size_t nr = 0;

    for (size_t i = 0; i < nr_from + nr_steps; i++) {
        const struct memslots_region *r = i < nr_from ? &from[i] : &steps[i - nr_from].region;
        for (size_t k = 0; k < nr; k++) // a delete, and whatever else is done to a slot
            if (bound[k].slot == r->slot)
                bound[k--] = bound[--nr];
        if (r->memory_size == 0 || !(r->flags & MEMSLOTS_GUEST_MEMFD))
            continue;
        struct binding wanted = {r->slot, r->guest_memfd, r->guest_memfd_offset,
                                 r->guest_memfd_offset + r->memory_size};
        for (size_t k = 0; k < nr; k++)
            CHECK(bound[k].fd != wanted.fd || bound[k].end <= wanted.first ||
                  bound[k].first >= wanted.end);
        REQUIRE(nr < MAX);
        bound[nr++] = wanted;
    }
}

static struct memslots_region private_ram(uint32_t slot, uint64_t gfn, uint64_t npages,
                                          uint64_t file_page)
{
    struct memslots_region region = ram(slot, gfn, npages);

    region.flags = MEMSLOTS_GUEST_MEMFD;
    region.guest_memfd = 7; // a number; nothing is opened here
    region.guest_memfd_offset = file_page * PAGE;
    return region;
}

static void a_part_of_a_guest_memfd_is_given_up_first(void)
{
    // Two exchange their parts where they are; a third passes its own to a new slot elsewhere.
    struct memslots_region from[] = {private_ram(1, 0, 10, 0), private_ram(2, 100, 10, 10),
                                     private_ram(3, 200, 10, 20)};
    struct memslots_region to[] = {private_ram(4, 300, 10, 20), private_ram(1, 0, 10, 10),
                                   private_ram(2, 100, 10, 0)};

    size_t nr = check_plan(from, 3, to, 3, 400);
    CHECK_EQ(nr, 6);
    check_bindings(from, 3, nr);
    nr = check_plan(to, 3, from, 3, 400);
    CHECK_EQ(nr, 6);
    check_bindings(to, 3, nr);
    CHECK_EQ(check_plan(from, 3, from, 3, 400), 0); // what stays is left alone
}

int main(void)
{
    RUN(nothing_to_do);
    RUN(one_call_a_difference);
    RUN(a_resize_is_delete_and_create);
    RUN(a_chain_of_moves_goes_from_its_end);
    RUN(a_circle_takes_one_call_more);
    RUN(capacity_too_small);
    RUN(what_is_no_table);
    RUN(random_tables);
    RUN(a_transaction_s_plan);
    RUN(a_part_of_a_guest_memfd_is_given_up_first);
    return test_result();
}

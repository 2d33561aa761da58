// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A VM whose kernel refuses the k-th call, for every k; and one that refuses to take back, too. This
// program's ioctl() stands before the C library's.

#define _GNU_SOURCE // O_CLOEXEC, syscall
#include "kvm.h"

#include <stdarg.h>
#include <sys/syscall.h>

#define REGION2 _IOW(KVMIO, 0x49, struct memslots_region)

static long nr_until_fault = -1; // slot calls to go until one is refused; -1: none is
static bool refuse_all_after;    // and those after it
static long nr_slot_calls;

static bool is_refused(unsigned long request)
{
    if (request != REGION2 && request != KVM_SET_USER_MEMORY_REGION)
        return false;
    nr_slot_calls++;
    if (nr_until_fault < 0)
        return false;
    if (nr_until_fault > 0) {
        nr_until_fault--;
        return false;
    }
    if (!refuse_all_after)
        nr_until_fault = -1;
    return true;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    void *argument = va_arg(args, void *);
    va_end(args);

    if (is_refused(request)) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

static void no_faults(void)
{
    nr_until_fault = -1;
    refuse_all_after = false;
}

// Slots 0..4 at gfn 0, 20, .. 80; a transaction that does a bit of everything to them.
enum { NR = 5 };

static void lay_out(void)
{
    for (uint32_t i = 0; i < NR; i++)
        CHECK_EQ(set_logged(i, i * UINT64_C(20), 10), 0);
}

static int change(void)
{
    struct memslots_txn *txn = begin(ms);
    struct memslots_region region = logged(9, 500, 10);

    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_delete(txn, 0, 0), 0);
    CHECK_EQ(memslots_txn_move(txn, 0, 1, 0), 0);
    CHECK_EQ(memslots_txn_set_flags(txn, 0, 2, 0), 0);
    CHECK_EQ(memslots_txn_resize(txn, 0, 3, 15 * PAGE), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 4, 85 * PAGE, 10, NULL), 10);
    return memslots_txn_commit(txn);
}

// Table and VM as lay_out() left them.
static void check_unchanged(void)
{
    CHECK_EQ(memslots_count(reader, 0), NR);
    CHECK_EQ(memslots_npages(reader, 0), NR * 10);
    for (uint32_t i = 0; i < NR; i++) {
        CHECK_EQ(id_at(reader, 0, i * UINT64_C(20)), i);
        CHECK(vm_has(i));
        CHECK(vm_has_memory_at(i * UINT64_C(20)));
        CHECK(vm_has_memory_at(i * UINT64_C(20) + 9));
        CHECK(!vm_has_memory_at(i * UINT64_C(20) + 10));
    }
    CHECK(!vm_has(9));
    CHECK(!vm_has(10));
    CHECK(!vm_has_memory_at(500));
}

static void the_kth_call_is_refused(void)
{
    struct memslots_stats stats;
    int err = -EIO;
    long k;

    if (!set_up())
        return;
    lay_out();
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    for (k = 0; err && k < 100; k++) {
        uint64_t generation = memslots_generation(reader, 0);
        nr_until_fault = k;
        err = change();
        bool met = nr_until_fault < 0;
        no_faults();
        CHECK_EQ(err, met ? -EIO : 0);
        if (err) {
            check_unchanged();
            CHECK_EQ(memslots_generation(reader, 0), generation);
        }
    }
    CHECK(k > 6); // a call a change at the least
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.out_of_step, 0);
    CHECK(vm_has(9));
    CHECK(vm_has(10));
    CHECK(vm_has_memory_at(74));
    tear_down();
}

static bool dump_says(const char *what)
{
    static char text[1 << 14];
    FILE *file = tmpfile();

    REQUIRE(file);
    CHECK_EQ(memslots_dump(ms, fileno(file)), 0);
    rewind(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = 0;
    fclose(file);
    return strstr(text, what) != NULL;
}

static void and_what_was_made_cannot_be_taken_back(void)
{
    struct memslots_stats stats;

    for (long k = 0; k < 4; k++) {
        if (!set_up())
            return;
        lay_out();
        CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
        CHECK(!dump_says("out of step"));
        nr_until_fault = k;
        refuse_all_after = true;
        CHECK_EQ(change(), -EIO);
        no_faults();
        CHECK_EQ(memslots_count(reader, 0), NR); // the table is as it was
        CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
        CHECK_EQ(stats.out_of_step, k); // and says of how many calls the VM is not
        CHECK_EQ(dump_says("out of step"), k > 0);
        tear_down();
    }
}

static void attaching_fails_at_the_kth_slot(void)
{
    if (!set_up())
        return;
    lay_out();
    for (long k = 0; k < NR; k++) {
        nr_until_fault = k;
        CHECK_EQ(memslots_attach_kvm(ms, vm_fd), -EIO);
        no_faults();
        for (uint32_t i = 0; i < NR; i++)
            CHECK(!vm_has(i));
        nr_slot_calls = 0;
        CHECK_EQ(set_logged(20, 5000, 1), 0); // it is not attached
        CHECK_EQ(memslots_delete(ms, 0, 20), 0);
        CHECK_EQ(nr_slot_calls, 0);
    }
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    check_unchanged();
    tear_down();
}

// Every kind of single change, refused.
static void single_changes(void)
{
    struct memslots_region region = logged(9, 500, 10);

    if (!set_up())
        return;
    lay_out();
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    for (int kind = 0; kind < 4; kind++) {
        int err = 0;
        nr_until_fault = 0;
        switch (kind) {
        case 0:
            err = memslots_set_region(ms, &region, NULL);
            break;
        case 1:
            err = memslots_delete(ms, 0, 1);
            break;
        case 2:
            err = memslots_move(ms, 0, 1, 500 * PAGE);
            break;
        case 3:
            err = memslots_set_flags(ms, 0, 1, 0);
            break;
        }
        CHECK_EQ(nr_until_fault, -1);
        no_faults();
        CHECK_EQ(err, -EIO);
        check_unchanged();
    }
    tear_down();
}

int main(void)
{
    RUN(the_kth_call_is_refused);
    RUN(and_what_was_made_cannot_be_taken_back);
    RUN(attaching_fails_at_the_kth_slot);
    RUN(single_changes);
    return test_result();
}

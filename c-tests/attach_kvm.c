// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_attach_kvm: a real VM that follows the table.

#define _DEFAULT_SOURCE // O_CLOEXEC
#include "kvm.h"

static void every_change_is_made_on_the_vm(void)
{
    if (!set_up())
        return;
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    CHECK_EQ(set_logged(1, 100, 10), 0);
    CHECK(vm_has(1));
    CHECK(vm_has_memory_at(109));
    CHECK_EQ(memslots_move(ms, 0, 1, 200 * PAGE), 0);
    CHECK(vm_has(1));
    CHECK(!vm_has_memory_at(100));
    CHECK(vm_has_memory_at(200));
    CHECK_EQ(memslots_set_flags(ms, 0, 1, 0), 0);
    CHECK(!vm_has(1));            // no log any more,
    CHECK(vm_has_memory_at(200)); // but memory
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK(!vm_has_memory_at(200));
    tear_down();
}

static void the_slots_there_are_come_along(void)
{
    if (!set_up())
        return;
    for (uint32_t i = 0; i < 50; i++)
        CHECK_EQ(set_logged(i, i * UINT64_C(20), 10), 0);
    CHECK(!vm_has(0));
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    for (uint32_t i = 0; i < 50; i++)
        CHECK(vm_has(i));
    tear_down();
}

static void a_refusal_of_the_kernel_comes_out(void)
{
    if (!set_up())
        return;
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    CHECK_EQ(vm_set(20000, 500, 10), 0); // behind the table's back
    uint64_t generation = memslots_generation(reader, 0);
    CHECK_EQ(set_logged(1, 505, 10), -EEXIST);
    CHECK_EQ(memslots_count(reader, 0), 0);
    CHECK_EQ(memslots_generation(reader, 0), generation);
    CHECK_EQ(set_logged(1, 510, 10), 0);
    CHECK_EQ(memslots_move(ms, 0, 1, 501 * PAGE), -EEXIST);
    CHECK_EQ(id_at(reader, 0, 510), 1);
    CHECK(vm_has_memory_at(519));
    tear_down();
}

// Whichever of the calls the kernel refuses, those before it are taken back.
static void what_was_made_is_undone(void)
{
    enum { NR = 8 };

    if (!set_up())
        return;
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    CHECK_EQ(set_logged(100, 5000, 10), 0);
    CHECK_EQ(set_logged(101, 5100, 10), 0);
    for (uint32_t bad = 0; bad < NR; bad++) {
        CHECK_EQ(vm_set(20000, 20 * (uint64_t)bad, 10), 0);
        struct memslots_txn *txn = begin(ms);
        for (uint32_t i = 0; i < NR; i++) {
            struct memslots_region region = logged(i, i * UINT64_C(20), 10);
            CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
        }
        CHECK_EQ(memslots_txn_delete(txn, 0, 100), 0);
        CHECK_EQ(memslots_txn_move(txn, 0, 101, 5000 * PAGE), 0);
        CHECK_EQ(memslots_txn_commit(txn), -EEXIST);
        CHECK_EQ(memslots_count(reader, 0), 2);
        for (uint32_t i = 0; i < NR; i++)
            CHECK(!vm_has(i));
        CHECK(vm_has(100));
        CHECK(vm_has(101));
        CHECK(vm_has_memory_at(5000));
        CHECK(vm_has_memory_at(5100));
        vm_set(20000, 0, 0);
    }
    struct memslots_stats stats;
    CHECK_EQ(memslots_get_stats(ms, &stats, sizeof(stats)), 0);
    CHECK_EQ(stats.out_of_step, 0);
    tear_down();
}

static void an_exchange_of_places(void)
{
    if (!set_up())
        return;
    struct memslots_region to[] = {logged(1, 100, 10), logged(2, 200, 10)};

    CHECK_EQ(set_logged(1, 200, 10), 0);
    CHECK_EQ(set_logged(2, 100, 10), 0);
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    to[0].userspace_addr = HVA + 200 * PAGE;
    to[1].userspace_addr = HVA + 100 * PAGE;
    CHECK_EQ(memslots_replace_all(ms, 0, to, NULL, 2, NULL), 0);
    CHECK(vm_has(1));
    CHECK(vm_has(2));
    CHECK(vm_has_memory_at(100));
    CHECK(vm_has_memory_at(200));
    CHECK_EQ(id_at(reader, 0, 100), 1);
    tear_down();
}

static void split_merge_and_resize(void)
{
    if (!set_up())
        return;
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    CHECK_EQ(set_logged(1, 100, 10), 0);
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_split(txn, 0, 1, 104 * PAGE, 7, NULL), 7);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK(vm_has(1));
    CHECK(vm_has(7));
    txn = begin(ms);
    CHECK_EQ(memslots_txn_merge(txn, 0, 1, 7), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK(vm_has(1));
    CHECK(!vm_has(7));
    CHECK(vm_has_memory_at(109));
    txn = begin(ms);
    CHECK_EQ(memslots_txn_resize(txn, 0, 1, 50 * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    CHECK(vm_has_memory_at(149));
    tear_down();
}

static void detached_the_vm_keeps_what_it_has(void)
{
    if (!set_up())
        return;
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), 0);
    CHECK_EQ(set_logged(1, 100, 10), 0);
    CHECK_EQ(memslots_attach_kvm(ms, -1), 0);
    CHECK(vm_has(1));
    CHECK_EQ(memslots_delete(ms, 0, 1), 0);
    CHECK_EQ(set_logged(2, 200, 10), 0);
    CHECK(vm_has(1));
    CHECK(!vm_has(2));
    tear_down();
}

static void attaching_can_be_refused(void)
{
    if (!set_up())
        return;
    CHECK_EQ(set_logged(1, 100, 10), 0);
    CHECK_EQ(set_logged(2, 200, 10), 0);
    CHECK_EQ(vm_set(20000, 205, 1), 0);
    CHECK_EQ(memslots_attach_kvm(ms, vm_fd), -EEXIST);
    CHECK(!vm_has(1));                   // taken back
    CHECK_EQ(set_logged(3, 300, 10), 0); // and not attached
    CHECK(!vm_has(3));
    tear_down();
}

static void an_fd_that_is_no_vm(void)
{
    struct memslots *table = new_table();
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int ends[2];

    REQUIRE(null_fd >= 0 && pipe(ends) == 0);
    for (int with_slots = 0; with_slots < 2; with_slots++) {
        CHECK(memslots_attach_kvm(table, null_fd) < 0);
        CHECK(memslots_attach_kvm(table, ends[0]) < 0);
        CHECK_EQ(memslots_attach_kvm(table, 9999), -EBADF);
        CHECK_EQ(set(table, 1, 100, 10), 0); // and it goes on without
    }
    CHECK_EQ(memslots_attach_kvm(table, -1), 0);
    close(null_fd);
    close(ends[0]);
    close(ends[1]);
    memslots_free(table);
}

// /dev/kvm itself and a vCPU are KVM's, and still no VM.
static void an_fd_of_kvm_that_is_no_vm(void)
{
    if (!set_up())
        return;
    int vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
    CHECK(memslots_attach_kvm(ms, kvm_fd) < 0);
    if (vcpu_fd >= 0) {
        CHECK(memslots_attach_kvm(ms, vcpu_fd) < 0);
        close(vcpu_fd);
    }
    CHECK_EQ(set_logged(1, 100, 10), 0);
    CHECK(!vm_has(1));
    tear_down();
}

int main(void)
{
    RUN(every_change_is_made_on_the_vm);
    RUN(the_slots_there_are_come_along);
    RUN(a_refusal_of_the_kernel_comes_out);
    RUN(what_was_made_is_undone);
    RUN(an_exchange_of_places);
    RUN(split_merge_and_resize);
    RUN(detached_the_vm_keeps_what_it_has);
    RUN(attaching_can_be_refused);
    RUN(an_fd_that_is_no_vm);
    RUN(an_fd_of_kvm_that_is_no_vm);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The C example of the README, whole: a table, a slot, and a guest address made a pointer.

#include <memslots.h>
#include <stdio.h>

static _Alignas(4096) char ram[1 << 20];

int main(void)
{
    struct memslots *table;
    struct memslots_reader *vcpu; // one for each thread that reads
    struct memslots_region region = {
        .slot = MEMSLOTS_ID_ANY,
        .guest_phys_addr = 0x100000,
        .memory_size = sizeof(ram),
        .userspace_addr = (uint64_t)(uintptr_t)ram,
    };
    uint64_t hva, len_left;

    if (memslots_new(NULL, &table) || memslots_reader_new(table, &vcpu))
        return 1;
    int id = memslots_create(table, &region, NULL); // checked as KVM checks it

    memslots_read_lock(vcpu); // never waits
    int err = memslots_gpa_to_hva(vcpu, 0, 0x100123, MEMSLOTS_WRITE, &hva, &len_left);
    if (err == 0)
        *(char *)(uintptr_t)hva = 'x';
    memslots_read_unlock(vcpu);

    printf("slot %d; ram[0x123] is '%c'\n", id, ram[0x123]);
    memslots_reader_free(vcpu);
    memslots_free(table);
    return err ? 1 : 0;
}

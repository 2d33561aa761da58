// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What the parts of minivmm share: the machine under construction, and how its memory comes and
// goes.

#ifndef MINIVMM_VMM_H
#define MINIVMM_VMM_H

#include "vm.h"

#include <memslots.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// The guest's address space: boot memory at 0, a few hundred slots of all sizes with holes between
// them from 1 MiB on, and from 1 GiB on the sockets that memory is plugged into.
#define BOOT_PAGES    64
#define LIST_ALWAYS   0x2000  // in boot memory: addresses in memory that never goes away
#define LIST_FINALLY  0x20000 // and, once the hot-plugging is over, in everything there is
#define LIST_CAPACITY ((LIST_FINALLY - LIST_ALWAYS) / sizeof(uint32_t))
#define FIXED_GPA     UINT64_C(0x00100000)
#define SOCKET_GPA    UINT64_C(0x40000000)
#define SOCKET_PAGES  16
#define NR_SOCKETS    32

// A stretch of guest memory on the host: what a slot's opaque points to. At most 64 pages, so that
// a word has a bit for each of them.
struct memory {
    uint64_t gpa, npages;
    uint64_t serial;          // no two have the same, not even at the same place
    char *host;               // each page carries a stamp: see page_stamp()
    _Atomic uint64_t written; // pages that the guest was seen to have written
};

struct vmm {
    const struct vm_kind *kind;
    struct vm *vm;
    struct memslots *table;
    uint32_t nr_fixed;      // slots that never go away, boot memory among them
    int socket[NR_SOCKETS]; // the id of the slot plugged in there, or -1
    uint64_t nr_memories, nr_plugged, nr_unplugged, nr_refused;
    _Atomic uint64_t nr_released;
    _Atomic uint64_t mapped_bytes; // of guest memory
    atomic_bool plugging;          // the guest keeps to LIST_ALWAYS
    atomic_bool reading;           // the readers go on
    _Atomic uint64_t nr_wrong;
};

// Counts something that should not be, and says what.
__attribute__((format(printf, 2, 3))) void complain(struct vmm *vmm, const char *format, ...);

// A slot of fresh memory: decided by the table, then made on the VM. The id, or a negative errno.
int plug(struct vmm *vmm, uint64_t gpa, uint64_t npages, uint32_t flags);
// And away with it; its memory goes when the last reader has let go of it.
int unplug(struct vmm *vmm, uint16_t id);
// For the table's configuration: the hooks that free what is known of a slot, and give its memory back.
void release_memory(void *vmm, const struct memslot *gone);
void unmap_memory(void *vmm, uint64_t hva, uint64_t size);

// What stands in each page behind the dword that the guest writes: tells page and memory apart from
// any other, also from one that was at the same place before.
#define STAMP_OFFSET 8
uint64_t page_stamp(const struct memory *memory, uint64_t page);

// The guest's processor (vcpu.c).
struct vcpu {
    struct vmm *vmm;
    struct memslots_reader *reader;
    uint64_t refused_gpa; // of a write that no memory took, until the guest tells us of it
    bool last_list;       // the guest is on LIST_FINALLY
    _Atomic uint64_t nr_lists;
    uint64_t in_ram, in_rom, in_holes; // where the guest's writes went
};
#define NO_GPA UINT64_MAX // what refused_gpa is otherwise
void *vcpu_thread(void *vcpu);

// A thread that does what a VMM's device threads do all day: look up guest memory and use it
// (io.c).
struct io_thread {
    struct vmm *vmm;
    struct memslots_reader *reader;
    uint64_t random;
    uint64_t nr_lookups, nr_walks; // whole tables walked
};
void *io_thread(void *io);

static inline uint64_t next_random(uint64_t *state) // xorshift64
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// minivmm: a small but whole VMM on top of libmemslots.
//
// It lays out a guest over hundreds of slots; the table decides what may be, and each change that
// it takes is made on a KVM VM too. The guest writes to memory in every slot, to ROM and to holes,
// and every exit is resolved through the table. Meanwhile memory is plugged and unplugged, and I/O
// threads look up guest memory and check all that they see. In the end KVM's dirty log must name
// the pages that the guest wrote, and no others.
//
//     minivmm [--simulate] [--slots N]
//
// Without /dev/kvm, or when asked to, it does all of this on a simulated VM and says so;
// MEMSLOTS_REQUIRE_KVM=1 makes that a failure. Exit status 0: everything was as it should be.
//
// Build: make, or
//     cc -std=c11 -O2 *.c *.S -o minivmm $(pkg-config --cflags --libs memslots) -pthread
//
// Read on in vmm.c (the writer's side), vcpu.c and io.c (readers), vm.h (the VM), guest.h.

#define _POSIX_C_SOURCE 200809L // clock_gettime
#include "vmm.h"
#include "guest.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NR_IO_THREADS 2
#define MIN_SLOTS     2     // boot memory and one to plug over
#define MAX_SLOTS     10000 // the guest's lists hold an address a slot and one a hole
#define MIN_HOTPLUGS  2000  // changes to the table while the guest runs
#define MIN_LISTS     3     // and the lists that the guest must have done meanwhile
#define RAM_FLAGS     MEMSLOTS_LOG_DIRTY_PAGES
#define ROM_FLAGS     (MEMSLOTS_LOG_DIRTY_PAGES | MEMSLOTS_READONLY)

struct options {
    bool simulate;
    uint32_t nr_slots;
};

static uint64_t random_state = 0x9e3779b97f4a7c15;

static _Noreturn void die(const char *what, int err)
{
    fprintf(stderr, "minivmm: %s: %s\n", what, strerror(-err));
    exit(1);
}

//
// The machine
//

static void open_vm(struct vmm *vmm, bool simulate)
{
    const char *require = getenv("MEMSLOTS_REQUIRE_KVM");
    bool required = require && strcmp(require, "1") == 0;
    int err = -ENOSYS;

    if (!simulate) {
        vmm->kind = &vm_kvm;
        err = vm_kvm.open(&vmm->vm);
        if (!err)
            return;
        printf("minivmm: no KVM (%s): going on with a simulated VM\n", strerror(-err));
    }
    if (required)
        die("MEMSLOTS_REQUIRE_KVM=1, and this is not a real VM", err);
    vmm->kind = &vm_simulated;
    err = vm_simulated.open(&vmm->vm);
    if (err)
        die("simulated VM", err);
}

static void open_table(struct vmm *vmm)
{
    static const struct memslots_ops ops = {MEMSLOTS_OPS_INIT, .release = release_memory,
                                            .unmap = unmap_memory};
    struct memslots_config config;

    memslots_config_init(&config);
    config.page_shift = PAGE_SHIFT;
    config.ops = &ops;
    config.ctx = vmm;
    int err = memslots_new(&config, &vmm->table);
    if (err)
        die("memslots_new", err);
}

static void plug_or_die(struct vmm *vmm, uint64_t gpa, uint64_t npages, uint32_t flags)
{
    int id = plug(vmm, gpa, npages, flags);
    if (id < 0)
        die("cannot lay out the guest's memory", id);
    vmm->nr_fixed++;
}

// Boot memory, then slots of 1 to 8 pages, every 16th of them ROM, with holes of 0 to 3 pages.
static void lay_out_guest(struct vmm *vmm, uint32_t nr_slots)
{
    uint64_t gpa = FIXED_GPA;

    plug_or_die(vmm, 0, BOOT_PAGES, RAM_FLAGS);
    while (vmm->nr_fixed < nr_slots) {
        uint64_t npages = 1 + next_random(&random_state) % 8;
        plug_or_die(vmm, gpa, npages, vmm->nr_fixed % 16 ? RAM_FLAGS : ROM_FLAGS);
        gpa += (npages + next_random(&random_state) % 4) * PAGE_SIZE;
    }
    for (int i = 0; i < NR_SOCKETS; i++)
        vmm->socket[i] = -1;
}

//
// What the guest is given to do
//

struct list {
    uint32_t *entries;
    size_t count;
};

static void add_to_list(struct list *list, uint64_t gpa)
{
    if (list->count == LIST_CAPACITY - 1)
        die("too many slots for the guest's list", -E2BIG);
    list->entries[list->count++] = (uint32_t)gpa;
}

// An address in every slot, and the first of every hole. Boot memory is left alone: it holds the
// guest's code and this list.
static void write_list(struct memslots_reader *reader, uint64_t list_gpa)
{
    struct memslots_iter iter;
    const struct memslot *slot;
    uint64_t hva, len_left, last_end = 0;

    memslots_read_lock(reader);
    int err = memslots_gpa_to_hva(reader, 0, list_gpa, MEMSLOTS_WRITE, &hva, &len_left);
    if (err)
        die("boot memory", err);
    struct list list = {.entries = (uint32_t *)(uintptr_t)hva};

    memslots_iter_all(&iter, reader, 0);
    while ((slot = memslots_iter_next(&iter))) {
        uint64_t page = next_random(&random_state) % slot->npages;
        if (slot->base_gfn > last_end)
            add_to_list(&list, last_end << PAGE_SHIFT);
        if (slot->base_gfn > 0)
            add_to_list(&list, (slot->base_gfn + page) << PAGE_SHIFT);
        last_end = slot->base_gfn + slot->npages;
    }
    list.entries[list.count] = GUEST_LIST_END;
    memslots_read_unlock(reader);
}

static void load_guest(struct memslots_reader *reader)
{
#ifdef __x86_64__
    extern const char guest_code[], guest_code_end[];
    uint64_t hva, len_left;

    memslots_read_lock(reader);
    int err = memslots_gpa_to_hva(reader, 0, GUEST_CODE_GPA, MEMSLOTS_WRITE, &hva, &len_left);
    if (err)
        die("no memory for the guest's code", err);
    memcpy((void *)(uintptr_t)hva, guest_code, (size_t)(guest_code_end - guest_code));
    memslots_read_unlock(reader);
#else
    (void)reader; // only the simulated VM runs here, and that one knows the guest by heart
#endif
}

//
// Hot-plug, while the guest runs and the I/O threads read
//

static void change_a_socket(struct vmm *vmm)
{
    uint64_t i = next_random(&random_state) % NR_SOCKETS;
    int err = 0;

    if (vmm->socket[i] >= 0) {
        err = unplug(vmm, (uint16_t)vmm->socket[i]);
        vmm->socket[i] = -1;
    } else {
        uint64_t gpa = SOCKET_GPA + i * SOCKET_PAGES * PAGE_SIZE;
        vmm->socket[i] = plug(vmm, gpa, SOCKET_PAGES, RAM_FLAGS);
        err = vmm->socket[i] < 0 ? vmm->socket[i] : 0;
    }
    if (err)
        complain(vmm, "socket %" PRIu64 ": %s", i, strerror(-err));
}

// The table says no before the VM or any reader has heard of it.
static void plug_where_memory_is(struct vmm *vmm)
{
    int id = plug(vmm, FIXED_GPA, 1, RAM_FLAGS);
    if (id != -EEXIST)
        complain(vmm, "memory plugged over other memory: %d", id);
    vmm->nr_refused++;
}

static void hot_plug(struct vmm *vmm, struct vcpu *vcpu)
{
    for (uint64_t n = 0; n < MIN_HOTPLUGS || atomic_load(&vcpu->nr_lists) <= MIN_LISTS; n++) {
        change_a_socket(vmm);
        if (n % 100 == 0)
            plug_where_memory_is(vmm);
        if (atomic_load(&vmm->nr_wrong))
            return; // no use in going on, and the guest may have stopped
    }
}

//
// What came of it
//

// From a bit of the log to the host page and back: all three ways must name the same slot.
static void resolve_dirty_page(struct vmm *vmm, struct memslots_reader *reader,
                               const struct memslot *slot, uint64_t page)
{
    uint64_t gfn = slot->base_gfn + page;
    uint64_t hva = slot->userspace_addr + page * PAGE_SIZE;
    uint64_t gpa = 0;

    if (memslots_find_gfn(reader, 0, gfn) != slot || memslots_find_hva(reader, 0, hva) != slot ||
        memslots_hva_to_gpa(reader, 0, hva, &gpa) || gpa != gfn << PAGE_SHIFT)
        complain(vmm, "slot %u, dirty page %" PRIu64 ": gfn and hva disagree", slot->id, page);
}

struct dirty_count {
    uint64_t in_log, written;
};

// LIST_FINALLY has an address in every slot; boot memory is the only RAM that the guest leaves alone.
static bool must_be_written(const struct memslot *slot)
{
    return slot->base_gfn > 0 && !(slot->flags & MEMSLOTS_READONLY);
}

static struct dirty_count check_dirty_log(struct vmm *vmm, struct memslots_reader *reader)
{
    struct dirty_count count = {0};
    struct memslots_iter iter;
    const struct memslot *slot;

    memslots_read_lock(reader);
    memslots_iter_all(&iter, reader, 0);
    while ((slot = memslots_iter_next(&iter))) {
        const struct memory *memory = slot->opaque;
        uint64_t written = atomic_load(&memory->written);
        uint64_t dirty = 0;
        int err = vmm->kind->dirty_pages(vmm->vm, slot->id, &dirty);

        if (must_be_written(slot) != (written != 0))
            complain(vmm, "slot %u: the guest wrote %#" PRIx64, slot->id, written);
        if (err || dirty != written)
            complain(vmm, "slot %u: the log says %#" PRIx64 ", the guest wrote %#" PRIx64 " (%s)",
                     slot->id, dirty, written, strerror(-err));
        for (uint64_t page = 0; page < slot->npages; page++) {
            if (!(dirty >> page & 1))
                continue;
            resolve_dirty_page(vmm, reader, slot, page);
            count.in_log++;
        }
        count.written += (uint64_t)__builtin_popcountll(written);
    }
    memslots_read_unlock(reader);
    return count;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#define NR_GFNS   4096
#define NR_PASSES 256

// Random pages of random slots, inside one read section, nobody writing.
static double time_lookups(struct vmm *vmm, struct memslots_reader *reader)
{
    static uint64_t gfns[NR_GFNS];
    uint64_t found = 0;

    memslots_read_lock(reader);
    for (size_t i = 0; i < NR_GFNS; i++) {
        uint16_t id = (uint16_t)(next_random(&random_state) % vmm->nr_fixed);
        const struct memslot *slot = memslots_find_id(reader, 0, id);
        if (slot)
            gfns[i] = slot->base_gfn + next_random(&random_state) % slot->npages;
    }
    double start = seconds_now();
    for (int pass = 0; pass < NR_PASSES; pass++)
        for (size_t i = 0; i < NR_GFNS; i++)
            found += memslots_find_gfn(reader, 0, gfns[i]) != NULL;
    double seconds = seconds_now() - start;
    memslots_read_unlock(reader);

    if (found != (uint64_t)NR_GFNS * NR_PASSES)
        complain(vmm, "lookups that missed: %" PRIu64, (uint64_t)NR_GFNS * NR_PASSES - found);
    return seconds * 1e9 / ((double)NR_GFNS * NR_PASSES);
}

static void report(struct vmm *vmm, struct vcpu *vcpu, const struct io_thread *io)
{
    struct memslots_reader *reader = vcpu->reader;
    uint64_t nr_lookups = 0, nr_walks = 0;

    for (int i = 0; i < NR_IO_THREADS; i++) {
        nr_lookups += io[i].nr_lookups;
        nr_walks += io[i].nr_walks;
    }
    struct dirty_count pages = check_dirty_log(vmm, reader);
    double ns = time_lookups(vmm, reader);

    printf("minivmm on a %s, libmemslots %s\n", vmm->kind->name, memslots_version());
    printf("  slots      %" PRIu32 " with %" PRIu64 " pages, generation %" PRIu64 "\n",
           memslots_count(reader, 0), memslots_npages(reader, 0), memslots_generation(reader, 0));
    printf("  guest      %" PRIu64 " writes: %" PRIu64 " to RAM, %" PRIu64 " to ROM, %" PRIu64
           " to holes; each checked against the table\n",
           vcpu->in_ram + vcpu->in_rom + vcpu->in_holes, vcpu->in_ram, vcpu->in_rom,
           vcpu->in_holes);
    printf("  hot-plug   %" PRIu64 " plugged, %" PRIu64 " unplugged, %" PRIu64
           " refused while the guest ran; %" PRIu64 " released so far\n",
           vmm->nr_plugged - vmm->nr_fixed, vmm->nr_unplugged, vmm->nr_refused,
           atomic_load(&vmm->nr_released));
    printf("  readers    %d threads, %" PRIu64 " lookups and %" PRIu64
           " walks meanwhile, all checked\n",
           NR_IO_THREADS, nr_lookups, nr_walks);
    printf("  lookup     %.1f ns (random page, one read section, no writer)\n", ns);
    printf("  dirty log  %" PRIu64 " pages in it; the guest wrote %" PRIu64
           ", in every slot of RAM\n",
           pages.in_log, pages.written);
}

//
// The story
//

static struct memslots_reader *new_reader(struct vmm *vmm)
{
    struct memslots_reader *reader;
    int err = memslots_reader_new(vmm->table, &reader);
    if (err)
        die("memslots_reader_new", err);
    return reader;
}

static pthread_t start_thread(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    int err = pthread_create(&thread, NULL, run, arg);
    if (err)
        die("pthread_create", -err);
    return thread;
}

static void run_machine(struct vmm *vmm, struct vcpu *vcpu, struct io_thread *io)
{
    pthread_t vcpu_id, io_ids[NR_IO_THREADS];

    atomic_store(&vmm->plugging, true);
    atomic_store(&vmm->reading, true);
    for (int i = 0; i < NR_IO_THREADS; i++) {
        io[i] =
            (struct io_thread){.vmm = vmm, .reader = new_reader(vmm), .random = 1 + (uint64_t)i};
        io_ids[i] = start_thread(io_thread, &io[i]);
    }
    vcpu_id = start_thread(vcpu_thread, vcpu);

    struct memslots_reader *reader = new_reader(vmm); // this thread's
    hot_plug(vmm, vcpu);
    write_list(reader, LIST_FINALLY);
    atomic_store(&vmm->plugging, false);
    pthread_join(vcpu_id, NULL);
    atomic_store(&vmm->reading, false);
    for (int i = 0; i < NR_IO_THREADS; i++) {
        pthread_join(io_ids[i], NULL);
        memslots_reader_free(io[i].reader);
    }
    memslots_reader_free(reader);
}

// Every slot that went was released once and by now; the table's end releases the rest, and then all
// memory has been unmapped.
static void shut_down(struct vmm *vmm, struct vcpu *vcpu)
{
    memslots_reader_free(vcpu->reader);
    memslots_synchronize(vmm->table);
    if (atomic_load(&vmm->nr_released) != vmm->nr_unplugged)
        complain(vmm, "%" PRIu64 " slots unplugged, %" PRIu64 " released", vmm->nr_unplugged,
                 atomic_load(&vmm->nr_released));
    vmm->kind->close(vmm->vm);
    memslots_free(vmm->table);
    if (atomic_load(&vmm->nr_released) != vmm->nr_plugged)
        complain(vmm, "%" PRIu64 " slots plugged, %" PRIu64 " released in the end", vmm->nr_plugged,
                 atomic_load(&vmm->nr_released));
    if (atomic_load(&vmm->mapped_bytes) != 0)
        complain(vmm, "%" PRIu64 " bytes of guest memory are still mapped in the end",
                 atomic_load(&vmm->mapped_bytes));
}

static _Noreturn void usage(const char *name)
{
    fprintf(stderr, "usage: %s [--simulate] [--slots %d..%d]\n", name, MIN_SLOTS, MAX_SLOTS);
    exit(2);
}

static struct options parse_options(int argc, char **argv)
{
    struct options options = {.nr_slots = 600};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--simulate") == 0) {
            options.simulate = true;
        } else if (strcmp(argv[i], "--slots") == 0 && i + 1 < argc) {
            options.nr_slots = (uint32_t)strtoul(argv[++i], NULL, 0);
        } else {
            usage(argv[0]);
        }
    }
    if (options.nr_slots < MIN_SLOTS || options.nr_slots > MAX_SLOTS)
        usage(argv[0]);
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse_options(argc, argv);
    struct vmm vmm = {0};
    struct vcpu vcpu = {.vmm = &vmm, .refused_gpa = NO_GPA};
    struct io_thread io[NR_IO_THREADS];

    open_vm(&vmm, options.simulate);
    open_table(&vmm);
    lay_out_guest(&vmm, options.nr_slots);
    vcpu.reader = new_reader(&vmm);
    load_guest(vcpu.reader);
    write_list(vcpu.reader, LIST_ALWAYS);

    run_machine(&vmm, &vcpu, io);
    report(&vmm, &vcpu, io);
    shut_down(&vmm, &vcpu);

    uint64_t nr_wrong = atomic_load(&vmm.nr_wrong);
    if (nr_wrong)
        printf("FAILED: %" PRIu64 " things were wrong\n", nr_wrong);
    else
        printf("ok: the table, the VM and the guest agree\n");
    return nr_wrong ? 1 : 0;
}

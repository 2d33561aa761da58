/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libmemslots: the memslot table of a virtual machine monitor.
 *
 * Generated from src/capi/ by `make header`; do not edit.
 *
 * Errors: functions that can fail return 0 (or a number) or a negative errno. None sets errno,
 * prints or exits. A NULL handle is -EINVAL, or NULL or 0 where there is no error value.
 *
 * Units: gfn = guest frame number; gpa, hva and sizes = bytes; npages = pages. Slots that are found
 * are read-only and never change in place: an update publishes another one.
 *
 * Structs that begin with their size can grow. One that the caller gives: a size below that of the
 * first version is -EINVAL; bytes beyond what the library knows must be zero, else -E2BIG; fields
 * that are missing have their defaults. One that the caller is given: as much as there is room for,
 * and `size` says how much that is.
 *
 * Threads: a struct memslots may be used by any thread at any time, between memslots_new and
 * memslots_free. A struct memslots_reader is used by one thread at a time. A struct memslots_txn is
 * used by the thread that began it; on any other, and once it has ended, it is -EINVAL (a handle's
 * address comes again after 1,024 further transactions of its table). A thread must end its sections
 * and its transaction before it ends. The section of a thread that has died goes on until another
 * thread frees the reader; its transaction holds the update lock until memslots_free, which aborts
 * it.
 *
 * Blocking: readers never wait. Updates are serialised. An update waits for readers where it has
 * something to flush, with `sync`, and past `max_garbage`; from inside a section of its own thread
 * it is then refused with -EDEADLK. A thread in a section that finds the update lock taken waits for
 * it, and gets -EDEADLK where the holder waits for readers. Inside an update of this thread (a hook,
 * an open transaction) every other call that takes the update lock is -EDEADLK: updates, attaching,
 * memslots_dump and the trace among them.
 *
 * Signal handlers: one may look things up with a reader of its own. It may not use a reader of the
 * thread that it interrupts, nor begin an update.
 *
 * Hooks must return. A C++ exception out of one ends the process with a message, as does
 * pthread_exit. After a longjmp out of one the update lock stays held: the thread's next update is
 * -EDEADLK, and others wait for ever.
 *
 * pthread_cancel: a request that comes while a hook runs, or while the library waits for readers or
 * writes a dump or a trace, waits until that is over. Asynchronous cancellation is not allowed inside
 * the library.
 *
 * fork: the child may only exec, or free what it has inherited. In the child memslots_free calls no
 * hook and no VM, and nothing is written to a trace: what they know of is the parent's.
 *
 * dlclose: the library stays loaded.
 *
 * System calls, for seccomp filters, beside those that the caller's hooks make:
 *
 *   read_lock, read_unlock, lookups,     none; where there is no membarrier (memslots_stats.kept_pins
 *   iterators, hva caches, _count and    is 0) a section may free memory: as malloc
 *   the like, _reader_get_stats
 *   memslots_get_stats                   futex
 *   memslots_version, _config_init       none
 *   memslots_new                         getpid, membarrier; as malloc
 *   memslots_plan                        as malloc
 *   reader_new, reader_free              getpid, futex; as malloc
 *   updates, transactions, reclaim,      futex, membarrier; as malloc; sched_yield and clock_nanosleep
 *   synchronize                          where they wait for readers; ioctl on an attached VM; with a
 *                                        trace getpid, and what memslots_dump calls
 *   memslots_dump, _trace_start,         write, rt_sigprocmask, rt_sigpending, rt_sigtimedwait;
 *   _trace_stop                          futex; _trace_start fcntl
 *   memslots_attach_kvm                  fcntl, readlink (on arm64 readlinkat), ioctl; futex;
 *                                        as malloc
 *   memslots_free                        getpid, futex, membarrier; as malloc; sched_yield and
 *                                        clock_nanosleep where it waits for readers; where it aborts
 *                                        a transaction and there is a trace, what memslots_dump calls
 *   a hook that does not return          write to stderr, and what abort() calls
 *
 * "As malloc" is, with the GNU C library, brk, mmap, mremap, munmap, mprotect, madvise, getrandom,
 * futex; and on other threads than the first also openat, read, close and sched_getaffinity, with
 * which it looks at /sys/devices/system/cpu/online and /proc/sys/vm/overcommit_memory.
 *
 * The first memslots_new of a process registers for membarrier. It is never called where that is
 * refused, and for no table with config.no_membarrier. A filter that comes later must let it pass:
 * otherwise memory that was replaced is not freed while a reader is idle, and what waits for readers
 * may wait for ever.
 *
 * A guest_memfd that a slot names must stay open for as long as a VM may be attached: the number is
 * given to the kernel then.
 *
 * The inline functions below know how a reader is laid out: a program that uses them runs with
 * libraries of the minor version that its header is of, which the soname sees to.
 */

#ifndef MEMSLOTS_H
#define MEMSLOTS_H

#include <stddef.h>
#include <stdint.h>

/* Calls go through the table of addresses without a jump on the way: a hit is a few instructions. */
#if defined(__has_attribute)
#if __has_attribute(noplt)
#define MEMSLOTS_CALL __attribute__((noplt))
#endif
#endif
#ifndef MEMSLOTS_CALL
#define MEMSLOTS_CALL
#endif

/* Begins the initializer of a struct memslots_ops, and sets its size. */
#if defined(__cplusplus) && __cplusplus < 202002L
#define MEMSLOTS_OPS_INIT sizeof(struct memslots_ops)
#else
#define MEMSLOTS_OPS_INIT .size = sizeof(struct memslots_ops)
#endif

/*
 * The version of this header. That of the library is memslots_version().
 */
#define MEMSLOTS_VERSION_MAJOR 0
#define MEMSLOTS_VERSION_MINOR 2
#define MEMSLOTS_VERSION_PATCH 0

/**
 * The id of a slot that is to be created, where any will do: it gets the lowest free one. Never the id of a slot.
 */
#define MEMSLOTS_ID_ANY 65535

/**
 * Flags of a slot, one bit each: the kernel's KVM_MEM_ flags of the same names, and MEMSLOTS_INVALID.
 */
enum memslots_slot_flag {
    /**
     * The pages that the guest writes are logged.
     */
    MEMSLOTS_LOG_DIRTY_PAGES = 1,
    /**
     * The guest may not write.
     */
    MEMSLOTS_READONLY = 2,
    /**
     * The slot has private memory behind a guest_memfd.
     */
    MEMSLOTS_GUEST_MEMFD = 4,
    /**
     * The slot is being deleted or moved: lookups find it, but it is not to be used. Never in a request.
     */
    MEMSLOTS_INVALID = 65536,
};

/**
 * What an address is looked up for.
 */
enum memslots_access {
    /**
     * The guest reads.
     */
    MEMSLOTS_READ = 1,
    /**
     * The guest writes.
     */
    MEMSLOTS_WRITE = 2,
};

/**
 * What an update does to a slot. The first four are the kernel's `enum kvm_mr_change`.
 */
enum memslots_change_kind {
    /**
     * A new slot. `old_slot` is NULL, but where the slot was cut out of another that was there before and this is no
     * SPLIT: then it is that one, as it was.
     */
    MEMSLOTS_CREATE = 0,
    /**
     * The slot ends: `new_slot` is NULL.
     */
    MEMSLOTS_DELETE = 1,
    /**
     * Other frames; flags may have changed too.
     */
    MEMSLOTS_MOVE = 2,
    /**
     * Other flags and nothing else.
     */
    MEMSLOTS_FLAGS_ONLY = 3,
    /**
     * Another size; frames and flags may have changed too.
     */
    MEMSLOTS_RESIZE = 4,
    /**
     * `new_slot` was cut out of `old_slot`, which lives on and has a RESIZE of its own, and lies where it lay in that.
     */
    MEMSLOTS_SPLIT = 5,
    /**
     * `old_slot` ended; all its frames are in `new_slot`, which has the same flags and a RESIZE of its own.
     */
    MEMSLOTS_MERGE = 6,
};

/**
 * Why `pause` is called, one bit each.
 */
enum memslots_pause_reason {
    /**
     * Frames that have memory before and after the update lose it in between: KVM cannot resize a slot.
     */
    MEMSLOTS_PAUSE_GAP = 1,
    /**
     * A dirty log ends: what a vCPU writes after its bits were fetched would be in no log.
     */
    MEMSLOTS_PAUSE_LOG = 2,
};

/**
 * One reading thread: a vCPU, an I/O thread. Used by one thread at a time.
 */
struct memslots_reader;

/**
 * One VM's memslot table: all of its address spaces.
 */
struct memslots;

/**
 * A set of changes being prepared, invisible until committed.
 */
struct memslots_txn;

/**
 * A published slot. It never changes in place: an update publishes another one.
 *
 * Layout: `struct memslot` of the C header.
 */
struct memslot {
    /**
     * First guest frame.
     */
    uint64_t base_gfn;
    /**
     * Size in pages; never 0.
     */
    uint64_t npages;
    /**
     * Host virtual address of the first byte.
     */
    uint64_t userspace_addr;
    /**
     * Offset in `guest_memfd`, in bytes.
     */
    uint64_t guest_memfd_offset;
    /**
     * The caller's, given when the slot was created.
     */
    void *opaque;
    /**
     * The guest_memfd file, or -1 where there is none.
     */
    int32_t guest_memfd;
    /**
     * `LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD | INVALID`.
     */
    uint32_t flags;
    /**
     * The slot's number in its address space.
     */
    uint16_t id;
    /**
     * The address space.
     */
    uint16_t as_id;
};

/**
 * What an update does to one slot, as the hooks see it. Valid during the call, as are the slots; the slots that become
 * or were current live on as long as those that a reader finds.
 */
struct memslots_change {
    /**
     * An enum memslots_change_kind.
     */
    uint32_t kind;
    /**
     * The slot before. NULL for CREATE, but where the new slot was cut out of another: that one, as it was before the
     * update.
     */
    const struct memslot *old_slot;
    /**
     * The slot after; for MERGE the one that has its frames. NULL for DELETE.
     */
    const struct memslot *new_slot;
};

/**
 * What a table tells its owner of an update. Begin an initializer with MEMSLOTS_OPS_INIT, which sets the size:
 * `{MEMSLOTS_OPS_INIT, .release = my_release}`. All hooks are optional.
 *
 * They are called on the updating thread, under the update lock. An update calls `flush` for each slot, then `prepare`
 * for each change, publishes, and calls `commit` for each change; where a `prepare` refuses, `cancel` for those before
 * it, last first. `release` and then `unmap` are called when no reader can see the slot any more: at the end of this
 * update or of a later one, in memslots_reclaim, memslots_synchronize or memslots_free, and never on a thread that
 * only reads. A hook may look things up, and must end the sections that it opens; any other call on the same table is
 * -EDEADLK (or does nothing, where there is no error value). A hook must return: longjmp, a C++ exception or
 * pthread_exit out of one is not allowed (see the head of this file). `ctx` is the configuration's.
 */
struct memslots_ops {
    /**
     * sizeof(struct memslots_ops). Smaller than version 0.2's, 0 above all, is -EINVAL at memslots_new: a program for
     * version 0.1 that was only compiled anew must not lose its hooks. Larger than the library's, and not zero there:
     * -E2BIG.
     */
    size_t size;
    /**
     * Stop the vCPUs, for `why`, which is made of enum memslots_pause_reason. Of updates of an attached table; this
     * version attaches without it, and never calls it. Where it is set and `resume` is not: -EINVAL at memslots_new.
     */
    int (*pause)(void *ctx, uint32_t why);
    /**
     * Let the vCPUs run again. Likewise never called by this version.
     */
    void (*resume)(void *ctx);
    /**
     * The last bits of a slot's dirty log, one a page. Likewise never called by this version.
     */
    void (*dirty)(void *ctx, const struct memslot *slot, const uint64_t *bitmap);
    /**
     * For every slot of which a reader may have derived something that stops being true: DELETE, MOVE, and whatever
     * leaves a frame without memory, with other memory, or with less access (READONLY, guest_memfd) than before. The
     * slot is INVALID to readers, and none is left that saw it valid. Where this hook is set, such an update waits for
     * readers. The attached VM still has the slot: do not take pages away here.
     */
    void (*flush)(void *ctx, const struct memslot *invalid);
    /**
     * May refuse, with a negative errno: the update is rolled back and returns it.
     */
    int (*prepare)(void *ctx, const struct memslots_change *change);
    /**
     * A later change was refused: undo your `prepare`. In reverse order.
     */
    void (*cancel)(void *ctx, const struct memslots_change *change);
    /**
     * The new state is published, and the attached VM has it. Readers may still use what was before, unless there is a
     * `flush` hook or `sync`: take pages away in `unmap` or `release`.
     */
    void (*commit)(void *ctx, const struct memslots_change *change);
    /**
     * The end of a slot's life, when no reader can see it any more: once a slot, after DELETE and MERGE. The place to
     * free `opaque`; its memory may be another slot's by now.
     */
    void (*release)(void *ctx, const struct memslot *gone);
    /**
     * Host memory that no slot maps any more, in any address space, and that no reader can still use: the place to
     * munmap. Exact pieces of what one slot had: after a MERGE nothing, after a RESIZE that shrinks the tail, after
     * SPLIT and DELETE the deleted part; aliased memory when the last slot that mapped it is gone and no reader can
     * still use it through that one. What has been mapped again by then is left out. All releases that are due come
     * first. With this hook set, the table gives up every slot's memory, at memslots_free what is left; who unmaps
     * memory on his own leaves it NULL.
     */
    void (*unmap)(void *ctx, uint64_t hva, uint64_t size);
};

/**
 * How a table is made. memslots_config_init() fills in the defaults: set what is to be different afterwards.
 */
struct memslots_config {
    /**
     * sizeof(struct memslots_config), so that it can grow. The fields up to `ctx` must be there; those after it that
     * are not have their defaults. Bytes beyond what the library knows must be zero.
     */
    size_t size;
    /**
     * 1 to 64; default 1.
     */
    uint32_t nr_address_spaces;
    /**
     * In each address space: 1 to 65535; default 32764, as KVM's on x86. Ids are below this.
     */
    uint32_t max_slots;
    /**
     * log2 of the host's page size in bytes: 12 to 30; the default is this machine's.
     */
    uint32_t page_shift;
    /**
     * What the real KVM would take; other flags are -EINVAL. Default: all three.
     */
    uint32_t supported_flags;
    /**
     * 0: an update returns once it is published. 1: as KVM's ioctl does, once no reader is left that could still use
     * what was before.
     */
    uint32_t sync;
    /**
     * NULL: no hooks. Copied.
     */
    const struct memslots_ops *ops;
    /**
     * Given to every hook.
     */
    void *ctx;
    /**
     * Where usable host addresses end, in bytes. Default on x86-64: 2^47 - 4096, the kernel's with four-level page
     * tables; elsewhere none.
     */
    uint64_t hva_limit;
    /**
     * Bits of a guest physical address: more than page_shift, up to 64; default 52. KVM refuses slots beyond the
     * host's.
     */
    uint32_t gpa_bits;
    /**
     * Bytes of garbage past which an update waits for readers, as with sync; 0, the default: none.
     */
    size_t max_garbage;
    /**
     * 1: never call membarrier(); readers take a memory fence in each section instead. 0, the default: memslots_new
     * registers for membarrier(), and updates call it unless the kernel refused that; memslots_stats.kept_pins says
     * which it is.
     */
    uint32_t no_membarrier;
};

/**
 * A request: byte for byte `struct kvm_userspace_memory_region2` of linux/kvm.h.
 */
struct memslots_region {
    /**
     * Slot id in the low 16 bits, address space in the high 16.
     */
    uint32_t slot;
    /**
     * `LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD`.
     */
    uint32_t flags;
    /**
     * First byte in the guest.
     */
    uint64_t guest_phys_addr;
    /**
     * Bytes; 0 deletes.
     */
    uint64_t memory_size;
    /**
     * First byte in this process.
     */
    uint64_t userspace_addr;
    /**
     * Offset in `guest_memfd`, in bytes.
     */
    uint64_t guest_memfd_offset;
    /**
     * The guest_memfd file; looked at only with `GUEST_MEMFD`.
     */
    uint32_t guest_memfd;
    /**
     * Not looked at.
     */
    uint32_t pad1;
    /**
     * Not looked at.
     */
    uint64_t pad2[14];
};

/**
 * One call of KVM_SET_USER_MEMORY_REGION2.
 */
struct memslots_plan_step {
    /**
     * What to call it with; a size of 0 deletes. For vhost-user and VFIO: what to add or to remove (where it deletes,
     * gpa and hva are still the slot's).
     */
    struct memslots_region region;
    /**
     * MEMSLOTS_CREATE, _DELETE, _MOVE or _FLAGS_ONLY.
     */
    uint32_t kind;
    /**
     * 1: frames that have memory before and after the whole list lose it with this call, and get it back with a later
     * one; a running vCPU would see that.
     */
    uint32_t gap;
};

/**
 * Where a device keeps coming back to, such as a ring. Fields are private; on the caller's stack or in a device.
 */
struct memslots_hva_cache {
    uint64_t private_[5];
};

/**
 * A walk over the slots of one publication. Fields are private; on the caller's stack.
 */
struct memslots_iter {
    uint64_t private_[18];
};

/**
 * Where a table stands. Grows at the end: `size` says how much of it was written.
 */
struct memslots_stats {
    /**
     * Bytes of this struct that are valid.
     */
    size_t size;
    /**
     * Publications ever made.
     */
    uint64_t publications;
    /**
     * Slots in all address spaces.
     */
    uint64_t slots;
    /**
     * Pages of all slots.
     */
    uint64_t npages;
    /**
     * Bytes in use for indexes and records, garbage included.
     */
    uint64_t index_bytes;
    /**
     * Bytes taken from the system for them.
     */
    uint64_t pool_bytes;
    /**
     * Bytes that wait for readers before they can be used again.
     */
    uint64_t garbage_bytes;
    /**
     * The same in objects.
     */
    uint64_t garbage_objects;
    /**
     * Slots that are gone and whose release has not run (where there are hooks).
     */
    uint64_t releases_due;
    /**
     * Readers.
     */
    uint64_t readers;
    /**
     * Read-side sections that are open.
     */
    uint64_t open_sections;
    /**
     * Publications since the oldest of them began.
     */
    uint64_t oldest_section_lag;
    /**
     * Changes on the attached VM that could not be undone. Not 0: VM and table differ.
     */
    uint64_t out_of_step;
    /**
     * 1: a section takes no memory fence, since updates call membarrier() where they need one. 0: it takes one, since
     * the kernel refused membarrier() or config.no_membarrier is set.
     */
    uint64_t kept_pins;
};

/**
 * What a reader did.
 */
struct memslots_reader_stats {
    /**
     * Bytes of this struct that are valid.
     */
    size_t size;
    /**
     * Sections opened, the outermost of nested ones.
     */
    uint64_t sections;
    /**
     * Lookups by gfn that the last-used slot did not answer.
     */
    uint64_t misses;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Fills in the defaults, and the size. Does not block; any thread. NULL: nothing happens.
 *
 * In C this is a macro that passes the size of the caller's struct along (memslots_config_init_sized), so that a
 * program built with an older header is not written beyond its struct. The function fills in the struct of version
 * 0.2.0.
 */
MEMSLOTS_CALL
void memslots_config_init(struct memslots_config *config);

/**
 * Fills in the defaults of as much of the struct as there is in `size` bytes, zero for what is beyond the library's,
 * and the size. Otherwise as memslots_config_init. Where there is no room for the fields up to `ctx`, nothing happens.
 */
MEMSLOTS_CALL
void memslots_config_init_sized(struct memslots_config *config,
                                size_t size);

/**
 * Makes an empty table. `config` NULL: the defaults. Does not block; any thread. On success `*out` is the table, until
 * memslots_free.
 *
 * Errors: -EINVAL (a NULL `out`, a number outside of its range, a size that has no room for the fields up to `ctx`,
 * `ops` smaller than those of version 0.2, a `pause` without `resume`), -E2BIG (config or ops: a size above 4096, or
 * bytes that this library does not know and that are not zero), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_new(const struct memslots_config *config,
                 struct memslots **out);

/**
 * Ends a table: aborts a transaction that is open, ends every slot, runs all releases and unmaps before it returns,
 * and frees everything. Whether there is memory makes no difference, nor does an earlier panic. Other hooks are not
 * called. An attached VM keeps the slots that it has: it must not run any more, since their memory is given up. NULL,
 * and from inside a hook of the table: nothing happens. No other thread may be inside an update, or begin one. In a
 * forked child memory is freed and no hook is called.
 *
 * Readers should be freed before. Those that are left find nothing any more; where one of another thread is in a
 * section, this waits for it to end. From inside a section of the calling thread everything, releases included, is
 * put off until the last reader is freed, and readers find the slots until then.
 */
MEMSLOTS_CALL
void memslots_free(struct memslots *table);

/**
 * Begins to repeat every committed change on a real VM, through KVM_SET_USER_MEMORY_REGION2 (or the first form where
 * the kernel lacks it), in an order that the kernel accepts. Where the kernel refuses one, what was made is undone,
 * the table stays as it was, and the kernel's errno comes out. Slots that exist are registered first. `vm_fd` stays
 * the caller's and must stay open, as must the guest_memfd of every slot; -1 detaches, and the VM keeps the slots that
 * it has.
 *
 * An undo that the kernel refuses too leaves the VM out of step: memslots_get_stats counts it, memslots_dump names it.
 *
 * Waits for other threads' updates; any thread. Errors: -EINVAL (NULL), -EBADF, -ENOTTY (no VM), the kernel's for a
 * slot that exists (then none of them is left there), -ENOMEM, -EDEADLK (inside an update of this thread),
 * -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_attach_kvm(struct memslots *table,
                        int vm_fd);

/**
 * Begins to write every change to `fd`, one readable line each, preceded by lines that make the slots that exist. The
 * lines are what `memslots-replay` plays. `fd` stays the caller's; when it cannot be written to, the trace ends.
 *
 * Waits for other threads' updates, and updates then wait for the write; any thread. Errors: -EINVAL (NULL), -EBADF,
 * -EDEADLK (inside an update of this thread), -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_trace_start(struct memslots *table,
                         int fd);

/**
 * Ends the trace. Where there is none, nothing happens. Waits for other threads' updates; any thread.
 *
 * Errors: -EINVAL (NULL), -EDEADLK (inside an update of this thread), -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_trace_stop(struct memslots *table);

/**
 * The version of the library that is linked, as in "0.2.0". Never NULL; valid for ever. Does not block; any thread.
 */
MEMSLOTS_CALL
const char *memslots_version(void);

/**
 * The whole of KVM_SET_USER_MEMORY_REGION2: creates, deletes (size 0), moves or changes flags, as the region says of
 * the slot with that id; checks what the kernel checks, in the kernel's order, with the kernel's errno (Linux,
 * virt/kvm/kvm_main.c). What changes nothing publishes nothing. `opaque` counts where it creates.
 *
 * Sizes and addresses are bytes. Any thread; waits for other threads' updates, and for readers only where there is a
 * flush hook and a slot goes or moves, or with `sync`.
 *
 * Errors: -EINVAL (NULL; alignment, size, flags, ids, ranges; a slot that is to be deleted but not there; another
 * size, hva or READONLY than the slot has; the last frame beyond gpa_bits), -EEXIST (overlaps another slot), -EBADF (a
 * guest_memfd below 0), -ENOMEM, -EDEADLK (inside an update of this thread, or it would wait for this thread's own
 * section), -ENOTRECOVERABLE (an earlier update panicked), and what a `prepare` hook or the attached VM refuses with.
 * On any of them nothing has changed, but for two steps of the generation where the INVALID phase had begun.
 */
MEMSLOTS_CALL
int memslots_set_region(struct memslots *table,
                        const struct memslots_region *region,
                        void *opaque);

/**
 * Creates a slot, and only that. Gives its id, which is 0 or more; for MEMSLOTS_ID_ANY in the low 16 bits of
 * `region->slot` it is the lowest that is free.
 *
 * Threads and blocking as memslots_set_region. Errors: as there, and -EEXIST (the id is taken), -ENOSPC (no id is
 * free).
 */
MEMSLOTS_CALL
int memslots_create(struct memslots *table,
                    const struct memslots_region *region,
                    void *opaque);

/**
 * Deletes a slot.
 *
 * Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EINVAL (NULL, no such address space),
 * -ENOMEM, -EDEADLK, -ENOTRECOVERABLE, a hook's or the VM's.
 */
MEMSLOTS_CALL
int memslots_delete(struct memslots *table,
                    uint16_t as_id,
                    uint16_t id);

/**
 * Moves a slot to another guest physical address, in bytes. It may overlap its own old place.
 *
 * Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EEXIST (overlaps another slot),
 * -EINVAL (NULL, no such address space, alignment, range, a slot with a guest_memfd), -ENOMEM, -EDEADLK,
 * -ENOTRECOVERABLE, a hook's or the VM's.
 */
MEMSLOTS_CALL
int memslots_move(struct memslots *table,
                  uint16_t as_id,
                  uint16_t id,
                  uint64_t new_gpa);

/**
 * Changes a slot's flags, of which only MEMSLOTS_LOG_DIRTY_PAGES can change.
 *
 * Threads and blocking as memslots_set_region. Errors: -ENOENT (there is none), -EINVAL (NULL, no such address space,
 * other flags, a slot with a guest_memfd), -ENOMEM, -EDEADLK, -ENOTRECOVERABLE, a hook's or the VM's.
 */
MEMSLOTS_CALL
int memslots_set_flags(struct memslots *table,
                       uint16_t as_id,
                       uint16_t id,
                       uint32_t flags);

/**
 * Makes `n` changes or none, in one publication, each checked against what those before it leave. The cost follows n,
 * not the size of the table. `opaques` is NULL or has n entries. On failure `*failed_at`, where not NULL, is the index
 * of the change that was refused, by the checks, a hook or the VM; n where it was none in particular (-ENOMEM,
 * -EDEADLK).
 *
 * Threads and blocking as memslots_set_region; errors as there. n = 0: 0.
 */
MEMSLOTS_CALL
int memslots_apply(struct memslots *table,
                   const struct memslots_region *regions,
                   void *const *opaques,
                   size_t n,
                   size_t *failed_at);

/**
 * Makes `n` regions, in any order, all that an address space has. Works out the difference: a slot that stays the
 * same, moves or changes flags keeps its opaque; another size or hva under the same id is a delete and a create. Slots
 * may exchange places. All of it is one publication. `failed_at` as in memslots_apply: the first region that is
 * refused, has the id of an earlier one, or overlaps an earlier one.
 *
 * Threads and blocking as memslots_set_region. Errors: as there, and -EEXIST (an id twice), -EINVAL (size 0, another
 * address space).
 */
MEMSLOTS_CALL
int memslots_replace_all(struct memslots *table,
                         uint16_t as_id,
                         const struct memslots_region *regions,
                         void *const *opaques,
                         size_t n,
                         size_t *failed_at);

/**
 * Begins a transaction. It holds the update lock until it is committed or aborted, and belongs to the calling thread:
 * on another one, and after its end, every call on it is -EINVAL. Readers see nothing of it.
 *
 * Waits for other threads' updates; any thread. Errors: -EINVAL (NULL), -EDEADLK (this thread has one open on this
 * table, is inside a hook of it, or is in a section that another thread's update waits for), -ENOMEM,
 * -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_txn_begin(struct memslots *table,
                       struct memslots_txn **out);

/**
 * As memslots_set_region, in a transaction: checked at once against what its earlier changes leave. An error leaves
 * the transaction as it was. Several changes of one slot come to one, or to nothing; a slot created and deleted in one
 * transaction never was.
 *
 * Does not block; the thread that began the transaction. Errors: as memslots_set_region, and -EINVAL (not open, or
 * another thread's).
 */
MEMSLOTS_CALL
int memslots_txn_set_region(struct memslots_txn *txn,
                            const struct memslots_region *region,
                            void *opaque);

/**
 * As memslots_create, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
 * memslots_create.
 */
MEMSLOTS_CALL
int memslots_txn_create(struct memslots_txn *txn,
                        const struct memslots_region *region,
                        void *opaque);

/**
 * As memslots_delete, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
 * memslots_delete.
 */
MEMSLOTS_CALL
int memslots_txn_delete(struct memslots_txn *txn,
                        uint16_t as_id,
                        uint16_t id);

/**
 * As memslots_move, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
 * memslots_move.
 */
MEMSLOTS_CALL
int memslots_txn_move(struct memslots_txn *txn,
                      uint16_t as_id,
                      uint16_t id,
                      uint64_t new_gpa);

/**
 * As memslots_set_flags, in a transaction. Blocking, threads and errors as memslots_txn_set_region, and those of
 * memslots_set_flags.
 */
MEMSLOTS_CALL
int memslots_txn_set_flags(struct memslots_txn *txn,
                           uint16_t as_id,
                           uint16_t id,
                           uint32_t flags);

/**
 * Cuts a slot in two at `at_gpa` (bytes). The lower part keeps id and opaque; the upper gets `new_id`, or the lowest
 * free one for MEMSLOTS_ID_ANY, and `opaque`. Gives the upper part's id. Both back the frames that the one did:
 * readers see no gap. Hooks are told of a RESIZE of the slot and a SPLIT from it.
 *
 * Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open,
 * `at_gpa` no page boundary strictly inside the slot, a slot with a guest_memfd, an id beyond the last), -EEXIST (the
 * id is taken), -ENOSPC (none is free), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_txn_split(struct memslots_txn *txn,
                       uint16_t as_id,
                       uint16_t id,
                       uint64_t at_gpa,
                       uint16_t new_id,
                       void *opaque);

/**
 * Makes one slot of two: `upper_id` follows `lower_id` in guest and in host memory, with the same flags. The lower
 * keeps id and opaque; the upper one's life ends. Readers see no gap. Hooks are told of a RESIZE of the lower and a
 * MERGE of the upper.
 *
 * Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EINVAL (NULL, not open,
 * they do not follow each other, other flags, a guest_memfd, more than 2^31 - 1 pages together), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_txn_merge(struct memslots_txn *txn,
                       uint16_t as_id,
                       uint16_t lower_id,
                       uint16_t upper_id);

/**
 * Gives a slot another size, in bytes. It keeps first frame, hva, flags, id and opaque; readers see the old size or
 * the new one. Hooks are told of a RESIZE (and `flush` is called first where it gives up frames).
 *
 * Blocking and threads as memslots_txn_set_region. Errors: -ENOENT (there is no such slot), -EEXIST (overlaps another
 * slot), -EINVAL (NULL, not open, size 0, alignment, range, a slot with a guest_memfd), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_txn_resize(struct memslots_txn *txn,
                        uint16_t as_id,
                        uint16_t id,
                        uint64_t new_size);

/**
 * The slot that holds a frame as the transaction's changes leave it; NULL where there is none. Valid until the next
 * call on the transaction. Does not block; the thread that began the transaction.
 */
MEMSLOTS_CALL
const struct memslot *memslots_txn_find_gfn(const struct memslots_txn *txn,
                                            uint16_t as_id,
                                            uint64_t gfn);

/**
 * The calls of KVM_SET_USER_MEMORY_REGION that would make the transaction's changes; see memslots_plan.
 *
 * Does not block; the thread that began the transaction. Errors: -EINVAL (NULL, not open), -ERANGE (there are more
 * than `capacity`: `*nr_steps` says how many, and nothing else is written), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_txn_plan(const struct memslots_txn *txn,
                      struct memslots_plan_step *out,
                      size_t capacity,
                      size_t *nr_steps);

/**
 * Publishes a transaction's changes, all at once for every reader, and ends it: the handle is gone, success or not. At
 * most two publications, whatever the number of changes: the INVALID phase, where there is a flush hook and something
 * goes or moves, then the result. A hook that refuses rolls everything back, and its errno comes out.
 *
 * Waits for readers where memslots_set_region does; the thread that began the transaction. Errors: -EINVAL (NULL, not
 * open), -EDEADLK (it would wait for this thread's own section), -ENOMEM, a hook's or the VM's. Everything is as
 * before then, but for two steps of the generation where the INVALID phase had begun.
 */
MEMSLOTS_CALL
int memslots_txn_commit(struct memslots_txn *txn);

/**
 * Throws a transaction's changes away and ends it. Does not block; the thread that began the transaction. NULL, one
 * that has ended, or another thread's: nothing happens.
 */
MEMSLOTS_CALL
void memslots_txn_abort(struct memslots_txn *txn);

/**
 * The calls that lead from one table to another, each a list of regions in any order, such that the kernel accepts
 * them one after the other. One call a slot that differs, two where its size or hva do; and one more for a cycle of
 * slots that exchange places, which needs a delete (cycles that share slots may take one more than the least).
 * `*nr_steps` is their number.
 *
 * Pure; does not block; any thread. Errors: -EINVAL (NULL; a list in which an id or a frame comes twice, or a size is
 * 0), -ERANGE (there are more than `capacity`: `*nr_steps` says how many, and nothing else is written), -ENOMEM.
 */
MEMSLOTS_CALL
int memslots_plan(const struct memslots_region *from,
                  size_t nr_from,
                  const struct memslots_region *to,
                  size_t nr_to,
                  struct memslots_plan_step *out,
                  size_t capacity,
                  size_t *nr_steps);

/**
 * Makes a reader, for one thread at a time. Waits for other threads that make or free one, no longer; any thread. On
 * success `*out` is the reader, until memslots_reader_free. It may outlive the table, and finds nothing then.
 *
 * Errors: -EINVAL (NULL), -ENOMEM, -EDEADLK (in a release hook that memslots_free runs).
 */
MEMSLOTS_CALL
int memslots_reader_new(struct memslots *table,
                        struct memslots_reader **out);

/**
 * Frees a reader, and ends its section where one is open. NULL: nothing happens. Blocking as memslots_reader_new;
 * whichever thread uses it.
 */
MEMSLOTS_CALL
void memslots_reader_free(struct memslots_reader *reader);

/**
 * Opens a read-side section: what is found in it stays valid until it ends. Sections nest, and the outermost counts.
 * Never waits, takes no lock, allocates and frees nothing, makes no system call, and costs the same however many
 * readers there are (where memslots_stats.kept_pins is 0 it takes a memory fence, and may free memory now and then).
 * The reader's thread, on which the section also ends. Keep sections short: what was retired since one began cannot be
 * freed until it ends.
 */
MEMSLOTS_CALL
void memslots_read_lock(struct memslots_reader *reader);

/**
 * Ends a section. Without an open one, nothing happens. Never waits; the reader's thread.
 */
MEMSLOTS_CALL void memslots_read_unlock(struct memslots_reader *reader);

/**
 * The slot that holds a frame, as of the newest publication; NULL where there is none, and outside of a section. A
 * slot that is being deleted or moved is found at its old place with MEMSLOTS_INVALID set.
 *
 * Never waits; the reader's thread. Valid until the section ends.
 */
MEMSLOTS_CALL
const struct memslot *memslots_find_gfn(struct memslots_reader *reader,
                                        uint16_t as_id,
                                        uint64_t gfn);

/**
 * As memslots_find_gfn; in a hole the slot below it, or the lowest slot where none is below. NULL only for an address
 * space without slots, and outside of a section.
 */
MEMSLOTS_CALL
const struct memslot *memslots_find_gfn_approx(struct memslots_reader *reader,
                                               uint16_t as_id,
                                               uint64_t gfn);

/**
 * The slot with an id; NULL where there is none, and outside of a section. Threads and validity as memslots_find_gfn.
 */
MEMSLOTS_CALL
const struct memslot *memslots_find_id(struct memslots_reader *reader,
                                       uint16_t as_id,
                                       uint16_t id);

/**
 * The slot that holds a byte of host memory: of several, the one that starts lowest, then the lowest id. NULL where
 * there is none, and outside of a section. Threads and validity as memslots_find_gfn.
 */
MEMSLOTS_CALL
const struct memslot *memslots_find_hva(struct memslots_reader *reader,
                                        uint16_t as_id,
                                        uint64_t hva);

/**
 * Where a guest physical address is in this process. `access` is MEMSLOTS_READ or MEMSLOTS_WRITE; `*len_left`, where
 * not NULL, becomes the bytes from `gpa` to the end of its slot. Nothing is written on failure. The computation forms
 * no address outside of the slot, not even on a mispredicted path.
 *
 * Never waits; the reader's thread. Valid until the section ends. Errors: -ENOENT (a hole), -EAGAIN (the slot is
 * INVALID: try again, it is going or moving), -EROFS (a write to a READONLY slot), -EPERM (outside of a section),
 * -EINVAL (NULL, another `access`, no such address space).
 */
MEMSLOTS_CALL
int memslots_gpa_to_hva(struct memslots_reader *reader,
                        uint16_t as_id,
                        uint64_t gpa,
                        uint32_t access,
                        uint64_t *hva,
                        uint64_t *len_left);

/**
 * The guest physical address of a byte of host memory, by the slot that memslots_find_hva finds.
 *
 * Never waits; the reader's thread. Errors: -ENOENT (no slot has it), -EPERM (outside of a section), -EINVAL (NULL, no
 * such address space).
 */
MEMSLOTS_CALL
int memslots_hva_to_gpa(struct memslots_reader *reader,
                        uint16_t as_id,
                        uint64_t hva,
                        uint64_t *gpa);

/**
 * The generation of an address space, as of the newest publication: i + k * n for space i of n; another content,
 * another value (Linux, virt/kvm/kvm_main.c). 0 for NULL and for a space that is not there. Never waits; the reader's
 * thread, in a section or not.
 */
MEMSLOTS_CALL
uint64_t memslots_generation(const struct memslots_reader *reader,
                             uint16_t as_id);

/**
 * The number of slots in an address space. Otherwise as memslots_generation.
 */
MEMSLOTS_CALL uint32_t memslots_count(const struct memslots_reader *reader, uint16_t as_id);

/**
 * The number of pages of all slots in an address space. Otherwise as memslots_generation.
 */
MEMSLOTS_CALL uint64_t memslots_npages(const struct memslots_reader *reader, uint16_t as_id);

/**
 * The slots of an address space as regions, ascending by gfn: the first `capacity` of them. Returns how many there
 * are; 0 for NULL, and for a space that is not there. Never waits; the reader's thread, in a section or not. What
 * memslots_plan takes.
 */
MEMSLOTS_CALL
size_t memslots_get_regions(struct memslots_reader *reader,
                            uint16_t as_id,
                            struct memslots_region *out,
                            size_t capacity);

/**
 * Looks a range of guest memory up, `len` bytes from `gpa`, for a device that will come back to it. `access` is
 * MEMSLOTS_READ or MEMSLOTS_WRITE. The cache is for readers of this table only.
 *
 * Never waits; the reader's thread. Errors: -ERANGE (not within one slot), -ENOENT (a hole), -EAGAIN (INVALID),
 * -EROFS, -EPERM (outside of a section), -EINVAL (NULL, another `access`, no such address space, an empty range or one
 * that wraps). On an error the cache is as it was.
 */
MEMSLOTS_CALL
int memslots_hva_cache_init(struct memslots_hva_cache *cache,
                            struct memslots_reader *reader,
                            uint16_t as_id,
                            uint64_t gpa,
                            uint64_t len,
                            uint32_t access);

/**
 * Where the cached range is in this process: one compare while the table has not changed, and a lookup when it has.
 *
 * Never waits; the reader's thread, and one thread at a time for the cache. Valid until the section ends. Errors: as
 * memslots_hva_cache_init, but the next call looks again; nothing is written.
 */
MEMSLOTS_CALL
int memslots_hva_cache_get(struct memslots_hva_cache *cache,
                           struct memslots_reader *reader,
                           uint64_t *hva);

/**
 * A walk over all slots of an address space, ascending by gfn, of the publication that is newest now.
 *
 * Never waits; the reader's thread, inside a section (outside of one the walk is empty). It ends with the section.
 */
MEMSLOTS_CALL
void memslots_iter_all(struct memslots_iter *iter,
                       struct memslots_reader *reader,
                       uint16_t as_id);

/**
 * A walk over exactly the slots with a frame in [start, end), ascending by gfn. An empty range has none. Otherwise as
 * memslots_iter_all.
 */
MEMSLOTS_CALL
void memslots_iter_gfn(struct memslots_iter *iter,
                       struct memslots_reader *reader,
                       uint16_t as_id,
                       uint64_t start,
                       uint64_t end);

/**
 * A walk over exactly the slots with a byte of host memory in [start, last], `last` inclusive, ascending by hva, then
 * by id. Otherwise as memslots_iter_all.
 */
MEMSLOTS_CALL
void memslots_iter_hva(struct memslots_iter *iter,
                       struct memslots_reader *reader,
                       uint16_t as_id,
                       uint64_t start,
                       uint64_t last);

/**
 * The next slot, valid until the section ends; NULL at the end, and in another section than the walk began in. Never
 * waits; the reader's thread.
 */
MEMSLOTS_CALL
const struct memslot *memslots_iter_next(struct memslots_iter *iter);

/**
 * Frees what no reader can see any more, and runs every release and unmap that is due. Returns how many releases it
 * ran. Does not wait for readers, but for other threads' updates; any thread. 0 for NULL, and inside an update of this
 * thread.
 */
MEMSLOTS_CALL
size_t memslots_reclaim(struct memslots *table);

/**
 * Waits for a grace period: until every read-side section that is open now has ended. Returns only when every release
 * and unmap that was due at the call has run, here or on another thread. From inside a section or an update of this
 * thread it would wait for ever: it returns at once then. Any thread.
 */
MEMSLOTS_CALL
void memslots_synchronize(struct memslots *table);

/**
 * As memslots_synchronize, and says so: -EDEADLK where this thread is in a section or inside an update of this table.
 * Also -EINVAL (NULL), -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_try_synchronize(struct memslots *table);

/**
 * Writes where the table stands, as the last update left it: as much as the caller's struct, of `size` bytes, has room
 * for. Does not wait for updates; any thread, in hooks too.
 *
 * Errors: -EINVAL (NULL, a size that has no room for the size).
 */
MEMSLOTS_CALL
int memslots_get_stats(struct memslots *table,
                       struct memslots_stats *stats,
                       size_t size);

/**
 * Writes what the reader did, as memslots_get_stats does. Never waits; the reader's thread. Errors: -EINVAL (NULL, a
 * size that has no room for the size).
 */
MEMSLOTS_CALL
int memslots_reader_get_stats(const struct memslots_reader *reader,
                              struct memslots_reader_stats *stats,
                              size_t size);

/**
 * Writes the table for a person to `fd`, a line a slot. Waits for other threads' updates, and updates then wait for
 * the write; any thread. Errors: -EINVAL (NULL), what write() fails with, -EDEADLK (inside an update of this thread),
 * -ENOTRECOVERABLE.
 */
MEMSLOTS_CALL
int memslots_dump(struct memslots *table,
                  int fd);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* A program's struct is as large as its header says: the library writes no more. */
#define memslots_config_init(config)                                                               \
    memslots_config_init_sized((config), sizeof(struct memslots_config))

/*
 * The first part of a reader: what a hit of the last-used slot needs. Private to the function below.
 */
struct memslots_reader_hot {
    const uint64_t *seq;
    uint64_t key;
    uint64_t base_gfn;
    uint64_t npages;
    const struct memslot *slot;
};

/* The library asserts the same of its side. C99 has no assertion of its own. */
#if defined(__cplusplus)
#define MEMSLOTS_ASSERT(name, condition) static_assert(condition, #condition)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define MEMSLOTS_ASSERT(name, condition) _Static_assert(condition, #condition)
#else
#define MEMSLOTS_ASSERT(name, condition) typedef char memslots_##name[(condition) ? 1 : -1]
#endif
MEMSLOTS_ASSERT(is_64_bit, sizeof(void *) == 8);
MEMSLOTS_ASSERT(seq_at, offsetof(struct memslots_reader_hot, seq) == 0);
MEMSLOTS_ASSERT(key_at, offsetof(struct memslots_reader_hot, key) == 8);
MEMSLOTS_ASSERT(base_gfn_at, offsetof(struct memslots_reader_hot, base_gfn) == 16);
MEMSLOTS_ASSERT(npages_at, offsetof(struct memslots_reader_hot, npages) == 24);
MEMSLOTS_ASSERT(slot_at, offsetof(struct memslots_reader_hot, slot) == 32);
#undef MEMSLOTS_ASSERT

/*
 * memslots_find_gfn, with the last-used slot looked at in the caller: a gfn of the slot that the
 * reader found last costs one load and two compares. Same contract; `reader` is not NULL.
 */
static inline const struct memslot *memslots_find_gfn_inline(struct memslots_reader *reader,
                                                             uint16_t as_id, uint64_t gfn)
{
    const struct memslots_reader_hot *hot = (const struct memslots_reader_hot *)(void *)reader;

    if (__atomic_load_n(hot->seq, __ATOMIC_ACQUIRE) + as_id == hot->key &&
        gfn - hot->base_gfn < hot->npages) {
        return hot->slot;
    }
    return memslots_find_gfn(reader, as_id, gfn);
}

#endif /* MEMSLOTS_H */

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

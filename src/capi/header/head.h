/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libmemslots: the memslot table of a virtual machine monitor.
 *
 * Generated from src/capi/ by `make header`; do not edit.
 *
 * Functions that can fail return 0 or a negative errno; none sets errno, prints, exits or aborts. A
 * NULL handle is -EINVAL (or NULL or 0 where there is no error value). Units: gfn = guest frame
 * number; gpa, hva and sizes = bytes; npages = pages. Slots that are found are read-only and never
 * change in place: an update publishes another one.
 *
 * Threads: a struct memslots may be used by any thread at any time, between memslots_new and
 * memslots_free. A struct memslots_reader is used by one thread at a time; a struct memslots_txn by
 * the thread that began it. After fork() the child may only exec or free.
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a libmemslots which is older than the header that QEMU was built with.

#include <memslots.h>

const char *memslots_version(void)
{
    return "0.0.9";
}

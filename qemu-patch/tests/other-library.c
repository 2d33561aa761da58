// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a libmemslots of another version than the header that QEMU was built with. Which one says the
// environment, OTHER_VERSION.

#include <memslots.h>
#include <stdlib.h>

const char *memslots_version(void)
{
    return getenv("OTHER_VERSION");
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The header from C++: compiles twice over, links, and its inline functions work.

#include <memslots.h>
#include <memslots.h>

#include <cstdio>

int main()
{
    memslots *ms = nullptr;
    memslots_reader *reader = nullptr;
    memslots_region region{};
    int found = -1;

    region.slot = 5;
    region.memory_size = 1 << 20;
    if (memslots_new(nullptr, &ms) == 0 && memslots_reader_new(ms, &reader) == 0 &&
        memslots_set_region(ms, &region, nullptr) == 0) {
        memslots_read_lock(reader);
        if (const memslot *slot = memslots_find_gfn(reader, 0, 1))
            found = slot->id;
        memslots_read_unlock(reader);
    }
    memslots_reader_free(reader);
    memslots_free(ms);
    std::printf("%s cxx.cc: a slot from C++\n", found == 5 ? "PASS" : "FAIL");
    return found == 5 ? 0 : 1;
}

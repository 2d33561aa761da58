#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Inserts the measuring points of kvm-measure.h into a QEMU source tree, stock or patched: insert.py SOURCE.

The places are named by function, so that they are the same in both. One that is not found is an error.
"""

import re
import shutil
import sys
from os.path import dirname, join

# function: the first statement of its body
POINTS = {
    "kvm_set_user_memory_region": "measure_slot(slot->ram, slot->memory_size, "
                                  "slot->flags & KVM_MEM_READONLY);",
    "kvm_slot_get_dirty_log": "NOT_MEASURED();",
    "kvm_slot_sync_dirty_pages": "NOT_MEASURED();",
    "kvm_log_clear_one_slot": "NOT_MEASURED();",
    "kvm_section_update_flags": "MEASURED(LOG_START);",
    "kvm_physical_log_clear": "MEASURED(CLEAR);",
    "kvm_region_commit": "MEASURED(COMMIT);",
    "kvm_log_sync": "measure_section(section->offset_within_address_space); MEASURED(SYNC);",
    "kvm_init": "measure_init();",
}


def main():
    source = sys.argv[1]
    path = join(source, "accel/kvm/kvm-all.c")
    shutil.copy(join(dirname(__file__), "kvm-measure.h"), join(source, "accel/kvm/"))
    with open(path) as file:
        text = file.read()

    for name, statement in POINTS.items():
        # A definition: at the start of a line, with the brace in the first column.
        text, count = re.subn(rf"(?m)^(static [^\n;]*\b{name}\([^;{{]*\)\n\{{\n)", rf"\1    {statement}\n", text)
        if count != 1:
            sys.exit(f"insert.py: {name} is there {count} times")
    # Of this function only the ioctls are taken off: what it reads of a slot may be cold.
    text, count = re.subn(r"ret = kvm_vm_ioctl\(s, KVM_SET_USER_MEMORY_REGION2?, &mem\);",
                          r"{ NOT_MEASURED(); \g<0> }", text)
    if count != 4:
        sys.exit(f"insert.py: slots are set in {count} places")
    for edge in ("begin", "end"):
        text, count = re.subn(rf"\baccel_ioctl_inhibit_{edge}\(\)", f"measure_inhibit_{edge}()", text)
        if count != 1:
            sys.exit(f"insert.py: accel_ioctl_inhibit_{edge} is called {count} times")
    text, count = re.subn(r"(?m)^(static QemuMutex kml_slots_lock;\n)", r'\1#include "kvm-measure.h"\n', text)
    if count != 1:
        sys.exit("insert.py: no place to include kvm-measure.h")
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What the guest and its VMM have agreed on. Read by the guest itself (guest_x86.S) and by C alike,
// so: numbers only.
//
// The guest is a dozen instructions of flat 32-bit code with paging off (gpa == its own address).
// For ever: it asks for a list of addresses, writes one dword to each of them, and after each write
// tells the VMM where it was. An address may lie in RAM, in ROM or in no memory at all; the guest
// neither knows nor cares, the VMM must.

#ifndef MINIVMM_GUEST_H
#define MINIVMM_GUEST_H

#define GUEST_CODE_GPA   0x1000 // where the VMM puts the code, and where it starts
#define GUEST_PORT_WORK  0x10   // in: the gpa of the next list, 0 to halt
#define GUEST_PORT_WROTE 0x14   // out: the gpa that was just written
#define GUEST_LIST_END   0      // a list is dwords, each a gpa, ended by this

// What the guest writes to an address: a value that says which address it was meant for.
#define GUEST_COOKIE 0x6d656d73

#endif

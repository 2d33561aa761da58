// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The guest: see guest.h for what it does. Position-independent, needs no stack. It sits among the
// VMM's constants; the VMM copies it to GUEST_CODE_GPA.

#include "guest.h"

#ifdef __x86_64__
        .section .rodata
        .globl  guest_code, guest_code_end
        .code32
guest_code:
        movw    $GUEST_PORT_WORK, %dx
        inl     %dx, %eax               // the VMM answers with the gpa of a list
        testl   %eax, %eax
        jz      halt
        movl    %eax, %esi
next_address:
        movl    (%esi), %edi
        addl    $4, %esi
        cmpl    $GUEST_LIST_END, %edi
        je      guest_code              // this list is done: ask for another
        movl    %edi, %eax
        xorl    $GUEST_COOKIE, %eax
        movl    %eax, (%edi)            // RAM takes it; from ROM and holes it exits to the VMM
        movl    %edi, %eax
        movw    $GUEST_PORT_WROTE, %dx
        outl    %eax, %dx               // "I wrote there": the VMM looks
        jmp     next_address
halt:
        hlt
guest_code_end:
        .code64
#endif
        .section .note.GNU-stack, "", %progbits

/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A tiny guest that writes and checks patterns in its memory, page by page, as it is told.
 *
 * It is a 64 KiB BIOS image: the processor comes out of reset right into it, and it runs from ROM, without a stack.
 * All that it ever writes to memory are the patterns (and, once, its page tables), so what is dirty is known exactly.
 * Assembled three times: as it is, it stays in 32-bit protected mode in ring 0; with RING3, it goes on to long mode and
 * drops to ring 3; with KERNEL, it is what SeaBIOS boots, a Multiboot kernel at 2 MiB, in ring 0 again.
 *
 * It knows one thing of the outside: the mailbox, a page of RAM which the host writes and the guest only reads.
 * A command is done once, when its sequence number changes. What it says, it says on the debug port, in lines:
 *   R                      ready for the first command
 *   D                      done
 *   P <key>                stopped running; the last pass has written <key>
 *   E <gpa> <want> <got>   wrong pattern: the end of the command
 *
 * Page i is at first + i * stride, plus (5 * i & wobble) pages: not always the first page of a slot.
 * Its pattern, the first four bytes, is (low half of its address) ^ key.
 */

/* The mailbox */
#define SEQUENCE    0x1000      /* u32: written last */
#define COMMAND     0x1004      /* u32 */
#define KEY         0x1008      /* u32 */
#define WOBBLE      0x100c      /* u32 */
#define FIRST       0x1010      /* u64 */
#define STRIDE      0x1018      /* u64 */
#define COUNT       0x1020      /* u32 */

/* Commands */
#define NOTHING     0           /* a guest that runs stops after its pass; the rest of the mailbox stays as it is */
#define FILL        1           /* write all patterns */
#define CHECK       2           /* compare all patterns */
#define RUN         3           /* pass after pass, compare key and write key + 1, until the sequence changes */
#define EXIT        4           /* leave QEMU, with status 2 * KEY + 1 */

#define PORT_DEBUG  0xe9
#define PORT_EXIT   0xf4

#define ROM         0xffff0000
#define PML4        0x10000     /* then a PDPT, then a page directory for each of MAPPED_GIB */
#define MAPPED_GIB  8

        .text
        .code32

#ifdef KERNEL
/* The Multiboot header: take the file as it is. The loader has set up flat segments. */
#define MAGIC       0x1badb002
#define NO_ELF      0x00010000
header: .long   MAGIC, NO_ELF, -(MAGIC + NO_ELF)
        .long   header, header, 0, 0, ready
#else
protected:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
#endif
#ifdef RING3
#define R(reg)  %r##reg

        /* Page tables: each of 2 MiB pages, for the user, with accessed and dirty set so that nobody writes them. */
        movl    $(PML4 + 0x1000 + 7), PML4
        mov     $(PML4 + 0x2000 + 7), %eax
        xor     %ecx, %ecx
1:      mov     %eax, PML4 + 0x1000(, %ecx, 8)
        add     $0x1000, %eax
        inc     %ecx
        cmp     $MAPPED_GIB, %ecx
        jb      1b

        xor     %ecx, %ecx
1:      mov     %ecx, %eax
        shl     $21, %eax
        or      $0xe7, %eax
        mov     %eax, PML4 + 0x2000(, %ecx, 8)
        mov     %ecx, %eax
        shr     $11, %eax
        mov     %eax, PML4 + 0x2004(, %ecx, 8)
        inc     %ecx
        cmp     $(MAPPED_GIB * 512), %ecx
        jb      1b

        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x20, %eax             /* PAE */
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       /* EFER */
        rdmsr
        or      $0x100, %eax            /* LME */
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax       /* PG */
        mov     %eax, %cr0
        ljmpl   $0x18, $long_mode

        .code64
long_mode:
        /* The stack of an iretq, in ROM: it is only read. */
        mov     $iret_frame, %esp
        iretq

        .balign 8
iret_frame:
        .quad   ready                   /* rip */
        .quad   0x20 | 3                /* cs */
        .quad   0x3002                  /* rflags: I/O privilege level 3, interrupts off */
        .quad   0                       /* rsp: not used */
        .quad   0x28 | 3                /* ss */
#else
#define R(reg)  %e##reg
#endif

/* Say one character. Clobbers al. */
        .macro  say char
        mov     $\char, %al
        out     %al, $PORT_DEBUG
        .endm

/* Say edx in hex. Clobbers eax and ecx. */
        .macro  say_hex
        say     ' '
        mov     $8, %ecx
1:      rol     $4, %edx
        mov     %edx, %eax
        and     $15, %eax
        add     $'0', %eax
        cmp     $'9', %eax
        jbe     2f
        add     $('a' - '9' - 1), %eax
2:      out     %al, $PORT_DEBUG
        dec     %ecx
        jnz     1b
        .endm

ready:
        say     'R'
        say     '\n'
        xor     %ebp, %ebp              /* ebp: the sequence number of the last command */

wait:
        pause
        mov     SEQUENCE, %eax
        cmp     %eax, %ebp
        je      wait
        mov     %eax, %ebp
        mov     COMMAND, %ecx           /* ecx: the command */
        mov     KEY, %ebx               /* ebx: the key */
        cmp     $NOTHING, %ecx
        je      done
        cmp     $EXIT, %ecx
        je      exit

pass:
        mov     FIRST, R(di)            /* edi/rdi: first + i * stride */
        xor     %esi, %esi              /* esi: i */
page:
        lea     (R(si), R(si), 4), %eax
        and     WOBBLE, %eax
        shl     $12, %eax
        add     R(di), R(ax)            /* eax/rax: the page's address */
        mov     %eax, %edx
        xor     %ebx, %edx              /* edx: its pattern */
        cmp     $FILL, %ecx
        je      write
        cmp     %edx, (R(ax))
        jne     wrong
        cmp     $CHECK, %ecx
        je      next
        lea     1(R(bx)), %edx
        xor     %eax, %edx
write:
        mov     %edx, (R(ax))
next:
        add     STRIDE, R(di)
        inc     %esi
        cmp     COUNT, %esi
        jb      page

        cmp     $RUN, %ecx
        jne     done
        inc     %ebx
        cmp     SEQUENCE, %ebp
        je      pass
        say     'P'
        mov     %ebx, %edx
        say_hex
        say     '\n'
        jmp     wait

done:
        say     'D'
        say     '\n'
        jmp     wait

wrong:
        mov     (R(ax)), %esi
        mov     %edx, %ebx
        mov     %eax, %edi
        say     'E'
        mov     %edi, %edx
        say_hex
        mov     %ebx, %edx
        say_hex
        mov     %esi, %edx
        say_hex
        say     '\n'
        jmp     wait

exit:
        mov     %ebx, %eax
        out     %eax, $PORT_EXIT
1:      jmp     1b

#ifndef KERNEL
/* Out of reset: 16 bits, at the top of the ROM. */
        .code16
real_mode:
        cli
        lgdtl   %cs:(gdt_pointer - ROM)
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $0x08, $protected

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* 08: code, 32 bits */
        .quad   0x00cf93000000ffff      /* 10: data */
        .quad   0x00af9b000000ffff      /* 18: code, 64 bits */
        .quad   0x00affb000000ffff      /* 20: code, 64 bits, ring 3 */
        .quad   0x00cff3000000ffff      /* 28: data, ring 3 */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt

        .org    0xfff0
        jmp     real_mode
        .org    0x10000
#endif

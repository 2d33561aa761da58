// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What Linux's trees need of the kernel's own headers to compile in userspace.

#ifndef SHIM_LINUX_COMPILER_H
#define SHIM_LINUX_COMPILER_H

#include <stdbool.h>
#include <stddef.h>

#define READ_ONCE(x)         (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))
#define unlikely(x)          __builtin_expect(!!(x), 0)
#define likely(x)            __builtin_expect(!!(x), 1)
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#endif

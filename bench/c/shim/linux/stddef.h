// SPDX-License-Identifier: MIT OR Apache-2.0
#ifndef SHIM_LINUX_STDDEF_H
#define SHIM_LINUX_STDDEF_H
#include <linux/compiler.h>
#endif

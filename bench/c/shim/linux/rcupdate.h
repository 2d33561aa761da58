// SPDX-License-Identifier: MIT OR Apache-2.0
#ifndef SHIM_LINUX_RCUPDATE_H
#define SHIM_LINUX_RCUPDATE_H
#include <linux/compiler.h>
#ifndef rcu_assign_pointer
#define rcu_assign_pointer(pointer, value) __atomic_store_n(&(pointer), value, __ATOMIC_RELEASE)
#endif
#ifndef rcu_dereference_raw
#define rcu_dereference_raw(pointer) __atomic_load_n(&(pointer), __ATOMIC_CONSUME)
#endif
#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a kernel without KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, so that KVM_GET_DIRTY_LOG clears the log
// itself, as it did before Linux 5.0. QEMU has no switch for that.

#define _GNU_SOURCE
#include <linux/kvm.h>

#include "ioctl.h"

static int answer(int fd, unsigned long request, void *argument)
{
    if (request == KVM_CHECK_EXTENSION && (long)argument == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        return 0;
    return real_ioctl(fd, request, argument);
}

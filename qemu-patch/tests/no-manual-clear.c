// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Preloaded into QEMU: a kernel without KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, so that KVM_GET_DIRTY_LOG clears the log
// itself, as it did before Linux 5.0. QEMU has no switch for that.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, void *);
    va_list arguments;
    void *argument;

    if (!real)
        real = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == KVM_CHECK_EXTENSION && (long)argument == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        return 0;
    return real(fd, request, argument);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The ioctl() of a library that is preloaded into QEMU. The file that includes this decides in answer() what a call
// returns, and has real_ioctl() for the rest.

#include <dlfcn.h>
#include <stdarg.h>

static int answer(int fd, unsigned long request, void *argument);

static int real_ioctl(int fd, unsigned long request, void *argument)
{
    static int (*real)(int, unsigned long, void *);

    if (!real)
        real = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return answer(fd, request, argument);
}

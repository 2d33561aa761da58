// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What a child process does, and how it ends: for tests in which the process dies or hangs.

#ifndef MEMSLOTS_C_TESTS_CHILD_H
#define MEMSLOTS_C_TESTS_CHILD_H

#include "test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct ending {
    int exit_status; // -1 where a signal ended it
    int signal;      // 0 where it ended by itself
    char said[4096]; // on stderr
};

// Runs in the child: its checks are the child's exit status.
static inline void child_main(void (*body)(void *), void *arg, int stderr_to)
{
    struct rlimit no_core = {0, 0};

    setrlimit(RLIMIT_CORE, &no_core);
    dup2(stderr_to, 2);
    alarm(under_valgrind() ? 100 : 20); // a hang is a failure, not a hang
    test_failures = 0;
    body(arg);
    fflush(stdout);
    if (test_failures == 0)
        execl("/bin/true", "true", (char *)NULL); // what it left behind is no leak
    _exit(1);
}

static inline struct ending in_child(void (*body)(void *), void *arg)
{
    struct ending ending = {-1, 0, ""};
    int ends[2], status = 0;
    size_t nr = 0;
    ssize_t got;

    fflush(stdout); // or the child would write it, too
    REQUIRE(pipe(ends) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        child_main(body, arg, ends[1]);
    close(ends[1]);
    while ((got = read(ends[0], ending.said + nr, sizeof(ending.said) - 1 - nr)) > 0)
        nr += (size_t)got;
    close(ends[0]);
    REQUIRE(waitpid(child, &status, 0) == child);
    ending.said[nr] = 0;
    ending.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ending.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return ending;
}

// Dies by abort(), after a line that names the hook.
static inline void check_hook_must_return(void (*body)(void *), void *arg, const char *hook)
{
    struct ending ending = in_child(body, arg);
    char line[100];

    snprintf(line, sizeof(line), "memslots: an exception left the hook '%s'", hook);
    CHECK_EQ(ending.signal, SIGABRT);
    CHECK_EQ(ending.exit_status, -1);
    if (!strstr(ending.said, line)) {
        printf("    a death in '%s' said: %s\n", hook, ending.said);
        test_failures++;
    }
}

#endif

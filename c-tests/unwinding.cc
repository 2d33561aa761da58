// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A hook must return. A C++ exception out of one ends the process with a line that names the hook.

#include <memslots.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace
{

const uint64_t PAGE = 4096;

void throws_at_slot(void *, const memslot *)
{
    throw 1;
}

void throws_at_change(void *, const memslots_change *)
{
    throw 2;
}

int throws_when_asked(void *, const memslots_change *)
{
    throw 3;
}

int refuses_deletes(void *, const memslots_change *change)
{
    return change->kind == MEMSLOTS_DELETE ? -16 : 0;
}

void throws_at_memory(void *, uint64_t, uint64_t)
{
    throw 4;
}

// Every hook is called by this.
void update(const memslots_ops &ops)
{
    memslots_config config;
    memslots *ms = nullptr;
    memslots_region region{};

    memslots_config_init(&config);
    config.ops = &ops;
    region.memory_size = 4 * PAGE;
    region.userspace_addr = 64 * PAGE;
    memslots_new(&config, &ms);
    memslots_set_region(ms, &region, nullptr);
    memslots_txn *txn = nullptr;
    memslots_txn_begin(ms, &txn);
    region.slot = 1;
    region.guest_phys_addr = 16 * PAGE;
    memslots_txn_create(txn, &region, nullptr);
    memslots_txn_delete(txn, 0, 0);
    memslots_txn_commit(txn);
    memslots_delete(ms, 0, 0);
    memslots_synchronize(ms);
    memslots_free(ms);
}

// Runs the update in a child; true where it was aborted, with the hook's name on stderr.
bool dies_of(const char *hook, const memslots_ops &ops)
{
    int ends[2];
    int status = 0;
    std::string said;
    char buffer[256];

    if (pipe(ends))
        return false;
    pid_t child = fork();
    if (child == 0) {
        rlimit none{};
        setrlimit(RLIMIT_CORE, &none);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        try {
            update(ops);
        } catch (...) {
            _exit(2); // it went through the library
        }
        _exit(1);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;)
        said.append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    waitpid(child, &status, 0);
    bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    bool named =
        said.find(std::string("exception left the hook '") + hook + "'") != std::string::npos;
    if (!died || !named)
        std::printf("    %s: status %#x, stderr: %s\n", hook, status, said.c_str());
    return died && named;
}

bool passed = true;

void check(const char *hook, const memslots_ops &ops)
{
    bool ok = dies_of(hook, ops);
    std::printf("%s unwinding.cc: an exception out of %s\n", ok ? "PASS" : "FAIL", hook);
    passed = passed && ok;
}

memslots_ops no_hooks()
{
    memslots_ops ops{};
    ops.size = sizeof(ops);
    return ops;
}

} // namespace

int main()
{
    memslots_ops ops = no_hooks();
    ops.flush = throws_at_slot;
    check("flush", ops);
    ops = no_hooks();
    ops.prepare = throws_when_asked;
    check("prepare", ops);
    ops = no_hooks();
    ops.prepare = refuses_deletes;
    ops.cancel = throws_at_change;
    check("cancel", ops);
    ops = no_hooks();
    ops.commit = throws_at_change;
    check("commit", ops);
    ops = no_hooks();
    ops.release = throws_at_slot;
    check("release", ops);
    ops = no_hooks();
    ops.unmap = throws_at_memory;
    check("unmap", ops);
    return passed ? 0 : 1;
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// After fork the child may exec, or free what it inherited; the parent goes on as if nothing was.

#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

static int nr_released;

static void release(void *ctx, const struct memslot *gone)
{
    (void)ctx;
    (void)gone;
    nr_released++;
}

static struct memslots *table(void)
{
    static const struct memslots_ops ops = {.release = release};
    struct memslots_config config = default_config();
    config.ops = &ops;
    struct memslots *ms = new_table_with(&config);

    nr_released = 0;
    for (uint32_t i = 0; i < 100; i++)
        REQUIRE(set(ms, i, i * 2, 1) == 0);
    return ms;
}

static int exit_status_of(pid_t child)
{
    int status = -1;

    REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void the_child_may_free(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    memslots_read_lock(reader);
    memslots_delete(ms, 0, 7);
    memslots_read_unlock(reader);
    pid_t child = fork();
    if (child == 0) {
        memslots_reader_free(reader);
        memslots_free(ms);
        _exit(nr_released == 100 ? 0 : 1);
    }
    CHECK_EQ(exit_status_of(child), 0);

    CHECK_EQ(id_at(reader, 0, 16), 8);
    CHECK_EQ(set(ms, 7, 14, 1), 0);
    memslots_synchronize(ms);
    memslots_reader_free(reader);
    memslots_free(ms);
    CHECK_EQ(nr_released, 101);
}

static void the_child_may_exec(void)
{
    struct memslots *ms = table();
    struct memslots_reader *reader = new_reader(ms);

    memslots_read_lock(reader); // even from inside a section
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    CHECK_EQ(exit_status_of(child), 0);
    CHECK(memslots_find_gfn(reader, 0, 0) != NULL);
    memslots_read_unlock(reader);
    memslots_reader_free(reader);
    memslots_free(ms);
}

int main(void)
{
    RUN(the_child_may_free);
    RUN(the_child_may_exec);
    return test_result();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//
// memslots_trace_start: every change as one line that a person and memslots-replay can read.

#define _POSIX_C_SOURCE 200809L // fileno
#include "test.h"

#include <signal.h>
#include <unistd.h>

static struct memslots *ms;
static FILE *file;
static char text[1 << 16];

static void set_up(void)
{
    ms = new_table();
    file = tmpfile();
    REQUIRE(file);
    CHECK_EQ(memslots_trace_start(ms, fileno(file)), 0);
}

static void tear_down(void)
{
    memslots_free(ms);
    fclose(file);
}

static void read_trace(void)
{
    fflush(file);
    rewind(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = 0;
}

// The next line, cut off from the rest.
static char *next_line(char **rest)
{
    char *line = *rest, *end = strchr(line, '\n');

    if (!end)
        return NULL;
    *end = 0;
    *rest = end + 1;
    return line;
}

static int nr_lines(void)
{
    int nr = 0;

    for (const char *at = text; *at; at++)
        nr += *at == '\n';
    return nr;
}

// "key=value" of a line, as a number in whatever base; UINT64_MAX - 1 where it is not there.
static long long number(const char *line, const char *key)
{
    char pattern[32];

    snprintf(pattern, sizeof(pattern), "%s=", key);
    const char *at = strstr(line, pattern);
    while (at && at != line && at[-1] != ' ') // not the end of a longer key
        at = strstr(at + 1, pattern);
    return at ? (long long)strtoull(at + strlen(pattern), NULL, 0) : -999;
}

static void check_line(char **rest, const char *op, int slot, uint64_t gpa, uint64_t size,
                       long long result)
{
    char pattern[32], *line = next_line(rest);

    CHECK(line != NULL);
    if (!line)
        return;
    snprintf(pattern, sizeof(pattern), "op=%s ", op);
    if (!strstr(line, pattern))
        printf("    line is: %s\n", line);
    CHECK(strstr(line, pattern) != NULL);
    CHECK(strncmp(line, "gen=", 4) == 0);
    CHECK_EQ(number(line, "slot"), slot);
    CHECK_EQ(number(line, "gpa"), gpa);
    CHECK_EQ(number(line, "size"), size);
    CHECK_EQ(number(line, "result"), result);
    CHECK_EQ(number(line, "as"), 0);
}

static void every_update_and_its_result(void)
{
    struct memslots_region region = ram(6, 600, 10);
    char *rest = text;

    set_up();
    set(ms, 5, 100, 10);
    set(ms, 6, 105, 10);
    memslots_create(ms, &region, NULL);
    memslots_move(ms, 0, 5, 200 * PAGE);
    memslots_set_flags(ms, 0, 5, MEMSLOTS_LOG_DIRTY_PAGES);
    memslots_delete(ms, 0, 5);
    memslots_delete(ms, 0, 5);
    read_trace();
    CHECK_EQ(nr_lines(), 7);
    check_line(&rest, "set", 5, 100 * PAGE, 10 * PAGE, 0);
    check_line(&rest, "set", 6, 105 * PAGE, 10 * PAGE, -EEXIST);
    check_line(&rest, "create", 6, 600 * PAGE, 10 * PAGE, 0);
    char *move = rest;
    CHECK(strstr(move, "op=move ") != NULL);
    next_line(&rest);
    CHECK_EQ(number(move, "gpa"), 200 * PAGE);
    char *flags = rest;
    next_line(&rest);
    CHECK(strstr(flags, "op=flags ") != NULL);
    CHECK_EQ(number(flags, "flags"), MEMSLOTS_LOG_DIRTY_PAGES);
    char *gone = next_line(&rest);
    CHECK(gone && strstr(gone, "op=delete ") && number(gone, "result") == 0);
    gone = next_line(&rest);
    CHECK(gone && strstr(gone, "op=delete ") && number(gone, "result") == -ENOENT);
    tear_down();
}

static void every_field_of_a_line(void)
{
    struct memslots_region region = ram(5, 100, 10);

    set_up();
    CHECK_EQ(memslots_set_region(ms, &region, NULL), 0);
    read_trace();
    CHECK_EQ(number(text, "gen"), 1);
    CHECK_EQ(number(text, "hva"), HVA + 100 * PAGE);
    CHECK_EQ(number(text, "flags"), 0);
    CHECK(strstr(text, " memfd=") != NULL);
    CHECK_EQ(number(text, "offset"), 0);
    tear_down();
}

static void a_transaction_in_brackets(void)
{
    struct memslots_region region = ram(5, 100, 10);
    char *rest = text;

    set_up();
    struct memslots_txn *txn = begin(ms);
    CHECK_EQ(memslots_txn_set_region(txn, &region, NULL), 0);
    CHECK_EQ(memslots_txn_split(txn, 0, 5, 104 * PAGE, 9, NULL), 9);
    CHECK_EQ(memslots_txn_merge(txn, 0, 5, 9), 0);
    CHECK_EQ(memslots_txn_resize(txn, 0, 5, 20 * PAGE), 0);
    CHECK_EQ(memslots_txn_commit(txn), 0);
    memslots_txn_abort(begin(ms));
    read_trace();
    CHECK_EQ(nr_lines(), 8);
    const char *const ops[] = {"begin",  "set",    "split", "merge",
                               "resize", "commit", "begin", "abort"};
    for (size_t i = 0; i < 8; i++) {
        char pattern[32];
        char *line = next_line(&rest);
        snprintf(pattern, sizeof(pattern), "op=%s ", ops[i]);
        CHECK(line && strstr(line, pattern));
        if (!line)
            continue;
        if (i == 2) { // where it is cut, and the upper part's id
            CHECK_EQ(number(line, "slot"), 5);
            CHECK_EQ(number(line, "gpa"), 104 * PAGE);
            CHECK_EQ(number(line, "hva"), 9);
        }
        if (i == 3) {
            CHECK_EQ(number(line, "slot"), 5);
            CHECK_EQ(number(line, "hva"), 9);
        }
        CHECK_EQ(number(line, "result"), 0);
    }
    tear_down();
}

static void stop_stops(void)
{
    set_up();
    set(ms, 1, 100, 10);
    CHECK_EQ(memslots_trace_stop(ms), 0);
    set(ms, 2, 200, 10);
    read_trace();
    CHECK_EQ(nr_lines(), 1);
    CHECK_EQ(memslots_trace_stop(ms), 0); // where there is none, nothing happens
    tear_down();
}

// So that the trace alone makes the table: lines for what is there already come first.
static void the_slots_there_are_come_first(void)
{
    char *rest = text;

    set_up();
    memslots_trace_stop(ms);
    set(ms, 2, 200, 10);
    set(ms, 1, 100, 10);
    CHECK_EQ(memslots_trace_start(ms, fileno(file)), 0);
    set(ms, 3, 300, 10);
    read_trace();
    CHECK_EQ(nr_lines(), 3);
    check_line(&rest, "set", 1, 100 * PAGE, 10 * PAGE, 0);
    check_line(&rest, "set", 2, 200 * PAGE, 10 * PAGE, 0);
    check_line(&rest, "set", 3, 300 * PAGE, 10 * PAGE, 0);
    tear_down();
}

// A trace that cannot be written does not stop the machine.
static void a_bad_fd(void)
{
    ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(memslots_trace_start(ms, -1), -EBADF);
    file = tmpfile();
    REQUIRE(file);
    CHECK_EQ(memslots_trace_start(ms, fileno(file)), 0);
    int kept = dup(fileno(file));
    close(fileno(file));
    CHECK_EQ(set(ms, 1, 100, 10), 0);
    CHECK_EQ(id_at(reader, 0, 100), 1);
    dup2(kept, fileno(file));
    close(kept);
    memslots_reader_free(reader);
    tear_down();
}

// A viewer that went away ends the trace. It does not end the process, nor is the process told.
static void a_pipe_that_nobody_reads(void)
{
    int ends[2];
    sigset_t pipe_only, pending, before;

    REQUIRE(pipe(ends) == 0);
    void (*disposition)(int) = signal(SIGPIPE, SIG_DFL);
    ms = new_table();
    struct memslots_reader *reader = new_reader(ms);
    CHECK_EQ(memslots_trace_start(ms, ends[1]), 0);
    CHECK_EQ(set(ms, 1, 100, 10), 0);
    close(ends[0]);
    for (uint32_t i = 2; i < 5; i++)
        CHECK_EQ(set(ms, i, i * 100, 10), 0);
    CHECK_EQ(id_at(reader, 0, 400), 4);
    memslots_trace_stop(ms);
    CHECK_EQ(memslots_trace_start(ms, ends[1]), 0); // writes the slots, and ends

    // A SIGPIPE of the program's own, blocked and pending, is still there afterwards.
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    raise(SIGPIPE);
    CHECK_EQ(memslots_trace_start(ms, ends[1]), 0);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1);
    signal(SIGPIPE, SIG_IGN); // discards it
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    signal(SIGPIPE, disposition);
    memslots_reader_free(reader);
    memslots_free(ms);
    close(ends[1]);
}

int main(void)
{
    RUN(every_update_and_its_result);
    RUN(every_field_of_a_line);
    RUN(a_transaction_in_brackets);
    RUN(stop_stops);
    RUN(the_slots_there_are_come_first);
    RUN(a_bad_fd);
    RUN(a_pipe_that_nobody_reads);
    return test_result();
}

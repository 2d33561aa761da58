/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Where the time of QEMU's memslot code goes. Inserted by measure/insert.py into stock and patched QEMU alike, in the
 * same places; not part of the series.
 *
 * Measured: the listener's functions, each as a whole. Taken off: what is no bookkeeping of slots, which is the
 * ioctls, the copying of dirty bits, and the wait until no vCPU is in an ioctl. What is left is what the series can
 * make faster. Written as JSON to the file that MEMSLOTS_MEASURE names when QEMU exits.
 *
 * The time stamp counter is read, as a clock takes longer than some of what is measured. x86 only.
 */

#include <x86intrin.h>

enum { MEASURE_COMMIT, MEASURE_LOG_START, MEASURE_SYNC, MEASURE_CLEAR, MEASURE_KINDS };
#define MEASURE_PASSES 64

static struct {
    uint64_t sum[MEASURE_KINDS];
    uint64_t calls[MEASURE_KINDS];
    uint64_t pass[MEASURE_PASSES]; /* the sum of MEASURE_SYNC for each pass over all sections */
    unsigned passes;
    hwaddr last_section;
    uint64_t window, windows, longest_window, sum_window;
    uint64_t start;
    int64_t start_ns;
    uint8_t *ram, *ram_end; /* where the slots' memory is */
} measure;

static __thread uint64_t measure_not; /* time that is no bookkeeping, on this thread so far */

typedef struct {
    uint64_t start, not_before;
    int kind;
} Measured;

static void measured_end(Measured *m)
{
    uint64_t took = __rdtsc() - m->start - (measure_not - m->not_before);

    measure.sum[m->kind] += took;
    measure.calls[m->kind]++;
    if (m->kind == MEASURE_SYNC && measure.passes) {
        measure.pass[measure.passes - 1] += took;
    }
}

static void not_measured_end(uint64_t *start)
{
    measure_not += __rdtsc() - *start;
}

#define MEASURED(k)                                                                                \
    __attribute__((cleanup(measured_end), unused))                                                 \
    Measured measured_ = {__rdtsc(), measure_not, MEASURE_##k}
#define NOT_MEASURED()                                                                             \
    __attribute__((cleanup(not_measured_end), unused)) uint64_t not_measured_ = __rdtsc()

/* A section with a lower address than the last one: the next pass has begun. */
static void measure_section(hwaddr address)
{
    if ((!measure.passes || address <= measure.last_section) && measure.passes < MEASURE_PASSES) {
        measure.passes++;
    }
    measure.last_section = address;
}

static void measure_slot(uint8_t *ram, uint64_t size, bool readonly)
{
    if (size && !readonly) {
        measure.ram = measure.ram ? MIN(measure.ram, ram) : ram;
        measure.ram_end = MAX(measure.ram_end, ram + size);
    }
}

static void measure_inhibit_begin(void)
{
    NOT_MEASURED();
    accel_ioctl_inhibit_begin();
    measure.window = __rdtsc();
}

static void measure_inhibit_end(void)
{
    uint64_t took = __rdtsc() - measure.window;

    measure.windows++;
    measure.sum_window += took;
    measure.longest_window = MAX(measure.longest_window, took);
    accel_ioctl_inhibit_end();
}

/* Nanoseconds for one lookup of a random host address, all of which are there */
static double measure_host_lookup(double ns_per_tick)
{
    enum { LOOKUPS = 20000 };
    uint64_t seed = 88172645463325252ull, start, pages = (measure.ram_end - measure.ram) / 4096;
    hwaddr gpa, sum = 0;
    int i;

    start = __rdtsc();
    for (i = 0; i < LOOKUPS; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        kvm_physical_memory_addr_from_host(kvm_state, measure.ram + seed % pages * 4096, &gpa);
        sum += gpa;
    }
    return sum ? (__rdtsc() - start) * ns_per_tick / LOOKUPS : 0;
}

static void measure_report(void)
{
    static const char *const kinds[] = {"commit", "log_start", "sync", "clear"};
    double ns_per_tick = (double)(get_clock() - measure.start_ns) / (__rdtsc() - measure.start);
    FILE *out = fopen(getenv("MEMSLOTS_MEASURE"), "w");
    unsigned i;

    if (!out) {
        return;
    }
    fprintf(out, "{");
    for (i = 0; i < MEASURE_KINDS; i++) {
        fprintf(out, "\"%s_ns\": %.0f, \"%s_calls\": %" PRIu64 ", ", kinds[i],
                measure.sum[i] * ns_per_tick, kinds[i], measure.calls[i]);
    }
    fprintf(out, "\"sync_pass_ns\": [");
    for (i = 0; i < measure.passes; i++) {
        fprintf(out, "%s%.0f", i ? ", " : "", measure.pass[i] * ns_per_tick);
    }
    fprintf(out,
            "], \"windows\": %" PRIu64 ", \"longest_window_ns\": %.0f, \"sum_window_ns\": %.0f, "
            "\"host_lookup_ns\": %.1f}\n",
            measure.windows, measure.longest_window * ns_per_tick, measure.sum_window * ns_per_tick,
            measure_host_lookup(ns_per_tick));
    fclose(out);
}

static void measure_init(void)
{
    measure.start = __rdtsc();
    measure.start_ns = get_clock();
    if (getenv("MEMSLOTS_MEASURE")) {
        atexit(measure_report);
    }
}

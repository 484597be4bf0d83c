/* device.c - the CPU as a device: threads with scratch, memory, and the choice of a table. */
#include "kernels/cpu/cpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/memory.h"
#include "kernels/cpu/pool.h"

struct device {
    struct pool *pool;
    int threads;
    float *scratch; /* threads x CPU_SCRATCH_FLOATS */
    uint64_t serial;
    char numerics[2][96]; /* weights in fp32, in bf16 */
};

struct run {
    task_fn *fn;
    const void *arg;
    float *scratch;
};

static void run_task(const void *arg, int task, int thread)
{
    const struct run *r = arg;
    r->fn(r->arg, task, r->scratch + (size_t)thread * CPU_SCRATCH_FLOATS);
}

/* Waking a thread costs some microseconds; below this many steps one thread is done sooner. */
#define STEPS_WORTH_A_THREAD 4096

void cpu_run(struct device *d, task_fn *fn, const void *arg, int tasks, size_t steps)
{
    struct run r = {fn, arg, d->scratch};
    if (steps >= STEPS_WORTH_A_THREAD) {
        pool_run(d->pool, run_task, &r, tasks);
        return;
    }
    for (int i = 0; i < tasks; i++)
        run_task(&r, i, 0);
}

struct sets {
    const struct cpu_set *sets;
};

static void sets_task(const void *arg, int task, float *scratch)
{
    const struct cpu_set *s = ((const struct sets *)arg)->sets;
    for (; task >= s->tasks; s++)
        task -= s->tasks;
    s->fn(s->arg, task, scratch);
}

void cpu_run_sets(struct device *d, const struct cpu_set *sets, int count)
{
    struct sets all = {sets};
    int tasks = 0;
    size_t steps = 0;
    for (int i = 0; i < count; i++) {
        tasks += sets[i].tasks;
        steps += sets[i].steps;
    }
    cpu_run(d, sets_task, &all, tasks, steps);
}

int cpu_threads(const struct device *d)
{
    return d->threads;
}

uint64_t cpu_serial(struct device *d)
{
    return ++d->serial;
}

int cpu_tasks_for(const struct device *d, size_t items, size_t steps)
{
    size_t tasks = items * steps / (STEPS_WORTH_A_THREAD / 4);
    size_t most = (size_t)d->threads * 4;
    if (tasks > most) tasks = most;
    if (tasks > items) tasks = items;
    return tasks < 1 ? 1 : (int)tasks;
}

void cpu_share(size_t items, int tasks, int t, size_t *from, size_t *to)
{
    *from = items * (size_t)t / (size_t)tasks;
    *to = items * ((size_t)t + 1) / (size_t)tasks;
}

/* Without pairs avx512bf16 does what avx512 does; with them it gives the same bits.  So this, the
 * numerics class, says what the machine has: which of the two is faster on it does not matter. */
static const char *isa_of_this_machine(bool pairs)
{
    static const char *const best_first[] = {"avx512bf16", "avx512", "avx2", "plain"};
    for (int i = pairs ? 0 : 1; i < 4; i++)
        if (ops_cpu_isa(best_first[i])) return best_first[i];
    return "none";
}

struct device *cpu_open(int index, int threads, struct err *e)
{
    struct device *d = calloc(1, sizeof *d);
    if (!d) {
        err_set(e, ERR_RETRY, "out of memory for the device");
        return NULL;
    }
    d->threads = threads;
    d->pool = pool_create(threads, e);
    if (!d->pool) goto fail;
    d->scratch = cpu_alloc(d, (size_t)threads * CPU_SCRATCH_FLOATS * sizeof(float), e);
    if (!d->scratch) goto fail;
    for (int bf16 = 0; bf16 < 2; bf16++)
        snprintf(d->numerics[bf16], sizeof d->numerics[bf16], "cpu/%s/%s/gcc %d.%d",
                 isa_of_this_machine(bf16), bf16 ? "bf16" : "fp32", __GNUC__, __GNUC_MINOR__);
    return d;
fail:
    cpu_close(d);
    return NULL;
}

void cpu_close(struct device *d)
{
    if (!d) return;
    pool_free(d->pool);
    free(d->scratch);
    free(d);
}

enum ops_dtype cpu_act_dtype(enum ops_dtype weights)
{
    return OPS_F32;
}

const char *cpu_numerics(const struct device *d, enum ops_dtype weights)
{
    return d->numerics[weights == OPS_BF16];
}

void *cpu_alloc(struct device *d, size_t bytes, struct err *e)
{
    void *p = memory_alloc(bytes);
    if (!p) err_set(e, ERR_RETRY, "out of memory: could not get %zu bytes", bytes);
    return p;
}

void cpu_release(struct device *d, void *p)
{
    free(p);
}

int cpu_memory(struct device *d, size_t *free_bytes, size_t *total_bytes, struct err *e)
{
    *free_bytes = *total_bytes = 0;
    return 0;
}

void cpu_move(struct device *d, void *to, const void *from, size_t bytes)
{
    if (bytes) memcpy(to, from, bytes);
}

struct copy {
    char *to;
    const char *from;
    size_t bytes;
    int tasks;
};

static void copy_task(const void *arg, int task, float *scratch)
{
    const struct copy *c = arg;
    size_t from, to;
    cpu_share(c->bytes, c->tasks, task, &from, &to);
    if (to > from) memcpy(c->to + from, c->from + from, to - from);
}

void cpu_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    size_t steps = bytes / 32; /* a line is two: memory is slower than arithmetic */
    struct copy c = {to, from, bytes, cpu_tasks_for(d, steps, 1)};
    cpu_run(d, copy_task, &c, c.tasks, steps);
}

void cpu_zero(struct device *d, void *p, size_t bytes)
{
    if (bytes) memset(p, 0, bytes);
}

int cpu_sync(struct device *d, struct err *e)
{
    return 0;
}

/* An op is a function call: there is nothing to save. */
void cpu_record_begin(struct device *d, uint64_t key)
{
}

void cpu_record_end(struct device *d)
{
}

struct ops_recorded cpu_recorded(const struct device *d)
{
    return (struct ops_recorded){0};
}

extern const struct ops cpu_table_plain;
#ifdef CPU_HAS_X86
extern const struct ops cpu_table_avx512bf16, cpu_table_avx512, cpu_table_avx2;

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

const struct ops *ops_cpu_isa(const char *isa)
{
#ifdef CPU_HAS_X86
    if (strcmp(isa, "avx512bf16") == 0 && has_avx512bf16()) return &cpu_table_avx512bf16;
    if (strcmp(isa, "avx512") == 0 && has_avx512()) return &cpu_table_avx512;
    if (strcmp(isa, "avx2") == 0 && has_avx2()) return &cpu_table_avx2;
#endif
    return strcmp(isa, "plain") == 0 ? &cpu_table_plain : NULL;
}

/* ------------------------------------------------------------------ the faster of two tables */

#define PACE_ROWS  64
#define PACE_IN    256
#define PACE_OUT   128
#define PACE_TRIES 5

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of a small product with bf16 weights, the least of a few tries; 0: no memory to try. */
static double pace(const struct ops *ops, struct device *d)
{
    static const float w[PACE_OUT * PACE_IN], x[PACE_ROWS * PACE_IN];
    const struct ops_matrix m = {w, OPS_F32, PACE_OUT, PACE_IN};
    double least = 0;
    float *y = ops->alloc(d, PACE_ROWS * PACE_OUT * sizeof *y, NULL);
    struct packed *p = ops->pack(d, &m, OPS_BF16, false, NULL);
    for (int i = 0; y && p && i < PACE_TRIES; i++) {
        double began = thread_seconds();
        ops->gemm(d, act_f32(y), act_f32(x), PACE_ROWS, p, false);
        double took = thread_seconds() - began;
        if (i == 0 || took < least) least = took;
    }
    ops->packed_free(d, p);
    ops->release(d, y);
    return least;
}

/* VDPBF16PS does twice as many multiply-adds as VFMADD on some processors, half as many on others,
 * and no flag tells.  Both give the same bits, so a short look decides. */
static const struct ops *faster_at_bf16(const struct ops *pairs, const struct ops *fma)
{
    struct device *d = cpu_open(0, 1, NULL);
    if (!d) return pairs;
    double with_pairs = pace(pairs, d), with_fma = pace(fma, d);
    cpu_close(d);
    return with_fma < with_pairs ? fma : pairs;
}

static const struct ops *the_best;
static pthread_once_t chosen = PTHREAD_ONCE_INIT;

static void choose(void)
{
    const struct ops *pairs = ops_cpu_isa("avx512bf16");
    the_best = pairs ? faster_at_bf16(pairs, ops_cpu_isa("avx512"))
                     : ops_cpu_isa(isa_of_this_machine(true));
}

const struct ops *ops_cpu(void)
{
    pthread_once(&chosen, choose);
    return the_best;
}

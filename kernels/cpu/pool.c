/* pool.c - see pool.h.
 *
 * A run is published as one 64-bit ticket: its generation, its number of tasks and the next task.
 * Taking a task is one fetch_add, and what it returns says by itself whether there was one to take.
 * fn and arg are plain: they are written before the ticket is published, and read only by who holds
 * a task of that ticket, which the caller waits for before it writes them again. */
#include "kernels/cpu/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define NEXT_BITS  24
#define TASKS_BITS 24
#define NEXT_MASK  ((UINT64_C(1) << NEXT_BITS) - 1)
#define TASKS_MASK ((UINT64_C(1) << TASKS_BITS) - 1)
#define SPINS      4000 /* some tens of microseconds: the gap between two ops of a layer */

struct pool {
    _Atomic uint64_t ticket; /* generation | tasks | next */
    _Atomic int done;
    _Atomic int sleepers;
    _Atomic bool stop;
    pool_fn *fn;
    const void *arg;
    int count; /* threads of our own: one less than asked for */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct worker {
        struct pool *pool;
        pthread_t thread;
        int index;
    } workers[POOL_THREADS_MAX];
};

static uint64_t generation_of(uint64_t ticket)
{
    return ticket >> (NEXT_BITS + TASKS_BITS);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Takes and runs tasks until none is left; returns the generation that was found finished. */
static uint64_t work(struct pool *p, int thread)
{
    for (;;) {
        uint64_t t = atomic_fetch_add(&p->ticket, 1);
        uint64_t next = t & NEXT_MASK, tasks = (t >> NEXT_BITS) & TASKS_MASK;
        if (next >= tasks) return generation_of(t);
        p->fn(p->arg, (int)next, thread);
        atomic_fetch_add(&p->done, 1);
    }
}

static bool idle(struct pool *p, uint64_t generation)
{
    return !atomic_load(&p->stop) && generation_of(atomic_load(&p->ticket)) == generation;
}

/* Returns when there may be work of another generation. */
static void wait_for_work(struct pool *p, uint64_t generation)
{
    for (int i = 0; i < SPINS; i++) {
        if (!idle(p, generation)) return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (idle(p, generation))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    uint64_t generation = 0;
    while (!atomic_load(&w->pool->stop)) {
        wait_for_work(w->pool, generation);
        if (atomic_load(&w->pool->stop)) break;
        generation = work(w->pool, w->index);
    }
    return NULL;
}

struct pool *pool_create(int threads, struct err *e)
{
    if (threads < 1 || threads > POOL_THREADS_MAX) {
        err_set(e, ERR_USER, "threads is \"%d\", expected 1 to %d", threads, POOL_THREADS_MAX);
        return NULL;
    }
    struct pool *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for the thread pool");
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int i = 0; i < threads - 1; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i + 1};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0) {
            err_set(e, ERR_RETRY, "could not start thread %d of %d", i + 2, threads);
            pool_free(p);
            return NULL;
        }
        p->count++;
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->count; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static void wake_sleepers(struct pool *p)
{
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(struct pool *p, pool_fn *fn, const void *arg, int tasks)
{
    assert(tasks >= 0 && tasks < POOL_TASKS_MAX);
    if (p->count == 0 || tasks <= 1) {
        for (int i = 0; i < tasks; i++)
            fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->done, 0);
    uint64_t generation = generation_of(atomic_load(&p->ticket)) + 1;
    atomic_store(&p->ticket, generation << (NEXT_BITS + TASKS_BITS) | (uint64_t)tasks << NEXT_BITS);
    wake_sleepers(p);
    work(p, 0);
    for (int spins = 0; atomic_load(&p->done) < tasks; spins++) {
        if (spins < SPINS)
            relax();
        else
            sched_yield();
    }
}

/* pool.h - threads that share numbered tasks.
 *
 * One caller at a time.  The caller works too, so a pool of one thread has none of its own.
 * Between calls the threads spin for a moment and then sleep. */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include "base/err.h"

#define POOL_THREADS_MAX 256
#define POOL_TASKS_MAX   (1 << 23)

struct pool;

struct pool *pool_create(int threads, struct err *e);
void pool_free(struct pool *p); /* NULL is fine */

/* fn(arg, task, thread) for task 0 .. tasks - 1, thread in 0 .. threads - 1; returns when all are
 * done, and what they wrote is then seen by the caller. */
typedef void pool_fn(const void *arg, int task, int thread);
void pool_run(struct pool *p, pool_fn *fn, const void *arg, int tasks);

#endif

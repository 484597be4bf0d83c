/* workers.h - a few threads that may wait: each takes one piece of work at a time from a bounded
 * queue. */
#ifndef HTTP_WORKERS_H
#define HTTP_WORKERS_H

#include "base/err.h"

struct workers;

typedef void worker_run(void *arg, void *worker, void *item);

struct workers_conf {
    int count, queue_max;
    worker_run *run;
    void *arg;
    void *ctx; /* for create */
    void *(*create)(void *ctx, struct err *e);
    void (*free)(void *worker);
};

struct workers *workers_create(const struct workers_conf *conf, struct err *e);
/* 0, or -1 when the queue is full. */
int workers_add(struct workers *w, void *item);
/* Runs what is queued, then ends the threads. */
void workers_free(struct workers *w);

#endif

/* workers.c - see workers.h. */
#include "http/workers.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct workers {
    struct workers_conf conf;
    pthread_mutex_t lock;
    pthread_cond_t more;
    void **queue; /* a ring of queue_max items */
    int head, count;
    bool ending;
    pthread_t *threads;
    void **each; /* what create() made, one a thread */
    int started;
};

struct seat {
    struct workers *w;
    void *worker;
};

static void *take(struct workers *w)
{
    void *item = NULL;
    pthread_mutex_lock(&w->lock);
    while (!w->count && !w->ending)
        pthread_cond_wait(&w->more, &w->lock);
    if (w->count) {
        item = w->queue[w->head];
        w->head = (w->head + 1) % w->conf.queue_max;
        w->count--;
    }
    pthread_mutex_unlock(&w->lock);
    return item;
}

static void *work(void *arg)
{
    struct seat seat = *(struct seat *)arg;
    void *item;
    free(arg);
    while ((item = take(seat.w)))
        seat.w->conf.run(seat.w->conf.arg, seat.worker, item);
    return NULL;
}

static int start_one(struct workers *w, struct err *e)
{
    int i = w->started;
    w->each[i] = w->conf.create(w->conf.ctx, e);
    if (!w->each[i]) return -1;
    struct seat *seat = malloc(sizeof *seat);
    if (seat) *seat = (struct seat){w, w->each[i]};
    if (!seat || pthread_create(&w->threads[i], NULL, work, seat) != 0) {
        free(seat);
        w->conf.free(w->each[i]);
        return err_set(e, ERR_RETRY, "could not start a worker thread");
    }
    w->started++;
    return 0;
}

struct workers *workers_create(const struct workers_conf *conf, struct err *e)
{
    struct workers *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    w->conf = *conf;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    w->queue = calloc((size_t)conf->queue_max, sizeof *w->queue);
    w->threads = calloc((size_t)conf->count, sizeof *w->threads);
    w->each = calloc((size_t)conf->count, sizeof *w->each);
    if (!w->queue || !w->threads || !w->each) {
        err_set(e, ERR_RETRY, "out of memory");
        goto fail;
    }
    while (w->started < conf->count)
        if (start_one(w, e) < 0) goto fail;
    return w;
fail:
    workers_free(w);
    return NULL;
}

int workers_add(struct workers *w, void *item)
{
    int rc = -1;
    pthread_mutex_lock(&w->lock);
    if (w->count < w->conf.queue_max) {
        w->queue[(w->head + w->count) % w->conf.queue_max] = item;
        w->count++;
        pthread_cond_signal(&w->more);
        rc = 0;
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

void workers_free(struct workers *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->ending = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->started; i++) {
        pthread_join(w->threads[i], NULL);
        w->conf.free(w->each[i]);
    }
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->more);
    free(w->queue);
    free(w->threads);
    free(w->each);
    free(w);
}

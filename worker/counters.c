/* counters.c - see counters.h. */
#include "counters.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/log.h"
#include "store/store.h"

#define REDIS_TIMEOUT_MS 1000

static const char *const names[COUNT_COUNT] = {
    [COUNT_JOBS] = "jobs",
    [COUNT_BATCHES] = "batches",
    [COUNT_BATCHES_MULTI_RUN] = "batches_multi_run",
    [COUNT_RUNS_RESIDENT] = "runs_resident",
    [COUNT_TOKENS_TRAIN] = "tokens_train",
    [COUNT_TOKENS_SAMPLE] = "tokens_sample",
    [COUNT_TOKENS_PREFILL] = "tokens_prefill",
    [COUNT_REPLAYED] = "replayed",
    [COUNT_DIGEST_MISMATCHES] = "digest_mismatches",
    [COUNT_FENCED] = "fenced",
    [COUNT_PLANS_USED] = "plans_used",
    [COUNT_PLANS_STALE] = "plans_stale",
    [COUNT_SELF_PLANNED] = "self_planned",
    [COUNT_SNAPSHOTS] = "snapshots",
    [COUNT_SHARDS] = "shards",
    [COUNT_POISON] = "poison",
    [COUNT_RUNS_PAUSED] = "runs_paused",
    [COUNT_SNAPSHOTS_DAMAGED] = "snapshots_damaged",
    [COUNT_NUMERICS_CHANGED] = "numerics_changed",
    [COUNT_PREFIX_HIT_TOKENS] = "prefix_hit_tokens",
    [COUNT_PREFIX_EVICTIONS] = "prefix_evictions",
    [COUNT_SHARDS_REFUSED] = "shards_refused",
};

struct counters {
    _Atomic int64_t values[COUNT_COUNT];
    char who[32];
    struct store *store; /* the thread's */
    pthread_t thread;
    bool running, away;
    pthread_mutex_t lock; /* guards stop */
    pthread_cond_t wake;
    bool stop;
};

static void write_once(struct counters *c)
{
    struct counter list[COUNT_COUNT];
    struct err e = {0};
    for (int i = 0; i < COUNT_COUNT; i++)
        list[i] = (struct counter){names[i], atomic_load(&c->values[i])};
    bool away = store_counters_set(c->store, c->who, list, COUNT_COUNT, &e) < 0;
    if (away && !c->away) log_warn("counters.away", "why=\"%s\"", e.text);
    c->away = away;
}

static void *run(void *arg)
{
    struct counters *c = arg;
    pthread_mutex_lock(&c->lock);
    while (!c->stop) {
        pthread_mutex_unlock(&c->lock);
        write_once(c);
        pthread_mutex_lock(&c->lock);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        while (!c->stop && pthread_cond_timedwait(&c->wake, &c->lock, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&c->lock);
    write_once(c);
    return NULL;
}

struct counters *counters_open(const char *redis, const char *prefix, int slot, struct err *e)
{
    struct counters *c = calloc(1, sizeof *c);
    if (!c) {
        err_set(e, ERR_RETRY, "out of memory for counters");
        return NULL;
    }
    snprintf(c->who, sizeof c->who, "worker:%d", slot);
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->wake, &attr);
    pthread_condattr_destroy(&attr);
    c->store = store_create(redis, prefix, REDIS_TIMEOUT_MS, e);
    if (!c->store) goto fail;
    if (pthread_create(&c->thread, NULL, run, c)) {
        err_set(e, ERR_RETRY, "could not start the counters' thread");
        goto fail;
    }
    c->running = true;
    return c;
fail:
    counters_close(c);
    return NULL;
}

void counters_close(struct counters *c)
{
    if (!c) return;
    if (c->running) {
        pthread_mutex_lock(&c->lock);
        c->stop = true;
        pthread_cond_signal(&c->wake);
        pthread_mutex_unlock(&c->lock);
        pthread_join(c->thread, NULL);
    }
    store_free(c->store);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void counters_add(struct counters *c, enum count which, int64_t n)
{
    atomic_fetch_add(&c->values[which], n);
}

void counters_set(struct counters *c, enum count which, int64_t n)
{
    atomic_store(&c->values[which], n);
}

int64_t counters_get(const struct counters *c, enum count which)
{
    return atomic_load(&c->values[which]);
}

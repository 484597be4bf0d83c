/* main.c - tinworks-dispatcher: jobs in, batch plans out; results into futures.
 *
 * Two threads do the work, the resolver and the planner, a third watches what could go wrong in
 * days (guard.h); this one reads the catalog for them, shows the counters and sweeps (sweep.h).
 * Any number of dispatchers may run at once: a second one costs work, never correctness. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"
#include "catalog.h"
#include "db/db.h"
#include "guard.h"
#include "planner.h"
#include "resolver.h"
#include "settings.h"
#include "store/store.h"
#include "sweep.h"

#define STORE_TIMEOUT_MS 1000
#define TICK_MS          50
#define SWEEP_THOROUGH   30 /* one sweep in so many */

struct dispatcher {
    struct settings settings;
    struct stats stats;
    struct catalog_box *catalogs;
    struct db *db;
    struct store *store;
    struct resolver *resolver;
    struct planner *planner;
    struct guard *guard;
    bool catalog_missing, counters_missing; /* said so already */
};

struct worker_thread {
    pthread_t thread;
    bool started;
    struct dispatcher *dispatcher;
    struct err err;
};

static int dispatcher_open(struct dispatcher *d, struct err *e)
{
    const struct settings *s = &d->settings;
    if (bus_security_read(s->kafka_config, e) < 0) return -1;
    d->catalogs = catalog_box_create(e);
    if (d->catalogs) d->db = db_create(s->postgres, "tinworks-dispatcher", e);
    if (d->db) d->store = store_create(s->redis, s->redis_prefix, STORE_TIMEOUT_MS, e);
    if (d->store) d->resolver = resolver_create(s, d->catalogs, &d->stats, e);
    if (d->resolver) d->planner = planner_create(s, d->catalogs, &d->stats, e);
    if (d->planner) d->guard = guard_create(s, d->catalogs, &d->stats, e);
    return d->guard ? 0 : -1;
}

static void dispatcher_close(struct dispatcher *d)
{
    guard_free(d->guard);
    planner_free(d->planner);
    resolver_free(d->resolver);
    store_free(d->store);
    db_free(d->db);
    catalog_box_free(d->catalogs);
}

static void *run_resolver(void *arg)
{
    struct worker_thread *t = arg;
    if (resolver_run(t->dispatcher->resolver, &t->err) < 0) stop_request();
    return NULL;
}

static void *run_planner(void *arg)
{
    struct worker_thread *t = arg;
    if (planner_run(t->dispatcher->planner, &t->err) < 0) stop_request();
    return NULL;
}

static void *run_guard(void *arg)
{
    struct worker_thread *t = arg;
    if (guard_run(t->dispatcher->guard, &t->err) < 0) stop_request();
    return NULL;
}

static int thread_start(struct worker_thread *t, struct dispatcher *d, void *(*body)(void *),
                        struct err *e)
{
    t->dispatcher = d;
    if (pthread_create(&t->thread, NULL, body, t))
        return err_set(e, ERR_RETRY, "could not start a thread");
    t->started = true;
    return 0;
}

/* The first failure is the one that is told. */
static void thread_join(struct worker_thread *t, struct err *e)
{
    if (!t->started) return;
    pthread_join(t->thread, NULL);
    if (!e->kind) *e = t->err;
}

static int refresh_catalog(struct dispatcher *d, struct err *e)
{
    struct catalog *c = catalog_load(d->db, e);
    if (c) {
        if (d->catalog_missing) log_info("dispatcher.catalog", "shards=%d", c->count);
        d->catalog_missing = false;
        catalog_post(d->catalogs, c);
        return 0;
    }
    if (e->kind == ERR_BUG) return -1;
    if (!d->catalog_missing) log_warn("dispatcher.catalog", "error=\"%s\"", e->text);
    d->catalog_missing = true;
    err_clear(e);
    return 0;
}

static void show_counters(struct dispatcher *d)
{
    struct stats *s = &d->stats;
    char who[32];
    struct err e = {0};
    const struct counter counters[] = {
        {"settled", atomic_load(&s->settled)},
        {"fenced", atomic_load(&s->fenced)},
        {"unreadable", atomic_load(&s->unreadable)},
        {"conflicts", atomic_load(&s->conflicts)},
        {"rebuilds", atomic_load(&s->rebuilds)},
        {"retries", atomic_load(&s->retries)},
        {"partitions", atomic_load(&s->partitions)},
        {"jobs", atomic_load(&s->jobs)},
        {"results", atomic_load(&s->results)},
        {"plans", atomic_load(&s->plans)},
        {"planned_jobs", atomic_load(&s->planned_jobs)},
        {"shared_plans", atomic_load(&s->shared_plans)},
        {"held", atomic_load(&s->held)},
        {"expired", atomic_load(&s->expired)},
        {"retention_near", atomic_load(&s->retention_near)},
        {"billing_late", atomic_load(&s->billing_late)},
        {"swept", atomic_load(&s->swept)},
    };
    snprintf(who, sizeof who, "dispatcher:%d", (int)d->settings.instance);
    if (store_counters_set(d->store, who, counters, (int)(sizeof counters / sizeof *counters),
                           &e) == 0) {
        d->counters_missing = false;
        return;
    }
    if (!d->counters_missing) log_warn("dispatcher.counters", "error=\"%s\"", e.text);
    d->counters_missing = true;
}

static int watch(struct dispatcher *d, struct err *e)
{
    int64_t next_ms = 0, sweep_ms = 0, rounds = 0;
    while (!stop_requested()) {
        int64_t now_ms = clock_mono_ms();
        if (now_ms >= next_ms) {
            if (refresh_catalog(d, e) < 0) return -1;
            show_counters(d);
            next_ms = now_ms + d->settings.catalog_ms;
        }
        if (now_ms >= sweep_ms) {
            bool thorough = rounds++ % SWEEP_THOROUGH == 0;
            if (sweep_round(d->db, &d->settings, &d->stats, thorough, e) < 0) return -1;
            sweep_ms = now_ms + d->settings.sweep_s * 1000;
        }
        clock_sleep_ms(TICK_MS);
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct dispatcher d;
    struct worker_thread resolver = {0}, planner = {0}, guard = {0};
    struct err e = {0};

    if (settings_read(&d.settings, argc, argv, &e) < 0) goto out;
    stop_on_signals();
    if (dispatcher_open(&d, &e) < 0) goto out;
    if (thread_start(&resolver, &d, run_resolver, &e) < 0) goto out;
    if (thread_start(&planner, &d, run_planner, &e) < 0) goto out;
    if (thread_start(&guard, &d, run_guard, &e) < 0) goto out;
    log_info("dispatcher.ready", "brokers=%s prefix=%s", d.settings.kafka_brokers,
             d.settings.topic_prefix);
    if (watch(&d, &e) < 0) stop_request();
out:
    if (e.kind) stop_request();
    thread_join(&guard, &e);
    thread_join(&planner, &e);
    thread_join(&resolver, &e);
    log_err("dispatcher.end", &e); /* says nothing when all went well */
    dispatcher_close(&d);
    if (!e.kind) log_info("dispatcher.stopped", "instance=%d", (int)d.settings.instance);
    return e.kind ? EXIT_FAILURE : EXIT_SUCCESS;
}

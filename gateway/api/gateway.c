/* gateway.c - opening, housekeeping, draining, closing; see gateway.h. */
#include "api/gateway.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/accounts.h"
#include "api/cache.h"
#include "api/endpoints.h"
#include "api/flight.h"
#include "api/gather.h"
#include "api/owner.h"
#include "api/publisher.h"
#include "api/share.h"
#include "api/touched.h"
#include "api/waiters.h"
#include "base/clock.h"
#include "base/log.h"
#include "bus/bus.h"
#include "store/store.h"

#define TICK_MS          3000
#define WORKER_QUEUE_MAX 4096
#define DRAIN_MS         25000 /* a little more than a job waits for its ack */
#define LAST_MS          2000
#define STORE_TIMEOUT_MS 1000
#define CALL_DB_MS       10000 /* a Postgres that is frozen must not hold calls for ever */
#define TICK_DB_MS       2000
#define STORE_FULL_PERCENT 80

static void *open_worker(void *ctx, struct err *e)
{
    const struct gateway *g = ctx;
    struct db *db = db_create(g->conf.postgres, "tinworks-gateway", e);
    if (db) db_set_patience(db, CALL_DB_MS);
    return db;
}

static void close_worker(void *worker)
{
    db_free(worker);
}

static int busy_status(const struct http_request *r)
{
    return manner_of(r).hpcai ? 503 : 429;
}

static int serve(struct gateway *g, struct err *e)
{
    struct http_conf http = {.address = g->conf.listen,
                             .port = (int)g->conf.port,
                             .threads = (int)g->conf.http_threads,
                             .workers = (int)g->conf.workers,
                             .workers_queue_max = WORKER_QUEUE_MAX,
                             .connections_max = (int)g->conf.connections_max,
                             .connections_per_address = (int)g->conf.connections_per_address,
                             .certificate = g->conf.tls_certificate,
                             .key = g->conf.tls_key,
                             .head_ms = g->conf.head_s * 1000,
                             .body_ms = g->conf.body_s * 1000,
                             .log_requests = g->conf.log_requests,
                             .idle_s = (int)g->conf.idle_s,
                             .routes = api_routes,
                             .route_count = api_route_count,
                             .ctx = g,
                             .busy_status = busy_status,
                             .worker_create = open_worker,
                             .worker_free = close_worker};
    g->http = http_server_create(&http, e);
    return g->http ? 0 : -1;
}

int gateway_open(struct gateway *g, const struct gateway_conf *conf, struct err *e)
{
    g->conf = *conf;
    if (bus_security_read(conf->kafka_config, e) < 0) return -1;
    if (secret_read(&g->secret, conf->secret_file, e) < 0) return -1;
    if (!(g->runs = owner_runs_create(e)) || !(g->samplers = owner_samplers_create(e))) return -1;
    g->accounts = accounts_create(&g->secret, (int)conf->attempts_max, conf->key_good_ms, e);
    if (!g->accounts || !(g->touched = touched_create(e))) return -1;
    if (!(g->quota = quota_create(e)) || !(g->flight = flight_create(e))) return -1;
    if (!(g->db = db_create(conf->postgres, "tinworks-gateway", e))) return -1;
    db_set_patience(g->db, TICK_DB_MS);
    if (!(g->store = store_create(conf->redis, conf->redis_prefix, STORE_TIMEOUT_MS, e))) return -1;
    if (!(g->share = share_create(&g->conf, g->quota, g->flight, e))) return -1;
    if (!(g->publisher = publisher_create(&g->conf, g->flight, e))) return -1;
    if (!(g->gather = gather_create(&g->conf, e))) return -1;
    if (!(g->waiters = waiters_create(&g->conf, g->gather, g->quota, g->flight, e))) return -1;
    return serve(g, e);
}

static void write_counters(struct gateway *g)
{
    struct err e = {0};
    char who[80];
    const struct counter counters[] = {
        {"requests", atomic_load(&g->counts.requests)},
        {"submits", atomic_load(&g->counts.submits)},
        {"refused", atomic_load(&g->counts.refused)},
        {"auth_failures", atomic_load(&g->counts.auth_failures)},
        {"forbidden", atomic_load(&g->counts.forbidden)},
        {"limited", atomic_load(&g->counts.limited)},
        {"telemetry_events", atomic_load(&g->counts.telemetry_events)},
        {"polls_parked", waiters_parked(g->waiters)},
        {"jobs_in_flight", flight_jobs(g->flight)},
        {"redis_full", atomic_load(&g->store_full)},
        {"connections_cut", http_server_cuts(g->http)}};
    snprintf(who, sizeof who, "gateway:%s", g->conf.name);
    if (store_counters_set(g->store, who, counters, sizeof counters / sizeof *counters, &e) < 0)
        log_debug("gateway.counters", "text=\"%s\"", e.text);
}

/* Has the job an outcome, or is its log done with up to behind it? */
#define SQL_OVER                                                                                   \
    "SELECT * FROM (SELECT j.id, EXISTS (SELECT 1 FROM job_outcomes o WHERE o.job_id = j.id) AS "  \
    "decided, EXISTS (SELECT 1 FROM shards s WHERE s.model = j.model AND s.stream = j.stream AND " \
    "s.partition = j.partition AND s.resume_offset > j.at) AS passed FROM "                        \
    "jsonb_to_recordset($1::jsonb) AS j(id text, model text, stream text, partition integer, "     \
    "at bigint)) known WHERE decided OR passed"

/* Jobs in flight of whose end nobody told us. */
static int check_flight(struct gateway *g, struct err *e)
{
    struct db_result *rows = NULL;
    char *due = flight_due(g->flight, clock_mono_ms());
    if (!due) return 0;
    int n = db_queryf(g->db, &rows, e, SQL_OVER, due, NULL);
    free(due);
    for (int i = 0; i < n; i++) {
        if (db_bool(rows, i, 1))
            flight_settled(g->flight, db_text(rows, i, 0));
        else
            flight_dropped(g->flight, db_text(rows, i, 0));
    }
    db_result_free(rows);
    return n < 0 ? -1 : 0;
}

/* Samples are what fills Redis, and they can wait with the client; training goes on. */
static void look_at_store(struct gateway *g)
{
    struct err e = {0};
    int64_t used, max;
    if (store_memory(g->store, &used, &max, &e) < 0) {
        log_debug("gateway.redis", "text=\"%s\"", e.text);
        atomic_store(&g->store_full, false); /* away is not full: results come from the log then */
        return;
    }
    bool full = max && used > max / 100 * STORE_FULL_PERCENT;
    if (atomic_exchange(&g->store_full, full) == full) return;
    if (full)
        log_error("gateway.redis_full", "used=%lld max=%lld now=\"samples are refused\"",
                  (long long)used, (long long)max);
    else
        log_info("gateway.redis_full", "used=%lld max=%lld over=true", (long long)used,
                 (long long)max);
}

void gateway_tick(struct gateway *g)
{
    struct err e = {0};
    publisher_tick(g->publisher);
    if (clock_mono_ms() - g->tick_ms < TICK_MS) return;
    g->tick_ms = clock_mono_ms();
    write_counters(g);
    look_at_store(g);
    if (touched_flush(g->touched, g->db, &e) < 0)
        log_warn("gateway.touched", "text=\"%s\"", e.text);
    if (check_flight(g, &e) < 0) log_warn("gateway.flight", "text=\"%s\"", e.text);
}

static void wait_for_answers(struct gateway *g, int64_t until_ms)
{
    while (http_server_waiting(g->http) && clock_mono_ms() < until_ms)
        clock_sleep_ms(5);
}

int gateway_drain(struct gateway *g, struct err *e_out)
{
    struct err e = {0};
    http_server_quiesce(g->http);
    waiters_drain(g->waiters);
    gather_drain(g->gather);
    wait_for_answers(g, clock_mono_ms() + DRAIN_MS);
    http_server_refuse(g->http);
    wait_for_answers(g, clock_mono_ms() + LAST_MS);
    if (publisher_flush(g->publisher, 1000, &e) < 0)
        log_warn("gateway.drain", "text=\"%s\"", e.text);
    if (touched_flush(g->touched, g->db, &e) < 0) log_warn("gateway.drain", "text=\"%s\"", e.text);
    int left = http_server_waiting(g->http);
    if (!left) return 0;
    return err_set(e_out, ERR_RETRY, "%d requests could not be answered before the end", left);
}

void gateway_close(struct gateway *g)
{
    http_server_free(g->http);
    publisher_free(g->publisher);
    waiters_free(g->waiters);
    gather_free(g->gather);
    store_free(g->store);
    db_free(g->db);
    touched_free(g->touched);
    share_free(g->share);
    flight_free(g->flight);
    quota_free(g->quota);
    accounts_free(g->accounts);
    cache_free(g->samplers);
    cache_free(g->runs);
    memset(g, 0, sizeof *g);
}

/* guard.c - see guard.h. */
#include "guard.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"

#define TICK_MS      100
#define ANSWER_MS    3000
#define RETENTION_MS ((int64_t)7 * 24 * 3600 * 1000) /* of the jobs topics */
#define NEAR_MS      ((int64_t)24 * 3600 * 1000)

/* What was said of one partition. */
struct watched {
    char topic[TOPIC_SIZE]; /* of its jobs */
    int partition;
    bool near, late;
};

struct guard {
    const struct settings *settings;
    struct catalog_box *catalogs;
    struct stats *stats;
    struct bus_consumer *consumer;
    struct db *db;
    struct catalog *catalog;
    struct watched *watched;
    int count;
};

struct guard *guard_create(const struct settings *s, struct catalog_box *catalogs,
                           struct stats *stats, struct err *e)
{
    struct guard *g = calloc(1, sizeof *g);
    if (!g) {
        err_set(e, ERR_RETRY, "no memory for the guard");
        return NULL;
    }
    g->settings = s;
    g->catalogs = catalogs;
    g->stats = stats;
    g->db = db_create(s->postgres, "tinworks-dispatcher-guard", e);
    if (g->db) g->consumer = bus_consumer_create(s->kafka_brokers, "tinworks-guard", e);
    if (g->consumer) return g;
    guard_free(g);
    return NULL;
}

void guard_free(struct guard *g)
{
    if (!g) return;
    bus_consumer_free(g->consumer);
    db_free(g->db);
    catalog_free(g->catalog);
    free(g->watched);
    free(g);
}

static struct watched *watched_of(struct guard *g, const char *topic, int partition, struct err *e)
{
    for (int i = 0; i < g->count; i++)
        if (g->watched[i].partition == partition && !strcmp(g->watched[i].topic, topic))
            return &g->watched[i];
    struct watched *grown = realloc(g->watched, (size_t)(g->count + 1) * sizeof *grown);
    if (!grown) {
        err_set(e, ERR_RETRY, "no memory for %d partitions", g->count + 1);
        return NULL;
    }
    g->watched = grown;
    struct watched *w = &grown[g->count++];
    *w = (struct watched){.partition = partition};
    snprintf(w->topic, sizeof w->topic, "%s", topic);
    return w;
}

/* Does offset lie before the first record that is younger than age_ms?  1, 0, -1. */
static int older(struct guard *g, const char *topic, int partition, int64_t offset, int64_t age_ms,
                 struct err *e)
{
    int64_t young;
    if (bus_offset_at(g->consumer, topic, partition, clock_wall_ms() - age_ms, &young, ANSWER_MS,
                      e) < 0)
        return -1;
    return offset < young;
}

static void say(bool *was, bool now, const char *event, const char *topic, int partition,
                int64_t offset)
{
    if (now && !*was)
        log_error(event, "topic=%s partition=%d offset=%lld", topic, partition, (long long)offset);
    if (!now && *was)
        log_info(event, "topic=%s partition=%d offset=%lld over=true", topic, partition,
                 (long long)offset);
    *was = now;
}

static int look_retention(struct guard *g, const struct catalog_shard *s, const char *topic,
                          struct watched *w, struct err *e)
{
    int near = older(g, topic, s->partition, s->resume_offset, RETENTION_MS - NEAR_MS, e);
    if (near < 0) return -1;
    say(&w->near, near, "dispatcher.retention", topic, s->partition, s->resume_offset);
    return 0;
}

static int look_billing(struct guard *g, const struct catalog_shard *s, struct watched *w,
                        struct err *e)
{
    char topic[TOPIC_SIZE], partition[16];
    struct db_result *row = NULL;
    if (topic_results(topic, g->settings->topic_prefix, s->model, s->stream, e) < 0) return -1;
    snprintf(partition, sizeof partition, "%d", s->partition);
    int n = db_queryf(g->db, &row, e,
                      "SELECT next_offset FROM ingest_cursors WHERE topic = $1"
                      " AND partition = $2::integer",
                      topic, partition, NULL);
    int64_t next = n > 0 ? db_int(row, 0, 0) : 0;
    db_result_free(row);
    if (n < 0) return -1;
    int late = older(g, topic, s->partition, next, g->settings->billing_late_s * 1000, e);
    if (late < 0) return -1;
    say(&w->late, late, "dispatcher.billing_late", topic, s->partition, next);
    return 0;
}

static int look(struct guard *g, struct err *e)
{
    int near = 0, late = 0;
    for (int i = 0; g->catalog && i < g->catalog->count && !stop_requested(); i++) {
        const struct catalog_shard *s = &g->catalog->shards[i];
        char topic[TOPIC_SIZE];
        if (topic_jobs(topic, g->settings->topic_prefix, s->model, s->stream, e) < 0) return -1;
        struct watched *w = watched_of(g, topic, s->partition, e);
        if (!w || look_retention(g, s, topic, w, e) < 0 || look_billing(g, s, w, e) < 0) return -1;
        near += w->near;
        late += w->late;
    }
    atomic_store(&g->stats->retention_near, near);
    atomic_store(&g->stats->billing_late, late);
    return 0;
}

int guard_run(struct guard *g, struct err *e)
{
    int64_t next_ms = 0;
    bool away = false;
    while (!stop_requested()) {
        clock_sleep_ms(TICK_MS);
        if (clock_mono_ms() < next_ms) continue;
        struct catalog *c = catalog_take(g->catalogs, g->catalog ? g->catalog->version : 0);
        if (c) {
            catalog_free(g->catalog);
            g->catalog = c;
        }
        int rc = look(g, e);
        if (rc < 0 && e->kind == ERR_BUG) return -1;
        if (rc < 0 && !away) log_warn("dispatcher.guard", "error=\"%s\"", e->text);
        away = rc < 0;
        err_clear(e);
        next_ms = clock_mono_ms() + g->settings->guard_ms;
    }
    return 0;
}

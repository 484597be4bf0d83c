/* cold.c - see cold.h. */
#include "api/cold.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bus/bus.h"
#include "db/db.h"
#include "wire/result.h"

#define STORE_TIMEOUT_MS 1000
#define DB_MS            5000
#define READ_MS          5000 /* for one pass over a partition */

struct cold {
    const struct gateway_conf *conf;
    struct store *store;
    struct bus_consumer *bus;
    struct db *db;
};

struct cold *cold_create(const struct gateway_conf *conf, struct err *e)
{
    struct cold *c = calloc(1, sizeof *c);
    if (!c) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    c->conf = conf;
    c->store = store_create(conf->redis, conf->redis_prefix, STORE_TIMEOUT_MS, e);
    if (c->store) c->bus = bus_finder_create(conf->kafka_brokers, "tinworks-gateway-cold", e);
    if (c->bus) c->db = db_create(conf->postgres, "tinworks-gateway", e);
    if (c->db) {
        db_set_patience(c->db, DB_MS);
        return c;
    }
    cold_free(c);
    return NULL;
}

void cold_free(struct cold *c)
{
    if (!c) return;
    store_free(c->store);
    bus_consumer_free(c->bus);
    db_free(c->db);
    free(c);
}

/* The rows of one look-up, in order of their places, and those of one partition that are wanted. */
struct pass {
    struct cold *cold;
    const struct cold_asker *asker;
    const struct db_result *rows;
    int row[COLD_IDS_MAX];
    int64_t offsets[COLD_IDS_MAX];
    int count, told;
    bool refill; /* Redis takes what we read */
};

/* The payload stays the result's. */
static struct future future_of(const struct result *r)
{
    struct future f = {.payload = r->payload, .size = r->size};
    snprintf(f.status, sizeof f.status, "%s", result_status_name(r->status));
    snprintf(f.content_type, sizeof f.content_type, "%s", content_type_name(r->content));
    return f;
}

static void put_back(struct pass *p, const char *id, const struct future *f)
{
    struct err e = {0};
    int ttl_s = (int)p->cold->conf->future_ttl_s;
    if (!p->refill || store_future_put(p->cold->store, id, f, ttl_s, &e) == 0) return;
    log_debug("gateway.redis", "text=\"%s\"", e.text);
    p->refill = false; /* each try may take its whole timeout */
}

static void on_record(void *arg, int i, const struct bus_message *m)
{
    struct pass *p = arg;
    struct err e = {0};
    const char *id = db_text(p->rows, p->row[i], 0);
    if (!m) {
        p->asker->found(p->asker->arg, id, NULL);
        p->told++;
        return;
    }
    enum job_kind kind = job_kind_of(db_text(p->rows, p->row[i], 5));
    struct result *r =
        result_decode(m->headers, m->header_count, m->value, m->size,
                      db_text(p->rows, p->row[i], 4),
                      job_kind_is_train(kind) ? STREAM_TRAIN : STREAM_SAMPLE, &e);
    if (r && strcmp(r->job_id, id) != 0)
        err_set(&e, ERR_BUG, "%s/%d at %" PRId64 " holds \"%s\", expected \"%s\"", m->topic,
                m->partition, m->offset, r->job_id, id);
    if (e.kind) {
        log_error("gateway.cold", "job=%s text=\"%s\"", id, e.text);
    } else {
        struct future f = future_of(r);
        put_back(p, id, &f);
        p->asker->found(p->asker->arg, id, &f);
        p->told++;
    }
    result_free(r);
}

/* The rows of the partition that begins at row `from`; returns the row behind them. */
static int gather(struct pass *p, int from, int n)
{
    int i = from;
    p->count = 0;
    for (; i < n && p->count < COLD_IDS_MAX; i++) {
        if (strcmp(db_text(p->rows, i, 1), db_text(p->rows, from, 1)) != 0 ||
            db_int(p->rows, i, 2) != db_int(p->rows, from, 2))
            break;
        if (!p->asker->wanted(p->asker->arg, db_text(p->rows, i, 0))) continue;
        p->row[p->count] = i;
        p->offsets[p->count++] = db_int(p->rows, i, 3);
    }
    return i;
}

int cold_look_up(struct cold *c, const char *ids, const struct cold_asker *asker, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT job_id, topic, partition, log_offset, model, kind FROM job_outcomes"
                      " WHERE job_id = ANY ($1::text[]) ORDER BY topic, partition, log_offset",
                      ids, NULL);
    if (n < 0) return -1;
    struct pass p = {.cold = c, .asker = asker, .rows = rows, .refill = true};
    int rc = 0;
    for (int from = 0, next; from < n; from = next) { /* one that is unreadable holds up no other */
        struct err why = {0};
        next = gather(&p, from, n);
        if (!p.count || bus_read_each(c->bus, db_text(rows, from, 1), (int)db_int(rows, from, 2),
                                      p.offsets, p.count, READ_MS, on_record, &p, &why) == 0)
            continue;
        if (rc == 0) *e = why;
        rc = -1;
    }
    db_result_free(rows);
    return rc < 0 ? -1 : p.told;
}

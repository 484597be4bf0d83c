/* resolver.c - see resolver.h.
 *
 * One loop: poll, settle what came partition by partition, poll again.  A partition is "seated"
 * when its consumer stands where the cursor in Redis (or, without one, billing's) says.  Whatever
 * goes wrong with Redis leaves the partition unseated, and seating it again is the whole recovery:
 * records are only ever dropped from memory, never from the log. */
#include "resolver.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"
#include "store/store.h"
#include "wire/result.h"

#define POLL_MAX         128
#define POLL_WAIT_MS     200
#define SETTLE_BYTES_MAX (4u << 20) /* of payload in one script; a single larger one goes alone */
#define STORE_TIMEOUT_MS 2000
#define BACKOFF_MIN_MS   20
#define BACKOFF_MAX_MS   1000

struct part {
    char topic[TOPIC_SIZE], model[128];
    enum stream stream;
    int partition;
    bool seated;
    bool create; /* Redis has no cursor for it */
    struct cursor cursor;
    struct reading reading;
};

struct resolver {
    const struct settings *settings;
    struct catalog_box *catalogs;
    struct stats *stats;
    struct bus_consumer *consumer;
    struct store *store;
    struct db *db;
    int64_t catalog_seen;
    struct part *parts;
    int part_count;
    int64_t backoff_ms, retry_at_ms;
    bool waiting;   /* said so already; over when a script was done */
    bool all_seated;
    struct bus_message *messages[POLL_MAX];
};

struct resolver *resolver_create(const struct settings *s, struct catalog_box *catalogs,
                                 struct stats *stats, struct err *e)
{
    struct resolver *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(e, ERR_RETRY, "no memory for the resolver");
        return NULL;
    }
    r->settings = s;
    r->catalogs = catalogs;
    r->stats = stats;
    r->store = store_create(s->redis, s->redis_prefix, STORE_TIMEOUT_MS, e);
    if (r->store) r->db = db_create(s->postgres, "tinworks-dispatcher-resolver", e);
    if (r->db) r->consumer = bus_consumer_create(s->kafka_brokers, "tinworks-resolver", e);
    if (!r->consumer) {
        resolver_free(r);
        return NULL;
    }
    return r;
}

void resolver_free(struct resolver *r)
{
    if (!r) return;
    bus_consumer_free(r->consumer);
    db_free(r->db);
    store_free(r->store);
    free(r->parts);
    free(r);
}

/* ---------------------------------------------------------------- seats */

static struct part *part_find(struct resolver *r, const char *topic, int partition)
{
    for (int i = 0; i < r->part_count; i++)
        if (r->parts[i].partition == partition && !strcmp(r->parts[i].topic, topic))
            return &r->parts[i];
    return NULL;
}

static int part_add(struct resolver *r, const struct catalog_shard *s, struct err *e)
{
    char topic[TOPIC_SIZE];
    if (topic_results(topic, r->settings->topic_prefix, s->model, s->stream, e) < 0) return -1;
    if (part_find(r, topic, s->partition)) return 0;
    struct part *grown = realloc(r->parts, (size_t)(r->part_count + 1) * sizeof *grown);
    if (!grown) return err_set(e, ERR_RETRY, "no memory for %d partitions", r->part_count + 1);
    r->parts = grown;
    struct part *p = &r->parts[r->part_count++];
    *p = (struct part){.partition = s->partition, .stream = s->stream};
    snprintf(p->topic, sizeof p->topic, "%s", topic);
    snprintf(p->model, sizeof p->model, "%s", s->model);
    atomic_store(&r->stats->partitions, r->part_count);
    return 0;
}

static int adopt_catalog(struct resolver *r, struct err *e)
{
    struct catalog *c = catalog_take(r->catalogs, r->catalog_seen);
    if (!c) return 0;
    int rc = 0;
    for (int i = 0; i < c->count && rc == 0; i++)
        rc = part_add(r, &c->shards[i], e);
    r->catalog_seen = c->version;
    catalog_free(c);
    return rc;
}

static int billing_cursor(struct resolver *r, const struct part *p, struct cursor *out,
                          struct err *e)
{
    char partition[16];
    struct db_result *rows = NULL;
    snprintf(partition, sizeof partition, "%d", p->partition);
    int count = db_queryf(r->db, &rows, e,
                          "SELECT next_offset, max_epoch FROM ingest_cursors"
                          " WHERE topic = $1 AND partition = $2::integer",
                          p->topic, partition, NULL);
    if (count < 0) return -1;
    *out = (struct cursor){0};
    if (count) *out = (struct cursor){db_int(rows, 0, 0), db_int(rows, 0, 1)};
    db_result_free(rows);
    return 0;
}

/* Puts the consumer where the cursor is.  -1 with ERR_RETRY: Redis, Postgres or Kafka was not
 * there. */
static int seat(struct resolver *r, struct part *p, struct err *e)
{
    int found = store_cursor_get(r->store, p->topic, p->partition, &p->cursor, e);
    if (found < 0) return -1;
    p->create = !found;
    if (!found) {
        if (billing_cursor(r, p, &p->cursor, e) < 0) return -1;
        atomic_fetch_add(&r->stats->rebuilds, 1);
        log_info("resolver.rebuild", "topic=%s partition=%d offset=%lld epoch=%lld", p->topic,
                 p->partition, (long long)p->cursor.offset, (long long)p->cursor.epoch);
    }
    p->reading = (struct reading){.max_epoch = mutation("start_epoch") ? 0 : p->cursor.epoch};
    if (bus_assign(r->consumer, p->topic, p->partition, p->cursor.offset, e) < 0) return -1;
    p->seated = true;
    return 0;
}

/* What is not ready is tried again later; only what cannot get better stops us. */
static int put_off(struct resolver *r, struct err *e)
{
    if (e->kind == ERR_LOST || e->kind == ERR_BUG) return -1;
    atomic_fetch_add(&r->stats->retries, 1);
    if (!r->waiting) log_warn("resolver.waits", "error=\"%s\"", e->text);
    r->waiting = true;
    r->backoff_ms = r->backoff_ms ? 2 * r->backoff_ms : BACKOFF_MIN_MS;
    if (r->backoff_ms > BACKOFF_MAX_MS) r->backoff_ms = BACKOFF_MAX_MS;
    r->retry_at_ms = clock_mono_ms() + r->backoff_ms;
    err_clear(e);
    return 0;
}

/* A script was done.  That a cursor could be read says little: a Redis that is full or read-only
 * answers that too. */
static void went_well(struct resolver *r)
{
    if (r->waiting) log_info("resolver.resumes", "partitions=%d", r->part_count);
    r->waiting = false;
    r->backoff_ms = 0;
}

static int seat_all(struct resolver *r, struct err *e)
{
    if (r->backoff_ms && clock_mono_ms() < r->retry_at_ms) return 0;
    r->all_seated = false;
    for (int i = 0; i < r->part_count; i++)
        if (!r->parts[i].seated && seat(r, &r->parts[i], e) < 0) return put_off(r, e);
    r->all_seated = true;
    return 0;
}

static int unseat(struct resolver *r, struct part *p, struct err *e)
{
    if (!p->seated) return 0;
    p->seated = r->all_seated = false;
    return bus_unassign(r->consumer, p->topic, p->partition, e);
}

/* ---------------------------------------------------------------- settling */

struct batch_of_futures {
    struct settled settled[POLL_MAX];
    struct result *results[POLL_MAX]; /* what settled borrows from */
    int count;
    size_t bytes;
    struct cursor to;
};

static void futures_clear(struct batch_of_futures *f)
{
    for (int i = 0; i < f->count; i++)
        result_free(f->results[i]);
    f->count = 0;
    f->bytes = 0;
}

/* Adds what the record says, if anything, and moves the cursor past it.  -1: no memory. */
static int futures_add(struct resolver *r, struct part *p, const struct bus_message *m,
                       struct batch_of_futures *f, struct err *e)
{
    struct result *result = result_decode(m->headers, m->header_count, m->value, m->size,
                                          p->model, p->stream, e);
    if (!result && e->kind != ERR_USER) return -1;
    f->to.offset = m->offset + 1;
    if (!result) {
        atomic_fetch_add(&r->stats->unreadable, 1);
        log_warn("resolver.unreadable", "topic=%s partition=%d offset=%lld error=\"%s\"", m->topic,
                 m->partition, (long long)m->offset, e->text);
        err_clear(e);
        return 0;
    }
    bool counts = reading_accepts(&p->reading, result);
    f->to.epoch = p->reading.max_epoch;
    if (!counts) atomic_fetch_add(&r->stats->fenced, 1);
    if (!counts || result->barrier) {
        result_free(result);
        return 0;
    }
    struct settled *s = &f->settled[f->count];
    *s = (struct settled){.id = result->job_id,
                          .future = {.payload = result->payload, .size = result->size}};
    snprintf(s->future.status, sizeof s->future.status, "%s", result_status_name(result->status));
    snprintf(s->future.content_type, sizeof s->future.content_type, "%s",
             content_type_name(result->content));
    if (!job_kind_is_train(result->kind)) {
        s->group = result->parent; /* a sampling session is polled as a whole */
        s->offset = m->offset;
    }
    f->bytes += result->size;
    f->results[f->count++] = result;
    return 0;
}

/* Somebody else moved the cursor, or Redis lost it.  Another resolver that did what we have in hand
 * is simply followed; anything else means to go where the cursor is now. */
static int follow(struct resolver *r, struct part *p, int64_t in_hand, struct err *e)
{
    struct cursor now;
    atomic_fetch_add(&r->stats->conflicts, 1);
    int found = store_cursor_get(r->store, p->topic, p->partition, &now, e);
    if (found < 0) return -1;
    log_debug("resolver.conflict", "topic=%s partition=%d ours=%lld now=%lld", p->topic,
              p->partition, (long long)p->cursor.offset, found ? (long long)now.offset : -1);
    if (!found || now.offset < in_hand) return unseat(r, p, e);
    p->cursor = now;
    p->create = false;
    p->reading.max_epoch = now.epoch;
    return 0;
}

/* One script.  -1: Redis did not do it, or we do not know. */
static int settle(struct resolver *r, struct part *p, struct batch_of_futures *f, struct err *e)
{
    if (failpoint("rs.before_script", p->topic, e) < 0) return -1;
    int done = store_settle(r->store, p->topic, p->partition, &p->cursor, p->create, &f->to,
                            f->settled, f->count, (int)r->settings->future_ttl_s, e);
    if (done < 0) return -1;
    failpoint_pass("rs.after_script", p->topic);
    went_well(r);
    if (!done) {
        int rc = follow(r, p, f->to.offset, e);
        f->to = p->cursor;
        return rc;
    }
    p->cursor = f->to;
    p->create = false;
    atomic_fetch_add(&r->stats->settled, f->count);
    return 0;
}

/* The records of one partition, in order.  When a script fails the partition is read again from its
 * cursor. */
static int settle_part(struct resolver *r, struct part *p, int from, int count, struct err *e)
{
    struct batch_of_futures f = {.to = p->cursor};
    int rc = 0;
    for (int i = from; i < count && rc == 0 && p->seated; i++) {
        const struct bus_message *m = r->messages[i];
        if (m->partition != p->partition || strcmp(m->topic, p->topic)) continue;
        if (m->offset < f.to.offset) continue; /* left over from before it was seated anew */
        if (f.count && f.bytes + m->size > SETTLE_BYTES_MAX) {
            rc = settle(r, p, &f, e);
            futures_clear(&f);
            if (rc < 0 || !p->seated) break;
        }
        rc = futures_add(r, p, m, &f, e);
    }
    if (rc == 0 && p->seated && f.to.offset != p->cursor.offset) rc = settle(r, p, &f, e);
    futures_clear(&f);
    if (rc == 0) return 0;
    struct err worse = {0};
    if (unseat(r, p, &worse) < 0) *e = worse;
    return put_off(r, e);
}

static int settle_polled(struct resolver *r, int count, struct err *e)
{
    int rc = 0;
    for (int i = 0; i < count; i++) {
        struct bus_message *m = r->messages[i];
        /* The first record of each partition takes the others along; they are below its cursor
         * then. */
        struct part *p = part_find(r, m->topic, m->partition);
        if (rc == 0 && p && p->seated && m->offset >= p->cursor.offset)
            rc = settle_part(r, p, i, count, e);
    }
    for (int i = 0; i < count; i++)
        bus_message_free(r->messages[i]);
    return rc;
}

int resolver_run(struct resolver *r, struct err *e)
{
    while (!stop_requested()) {
        if (adopt_catalog(r, e) < 0) return -1;
        if (seat_all(r, e) < 0) return -1;
        int wait_ms = r->all_seated ? POLL_WAIT_MS : BACKOFF_MIN_MS;
        int count = bus_poll(r->consumer, r->messages, POLL_MAX, wait_ms, e);
        if (count < 0 && put_off(r, e) < 0) return -1;
        if (count > 0 && settle_polled(r, count, e) < 0) return -1;
    }
    return 0;
}

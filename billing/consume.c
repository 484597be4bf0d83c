/* consume.c - `run`: every model's results, folded as they come.
 *
 * The loop reads what is there, folds it in one transaction and goes on.  Whatever goes wrong in a
 * way that may pass (Kafka or Postgres away, a COMMIT whose answer was lost), the answer is the
 * same: forget what was read and begin again at the cursors that the database has.  Several may
 * run; a partition's cursor row decides whose batch counts. */
#include "commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"
#include "fold.h"
#include "outcome.h"
#include "parts.h"
#include "seal/seal.h"

#define POLL_MAX         1024
#define IDLE_WAIT_MS     200  /* for the first record of a batch */
#define LINGER_MS        5    /* for more of it */
#define MODELS_EVERY_MS  2000 /* new models are found this often */
#define SUMMARY_EVERY_MS 30000
#define RETRY_MIN_MS     200
#define RETRY_MAX_MS     5000
#define RETRIES_QUIET    5 /* more in a row are an alarm */
#define ACK_WAIT_MS      25000
#define TOPIC_WAIT_MS    20000
#define DLQ_QUEUE_BYTES  (64u << 20)
#define DLQ_RETENTION_MS (30LL * 24 * 3600 * 1000)

struct consumer {
    const struct settings *settings;
    struct db *db;
    struct bus_consumer *in;
    struct bus_producer *dlq; /* made when the first bad record comes */
    char dlq_topic[TOPIC_SIZE];
    struct parts parts;
    struct batch batch;
    bool reset; /* what was read is not to be trusted */
    bool ready_said;
    int64_t models_due, summary_due;
    int64_t folded, copies, fenced, bad; /* since the last summary */
};

/* ---------------------------------------------------------------- where to read */

static int assign_fresh(struct consumer *c, struct err *e)
{
    for (struct part *p = c->parts.items; p < c->parts.items + c->parts.count; p++) {
        if (!p->fresh) continue;
        if (bus_assign(c->in, p->topic, p->partition, p->folded.next, e) < 0) return -1;
        p->fresh = false;
        log_debug("billing.assigned", "topic=%s partition=%d offset=%" PRId64 " epoch=%" PRId64,
                  p->topic, p->partition, p->folded.next, p->folded.epoch);
    }
    return 0;
}

/* With an empty batch only: indexes into parts change. */
static int look_for_models(struct consumer *c, struct err *e)
{
    int before = c->parts.count;
    if (clock_mono_ms() < c->models_due) return 0;
    if (parts_refresh(&c->parts, c->db, c->settings->topic_prefix, true, e) < 0) {
        if (e->kind == ERR_BUG) err_prefix(e, "is the database migrated?");
        return -1;
    }
    c->models_due = clock_mono_ms() + MODELS_EVERY_MS;
    if (c->parts.count != before) log_info("billing.partitions", "count=%d", c->parts.count);
    if (!c->ready_said) log_info("billing.ready", "partitions=%d", c->parts.count);
    c->ready_said = true;
    return 0;
}

/* ---------------------------------------------------------------- reading */

static int open_dlq(struct consumer *c, struct err *e)
{
    if (c->dlq) return 0;
    if (topic_dlq(c->dlq_topic, c->settings->topic_prefix, e) < 0) return -1;
    struct bus_topic topic = {c->dlq_topic, 1, DLQ_RETENTION_MS};
    if (bus_topics_ensure(c->settings->kafka_brokers, &topic, 1,
                          (int)c->settings->kafka_replication, TOPIC_WAIT_MS, e) < 0)
        return -1;
    c->dlq =
        bus_producer_create(c->settings->kafka_brokers,
                            &(struct bus_producer_conf){.client_id = "tinworks-billing",
                                                        .queue_bytes_max = DLQ_QUEUE_BYTES},
                            e);
    return c->dlq ? 0 : -1;
}

/* Keeps a record that is no result, with the place it was found and why. */
static int keep_bad(struct consumer *c, const struct bus_message *m, const struct err *why,
                    struct err *e)
{
    struct header headers[BUS_HEADERS_MAX];
    char partition[16], offset[24];
    int n = 0;
    if (open_dlq(c, e) < 0) return -1;
    for (; n < m->header_count && n < BUS_HEADERS_MAX - 4; n++)
        headers[n] = m->headers[n];
    snprintf(partition, sizeof partition, "%d", m->partition);
    snprintf(offset, sizeof offset, "%" PRId64, m->offset);
    headers[n++] = (struct header){"tw_topic", m->topic};
    headers[n++] = (struct header){"tw_partition", partition};
    headers[n++] = (struct header){"tw_offset", offset};
    headers[n++] = (struct header){"tw_reason", why->text};
    struct bus_record record = {.topic = c->dlq_topic,
                                .key = m->key,
                                .headers = headers,
                                .header_count = n,
                                .value = m->value,
                                .size = m->size};
    if (bus_produce_wait(c->dlq, &record, ACK_WAIT_MS, e) >= 0) return 0;
    if (e->kind == ERR_LOST) { /* a dead producer is made anew */
        bus_producer_free(c->dlq);
        c->dlq = NULL;
        e->kind = ERR_RETRY;
    }
    return -1;
}

static int take(struct consumer *c, const struct bus_message *m, struct err *e)
{
    struct err why = {0};
    struct part *p = parts_find(&c->parts, m->topic, m->partition);
    if (!p || m->offset < p->next) return 0; /* on its way when the partition was assigned again */
    struct outcome *out = &c->batch.outcomes[c->batch.count];
    switch (outcome_read(m, p->model, p->stream, &p->reading, out, &why)) {
    case OUTCOME_READ:
        out->part = (int)(p - c->parts.items);
        c->batch.count++;
        break;
    case OUTCOME_BARRIER:
        break;
    case OUTCOME_FENCED:
        c->fenced++;
        break;
    case OUTCOME_BAD:
        if (why.kind != ERR_USER) { /* no memory, say: not the record's fault */
            *e = why;
            return -1;
        }
        if (keep_bad(c, m, &why, e) < 0) return -1;
        log_error("billing.bad_record", "topic=%s partition=%d offset=%" PRId64 " reason=\"%s\"",
                  m->topic, m->partition, m->offset, why.text);
        c->bad++;
        break;
    }
    p->next = m->offset + 1;
    return 0;
}

/* Fills the batch with what is there now. */
static int collect(struct consumer *c, struct err *e)
{
    struct bus_message *got[POLL_MAX];
    int wait_ms = IDLE_WAIT_MS, rc = 0;
    while (rc == 0 && c->batch.count < c->batch.max) {
        int room = c->batch.max - c->batch.count;
        int n = bus_poll(c->in, got, room < POLL_MAX ? room : POLL_MAX, wait_ms, e);
        if (n < 0) return -1;
        if (!n) break;
        for (int i = 0; i < n; i++) {
            if (rc == 0 && take(c, got[i], e) < 0) rc = -1;
            bus_message_free(got[i]);
        }
        wait_ms = LINGER_MS;
        if (stop_requested()) break;
    }
    return rc;
}

/* ---------------------------------------------------------------- folding */

static bool has_read(const struct consumer *c)
{
    for (const struct part *p = c->parts.items; p < c->parts.items + c->parts.count; p++)
        if (p->next != p->folded.next) return true;
    return false;
}

static void say_summary(struct consumer *c, bool now)
{
    if (!now && clock_mono_ms() < c->summary_due) return;
    c->summary_due = clock_mono_ms() + SUMMARY_EVERY_MS;
    if (!c->folded && !c->copies && !c->fenced && !c->bad) return;
    log_info("billing.folded",
             "outcomes=%" PRId64 " copies=%" PRId64 " fenced=%" PRId64 " bad=%" PRId64, c->folded,
             c->copies, c->fenced, c->bad);
    c->folded = c->copies = c->fenced = c->bad = 0;
}

static int fold_batch(struct consumer *c, struct err *e)
{
    if (!has_read(c)) return 0;
    if (fold(c->db, &c->parts, &c->batch, e) < 0) return -1;
    if (c->batch.stale) log_info("billing.overtaken", "partitions=%d", c->batch.stale);
    c->folded += c->batch.added;
    c->copies += c->batch.copies;
    c->batch.count = 0;
    return 0;
}

static int reset_if_needed(struct consumer *c, struct err *e)
{
    if (!c->reset) return 0;
    if (parts_reset(&c->parts, c->db, e) < 0) return -1;
    c->batch.count = 0;
    c->reset = false;
    return 0;
}

/* One turn: at its end the batch is empty and committed, or everything is to be read again. */
static int turn(struct consumer *c, struct err *e)
{
    if (reset_if_needed(c, e) < 0 || look_for_models(c, e) < 0 || assign_fresh(c, e) < 0 ||
        collect(c, e) < 0 || fold_batch(c, e) < 0) {
        c->reset = true;
        return -1;
    }
    say_summary(c, false);
    return 0;
}

/* Longer each time, and never twice the same: two that met once would meet again. */
static int64_t pause_after(int failures)
{
    uint16_t dice;
    int64_t most = RETRY_MIN_MS;
    for (int i = 1; i < failures && most < RETRY_MAX_MS; i++)
        most *= 2;
    if (most > RETRY_MAX_MS) most = RETRY_MAX_MS;
    seal_random((uint8_t *)&dice, sizeof dice);
    return most / 2 + most / 2 * dice / UINT16_MAX;
}

/* It never gives up, because there is nobody else to do it; it says so when it takes long. */
static void retry(int failures, struct err *e)
{
    int64_t pause_ms = pause_after(failures);
    log_warn("billing.retry", "failures=%d pause_ms=%" PRId64 " error=\"%s\"", failures, pause_ms,
             e->text);
    if (failures == RETRIES_QUIET + 1)
        log_error("billing.stuck", "failures=%d error=\"%s\"", failures, e->text);
    err_clear(e);
    for (int64_t left = pause_ms; left > 0 && !stop_requested(); left -= 50)
        clock_sleep_ms(left < 50 ? (int)left : 50);
}

static int loop(struct consumer *c, struct err *e)
{
    int failures = 0;
    while (!stop_requested()) {
        if (turn(c, e) == 0) {
            if (failures > RETRIES_QUIET) log_info("billing.goes_on", "failures=%d", failures);
            failures = 0;
            continue;
        }
        if (e->kind != ERR_RETRY) return -1;
        retry(++failures, e);
    }
    return 0;
}

int consume_command(const struct command_input *in, struct err *e)
{
    struct consumer c = {.settings = in->settings, .db = in->db};
    int rc = -1;
    c.batch.max = (int)in->settings->batch_max;
    c.batch.outcomes = calloc((size_t)c.batch.max, sizeof *c.batch.outcomes);
    if (!c.batch.outcomes) {
        err_set(e, ERR_RETRY, "out of memory for a batch of %d", c.batch.max);
        goto out;
    }
    c.in = bus_consumer_create(in->settings->kafka_brokers, "tinworks-billing", e);
    if (!c.in) goto out;
    c.summary_due = clock_mono_ms() + SUMMARY_EVERY_MS;
    stop_on_signals(); /* end the transaction in hand, then leave */
    rc = loop(&c, e);
    say_summary(&c, true);
    if (rc == 0) log_info("billing.stopped", "partitions=%d", c.parts.count);
out:
    bus_producer_free(c.dlq);
    bus_consumer_free(c.in);
    parts_clear(&c.parts);
    free(c.batch.outcomes);
    return rc;
}

/* planner.c - see planner.h.
 *
 * A shard is read in two phases: first its results up to where they ended when we began, then its
 * jobs and further results, so that what is over is known before what was asked.  When a slot has
 * too much waiting, its shard's jobs are left in the log until there is room. */
#include "planner.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agenda.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"
#include "expiry.h"
#include "store/store.h"
#include "wire/result.h"

#define POLL_MAX        256
#define POLL_WAIT_MS    100
#define TIDY_MS         1000
#define OFFSETS_WAIT_MS 2000
#define ADOPT_MS        3000 /* spent on shards that do not answer, per catalog */
#define STORE_WAIT_MS   200
#define FLUSH_MS        3000
#define RUN_IDLE_MS     (3600 * 1000)
#define QUEUE_BYTES_MAX (64u << 20)

enum shard_state {
    SHARD_IDLE,    /* nobody owns it, or Kafka was not there: tried again */
    SHARD_RESULTS, /* reading results up to results_end */
    SHARD_JOBS,    /* reading both */
    SHARD_PAUSED,  /* reading results; jobs wait in the log */
};

struct shard {
    char model[128];
    enum stream stream;
    int partition;
    char jobs_topic[TOPIC_SIZE], results_topic[TOPIC_SIZE];
    int64_t epoch, resume_offset, scan_offset, scan_epoch;
    struct slot *slot;
    enum shard_state state;
    int64_t jobs_next, results_next, results_end;
    struct reading reading;
};

struct slot {
    char model[128];
    char topic[TOPIC_SIZE];
    int number;
    bool held; /* a worker has its lease */
    struct agenda *agenda;
};

struct planner {
    const struct settings *settings;
    struct catalog_box *catalogs;
    struct stats *stats;
    struct bus_consumer *consumer;
    struct bus_producer *producer;
    struct expiry *expiry;
    struct store *store; /* for those who wait: queue:{model} */
    int64_t catalog_seen, tidied_ms;
    bool waiting; /* said so already */
    struct shard *shards;
    int shard_count;
    struct slot **slots;
    int slot_count;
    struct bus_message *messages[POLL_MAX];
};

struct planner *planner_create(const struct settings *s, struct catalog_box *catalogs,
                               struct stats *stats, struct err *e)
{
    struct planner *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "no memory for the planner");
        return NULL;
    }
    p->settings = s;
    p->catalogs = catalogs;
    p->stats = stats;
    p->consumer = bus_consumer_create(s->kafka_brokers, "tinworks-planner", e);
    if (p->consumer)
        p->producer = bus_producer_create(
            s->kafka_brokers,
            &(struct bus_producer_conf){.client_id = "tinworks-planner",
                                        .queue_bytes_max = QUEUE_BYTES_MAX},
            e);
    if (p->producer) p->expiry = expiry_create(s, p->producer, stats, e);
    if (p->expiry) p->store = store_create(s->redis, s->redis_prefix, STORE_WAIT_MS, e);
    if (!p->store) {
        planner_free(p);
        return NULL;
    }
    return p;
}

void planner_free(struct planner *p)
{
    if (!p) return;
    store_free(p->store);
    expiry_free(p->expiry);
    bus_producer_free(p->producer);
    bus_consumer_free(p->consumer);
    for (int i = 0; i < p->slot_count; i++) {
        agenda_free(p->slots[i]->agenda);
        free(p->slots[i]);
    }
    free(p->slots);
    free(p->shards);
    free(p);
}

/* ---------------------------------------------------------------- slots and shards */

static struct slot *slot_get(struct planner *p, const char *model, int number, struct err *e)
{
    for (int i = 0; i < p->slot_count; i++)
        if (p->slots[i]->number == number && !strcmp(p->slots[i]->model, model)) return p->slots[i];
    struct slot **grown = realloc(p->slots, (size_t)(p->slot_count + 1) * sizeof(struct slot *));
    if (grown) p->slots = grown;
    struct slot *slot = calloc(1, sizeof *slot);
    if (!grown || !slot) {
        free(slot);
        err_set(e, ERR_RETRY, "no memory for slot %d of \"%s\"", number, model);
        return NULL;
    }
    const struct settings *s = p->settings;
    snprintf(slot->model, sizeof slot->model, "%s", model);
    slot->number = number;
    slot->agenda = agenda_create(&(struct agenda_conf){.jobs_max = (int)s->jobs_max,
                                                       .tokens_max = s->tokens_max,
                                                       .wait_ms = (int)s->wait_ms,
                                                       .queue_max = (int)s->queue_max,
                                                       .plans_max = (int)s->plans_max,
                                                       .stale_ms = s->stale_ms,
                                                       .forget_ms = s->forget_ms,
                                                       .idle_ms = RUN_IDLE_MS},
                                 e);
    if (!slot->agenda || topic_batches(slot->topic, s->topic_prefix, model, e) < 0) {
        agenda_free(slot->agenda);
        free(slot);
        return NULL;
    }
    p->slots[p->slot_count++] = slot;
    return slot;
}

static struct shard *shard_find(struct planner *p, const char *topic, int partition, bool *is_jobs)
{
    for (int i = 0; i < p->shard_count; i++) {
        struct shard *s = &p->shards[i];
        if (s->partition != partition) continue;
        *is_jobs = !strcmp(s->jobs_topic, topic);
        if (*is_jobs || !strcmp(s->results_topic, topic)) return s;
    }
    return NULL;
}

static struct shard *shard_get(struct planner *p, const struct catalog_shard *row, struct err *e)
{
    for (int i = 0; i < p->shard_count; i++) {
        struct shard *s = &p->shards[i];
        if (s->partition == row->partition && s->stream == row->stream &&
            !strcmp(s->model, row->model))
            return s;
    }
    struct shard *grown = realloc(p->shards, (size_t)(p->shard_count + 1) * sizeof *grown);
    if (!grown) {
        err_set(e, ERR_RETRY, "no memory for %d shards", p->shard_count + 1);
        return NULL;
    }
    p->shards = grown;
    struct shard *s = &p->shards[p->shard_count];
    *s = (struct shard){.stream = row->stream, .partition = row->partition};
    snprintf(s->model, sizeof s->model, "%s", row->model);
    const char *prefix = p->settings->topic_prefix;
    if (topic_jobs(s->jobs_topic, prefix, row->model, row->stream, e) < 0 ||
        topic_results(s->results_topic, prefix, row->model, row->stream, e) < 0)
        return NULL;
    p->shard_count++;
    return s;
}

static int shard_leave(struct planner *p, struct shard *s, struct err *e)
{
    if (s->slot) agenda_forget_shard(s->slot->agenda, s->stream, s->partition);
    s->slot = NULL;
    if (s->state == SHARD_IDLE) return 0;
    bool both = s->state == SHARD_JOBS;
    s->state = SHARD_IDLE;
    if (bus_unassign(p->consumer, s->results_topic, s->partition, e) < 0) return -1;
    return both ? bus_unassign(p->consumer, s->jobs_topic, s->partition, e) : 0;
}

/* What retention has taken away cannot be planned any more; the worker will say what that means. */
static int64_t at_least(int64_t offset, int64_t first, const char *topic, int partition)
{
    if (offset >= first) return offset;
    log_warn("planner.skips", "topic=%s partition=%d from=%lld to=%lld", topic, partition,
             (long long)offset, (long long)first);
    return first;
}

static int begin_jobs(struct planner *p, struct shard *s, struct err *e)
{
    if (bus_assign(p->consumer, s->jobs_topic, s->partition, s->jobs_next, e) < 0) return -1;
    s->state = SHARD_JOBS;
    return 0;
}

static int begin_results(struct planner *p, struct shard *s, struct err *e)
{
    int64_t first, next;
    if (bus_offsets(p->consumer, s->results_topic, s->partition, &first, &s->results_end,
                    OFFSETS_WAIT_MS, e) < 0)
        return -1;
    s->results_next = at_least(s->scan_offset, first, s->results_topic, s->partition);
    if (bus_offsets(p->consumer, s->jobs_topic, s->partition, &first, &next, OFFSETS_WAIT_MS, e) <
        0)
        return -1;
    s->jobs_next = at_least(s->resume_offset, first, s->jobs_topic, s->partition);
    s->reading = (struct reading){.max_epoch = s->scan_epoch};
    if (bus_assign(p->consumer, s->results_topic, s->partition, s->results_next, e) < 0) return -1;
    s->state = SHARD_RESULTS;
    return s->results_next < s->results_end ? 0 : begin_jobs(p, s, e);
}

static int shard_adopt(struct planner *p, const struct catalog_shard *row, struct err *e)
{
    struct shard *s = shard_get(p, row, e);
    if (!s) return -1;
    bool same = s->slot && s->slot->number == row->slot && s->epoch == row->epoch;
    if (same && s->state != SHARD_IDLE) return 0;
    if (shard_leave(p, s, e) < 0) return -1;
    if (row->slot < 0) return 0;
    s->slot = slot_get(p, row->model, row->slot, e);
    if (!s->slot) return -1;
    s->epoch = row->epoch;
    s->resume_offset = row->resume_offset;
    s->scan_offset = row->scan_offset;
    s->scan_epoch = row->scan_epoch;
    if (begin_results(p, s, e) == 0) return 0;
    struct err worse = {0};
    if (shard_leave(p, s, &worse) < 0) *e = worse;
    return -1;
}

/* A hint may come late: what is not there is tried again with the next catalog. */
static int put_off(struct planner *p, struct err *e)
{
    if (e->kind == ERR_BUG) return -1;
    if (!p->waiting) log_warn("planner.waits", "error=\"%s\"", e->text);
    p->waiting = true;
    err_clear(e);
    return 0;
}

static void mark_held(struct planner *p, const struct catalog *c)
{
    for (int i = 0; i < p->slot_count; i++) {
        struct slot *slot = p->slots[i];
        slot->held = false;
        for (int k = 0; k < c->count && !slot->held; k++)
            slot->held = c->shards[k].held && c->shards[k].slot == slot->number &&
                         !strcmp(c->shards[k].model, slot->model);
    }
}

static int adopt_catalog(struct planner *p, struct err *e)
{
    struct catalog *c = catalog_take(p->catalogs, p->catalog_seen);
    if (!c) return 0;
    int rc = 0;
    bool all = true;
    int64_t until_ms = clock_mono_ms() + ADOPT_MS;
    for (int i = 0; i < c->count && rc == 0 && !stop_requested(); i++) {
        /* Not always from the first, so that one that cannot be had does not keep the others
         * waiting. */
        const struct catalog_shard *row = &c->shards[(i + c->version) % c->count];
        if (shard_adopt(p, row, e) == 0) continue;
        all = false;
        rc = put_off(p, e);
        if (clock_mono_ms() > until_ms) break;
    }
    if (all) p->waiting = false;
    mark_held(p, c);
    p->catalog_seen = c->version;
    catalog_free(c);
    return rc;
}

/* ---------------------------------------------------------------- reading */

static int take_job(struct planner *p, struct shard *s, const struct bus_message *m, struct err *e)
{
    if (s->state != SHARD_JOBS || m->offset < s->jobs_next) return 0;
    struct job *job = job_decode(m->headers, m->header_count, m->value, m->size, s->stream, e);
    if (!job) {
        /* The worker moves what is unreadable to the dlq; here it is merely not planned. */
        if (e->kind != ERR_USER) return -1;
        err_clear(e);
        s->jobs_next = m->offset + 1;
        return 0;
    }
    job->partition = m->partition;
    job->offset = m->offset;
    bool full = agenda_known(s->slot->agenda) >= p->settings->queue_max;
    int added = full ? 0 : agenda_job(s->slot->agenda, s->stream, job, clock_mono_ms(), e);
    job_free(job);
    if (added < 0) return -1;
    if (full) {
        s->state = SHARD_PAUSED;
        log_info("planner.pause", "topic=%s partition=%d offset=%lld", s->jobs_topic, s->partition,
                 (long long)s->jobs_next);
        return bus_unassign(p->consumer, s->jobs_topic, s->partition, e);
    }
    s->jobs_next = m->offset + 1;
    atomic_fetch_add(&p->stats->jobs, 1);
    return 0;
}

static int take_result(struct planner *p, struct shard *s, const struct bus_message *m,
                       struct err *e)
{
    if (s->state == SHARD_IDLE || m->offset < s->results_next) return 0;
    struct result *r = result_decode(m->headers, m->header_count, m->value, m->size, s->model,
                                     s->stream, e);
    if (!r && e->kind != ERR_USER) return -1;
    err_clear(e);
    s->results_next = m->offset + 1;
    int rc = 0;
    if (r && reading_accepts(&s->reading, r) && !r->barrier) {
        rc = agenda_result(s->slot->agenda, s->stream, s->partition, r, clock_mono_ms(), e);
        atomic_fetch_add(&p->stats->results, 1);
    }
    result_free(r);
    if (rc == 0 && s->state == SHARD_RESULTS && s->results_next >= s->results_end)
        rc = begin_jobs(p, s, e);
    return rc;
}

static int take_message(struct planner *p, const struct bus_message *m, struct err *e)
{
    bool is_jobs;
    struct shard *s = shard_find(p, m->topic, m->partition, &is_jobs);
    if (!s) return 0;
    int rc = is_jobs ? take_job(p, s, m, e) : take_result(p, s, m, e);
    if (rc == 0) return 0;
    /* Out of memory, say: this shard starts over with the next catalog. */
    struct err worse = {0};
    if (shard_leave(p, s, &worse) < 0) *e = worse;
    return put_off(p, e);
}

/* An offset went out of range under us (retention): everything starts over, from the rows as they
 * are now. */
static int start_over(struct planner *p, struct err *e)
{
    log_warn("planner.starts_over", "error=\"%s\"", e->text);
    err_clear(e);
    for (int i = 0; i < p->shard_count; i++)
        if (shard_leave(p, &p->shards[i], e) < 0) return -1;
    return 0;
}

static int read_logs(struct planner *p, int wait_ms, struct err *e)
{
    int count = bus_poll(p->consumer, p->messages, POLL_MAX, wait_ms, e);
    if (count < 0) return e->kind == ERR_LOST ? start_over(p, e) : put_off(p, e);
    int rc = 0;
    for (int i = 0; i < count; i++) {
        if (rc == 0) rc = take_message(p, p->messages[i], e);
        bus_message_free(p->messages[i]);
    }
    return rc;
}

/* ---------------------------------------------------------------- planning */

static void on_acked(void *arg, int64_t offset, const struct err *e)
{
    (void)arg;
    if (offset < 0) log_warn("planner.plan_lost", "error=\"%s\"", e->text);
}

static bool several_runs(const struct batch *b)
{
    for (int i = 1; i < b->count; i++)
        if (strcmp(b->entries[i].run, b->entries[0].run)) return true;
    return false;
}

static int publish(struct planner *p, const struct slot *slot, const struct batch *b, struct err *e)
{
    size_t size;
    char *json = batch_encode(b, &size, e);
    if (!json) return -1;
    struct bus_record record = {
        .topic = slot->topic, .partition = slot->number, .value = json, .size = size};
    int rc = bus_produce(p->producer, &record, on_acked, NULL, e);
    free(json);
    if (rc < 0) return -1;
    atomic_fetch_add(&p->stats->plans, 1);
    atomic_fetch_add(&p->stats->planned_jobs, b->count);
    if (several_runs(b)) atomic_fetch_add(&p->stats->shared_plans, 1);
    log_debug("planner.plan", "slot=%d plan=%lld jobs=%d", slot->number, (long long)b->plan,
              b->count);
    return 0;
}

/* A plan that could not be sent is as good as one that was lost: it grows stale. */
static int plan_slots(struct planner *p, struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    for (int i = 0; i < p->slot_count; i++) {
        struct batch *b;
        int due;
        while ((due = agenda_next(p->slots[i]->agenda, now_ms, &b, e)) > 0) {
            int rc = publish(p, p->slots[i], b, e);
            batch_free(b);
            if (rc < 0 && e->kind == ERR_LOST) return -1; /* the producer is dead: leave */
            if (rc < 0 && put_off(p, e) < 0) return -1;
        }
        if (due < 0 && put_off(p, e) < 0) return -1;
    }
    return 0;
}

static int wait_ms_now(const struct planner *p)
{
    int64_t now_ms = clock_mono_ms(), wait = POLL_WAIT_MS;
    for (int i = 0; i < p->slot_count; i++) {
        int64_t next = agenda_next_ms(p->slots[i]->agenda);
        if (next >= 0 && next - now_ms < wait) wait = next > now_ms ? next - now_ms : 0;
    }
    return (int)wait;
}

/* ---------------------------------------------------------------- now and then */

static int resume_paused(struct planner *p, struct err *e)
{
    for (int i = 0; i < p->shard_count; i++) {
        struct shard *s = &p->shards[i];
        if (s->state != SHARD_PAUSED) continue;
        if (agenda_known(s->slot->agenda) > p->settings->queue_max / 2) continue;
        if (begin_jobs(p, s, e) < 0) return put_off(p, e);
    }
    return 0;
}

struct gap_context {
    struct planner *planner;
    struct slot *slot;
    int rc; /* -1 with e: the process must leave */
    struct err *e;
};

static void on_gap(void *arg, const char *run, int partition, bool overdue)
{
    struct gap_context *ctx = arg;
    char topic[TOPIC_SIZE];
    if (ctx->rc < 0) return;
    ctx->rc = topic_jobs(topic, ctx->planner->settings->topic_prefix, ctx->slot->model,
                         STREAM_TRAIN, ctx->e);
    if (ctx->rc == 0)
        ctx->rc = expiry_consider(ctx->planner->expiry, run, topic, partition, overdue, ctx->e);
    if (ctx->rc > 0) agenda_gap_mark(ctx->slot->agenda, run);
}

/* For clients that wait (gateway/api/queue.h).  A Redis that is away is the resolver's to tell of.
 */
static void show_queues(struct planner *p)
{
    for (int i = 0; i < p->slot_count; i++) {
        const char *model = p->slots[i]->model;
        int64_t waiting = 0, workers = 0;
        bool first = true;
        for (int k = 0; k < p->slot_count; k++) {
            if (strcmp(p->slots[k]->model, model)) continue;
            if (k < i) first = false;
            waiting += agenda_known(p->slots[k]->agenda);
            workers += p->slots[k]->held;
        }
        char who[160];
        struct err e = {0};
        const struct counter counters[] = {{"waiting", waiting}, {"workers", workers}};
        snprintf(who, sizeof who, "queue:%s", model);
        if (first && store_counters_set(p->store, who, counters, 2, &e) < 0) return;
    }
}

static int tidy(struct planner *p, struct err *e)
{
    int64_t now_ms = clock_mono_ms(), held = 0;
    if (now_ms - p->tidied_ms < TIDY_MS) return 0;
    p->tidied_ms = now_ms;
    expiry_begin(p->expiry, now_ms);
    for (int i = 0; i < p->slot_count; i++) {
        struct gap_context ctx = {p, p->slots[i], 0, e};
        agenda_tidy(p->slots[i]->agenda, now_ms);
        agenda_gaps(p->slots[i]->agenda, now_ms, TIDY_MS, p->settings->gap_max_s * 1000, on_gap,
                    &ctx);
        if (ctx.rc < 0) return -1;
        held += agenda_held(p->slots[i]->agenda);
    }
    atomic_store(&p->stats->held, held);
    show_queues(p);
    return resume_paused(p, e);
}

int planner_run(struct planner *p, struct err *e)
{
    while (!stop_requested()) {
        if (adopt_catalog(p, e) < 0) return -1;
        if (read_logs(p, wait_ms_now(p), e) < 0) return -1;
        if (plan_slots(p, e) < 0) return -1;
        if (tidy(p, e) < 0) return -1;
    }
    struct err late = {0};
    if (bus_flush(p->producer, FLUSH_MS, &late) < 0)
        log_warn("planner.flush", "error=\"%s\"", late.text);
    return 0;
}

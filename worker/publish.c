/* publish.c - see publish.h. */
#include "publish.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "worker.h"

#define QUEUE_BYTES_MAX ((size_t)512 << 20)
#define ACK_WAIT_MS     30000
#define SILENCE_MAX_MS  20000 /* with results that wait for their acks */
#define BUILD           "tinworks-worker 0.1"

struct ack {
    struct publisher *publisher;
    struct shard *shard;
    int64_t job, offset; /* of the job, of its result */
    struct ack *next;
};

struct publisher {
    struct bus_producer *bus;
    pthread_mutex_t lock; /* guards what follows */
    struct ack *first, **last;
    struct err failed;
    int waiting;         /* results that were sent and not acked */
    int64_t answered_ms; /* when the last ack came, or the first of those was sent */
};

struct publisher *publisher_create(const char *brokers, int slot, struct err *e)
{
    char id[32];
    snprintf(id, sizeof id, "worker-%d", slot);
    struct publisher *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for a publisher");
        return NULL;
    }
    p->last = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    p->bus = bus_producer_create(brokers,
                                 &(struct bus_producer_conf){.client_id = id,
                                                             .queue_bytes_max = QUEUE_BYTES_MAX,
                                                             .gapless = true},
                                 e);
    if (p->bus) return p;
    publisher_free(p);
    return NULL;
}

void publisher_free(struct publisher *p)
{
    if (!p) return;
    bus_producer_free(p->bus); /* no ack comes after this */
    for (struct ack *a = p->first, *next; a; a = next) {
        next = a->next;
        free(a);
    }
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* A result goes out, or (-1) did not. */
static void count_sent(struct publisher *p, int change)
{
    pthread_mutex_lock(&p->lock);
    if (!p->waiting) p->answered_ms = clock_mono_ms();
    p->waiting += change;
    pthread_mutex_unlock(&p->lock);
}

/* On the producer's thread. */
static void acked(void *arg, int64_t offset, const struct err *e)
{
    struct ack *a = arg;
    struct publisher *p = a->publisher;
    a->offset = offset;
    pthread_mutex_lock(&p->lock);
    p->waiting--;
    p->answered_ms = clock_mono_ms();
    if (offset < 0) {
        if (p->failed.kind == ERR_NONE) p->failed = *e;
        free(a);
    } else {
        *p->last = a;
        p->last = &a->next;
    }
    pthread_mutex_unlock(&p->lock);
}

static struct bus_record record_of(const char *topic, int partition, const struct result *r,
                                   const struct header *headers, int count)
{
    return (struct bus_record){.topic = topic,
                               .partition = partition,
                               .key = r->job_id,
                               .headers = headers,
                               .header_count = count,
                               .value = r->payload,
                               .size = r->size};
}

int publish_job_result(struct worker *w, struct shard *s, const struct job *job, struct result *r,
                       struct err *e)
{
    struct result_scratch scratch;
    struct header headers[WIRE_HEADERS_MAX];
    if (lease_wait_good(w->lease, e) < 0) return -1;
    struct ack *a = calloc(1, sizeof *a);
    if (!a) return err_set(e, ERR_RETRY, "out of memory for an ack");
    *a = (struct ack){.publisher = w->out, .shard = s, .job = job->offset};
    int count = result_headers(r, &scratch, headers);
    struct bus_record rec = record_of(w->results_topic[s->stream], s->partition, r, headers, count);
    failpoint_pass("wk.before_send", r->job_id);
    count_sent(w->out, 1);
    if (bus_produce(w->out->bus, &rec, acked, a, e) < 0) {
        count_sent(w->out, -1);
        free(a);
        return -1;
    }
    failpoint_pass("wk.after_send", r->job_id);
    counters_add(w->counters, COUNT_JOBS, 1);
    counters_add(w->counters, COUNT_TOKENS_TRAIN, r->usage.train);
    counters_add(w->counters, COUNT_TOKENS_SAMPLE, r->usage.sample);
    counters_add(w->counters, COUNT_TOKENS_PREFILL, r->usage.prefill);
    return 0;
}

int publish_result(struct worker *w, struct task *t, struct result *r, struct err *e)
{
    return publish_job_result(w, t->shard, t->job, r, e);
}

/* The log knows the result: ours has to be the same, and is not sent. */
static void compare(struct worker *w, struct task *t, const struct result *r)
{
    counters_add(w->counters, COUNT_REPLAYED, 1);
    if (t->known->status == r->status && !strcmp(t->known->digest, r->digest)) return;
    counters_add(w->counters, COUNT_DIGEST_MISMATCHES, 1);
    log_error("worker.digest_mismatch", "job=%s offset=%" PRId64 " status=%s was=%s", t->job->id,
              t->known->offset, result_status_name(r->status),
              result_status_name(t->known->status));
    if (t->run && !mutation("held")) t->run->broken = t->run->paused = true;
}

static int decide(struct worker *w, struct task *t, struct result *r, struct err *e)
{
    if (!t->known) return publish_result(w, t, r, e);
    compare(w, t, r);
    return 0;
}

int publish_ok(struct worker *w, struct task *t, enum content content, char *take_payload,
               size_t size, struct usage usage, struct err *e)
{
    struct result *r = result_create(t->job, w->conf->model, t->shard->epoch, e);
    if (!r) {
        free(take_payload);
        return -1;
    }
    result_set_ok(r, content, take_payload, size, usage);
    int rc = decide(w, t, r, e);
    result_free(r);
    return rc;
}

static int publish_failure(struct worker *w, struct task *t, const char *category, const char *text,
                           struct err *e)
{
    struct result *r = result_create(t->job, w->conf->model, t->shard->epoch, e);
    int rc = -1;
    if (r && result_set_failed(r, category, text, e) == 0) rc = decide(w, t, r, e);
    result_free(r);
    return rc;
}

int publish_failed(struct worker *w, struct task *t, const char *text, struct err *e)
{
    return publish_failure(w, t, "user", text, e);
}

int publish_gave_up(struct worker *w, struct task *t, const char *text, struct err *e)
{
    return publish_failure(w, t, "server", text, e);
}

int publish_cancelled(struct worker *w, struct task *t, const char *text, struct err *e)
{
    struct result *r = result_create(t->job, w->conf->model, t->shard->epoch, e);
    int rc = -1;
    if (r && result_set_cancelled(r, text, e) == 0) rc = decide(w, t, r, e);
    result_free(r);
    return rc;
}

int64_t publish_barrier(struct worker *w, const struct shard *s, struct err *e)
{
    struct result_scratch scratch;
    struct header headers[WIRE_HEADERS_MAX];
    struct result *r =
        result_create_barrier(s->epoch, w->owner, BUILD, engine_info(w->engine)->numerics, e);
    if (!r) return -1;
    int count = result_headers(r, &scratch, headers);
    struct bus_record rec = record_of(w->results_topic[s->stream], s->partition, r, headers, count);
    int64_t offset = bus_produce_wait(w->out->bus, &rec, ACK_WAIT_MS, e);
    result_free(r);
    return offset;
}

int publish_dlq(struct worker *w, const struct bus_message *m, const char *reason, struct err *e)
{
    struct header headers[BUS_HEADERS_MAX];
    char partition[16], offset[24];
    snprintf(partition, sizeof partition, "%d", m->partition);
    snprintf(offset, sizeof offset, "%" PRId64, m->offset);
    int count = 0;
    while (count < m->header_count && count < BUS_HEADERS_MAX - 4) {
        headers[count] = m->headers[count];
        count++;
    }
    headers[count++] = (struct header){"tw_topic", m->topic};
    headers[count++] = (struct header){"tw_partition", partition};
    headers[count++] = (struct header){"tw_offset", offset};
    headers[count++] = (struct header){"tw_reason", reason};
    struct bus_record rec = {.topic = w->dlq_topic,
                             .partition = 0,
                             .key = m->key,
                             .headers = headers,
                             .header_count = count,
                             .value = m->value,
                             .size = m->size};
    return bus_produce_wait(w->out->bus, &rec, ACK_WAIT_MS, e) < 0 ? -1 : 0;
}

int publish_job_dlq(struct worker *w, const struct task *t, const char *reason, struct err *e)
{
    struct job_scratch scratch;
    struct job *job = t->job;
    struct bus_message m = {.topic = w->jobs_topic[t->shard->stream],
                            .partition = t->shard->partition,
                            .offset = job->offset,
                            .key = job->parent,
                            .value = job->payload,
                            .size = job->size};
    m.header_count = job_headers(job, &scratch, m.headers);
    return publish_dlq(w, &m, reason, e);
}

int publish_collect(struct worker *w, struct err *e)
{
    struct publisher *p = w->out;
    pthread_mutex_lock(&p->lock);
    struct ack *a = p->first;
    p->first = NULL;
    p->last = &p->first;
    struct err failed = p->failed;
    bool silent = p->waiting && clock_mono_ms() - p->answered_ms > SILENCE_MAX_MS;
    pthread_mutex_unlock(&p->lock);
    int rc = 0;
    for (struct ack *next; a; a = next) {
        next = a->next;
        failpoint_pass("wk.after_result_ack", NULL);
        if (rc == 0 && (rc = shard_acked(a->shard, a->job, a->offset, e)) < 0)
            e->kind = ERR_LOST; /* acks are gone unbooked: nobody may carry on from here */
        free(a);
    }
    if (rc == 0 && failed.kind != ERR_NONE)
        rc = err_set(e, failed.kind, "a result was not delivered: %s", failed.text);
    if (rc == 0 && silent)
        rc = err_set(e, ERR_RETRY, "results were not acknowledged in %d ms", SILENCE_MAX_MS);
    return rc;
}

int publish_flush(struct worker *w, struct err *e)
{
    if (bus_flush(w->out->bus, ACK_WAIT_MS, e) < 0) return -1;
    return publish_collect(w, e);
}

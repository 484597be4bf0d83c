/* submit.c - see submit.h. */
#include "api/submit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/flight.h"
#include "api/publisher.h"
#include "api/touched.h"
#include "api/waiters.h"
#include "base/buf.h"
#include "base/clock.h"
#include "wire/payload.h"

#define FULL_RETRY_S 1 /* jobs end all the time */
#define ANSWER_MAX   ((NUM_SAMPLES_MAX + 4) * (ID_SIZE + 40))

/* A job on the stack whose payload stays the caller's. */
static int fill_job(struct call *c, struct job *job, const char *parent, int partition,
                    const struct submission *s, struct err *e)
{
    memset(job, 0, sizeof *job);
    if (job_id_make(job->id, &c->g->secret, c->account, parent, s->kind, s->seq, e) < 0) return -1;
    job->kind = s->kind;
    snprintf(job->tenant, sizeof job->tenant, "%s", c->account);
    snprintf(job->parent, sizeof job->parent, "%s", parent);
    snprintf(job->source, sizeof job->source, "gateway");
    job->seq = s->seq;
    job->tokens = s->tokens;
    job->content = s->content;
    job->payload = (char *)s->payload;
    job->size = s->size;
    job->partition = partition;
    job->offset = -1;
    return 0;
}

/* false: the account has as many tokens in flight as it may, and was told to come back. */
static bool let_in(struct call *c, const struct job *job, const char *model)
{
    int64_t now_ms = clock_mono_ms(), max = c->limits.tokens_in_flight;
    struct flight_room room = {max, quota_elsewhere(c->g->quota, c->account, now_ms)};
    if (flight_admit(c->g->flight, job, model, room, now_ms)) return true;
    quota_note(c->g->quota, c->account, QUOTA_TOKENS, max, now_ms);
    atomic_fetch_add(&c->g->counts.limited, 1);
    http_answer_retry(
        c->r, 429, FULL_RETRY_S,
        "this account has %" PRId64 " tokens in line and running, with this call's %" PRId64
        " it would be more than its %" PRId64 "; try again as they are done, waiting costs nothing",
        flight_tokens(c->g->flight, c->account) +
            (job_kind_is_train(job->kind) ? 0 : room.elsewhere),
        job->tokens, max);
    return false;
}

enum http_verdict submit_train(struct call *c, const char *run, const struct run_facts *facts,
                               const struct submission *s)
{
    struct err e = {0};
    struct job job;
    char *answer = NULL;

    if (fill_job(c, &job, run, facts->shard, s, &e) < 0) return call_fail(c, &e);
    if (!let_in(c, &job, facts->model)) return HTTP_TAKEN;
    /* ids are made of letters, digits, ":" and "_", so they are JSON as they are */
    int n = asprintf(&answer, "{\"request_id\": \"%s\", \"model_id\": \"%s\"}", job.id, run);
    if (n < 0) answer = NULL;
    atomic_fetch_add(&c->g->counts.submits, 1);
    touched_add(c->g->touched, run);
    publisher_submit(c->g->publisher, c->r, facts->model, &job, answer, (size_t)n);
    return HTTP_TAKEN;
}

enum http_verdict submit_reject(struct call *c, const char *run, const struct run_facts *facts,
                                int64_t seq, const char *why)
{
    struct err e = {0};
    struct submission s = {.kind = JOB_REJECT, .seq = seq, .content = CONTENT_JSON};
    char *payload = reject_encode(why, &s.size, &e);
    if (!payload) return call_fail(c, &e);
    s.payload = payload;
    atomic_fetch_add(&c->g->counts.refused, 1);
    enum http_verdict v = submit_train(c, run, facts, &s);
    free(payload);
    return v;
}

static char *sample_answer(const struct job *job, int num_samples, size_t *size)
{
    struct err e = {0};
    struct buf b;
    buf_init(&b, ANSWER_MAX);
    int rc = buf_printf(&b, &e, "{\"request_id\": \"%s\", \"sample_sequence_ids\": [", job->id);
    for (int i = 0; i < num_samples && rc == 0; i++)
        rc = buf_printf(&b, &e, "%s\"%s:%" PRId64 ":%d\"", i ? ", " : "", job->parent, job->seq, i);
    if (rc == 0) rc = buf_printf(&b, &e, "]}");
    char *answer = rc == 0 ? buf_take(&b, size) : NULL;
    buf_clear(&b);
    return answer;
}

/* The job is in the log: its result is what the request waits for from now on. */
static void wait_for_result(void *arg, struct http_request *r, const char *id, enum job_kind kind)
{
    struct manner m = {.direct = true, .pending_408 = true};
    waiters_park(arg, r, id, kind, m, "", "");
}

enum http_verdict submit_sample(struct call *c, const char *sampler,
                                const struct sampler_facts *facts, const struct submission *s,
                                int num_samples)
{
    struct err e = {0};
    struct job job;
    size_t size = 0;

    if (fill_job(c, &job, sampler, facts->shard, s, &e) < 0) return call_fail(c, &e);
    if (!let_in(c, &job, facts->model)) return HTTP_TAKEN;
    atomic_fetch_add(&c->g->counts.submits, 1);
    if (s->wait) {
        publisher_submit_then(c->g->publisher, c->r, facts->model, &job, wait_for_result,
                              c->g->waiters);
        return HTTP_TAKEN;
    }
    char *answer = sample_answer(&job, num_samples, &size);
    publisher_submit(c->g->publisher, c->r, facts->model, &job, answer, size);
    return HTTP_TAKEN;
}

enum http_verdict submit_cancel(struct call *c, const char *sampler,
                                const struct sampler_facts *facts, int64_t seq, const char *id)
{
    struct err e = {0};
    struct job job;
    char payload[ID_SIZE + 16];
    struct submission s = {
        .kind = JOB_CANCEL, .seq = seq, .content = CONTENT_JSON, .payload = payload};

    s.size = (size_t)snprintf(payload, sizeof payload, "{\"job_id\": \"%s\"}", id);
    if (fill_job(c, &job, sampler, facts->shard, &s, &e) < 0) return call_fail(c, &e);
    publisher_submit(c->g->publisher, c->r, facts->model, &job, strdup("{}"), 2);
    return HTTP_TAKEN;
}

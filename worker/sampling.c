/* sampling.c - see sampling.h. */
#include "sampling.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "checkpoint.h"
#include "map.h"
#include "suspect.h"
#include "wire/payload.h"
#include "worker.h"

#define KEY_SIZE   (ID_SIZE + 24)
#define RECHECK_MS 5000 /* how long a version counts as not deleted */

/* The weights of one checkpoint. */
struct version {
    char key[KEY_SIZE]; /* run#seq */
    struct adapter *adapter;
    size_t bytes;
    int users;
    int64_t used_ms, checked_ms;
};

struct request {
    struct task *task;
    struct sample *sample;
    struct version *version;       /* NULL: the base model */
    struct sample_targets targets; /* owned */
    struct request *next;
};

struct waiting {
    struct task *task;
    struct sample_request *rq; /* decoded once; NULL before the first try */
    bool counted;              /* this attempt of a suspect */
    int64_t attempts;          /* before it */
    struct waiting *next;
};

struct sampling {
    struct waiting *first, **last;
    struct request *running;
    int running_count;
    bool alone;         /* what runs must have no company */
    bool engine_failed; /* what runs may be why we leave */
    struct map *versions;
    size_t version_bytes;
};

struct sampling *sampling_create(struct err *e)
{
    struct sampling *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for sampling");
        return NULL;
    }
    s->last = &s->first;
    s->versions = map_create(e);
    if (s->versions) return s;
    free(s);
    return NULL;
}

static void version_free(struct version *v)
{
    adapter_free(v->adapter);
    free(v);
}

static void request_free(struct request *r)
{
    sample_targets_clear(&r->targets);
    free(r);
}

void sampling_forgive(struct worker *w)
{
    struct sampling *s = w->sampling;
    if (!s) return;
    bool heard = !s->engine_failed;
    for (const struct request *r = s->running; r && heard; r = r->next)
        if (r->task->suspect) heard = suspect_forgive(w, r->task->job->id);
    for (const struct waiting *it = s->first; it && heard; it = it->next)
        if (it->counted) heard = suspect_forgive(w, it->task->job->id);
}

void sampling_free(struct worker *w)
{
    struct sampling *s = w->sampling;
    if (!s) return;
    for (struct waiting *it = s->first, *next; it; it = next) {
        next = it->next;
        task_free(it->task);
        sample_request_free(it->rq);
        free(it);
    }
    for (struct request *r = s->running, *next; r; r = next) {
        next = r->next;
        engine_sample_free(w->engine, r->sample);
        task_free(r->task);
        request_free(r);
    }
    size_t at = 0;
    for (struct version *v; s->versions && (v = map_next(s->versions, &at));)
        version_free(v);
    map_free(s->versions);
    free(s);
    w->sampling = NULL;
}

void sampling_add(struct worker *w, struct task *take_task)
{
    struct waiting *it = calloc(1, sizeof *it);
    if (!it) abort(); /* a few bytes: there is no worker without them, and the log keeps the job */
    it->task = take_task;
    *w->sampling->last = it;
    w->sampling->last = &it->next;
}

bool sampling_active(const struct worker *w)
{
    return w->sampling->first || w->sampling->running;
}

bool sampling_active_of(const struct worker *w, const struct shard *s)
{
    for (const struct waiting *it = w->sampling->first; it; it = it->next)
        if (it->task->shard == s) return true;
    for (const struct request *r = w->sampling->running; r; r = r->next)
        if (r->task->shard == s) return true;
    return false;
}

bool sampling_alone(const struct worker *w)
{
    return w->sampling->alone;
}

static struct task *unlink_waiting(struct sampling *s, struct waiting **at)
{
    struct waiting *it = *at;
    struct task *t = it->task;
    *at = it->next;
    if (!it->next) s->last = at;
    sample_request_free(it->rq);
    free(it);
    return t;
}

/* The task was answered. */
static int finish(struct worker *w, struct task *t, struct err *e)
{
    int rc = t->suspect ? suspect_end(w, t->job->id, e) : 0;
    worker_held(w, t->shard, -(int64_t)t->job->size);
    task_free(t);
    return rc;
}

int sampling_cancel(struct worker *w, const char *job_id, struct err *e)
{
    for (struct waiting **at = &w->sampling->first; *at; at = &(*at)->next) {
        if (strcmp((*at)->task->job->id, job_id)) continue;
        struct task *t = unlink_waiting(w->sampling, at);
        if (publish_cancelled(w, t, "the client cancelled this request", e) == 0)
            return finish(w, t, e);
        task_free(t);
        return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------- weights */

static void versions_trim(struct worker *w)
{
    struct sampling *s = w->sampling;
    while (s->version_bytes > (size_t)w->conf->sampler_cache_mb << 20) {
        struct version *oldest = NULL;
        size_t at = 0;
        for (struct version *v; (v = map_next(s->versions, &at));)
            if (!v->users && (!oldest || v->used_ms < oldest->used_ms)) oldest = v;
        if (!oldest) return;
        map_take(s->versions, oldest->key);
        s->version_bytes -= oldest->bytes;
        version_free(oldest);
    }
}

static struct version *version_open(struct worker *w, const char *key, const char *run, int64_t seq,
                                    struct err *e)
{
    struct sampling *s = w->sampling;
    struct version *v = calloc(1, sizeof *v);
    if (!v) {
        err_set(e, ERR_RETRY, "out of memory for a version");
        return NULL;
    }
    v->adapter = checkpoint_load_sampler(w, run, seq, e);
    if (!v->adapter) goto fail;
    snprintf(v->key, sizeof v->key, "%s", key);
    v->bytes = adapter_bytes(w->engine, adapter_conf(v->adapter), false);
    v->checked_ms = clock_mono_ms();
    if (map_put(s->versions, key, v, e) < 0) goto fail;
    s->version_bytes += v->bytes;
    return v;
fail:
    version_free(v);
    return NULL;
}

static struct version *version_get(struct worker *w, const char *run, int64_t seq, struct err *e)
{
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "%s#%" PRId64, run, seq);
    struct version *v = map_get(w->sampling->versions, key);
    int64_t now_ms = clock_mono_ms();
    if (v && now_ms - v->checked_ms > RECHECK_MS) {
        if (checkpoint_check(w, run, seq, e) < 0) return NULL;
        v->checked_ms = now_ms;
    }
    if (!v) v = version_open(w, key, run, seq, e);
    if (!v) return NULL;
    v->used_ms = now_ms;
    v->users++; /* before the trim, so that it stays */
    versions_trim(w);
    return v;
}

/* ---------------------------------------------------------------- in */

_Static_assert(SAMPLE_TOPK_MAX == ENGINE_TOPK_MAX && SAMPLE_ALT_MAX == ENGINE_ALT_MAX,
               "what the wire lets through is what the engine takes");

static struct sample *engine_add(struct worker *w, const struct task *t,
                                 const struct sample_request *rq, struct adapter *ad, struct err *e)
{
    struct sample_conf conf = {
        .num_samples = rq->num_samples,
        .max_tokens = rq->max_tokens,
        .temperature = (float)rq->temperature,
        .top_k = rq->top_k,
        .top_p = (float)rq->top_p,
        .seed = rq->has_seed ? rq->seed : seed_of(t->job->id),
        .stop_at_eos = !rq->stop_given || rq->stop_token_count || rq->stop_string_count,
        .stop_tokens = rq->stop_tokens,
        .stop_token_count = rq->stop_token_count,
        .stop_strings = (const char *const *)rq->stop_strings,
        .stop_string_count = rq->stop_string_count,
        .prompt_logprobs = rq->prompt_logprobs,
        .prompt_last = rq->prompt_last,
        .topk_prompt = rq->topk_prompt,
        .topk_sampled = rq->topk_sample,
        .alt_tokens = rq->alt_tokens,
        .target_first = rq->targets.first,
        .target_ids = rq->targets.ids,
    };
    return engine_sample_add(w->engine, ad, rq->prompt, rq->prompt_count, &conf, e);
}

/* NULL: ERR_USER when the job can never be answered. */
static struct sample_request *decode(struct worker *w, const struct job *job, struct err *e)
{
    bool malformed;
    struct sample_request *rq =
        sample_request_decode(job->payload, job->size, job->kind, &malformed, e);
    if (rq && sample_request_fits(rq, engine_info(w->engine)->context_max, e) == 0) return rq;
    sample_request_free(rq);
    return NULL;
}

/* Gives the first waiting job to the engine.  ERR_USER: it fails; ERR_RETRY with *full: no room
 * now. */
static int start(struct worker *w, struct waiting *it, struct request *r, bool *full, struct err *e)
{
    if (!it->rq) it->rq = decode(w, it->task->job, e);
    if (!it->rq) return -1;
    if (*it->rq->checkpoint_run) {
        r->version = version_get(w, it->rq->checkpoint_run, it->rq->checkpoint_seq, e);
        if (!r->version) return -1;
    }
    struct adapter *ad = r->version ? r->version->adapter : NULL;
    r->sample = engine_add(w, it->task, it->rq, ad, e);
    if (!r->sample) {
        *full = e->kind == ERR_RETRY;
        if (r->version) r->version->users--;
        return -1;
    }
    r->targets = it->rq->targets; /* the answer mirrors their layout */
    it->rq->targets = (struct sample_targets){0};
    return 0;
}

enum admission { ADMIT_WAIT, ADMIT_ANSWERED, ADMIT_GO };

/* A suspect, the first that waits: counts the attempt.  It waits until it can be alone if a second
 * worker died with it. -1: the worker must leave. */
static int admit_suspect(struct worker *w, struct waiting *it, struct err *e)
{
    struct sampling *s = w->sampling;
    struct task *t = it->task;
    if (!it->counted && (it->attempts = suspect_attempts(w, t->job->id, e)) < 0) return -1;
    if (it->attempts && s->running) return ADMIT_WAIT;
    if (it->counted) return ADMIT_GO; /* there was no room the last time */
    int given_up = suspect_begin(w, t, e);
    if (given_up < 0) return -1;
    it->counted = true;
    if (!given_up) return ADMIT_GO;
    unlink_waiting(s, &s->first);
    worker_held(w, t->shard, -(int64_t)t->job->size);
    task_free(t); /* the count stays until the verdict is old */
    return ADMIT_ANSWERED;
}

static int may_start(struct worker *w, struct waiting *it, struct err *e)
{
    if (w->sampling->alone) return ADMIT_WAIT;
    return it->task->suspect ? admit_suspect(w, it, e) : ADMIT_GO;
}

/* One waiting job.  1: it is in or answered; 0: not now. */
static int admit(struct worker *w, struct err *e)
{
    struct sampling *s = w->sampling;
    struct err why = {0};
    bool full = false;
    int may = may_start(w, s->first, e);
    if (may != ADMIT_GO) return may == ADMIT_ANSWERED ? 1 : may == ADMIT_WAIT ? 0 : -1;
    struct request *r = calloc(1, sizeof *r);
    if (!r) return err_set(e, ERR_RETRY, "out of memory for a request");
    r->task = s->first->task;
    if (start(w, s->first, r, &full, &why) == 0) {
        s->alone = s->first->counted && s->first->attempts;
        unlink_waiting(s, &s->first);
        r->next = s->running;
        s->running = r;
        s->running_count++;
        return 1;
    }
    free(r);
    if (full && s->running) return 0;
    if (why.kind != ERR_USER) {
        s->first->counted = false; /* what makes us leave before it began is not forgiven */
        return err_set(e, why.kind, "%s", why.text);
    }
    struct task *t = unlink_waiting(s, &s->first);
    int rc = publish_failed(w, t, why.text, e);
    if (finish(w, t, e) < 0) rc = -1;
    return rc < 0 ? -1 : 1;
}

/* ---------------------------------------------------------------- out */

static struct sample_top top_of(const struct top *t)
{
    return (struct sample_top){t->k, t->ids, t->logprobs};
}

static char *encode(const struct request *r, const struct sample_result *result, size_t *size,
                    struct err *e)
{
    struct sample_sequence *rows = calloc((size_t)result->sequence_count + 1, sizeof *rows);
    if (!rows) {
        err_set(e, ERR_RETRY, "out of memory for an answer");
        return NULL;
    }
    for (int i = 0; i < result->sequence_count; i++) {
        const struct sampled *one = &result->sequences[i];
        rows[i] = (struct sample_sequence){.n = one->n,
                                           .tokens = one->tokens,
                                           .logprobs = one->logprobs,
                                           .top = top_of(&one->top),
                                           .stopped = one->reason == STOP_REASON_STOP};
    }
    struct sample_output out = {.count = result->sequence_count,
                                .sequences = rows,
                                .prompt_count = result->prompt_count,
                                .prompt_logprobs = result->prompt_logprobs,
                                .prompt_top = top_of(&result->prompt_top),
                                .alt = top_of(&result->alt),
                                .targets = &r->targets,
                                .target_logprobs = result->target_logprobs};
    char *payload = sample_output_encode(&out, size, e);
    free(rows);
    return payload;
}

static int answer(struct worker *w, struct request *r, struct err *e)
{
    struct sample_result result = {0};
    struct usage usage = {0};
    size_t size = 0;
    sample_take(r->sample, &result);
    usage.prefill = result.prompt_count; /* found in the cache or not */
    for (int i = 0; i < result.sequence_count; i++)
        usage.sample += result.sequences[i].n;
    char *payload = encode(r, &result, &size, e);
    sample_result_clear(&result);
    if (!payload) return -1;
    return publish_ok(w, r->task, CONTENT_PROTOBUF, payload, size, usage, e);
}

static int collect(struct worker *w, struct err *e)
{
    struct sampling *s = w->sampling;
    for (struct request **at = &s->running; *at;) {
        struct request *r = *at;
        if (!sample_done(r->sample)) {
            at = &r->next;
            continue;
        }
        if (answer(w, r, e) < 0) return -1;
        engine_sample_free(w->engine, r->sample);
        if (r->version) r->version->users--;
        *at = r->next;
        s->running_count--;
        struct task *t = r->task;
        request_free(r);
        if (finish(w, t, e) < 0) return -1;
    }
    if (!s->running) s->alone = false;
    return 0;
}

static void count_prefixes(struct worker *w)
{
    struct sample_stats stats = engine_sample_stats(w->engine);
    counters_set(w->counters, COUNT_PREFIX_HIT_TOKENS, stats.prompt_tokens_cached);
    counters_set(w->counters, COUNT_PREFIX_EVICTIONS, stats.evictions);
}

/* The first that waits goes in first, also when it is large and smaller ones behind it would fit:
 * what is running ends, nobody overtakes, so its turn comes. */
int sampling_step(struct worker *w, struct err *e)
{
    struct sampling *s = w->sampling;
    int room = 1;
    while (room > 0 && s->first && s->running_count < w->conf->samples_max)
        room = admit(w, e);
    if (room < 0) return -1;
    if (!s->running) return 0;
    for (const struct request *r = s->running; r; r = r->next)
        failpoint_pass("wk.mid_sample", r->task->job->id);
    if (engine_sample_step(w->engine, e) < 0) {
        s->engine_failed = true;
        return -1;
    }
    count_prefixes(w);
    return collect(w, e);
}

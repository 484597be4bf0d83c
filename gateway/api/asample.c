/* asample.c - samples: from a sampling session, or from weights that the call names.
 *
 * Samples have no order among themselves, so a request that cannot be understood is refused with
 * 400; what is understood and wrong fails its future, in the worker. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/answer.h"
#include "api/arrivals.h"
#include "api/endpoints.h"
#include "api/limits.h"
#include "api/samplers.h"
#include "api/submit.h"
#include "base/buf.h"
#include "wire/json.h"
#include "wire/payload.h"

struct sample {
    char sampler[ID_SIZE];
    char base[MODEL_NAME_SIZE], path[PATH_SIZE]; /* of a call without a sampling session */
    bool named;                                  /* it names a sampling session */
    json_int_t seq, num_samples;
    int64_t tokens;
};

/* An estimate for planning: the prompt once, and all that may be sampled. */
static int64_t count_tokens(const json_t *body, json_int_t num_samples)
{
    const json_t *chunks = json_object_get(json_object_get(body, "prompt"), "chunks"), *chunk;
    const json_t *max = json_object_get(json_object_get(body, "sampling_params"), "max_tokens");
    int64_t n = 0;
    size_t i;
    json_array_foreach(chunks, i, chunk) n +=
        (int64_t)json_array_size(json_object_get(chunk, "tokens"));
    int64_t each = json_is_integer(max) ? json_integer_value(max) : 0;
    if (each < 0) each = 0;
    if (each > DATUM_TOKENS_MAX) each = DATUM_TOKENS_MAX;
    return n + num_samples * each;
}

/* By what does it name its weights?  A sampling session has numbers as well. */
static int read_source(const json_t *body, struct sample *s, struct err *e)
{
    const json_t *session = json_object_get(body, "sampling_session_id");
    s->named = session && !json_is_null(session);
    if (s->named)
        return wire_json_text(body, "", "sampling_session_id", true, s->sampler, sizeof s->sampler,
                              e) < 0 ||
                       wire_json_int(body, "", "seq_id", true, 0, INT64_MAX, &s->seq, e) < 0
                   ? -1
                   : 0;
    if (wire_json_text(body, "", "base_model", false, s->base, sizeof s->base, e) < 0 ||
        wire_json_text(body, "", "model_path", false, s->path, sizeof s->path, e) < 0)
        return -1;
    if (*s->base || *s->path) return 0;
    return err_set(e, ERR_USER,
                   "sampling_session_id is absent, expected it, model_path or base_model");
}

static int read_sample(const json_t *body, struct sample *s, struct err *e)
{
    s->num_samples = 1;
    if (read_source(body, s, e) < 0 ||
        wire_json_int(body, "", "num_samples", false, 1, NUM_SAMPLES_MAX, &s->num_samples, e) < 0)
        return -1;
    if (json_object_get(body, "checkpoint"))
        return err_set(e, ERR_USER, "checkpoint is given, but it is the service's own word");
    s->tokens = count_tokens(body, s->num_samples);
    return 0;
}

/* Without a session a sample is known by the client's key, if by anything: 63 bits of its hash are
 * its number, so that a repeated call is the same job.  (Of a million samples from one set of
 * weights two meet with a chance of 5 in 100 million.) */
static enum step find_by_weights(struct call *c, struct sample *s, struct sampler_facts *facts)
{
    char key[ARRIVAL_KEY_MAX + 1];
    struct err e = {0};
    enum step step = samplers_stand_in(c, s->base, s->path, s->sampler, facts);
    if (step != STEP_ON) return step;
    if (arrivals_key(c, key, &e) < 0) {
        call_fail(c, &e);
        return STEP_ANSWERED;
    }
    s->seq = (json_int_t)(seed_of(key) >> 1);
    return STEP_ON;
}

/* The body with the sampler's checkpoint put in front of its members; the rest stays as it came.
 * The body has members (it was read as a sample), so the comma is right. */
static char *with_checkpoint(struct call *c, const struct sampler_facts *f, size_t *size,
                             struct err *e)
{
    struct buf b;
    size_t body_size;
    const char *body = http_body(c->r, &body_size);
    const char *members = (const char *)memchr(body, '{', body_size) + 1;
    buf_init(&b, body_size + ID_SIZE + 128);
    int rc = buf_printf(&b, e, "{\"checkpoint\": {\"run\": \"%s\", \"seq\": %" PRId64 "}, ",
                        f->checkpoint_run, f->checkpoint_seq);
    if (rc == 0) rc = buf_append(&b, members, body_size - (size_t)(members - body), e);
    char *text = rc == 0 ? buf_take(&b, size) : NULL;
    buf_clear(&b);
    return text;
}

/* wait: the call is answered with the sample itself. */
static enum http_verdict submit(struct call *c, bool wait)
{
    struct sampler_facts facts;
    struct sample sample = {0};
    struct err e = {0};
    if (atomic_load(&c->g->store_full)) {
        answer_busy(c->r, manner_of(c->r), "there is no room for more results now, try again");
        return HTTP_TAKEN;
    }
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_sample(body, &sample, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    enum step step = sample.named ? owner_find_sampler(c, sample.sampler, &facts)
                                  : find_by_weights(c, &sample, &facts);
    if (step != STEP_ON) return step_verdict(step);

    char *made = NULL;
    struct submission s = {.kind = JOB_SAMPLE,
                           .seq = sample.seq,
                           .tokens = sample.tokens,
                           .content = CONTENT_JSON,
                           .wait = wait};
    s.payload = http_body(c->r, &s.size);
    if (*facts.checkpoint_run) {
        s.payload = made = with_checkpoint(c, &facts, &s.size, &e);
        if (!made) return call_fail(c, &e);
    }
    enum http_verdict v = submit_sample(c, sample.sampler, &facts, &s, (int)sample.num_samples);
    free(made);
    return v;
}

enum http_verdict api_asample(struct call *c)
{
    return submit(c, false);
}

enum http_verdict api_sample(struct call *c)
{
    return submit(c, true);
}

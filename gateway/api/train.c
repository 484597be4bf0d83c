/* train.c - forward, forward_backward, optim_step: the calls that are numbered.
 *
 * The SDK uses a number up even when we refuse its call, so once run and number are known nothing
 * is refused any more: what is wrong becomes a `reject` record and a failed future. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "api/arrivals.h"
#include "api/endpoints.h"
#include "api/submit.h"
#include "api/trained.h"
#include "wire/json.h"
#include "wire/payload.h"

enum step trained_run(struct call *c, const char *run, struct run_facts *facts)
{
    enum step s = owner_find_run(c, run, facts);
    if (s != STEP_ON || (!facts->refused && !facts->copied)) return s;
    if (facts->copied)
        http_answer_error(c->r, 400,
                          "model \"%s\" holds a copied checkpoint only, load that into a new model",
                          run);
    else
        call_not_found(c, "model", run);
    return STEP_ANSWERED;
}

/* seq is the number that the call gave, 0 without one. */
static enum step number(struct call *c, struct trained *t, json_int_t seq)
{
    t->seq = seq;
    if (!t->facts.arrival && seq) return STEP_ON;
    if (t->facts.arrival && !seq) return arrivals_number(c, t->run, &t->seq);
    http_answer_error(c->r, 400,
                      seq ? "seq_id is given, but this model's calls are numbered as they arrive"
                          : "seq_id is missing or below 1: number this model's calls from 1");
    return STEP_ANSWERED;
}

enum step trained_begin(struct call *c, const json_t *body, struct trained *t)
{
    struct err e = {0};
    json_int_t seq = 0;
    memset(t, 0, sizeof *t);
    if (wire_json_text(body, "", "model_id", true, t->run, sizeof t->run, &e) < 0 ||
        wire_json_int(body, "", "seq_id", false, 1, INT32_MAX, &seq, &e) < 0) {
        call_fail(c, &e);
        return STEP_ANSWERED;
    }
    enum step step = trained_run(c, t->run, &t->facts);
    return step == STEP_ON ? number(c, t, seq) : step;
}

enum http_verdict api_optim_step(struct call *c)
{
    struct optim_request ignored;
    struct trained t;
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    enum step step = trained_begin(c, body, &t);
    json_decref(body);
    if (step != STEP_ON) return step_verdict(step);

    struct submission s = {.kind = JOB_OPTIM_STEP, .seq = t.seq, .content = CONTENT_JSON};
    s.payload = http_body(c->r, &s.size);
    if (optim_request_decode(s.payload, s.size, &ignored, &e) < 0)
        return submit_reject(c, t.run, &t.facts, t.seq, e.text);
    return submit_train(c, t.run, &t.facts, &s);
}

/* A JSON body whose tensors cannot even be looked for may still say which number it uses up. */
static enum http_verdict refuse_pass(struct call *c, enum content content, const struct err *why)
{
    struct trained t;
    if (content != CONTENT_JSON) return call_fail(c, why);
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    enum step step = trained_begin(c, body, &t);
    json_decref(body);
    return step == STEP_ON ? submit_reject(c, t.run, &t.facts, t.seq, why->text)
                           : step_verdict(step);
}

static enum http_verdict admit_pass(struct call *c, enum content content, bool forward)
{
    struct train_request peeked;
    struct trained t = {0};
    struct err e = {0};
    struct submission s = {.content = content};

    s.payload = http_body(c->r, &s.size);
    if (train_request_peek(content, s.payload, s.size, &peeked, &e) < 0)
        return refuse_pass(c, content, &e);
    snprintf(t.run, sizeof t.run, "%s", peeked.run);
    enum step step = trained_run(c, t.run, &t.facts);
    if (step == STEP_ON) step = number(c, &t, peeked.seq);
    if (step != STEP_ON) return step_verdict(step);
    s.kind = forward || peeked.forward_only ? JOB_FORWARD : JOB_FORWARD_BACKWARD;
    s.seq = t.seq;
    s.tokens = peeked.tokens;
    return submit_train(c, t.run, &t.facts, &s);
}

enum http_verdict api_forward_backward(struct call *c)
{
    const char *type = http_header(c->r, "Content-Type");
    bool protobuf = type && strcasestr(type, "application/x-protobuf");
    return admit_pass(c, protobuf ? CONTENT_PROTOBUF : CONTENT_JSON, false);
}

enum http_verdict api_forward(struct call *c)
{
    return admit_pass(c, CONTENT_JSON, true);
}

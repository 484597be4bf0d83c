/* polls.c - retrieve_futures: one poll for all samples of a sampling session. */
#include <string.h>

#include "api/endpoints.h"
#include "api/gather.h"
#include "api/owner.h"
#include "wire/json.h"

static int read_poll(const json_t *body, struct gathering *w, double *timeout_s, struct err *e)
{
    const json_t *target = json_object_get(body, "target");
    json_int_t clone = 0, cursor = 0;
    char type[32] = "sampling_session";
    if (!json_is_object(target))
        return err_set(e, ERR_USER, "target is %s, expected an object", wire_json_type(target));
    if (wire_json_text(target, "target.", "type", false, type, sizeof type, e) < 0 ||
        wire_json_text(target, "target.", "sampling_session_id", true, w->sampler,
                       sizeof w->sampler, e) < 0 ||
        wire_json_int(target, "target.", "cloned_sampler_id", false, 0, INT32_MAX, &clone, e) < 0 ||
        wire_json_int(body, "", "prev_cursor", false, 0, INT64_MAX - 1, &cursor, e) < 0 ||
        wire_json_number(body, "", "timeout", false, timeout_s, e) < 0)
        return -1;
    if (strcmp(type, "sampling_session") != 0)
        return err_set(e, ERR_USER, "target.type is \"%s\", expected sampling_session", type);
    w->clone = clone;
    w->cursor = cursor;
    return 0;
}

/* retrieved_request_ids is not looked at: results have a lifetime, and a second read of one is
 * fine. */
enum http_verdict api_retrieve_futures(struct call *c)
{
    struct gathering w = {0};
    struct sampler_facts facts;
    struct err e = {0};
    double timeout_s = -1, hold_s = (double)c->g->conf.poll_hold_ms / 1000;
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_poll(body, &w, &timeout_s, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    enum step step = owner_find_sampler(c, w.sampler, &facts);
    if (step != STEP_ON) return step_verdict(step);
    if (topic_results(w.topic, c->g->conf.topic_prefix, facts.model, STREAM_SAMPLE, &e) < 0)
        return call_fail(c, &e);
    w.partition = facts.shard;
    if (!(timeout_s >= 0 && timeout_s < hold_s)) timeout_s = hold_s;
    gather_park(c->g->gather, c->r, &w, (int64_t)(timeout_s * 1000));
    return HTTP_TAKEN;
}

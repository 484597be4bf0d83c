/* futures.c - polls: the id proves itself, then the poll is parked until its future is settled. */
#include "api/answer.h"
#include "api/endpoints.h"
#include "api/owner.h"
#include "api/submit.h"
#include "api/waiters.h"
#include "wire/json.h"

/* A forged id, another account's and a missing one end in the same 404. */
static int read_id(struct call *c, char id[ID_SIZE], struct job_id_parts *parts)
{
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return -1;
    int rc = wire_json_text(body, "", "request_id", true, id, ID_SIZE, &e);
    json_decref(body);
    if (rc < 0) {
        call_fail(c, &e);
        return -1;
    }
    if (job_id_check(id, &c->g->secret, c->account, parts, &e) < 0) {
        call_not_found(c, "request", id);
        return -1;
    }
    return 0;
}

/* A run that could not be made has no job: its row says why. */
static enum http_verdict answer_refusal(struct call *c, const char *run)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    int n =
        db_queryf(c->db, &rows, &e, "SELECT refusal FROM runs WHERE id = $1 AND account_id = $2",
                  run, c->account, NULL);
    if (n < 0)
        call_fail(c, &e);
    else if (n == 0)
        call_not_found(c, "model", run);
    else
        answer_failed(c->r, "user", db_text(rows, 0, 0));
    db_result_free(rows);
    return HTTP_TAKEN;
}

/* An unload is done when it is written down (info.c). */
static enum http_verdict answer_unloaded(struct call *c, const char *run)
{
    struct err e = {0};
    int n = db_queryf(c->db, NULL, &e,
                      "SELECT 1 FROM runs WHERE id = $1 AND account_id = $2 AND unloaded_at IS NOT "
                      "NULL",
                      run, c->account, NULL);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "model", run);
    return call_answer(c, 200, json_pack("{s:s, s:s}", "model_id", run, "type", "unload_model"));
}

enum http_verdict api_retrieve_future(struct call *c)
{
    struct job_id_parts parts;
    struct run_facts facts;
    char id[ID_SIZE], model[MODEL_NAME_SIZE];
    c->poll = true;
    if (read_id(c, id, &parts) < 0) return HTTP_TAKEN;
    if (parts.kind == JOB_CREATE) {
        enum step step = owner_find_run(c, parts.parent, &facts);
        if (step != STEP_ON) return step_verdict(step);
        if (facts.refused) return c->db ? answer_refusal(c, parts.parent) : HTTP_WORKER;
    }
    if (parts.kind == JOB_UNLOAD) return c->db ? answer_unloaded(c, parts.parent) : HTTP_WORKER;
    owner_recent_model(c, parts.parent, model);
    waiters_park(c->g->waiters, c->r, id, parts.kind, manner_of(c->r), c->account, model);
    return HTTP_TAKEN;
}

/* A wish: whatever the worker publishes for the sample counts.  Training cannot be cancelled, and
 * is not. */
enum http_verdict api_cancel_future(struct call *c)
{
    struct job_id_parts parts;
    struct sampler_facts facts;
    char id[ID_SIZE];
    if (read_id(c, id, &parts) < 0) return HTTP_TAKEN;
    if (parts.kind != JOB_SAMPLE) return call_answer(c, 200, json_object());
    enum step step = owner_find_sampler(c, parts.parent, &facts);
    if (step != STEP_ON) return step_verdict(step);
    return submit_cancel(c, parts.parent, &facts, parts.seq, id);
}

/* info.c - questions about a run and a checkpoint; and the word that a run is not needed any more.
 */
#include "api/endpoints.h"
#include "api/limits.h"
#include "api/owner.h"
#include "api/trained.h"
#include "wire/json.h"
#include "wire/payload.h"

enum http_verdict api_get_info(struct call *c)
{
    struct run_facts facts;
    struct model_facts model = {0};
    struct err e = {0};
    char id[ID_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_text(body, "", "model_id", true, id, sizeof id, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    enum step step = trained_run(c, id, &facts);
    if (step != STEP_ON) return step_verdict(step);
    if (owner_model(c, facts.model, &model, &e) < 0) return call_fail(c, &e);
    /* the tokenizer is a folder: no model hub is asked for it */
    return call_answer(c, 200,
                       json_pack("{s:{s:s, s:s, s:s}, s:s, s:b, s:i, s:s, s:{s:s}, s:s}",
                                 "model_data", "arch", model.arch, "model_name", facts.model,
                                 "tokenizer_id", *model.dir ? model.dir : facts.model, "model_id",
                                 id, "is_lora", 1, "lora_rank", facts.rank, "model_name",
                                 facts.model, "optimizer_config", "type", "adamw", "type",
                                 "get_info"));
}

enum http_verdict api_weights_info(struct call *c)
{
    struct checkpoint_ref ref;
    struct run_facts facts;
    struct err e = {0};
    char path[PATH_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int n = wire_json_text(body, "", "tinker_path", true, path, sizeof path, &e);
    json_decref(body);
    if (n == 0) n = checkpoint_uri_parse(path, &ref, &e);
    if (n == 0)
        n = owner_checkpoint(c, &ref, NULL, &facts, &e);
    else
        n = -1;
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "checkpoint", path);
    return call_answer(c, 200,
                       json_pack("{s:s, s:b, s:i, s:b, s:b, s:b, s:{s:s}}", "base_model",
                                 facts.model, "is_lora", 1, "lora_rank", facts.rank,
                                 "train_unembed", facts.train_unembed, "train_mlp", facts.train_mlp,
                                 "train_attn", facts.train_attn, "optimizer_config", "type",
                                 "adamw"));
}

/* A run that rests leaves the worker's memory by itself and comes back with its next call, so
 * nothing has to be done: it is written down, and the future is settled from there (futures.c). */
enum http_verdict api_unload_model(struct call *c)
{
    struct err e = {0};
    char run[ID_SIZE], id[ID_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_text(body, "", "model_id", true, run, sizeof run, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    int n = db_queryf(c->db, NULL, &e,
                      "UPDATE runs SET unloaded_at = coalesce(unloaded_at, now()) WHERE id = $1 "
                      "AND account_id = $2 AND refusal IS NULL",
                      run, c->account, NULL);
    if (n == 0) return call_not_found(c, "model", run);
    if (n < 0 || job_id_make(id, &c->g->secret, c->account, run, JOB_UNLOAD, 0, &e) < 0)
        return call_fail(c, &e);
    return call_answer(c, 200, json_pack("{s:s, s:s}", "request_id", id, "model_id", run));
}

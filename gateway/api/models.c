/* models.c - runs are born here, fresh (create_model) or from a checkpoint (load_weights), and
 * loaded.
 *
 * A run's row is written before its first job, so that every later call can be checked.  A run that
 * cannot be made (an unknown base model, say) gets its row too, with the reason as `refusal`: its
 * future fails with it, which is how the SDK wants to hear of it, and nothing is published. */
#include "api/models.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/arrivals.h"
#include "api/endpoints.h"
#include "api/limits.h"
#include "api/room.h"
#include "api/sessions.h"
#include "api/submit.h"
#include "api/trained.h"
#include "wire/json.h"
#include "wire/payload.h"

int models_unknown(struct call *c, const char *name, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(
        c->db, &rows, e,
        "SELECT coalesce(string_agg('\"' || name || '\"', ', ' ORDER BY name), 'none') FROM models",
        NULL);
    if (n >= 0)
        err_set(e, ERR_USER, "unknown base model \"%s\", expected one of: %s", name,
                db_text(rows, 0, 0));
    db_result_free(rows);
    return -1;
}

/* ---------------------------------------------------------------- a run's birth */

struct birth {
    char session[ID_SIZE], run[ID_SIZE], base[MODEL_NAME_SIZE];
    struct create_request create; /* the payload of its first job */
    char refusal[ERR_TEXT_MAX];   /* "": it can be made */
    int partitions;
    char *metadata; /* JSON text, owned */
};

/* A client that knows no sessions gets one a model; the key makes a repeated call the same one. */
static int stand_in(struct call *c, struct birth *b, struct err *e)
{
    char key[ARRIVAL_KEY_MAX + 1];
    if (arrivals_key(c, key, e) < 0) return -1;
    session_of(c, "model", key, b->session);
    return session_stand_in(c, b->session, NULL, e);
}

static int read_birth(struct call *c, const json_t *body, struct birth *b, struct err *e)
{
    json_int_t number = 0;
    json_t *metadata = json_object_get(body, "user_metadata");
    bool none = call_is_hpcai(c) && !json_object_get(body, "session_id");
    if (none && stand_in(c, b, e) < 0) return -1;
    if (wire_json_text(body, "", "session_id", !none, b->session, sizeof b->session, e) < 0 ||
        wire_json_int(body, "", "model_seq_id", !none, 0, INT32_MAX, &number, e) < 0 ||
        run_id_make(b->run, b->session, number, e) < 0)
        return -1;
    if (metadata && !json_is_null(metadata) && !json_is_object(metadata))
        return err_set(e, ERR_USER, "user_metadata is %s, expected an object",
                       wire_json_type(metadata));
    b->metadata = json_is_object(metadata) ? json_dumps(metadata, JSON_COMPACT) : strdup("{}");
    if (!b->metadata) return err_set(e, ERR_RETRY, "out of memory");
    if (strlen(b->metadata) > METADATA_MAX)
        return err_set(e, ERR_USER, "user_metadata has %zu bytes, expected at most %d",
                       strlen(b->metadata), METADATA_MAX);
    return 0;
}

/* The rest of the call decides whether the run can be made; what speaks against it becomes its
 * refusal. */
static int refuse_birth(struct birth *b, const struct err *why)
{
    if (why->kind != ERR_USER) return -1;
    snprintf(b->refusal, sizeof b->refusal, "%s", why->text);
    return 0;
}

static int insert_birth(struct call *c, const struct birth *b, struct err *e)
{
    char rank[16], shard[16];
    int partition = b->partitions ? partition_of(b->run, b->partitions) : 0;
    snprintf(rank, sizeof rank, "%d", b->create.rank);
    snprintf(shard, sizeof shard, "%d", partition);
    const char *params[] = {b->run,
                            c->account,
                            b->session,
                            b->base,
                            rank,
                            b->create.train_attn ? "t" : "f",
                            b->create.train_mlp ? "t" : "f",
                            b->create.train_unembed ? "t" : "f",
                            shard,
                            *b->refusal ? b->refusal : NULL,
                            b->metadata};
    return db_query(c->db,
                    "INSERT INTO runs (id, account_id, session_id, model, rank, train_attn, "
                    "train_mlp, train_unembed, "
                    "shard, refusal, user_metadata) VALUES ($1, $2, $3, $4, $5::integer, "
                    "$6::boolean, $7::boolean, "
                    "$8::boolean, $9::integer, $10, $11::jsonb) ON CONFLICT (id) DO NOTHING",
                    params, 11, NULL, e);
}

static enum http_verdict answer_refused(struct call *c, const char *run)
{
    struct err e = {0};
    char id[ID_SIZE];
    if (job_id_make(id, &c->g->secret, c->account, run, JOB_CREATE, 0, &e) < 0)
        return call_fail(c, &e);
    atomic_fetch_add(&c->g->counts.refused, 1);
    return call_answer(c, 200, json_pack("{s:s, s:s}", "request_id", id, "model_id", run));
}

/* Row, then job.  A repeated call finds the row of the first one, which is what counts. */
static enum http_verdict give_birth(struct call *c, const struct birth *b)
{
    struct run_facts facts;
    struct err e = {0};
    struct submission s = {.kind = JOB_CREATE, .seq = 0, .content = CONTENT_JSON};

    int n = owner_session(c, b->session, &e);
    if (n == 0) return call_not_found(c, "session", b->session);
    if (n > 0) n = insert_birth(c, b, &e);
    if (n >= 0) n = owner_look_up_run(c, b->run, &facts, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "model", b->run);
    if (facts.refused) return answer_refused(c, b->run);
    if (*b->refusal) {
        http_answer_error(c->r, 400, "%s",
                          b->refusal); /* the first call of this number was a good one */
        return HTTP_TAKEN;
    }

    char *payload = create_request_encode(&b->create, &s.size, &e);
    if (!payload) return call_fail(c, &e);
    s.payload = payload;
    enum http_verdict v = submit_train(c, b->run, &facts, &s);
    free(payload);
    return v;
}

/* ---------------------------------------------------------------- create_model */

static int read_adapter(const json_t *body, struct create_request *r, struct err *e)
{
    const json_t *lora = json_object_get(body, "lora_config");
    json_int_t rank = 32, seed = 0;
    r->train_attn = r->train_mlp = r->train_unembed = true;
    if (lora && !json_is_null(lora) && !json_is_object(lora))
        return err_set(e, ERR_USER, "lora_config is %s, expected an object", wire_json_type(lora));
    if (!json_is_object(lora)) lora = NULL;
    r->rank = (int)rank;
    if (!lora) return 0;
    if (wire_json_int(lora, "lora_config.", "rank", false, 1, RANK_MAX, &rank, e) < 0 ||
        wire_json_int(lora, "lora_config.", "seed", false, INT64_MIN, INT64_MAX, &seed, e) < 0 ||
        wire_json_bool(lora, "lora_config.", "train_attn", false, &r->train_attn, e) < 0 ||
        wire_json_bool(lora, "lora_config.", "train_mlp", false, &r->train_mlp, e) < 0 ||
        wire_json_bool(lora, "lora_config.", "train_unembed", false, &r->train_unembed, e) < 0)
        return -1;
    r->rank = (int)rank;
    r->seed = (uint64_t)seed;
    r->has_seed = json_is_integer(json_object_get(lora, "seed"));
    if (!r->train_attn && !r->train_mlp && !r->train_unembed)
        return err_set(
            e, ERR_USER,
            "lora_config trains nothing, expected train_attn, train_mlp or train_unembed");
    return 0;
}

static int check_optimizer(const json_t *body, struct err *e)
{
    const json_t *optimizer = json_object_get(body, "optimizer_config");
    char type[64] = "adamw";
    if (!json_is_object(optimizer)) return 0;
    if (wire_json_text(optimizer, "optimizer_config.", "type", false, type, sizeof type, e) < 0)
        return -1;
    if (strcmp(type, "adamw") != 0)
        return err_set(e, ERR_USER, "optimizer_config.type is \"%s\", expected \"adamw\"", type);
    return 0;
}

/* A run that is there already needs no room: the answer to the first call may have been lost. */
static int find_room(struct call *c, const struct birth *b, struct err *e)
{
    struct run_facts facts;
    int n = owner_look_up_run(c, b->run, &facts, e);
    if (n < 0) return -1;
    return n ? 0 : room_for_run(c, b->run, e);
}

static int check_fresh(struct call *c, const json_t *body, struct birth *b, struct err *e)
{
    struct model_facts model;
    if (read_adapter(body, &b->create, e) < 0 || check_optimizer(body, e) < 0) return -1;
    int n = owner_model(c, b->base, &model, e);
    if (n == 0) return models_unknown(c, b->base, e);
    if (n < 0) return -1;
    b->partitions = model.train_partitions;
    return find_room(c, b, e);
}

enum http_verdict api_create_model(struct call *c)
{
    struct birth b = {0};
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_birth(c, body, &b, &e);
    if (rc == 0) rc = wire_json_text(body, "", "base_model", true, b.base, sizeof b.base, &e);
    if (rc == 0 && check_fresh(c, body, &b, &e) < 0) rc = refuse_birth(&b, &e);
    json_decref(body);
    enum http_verdict v = rc < 0 ? call_fail(c, &e) : give_birth(c, &b);
    free(b.metadata);
    return v;
}

/* ---------------------------------------------------------------- load_weights */

struct load {
    char path[PATH_SIZE], token[TOKEN_SIZE];
    bool with_optimizer;
    struct checkpoint_ref checkpoint;
    struct run_facts source;
};

static int read_load(const json_t *body, struct load *l, struct err *e)
{
    if (wire_json_text(body, "", "path", true, l->path, sizeof l->path, e) < 0 ||
        wire_json_bool(body, "", "optimizer", false, &l->with_optimizer, e) < 0 ||
        checkpoint_uri_parse(l->path, &l->checkpoint, e) < 0)
        return -1;
    if (strcmp(l->checkpoint.kind, "training") != 0)
        return err_set(e, ERR_USER, "\"%s\" is %s checkpoint, expected one of save_weights",
                       l->path,
                       !strcmp(l->checkpoint.kind, "sampler") ? "a sampler's" : "an external");
    return wire_json_text(body, "", "weights_access_token", false, l->token, sizeof l->token, e);
}

/* The name becomes one immutable version now.  Somebody else's is as missing as one that never was.
 */
static int find_load(struct call *c, struct load *l, struct err *e)
{
    int n = owner_checkpoint(c, &l->checkpoint, l->token, &l->source, e);
    if (n == 0) return err_set(e, ERR_USER, "checkpoint \"%s\" not found", l->path);
    return n < 0 ? -1 : 0;
}

/* 1 and *b is complete, 0 when there is no such checkpoint, -1 with what speaks against it. */
static int check_from(struct call *c, const json_t *body, struct birth *b, struct load *l,
                      struct err *e)
{
    struct model_facts model;
    if (wire_json_text(body, "", "base_model", false, b->base, sizeof b->base, e) < 0) return -1;
    if (check_optimizer(body, e) < 0 || read_load(body, l, e) < 0) return -1;
    int n = owner_checkpoint(c, &l->checkpoint, l->token, &l->source, e);
    if (n != 1) return n;
    if (*b->base && strcmp(b->base, l->source.model) != 0)
        return err_set(e, ERR_USER, "\"%s\" is of base model \"%s\", not \"%s\"", l->path,
                       l->source.model, b->base);
    n = owner_model(c, l->source.model, &model, e);
    if (n == 0) return models_unknown(c, l->source.model, e);
    if (n < 0) return -1;
    snprintf(b->base, sizeof b->base, "%s", l->source.model);
    b->partitions = model.train_partitions;
    b->create = (struct create_request){.rank = l->source.rank,
                                        .train_attn = l->source.train_attn,
                                        .train_mlp = l->source.train_mlp,
                                        .train_unembed = l->source.train_unembed,
                                        .from_checkpoint = true,
                                        .with_optimizer = l->with_optimizer,
                                        .checkpoint = l->checkpoint};
    snprintf(b->create.path, sizeof b->create.path, "%s", l->path);
    return find_room(c, b, e) < 0 ? -1 : 1;
}

/* A checkpoint that is not there, or not the caller's, is a 404 as everywhere; no other call waits
 * for this number, so nothing has to be left behind. */
static enum http_verdict load_new(struct call *c, const json_t *body)
{
    struct birth b = {0};
    struct load l = {0};
    struct err e = {0};
    enum http_verdict v;
    int n = -1;
    if (read_birth(c, body, &b, &e) == 0) {
        n = check_from(c, body, &b, &l, &e);
        if (n < 0 && refuse_birth(&b, &e) == 0) n = 1;
    }
    if (n < 0)
        v = call_fail(c, &e);
    else if (n == 0)
        v = call_not_found(c, "checkpoint", l.path);
    else
        v = give_birth(c, &b);
    free(b.metadata);
    return v;
}

/* Of its own run a name means the latest save before this load, which may not have been executed
 * yet: the worker resolves it.  Every other name is resolved here. */
static int check_live(struct call *c, const json_t *body, const struct trained *t, struct load *l,
                      struct err *e)
{
    if (read_load(body, l, e) < 0) return -1;
    l->checkpoint.seq = -1;
    if (!strcmp(l->checkpoint.run, t->run)) return 0;
    if (find_load(c, l, e) < 0) return -1;
    if (strcmp(l->source.model, t->facts.model) != 0)
        return err_set(e, ERR_USER, "\"%s\" is of base model \"%s\", this model is of \"%s\"",
                       l->path, l->source.model, t->facts.model);
    if (l->source.rank != t->facts.rank)
        return err_set(e, ERR_USER, "\"%s\" has rank %d, this model has rank %d", l->path,
                       l->source.rank, t->facts.rank);
    return 0;
}

/* hpcai's load_state has no say about the optimizer.  It is the only way there to go on from where
 * a run was, so it restores the optimizer's state too. */
static enum http_verdict load_live(struct call *c, const json_t *body)
{
    struct trained t;
    struct load l = {.with_optimizer = call_is_hpcai(c)};
    struct err e = {0};
    enum step step = trained_begin(c, body, &t);
    if (step != STEP_ON) return step_verdict(step);
    if (check_live(c, body, &t, &l, &e) < 0)
        return e.kind == ERR_USER ? submit_reject(c, t.run, &t.facts, t.seq, e.text)
                                  : call_fail(c, &e);

    struct load_request r = {.checkpoint = l.checkpoint, .with_optimizer = l.with_optimizer};
    struct submission s = {.kind = JOB_LOAD, .seq = t.seq, .content = CONTENT_JSON};
    snprintf(r.path, sizeof r.path, "%s", l.path);
    char *payload = load_request_encode(&r, &s.size, &e);
    if (!payload) return call_fail(c, &e);
    s.payload = payload;
    enum http_verdict v = submit_train(c, t.run, &t.facts, &s);
    free(payload);
    return v;
}

enum http_verdict api_load_weights(struct call *c)
{
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    const json_t *model = json_object_get(body, "model_id");
    enum http_verdict v = model && !json_is_null(model) ? load_live(c, body) : load_new(c, body);
    json_decref(body);
    return v;
}

/* samplers.c - sampling sessions: made by name, made for clients that know none, shown, joined. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/endpoints.h"
#include "api/limits.h"
#include "api/models.h"
#include "api/owner.h"
#include "api/samplers.h"
#include "api/sessions.h"
#include "wire/json.h"


struct sampler_request {
    char session[ID_SIZE], id[ID_SIZE], base[MODEL_NAME_SIZE], path[PATH_SIZE];
    struct checkpoint_ref checkpoint; /* run "": the bare base model */
};

static int read_sampler(const json_t *body, struct sampler_request *s, struct err *e)
{
    json_int_t number = 0;
    if (wire_json_text(body, "", "session_id", true, s->session, sizeof s->session, e) < 0 ||
        wire_json_int(body, "", "sampling_session_seq_id", true, 0, INT64_MAX, &number, e) < 0 ||
        wire_json_text(body, "", "base_model", false, s->base, sizeof s->base, e) < 0 ||
        wire_json_text(body, "", "model_path", false, s->path, sizeof s->path, e) < 0)
        return -1;
    if (!*s->base && !*s->path)
        return err_set(e, ERR_USER, "base_model and model_path are missing, expected one");
    if (*s->path && checkpoint_uri_parse(s->path, &s->checkpoint, e) < 0) return -1;
    return sampler_id_make(s->id, s->session, number, e);
}

/* Resolves the checkpoint to its version and the base model to its partitions.  STEP_ON: s->base is
 * set. */
static enum step resolve(struct call *c, struct sampler_request *s, struct model_facts *model)
{
    struct run_facts source;
    struct err e = {0};
    int n = 1;
    if (*s->path) {
        n = owner_checkpoint(c, &s->checkpoint, NULL, &source, &e);
        if (n == 0) call_not_found(c, "checkpoint", s->path);
        if (n == 1 && *s->base && strcmp(s->base, source.model) != 0)
            n = err_set(&e, ERR_USER, "\"%s\" is of base model \"%s\", not \"%s\"", s->path,
                        source.model, s->base);
        if (n == 1) snprintf(s->base, sizeof s->base, "%s", source.model);
    }
    if (n == 1) {
        n = owner_model(c, s->base, model, &e);
        if (n == 0) n = models_unknown(c, s->base, &e);
    }
    if (n < 0) call_fail(c, &e);
    return n == 1 ? STEP_ON : STEP_ANSWERED;
}

static int insert_sampler(struct call *c, const struct sampler_request *s,
                          const struct model_facts *model, struct err *e)
{
    char seq[24], shard[16];
    bool bare = !*s->path;
    snprintf(seq, sizeof seq, "%" PRId64, s->checkpoint.seq);
    snprintf(shard, sizeof shard, "%d", partition_of(s->id, model->sample_partitions));
    const char *params[] = {s->id,
                            c->account,
                            s->session,
                            s->base,
                            bare ? NULL : s->checkpoint.run,
                            bare ? NULL : seq,
                            bare ? NULL : s->path,
                            shard};
    return db_query(
        c->db,
        "INSERT INTO samplers (id, account_id, session_id, model, checkpoint_run, checkpoint_seq, "
        "model_path, shard) VALUES ($1, $2, $3, $4, $5, $6::bigint, $7, $8::integer) "
        "ON CONFLICT (id) DO NOTHING",
        params, 8, NULL, e);
}

/* The same (session, number) is the same sampler; what it samples from was settled the first time.
 */
enum http_verdict api_create_sampler(struct call *c)
{
    struct sampler_request s = {0};
    struct sampler_facts facts;
    struct model_facts model;
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int n = read_sampler(body, &s, &e);
    json_decref(body);
    if (n < 0) return call_fail(c, &e);
    n = owner_session(c, s.session, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "session", s.session);
    if (resolve(c, &s, &model) != STEP_ON) return HTTP_TAKEN;
    if (insert_sampler(c, &s, &model, &e) < 0) return call_fail(c, &e);
    enum step step = owner_find_sampler(c, s.id, &facts);
    if (step != STEP_ON) return step_verdict(step);
    return call_answer(
        c, 200,
        json_pack("{s:s, s:s}", "sampling_session_id", s.id, "type", "create_sampling_session"));
}

enum http_verdict api_get_sampler(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *id = http_star(c->r, 0);
    int n = db_queryf(c->db, &rows, &e,
                      "SELECT json_build_object('sampler_id', id, 'base_model', model, "
                      "'model_path', model_path)::text "
                      "FROM samplers WHERE id = $1 AND account_id = $2",
                      id, c->account, NULL);
    return call_answer_row(c, n, rows, "sampling session", id, &e);
}

/* A number for each client that samples from one session; never 0, which is the one that made it.
 */
enum http_verdict api_join_sampler(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    char id[ID_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_text(body, "", "sampling_session_id", true, id, sizeof id, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    int n = db_queryf(c->db, &rows, &e,
                      "UPDATE samplers SET clones = clones + 1 WHERE id = $1 AND account_id = $2 "
                      "RETURNING json_build_object('client_counter', clones)::text",
                      id, c->account, NULL);
    return call_answer_row(c, n, rows, "sampling session", id, &e);
}

/* ---------------------------------------------------------------- samplers that stand in */

/* One sampler an account and set of weights: its id follows from both, so nothing has to be
 * remembered.  The number has 62 bits of a hash. */
static int stand_in_id(struct call *c, struct sampler_request *s, struct err *e)
{
    char text[2 * ID_SIZE + MODEL_NAME_SIZE];
    snprintf(text, sizeof text, "%s|%s|%" PRId64, s->base, s->checkpoint.run, s->checkpoint.seq);
    session_of(c, "samplers", "", s->session);
    return sampler_id_make(s->id, s->session, (int64_t)(seed_of(text) >> 2), e);
}

enum step samplers_stand_in(struct call *c, const char *base, const char *path, char id[ID_SIZE],
                            struct sampler_facts *facts)
{
    struct sampler_request s = {0};
    struct model_facts model;
    struct err e = {0};
    snprintf(s.base, sizeof s.base, "%s", base);
    snprintf(s.path, sizeof s.path, "%s", path);
    if (!c->db) return STEP_WORKER;
    if (*path && checkpoint_uri_parse(path, &s.checkpoint, &e) < 0) {
        call_fail(c, &e);
        return STEP_ANSWERED;
    }
    enum step step = resolve(c, &s, &model);
    if (step != STEP_ON) return step;
    if (stand_in_id(c, &s, &e) < 0 || session_stand_in(c, s.session, NULL, &e) < 0 ||
        insert_sampler(c, &s, &model, &e) < 0) {
        call_fail(c, &e);
        return STEP_ANSWERED;
    }
    snprintf(id, ID_SIZE, "%s", s.id);
    return owner_find_sampler(c, id, facts);
}

/* copies.c - a checkpoint copied into a run of its own, which holds it and is never trained.
 *
 * The files are linked, not read: checkpoints never change, so both live as long as somebody wants
 * them. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/arrivals.h"
#include "api/endpoints.h"
#include "api/limits.h"
#include "api/owner.h"
#include "api/projects.h"
#include "api/room.h"
#include "api/sessions.h"
#include "api/sql.h"
#include "base/blobs.h"
#include "wire/json.h"

#define COPY_SEQ 1 /* of the one checkpoint in its run */

struct copy {
    struct checkpoint_ref source;
    struct run_facts facts;
    char path[PATH_SIZE], project[PROJECT_SIZE + 1];
    char session[ID_SIZE], run[ID_SIZE];
    char ttl[24]; /* "": none */
    char made[PATH_SIZE];
};

static int read_copy(const json_t *body, struct copy *k, json_int_t *number, struct err *e)
{
    json_int_t ttl = 0;
    *number = -1;
    if (wire_json_text(body, "", "source_path", true, k->path, sizeof k->path, e) < 0 ||
        wire_json_text(body, "", "destination_project_id", false, k->project, sizeof k->project,
                       e) < 0 ||
        wire_json_text(body, "", "session_id", false, k->session, sizeof k->session, e) < 0 ||
        wire_json_int(body, "", "model_seq_id", *k->session != '\0', 0, INT32_MAX, number, e) < 0 ||
        wire_json_int(body, "", "ttl_seconds", false, TTL_MIN_S, TTL_MAX_S, &ttl, e) < 0)
        return -1;
    if (*k->project && project_check(k->project, e) < 0) return -1;
    if (ttl) snprintf(k->ttl, sizeof k->ttl, "%" PRId64, (int64_t)ttl);
    return checkpoint_uri_parse(k->path, &k->source, e);
}

/* 1: the copy's run is settled; 0: there is no such session; -1.  It is of the client's own session
 * and number, or of a session that stands in: the same one for the same key, so that a repeated
 * call finds the copy. */
static int settle_run(struct call *c, struct copy *k, json_int_t number, struct err *e)
{
    char key[ARRIVAL_KEY_MAX + 1];
    if (number >= 0) {
        int n = owner_session(c, k->session, e);
        if (n <= 0) return n;
        return run_id_make(k->run, k->session, number, e) < 0 ? -1 : 1;
    }
    if (arrivals_key(c, key, e) < 0) return -1;
    session_of(c, "copy", key, k->session);
    if (session_stand_in(c, k->session, *k->project ? k->project : NULL, e) < 0) return -1;
    return run_id_make(k->run, k->session, 0, e) < 0 ? -1 : 1;
}

/* The source is part of the name: that a number is taken shows only after the files are there, and
 * they must not touch those of the first copy.  Colons of ids are no good in every file system. */
static void name_folder(const struct call *c, const struct copy *k, char out[PATH_SIZE])
{
    char source[ID_SIZE + 24];
    snprintf(source, sizeof source, "%s|%" PRId64, k->source.run, k->source.seq);
    snprintf(out, PATH_SIZE, "checkpoints/%s/%s/%d-%s-copy-%016" PRIx64, c->account, k->run,
             COPY_SEQ, k->source.kind, seed_of(source));
    for (char *at = out; *at; at++)
        if (*at == ':') *at = '_';
}

static int link_files(struct call *c, const struct copy *k, const char *dir, struct err *e)
{
    struct db_result *rows = NULL;
    char seq[24];
    snprintf(seq, sizeof seq, "%" PRId64, k->source.seq);
    int n = db_queryf(c->db, &rows, e,
                      "SELECT dir FROM checkpoints WHERE run_id = $1 AND seq = $2::bigint",
                      k->source.run, seq, NULL);
    int rc = n == 1 ? blobs_link(c->g->conf.data, db_text(rows, 0, 0), dir, e)
             : n < 0 ? -1
                     : err_set(e, ERR_USER, "checkpoint \"%s\" is gone", k->path);
    db_result_free(rows);
    return rc;
}

/* clang-format off */
#define SQL_COPY                                                                                   \
    "WITH source AS (SELECT k.*, r.model, r.rank, r.train_attn, r.train_mlp, r.train_unembed "     \
    "FROM checkpoints k JOIN runs r ON r.id = k.run_id WHERE k.run_id = $4 AND k.seq = $5::bigint), " \
    "run AS (INSERT INTO runs (id, account_id, session_id, model, rank, train_attn, train_mlp, "   \
    "train_unembed, shard, copied) SELECT $1, $2, $3, model, rank, train_attn, train_mlp, "        \
    "train_unembed, 0, true FROM source ON CONFLICT (id) DO NOTHING RETURNING id), "               \
    "k AS (INSERT INTO checkpoints (run_id, seq, account_id, kind, name, dir, sha256, size_bytes, " \
    "has_optimizer, epoch, user_metadata, expires_at) SELECT run.id, $6::bigint, $2, s.kind, s.name, $7, " \
    "s.sha256, s.size_bytes, s.has_optimizer, 0, s.user_metadata, now() + nullif($8, '')::bigint * " \
    "interval '1 second' FROM source s, run RETURNING account_id, run_id, kind, name), "           \
    "made AS (SELECT account_id, run_id, " SQL_TINKER_PATH " AS path FROM k), "                    \
    "noted AS (" SQL_NOTE("checkpoints", "checkpoint.copied",                                      \
                          "jsonb_build_object('source', $9::text)", "made") ") SELECT 1"
/* clang-format on */

static int write_rows(struct call *c, const struct copy *k, const char *dir, struct err *e)
{
    char source_seq[24], seq[24];
    snprintf(source_seq, sizeof source_seq, "%" PRId64, k->source.seq);
    snprintf(seq, sizeof seq, "%d", COPY_SEQ);
    int n = db_queryf(c->db, NULL, e, SQL_COPY, k->run, c->account, k->session, k->source.run,
                      source_seq, seq, dir, k->ttl, k->path, NULL);
    return n < 0 ? -1 : 0;
}

/* What the run holds now: ours, or that of an earlier call of the same key or number. */
static enum http_verdict answer_copy(struct call *c, const struct copy *k)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    int n = db_queryf(c->db, &rows, &e,
                      "SELECT json_build_object('tinker_path', " SQL_TINKER_PATH
                      ")::text FROM checkpoints k JOIN runs r ON r.id = k.run_id WHERE k.run_id "
                      "= $1 AND k.account_id = $2 AND r.copied",
                      k->run, c->account, NULL);
    if (n == 0) {
        http_answer_error(c->r, 400, "model_seq_id of session \"%s\" is taken by a trained model",
                          k->session);
        return HTTP_TAKEN;
    }
    return call_answer_row(c, n, rows, "", "", &e);
}

/* A copy that is there already needs no room: the answer to the first call may have been lost. */
static int find_room(struct call *c, const struct copy *k, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT 1 FROM checkpoints WHERE run_id = $1 AND account_id = $2 LIMIT 1",
                      k->run, c->account, NULL);
    db_result_free(rows);
    if (n < 0) return -1;
    return n ? 0 : room_for_checkpoint(c, e);
}

enum http_verdict api_copy_weights(struct call *c)
{
    struct copy k = {0};
    struct err e = {0};
    json_int_t number;
    char dir[PATH_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_copy(body, &k, &number, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    const char *token = http_header(c->r, "X-Tinker-Weights-Access-Token");
    int n = owner_checkpoint(c, &k.source, token, &k.facts, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "checkpoint", k.path);
    n = settle_run(c, &k, number, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "session", k.session);
    if (find_room(c, &k, &e) < 0) return call_fail(c, &e);
    name_folder(c, &k, dir);
    if (link_files(c, &k, dir, &e) < 0 || write_rows(c, &k, dir, &e) < 0) return call_fail(c, &e);
    return answer_copy(c, &k);
}

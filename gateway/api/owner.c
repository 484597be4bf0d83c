/* owner.c - see owner.h. */
#include "api/owner.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/accounts.h"
#include "api/cache.h"
#include "api/sql.h"
#include "base/clock.h"

#define KEY_SIZE (TENANT_SIZE + ID_SIZE + 1)

struct cache *owner_runs_create(struct err *e)
{
    return cache_create(OWNED_CACHED_MAX, sizeof(struct run_facts), e);
}

struct cache *owner_samplers_create(struct err *e)
{
    return cache_create(OWNED_CACHED_MAX, sizeof(struct sampler_facts), e);
}

/* The account is part of the key: another account's entry is no entry, in the same time. */
static void key_of(const struct call *c, const char *id, char key[KEY_SIZE])
{
    snprintf(key, KEY_SIZE, "%s|%.*s", c->account, ID_SIZE - 1, id);
}

#define RUN_COLUMNS                                                                                \
    "r.model, r.shard, r.rank, r.train_attn, r.train_mlp, r.train_unembed, "                       \
    "r.refusal IS NOT NULL, r.copied, s.sdk = 'hpcai'"
#define RUN_TABLES "runs r JOIN sessions s ON s.id = r.session_id"

static void read_run(const struct db_result *rows, int column, struct run_facts *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->model, sizeof out->model, "%s", db_text(rows, 0, column));
    out->shard = (int)db_int(rows, 0, column + 1);
    out->rank = (int)db_int(rows, 0, column + 2);
    out->train_attn = db_bool(rows, 0, column + 3);
    out->train_mlp = db_bool(rows, 0, column + 4);
    out->train_unembed = db_bool(rows, 0, column + 5);
    out->refused = db_bool(rows, 0, column + 6);
    out->copied = db_bool(rows, 0, column + 7);
    out->arrival = db_bool(rows, 0, column + 8);
}

int owner_look_up_run(struct call *c, const char *id, struct run_facts *out, struct err *e)
{
    struct db_result *rows = NULL;
    char key[KEY_SIZE];
    int n = db_queryf(c->db, &rows, e,
                      "SELECT " RUN_COLUMNS " FROM " RUN_TABLES
                      " WHERE r.id = $1 AND r.account_id = $2",
                      id, c->account, NULL);
    if (n == 1) {
        read_run(rows, 0, out);
        key_of(c, id, key);
        cache_put(c->g->runs, key, out, clock_mono_ms());
    }
    db_result_free(rows);
    return n;
}

static int look_up_sampler(struct call *c, const char *id, struct sampler_facts *out, struct err *e)
{
    struct db_result *rows = NULL;
    char key[KEY_SIZE];
    int n =
        db_queryf(c->db, &rows, e,
                  "SELECT model, shard, coalesce(checkpoint_run, ''), coalesce(checkpoint_seq, 0) "
                  "FROM samplers WHERE id = $1 AND account_id = $2",
                  id, c->account, NULL);
    if (n == 1) {
        memset(out, 0, sizeof *out);
        snprintf(out->model, sizeof out->model, "%s", db_text(rows, 0, 0));
        out->shard = (int)db_int(rows, 0, 1);
        snprintf(out->checkpoint_run, sizeof out->checkpoint_run, "%s", db_text(rows, 0, 2));
        out->checkpoint_seq = db_int(rows, 0, 3);
        key_of(c, id, key);
        cache_put(c->g->samplers, key, out, clock_mono_ms());
    }
    db_result_free(rows);
    return n;
}

/* What a look-up's count means for the call. */
static enum step found(struct call *c, int n, const char *what, const char *id, const struct err *e)
{
    if (n == 1) return STEP_ON;
    if (n < 0)
        call_fail(c, e);
    else
        call_not_found(c, what, id);
    return STEP_ANSWERED;
}

enum step owner_find_run(struct call *c, const char *id, struct run_facts *out)
{
    struct err e = {0};
    int64_t put_ms;
    char key[KEY_SIZE];
    key_of(c, id, key);
    if (cache_get(c->g->runs, key, out, &put_ms)) return STEP_ON;
    if (!c->db) return STEP_WORKER;
    return found(c, owner_look_up_run(c, id, out, &e), "model", id, &e);
}

enum step owner_find_sampler(struct call *c, const char *id, struct sampler_facts *out)
{
    struct err e = {0};
    int64_t put_ms;
    char key[KEY_SIZE];
    key_of(c, id, key);
    if (cache_get(c->g->samplers, key, out, &put_ms)) return STEP_ON;
    if (!c->db) return STEP_WORKER;
    return found(c, look_up_sampler(c, id, out, &e), "sampling session", id, &e);
}

void owner_recent_model(struct call *c, const char *parent, char model[MODEL_NAME_SIZE])
{
    struct run_facts run;
    struct sampler_facts sampler;
    int64_t put_ms;
    char key[KEY_SIZE];
    key_of(c, parent, key);
    model[0] = '\0';
    if (cache_get(c->g->runs, key, &run, &put_ms))
        memcpy(model, run.model, MODEL_NAME_SIZE);
    else if (cache_get(c->g->samplers, key, &sampler, &put_ms))
        memcpy(model, sampler.model, MODEL_NAME_SIZE);
}

int owner_session(struct call *c, const char *id, struct err *e)
{
    return db_queryf(c->db, NULL, e, "SELECT 1 FROM sessions WHERE id = $1 AND account_id = $2", id,
                     c->account, NULL);
}

/* Whose checkpoints may be read: the caller's, or those of the account that gave a token. */
static int reader_of(struct call *c, const char *token, char account[TENANT_SIZE], struct err *e)
{
    memcpy(account, c->account, TENANT_SIZE);
    if (!token || !*token) return 0;
    int n = accounts_of(c->g->accounts, c, token, account, e);
    if (n == 0)
        return err_set(e, ERR_USER, "the weights access token is nobody's, or may not read");
    return n < 0 ? -1 : 0;
}

int owner_checkpoint(struct call *c, struct checkpoint_ref *ref, const char *token,
                     struct run_facts *run, struct err *e)
{
    struct db_result *rows = NULL;
    char account[TENANT_SIZE];
    if (reader_of(c, token, account, e) < 0) return -1;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT k.seq, " RUN_COLUMNS " FROM checkpoints k JOIN (" RUN_TABLES
                      ") ON r.id = k.run_id WHERE k.run_id = $1 AND k.kind = $2 AND k.name = $3 "
                      "AND (k.account_id = $4 OR k.account_id = $5 OR k.published_at IS NOT NULL) "
                      "AND " SQL_CHECKPOINT_LIVES,
                      ref->run, ref->kind, ref->name, c->account, account, NULL);
    if (n == 1) {
        ref->seq = db_int(rows, 0, 0);
        read_run(rows, 1, run);
    }
    db_result_free(rows);
    return n;
}

int owner_model(struct call *c, const char *name, struct model_facts *out, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(
        c->db, &rows, e,
        "SELECT train_partitions, sample_partitions, arch, model_dir FROM models WHERE name = $1",
        name, NULL);
    if (n == 1) {
        memset(out, 0, sizeof *out);
        out->train_partitions = (int)db_int(rows, 0, 0);
        out->sample_partitions = (int)db_int(rows, 0, 1);
        snprintf(out->arch, sizeof out->arch, "%s", db_text(rows, 0, 2));
        snprintf(out->dir, sizeof out->dir, "%s", db_text(rows, 0, 3));
    }
    db_result_free(rows);
    return n;
}

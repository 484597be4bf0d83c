/* checkpoint.c - see checkpoint.h. */
#include "checkpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/failpoint.h"
#include "base/log.h"
#include "folder.h"
#include "loaded.h"
#include "worker.h"

#define NUMBER_SIZE 24

/* What became files. */
struct saved {
    char seq[NUMBER_SIZE], epoch[NUMBER_SIZE], partition[NUMBER_SIZE], size[NUMBER_SIZE];
    const char *kind;
    char dir[FOLDER_PATH_MAX / 2];
    char sha256[65];
};

static bool is_sampler(const struct task *t)
{
    return t->job->kind == JOB_SAVE_SAMPLER;
}

/* ---------------------------------------------------------------- save */

/* Postgres refuses NUL inside JSON text; that must not look like trouble of ours. */
static int request_check(const struct task *t, const struct save_request *rq, struct err *e)
{
    if (rq->metadata && strstr(rq->metadata, "\\u0000"))
        return err_set(e, ERR_USER, "user_metadata has a NUL character, expected none");
    if (!*rq->name && !*rq->sampler)
        return err_set(e, ERR_USER, "a save needs a name or a sampler");
    if (rq->external && !is_sampler(t))
        return err_set(e, ERR_USER, "external is true, expected false in a training save");
    if (*rq->sampler && !is_sampler(t))
        return err_set(e, ERR_USER, "sampler is \"%s\", expected none in a training save",
                       rq->sampler);
    if (*rq->sampler && !strstr(rq->sampler, ":sample:"))
        return err_set(e, ERR_USER, "sampler is \"%s\", expected <session>:sample:<number>",
                       rq->sampler);
    return 0;
}

static int name_check(struct worker *w, const struct task *t, const struct save_request *rq,
                      const struct saved *s, struct err *e)
{
    if (!*rq->name || rq->overwrite) return 0;
    int64_t since = 0;
    int n;
    do
        n = db_queryf(w->db, NULL, e,
                      "SELECT 1 FROM checkpoints WHERE run_id = $1 AND kind = $2 AND name = $3"
                      " AND seq < $4::bigint AND deleted_at IS NULL"
                      " AND (expires_at IS NULL OR expires_at > now()) LIMIT 1",
                      t->run->id, s->kind, rq->name, s->seq, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    if (n)
        return err_set(e, ERR_USER, "checkpoint \"%s\" exists already and overwrite is false",
                       rq->name);
    return 0;
}

static void path_of(const struct worker *w, const struct saved *s, char out[FOLDER_PATH_MAX])
{
    snprintf(out, FOLDER_PATH_MAX, "%s/%s", w->conf->data, s->dir);
}

static int write_files(struct worker *w, const struct task *t, struct saved *s, struct err *e)
{
    char path[FOLDER_PATH_MAX], account[TENANT_SIZE], run[ID_SIZE];
    int64_t bytes;
    folder_name(account, sizeof account, t->job->tenant);
    folder_name(run, sizeof run, t->run->id);
    snprintf(s->dir, sizeof s->dir, "checkpoints/%s/%s/%s-%s-e%s", account, run, s->seq, s->kind,
             s->epoch);
    path_of(w, s, path);
    if (folder_make_parent(path, e) < 0 || folder_remove(path, e) < 0 ||
        adapter_save(t->run->adapter, path, !is_sampler(t), &bytes, s->sha256, e) < 0) {
        if (e->kind == ERR_USER) e->kind = ERR_RETRY; /* the files are ours, not the user's */
        return -1;
    }
    snprintf(s->size, sizeof s->size, "%" PRId64, bytes);
    return 0;
}

static int insert_checkpoint(struct worker *w, const struct task *t, const struct save_request *rq,
                             const struct saved *s, struct err *e)
{
    char ttl[NUMBER_SIZE];
    snprintf(ttl, sizeof ttl, "%" PRId64, rq->ttl_seconds);
    const char *params[] = {t->run->id,
                            s->seq,
                            t->job->tenant,
                            s->kind,
                            *rq->name ? rq->name : NULL,
                            s->dir,
                            s->sha256,
                            s->size,
                            is_sampler(t) ? "false" : "true",
                            s->epoch,
                            rq->metadata ? rq->metadata : "{}",
                            rq->ttl_seconds ? ttl : NULL,
                            w->conf->model,
                            stream_name(t->shard->stream),
                            s->partition,
                            w->owner};
    int n = db_query(
        w->db,
        "INSERT INTO checkpoints (run_id, seq, account_id, kind, name, dir, sha256, size_bytes,"
        " has_optimizer, epoch, user_metadata, expires_at)"
        " SELECT $1, $2::bigint, $3, $4, $5, $6, $7, $8::bigint, $9::boolean, $10::bigint,"
        " $11::jsonb, now() + $12::bigint * interval '1 second'"
        " WHERE EXISTS (SELECT 1 FROM shards WHERE model = $13 AND stream = $14"
        " AND partition = $15::int AND epoch = $10::bigint AND owner = $16)"
        " ON CONFLICT (run_id, seq) DO UPDATE SET kind = EXCLUDED.kind, name = EXCLUDED.name,"
        " dir = EXCLUDED.dir, sha256 = EXCLUDED.sha256, size_bytes = EXCLUDED.size_bytes,"
        " has_optimizer = EXCLUDED.has_optimizer, epoch = EXCLUDED.epoch"
        " WHERE checkpoints.epoch <= EXCLUDED.epoch",
        params, sizeof params / sizeof *params, NULL, e);
    if (n == 0) return shard_fenced(w, t->shard, "at a save", e);
    return n < 0 ? -1 : 0;
}

static int insert_sampler(struct worker *w, const struct task *t, const struct save_request *rq,
                          const struct saved *s, struct err *e)
{
    char session[ID_SIZE], shard[NUMBER_SIZE];
    snprintf(session, sizeof session, "%s", rq->sampler);
    *strstr(session, ":sample:") = '\0';
    snprintf(shard, sizeof shard, "%d", partition_of(rq->sampler, (int)w->conf->sample_partitions));
    int n = db_queryf(w->db, NULL, e,
                      "INSERT INTO samplers (id, account_id, session_id, model, checkpoint_run,"
                      " checkpoint_seq, shard) VALUES ($1, $2, $3, $4, $5, $6::bigint, $7::int)"
                      " ON CONFLICT (id) DO NOTHING",
                      rq->sampler, t->job->tenant, session, w->conf->model, t->run->id, s->seq,
                      shard, NULL);
    return n < 0 ? -1 : 0;
}

/* One attempt; ERR_RETRY: the database was away.  Doing it twice changes nothing. */
static int write_rows(struct worker *w, const struct task *t, const struct save_request *rq,
                      const struct saved *s, struct err *e)
{
    bool unknown;
    if (db_begin(w->db, e) < 0) return -1;
    if (insert_checkpoint(w, t, rq, s, e) < 0) goto fail;
    if (*rq->sampler && insert_sampler(w, t, rq, s, e) < 0) goto fail;
    return db_commit(w->db, &unknown, e);
fail:
    db_rollback(w->db);
    return -1;
}

int checkpoint_save(struct worker *w, struct task *t, const struct save_request *rq, struct err *e)
{
    char path[FOLDER_PATH_MAX];
    struct saved s = {.kind = rq->external ? "external" : is_sampler(t) ? "sampler" : "training"};
    snprintf(s.seq, sizeof s.seq, "%" PRId64, t->job->seq);
    snprintf(s.epoch, sizeof s.epoch, "%" PRId64, t->shard->epoch);
    snprintf(s.partition, sizeof s.partition, "%d", t->shard->partition);
    if (request_check(t, rq, e) < 0 || name_check(w, t, rq, &s, e) < 0) return -1;
    if (lease_wait_good(w->lease, e) < 0 || write_files(w, t, &s, e) < 0) return -1;
    path_of(w, &s, path);
    int64_t since = 0;
    int rc;
    do {
        if (folder_touch(path, e) < 0) return -1; /* swept all the same: it is written again */
        rc = write_rows(w, t, rq, &s, e);
    } while (rc < 0 && worker_again(w, &since, e));
    if (rc == 0) err_clear(e);
    if (rc == 0) failpoint_pass("wk.after_ckptrow", t->job->id);
    /* A key that leads nowhere; the database's own words are not for clients. */
    if (rc < 0 && e->kind == ERR_USER)
        err_set(e, ERR_USER, "the run, its account or the sampler's session is not known here");
    return rc;
}

/* ---------------------------------------------------------------- load */

struct found {
    char path[FOLDER_PATH_MAX];
    char dir[FOLDER_PATH_MAX / 2]; /* the same below the data folder */
    char sha256[65];
};

/* The row that sql finds for (run, text of seq, kind, name), which may have been deleted only when
 * replay asks. */
static int find(struct worker *w, const char *sql, const char *const *params, int count,
                const char *what, struct found *out, struct err *e)
{
    struct db_result *r = NULL;
    int64_t since = 0;
    int n;
    do
        n = db_query(w->db, sql, params, count, &r, e);
    while (n < 0 && worker_again(w, &since, e));
    if (n > 0) {
        snprintf(out->path, sizeof out->path, "%s/%s", w->conf->data, db_text(r, 0, 0));
        snprintf(out->dir, sizeof out->dir, "%s", db_text(r, 0, 0));
        snprintf(out->sha256, sizeof out->sha256, "%s", db_text(r, 0, 1));
        err_clear(e);
    }
    db_result_free(r);
    if (n < 0) return -1;
    return n ? 0 : err_set(e, ERR_USER, "checkpoint %s was not found", what);
}

static int find_ref(struct worker *w, const struct task *t, const struct checkpoint_ref *ref,
                    struct found *out, struct err *e)
{
    char seq[NUMBER_SIZE], before[NUMBER_SIZE], what[ID_SIZE + 200];
    snprintf(seq, sizeof seq, "%" PRId64, ref->seq);
    snprintf(before, sizeof before, "%" PRId64, t->job->seq);
    snprintf(what, sizeof what, "\"%s\" of run \"%s\"", *ref->name ? ref->name : seq, ref->run);
    const char *replay = t->known ? "true" : "false";
    if (ref->seq >= 0)
        return find(w,
                    "SELECT dir, sha256 FROM checkpoints WHERE run_id = $1 AND seq = $2::bigint"
                    " AND (deleted_at IS NULL OR $3::boolean)",
                    (const char *[]){ref->run, seq, replay}, 3, what, out, e);
    if (*ref->run && strcmp(ref->run, t->run->id))
        return err_set(e, ERR_USER, "checkpoint %s has no version, expected one", what);
    return find(w,
                "SELECT dir, sha256 FROM checkpoints WHERE run_id = $1 AND kind = $2 AND name = $3"
                " AND seq < $4::bigint AND (deleted_at IS NULL OR $5::boolean)"
                " ORDER BY seq DESC LIMIT 1",
                (const char *[]){t->run->id, ref->kind, ref->name, before, replay}, 5, what, out,
                e);
}

struct adapter *checkpoint_load(struct worker *w, const struct task *t,
                                const struct checkpoint_ref *ref, bool with_optimizer,
                                struct err *e)
{
    struct found f;
    int kept = t->known ? loaded_find(w, t, f.path, sizeof f.path, f.sha256, e) : 0;
    if (kept < 0 || (!kept && find_ref(w, t, ref, &f, e) < 0)) return NULL;
    if (!t->known && loaded_keep(w, t, f.dir, f.sha256, f.path, sizeof f.path, e) < 0) return NULL;
    return adapter_load(w->engine, f.path, f.sha256, true, with_optimizer, e);
}

static int find_live(struct worker *w, const char *run, int64_t seq, struct found *out,
                     struct err *e)
{
    char number[NUMBER_SIZE], what[ID_SIZE + 40];
    snprintf(number, sizeof number, "%" PRId64, seq);
    snprintf(what, sizeof what, "%s of run \"%s\"", number, run);
    return find(w,
                "SELECT dir, sha256 FROM checkpoints WHERE run_id = $1 AND seq = $2::bigint"
                " AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
                (const char *[]){run, number}, 2, what, out, e);
}

struct adapter *checkpoint_load_sampler(struct worker *w, const char *run, int64_t seq,
                                        struct err *e)
{
    struct found f;
    if (find_live(w, run, seq, &f, e) < 0) return NULL;
    return adapter_load(w->engine, f.path, f.sha256, false, false, e);
}

int checkpoint_check(struct worker *w, const char *run, int64_t seq, struct err *e)
{
    struct found f;
    return find_live(w, run, seq, &f, e);
}

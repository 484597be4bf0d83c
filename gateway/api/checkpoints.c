/* checkpoints.c - what an owner does to a checkpoint: delete, publish, unpublish, give it a time.
 *
 * Each can be repeated.  The SDK would repeat a 409 ("published already") for minutes, so that is a
 * 204 as well. */
#include <inttypes.h>
#include <stdio.h>

#include "api/endpoints.h"
#include "api/limits.h"
#include "api/named.h"
#include "api/sql.h"
#include "base/blobs.h"
#include "base/log.h"
#include "wire/json.h"

/* clang-format off */
#define SQL_NAMED "k.run_id = $1 AND k.kind = $2 AND k.name = $3 AND k.account_id = $4"

/* Changes the rows that live, and notes it where something changed. */
#define SQL_CHANGE(set, where, event, details)                                                     \
    "WITH found AS (SELECT run_id, seq FROM checkpoints k WHERE " SQL_NAMED " AND "                \
    SQL_CHECKPOINT_LIVES "), "                                                                     \
    "changed AS (UPDATE checkpoints k SET " set " FROM found f WHERE k.run_id = f.run_id AND "     \
    "k.seq = f.seq AND " where " RETURNING k.account_id, k.run_id, " SQL_TINKER_PATH " AS path, "  \
    details " AS details), "                                                                       \
    "noted AS (" SQL_NOTE("checkpoints", event, "details", "changed") ") "                         \
    "SELECT 1 FROM found"
/* clang-format on */

static enum http_verdict change(struct call *c, const char *sql, const char *value)
{
    struct named k;
    struct err e = {0};
    if (named_read(c, &k) != STEP_ON) return HTTP_TAKEN;
    const char *params[] = {k.run, k.kind, k.name, c->account, value};
    int n = db_query(c->db, sql, params, value ? 5 : 4, NULL, &e);
    if (n < 0) return call_fail(c, &e);
    return n == 0 ? call_not_found(c, "checkpoint", k.name) : call_done(c);
}

enum http_verdict api_publish(struct call *c)
{
    return change(c,
                  SQL_CHANGE("published_at = now()", "k.published_at IS NULL",
                             "checkpoint.published", "'{}'::jsonb"),
                  NULL);
}

enum http_verdict api_unpublish(struct call *c)
{
    return change(c,
                  SQL_CHANGE("published_at = NULL", "k.published_at IS NOT NULL",
                             "checkpoint.unpublished", "'{}'::jsonb"),
                  NULL);
}

/* {"ttl_seconds": n | null}; null: it stays. */
enum http_verdict api_set_ttl(struct call *c)
{
    char text[24] = "";
    struct err e = {0};
    json_int_t ttl = 0;
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_int(body, "", "ttl_seconds", false, TTL_MIN_S, TTL_MAX_S, &ttl, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    if (ttl) snprintf(text, sizeof text, "%" PRId64, (int64_t)ttl);
    return change(c,
                  SQL_CHANGE("expires_at = now() + nullif($5, '')::bigint * interval '1 second'",
                             "true", "checkpoint.ttl_set",
                             "jsonb_build_object('ttl_seconds', nullif($5, '')::bigint)"),
                  text);
}

/* ---------------------------------------------------------------- deleting */

/* clang-format off */
#define SQL_DELETE                                                                                 \
    "WITH gone AS (SELECT run_id, seq, deleted_at FROM checkpoints k WHERE " SQL_NAMED "), "       \
    "changed AS (UPDATE checkpoints k SET deleted_at = now() FROM gone g WHERE k.run_id = g.run_id " \
    "AND k.seq = g.seq AND k.deleted_at IS NULL RETURNING k.account_id, k.run_id, "                \
    SQL_TINKER_PATH " AS path), "                                                                  \
    "once AS (SELECT DISTINCT account_id, run_id, path FROM changed), "                            \
    "noted AS (" SQL_NOTE("checkpoints", "checkpoint.deleted", "'{}'::jsonb", "once") ") "         \
    "SELECT k.dir FROM checkpoints k JOIN gone g ON k.run_id = g.run_id AND k.seq = g.seq"
/* clang-format on */

/* Every version of the name.  The rows first, then the files: a crash in between leaves files that
 * the same call removes when it is repeated. */
enum http_verdict api_delete_checkpoint(struct call *c)
{
    struct db_result *rows = NULL;
    struct named k;
    struct err e = {0};
    if (named_read(c, &k) != STEP_ON) return HTTP_TAKEN;
    int n = db_queryf(c->db, &rows, &e, SQL_DELETE, k.run, k.kind, k.name, c->account, NULL);
    for (int i = 0; i < n; i++) {
        struct err why = {0};
        if (blobs_remove(c->g->conf.data, db_text(rows, i, 0), &why) < 0) {
            log_err("gateway.delete", &why);
            e = why;
        }
    }
    db_result_free(rows);
    return n < 0 || e.kind ? call_fail(c, &e) : call_done(c);
}

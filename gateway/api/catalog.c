/* catalog.c - what an account has: runs and checkpoints, listed and shown.
 *
 * Lists hold one's own things only.  What somebody else has published is found by who knows its run
 * or its path, and never listed. */
#include "api/endpoints.h"
#include "api/sql.h"

#define RUNS_PER_PAGE        20
#define CHECKPOINTS_PER_PAGE 100

#define SQL_CURSOR(count)                                                                          \
    "'cursor', json_build_object('offset', $3::bigint, 'limit', $2::bigint, 'total_count', "       \
    "(" count "))"

/* clang-format off */
#define SQL_OWN_RUNS                                                                               \
    "FROM runs r WHERE r.account_id = $1 AND r.refusal IS NULL AND ($4 = '' OR EXISTS "            \
    "(SELECT 1 FROM sessions s WHERE s.id = r.session_id AND s.project_id = $4))"

enum http_verdict api_list_runs(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    struct page page;
    const char *project = http_query(c->r, "project_id");
    if (!sql_accessible(c) || sql_page(c, RUNS_PER_PAGE, &page) < 0) return HTTP_TAKEN;
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('training_runs', (SELECT coalesce(json_agg(" SQL_RUN("true")
        " ORDER BY r.created_at DESC, r.id), '[]') FROM (SELECT r.* " SQL_OWN_RUNS
        " ORDER BY r.created_at DESC, r.id LIMIT $2::bigint OFFSET $3::bigint) r), "
        SQL_CURSOR("SELECT count(*) " SQL_OWN_RUNS) ")::text",
        c->account, page.limit, page.offset, project ? project : "", NULL);
    return call_answer_row(c, n, rows, "", "", &e);
}

enum http_verdict api_get_run(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *id = http_star(c->r, 0), *accessible = sql_accessible(c);
    if (!accessible) return HTTP_TAKEN;
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT " SQL_RUN("r.account_id = $2") "::text FROM "
        SQL_SEEN_RUN("r.account_id = $2 OR ($3::boolean AND p.there)"),
        id, c->account, accessible, NULL);
    return call_answer_row(c, n, rows, "model", id, &e);
}

enum http_verdict api_run_checkpoints(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *id = http_star(c->r, 0);
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('checkpoints', (SELECT coalesce(json_agg(" SQL_CHECKPOINT
        " ORDER BY k.created_at DESC, k.seq DESC), '[]') FROM checkpoints k WHERE k.run_id = r.id "
        "AND k.kind = ANY ($3::text[]) AND " SQL_SEEN("r.account_id = $2") " AND " SQL_CHECKPOINT_LIVES
        "))::text FROM " SQL_SEEN_RUN("r.account_id = $2 OR p.there"),
        id, c->account, sql_kinds(c), NULL);
    return call_answer_row(c, n, rows, "model", id, &e);
}

#define SQL_OWN_CHECKPOINTS                                                                        \
    "FROM checkpoints k WHERE k.account_id = $1 AND k.kind = ANY ($4::text[]) AND " SQL_CHECKPOINT_LIVES

enum http_verdict api_list_checkpoints(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    struct page page;
    if (sql_page(c, CHECKPOINTS_PER_PAGE, &page) < 0) return HTTP_TAKEN;
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('checkpoints', (SELECT coalesce(json_agg(" SQL_CHECKPOINT
        " ORDER BY k.created_at DESC, k.run_id, k.seq DESC), '[]') FROM (SELECT k.* " SQL_OWN_CHECKPOINTS
        " ORDER BY k.created_at DESC, k.run_id, k.seq DESC LIMIT $2::bigint OFFSET $3::bigint) k), "
        SQL_CURSOR("SELECT count(*) " SQL_OWN_CHECKPOINTS) ")::text",
        c->account, page.limit, page.offset, sql_kinds(c), NULL);
    return call_answer_row(c, n, rows, "", "", &e);
}

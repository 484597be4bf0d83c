/* usage.c - what an account used and what it stores, from the ledger's own tables. */
#include "api/endpoints.h"
#include "api/sql.h"

#define PERIOD_DAYS_MAX "14"

/* clang-format off */
/* One row an hour, kind, model and session: runs and samplers of one session are one. */
#define SQL_ROWS                                                                                   \
    "SELECT u.hour, u.model, u.kind, coalesce(r.session_id, p.session_id) AS session_id, "         \
    "sum(u.tokens)::bigint AS tokens, sum(u.amount_pico) AS amount FROM usage_hours u "            \
    "LEFT JOIN runs r ON r.id = u.parent_id LEFT JOIN samplers p ON p.id = u.parent_id "           \
    "WHERE u.account_id = $1 AND u.hour >= $2::timestamptz AND u.hour < $3::timestamptz "          \
    "AND u.tokens > 0 GROUP BY 1, 2, 3, 4"
#define SQL_EVENT_INFO                                                                             \
    "CASE u.kind WHEN 'train' THEN json_build_object('type', 'training', 'token_count', u.tokens) " \
    "WHEN 'sample' THEN json_build_object('type', 'sampling_sample', 'token_count', u.tokens) "    \
    "ELSE json_build_object('type', 'sampling_prefill', 'cached', false, 'token_count', u.tokens) END"
#define SQL_USAGE                                                                                  \
    "WITH u AS (" SQL_ROWS ") SELECT json_build_object('data', (SELECT coalesce(json_agg("         \
    "json_build_object('bucket_start', " SQL_TIME("u.hour") ", 'bucket_end', "                     \
    SQL_TIME("(u.hour + interval '1 hour')") ", 'base_model', u.model, 'user_id', $1::text, "      \
    "'user_name', (SELECT name FROM accounts WHERE id = $1), 'session_id', u.session_id, "         \
    "'project_id', s.project_id, "                                                                 \
    "'estimated_cost_usd', u.amount / 1000000000000::numeric, "                                    \
    "'effective_rate_usd_per_million_tokens', round(u.amount / u.tokens / 1000000, 6), "           \
    "'event_info', " SQL_EVENT_INFO ") ORDER BY u.hour, u.model, u.kind, u.session_id), '[]') "    \
    "FROM u LEFT JOIN sessions s ON s.id = u.session_id), "                                        \
    "'sessions', (SELECT coalesce(json_object_agg(s.id, json_build_object('user_metadata', "       \
    SQL_STRINGS("s.user_metadata") ")), '{}') FROM sessions s WHERE s.id IN "                      \
    "(SELECT session_id FROM u)))::text"
/* clang-format on */

/* What is no time is the caller's error, and Postgres says so. */
static int check_period(struct call *c, const char *from, const char *to, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT $1::timestamptz < $2::timestamptz AND $2::timestamptz - "
                      "$1::timestamptz <= interval '" PERIOD_DAYS_MAX " days', "
                      "date_trunc('hour', $1::timestamptz) = $1::timestamptz AND "
                      "date_trunc('hour', $2::timestamptz) = $2::timestamptz",
                      from, to, NULL);
    bool fits = n == 1 && db_bool(rows, 0, 0), whole = n == 1 && db_bool(rows, 0, 1);
    db_result_free(rows);
    if (n < 0) return -1;
    if (!whole)
        return err_set(e, ERR_USER,
                       "starting_on \"%.40s\" and ending_before \"%.40s\" are expected to be whole "
                       "hours",
                       from, to);
    if (!fits)
        return err_set(e, ERR_USER,
                       "starting_on \"%.40s\" to ending_before \"%.40s\", expected a period of at "
                       "most " PERIOD_DAYS_MAX " days",
                       from, to);
    return 0;
}

enum http_verdict api_usage_events(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *from = http_query(c->r, "starting_on"), *to = http_query(c->r, "ending_before");
    if (!from || !to) {
        http_answer_error(c->r, 400, "%s is missing, expected a time (RFC 3339)",
                          from ? "ending_before" : "starting_on");
        return HTTP_TAKEN;
    }
    if (check_period(c, from, to, &e) < 0) return call_fail(c, &e);
    int n = db_queryf(c->db, &rows, &e, SQL_USAGE, c->account, from, to, NULL);
    return call_answer_row(c, n, rows, "", "", &e);
}

/* clang-format off */
/* All versions that are on disk count, named or not: they are what is stored. */
#define SQL_STORAGE                                                                                \
    "SELECT json_build_object('data', coalesce(json_agg(json_build_object("                        \
    "'project_id', x.project_id, 'org_user_urn', $1::text, 'user_name', "                          \
    "(SELECT name FROM accounts WHERE id = $1), 'checkpoint_count', x.count, 'size_bytes', x.bytes, " \
    "'size_gigabytes', x.bytes / 1000000000::numeric) ORDER BY x.project_id), '[]'))::text FROM "  \
    "(SELECT s.project_id, count(*) AS count, sum(k.size_bytes)::bigint AS bytes "                 \
    "FROM checkpoints k JOIN runs r ON r.id = k.run_id JOIN sessions s ON s.id = r.session_id "    \
    "WHERE k.account_id = $1 AND k.deleted_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) " \
    "AND ($2 = '' OR s.project_id = $2) GROUP BY s.project_id) x"
/* clang-format on */

enum http_verdict api_storage(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *project = http_query(c->r, "project_id");
    int n = db_queryf(c->db, &rows, &e, SQL_STORAGE, c->account, project ? project : "", NULL);
    return call_answer_row(c, n, rows, "", "", &e);
}

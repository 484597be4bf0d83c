/* sql.h - pieces of SQL that make the clients' JSON, and what they ask for in the query. */
#ifndef API_SQL_H
#define API_SQL_H

#include "api/gateway.h"

#define PAGE_LIMIT_MAX 1000

/* 2026-11-23T19:18:42.370581Z */
#define SQL_TIME(x) "to_char(" x " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

/* The clients want strings in user_metadata, whatever was put in. */
#define SQL_STRINGS(x)                                                                             \
    "(SELECT coalesce(json_object_agg(key, value), '{}') FROM jsonb_each_text(" x "))"

/* A checkpoint k (a row of checkpoints): its id, its path, and all of it for both SDKs. */
#define SQL_CHECKPOINT_ID                                                                          \
    "(CASE k.kind WHEN 'training' THEN 'weights/' WHEN 'sampler' THEN 'sampler_weights/' "         \
    "ELSE 'external_weights/' END || k.name)"
#define SQL_TINKER_PATH "('tinker://' || k.run_id || '/' || " SQL_CHECKPOINT_ID ")"

/* clang-format off */
#define SQL_CHECKPOINT                                                                             \
    "json_build_object("                                                                           \
    "'checkpoint_id', " SQL_CHECKPOINT_ID ", "                                                     \
    "'checkpoint_type', k.kind, "                                                                  \
    "'time', " SQL_TIME("k.created_at") ", "                                                       \
    "'tinker_path', " SQL_TINKER_PATH ", "                                                         \
    "'checkpoint_path', 'hpcai://' || k.run_id || '/' || k.kind || '/' || " SQL_CHECKPOINT_ID ", " \
    "'size_bytes', k.size_bytes, "                                                                 \
    "'public', k.published_at IS NOT NULL, "                                                       \
    "'user_metadata', " SQL_STRINGS("k.user_metadata") ", "                                        \
    "'expires_at', " SQL_TIME("k.expires_at") ")"

/* What counts as there: named, its newest version, not deleted, not expired. */
#define SQL_CHECKPOINT_LIVES                                                                       \
    "k.name IS NOT NULL AND k.deleted_at IS NULL "                                                 \
    "AND (k.expires_at IS NULL OR k.expires_at > now()) "                                          \
    "AND NOT EXISTS (SELECT 1 FROM checkpoints n WHERE n.run_id = k.run_id "                       \
    "AND n.kind = k.kind AND n.name = k.name AND n.seq > k.seq)"

/* A run r that some account looks at: whose it is not sees what was published, and no more.  mine
 * is a condition of SQL. */
#define SQL_SEEN(mine) "(" mine " OR k.published_at IS NOT NULL)"
#define SQL_LAST_CHECKPOINT(kind, mine)                                                            \
    "(SELECT " SQL_CHECKPOINT " FROM checkpoints k WHERE k.run_id = r.id AND k.kind = '" kind      \
    "' AND " SQL_SEEN(mine) " AND " SQL_CHECKPOINT_LIVES " ORDER BY k.seq DESC LIMIT 1)"
#define SQL_RUN(mine)                                                                              \
    "json_build_object("                                                                           \
    "'training_run_id', r.id, "                                                                    \
    "'base_model', r.model, "                                                                      \
    "'model_owner', r.account_id, "                                                                \
    "'is_lora', true, "                                                                            \
    "'lora_rank', r.rank, "                                                                        \
    "'corrupted', false, "                                                                         \
    "'last_request_time', " SQL_TIME("r.last_request_at") ", "                                     \
    "'last_checkpoint', " SQL_LAST_CHECKPOINT("training", mine) ", "                               \
    "'last_sampler_checkpoint', " SQL_LAST_CHECKPOINT("sampler", mine) ", "                        \
    "'user_metadata', CASE WHEN " mine " THEN " SQL_STRINGS("r.user_metadata")                     \
    " ELSE '{}'::json END)"
/* The run $1 as r, if it is there and `mine` holds, a condition on r in which p.there says that
 * something of it is published.  That is looked for first, and whether there is such a run or not
 * (OFFSET 0 keeps the planner from turning it round), so that the time does not tell. */
#define SQL_SEEN_RUN(mine)                                                                         \
    "(SELECT count(*) > 0 AS there FROM checkpoints k WHERE k.run_id = $1 "                        \
    "AND k.published_at IS NOT NULL AND " SQL_CHECKPOINT_LIVES ") p CROSS JOIN LATERAL "           \
    "(SELECT r.* FROM runs r WHERE r.id = $1 AND r.refusal IS NULL AND (" mine ") OFFSET 0) r"

/* An entry of the audit log, written in the statement that does the deed.  details is an expression
 * of type jsonb; from is a table or CTE with the columns account_id, run_id and path (NULL where
 * there is none). */
#define SQL_NOTE(topic, event, details, from)                                                      \
    "INSERT INTO audit_events (account_id, topic, event, details, model_id, tinker_path) "         \
    "SELECT account_id, '" topic "', '" event "', " details ", run_id, path FROM " from
/* clang-format on */

/* The kinds of checkpoints that this client knows, as a Postgres array. */
const char *sql_kinds(const struct call *c);

/* limit and offset from the query, as texts for parameters.  -1: answered with 400. */
struct page {
    char limit[24], offset[24];
};
int sql_page(struct call *c, int limit_preset, struct page *out);

/* access_scope from the query: "t" for accessible, "f" for owned and without one.  NULL: answered
 * with 400. */
const char *sql_accessible(struct call *c);

#endif

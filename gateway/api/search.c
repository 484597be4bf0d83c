/* search.c - sessions by what is known of them, newest first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/endpoints.h"
#include "api/limits.h"
#include "api/sql.h"
#include "wire/json.h"

#define TEXT_SIZE 257
#define LIMIT_MAX 200

struct search {
    char session[ID_SIZE], name[TEXT_SIZE], after_time[64], after_id[ID_SIZE], limit[16];
    char *projects, *metadata, *statuses; /* JSON texts, "" without; owned */
    bool nothing; /* the owners asked for are all others */
};

static void clear(struct search *s)
{
    free(s->projects);
    free(s->metadata);
    free(s->statuses);
}

static int dump(const json_t *body, const char *name, json_type type, char **out, struct err *e)
{
    json_t *j = json_object_get(body, name);
    bool there = j && !json_is_null(j);
    if (there && json_typeof(j) != type)
        return err_set(e, ERR_USER, "%s is %s, expected %s", name, wire_json_type(j),
                       type == JSON_ARRAY ? "a list" : "an object");
    *out = there ? json_dumps(j, JSON_COMPACT) : strdup("");
    if (!*out) return err_set(e, ERR_RETRY, "out of memory");
    if (strlen(*out) > METADATA_MAX)
        return err_set(e, ERR_USER, "%s has %zu bytes, expected at most %d", name, strlen(*out),
                       METADATA_MAX);
    return 0;
}

static int check_texts(const json_t *list, const char *name, struct err *e)
{
    const json_t *item;
    size_t i;
    json_array_foreach(list, i, item) if (!json_is_string(item)) return err_set(
        e, ERR_USER, "%s holds %s, expected strings", name, wire_json_type(item));
    return 0;
}

static int check_statuses(const json_t *list, struct err *e)
{
    const json_t *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *type = json_string_value(json_object_get(item, "type"));
        const json_t *reasons = json_object_get(item, "reasons");
        if (!type || (strcmp(type, "active") && strcmp(type, "cancelled") &&
                      strcmp(type, "failed") && strcmp(type, "client_finished")))
            return err_set(e, ERR_USER,
                           "a type in statuses is \"%.40s\", expected active, cancelled, failed or "
                           "client_finished",
                           type ? type : "");
        if (reasons && !json_is_null(reasons) && !json_is_array(reasons))
            return err_set(e, ERR_USER, "reasons in statuses is %s, expected a list",
                           wire_json_type(reasons));
        if (check_texts(reasons, "reasons in statuses", e) < 0) return -1;
    }
    return 0;
}

/* An account has one owner, itself. */
static int read_owner(struct call *c, const json_t *body, struct search *s, struct err *e)
{
    const json_t *owner = json_object_get(body, "owner"), *urns, *urn;
    char type[32] = "own";
    size_t i;
    if (!json_is_object(owner)) return 0;
    if (wire_json_text(owner, "owner.", "type", false, type, sizeof type, e) < 0) return -1;
    if (!strcmp(type, "own") || !strcmp(type, "accessible")) return 0;
    if (strcmp(type, "user") != 0)
        return err_set(e, ERR_USER, "owner.type is \"%s\", expected own, accessible or user", type);
    urns = json_object_get(owner, "owner_urns");
    s->nothing = true;
    json_array_foreach(urns, i, urn)
    {
        const char *text = json_string_value(urn);
        if (text && !strcmp(text, c->account)) s->nothing = false;
    }
    return 0;
}

/* What is no time is the database's to refuse, as the caller's error. */
static int read_cursor(const json_t *body, struct search *s, struct err *e)
{
    const json_t *cursor = json_object_get(body, "cursor");
    if (!json_is_object(cursor)) return 0;
    return wire_json_text(cursor, "cursor.", "last_created_at", true, s->after_time,
                          sizeof s->after_time, e) < 0 ||
                   wire_json_text(cursor, "cursor.", "last_session_id", true, s->after_id,
                                  sizeof s->after_id, e) < 0
               ? -1
               : 0;
}

static int read_search(struct call *c, const json_t *body, struct search *s, struct err *e)
{
    json_int_t limit = 50;
    if (wire_json_text(body, "", "session_id", false, s->session, sizeof s->session, e) < 0 ||
        wire_json_text(body, "", "display_name", false, s->name, sizeof s->name, e) < 0 ||
        wire_json_int(body, "", "limit", false, 1, LIMIT_MAX, &limit, e) < 0 ||
        dump(body, "project_ids", JSON_ARRAY, &s->projects, e) < 0 ||
        dump(body, "user_metadata", JSON_OBJECT, &s->metadata, e) < 0 ||
        dump(body, "statuses", JSON_ARRAY, &s->statuses, e) < 0)
        return -1;
    snprintf(s->limit, sizeof s->limit, "%d", (int)limit);
    if (check_texts(json_object_get(body, "project_ids"), "project_ids", e) < 0) return -1;
    if (check_statuses(json_object_get(body, "statuses"), e) < 0) return -1;
    if (read_owner(c, body, s, e) < 0) return -1;
    return read_cursor(body, s, e);
}

/* clang-format off */
#define SQL_STATUS_TYPE                                                                            \
    "(CASE WHEN s.finished_at IS NULL THEN 'active' "                                              \
    "WHEN split_part(s.finish_reason, ':', 1) = 'expired' THEN 'cancelled' ELSE 'client_finished' END)"
#define SQL_REASON "split_part(s.finish_reason, ':', 1)"
#define SQL_DETAIL "nullif(substr(s.finish_reason, length(" SQL_REASON ") + 3), '')"
#define SQL_STATUS                                                                                 \
    "(CASE " SQL_STATUS_TYPE " WHEN 'active' THEN json_build_object('type', 'active') "            \
    "WHEN 'cancelled' THEN json_build_object('type', 'cancelled', 'detail', " SQL_DETAIL ") "      \
    "ELSE json_build_object('type', 'client_finished', 'reason', "                                 \
    "json_build_object('type', " SQL_REASON "), 'detail', " SQL_DETAIL ") END)"
#define SQL_SAVED(what)                                                                            \
    "(SELECT " what " FROM checkpoints k JOIN runs r ON r.id = k.run_id WHERE r.session_id = s.id " \
    "AND " SQL_CHECKPOINT_LIVES ")"

#define SQL_SUMMARY                                                                                \
    "json_build_object('session_id', s.id, 'created_at', " SQL_TIME("s.created_at") ", "           \
    "'owner', s.account_id, 'project_id', coalesce(s.project_id, 'default'), "                     \
    "'checkpoints_count', " SQL_SAVED("count(*)") ", "                                             \
    "'checkpoint_storage_bytes', " SQL_SAVED("coalesce(sum(k.size_bytes), 0)::bigint") ", "        \
    "'status', " SQL_STATUS ", 'display_name', s.display_name, "                                   \
    "'user_metadata', " SQL_STRINGS("s.user_metadata") ")"

/* $2 session, $3 words of the name: one of the two has to fit */
#define SQL_WHO                                                                                    \
    "(($2 = '' AND $3 = '') OR ($2 <> '' AND s.id = $2) OR ($3 <> '' AND NOT EXISTS (SELECT 1 FROM " \
    "regexp_split_to_table(lower($3), '\\s+') w WHERE w <> '' AND "                                \
    "position(w IN lower(coalesce(s.display_name, ''))) = 0)))"
#define SQL_METADATA                                                                               \
    "($5 = '' OR NOT EXISTS (SELECT 1 FROM jsonb_each_text(nullif($5, '')::jsonb) q WHERE "        \
    "s.user_metadata ->> q.key IS DISTINCT FROM q.value))"
#define SQL_STATUSES                                                                               \
    "($6 = '' OR EXISTS (SELECT 1 FROM jsonb_array_elements(nullif($6, '')::jsonb) q WHERE "       \
    "q ->> 'type' = " SQL_STATUS_TYPE " AND (jsonb_typeof(q -> 'reasons') IS DISTINCT FROM 'array' "\
    "OR q -> 'reasons' ? " SQL_REASON ")))"
#define SQL_AFTER                                                                                  \
    "($7 = '' OR (s.created_at, s.id) < (nullif($7, '')::timestamptz, $8))"

#define SQL_SEARCH                                                                                 \
    "WITH page AS (SELECT s.* FROM sessions s WHERE s.account_id = $1 AND " SQL_WHO                \
    " AND ($4 = '' OR nullif($4, '')::jsonb ? coalesce(s.project_id, 'default'))"                  \
    " AND " SQL_METADATA " AND " SQL_STATUSES " AND " SQL_AFTER                                    \
    " ORDER BY s.created_at DESC, s.id DESC LIMIT $9::bigint + 1), "                               \
    "shown AS (SELECT * FROM page s ORDER BY s.created_at DESC, s.id DESC LIMIT $9::bigint), "     \
    "last AS (SELECT * FROM shown s ORDER BY s.created_at, s.id LIMIT 1) "                         \
    "SELECT json_build_object('sessions', (SELECT coalesce(json_agg(" SQL_SUMMARY                  \
    " ORDER BY s.created_at DESC, s.id DESC), '[]') FROM shown s), 'next_cursor', "                \
    "CASE WHEN (SELECT count(*) FROM page) > $9::bigint THEN (SELECT json_build_object("           \
    "'last_created_at', " SQL_TIME("created_at") ", 'last_session_id', id) FROM last) END)::text"
/* clang-format on */

enum http_verdict api_search_sessions(struct call *c)
{
    struct db_result *rows = NULL;
    struct search s = {0};
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_search(c, body, &s, &e);
    json_decref(body);
    if (rc < 0) {
        clear(&s);
        return call_fail(c, &e);
    }
    if (s.nothing) {
        clear(&s);
        return call_answer(c, 200, json_pack("{s:[]}", "sessions"));
    }
    int n = db_queryf(c->db, &rows, &e, SQL_SEARCH, c->account, s.session, s.name, s.projects,
                      s.metadata, s.statuses, s.after_time, s.after_id, s.limit, NULL);
    clear(&s);
    return call_answer_row(c, n, rows, "", "", &e);
}

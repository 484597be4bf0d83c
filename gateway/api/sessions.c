/* sessions.c - one SDK client's stay: it begins, shows that it lives, and ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/endpoints.h"
#include "api/limits.h"
#include "api/owner.h"
#include "api/projects.h"
#include "api/sessions.h"
#include "api/sql.h"
#include "seal/seal.h"
#include "wire/json.h"

#define TEXT_SIZE         257
#define TAGS_MAX          64
#define DETAIL_SIZE       4096
#define SESSIONS_PER_PAGE 20

struct session_request {
    char sdk_version[TEXT_SIZE], project[PROJECT_SIZE + 1], name[TEXT_SIZE];
    char *tags, *metadata; /* JSON texts, owned */
};

static int dump_member(const json_t *body, const char *name, json_type type, const char *preset,
                       char **out, struct err *e)
{
    json_t *j = json_object_get(body, name);
    if (!j || json_is_null(j))
        *out = strdup(preset);
    else if (json_typeof(j) != type)
        return err_set(e, ERR_USER, "%s is %s, expected %s", name, wire_json_type(j),
                       type == JSON_ARRAY ? "a list" : "an object");
    else
        *out = json_dumps(j, JSON_COMPACT);
    if (!*out) return err_set(e, ERR_RETRY, "out of memory");
    if (strlen(*out) > METADATA_MAX)
        return err_set(e, ERR_USER, "%s has %zu bytes, expected at most %d", name, strlen(*out),
                       METADATA_MAX);
    return 0;
}

static int read_session(const json_t *body, struct session_request *s, struct err *e)
{
    if (wire_json_text(body, "", "sdk_version", false, s->sdk_version, TEXT_SIZE, e) < 0 ||
        wire_json_text(body, "", "project_id", false, s->project, sizeof s->project, e) <
            0 ||
        wire_json_text(body, "", "display_name", false, s->name, TEXT_SIZE, e) < 0)
        return -1;
    if (*s->project && project_check(s->project, e) < 0) return -1;
    if (dump_member(body, "tags", JSON_ARRAY, "[]", &s->tags, e) < 0) return -1;
    return dump_member(body, "user_metadata", JSON_OBJECT, "{}", &s->metadata, e);
}

/* With the same idempotency key it is the same session, whoever of two calls was first. */
static int insert_session(struct call *c, const struct session_request *s, char id[ID_SIZE],
                          struct err *e)
{
    struct db_result *rows = NULL;
    const char *key = http_header(c->r, "X-Idempotency-Key");
    if (key && (!*key || strlen(key) >= TEXT_SIZE)) key = NULL;
    session_id_make(id);
    const char *params[] = {id,
                            c->account,
                            s->tags,
                            s->metadata,
                            s->sdk_version,
                            *s->project ? s->project : NULL,
                            *s->name ? s->name : NULL,
                            key};
    int n = db_query(c->db,
                     "WITH " SQL_PROJECT("$2", "$6::text") " INSERT INTO sessions (id, account_id, "
                     "tags, user_metadata, sdk_version, project_id, display_name, idempotency) "
                     "VALUES ($1, $2, $3::jsonb, $4::jsonb, $5, $6, $7, $8) "
                     "ON CONFLICT (account_id, idempotency) DO NOTHING",
                     params, 8, NULL, e);
    if (n != 0) return n < 0 ? -1 : 0;
    n = db_queryf(c->db, &rows, e,
                  "SELECT id FROM sessions WHERE account_id = $1 AND idempotency = $2", c->account,
                  key, NULL);
    if (n == 1) strcpy(id, db_text(rows, 0, 0));
    db_result_free(rows);
    return n < 0 ? -1 : 0;
}

enum http_verdict api_create_session(struct call *c)
{
    struct session_request s = {0};
    struct err e = {0};
    char id[ID_SIZE];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_session(body, &s, &e);
    if (rc == 0) rc = insert_session(c, &s, id, &e);
    free(s.tags);
    free(s.metadata);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    return call_answer(c, 200, json_pack("{s:s, s:s}", "session_id", id, "type", "create_session"));
}

enum http_verdict api_heartbeat(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    char id[ID_SIZE];
    enum http_verdict v;
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_text(body, "", "session_id", true, id, sizeof id, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    int n = db_queryf(c->db, &rows, &e,
                      "UPDATE sessions SET heartbeat_at = now() WHERE id = $1 AND account_id = $2 "
                      "RETURNING finished_at IS NOT NULL",
                      id, c->account, NULL);
    if (n < 0) {
        v = call_fail(c, &e);
    } else if (n == 0) {
        v = call_not_found(c, "session", id);
    } else if (db_bool(rows, 0, 0)) {
        http_answer_error(c->r, 410, "session \"%s\" is finished", id);
        v = HTTP_TAKEN;
    } else {
        v = call_answer(c, 200, json_pack("{s:s}", "type", "session_heartbeat"));
    }
    db_result_free(rows);
    return v;
}

static int read_reason(const json_t *body, char out[DETAIL_SIZE + 80], struct err *e)
{
    char type[64] = "success", detail[DETAIL_SIZE] = "";
    const json_t *why = json_object_get(body, "reason");
    if (wire_json_text(body, "", "detail", false, detail, sizeof detail, e) < 0) return -1;
    if (json_is_object(why) &&
        wire_json_text(why, "reason.", "type", false, type, sizeof type, e) < 0)
        return -1;
    if (strcmp(type, "success") && strcmp(type, "errored") && strcmp(type, "interrupted"))
        return err_set(e, ERR_USER,
                       "reason.type is \"%s\", expected success, errored or interrupted", type);
    snprintf(out, DETAIL_SIZE + 80, "%s%s%s", type, *detail ? ": " : "", detail);
    return 0;
}

/* The first reason stays; a second call is as fine as the first. */
enum http_verdict api_finish_session(struct call *c)
{
    struct err e = {0};
    const char *id = http_star(c->r, 0);
    char reason[DETAIL_SIZE + 80];
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = read_reason(body, reason, &e);
    json_decref(body);
    if (rc < 0) return call_fail(c, &e);
    int n = db_queryf(
        c->db, NULL, &e,
        "UPDATE sessions SET finish_reason = CASE WHEN finished_at IS NULL THEN $3 ELSE "
        "finish_reason "
        "END, finished_at = coalesce(finished_at, now()) WHERE id = $1 AND account_id = $2",
        id, c->account, reason, NULL);
    if (n < 0) return call_fail(c, &e);
    return n == 0 ? call_not_found(c, "session", id) : call_done(c);
}

enum http_verdict api_list_sessions(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    struct page page;
    if (!sql_accessible(c)) return HTTP_TAKEN;
    if (sql_page(c, SESSIONS_PER_PAGE, &page) < 0) return HTTP_TAKEN;
    int n = db_queryf(c->db, &rows, &e,
                      "SELECT json_build_object('sessions', coalesce(json_agg(id), '[]'))::text "
                      "FROM (SELECT id FROM "
                      "sessions WHERE account_id = $1 ORDER BY created_at DESC, id LIMIT "
                      "$2::bigint OFFSET $3::bigint) s",
                      c->account, page.limit, page.offset, NULL);
    enum http_verdict v = n < 0 ? call_fail(c, &e) : call_answer_text(c, db_text(rows, 0, 0));
    db_result_free(rows);
    return v;
}

enum http_verdict api_get_session(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *id = http_star(c->r, 0);
    if (!sql_accessible(c)) return HTTP_TAKEN;
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('training_run_ids', (SELECT coalesce(json_agg(r.id ORDER BY "
        "r.created_at, r.id), '[]') FROM runs r WHERE r.session_id = s.id AND r.refusal IS NULL), "
        "'sampler_ids', (SELECT coalesce(json_agg(p.id ORDER BY p.created_at, p.id), '[]') FROM "
        "samplers "
        "p WHERE p.session_id = s.id), 'user_metadata', " SQL_STRINGS(
            "s.user_metadata") ", "
                               "'display_name', s.display_name)::text FROM sessions s WHERE s.id = "
                               "$1 AND s.account_id = $2",
        id, c->account, NULL);
    enum http_verdict v = n < 0    ? call_fail(c, &e)
                          : n == 0 ? call_not_found(c, "session", id)
                                   : call_answer_text(c, db_text(rows, 0, 0));
    db_result_free(rows);
    return v;
}

/* No timeline is recorded, and the client is told so instead of waiting for one. */
enum http_verdict api_trace_export(struct call *c)
{
    struct err e = {0};
    const char *id = http_star(c->r, 0);
    int n = owner_session(c, id, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "session", id);
    return call_answer(
        c, 200,
        json_pack("{s:s, s:s}", "status", "failed", "error",
                  "this service records no timelines; usage and the runs' metrics are kept"));
}

/* ---------------------------------------------------------------- stand-ins */

void session_of(struct call *c, const char *what, const char *key, char id[ID_SIZE])
{
    char text[TENANT_SIZE + 600];
    uint8_t mac[SEAL_SHA256_SIZE];
    snprintf(text, sizeof text, "session|%s|%s|%s", c->account, what, key);
    seal_hmac_sha256(c->g->secret.key, sizeof c->g->secret.key, text, strlen(text), mac);
    id[0] = 's';
    seal_base32(mac, 16, id + 1);
}

int session_stand_in(struct call *c, const char *id, const char *project, struct err *e)
{
    const char *agent = http_header(c->r, "User-Agent");
    const char *params[] = {id, c->account, call_is_hpcai(c) ? "hpcai" : "tinker",
                            agent ? agent : "", project};
    int n = db_query(c->db,
                     "WITH " SQL_PROJECT("$2", "$5::text") " INSERT INTO sessions (id, account_id, "
                     "sdk, sdk_version, project_id) VALUES ($1, $2, $3, left($4, 256), $5) "
                     "ON CONFLICT (id) DO NOTHING",
                     params, 5, NULL, e);
    return n < 0 ? -1 : 0;
}

/* projects.c - see projects.h; and a session that is moved into one. */
#include "api/projects.h"

#include <string.h>

#include "api/endpoints.h"
#include "api/sql.h"
#include "wire/json.h"

int project_check(const char *name, struct err *e)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-";
    size_t length = strlen(name);
    if (length && length < PROJECT_SIZE && strspn(name, allowed) == length) return 0;
    return err_set(e, ERR_USER,
                   "project_id is \"%.140s\", expected 1 to %d of letters, digits, \".\", \"_\", "
                   "\":\" and \"-\"",
                   name, PROJECT_SIZE - 1);
}

/* clang-format off */
#define SQL_MOVE                                                                                   \
    "WITH found AS (SELECT id, account_id, project_id FROM sessions WHERE id = $1 AND account_id = $2), " \
    SQL_PROJECT("$2", "(SELECT $3 FROM found)") ", "                                               \
    "moved AS (UPDATE sessions s SET project_id = $3 FROM found f WHERE s.id = f.id "              \
    "AND f.project_id IS DISTINCT FROM $3 RETURNING s.account_id, s.id, NULL::text AS run_id, "    \
    "NULL::text AS path), "                                                                        \
    "moves AS (" SQL_NOTE("projects", "project.session_assigned",                                  \
                          "jsonb_build_object('project_id', $3::text, 'session_id', id)", "moved") ") " \
    "SELECT 1 FROM found"
/* clang-format on */

enum http_verdict api_set_project(struct call *c)
{
    struct err e = {0};
    char project[PROJECT_SIZE + 1];
    const char *session = http_star(c->r, 0);
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    int rc = wire_json_text(body, "", "project_id", true, project, sizeof project, &e);
    json_decref(body);
    if (rc < 0 || project_check(project, &e) < 0) return call_fail(c, &e);
    int n = db_queryf(c->db, NULL, &e, SQL_MOVE, session, c->account, project, NULL);
    if (n < 0) return call_fail(c, &e);
    return n == 0 ? call_not_found(c, "session", session) : call_done(c);
}

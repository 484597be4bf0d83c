/* projects.h - a project is a name within its account; it begins with the first session in it. */
#ifndef API_PROJECTS_H
#define API_PROJECTS_H

#include "api/gateway.h"

#define PROJECT_SIZE 129

/* 1 to 128 of letters, digits, ".", "_", ":" and "-". */
int project_check(const char *name, struct err *e) WARN_UNUSED;

/* Two CTEs: `made` is the project's row when it is new, `noted` its entry in the audit log.
 * account and id are expressions; an id that is NULL makes nothing. */
#define SQL_PROJECT(account, id)                                                                   \
    "made AS (INSERT INTO projects (account_id, id) SELECT " account ", " id " WHERE " id          \
    " IS NOT NULL ON CONFLICT DO NOTHING RETURNING account_id, id, NULL::text AS run_id, "         \
    "NULL::text AS path), noted AS (" SQL_NOTE("projects", "project.created",                      \
                                               "jsonb_build_object('project_id', id)", "made") ")"

#endif

/* audit.c - who did what to a checkpoint or a project, as its account reads it.
 *
 * Notes are written in the statement that does the deed (SQL_NOTE).  A saved checkpoint has none:
 * its row says when it came. */
#include <string.h>

#include "api/endpoints.h"
#include "api/sql.h"

#define ENTRIES_MAX "10000"

static const char *read_topic(struct call *c)
{
    static const char *const topics[] = {"all", "checkpoints", "projects", "teams",
                                         "organizations"};
    const char *asked = http_query(c->r, "event_type");
    if (!asked) return topics[0];
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        if (!strcmp(asked, topics[i])) return topics[i];
    http_answer_error(c->r, 400,
                      "event_type is \"%.40s\", expected all, checkpoints, projects, teams or "
                      "organizations",
                      asked);
    return NULL;
}

/* YYYY-MM-DD, or "" without one, which means today.  A day that no calendar has is merely a day
 * without entries. */
static const char *read_day(struct call *c)
{
    const char *day = http_query(c->r, "day"), *form = "dddd-dd-dd";
    if (!day) return "";
    bool good = strlen(day) == strlen(form);
    for (size_t i = 0; good && form[i]; i++)
        good = form[i] == 'd' ? day[i] >= '0' && day[i] <= '9' : day[i] == form[i];
    if (good) return day;
    http_answer_error(c->r, 400, "day is \"%.40s\", expected YYYY-MM-DD", day);
    return NULL;
}

/* clang-format off */
#define SQL_NOTES                                                                                  \
    "SELECT at, topic, event, details, model_id, tinker_path FROM audit_events "                   \
    "WHERE account_id = $1"
#define SQL_SAVES                                                                                  \
    "SELECT k.created_at, 'checkpoints', 'checkpoint.created', json_build_object('checkpoint_type', "\
    "k.kind, 'size_bytes', k.size_bytes)::jsonb, k.run_id, " SQL_TINKER_PATH                       \
    " FROM checkpoints k WHERE k.account_id = $1 AND k.name IS NOT NULL"

enum http_verdict api_audit(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *topic = read_topic(c), *day = topic ? read_day(c) : NULL;
    if (!topic || !day) return HTTP_TAKEN;
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('entries', coalesce(json_agg(json_build_object("
        "'timestamp', " SQL_TIME("a.at") ", 'event', a.event, 'event_details', a.details, "
        "'model_id', a.model_id, 'tinker_path', a.tinker_path) ORDER BY a.at, a.event, a.tinker_path), '[]'))::text "
        "FROM (SELECT * FROM (" SQL_NOTES " UNION ALL " SQL_SAVES ") b (at, topic, event, details, "
        "model_id, tinker_path) WHERE ($2 = 'all' OR topic = $2) AND "
        "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD') = coalesce(nullif($3, ''), "
        "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')) ORDER BY at DESC LIMIT " ENTRIES_MAX ") a",
        c->account, topic, day, NULL);
    return call_answer_row(c, n, rows, "", "", &e);
}

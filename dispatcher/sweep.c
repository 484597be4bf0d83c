/* sweep.c - see sweep.h. */
#include "sweep.h"

#include <inttypes.h>
#include <stdio.h>
#include "base/blobs.h"
#include "base/log.h"

/* Longer than the logs keep a job (docs/protocol.md). */
#define REPEATS_DAYS "8"

/* clang-format off */
#define SQL_EXPIRED "k.expires_at <= now()"
#define SQL_REPLACED                                                                               \
    "k.name IS NOT NULL AND EXISTS (SELECT 1 FROM checkpoints n WHERE n.run_id = k.run_id AND "    \
    "n.kind = k.kind AND n.name = k.name AND n.seq > k.seq AND "                                   \
    "n.created_at < now() - $1::bigint * interval '1 second')"
#define SQL_LEFT                                                                                   \
    "k.name IS NULL AND EXISTS (SELECT 1 FROM runs r JOIN sessions s ON s.id = r.session_id "      \
    "WHERE r.id = k.run_id AND s.finished_at < now() - $1::bigint * interval '1 second')"

/* Only named ones have a path to show in the audit log. */
#define SQL_SWEEP(due)                                                                             \
    "WITH due AS (SELECT k.run_id, k.seq, " SQL_EXPIRED " AS expired FROM checkpoints k WHERE "    \
    "k.deleted_at IS NULL AND (" due ") LIMIT 100 FOR UPDATE OF k SKIP LOCKED), "                  \
    "gone AS (UPDATE checkpoints k SET deleted_at = now() FROM due d WHERE k.run_id = d.run_id "   \
    "AND k.seq = d.seq RETURNING k.account_id, k.run_id, k.kind, k.name, k.dir, d.expired), "      \
    "noted AS (INSERT INTO audit_events (account_id, topic, event, model_id, tinker_path) "        \
    "SELECT account_id, 'checkpoints', 'checkpoint.expired', run_id, 'tinker://' || run_id || '/' || " \
    "CASE kind WHEN 'training' THEN 'weights/' WHEN 'sampler' THEN 'sampler_weights/' "            \
    "ELSE 'external_weights/' END || name FROM gone WHERE expired AND name IS NOT NULL) "          \
    "SELECT dir FROM gone"

/* What a crash left: rows that are gone a short while ago.  Removing nothing costs next to nothing. */
#define SQL_LATELY                                                                                 \
    "SELECT dir FROM checkpoints WHERE deleted_at > now() - interval '1 hour' "                    \
    "AND deleted_at < now() - interval '10 seconds' ORDER BY deleted_at DESC LIMIT 1000"

#define SQL_SILENT                                                                                 \
    "UPDATE sessions SET finished_at = now(), finish_reason = 'expired: no sign of life for ' || $1 || ' s' " \
    "WHERE id IN (SELECT id FROM sessions s WHERE s.finished_at IS NULL AND s.sdk = 'tinker' AND greatest(s.heartbeat_at, " \
    "(SELECT max(r.last_request_at) FROM runs r WHERE r.session_id = s.id)) < now() - $1::bigint * " \
    "interval '1 second' LIMIT 1000) AND finished_at IS NULL"
#define SQL_ARRIVALS                                                                               \
    "DELETE FROM run_arrivals WHERE created_at < now() - interval '" REPEATS_DAYS " days'"
#define SQL_DECISIONS                                                                              \
    "DELETE FROM save_decisions WHERE created_at < now() - interval '" REPEATS_DAYS " days'"
/* clang-format on */

static int remove_folders(const struct settings *s, struct db_result *rows, int count)
{
    int removed = 0;
    for (int i = 0; i < count; i++) {
        struct err e = {0};
        if (blobs_remove(s->data, db_text(rows, i, 0), &e) < 0)
            log_warn("dispatcher.sweep", "dir=\"%s\" error=\"%s\"", db_text(rows, i, 0), e.text);
        else
            removed++;
    }
    return removed;
}

/* sql has one parameter, or none. */
static int sweep_some(struct db *db, const struct settings *s, struct stats *stats, const char *sql,
                      const char *parameter, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_query(db, sql, &parameter, parameter ? 1 : 0, &rows, e);
    int removed = n > 0 ? remove_folders(s, rows, n) : 0;
    db_result_free(rows);
    if (n <= 0) return n;
    atomic_fetch_add(&stats->swept, n);
    log_info("dispatcher.sweep", "checkpoints=%d removed=%d", n, removed);
    return 0;
}

static int sweep_old(struct db *db, const struct settings *s, struct stats *stats, struct err *e)
{
    char keep[24];
    snprintf(keep, sizeof keep, "%" PRId64, s->keep_s);
    if (sweep_some(db, s, stats, SQL_SWEEP(SQL_REPLACED), keep, e) < 0) return -1;
    return sweep_some(db, s, stats, SQL_SWEEP(SQL_LEFT), keep, e);
}

static int sweep_left_files(struct db *db, const struct settings *s, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(db, &rows, e, SQL_LATELY, NULL);
    if (n > 0) (void)remove_folders(s, rows, n);
    db_result_free(rows);
    return n < 0 ? -1 : 0;
}

static int end_sessions(struct db *db, const struct settings *s, struct err *e)
{
    char silent[24];
    snprintf(silent, sizeof silent, "%" PRId64, s->session_silent_s);
    int n = db_queryf(db, NULL, e, SQL_SILENT, silent, NULL);
    if (n > 0) log_info("dispatcher.sessions", "ended=%d", n);
    return n < 0 ? -1 : 0;
}

static int sweep(struct db *db, const struct settings *s, struct stats *stats, bool thorough,
                 struct err *e)
{
    if (sweep_some(db, s, stats, SQL_SWEEP(SQL_EXPIRED), NULL, e) < 0) return -1;
    if (sweep_left_files(db, s, e) < 0 || end_sessions(db, s, e) < 0) return -1;
    if (!thorough) return 0;
    if (sweep_old(db, s, stats, e) < 0) return -1;
    if (db_queryf(db, NULL, e, SQL_ARRIVALS, NULL) < 0) return -1;
    return db_queryf(db, NULL, e, SQL_DECISIONS, NULL) < 0 ? -1 : 0;
}

int sweep_round(struct db *db, const struct settings *s, struct stats *stats, bool thorough,
                struct err *e)
{
    if (sweep(db, s, stats, thorough, e) == 0) return 0;
    if (e->kind == ERR_BUG) return -1;
    log_warn("dispatcher.sweep", "error=\"%s\"", e->text);
    err_clear(e);
    return 0;
}

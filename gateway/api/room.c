/* room.c - see room.h. */
#include "api/room.h"

#include <inttypes.h>
#include <stdio.h>

#include "api/flight.h"
#include "base/log.h"

/* A run that is called again after it was unloaded, or after its session's end, is open again; its
 * last calls are written down a few seconds late (touched.h). */
#define LATE "interval '10 seconds'"

/* clang-format off */
#define SQL_OPEN                                                                                   \
    "r.refusal IS NULL AND NOT r.copied AND r.last_request_at > now() - interval '1 day' "         \
    "AND (r.unloaded_at IS NULL OR r.last_request_at > r.unloaded_at + " LATE ") "                 \
    "AND (s.finished_at IS NULL OR r.last_request_at > s.finished_at + " LATE ")"
#define SQL_RUNS                                                                                   \
    "SELECT count(*) FROM runs r JOIN sessions s ON s.id = r.session_id WHERE r.account_id = $1 "  \
    "AND r.id <> $2 AND " SQL_OPEN
#define SQL_BYTES                                                                                  \
    "SELECT coalesce(sum(size_bytes), 0)::bigint FROM checkpoints WHERE account_id = $1 "          \
    "AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
/* clang-format on */

/* A statement that gives one number.  second may be NULL. */
static int count(struct call *c, const char *sql, const char *second, int64_t *out, struct err *e)
{
    struct db_result *rows = NULL;
    const char *params[] = {c->account, second};
    int n = db_query(c->db, sql, params, second ? 2 : 1, &rows, e);
    if (n == 1) *out = db_int(rows, 0, 0);
    db_result_free(rows);
    return n == 1 ? 0 : -1;
}

int room_for_run(struct call *c, const char *run, struct err *e)
{
    int64_t open = 0, max = c->limits.runs;
    if (!max) return 0;
    if (count(c, SQL_RUNS, run, &open, e) < 0) return -1;
    if (open < max) return 0;
    return err_set(e, ERR_USER,
                   "this account has %" PRId64
                   " open training runs, as many as it may: unload some "
                   "or close their sessions, or ask for a higher limit",
                   open);
}

int room_for_checkpoint(struct call *c, struct err *e)
{
    int64_t bytes = 0, max = c->limits.storage_bytes;
    if (!max) return 0;
    if (count(c, SQL_BYTES, NULL, &bytes, e) < 0) return -1;
    if (bytes < max) return 0;
    return err_set(e, ERR_USER,
                   "this account stores %" PRId64 " bytes of checkpoints, its limit is %" PRId64
                   ": delete some or give them a time to live, or ask for a higher limit",
                   bytes, max);
}

/* ---------------------------------------------------------------- numbered saves */

/* 1: it was decided before, and e is ERR_USER when it was refused; 0: it was not; -1. */
static int read_decision(struct call *c, const char *run, const char *seq, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT refusal FROM save_decisions WHERE run_id = $1 AND seq = $2::bigint",
                      run, seq, NULL);
    if (n == 1 && !db_is_null(rows, 0, 0)) err_set(e, ERR_USER, "%s", db_text(rows, 0, 0));
    db_result_free(rows);
    return n;
}

/* refusal NULL: it is let in.  1: so it is; 0: another copy of the call was faster; -1. */
static int write_decision(struct call *c, const char *run, const char *seq, const char *refusal,
                          struct err *e)
{
    const char *params[] = {run, seq, refusal};
    return db_query(c->db,
                    "INSERT INTO save_decisions (run_id, seq, refusal) VALUES ($1, $2::bigint, $3) "
                    "ON CONFLICT (run_id, seq) DO NOTHING",
                    params, 3, NULL, e);
}

/* 0: let in; else e is ERR_USER, or says why it could not be decided. */
static int decide(struct call *c, const struct trained *t, struct err *e)
{
    struct err full = {0};
    char seq[24];
    snprintf(seq, sizeof seq, "%" PRId64, t->seq);
    int n = read_decision(c, t->run, seq, e);
    if (n == 0) {
        /* not written down, but seen here: it came while Postgres was away */
        bool seen = flight_knows(c->g->flight, t->run, t->seq);
        if (!seen && room_for_checkpoint(c, &full) < 0 && full.kind != ERR_USER) {
            *e = full;
            return -1;
        }
        n = write_decision(c, t->run, seq, full.kind ? full.text : NULL, e);
        if (n == 1) *e = full;
        if (n == 0) n = read_decision(c, t->run, seq, e);
    }
    return n < 0 || e->kind ? -1 : 0;
}

enum step room_for_save(struct call *c, const struct trained *t, struct err *e)
{
    if (!c->limits.storage_bytes) return STEP_ON;
    if (!c->db) return STEP_WORKER;
    if (decide(c, t, e) < 0 && e->kind != ERR_USER) {
        log_warn("gateway.room", "text=\"%s\" now=\"saves are let in\"", e->text);
        err_clear(e);
    }
    return STEP_ON;
}

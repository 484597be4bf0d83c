/* runs.c - see runs.h. */
#include "runs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "folder.h"
#include "snapshot.h"
#include "worker.h"

struct runs *runs_create(struct err *e)
{
    struct runs *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(e, ERR_RETRY, "out of memory for runs");
        return NULL;
    }
    r->by_id = map_create(e);
    if (r->by_id) return r;
    free(r);
    return NULL;
}

void task_free(struct task *t)
{
    if (!t) return;
    job_free(t->job);
    free(t->known);
    free(t);
}

static void each_task_free(void *arg, void *item)
{
    task_free(item);
}

static void run_free(struct run *run)
{
    if (!run) return;
    if (run->order) order_each(run->order, each_task_free, NULL);
    order_free(run->order);
    adapter_free(run->adapter);
    free(run->snapshot_dir);
    free(run->snapshot_sha256);
    free(run->snapshot_digest);
    free(run);
}

void runs_free(struct worker *w)
{
    if (!w->runs) return;
    size_t at = 0;
    for (struct run *run; (run = map_next(w->runs->by_id, &at));)
        run_free(run);
    map_free(w->runs->by_id);
    free(w->runs);
    w->runs = NULL;
}

/* ---------------------------------------------------------------- first sight */

static int look_up(struct worker *w, const char *id, struct db_result **out, struct err *e)
{
    int64_t since = 0;
    int n;
    do
        n = db_queryf(w->db, out, e,
                      "SELECT coalesce(r.account_id, ''), s.seq, s.dir, s.sha256, s.state_digest,"
                      " r.shard, encode(s.past, 'hex') FROM (SELECT $1::text AS id) q LEFT JOIN "
                      "runs r ON r.id = q.id"
                      " LEFT JOIN LATERAL (SELECT * FROM run_snapshots WHERE run_id = q.id"
                      " AND damaged_at IS NULL ORDER BY seq DESC, epoch DESC LIMIT 1) s ON true",
                      id, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    err_clear(e);
    return 0;
}

/* What the snapshot remembers, from hex. */
static int recall(struct order *o, const char *hex, struct err *e)
{
    uint8_t past[ORDER_PAST];
    int count = (int)(strlen(hex) / 2);
    if (count > ORDER_PAST)
        return err_set(e, ERR_BUG, "a snapshot remembers %d jobs, expected at most %d", count,
                       ORDER_PAST);
    for (int i = 0; i < count; i++) {
        const char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};
        past[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    order_recall(o, past, count);
    return 0;
}

static int read_row(struct run *run, const struct db_result *r, struct err *e)
{
    snprintf(run->tenant, sizeof run->tenant, "%s", db_text(r, 0, 0));
    bool any = !db_is_null(r, 0, 1);
    run->snapshot_seq = any ? db_int(r, 0, 1) : -2;
    run->snapshot_dir = strdup(db_text(r, 0, 2));
    run->snapshot_sha256 = strdup(db_text(r, 0, 3));
    run->snapshot_digest = strdup(db_text(r, 0, 4));
    if (!run->snapshot_dir || !run->snapshot_sha256 || !run->snapshot_digest)
        return err_set(e, ERR_RETRY, "out of memory for a run");
    run->made = any && *run->snapshot_dir;
    run->never = any && !*run->snapshot_dir;
    run->order = order_create(any ? run->snapshot_seq : -1, e);
    if (!run->order) return -1;
    return any && !db_is_null(r, 0, 6) ? recall(run->order, db_text(r, 0, 6), e) : 0;
}

/* A stray record must not bind a run to a shard that is not its own. */
static int shard_check(const struct db_result *r, const struct shard *s, struct err *e)
{
    if (db_is_null(r, 0, 5) || db_int(r, 0, 5) == s->partition) return 0;
    return err_set(e, ERR_USER, "tw_run is on partition %d, expected on %s", s->partition,
                   db_text(r, 0, 5));
}

struct run *runs_get(struct worker *w, const char *id, struct shard *s, struct err *e)
{
    struct run *run = map_get(w->runs->by_id, id);
    struct db_result *r = NULL;
    if (run) return run;
    if (look_up(w, id, &r, e) < 0) return NULL;
    run = calloc(1, sizeof *run);
    if (!run) {
        err_set(e, ERR_RETRY, "out of memory for a run");
        goto fail;
    }
    snprintf(run->id, sizeof run->id, "%s", id);
    run->shard = s;
    run->suspect_below = s->clean ? 0 : s->jobs_end;
    run->used_ms = clock_mono_ms();
    if (shard_check(r, s, e) < 0 || read_row(run, r, e) < 0 ||
        map_put(w->runs->by_id, id, run, e) < 0)
        goto fail;
    db_result_free(r);
    return run;
fail:
    db_result_free(r);
    run_free(run);
    return NULL;
}

/* ---------------------------------------------------------------- residence */

static size_t run_bytes(struct worker *w, const struct run *run)
{
    return adapter_bytes(w->engine, adapter_conf(run->adapter), true);
}

static void count_resident(struct worker *w, const struct run *run, int sign)
{
    size_t bytes = run_bytes(w, run);
    w->runs->resident += sign;
    w->runs->resident_bytes =
        sign > 0 ? w->runs->resident_bytes + bytes : w->runs->resident_bytes - bytes;
    counters_set(w->counters, COUNT_RUNS_RESIDENT, w->runs->resident);
}

void runs_adopt(struct worker *w, struct run *run, struct adapter *take_adapter)
{
    if (run->adapter) {
        count_resident(w, run, -1);
        adapter_free(run->adapter);
    }
    run->adapter = take_adapter;
    run->made = true;
    if (take_adapter) count_resident(w, run, 1);
}

void runs_forget(struct worker *w, struct run *run)
{
    schedule_run_drop(w->schedule, run);
    if (run->adapter) count_resident(w, run, -1);
    if (run->late) counters_add(w->counters, COUNT_RUNS_PAUSED, -1);
    map_take(w->runs->by_id, run->id);
    run_free(run);
}

static struct run *oldest_idle(struct worker *w)
{
    struct run *oldest = NULL;
    size_t at = 0;
    for (struct run *run; (run = map_next(w->runs->by_id, &at));)
        if (run->adapter && !run->broken && !order_held(run->order) &&
            (!oldest || run->used_ms < oldest->used_ms))
            oldest = run;
    return oldest;
}

static int make_room(struct worker *w, struct err *e)
{
    size_t max = (size_t)w->conf->adapters_mb << 20;
    while (w->runs->resident_bytes > max) {
        struct run *run = oldest_idle(w);
        if (!run) return 0; /* all of them work: the bound is passed rather than a job refused */
        if (snapshot_needed(run) && snapshot_run(w, run, e) < 0) {
            if (e->kind != ERR_RETRY) return -1;
            log_warn("run.kept", "run=%s why=\"%s\"", run->id, e->text);
            err_clear(e);
            return 0; /* no room for its snapshot now: the bound is passed here too */
        }
        log_info("run.evicted", "run=%s seq=%" PRId64, run->id, order_applied(run->order));
        runs_forget(w, run);
    }
    return 0;
}

int runs_resident(struct worker *w, struct run *run, struct err *e)
{
    char path[FOLDER_PATH_MAX], digest[65];
    if (run->adapter || !run->made) return 0;
    if (make_room(w, e) < 0) return -1;
    snprintf(path, sizeof path, "%s/%s", w->conf->data, run->snapshot_dir);
    struct adapter *ad = adapter_load(w->engine, path, run->snapshot_sha256, true, true, e);
    if (!ad) return e->kind == ERR_USER ? snapshot_damaged(w, run, e) : -1;
    if (adapter_digest(ad, digest, e) < 0) {
        adapter_free(ad);
        return -1;
    }
    if (strcmp(digest, run->snapshot_digest)) {
        adapter_free(ad);
        err_set(e, ERR_USER, "state digest is %s, expected %s", digest, run->snapshot_digest);
        return snapshot_damaged(w, run, e);
    }
    runs_adopt(w, run, ad);
    failpoint_pass("wk.after_load", run->id);
    log_info("run.loaded", "run=%s seq=%" PRId64, run->id, run->snapshot_seq);
    return 0;
}

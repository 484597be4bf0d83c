/* snapshot.c - see snapshot.h. */
#include "snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "folder.h"
#include "loaded.h"
#include "seal/seal.h"
#include "worker.h"

#define LOOK_MS     250
#define AGAIN_MS    5000 /* before what failed is tried again */
#define KEEP        2
#define NUMBER_SIZE 24

/* What is about to become a row. */
struct draft {
    int64_t seq;
    char dir[FOLDER_PATH_MAX / 2]; /* below the data folder; "": the run was never made */
    char sha256[65], digest[65];
    char past[2 * ORDER_PAST + 1]; /* hex: which jobs of the last seqs came */
};

bool snapshot_needed(const struct run *run)
{
    if (run->broken || !(run->made || run->never)) return false;
    return run->refused || order_applied(run->order) > run->snapshot_seq;
}

/* ---------------------------------------------------------------- files */

/* A name that no attempt before had, so that a row never points to files that are being replaced.
 */
static void name_dir(const struct run *run, struct draft *d)
{
    static int attempt;
    char name[ID_SIZE];
    folder_name(name, sizeof name, run->id);
    snprintf(d->dir, sizeof d->dir, "snapshots/%s/%" PRId64 "-%" PRId64 "-%d", name, d->seq,
             run->shard->epoch, attempt++);
}

static int write_files(struct worker *w, struct run *run, struct draft *d, struct err *e)
{
    char path[FOLDER_PATH_MAX];
    int64_t bytes;
    name_dir(run, d);
    snprintf(path, sizeof path, "%s/%s", w->conf->data, d->dir);
    if (adapter_digest(run->adapter, d->digest, e) < 0 || folder_make_parent(path, e) < 0 || folder_remove(path, e) < 0 ||
        adapter_save(run->adapter, path, true, &bytes, d->sha256, e) < 0) {
        if (e->kind == ERR_USER) e->kind = ERR_RETRY; /* a folder in the way is no user's fault */
        return -1;
    }
    return 0;
}

/* A run that only read since its last snapshot shares the files of that one. */
static int draft_make(struct worker *w, struct run *run, struct draft *d, struct err *e)
{
    uint8_t past[ORDER_PAST];
    *d = (struct draft){.seq = order_applied(run->order)};
    seal_hex(past, (size_t)order_past(run->order, past), d->past);
    if (run->never) return 0;
    if (run->adapter && run->replay_ms > 0) return write_files(w, run, d, e);
    if (run->snapshot_seq < 0 || !*run->snapshot_dir) return write_files(w, run, d, e);
    snprintf(d->dir, sizeof d->dir, "%s", run->snapshot_dir);
    snprintf(d->sha256, sizeof d->sha256, "%s", run->snapshot_sha256);
    snprintf(d->digest, sizeof d->digest, "%s", run->snapshot_digest);
    return 0;
}

/* ---------------------------------------------------------------- the row */

static int insert(struct worker *w, const struct run *run, const struct draft *d,
                  const struct progress_at *at, struct err *e)
{
    const struct shard *s = run->shard;
    char seq[NUMBER_SIZE], epoch[NUMBER_SIZE], partition[NUMBER_SIZE], resume[NUMBER_SIZE],
        scan[NUMBER_SIZE], scan_epoch[NUMBER_SIZE];
    snprintf(seq, sizeof seq, "%" PRId64, d->seq);
    snprintf(epoch, sizeof epoch, "%" PRId64, s->epoch);
    snprintf(partition, sizeof partition, "%d", s->partition);
    snprintf(resume, sizeof resume, "%" PRId64, at->resume);
    snprintf(scan, sizeof scan, "%" PRId64, at->scan);
    snprintf(scan_epoch, sizeof scan_epoch, "%" PRId64, at->scan_epoch);
    int n = db_queryf(w->db, NULL, e,
                      "UPDATE shards SET resume_offset = $1::bigint, scan_offset = $2::bigint,"
                      " scan_epoch = $3::bigint WHERE model = $4 AND stream = $5"
                      " AND partition = $6::int AND epoch = $7::bigint AND owner = $8",
                      resume, scan, scan_epoch, w->conf->model, stream_name(s->stream), partition,
                      epoch, w->owner, NULL);
    if (n < 0) return -1;
    if (!n && !mutation("snapshot_epoch")) return shard_fenced(w, s, "at a snapshot", e);
    n = db_queryf(w->db, NULL, e,
                  "INSERT INTO run_snapshots (run_id, seq, epoch, dir, sha256, state_digest,"
                  " resume_offset, scan_offset, scan_epoch, past) VALUES ($1, $2::bigint,"
                  " $3::bigint, $4, $5, $6, $7::bigint, $8::bigint, $9::bigint,"
                  " decode($10, 'hex'))"
                  " ON CONFLICT (run_id, seq, epoch) DO UPDATE SET dir = EXCLUDED.dir,"
                  " sha256 = EXCLUDED.sha256, state_digest = EXCLUDED.state_digest,"
                  " resume_offset = EXCLUDED.resume_offset, scan_offset = EXCLUDED.scan_offset,"
                  " scan_epoch = EXCLUDED.scan_epoch, past = EXCLUDED.past",
                  run->id, seq, epoch, d->dir, d->sha256, d->digest, resume, scan, scan_epoch,
                  d->past, NULL);
    return n < 0 ? -1 : 0;
}

/* The answer to COMMIT was lost: the row tells. */
static int look_committed(struct worker *w, const struct run *run, const struct draft *d,
                          struct err *e)
{
    struct db_result *r = NULL;
    char seq[NUMBER_SIZE];
    snprintf(seq, sizeof seq, "%" PRId64, d->seq);
    int n = db_queryf(w->db, &r, e,
                      "SELECT 1 FROM run_snapshots WHERE run_id = $1 AND seq = $2::bigint"
                      " AND dir = $3 AND past = decode($4, 'hex')",
                      run->id, seq, d->dir, d->past, NULL);
    db_result_free(r);
    if (n < 0) return -1;
    return n ? 0 : err_set(e, ERR_RETRY, "a snapshot was not committed");
}

static int commit(struct worker *w, struct run *run, const struct draft *d,
                  const struct progress_at *at, struct err *e)
{
    bool unknown = false;
    if (db_begin(w->db, e) < 0) return -1;
    if (insert(w, run, d, at, e) < 0) {
        db_rollback(w->db);
        return -1;
    }
    if (db_commit(w->db, &unknown, e) == 0) return 0;
    return unknown ? look_committed(w, run, d, e) : -1;
}

/* What stays of a run's folders. */
struct kept {
    const char *names[KEEP]; /* what rows name */
    int64_t epoch;           /* ours */
    int64_t covered;         /* loads up to this seq need no files: every snapshot that is kept has them */
};

/* We may have been overtaken since our row was committed: a folder of a later epoch is its owner's,
 * who may have written it and not committed its row yet. */
static bool is_kept(const void *arg, const char *name)
{
    const struct kept *k = arg;
    int64_t epoch = 0;
    for (int i = 0; i < KEEP; i++)
        if (k->names[i] && !strcmp(name, k->names[i])) return true;
    if (loaded_seq(name) > k->covered) return true;
    return sscanf(name, "%*d-%" SCNd64, &epoch) == 1 && epoch > k->epoch;
}

/* Older rows and every folder that no row names leave.  Rows of a run that only read share a folder, so the newest of
 * each counts: two that are kept are two states on disk.  What fails here is only space. */
static void clean(struct worker *w, const struct run *run, struct err *e)
{
    char keep[NUMBER_SIZE], name[ID_SIZE], path[FOLDER_PATH_MAX];
    struct kept kept = {.epoch = run->shard->epoch, .covered = -1};
    struct db_result *r = NULL;
    snprintf(keep, sizeof keep, "%d", KEEP);
    int n = db_queryf(w->db, NULL, e,
                      "DELETE FROM run_snapshots WHERE run_id = $1 AND (seq, epoch) NOT IN"
                      " (SELECT seq, epoch FROM (SELECT DISTINCT ON (dir) seq, epoch"
                      " FROM run_snapshots WHERE run_id = $1 AND damaged_at IS NULL"
                      " ORDER BY dir, seq DESC, epoch DESC) newest"
                      " ORDER BY seq DESC, epoch DESC LIMIT $2::int)",
                      run->id, keep, NULL);
    if (n >= 0)
        n = db_queryf(w->db, &r, e,
                      "SELECT dir, seq FROM run_snapshots WHERE run_id = $1"
                      " ORDER BY seq DESC, epoch DESC",
                      run->id, NULL);
    for (int i = 0; i < n && i < KEEP; i++) {
        const char *slash = strrchr(db_text(r, i, 0), '/');
        kept.names[i] = slash ? slash + 1 : NULL;
        if (i == KEEP - 1) kept.covered = db_int(r, i, 1);
    }
    folder_name(name, sizeof name, run->id);
    snprintf(path, sizeof path, "%s/snapshots/%s", w->conf->data, name);
    if (n < 0 || (!run->never && folder_keep_only(path, is_kept, &kept, e) < 0))
        log_warn("snapshot.clean", "run=%s why=\"%s\"", run->id, e->text);
    err_clear(e);
    db_result_free(r);
}

static int remember(struct run *run, const struct draft *d, struct err *e)
{
    char *dir = strdup(d->dir), *sha256 = strdup(d->sha256), *digest = strdup(d->digest);
    if (!dir || !sha256 || !digest) {
        free(dir);
        free(sha256);
        free(digest);
        return err_set(e, ERR_LOST, "out of memory for a snapshot's name");
    }
    free(run->snapshot_dir);
    free(run->snapshot_sha256);
    free(run->snapshot_digest);
    run->snapshot_dir = dir;
    run->snapshot_sha256 = sha256;
    run->snapshot_digest = digest;
    run->snapshot_seq = d->seq;
    run->replay_ms = 0;
    run->prefer_snapshot = run->refused = false;
    run->changed_ms = 0;
    return 0;
}

int snapshot_run(struct worker *w, struct run *run, struct err *e)
{
    struct draft d;
    struct progress_at at;
    int64_t began = clock_mono_ms();
    if (!mutation("snapshot_ack") && publish_flush(w, e) < 0) return -1;
    if (lease_wait_good(w->lease, e) < 0) return -1;
    if (draft_make(w, run, &d, e) < 0) return -1;
    if (failpoint("wk.after_snapfile", run->id, e) < 0) return -1;
    progress_with(run->shard->progress, run, d.seq, &at);
    if (commit(w, run, &d, &at, e) < 0) return err_prefix(e, "snapshot of run \"%s\"", run->id);
    failpoint_pass("wk.after_snaprow", run->id);
    progress_covered(run->shard->progress, run, d.seq);
    run->shard->written = at;
    if (remember(run, &d, e) < 0) return -1;
    clean(w, run, e);
    counters_add(w->counters, COUNT_SNAPSHOTS, 1);
    log_info("run.snapshot", "run=%s seq=%" PRId64 " ms=%" PRId64, run->id, d.seq,
             clock_mono_ms() - began);
    return 0;
}

/* ---------------------------------------------------------------- damage */

/* The shard must be read again from where the snapshot before the damaged one was taken, or from
 * the beginning. */
static int step_back(struct worker *w, const struct run *run, struct err *e)
{
    const struct shard *s = run->shard;
    char partition[NUMBER_SIZE], epoch[NUMBER_SIZE];
    snprintf(partition, sizeof partition, "%d", s->partition);
    snprintf(epoch, sizeof epoch, "%" PRId64, s->epoch);
    int n = db_queryf(w->db, NULL, e,
                      "UPDATE run_snapshots SET damaged_at = now() WHERE run_id = $1 AND dir = $2",
                      run->id, run->snapshot_dir, NULL);
    if (n < 0) return -1;
    n = db_queryf(w->db, NULL, e,
                  "UPDATE shards s SET resume_offset = least(s.resume_offset, b.resume_offset),"
                  " scan_offset = least(s.scan_offset, b.scan_offset),"
                  " scan_epoch = least(s.scan_epoch, b.scan_epoch)"
                  " FROM (SELECT coalesce(max(resume_offset), 0) AS resume_offset,"
                  " coalesce(max(scan_offset), 0) AS scan_offset,"
                  " coalesce(max(scan_epoch), 0) AS scan_epoch FROM (SELECT * FROM run_snapshots"
                  " WHERE run_id = $1 AND damaged_at IS NULL ORDER BY seq DESC, epoch DESC LIMIT 1)"
                  " last) b WHERE s.model = $2 AND s.stream = $3 AND s.partition = $4::int"
                  " AND s.epoch = $5::bigint AND s.owner = $6",
                  run->id, w->conf->model, stream_name(s->stream), partition, epoch, w->owner,
                  NULL);
    if (n < 0) return -1;
    return n ? 0 : shard_fenced(w, s, "at a damaged snapshot", e);
}

int snapshot_damaged(struct worker *w, const struct run *run, struct err *e)
{
    struct err why = *e;
    counters_add(w->counters, COUNT_SNAPSHOTS_DAMAGED, 1);
    log_error("snapshot.damaged", "run=%s seq=%" PRId64 " dir=%s why=\"%s\"", run->id,
              run->snapshot_seq, run->snapshot_dir, why.text);
    bool unknown;
    if (db_begin(w->db, e) < 0) return -1;
    if (step_back(w, run, e) < 0) {
        db_rollback(w->db);
        return -1;
    }
    if (db_commit(w->db, &unknown, e) < 0) return -1;
    return err_set(e, ERR_LOST,
                   "snapshot of run \"%s\" is damaged: the shard is replayed from the one before",
                   run->id);
}

/* ---------------------------------------------------------------- when */

static bool due(const struct worker *w, const struct run *run, int64_t now_ms)
{
    if (!snapshot_needed(run) || now_ms < run->again_ms) return false;
    if (run->again_ms)
        return true; /* it was due when it failed, and a run that is paused is never idle */
    double after = (double)w->conf->snapshot_replay_ms;
    bool boundary = !run->adapter || !adapter_has_gradient(run->adapter);
    if (run->prefer_snapshot) return true;
    if (run->replay_ms > after && boundary) return true;
    if (run->replay_ms > 2 * after) return true; /* no step in sight: the gradient goes along */
    bool idle = !order_at(run->order, order_applied(run->order) + 1);
    return idle && now_ms - run->used_ms > w->conf->snapshot_idle_ms;
}

static int write_progress(struct worker *w, int64_t now_ms, struct err *e)
{
    if (now_ms - w->progress_written_ms < w->conf->progress_ms) return 0;
    w->progress_written_ms = now_ms;
    if (publish_flush(w, e) < 0) return -1;
    for (int i = 0; i < w->shard_count; i++)
        if (shard_write_progress(w, w->shards[i], e) < 0) return -1;
    return 0;
}

/* A database that is away, or a disk that is full, costs time only: a later look tries again. */
static int tolerate(int rc, struct err *e)
{
    if (rc == 0 || e->kind != ERR_RETRY) return rc;
    log_warn("snapshot.postponed", "why=\"%s\"", e->text);
    err_clear(e);
    return 0;
}

/* A run whose changes could not be kept for too long stops, so that what a crash would cost stays
 * bounded; one whose save found no room waits a little.  Both go on here. */
static void pause_or_resume(struct worker *w, struct run *run, int64_t now_ms)
{
    bool changed = snapshot_needed(run) && run->replay_ms > 0;
    if (changed && !run->changed_ms) run->changed_ms = now_ms;
    bool late = changed && now_ms - run->changed_ms > w->conf->unsnapshotted_ms && run->again_ms;
    if (late && !run->late) {
        counters_add(w->counters, COUNT_RUNS_PAUSED, 1);
        log_error("run.unsnapshotted", "run=%s seq=%" PRId64 " s=%" PRId64, run->id,
                  order_applied(run->order), (now_ms - run->changed_ms) / 1000);
    }
    if (!late && run->late) {
        counters_add(w->counters, COUNT_RUNS_PAUSED, -1);
        log_info("run.resumed", "run=%s", run->id);
    }
    run->late = late;
    run->paused = late || run->broken || now_ms < run->step_again_ms;
}

int snapshot_if_due(struct worker *w, struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    if (now_ms - w->snapshots_looked_ms < LOOK_MS) return 0;
    w->snapshots_looked_ms = now_ms;
    size_t at = 0;
    for (struct run *run; (run = map_next(w->runs->by_id, &at));) {
        if (due(w, run, now_ms)) {
            run->used_ms = now_ms;
            int rc = snapshot_run(w, run, e);
            run->again_ms = rc < 0 ? now_ms + AGAIN_MS : 0;
            if (tolerate(rc, e) < 0) return -1;
        }
        pause_or_resume(w, run, now_ms);
    }
    return tolerate(write_progress(w, now_ms, e), e);
}

int snapshot_all(struct worker *w, struct err *e)
{
    size_t at = 0;
    for (struct run *run; (run = map_next(w->runs->by_id, &at));)
        if (snapshot_needed(run) && snapshot_run(w, run, e) < 0) return -1;
    w->progress_written_ms = clock_mono_ms() - w->conf->progress_ms;
    return write_progress(w, clock_mono_ms(), e);
}

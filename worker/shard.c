/* shard.c - see shard.h. */
#include "shard.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "books.h"
#include "worker.h"

#define SCAN_MAX        256
#define SCAN_WAIT_MS    60000
#define OFFSETS_WAIT_MS 10000
#define NUMBER_SIZE     24

void shard_free(struct shard *s)
{
    if (!s) return;
    size_t at = 0;
    for (struct official *o; s->official && (o = map_next(s->official, &at));)
        free(o);
    map_free(s->official);
    progress_free(s->progress);
    seen_free(s->seen);
    free(s);
}

struct shard *shard_find(struct worker *w, enum stream stream, int partition)
{
    for (int i = 0; i < w->shard_count; i++)
        if (w->shards[i]->stream == stream && w->shards[i]->partition == partition)
            return w->shards[i];
    return NULL;
}

int shard_fenced(struct worker *w, const struct shard *s, const char *where, struct err *e)
{
    counters_add(w->counters, COUNT_FENCED, 1);
    return err_set(e, ERR_LOST, "shard %s/%d is not ours any more (epoch %" PRId64 ", seen %s)",
                   stream_name(s->stream), s->partition, s->epoch, where);
}

/* ---------------------------------------------------------------- take-over */

static struct shard *shard_new(const struct lease_event *ev, struct err *e)
{
    struct shard *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for a shard");
        return NULL;
    }
    s->stream = ev->stream;
    s->partition = ev->partition;
    s->epoch = ev->epoch;
    s->clean = ev->clean;
    s->next_job = ev->resume_offset;
    s->written = (struct progress_at){ev->resume_offset, ev->scan_offset, ev->scan_epoch};
    s->official = map_create(e);
    s->progress = progress_create(&s->written, e);
    s->seen = seen_create(SHARD_SEEN_MAX, e);
    if (s->official && s->progress && s->seen) return s;
    shard_free(s);
    return NULL;
}

/* A sampling job was decided before anything that the row needs, and billing may not know it yet. */
static int scan_early(struct shard *s, const struct result *r, int64_t offset, struct err *e)
{
    if (seen_has(s->seen, r->job_id)) return 0;
    return seen_add(s->seen, r->job_id, -1, offset, e);
}

/* A record that counts.  The first of a job id is official. */
static int scan_result(struct shard *s, const struct result *r, int64_t offset, struct err *e)
{
    if (r->barrier || map_get(s->official, r->job_id)) return 0;
    if (offset < s->written.scan) return scan_early(s, r, offset, e);
    if (seen_has(s->seen, r->job_id)) return 0;
    struct official *o = calloc(1, sizeof *o);
    if (!o) return err_set(e, ERR_RETRY, "out of memory for a result");
    memcpy(o->job_id, r->job_id, sizeof o->job_id);
    memcpy(o->digest, r->digest, sizeof o->digest);
    o->status = r->status;
    o->gave_up = result_gave_up(r);
    o->kind = r->kind;
    o->offset = offset;
    o->epoch = r->epoch;
    if (map_put(s->official, o->job_id, o, e) < 0) {
        free(o);
        return -1;
    }
    return progress_result(s->progress, offset, r->epoch, -1, e);
}

static int scan_message(const struct worker *w, struct shard *s, struct reading *rd,
                        const struct bus_message *m, struct err *e)
{
    struct err why = {0};
    struct result *r = result_decode(m->headers, m->header_count, m->value, m->size,
                                     w->conf->model, s->stream, &why);
    if (!r && why.kind != ERR_USER) {
        *e = why;
        return -1;
    }
    if (!r) {
        log_warn("shard.unreadable_result", "topic=%s partition=%d offset=%" PRId64 " why=\"%s\"",
                 m->topic, m->partition, m->offset, why.text);
        return 0;
    }
    int rc = reading_accepts(rd, r) ? scan_result(s, r, m->offset, e) : 0;
    result_free(r);
    return rc;
}

/* Does the log still have everything from `from` on?  Where it does not we must not begin further
 * on: jobs would be passed over, and results read without the epoch in force.  ERR_USER: it does
 * not. */
static int check_log(struct worker *w, const struct shard *s, const char *what, const char *topic,
                     int64_t from, int64_t *end, struct err *e)
{
    int64_t first;
    if (bus_offsets(w->scan, topic, s->partition, &first, end, OFFSETS_WAIT_MS, e) < 0) return -1;
    if (from < first)
        return err_set(e, ERR_USER,
                       "%s %s/%d are needed from %" PRId64 " but the log begins at %" PRId64, what,
                       topic, s->partition, from, first);
    if (from > *end)
        return err_set(e, ERR_USER,
                       "%s %s/%d are needed from %" PRId64 " but the log ends at %" PRId64, what,
                       topic, s->partition, from, *end);
    return 0;
}

/* Where reading begins: where the row says, or lower, where billing is, if the log still has that. */
static int scan_from(struct worker *w, const struct shard *s, struct books_at *out, struct err *e)
{
    int64_t first, end;
    const char *topic = w->results_topic[s->stream];
    const struct books_at row = {s->written.scan, s->written.scan_epoch};
    *out = row;
    if (s->stream != STREAM_SAMPLE) return 0;
    if (books_cursor(w, s, out, e) < 0) return -1;
    if (out->offset >= row.offset) {
        *out = row;
        return 0;
    }
    if (bus_offsets(w->scan, topic, s->partition, &first, &end, OFFSETS_WAIT_MS, e) < 0) return -1;
    if (out->offset >= first) return 0;
    log_warn("shard.books_behind", "topic=%s partition=%d billing=%" PRId64 " log=%" PRId64, topic,
             s->partition, out->offset, first);
    *out = row;
    return 0;
}

/* Reads up to the barrier; *epoch is the highest that was seen before it. */
static int scan(struct worker *w, struct shard *s, int64_t barrier, int64_t *epoch, struct err *e)
{
    struct bus_message *got[SCAN_MAX];
    struct books_at begin;
    if (scan_from(w, s, &begin, e) < 0) return -1;
    struct reading rd = {.max_epoch = begin.epoch};
    const char *topic = w->results_topic[s->stream];
    int64_t from = begin.offset, at = from, until = clock_mono_ms() + SCAN_WAIT_MS;
    *epoch = rd.max_epoch;
    if (from == barrier) return 0; /* nothing was decided since the row was written */
    if (bus_assign(w->scan, topic, s->partition, from, e) < 0) return -1;
    int rc = 0;
    while (rc == 0 && at <= barrier) {
        int n = bus_poll(w->scan, got, SCAN_MAX, 100, e);
        if (n < 0 && e->kind != ERR_RETRY) rc = -1;
        if (n <= 0 && clock_mono_ms() > until)
            rc = err_set(e, ERR_RETRY, "results %s/%d could not be read up to %" PRId64, topic,
                         s->partition, barrier);
        if (n > 0) until = clock_mono_ms() + SCAN_WAIT_MS;
        for (int i = 0; i < n; i++) {
            at = got[i]->offset + 1;
            if (rc == 0 && got[i]->offset <= barrier) rc = scan_message(w, s, &rd, got[i], e);
            if (got[i]->offset < barrier) *epoch = rd.max_epoch;
            failpoint_pass("wk.mid_scan", topic);
            bus_message_free(got[i]);
        }
    }
    if (rc == 0) err_clear(e);
    struct err ignored = {0};
    if (bus_unassign(w->scan, topic, s->partition, rc == 0 ? e : &ignored) < 0) rc = -1;
    return rc;
}

/* The log had seen our epoch, or a higher one, before our barrier: either somebody has overtaken us,
 * or the database came back from a backup and its epochs must be raised above the log's.  An epoch
 * that was another owner's once would not fence that one. */
static int raise_epoch(struct worker *w, struct shard *s, int64_t seen, struct err *e)
{
    char partition[NUMBER_SIZE], mine[NUMBER_SIZE], above[NUMBER_SIZE];
    snprintf(partition, sizeof partition, "%d", s->partition);
    snprintf(mine, sizeof mine, "%" PRId64, s->epoch);
    snprintf(above, sizeof above, "%" PRId64, seen + 1);
    int n =
        db_queryf(w->db, NULL, e,
                  "UPDATE shards SET epoch = $1::bigint WHERE model = $2 AND stream = $3"
                  " AND partition = $4::int AND epoch = $5::bigint AND owner = $6",
                  above, w->conf->model, stream_name(s->stream), partition, mine, w->owner, NULL);
    if (n < 0) return -1;
    if (!n) return shard_fenced(w, s, "in the results log", e);
    return err_set(e, ERR_LOST,
                   "the log of shard %s/%d has epoch %" PRId64 ", the database gave %" PRId64
                   ": raised, start again",
                   stream_name(s->stream), s->partition, seen, s->epoch);
}

static int take(struct worker *w, struct shard *s, struct err *e)
{
    int64_t epoch, end;
    const char *jobs = w->jobs_topic[s->stream], *results = w->results_topic[s->stream];
    failpoint_pass("wk.after_epoch", results);
    if (check_log(w, s, "results", results, s->written.scan, &end, e) < 0 ||
        check_log(w, s, "jobs", jobs, s->written.resume, &s->jobs_end, e) < 0)
        return -1;
    int64_t barrier = mutation("barrier") ? (end ? end - 1 : 0) : publish_barrier(w, s, e);
    if (barrier < 0) return -1;
    failpoint_pass("wk.after_barrier", results);
    if (scan(w, s, barrier, &epoch, e) < 0) return -1;
    if (epoch >= s->epoch) return raise_epoch(w, s, epoch, e);
    progress_results_end(s->progress, barrier + 1, s->epoch);
    if (check_log(w, s, "jobs", jobs, s->written.resume, &s->jobs_end, e) < 0 ||
        bus_assign(w->in, jobs, s->partition, s->written.resume, e) < 0)
        return -1;
    shard_read(s, s->written.resume - 1);
    log_info("shard.taken",
             "stream=%s partition=%d epoch=%" PRId64 " barrier=%" PRId64 " known=%zu jobs=%" PRId64,
             stream_name(s->stream), s->partition, s->epoch, barrier, map_count(s->official),
             s->jobs_end - s->written.resume);
    return 0;
}

/* The shard stays ours and is served by nobody: another worker could do no better, and our other
 * shards go on.  Who loses it all the same leaves, as with any shard.  Takes s. */
static void refuse(struct worker *w, struct shard *take_s, struct err *e)
{
    counters_add(w->counters, COUNT_SHARDS_REFUSED, 1);
    log_error("shard.refused", "stream=%s partition=%d error=\"%s\"",
              stream_name(take_s->stream), take_s->partition, e->text);
    err_clear(e);
    shard_free(take_s);
}

int shard_take(struct worker *w, const struct lease_event *ev, struct err *e)
{
    struct shard *s = shard_new(ev, e);
    if (!s) return -1;
    if (ev->other_numerics) {
        counters_add(w->counters, COUNT_NUMERICS_CHANGED, 1);
        log_warn("shard.numerics_changed", "stream=%s partition=%d now=\"%s\"",
                 stream_name(s->stream), s->partition, engine_info(w->engine)->numerics);
    }
    if (w->shard_count == WORKER_SHARDS_MAX) {
        shard_free(s);
        return err_set(e, ERR_BUG, "more than %d shards", WORKER_SHARDS_MAX);
    }
    int rc = take(w, s, e);
    if (rc < 0 && e->kind == ERR_USER) {
        refuse(w, s, e);
        return 0;
    }
    if (rc < 0) {
        err_prefix(e, "taking shard %s/%d over", stream_name(s->stream), s->partition);
        shard_free(s);
        return -1;
    }
    w->shards[w->shard_count++] = s;
    counters_set(w->counters, COUNT_SHARDS, w->shard_count);
    return 0;
}

/* ---------------------------------------------------------------- jobs and results */

int shard_job(struct shard *s, int64_t offset, const void *owner, int64_t seq, struct err *e)
{
    return progress_job(s->progress, offset, owner, seq, e);
}

struct official *shard_known(struct shard *s, const struct job *job)
{
    struct official *o = map_take(s->official, job->id);
    if (mutation("known")) {
        free(o);
        return NULL;
    }
    if (o && mutation("known_status")) o->status = RESULT_OK;
    if (o) progress_result_job(s->progress, o->offset, job->offset);
    return o;
}

void shard_read(struct shard *s, int64_t offset)
{
    s->next_job = offset + 1;
    if (s->caught_up || s->next_job < s->jobs_end) return;
    s->caught_up = true;
    progress_caught_up(s->progress);
}

int shard_acked(struct shard *s, int64_t job, int64_t offset, struct err *e)
{
    if (s->stream == STREAM_SAMPLE) progress_job_done(s->progress, job);
    seen_decided(s->seen, job, offset);
    return progress_result(s->progress, offset, s->epoch, job, e);
}

int shard_write_progress(struct worker *w, struct shard *s, struct err *e)
{
    struct progress_at at;
    char partition[NUMBER_SIZE], epoch[NUMBER_SIZE], resume[NUMBER_SIZE], scan_at[NUMBER_SIZE],
        scan_epoch[NUMBER_SIZE];
    progress_get(s->progress, &at);
    if (!memcmp(&at, &s->written, sizeof at)) return 0;
    snprintf(partition, sizeof partition, "%d", s->partition);
    snprintf(epoch, sizeof epoch, "%" PRId64, s->epoch);
    snprintf(resume, sizeof resume, "%" PRId64, at.resume);
    snprintf(scan_at, sizeof scan_at, "%" PRId64, at.scan);
    snprintf(scan_epoch, sizeof scan_epoch, "%" PRId64, at.scan_epoch);
    int n = db_queryf(w->db, NULL, e,
                      "UPDATE shards SET resume_offset = $1::bigint, scan_offset = $2::bigint,"
                      " scan_epoch = $3::bigint WHERE model = $4 AND stream = $5"
                      " AND partition = $6::int AND epoch = $7::bigint AND owner = $8",
                      resume, scan_at, scan_epoch, w->conf->model, stream_name(s->stream),
                      partition, epoch, w->owner, NULL);
    if (n < 0) return -1;
    if (!n) return shard_fenced(w, s, "in the database", e);
    s->written = at;
    return 0;
}

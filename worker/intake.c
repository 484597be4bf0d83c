/* intake.c - see intake.h.
 *
 * A record that cannot be read goes to the dlq and is skipped; the log goes on. */
#include "intake.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "books.h"
#include "execute.h"
#include "wire/answer.h"
#include "worker.h"

/* ---------------------------------------------------------------- what is not run */

/* The record asks for nothing any more. */
static int pass_over(struct shard *s, int64_t offset, struct err *e)
{
    if (shard_job(s, offset, NULL, 0, e) < 0) return -1;
    progress_job_done(s->progress, offset);
    return 0;
}

static int to_dlq(struct worker *w, struct shard *s, const struct bus_message *m,
                  const char *reason, struct err *e)
{
    log_warn("job.unreadable", "topic=%s partition=%d offset=%" PRId64 " why=\"%s\"", m->topic,
             m->partition, m->offset, reason);
    if (publish_dlq(w, m, reason, e) < 0) return -1;
    return pass_over(s, m->offset, e);
}

/* A job that is too far ahead fails; its run does not notice. */
static int refuse(struct worker *w, struct task *t, const char *text, struct err *e)
{
    int rc = t->known ? 0 : publish_failed(w, t, text, e);
    if (rc == 0) rc = pass_over(t->shard, t->job->offset, e);
    task_free(t);
    return rc;
}

/* A job whose seq is over or another job's fails.  It is covered by a snapshot whose past names it,
 * so that a copy that comes after a restart is known as one. */
static int refuse_seq(struct worker *w, struct run *run, struct task *t, const char *text,
                      struct err *e)
{
    int rc = t->known ? 0 : publish_failed(w, t, text, e);
    if (rc == 0) rc = shard_job(t->shard, t->job->offset, run, t->job->seq, e);
    run->refused = true;
    task_free(t);
    return rc;
}

/* ---------------------------------------------------------------- training */

struct expiry {
    struct worker *w;
    int64_t missing;
    int rc;
    struct err *e;
};

static void expire_task(void *arg, void *item)
{
    struct expiry *x = arg;
    struct task *t = item;
    char text[128];
    snprintf(text, sizeof text,
             "job %" PRId64 " was missing before this when the run was given up: the session ended, or "
             "it never came",
             x->missing);
    schedule_forget(x->w->schedule, t);
    if (x->rc == 0 && !t->known) x->rc = publish_failed(x->w, t, text, x->e);
    worker_held(x->w, t->shard, -(int64_t)t->job->size);
    task_free(t);
}

static int expire(struct worker *w, struct shard *s, const struct job *job, struct err *e)
{
    struct run *run = runs_get(w, job->parent, s, e);
    if (!run) return -1;
    struct expiry x = {.w = w, .missing = order_unbroken(run->order) + 1, .e = e};
    int failed = order_expire(run->order, expire_task, &x);
    if (!run->made && order_applied(run->order) >= 0) run->never = true;
    if (failed) log_info("run.expired", "run=%s jobs=%d", run->id, failed);
    return x.rc < 0 ? -1 : pass_over(s, job->offset, e);
}

static struct task *task_new(struct worker *w, struct shard *s, struct job *take_job, struct err *e)
{
    struct task *t = calloc(1, sizeof *t);
    if (!t) {
        job_free(take_job);
        err_set(e, ERR_RETRY, "out of memory for a task");
        return NULL;
    }
    t->job = take_job;
    t->shard = s;
    t->known = shard_known(s, take_job);
    t->arrived_us = clock_mono_us();
    return t;
}

static int hold(struct worker *w, struct run *run, struct task *t, struct err *e)
{
    t->run = run;
    t->cls = execute_class(t->job->kind);
    if (shard_job(t->shard, t->job->offset, run, t->job->seq, e) < 0) return -1;
    worker_held(w, t->shard, (int64_t)t->job->size);
    return schedule_task(w->schedule, t, e);
}

/* A seq belongs to the first job that came; its copies are those of its kind. */
static int mark_of(enum job_kind kind)
{
    _Static_assert(JOB_LOAD < ORDER_MARKS - 1, "every kind that is numbered has a mark of its own");
    return kind == JOB_REJECT ? ORDER_MARKS - 1 : (int)kind;
}

static int train_job(struct worker *w, struct shard *s, struct job *take_job, struct err *e)
{
    struct task *t = task_new(w, s, take_job, e);
    if (!t) return -1;
    struct run *run = runs_get(w, take_job->parent, s, e);
    if (run && seen_has(s->seen, take_job->id)) { /* a copy of one that was refused */
        int over = pass_over(s, take_job->offset, e);
        task_free(t);
        return over;
    }
    int added = run ? order_add(run->order, take_job->seq, mark_of(take_job->kind), t, e) : -1;
    char text[160];
    switch (added) {
    case ORDER_HELD:
        return hold(w, run, t, e);
    case ORDER_COPY:
        log_debug("job.copy", "job=%s", take_job->id);
        int rc = pass_over(s, take_job->offset, e);
        task_free(t);
        return rc;
    case ORDER_LATE:
        return refuse_seq(w, run, t, "the session ended before this job arrived", e);
    case ORDER_USED:
        snprintf(text, sizeof text,
                 "number %" PRId64 " was used before by another kind of request than %s",
                 take_job->seq, job_kind_name(take_job->kind));
        return refuse_seq(w, run, t, text, e);
    case ORDER_FAR:
        snprintf(text, sizeof text, "job %" PRId64 " is more than %d ahead of job %" PRId64,
                 take_job->seq, ORDER_WINDOW, order_unbroken(run->order) + 1);
        if (seen_add(s->seen, take_job->id, take_job->offset, -1, e) < 0) break;
        return refuse(w, t, text, e);
    }
    task_free(t);
    return -1;
}

/* ---------------------------------------------------------------- sampling */

/* The books are asked about all that came with this read.  Who is in them was decided before, longer
 * ago than the take-over read back. */
static int settle_fresh(struct worker *w, struct err *e)
{
    int64_t results[INTAKE_MAX];
    int count = w->fresh_count;
    if (!count) return 0;
    if (books_look_up(w, w->fresh, count, results, e) < 0) return -1;
    w->fresh_count = 0;
    for (int i = 0; i < count; i++) {
        struct task *t = w->fresh[i];
        if (results[i] < 0 || mutation("books")) {
            worker_held(w, t->shard, (int64_t)t->job->size);
            sampling_add(w, t);
            continue;
        }
        log_debug("job.copy", "job=%s result=%" PRId64, t->job->id, results[i]);
        progress_job_done(t->shard->progress, t->job->offset);
        seen_decided(t->shard->seen, t->job->offset, results[i]);
        task_free(t);
    }
    return 0;
}

static int cancel(struct worker *w, struct shard *s, const struct bus_message *m,
                  const struct job *job, struct err *e)
{
    char id[ID_SIZE];
    struct err why = {0};
    if (cancel_decode(job->payload, job->size, id, &why) < 0) return to_dlq(w, s, m, why.text, e);
    if (settle_fresh(w, e) < 0 || sampling_cancel(w, id, e) < 0) return -1;
    return pass_over(s, job->offset, e);
}

static int sample_job(struct worker *w, struct shard *s, struct job *take_job, struct err *e)
{
    if (seen_has(s->seen, take_job->id)) {
        int over = pass_over(s, take_job->offset, e);
        job_free(take_job);
        return over;
    }
    struct task *t = task_new(w, s, take_job, e);
    if (!t) return -1;
    int64_t result = t->known ? t->known->offset : -1;
    if (seen_add(s->seen, take_job->id, take_job->offset, result, e) < 0) goto fail;
    if (t->known) {
        counters_add(w->counters, COUNT_REPLAYED, 1);
        int rc = pass_over(s, take_job->offset, e);
        task_free(t);
        return rc;
    }
    if (shard_job(s, take_job->offset, NULL, 0, e) < 0) goto fail;
    t->cls = CLASS_SAMPLE;
    t->suspect = !s->clean && take_job->offset < s->jobs_end;
    w->fresh[w->fresh_count++] = t;
    return 0;
fail:
    task_free(t);
    return -1;
}

/* ---------------------------------------------------------------- records */

static void plan(struct worker *w, const struct bus_message *m)
{
    struct err e = {0};
    struct batch *b = batch_decode(m->value, m->size, &e);
    if (b)
        schedule_plan(w->schedule, b, clock_mono_us());
    else
        log_warn("plan.unreadable", "offset=%" PRId64 " why=\"%s\"", m->offset, e.text);
}

static int control(struct worker *w, struct shard *s, const struct bus_message *m, struct job *job,
                   struct err *e)
{
    int rc = job->kind == JOB_EXPIRE ? expire(w, s, job, e) : cancel(w, s, m, job, e);
    job_free(job);
    return rc;
}

/* Does the job's run live on this shard?  ERR_USER when not. */
static int run_check(struct worker *w, struct shard *s, const struct job *job, struct err *e)
{
    const struct run *run = runs_get(w, job->parent, s, e);
    if (!run) return -1;
    if (run->shard == s) return 0;
    return err_set(e, ERR_USER, "tw_run is on partition %d, expected on %d", s->partition,
                   run->shard->partition);
}

static int job_record(struct worker *w, struct shard *s, const struct bus_message *m, struct err *e)
{
    struct err why = {0};
    struct job *job = job_decode(m->headers, m->header_count, m->value, m->size, s->stream, &why);
    if (!job && why.kind != ERR_USER) return err_set(e, why.kind, "%s", why.text);
    if (!job) return to_dlq(w, s, m, why.text, e);
    job->partition = m->partition;
    job->offset = m->offset;
    if (s->stream == STREAM_TRAIN && run_check(w, s, job, &why) < 0) {
        job_free(job);
        if (why.kind == ERR_USER) return to_dlq(w, s, m, why.text, e);
        return err_set(e, why.kind, "%s", why.text);
    }
    if (job->kind == JOB_EXPIRE || job->kind == JOB_CANCEL) return control(w, s, m, job, e);
    return s->stream == STREAM_TRAIN ? train_job(w, s, job, e) : sample_job(w, s, job, e);
}

static int record(struct worker *w, const struct bus_message *m, struct err *e)
{
    if (!strcmp(m->topic, w->batches_topic)) {
        plan(w, m);
        return 0;
    }
    enum stream stream =
        strcmp(m->topic, w->jobs_topic[STREAM_SAMPLE]) ? STREAM_TRAIN : STREAM_SAMPLE;
    struct shard *s = shard_find(w, stream, m->partition);
    if (!s || m->offset < s->next_job) return 0;
    if (job_record(w, s, m, e) < 0) return -1;
    shard_read(s, m->offset);
    return 0;
}

int intake(struct worker *w, int wait_ms, struct err *e)
{
    struct bus_message *got[INTAKE_MAX];
    int n = bus_poll(w->in, got, INTAKE_MAX, wait_ms, e);
    if (n < 0 && e->kind != ERR_RETRY) return -1;
    if (n < 0) {
        log_warn("intake.away", "why=\"%s\"", e->text);
        err_clear(e);
        return 0;
    }
    int rc = 0;
    for (int i = 0; i < n; i++) {
        if (rc == 0) rc = record(w, got[i], e);
        bus_message_free(got[i]);
    }
    return rc == 0 ? settle_fresh(w, e) : rc;
}

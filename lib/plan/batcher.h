/* batcher.h - what runs together next: a pure policy with the clock passed in.
 *
 * It knows jobs as (run, account, seq, kind class, tokens) and nothing of Kafka.  The dispatcher plans with it from
 * the log; a worker that has no plan uses the same policy, so that the two never disagree in kind.
 *
 *  - A run's jobs are offered in seq order; a gap holds the run back.
 *  - A batch holds jobs of one class: PASS (forward and forward_backward of any runs, several chunks of one run in a
 *    row too), STEP (optim_step, save, load, create: cheap, state only) or SAMPLE.
 *  - A batch closes at jobs_max or tokens_max, or when its oldest job has waited wait_ms; a run is as old as the job
 *    that is next in it, counted from when that job was added.
 *  - Fair between accounts: whose turn it is goes by tokens served so far (deficit round robin), not by who asks more.
 *    A job costs at least one token, and who was idle starts level with the others: idleness earns no credit. */
#ifndef PLAN_BATCHER_H
#define PLAN_BATCHER_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct batcher;

struct batcher_conf {
    int jobs_max;       /* per batch */
    int64_t tokens_max; /* per batch; a single larger job goes alone */
    int wait_ms;        /* how long the oldest job waits for company */
    int queue_max;      /* jobs known, those handed out and not done too; more is ERR_RETRY */

    /* May be NULL.  Called for a job that turned out to be past before it was handed out (batcher_run_set, or
     * batcher_done of it or of a later one); its tag is the caller's again. */
    void (*dropped)(void *arg, void *tag);
    void *dropped_arg;
};

enum batch_class { CLASS_PASS, CLASS_STEP, CLASS_SAMPLE };

struct batcher_job {
    const char *run;     /* copied */
    const char *account; /* copied */
    int64_t seq;         /* CLASS_SAMPLE: any; order does not matter there */
    enum batch_class cls;
    int64_t tokens;
    void *tag; /* the caller's; comes back in the batch */
};

struct batcher *batcher_create(const struct batcher_conf *conf, struct err *e);
void batcher_free(struct batcher *b); /* tags are not touched; NULL is fine */

/* Where a run stands: jobs with seq <= applied are dropped, applied + 1 is next.  Needed before its first job is due;
 * a run that was never set starts at the seq of its first job, and a lower one that comes before anything of the run
 * was handed out moves that start down. */
int batcher_run_set(struct batcher *b, const char *run, int64_t applied, struct err *e) WARN_UNUSED;
/* Forgets a run; dropped (may be NULL) sees the tags that were not handed out. */
void batcher_run_drop(struct batcher *b, const char *run, void (*dropped)(void *arg, void *tag), void *arg);

/* 1 added, 0 a copy of one that is known or already past (the caller keeps the tag), -1.  What is past is known by seq;
 * of CLASS_SAMPLE only what is not yet done is known. */
int batcher_add(struct batcher *b, const struct batcher_job *job, int64_t now_ms, struct err *e) WARN_UNUSED;

/* The next batch if one is due at now_ms: fills tags (jobs_max entries) in execution order and returns the count; 0: none
 * is due.  flush true: do not wait for company.  A run's later job is due only after batcher_done() of its earlier
 * ones, except within the same CLASS_PASS batch. */
int batcher_due(struct batcher *b, int64_t now_ms, bool flush, void **tags);

/* The job left the system, handed out or not: the run moves on to seq + 1 (CLASS_SAMPLE: the job is forgotten), its
 * account is charged tokens for fairness in place of what the job was thought to cost. */
void batcher_done(struct batcher *b, const char *run, int64_t seq, int64_t tokens);

/* When to look again: the earliest moment a batch becomes due, -1 when nothing can become due by waiting. */
int64_t batcher_next_ms(const struct batcher *b);
int batcher_held(const struct batcher *b); /* jobs that were not handed out yet, those behind a gap too */
/* Jobs of the run wait, none is handed out, and the one that is next never came.  *since_ms: when the first of those that
 * wait was added. */
bool batcher_behind_gap(const struct batcher *b, const char *run, int64_t *since_ms);

#endif

/* suspect.h - jobs that a worker may have died of, and what is done about them.
 *
 * After a take-over from a worker that did not drain, any job that had reached the log and was not decided may
 * be the one that killed it.  Of each run that is the next job, and the passes that could have shared its batch.
 * Suspects run alone, so that a bad one takes no company down; each attempt is counted in Postgres before it begins, and
 * the count goes when the job is through.  A job that was begun poison_attempts times is given up: it
 * fails with category server, and a copy goes to the dlq.  A kill from outside costs an innocent job an attempt only if it
 * comes while that very job runs alone.
 *
 * Samples run side by side for long, so one death makes many suspects, and to run each of them alone would cost more than
 * it saves.  They first run together again, counted; those that a second worker died with run alone, with no training
 * beside them.  So a bad one is found with three deaths too.  A worker that leaves by itself takes the counts back. */
#ifndef WORKER_SUSPECT_H
#define WORKER_SUSPECT_H

#include <stdbool.h>
#include "base/err.h"
#include "task.h"

struct worker;

/* Is the run's next task, t, one?  Pure. */
bool suspect_is(const struct run *run, const struct task *t);
/* t was decided.  Pure. */
void suspect_done(struct run *run, const struct task *t);

/* Counts an attempt.  1: the job is given up and its result published; 0: run it; -1. */
int suspect_begin(struct worker *w, struct task *t, struct err *e) WARN_UNUSED;
/* How many attempts of the job were counted; -1. */
int64_t suspect_attempts(struct worker *w, const char *job_id, struct err *e) WARN_UNUSED;
/* The attempt ended for a reason that is not the job's: one less.  False: the database is away, and the count stays. */
bool suspect_forgive(struct worker *w, const char *job_id);
/* Drops the counts of jobs that the logs no longer have. */
int suspect_forget_old(struct worker *w, struct err *e) WARN_UNUSED;
/* The job got through. */
int suspect_end(struct worker *w, const char *job_id, struct err *e) WARN_UNUSED;

#endif

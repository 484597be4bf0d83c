/* progress.h - how far a shard's two logs are covered, for the successor that has to read them again.
 *
 * resume: the lowest job offset that is not covered yet.  A training job is covered by a snapshot of its run at or above
 * its seq; a sampling job by its acked result; a copy or an unreadable record at once.
 * scan: the lowest results offset that a take-over must read, with the epoch in force there: the first result whose job
 * lies at or above resume.  A result whose job is not known (it was read from the log and its job did not come
 * by yet) counts as needed until the jobs were read up to where they ended at the take-over.
 * Pure bookkeeping; offsets come in ascending order.  One thread at a time. */
#ifndef WORKER_PROGRESS_H
#define WORKER_PROGRESS_H

#include <stdint.h>
#include "base/err.h"

struct progress;

struct progress_at {
    int64_t resume, scan, scan_epoch;
};

/* from: as the shard's row had it. */
struct progress *progress_create(const struct progress_at *from, struct err *e);
void progress_free(struct progress *p); /* NULL is fine */

/* A job record was read.  owner (may be NULL) and seq say which snapshot will cover it. */
int progress_job(struct progress *p, int64_t offset, const void *owner, int64_t seq, struct err *e) WARN_UNUSED;
void progress_job_done(struct progress *p, int64_t offset);
/* owner has a snapshot: its jobs up to seq are covered. */
void progress_covered(struct progress *p, const void *owner, int64_t seq);

/* What progress_get() would say once owner had a snapshot at seq.  Changes nothing: the snapshot's transaction may
 * still fail. */
void progress_with(const struct progress *p, const void *owner, int64_t seq, struct progress_at *out);

/* A result that counts: read at take-over (job -1: not known yet) or acked. */
int progress_result(struct progress *p, int64_t offset, int64_t epoch, int64_t job, struct err *e) WARN_UNUSED;
/* The job of a result that was read at take-over came by. */
void progress_result_job(struct progress *p, int64_t offset, int64_t job);
/* Results below next are all known, and epoch is in force from there on (after our barrier). */
void progress_results_end(struct progress *p, int64_t next, int64_t epoch);
/* The jobs were read up to their end at the take-over: results without a job are of covered ones. */
void progress_caught_up(struct progress *p);

/* What a row may say now.  Drops what is covered. */
void progress_get(struct progress *p, struct progress_at *out);

#endif

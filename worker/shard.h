/* shard.h - one partition pair of jobs and results that is ours: its take-over and its log positions.
 *
 * Taking over, in this order: barrier into the results log, acked at b; results from the row's (scan offset, epoch) up to
 * b under the reading rule, into a map of what is decided (definitive: nothing of an older epoch can count after b);
 * then the jobs from the row's resume offset.  Of a sampling shard results are read from billing's (offset, epoch) when
 * that lies lower, so that what is not found here is in the books (books.h). */
#ifndef WORKER_SHARD_H
#define WORKER_SHARD_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "lease.h"
#include "map.h"
#include "progress.h"
#include "seen.h"
#include "task.h"

struct worker;

#define SHARD_SEEN_MAX 262144 /* ids that are remembered to know a copy; more only while billing is that far behind */

struct shard {
    enum stream stream;
    int partition;
    int64_t epoch;
    struct map *official; /* job id -> struct official, owned; what was decided before us and did not come by yet */
    struct progress *progress;
    struct progress_at written; /* what the row says */
    int64_t next_job, jobs_end; /* next job offset to read; where the log ended when we came */
    bool caught_up;
    int64_t held_bytes;         /* payloads of its jobs in hand */
    bool waits;                 /* it is not read on, because it holds enough */
    bool clean;                 /* the owner before us drained: none of its jobs is suspect (suspect.h) */
    struct seen *seen;          /* sample: jobs that came, and those decided before us that the books may lack;
                                   train: those refused as too far ahead */
};

/* Takes the shard over and adds it to the worker's.  -1: the process must leave (ERR_LOST: fenced). */
int shard_take(struct worker *w, const struct lease_event *ev, struct err *e) WARN_UNUSED;
void shard_free(struct shard *s); /* NULL is fine */

struct shard *shard_find(struct worker *w, enum stream stream, int partition);

/* A job record came by: where it lies, and which run's snapshot will cover it (owner may be NULL). */
int shard_job(struct shard *s, int64_t offset, const void *owner, int64_t seq, struct err *e) WARN_UNUSED;
/* What was decided about the job before us; the caller owns it.  NULL: nothing. */
struct official *shard_known(struct shard *s, const struct job *job);
/* Everything up to offset was handled.  Tells when the log was read up to where it ended when we came. */
void shard_read(struct shard *s, int64_t offset);
/* A result of ours is acked. */
int shard_acked(struct shard *s, int64_t job, int64_t offset, struct err *e) WARN_UNUSED;

/* Writes the shard's positions when they moved.  Call it only after publish_flush(). */
int shard_write_progress(struct worker *w, struct shard *s, struct err *e) WARN_UNUSED;

/* We were overtaken: counts it and returns -1 with ERR_LOST. */
int shard_fenced(struct worker *w, const struct shard *s, const char *where, struct err *e);

#endif

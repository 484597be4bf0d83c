/* books.h - what billing's books know of jobs that were decided longer ago than a take-over reads back.
 *
 * A sampling job is covered as soon as its result is acked, so its result may lie below scan_offset when a copy of the job
 * comes, long after.  The books have the official result of every job whose record lies below their cursor, and cursor
 * and rows move in one transaction, so one statement that reads both tells the whole truth below that cursor; what lies
 * above it is read from the log (shard.c) or was decided by us (seen.h). */
#ifndef WORKER_BOOKS_H
#define WORKER_BOOKS_H

#include "base/err.h"
#include "task.h"

struct worker;
struct shard;

/* Billing's cursor on the shard's results; 0 and 0 when it has none yet. */
struct books_at {
    int64_t offset, epoch;
};
int books_cursor(struct worker *w, const struct shard *s, struct books_at *out, struct err *e) WARN_UNUSED;

/* Tells the shards of these sampling jobs how far the books are, and sets out[i] to the offset of the job's result, -1 when
 * the books have none.  Waits for a database that is away. */
int books_look_up(struct worker *w, struct task *const *tasks, int count, int64_t *out, struct err *e) WARN_UNUSED;

#endif

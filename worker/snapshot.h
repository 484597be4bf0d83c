/* snapshot.h - a run's state on disk, so that a successor need not replay its whole life.
 *
 * Order of writes: every result up to seq acked; files (tmp, fsync, rename); then one transaction that inserts the
 * run_snapshots row and moves the shard's log positions, guarded by our epoch.  The last two of a run are kept. */
#ifndef WORKER_SNAPSHOT_H
#define WORKER_SNAPSHOT_H

#include <stdbool.h>
#include "base/err.h"
#include "task.h"

struct worker;

/* Does the run have anything that its last snapshot does not cover? */
bool snapshot_needed(const struct run *run);

/* -1: ERR_RETRY (the database was away: nothing is covered, try again later) or worse. */
int snapshot_run(struct worker *w, struct run *run, struct err *e) WARN_UNUSED;

/* Looks at all runs now and then and takes the snapshots that are due; writes log positions that moved. */
int snapshot_if_due(struct worker *w, struct err *e) WARN_UNUSED;

/* All that is needed, at the end. */
int snapshot_all(struct worker *w, struct err *e) WARN_UNUSED;

/* The files of the run's last snapshot are not what they were; e says how.  Marks it, moves the shard's positions back
 * to those of the snapshot before it, and returns -1 with ERR_LOST: the process leaves, and whoever takes the shard over
 * replays more, to the same bits. */
int snapshot_damaged(struct worker *w, const struct run *run, struct err *e) WARN_UNUSED;

#endif

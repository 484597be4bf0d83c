/* runs.h - the runs of our shards: known by their first job, resident while they work, gone when long idle.
 *
 * A run's state is the fold of its jobs; a snapshot (run_snapshots) is the fold up to a seq.  runs_get() looks up what
 * the last snapshot covers, runs_resident() loads its files, or leaves a run alone that its own creation will make. */
#ifndef WORKER_RUNS_H
#define WORKER_RUNS_H

#include "base/err.h"
#include "map.h"
#include "task.h"

struct worker;

struct runs {
    struct map *by_id; /* struct run, owned */
    size_t resident_bytes;
    int resident;
};

struct runs *runs_create(struct err *e);
void runs_free(struct worker *w); /* tasks included */

/* The run of that id, looked up in the database at first sight.  ERR_USER: it belongs on another partition. */
struct run *runs_get(struct worker *w, const char *id, struct shard *s, struct err *e);

/* Loads the adapter from the run's snapshot unless it is there (or the run has no state yet).  Makes room by letting
 * idle runs go, after their snapshot. */
int runs_resident(struct worker *w, struct run *run, struct err *e) WARN_UNUSED;

/* Gives the run this adapter, taken, in place of what it had. */
void runs_adopt(struct worker *w, struct run *run, struct adapter *take_adapter);

/* The run leaves this worker.  Its last snapshot must cover all that it did. */
void runs_forget(struct worker *w, struct run *run);

void task_free(struct task *t); /* NULL is fine */

#endif

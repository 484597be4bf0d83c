/* sweep.h - folders that a crash left behind: written whole, but the row that names them never came.
 *
 * A round looks at every run's folder below snapshots/ and checkpoints/, one folder a look, so that it costs nothing that
 * anybody notices.  What this worker has seen without a row and unchanged for an hour, by its own monotonic clock, goes:
 * no wall clock can make a folder old.  Who still tries to write its row touches the folder before each attempt
 * (folder_touch), and an attempt takes a minute at most (the database's statement timeout).  Any worker may sweep what
 * another left.  What is kept for a load (loaded.h) is left to its run's next snapshots. */
#ifndef WORKER_SWEEP_H
#define WORKER_SWEEP_H

#include <stdint.h>
#include "base/err.h"

struct worker;
struct sweep;

struct sweep *sweep_create(struct err *e);
void sweep_free(struct sweep *s); /* NULL is fine */

/* Looks at the next folder, if a round is due or under way.  What fails costs only space and is logged. */
void sweep_look(struct worker *w, int64_t now_ms);

#endif

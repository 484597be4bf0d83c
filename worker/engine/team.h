/* team.h - inside the engine: a thread for each rank, so that ranks can wait for each other.
 *
 * Rank 0 is whoever calls; the others have threads of their own, which sleep in between.  What one
 * call did is visible to the next on any rank, and to the caller. */
#ifndef ENGINE_TEAM_H
#define ENGINE_TEAM_H

#include "base/err.h"

struct team;

/* ranks >= 2.  NULL: ERR_RETRY. */
struct team *team_create(int ranks, struct err *e);
void team_free(struct team *t); /* NULL is fine */

/* fn(arg, rank) on every rank at once; returns when all are done.  t NULL: there is only rank 0. */
typedef void team_fn(void *arg, int rank);
void team_run(struct team *t, team_fn *fn, void *arg);

#endif

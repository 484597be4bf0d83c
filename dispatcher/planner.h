/* planner.h - reads jobs and results, and suggests to each slot what to run together.
 *
 * For every shard that somebody owns it rebuilds "jobs minus results" from the offsets in the shard's row, follows both
 * logs from there, and publishes plans to <model>.batches, partition = slot.  A new owner (epoch) or slot means starting over
 * with that shard.  It also notices runs behind a gap whose client is gone and appends their expire record.
 * A thread of its own, with its own connections. */
#ifndef DISPATCHER_PLANNER_H
#define DISPATCHER_PLANNER_H

#include "base/err.h"
#include "catalog.h"
#include "settings.h"

struct planner;

struct planner *planner_create(const struct settings *s, struct catalog_box *catalogs, struct stats *stats,
                               struct err *e);
void planner_free(struct planner *p); /* NULL is fine */

/* Until stop_requested().  -1: it cannot go on. */
int planner_run(struct planner *p, struct err *e) WARN_UNUSED;

#endif

/* guard.h - two alarms that nobody else can raise, because nobody else sees both log and database.
 *
 *  - retention: a job that a run still needs for its recovery is older than six of the seven days that the jobs log keeps
 *    (`dispatcher.retention`, counter retention_near: partitions now);
 *  - billing: a result that was not folded into the ledger is older than billing_late_s
 *    (`dispatcher.billing_late`, counter billing_late: partitions now).
 *
 * Each is said once when it begins and once when it ends.  A thread of its own: it asks the broker and may wait. */
#ifndef DISPATCHER_GUARD_H
#define DISPATCHER_GUARD_H

#include "base/err.h"
#include "catalog.h"
#include "settings.h"

struct guard;

struct guard *guard_create(const struct settings *s, struct catalog_box *catalogs, struct stats *stats,
                           struct err *e);
void guard_free(struct guard *g); /* NULL is fine */

/* Until a stop is asked for.  What is away is asked again later; -1 only for a broken promise of ours. */
int guard_run(struct guard *g, struct err *e) WARN_UNUSED;

#endif

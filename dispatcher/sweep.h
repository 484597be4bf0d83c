/* sweep.h - what has outlived its time is removed: checkpoints, with their files, and memories of calls.
 *
 *   expired      a checkpoint past its expires_at
 *   replaced     an older version of a name that was overwritten, or a checkpoint made for one sampler of a session
 *                that has ended; both keep_s later, since work that was admitted before may still name them
 *   silent       a session without a heartbeat for session_silent_s is over
 *   arrivals     which number a call got, once its record has left the logs
 *
 * Rows first, then files: a crash in between leaves files whose rows say that they are to go, and the next round
 * removes them.  Any number of dispatchers may sweep; each deed can be repeated. */
#ifndef DISPATCHER_SWEEP_H
#define DISPATCHER_SWEEP_H

#include <stdbool.h>
#include "db/db.h"
#include "settings.h"

/* One round, of bounded length; a thorough one also looks at all names and sessions.  What goes
 * wrong is logged and tried again in the next one; -1 with ERR_BUG only. */
int sweep_round(struct db *db, const struct settings *s, struct stats *stats, bool thorough,
                struct err *e) WARN_UNUSED;

#endif

/* expiry.h - gives up runs whose client is gone: one expire record in the run's own log.
 *
 * What a clock decides is written to the log first, so that every reader, replay included, decides the same: jobs
 * that wait behind a gap at the record's position fail.  A second record changes nothing. */
#ifndef DISPATCHER_EXPIRY_H
#define DISPATCHER_EXPIRY_H

#include <stdbool.h>
#include <stdint.h>
#include "bus/bus.h"
#include "settings.h"

struct expiry;

/* producer is borrowed. */
struct expiry *expiry_create(const struct settings *s, struct bus_producer *producer, struct stats *stats,
                             struct err *e);
void expiry_free(struct expiry *x); /* NULL is fine */

/* A round of questions begins; Postgres is asked only a few times a round, and in few rounds. */
void expiry_begin(struct expiry *x, int64_t now_ms);

/* The run waits behind a gap.  1: since it was first asked about, its client was silent for expire_s of our own time, or the
 * gap is overdue whatever its client does, and the record is in the log.  A dispatcher that starts anew begins to count anew.  What goes wrong is logged and tried in
 * a later round (0), but for a producer or a promise of ours that is broken: -1, and the process leaves. */
int expiry_consider(struct expiry *x, const char *run, const char *topic, int partition, bool overdue, struct err *e) WARN_UNUSED;

#endif

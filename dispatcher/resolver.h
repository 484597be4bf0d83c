/* resolver.h - carries official results from the logs into Redis, where polls wait for them.
 *
 * Its cursor lives in Redis and moves in the same script as the futures, so Redis may be lost, rolled back or served by
 * two resolvers at once: whoever finds the cursor elsewhere goes there.  An empty Redis is filled again
 * from billing's cursor, which is a pair of offset and epoch; what is older comes by the gateway's cold path.
 * A thread of its own, with its own connections. */
#ifndef DISPATCHER_RESOLVER_H
#define DISPATCHER_RESOLVER_H

#include "base/err.h"
#include "catalog.h"
#include "settings.h"

struct resolver;

struct resolver *resolver_create(const struct settings *s, struct catalog_box *catalogs, struct stats *stats,
                                 struct err *e);
void resolver_free(struct resolver *r); /* NULL is fine */

/* Until stop_requested(); finishes what it has in hand.  -1: it cannot go on (an offset is out of range). */
int resolver_run(struct resolver *r, struct err *e) WARN_UNUSED;

#endif

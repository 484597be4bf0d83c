/* touched.h - which runs had a request lately, written to runs.last_request_at now and then.
 *
 * A bounded set: what does not fit is left out, the time shown is then a little old. */
#ifndef API_TOUCHED_H
#define API_TOUCHED_H

#include "db/db.h"
#include "wire/ids.h"

struct touched;

struct touched *touched_create(struct err *e);
void touched_free(struct touched *t);                 /* NULL is fine */
void touched_add(struct touched *t, const char *run); /* any thread */
int touched_flush(struct touched *t, struct db *db, struct err *e) WARN_UNUSED;

#endif

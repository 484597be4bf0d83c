/* tries.h - who failed how often lately: a bounded table, so that guessing keys is slow.
 *
 * `who` is an address or a key's id.  After `max` failures within a window that begins with the
 * first one, he has to wait for its end.  A full table forgets who failed longest ago.  Safe from
 * any thread; the clock is the caller's. */
#ifndef API_TRIES_H
#define API_TRIES_H

#include <stdint.h>
#include "base/err.h"

struct tries;

struct tries *tries_create(int entries_max, int max, int64_t window_ms, struct err *e);
void tries_free(struct tries *t); /* NULL is fine */

/* 0: he may try; else in how many ms again. */
int64_t tries_wait_ms(struct tries *t, const char *who, int64_t now_ms);
void tries_failed(struct tries *t, const char *who, int64_t now_ms);

#endif

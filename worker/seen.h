/* seen.h - which jobs of a shard came by, so that a copy is known as one without reading the past.
 *
 * An id is remembered from the moment its job came.  It may be forgotten once its result lies below what the books have
 * (seen_booked): from then on the books know it.  Ids leave in order of arrival, so one that takes long keeps those behind
 * it; above ids_max the oldest leaves whatever became of it.  Pure bookkeeping; jobs come in ascending order of offset, after
 * those whose offset is not known (-1).  One thread at a time. */
#ifndef WORKER_SEEN_H
#define WORKER_SEEN_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct seen;

struct seen *seen_create(int ids_max, struct err *e);
void seen_free(struct seen *s); /* NULL is fine */

bool seen_has(const struct seen *s, const char *job_id);
/* The job at that offset came; its id is not there yet.  result: the offset of what decided it, -1: nothing so far. */
int seen_add(struct seen *s, const char *job_id, int64_t job, int64_t result, struct err *e) WARN_UNUSED;
/* The job at that offset was decided by the result at that one. */
void seen_decided(struct seen *s, int64_t job, int64_t result);
/* The books have every result below next. */
void seen_booked(struct seen *s, int64_t next);
int seen_count(const struct seen *s);

#endif

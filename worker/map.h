/* map.h - texts to pointers: runs by id, official results by job id, adapters by version.
 *
 * Keys are copied, values are the caller's.  One thread at a time. */
#ifndef WORKER_MAP_H
#define WORKER_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

struct map;

struct map *map_create(struct err *e);
void map_free(struct map *m); /* values are not touched; NULL is fine */

void *map_get(const struct map *m, const char *key); /* NULL: not there */
/* Replaces what was there; value is not NULL. */
int map_put(struct map *m, const char *key, void *value, struct err *e) WARN_UNUSED;
void *map_take(struct map *m, const char *key); /* removes and returns; NULL: was not there */
size_t map_count(const struct map *m);

/* Walks all values in no order: start with *at = 0; NULL ends.  The entry that was returned last may be taken out
 * on the way; nothing may be put. */
void *map_next(const struct map *m, size_t *at);

#endif

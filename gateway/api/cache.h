/* cache.h - what was looked up lately: a bounded table from text to a fixed-size value, with its
 * age.
 *
 * Full sets forget what was put longest ago.  Forgetting is always allowed: the truth is in
 * Postgres.  Safe from any thread. */
#ifndef API_CACHE_H
#define API_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define CACHE_KEY_SIZE 288 /* with its NUL; longer keys are not kept */

struct cache;

struct cache *cache_create(int entries_max, size_t value_size, struct err *e);
void cache_free(struct cache *c); /* NULL is fine */

/* Copies the value and tells when it was put. */
bool cache_get(struct cache *c, const char *key, void *value, int64_t *put_ms);
void cache_put(struct cache *c, const char *key, const void *value, int64_t now_ms);

#endif

/* arena.h - memory that lives for one batch or request.
 *
 * Blocks are kept across arena_reset(), so a steady loop stops allocating.
 * Alignment is 64 bytes.  One thread at a time. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>
#include "base/err.h"

struct arena;

struct arena *arena_create(size_t size_max, struct err *e); /* size_max over all blocks */
void arena_free(struct arena *a);                           /* NULL is fine */
void arena_reset(struct arena *a);

/* NULL with ERR_RETRY when the maximum would be passed.  Not zeroed. */
void *arena_alloc(struct arena *a, size_t size, struct err *e) WARN_UNUSED;
void *arena_zalloc(struct arena *a, size_t size, struct err *e) WARN_UNUSED;
char *arena_strdup(struct arena *a, const char *s, struct err *e) WARN_UNUSED;

/* Bytes handed out since the last reset, and the most there ever were. */
size_t arena_used(const struct arena *a);
size_t arena_peak(const struct arena *a);

#endif

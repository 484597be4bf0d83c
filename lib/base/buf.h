/* buf.h - a growing byte buffer, born with its maximum size.
 *
 * init/clear in place.  data is NULL while size is 0; it always has room for a
 * terminating NUL after size bytes once something was appended. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stddef.h>
#include "base/err.h"

struct buf {
    char *data;
    size_t size, cap, max;
};

void buf_init(struct buf *b, size_t size_max);
void buf_clear(struct buf *b); /* frees; the maximum stays */

/* -1 with ERR_USER "more than N bytes" when the maximum would be passed. */
int buf_append(struct buf *b, const void *bytes, size_t size, struct err *e) WARN_UNUSED;
int buf_printf(struct buf *b, struct err *e, const char *fmt, ...) WARN_UNUSED PRINTF_LIKE(3, 4);

/* Room for size more bytes at b->data + b->size; the caller adds to b->size. */
int buf_reserve(struct buf *b, size_t size, struct err *e) WARN_UNUSED;

/* Hands over the bytes (the caller frees them) and empties b. */
char *buf_take(struct buf *b, size_t *size);

#endif

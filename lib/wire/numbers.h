/* numbers.h - JSON text of many numbers, written straight into a buffer.  Inside this room only.
 *
 * A float has 9 digits and a double 17, which is what it takes to read back the same bits.  JSON
 * has no NaN and no infinity: they are written null. */
#ifndef WIRE_NUMBERS_H
#define WIRE_NUMBERS_H

#include <stddef.h>
#include "base/buf.h"

#define NUMBERS_JSON_MAX                                                                           \
    ((size_t)96 << 20) /* a float32 of 4 bytes takes up to 16 characters and a comma */

int numbers_add_floats(struct buf *b, const void *bytes, size_t n,
                       struct err *e) WARN_UNUSED; /* [1,2] */
int numbers_add_float(struct buf *b, const void *bytes, struct err *e) WARN_UNUSED; /* one */
int numbers_add_int32s(struct buf *b, const void *bytes, size_t n, struct err *e) WARN_UNUSED;
int numbers_add_int64s(struct buf *b, const void *bytes, size_t n, struct err *e) WARN_UNUSED;
int numbers_add_double(struct buf *b, double value, struct err *e) WARN_UNUSED;
int numbers_add_text(struct buf *b, const char *text, struct err *e) WARN_UNUSED; /* quoted */

#endif

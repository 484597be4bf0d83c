/* range.h - the part of a file that a Range header asks for (RFC 9110, 14.1.2). */
#ifndef HTTP_RANGE_H
#define HTTP_RANGE_H

#include <stdint.h>

enum range_verdict {
    RANGE_WHOLE, /* no header, or one to be ignored: several parts, another unit, nonsense */
    RANGE_PART,
    RANGE_NONE, /* nothing of it is there: 416 */
};

/* header may be NULL.  first and count are filled for WHOLE and PART. */
enum range_verdict range_read(const char *header, uint64_t size, uint64_t *first, uint64_t *count);

#endif

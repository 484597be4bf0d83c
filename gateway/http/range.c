/* range.c - see range.h. */
#include "http/range.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#define DIGITS_MAX 18 /* fits 64 bits whatever they are */

/* Digits up to end; *there false when there are none.  false: too many to be a number. */
static bool read_digits(const char **at, uint64_t *out, bool *there)
{
    size_t n = strspn(*at, "0123456789");
    if (n > DIGITS_MAX) return false;
    *there = n > 0;
    *out = 0;
    for (; n; n--, ++*at)
        *out = *out * 10 + (uint64_t)(**at - '0');
    return true;
}

static enum range_verdict part_of(uint64_t from, uint64_t to, uint64_t size, uint64_t *first,
                                  uint64_t *count)
{
    if (from >= size) return RANGE_NONE;
    if (to >= size) to = size - 1;
    *first = from;
    *count = to - from + 1;
    return RANGE_PART;
}

enum range_verdict range_read(const char *header, uint64_t size, uint64_t *first, uint64_t *count)
{
    uint64_t from, to;
    bool has_from, has_to;
    *first = 0;
    *count = size;
    if (!header || strncasecmp(header, "bytes=", 6) != 0) return RANGE_WHOLE;
    const char *at = header + 6;
    if (!read_digits(&at, &from, &has_from) || *at++ != '-') return RANGE_WHOLE;
    if (!read_digits(&at, &to, &has_to) || *at || (!has_from && !has_to)) return RANGE_WHOLE;
    if (has_from && has_to && from > to) return RANGE_WHOLE;
    if (has_from) return part_of(from, has_to ? to : UINT64_MAX, size, first, count);
    if (!to) return RANGE_NONE; /* the last 0 bytes */
    return part_of(to < size ? size - to : 0, UINT64_MAX, size, first, count);
}

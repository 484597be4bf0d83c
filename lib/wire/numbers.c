/* numbers.c - see numbers.h. */
#include "numbers.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_SIZE 32

static int add_list(struct buf *b, const void *bytes, size_t n, bool real, struct err *e)
{
    if (buf_append(b, "[", 1, e) < 0) return -1;
    for (size_t i = 0; i < n; i++) {
        char text[NUMBER_SIZE];
        const char *comma = i ? "," : "";
        int32_t whole;
        float value;
        int length;
        memcpy(real ? (void *)&value : (void *)&whole, (const char *)bytes + 4 * i, 4);
        if (!real)
            length = snprintf(text, sizeof text, "%s%" PRId32, comma, whole);
        else if (isfinite(value))
            length = snprintf(text, sizeof text, "%s%.9g", comma, (double)value);
        else
            length = snprintf(text, sizeof text, "%snull", comma);
        if (buf_append(b, text, (size_t)length, e) < 0) return -1;
    }
    return buf_append(b, "]", 1, e);
}

int numbers_add_floats(struct buf *b, const void *bytes, size_t n, struct err *e)
{
    return add_list(b, bytes, n, true, e);
}

int numbers_add_float(struct buf *b, const void *bytes, struct err *e)
{
    float value;
    memcpy(&value, bytes, sizeof value);
    return isfinite(value) ? buf_printf(b, e, "%.9g", (double)value) : buf_append(b, "null", 4, e);
}

int numbers_add_int32s(struct buf *b, const void *bytes, size_t n, struct err *e)
{
    return add_list(b, bytes, n, false, e);
}

int numbers_add_int64s(struct buf *b, const void *bytes, size_t n, struct err *e)
{
    if (buf_append(b, "[", 1, e) < 0) return -1;
    for (size_t i = 0; i < n; i++) {
        char text[NUMBER_SIZE];
        int64_t value;
        memcpy(&value, (const char *)bytes + 8 * i, 8);
        int length = snprintf(text, sizeof text, "%s%" PRId64, i ? "," : "", value);
        if (buf_append(b, text, (size_t)length, e) < 0) return -1;
    }
    return buf_append(b, "]", 1, e);
}

int numbers_add_double(struct buf *b, double value, struct err *e)
{
    return isfinite(value) ? buf_printf(b, e, "%.17g", value) : buf_append(b, "null", 4, e);
}

int numbers_add_text(struct buf *b, const char *text, struct err *e)
{
    json_t *j = json_string(text);
    char *quoted = j ? json_dumps(j, JSON_ENCODE_ANY) : NULL;
    json_decref(j);
    if (!quoted) return err_set(e, ERR_USER, "a name that is not UTF-8");
    int result = buf_append(b, quoted, strlen(quoted), e);
    free(quoted);
    return result;
}

/* buf.c - see buf.h. */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t size_max)
{
    *b = (struct buf){.max = size_max};
}

void buf_clear(struct buf *b)
{
    free(b->data);
    buf_init(b, b->max);
}

int buf_reserve(struct buf *b, size_t size, struct err *e)
{
    if (size > b->max || b->size > b->max - size)
        return err_set(e, ERR_USER, "more than %zu bytes", b->max);
    size_t need = b->size + size + 1; /* the NUL */
    if (need <= b->cap) return 0;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap *= 2;
    if (cap > b->max + 1) cap = b->max + 1;
    char *data = realloc(b->data, cap);
    if (!data) return err_set(e, ERR_RETRY, "out of memory for %zu bytes", cap);
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const void *bytes, size_t size, struct err *e)
{
    if (buf_reserve(b, size, e) < 0) return -1;
    if (size) memcpy(b->data + b->size, bytes, size);
    b->size += size;
    b->data[b->size] = '\0';
    return 0;
}

int buf_printf(struct buf *b, struct err *e, const char *fmt, ...)
{
    va_list va;
    va_start(va, fmt);
    int n = vsnprintf(NULL, 0, fmt, va);
    va_end(va);
    if (n < 0) return err_set(e, ERR_BUG, "bad format");
    if (buf_reserve(b, (size_t)n, e) < 0) return -1;
    va_start(va, fmt);
    vsnprintf(b->data + b->size, (size_t)n + 1, fmt, va);
    va_end(va);
    b->size += (size_t)n;
    return 0;
}

char *buf_take(struct buf *b, size_t *size)
{
    char *data = b->data;
    if (size) *size = b->size;
    buf_init(b, b->max);
    return data;
}

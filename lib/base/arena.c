/* arena.c - see arena.h.  A list of blocks; each is filled from the front. */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN          64u
#define BLOCK_SIZE_MIN ((size_t)1 << 16)

struct block {
    struct block *next;
    size_t size, used;
    char *bytes;
};

struct arena {
    struct block *first, *now;
    size_t max, held, used, peak;
};

struct arena *arena_create(size_t size_max, struct err *e)
{
    struct arena *a = calloc(1, sizeof *a);
    if (!a) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    a->max = size_max;
    return a;
}

void arena_free(struct arena *a)
{
    if (!a) return;
    for (struct block *b = a->first, *next; b; b = next) {
        next = b->next;
        free(b->bytes);
        free(b);
    }
    free(a);
}

void arena_reset(struct arena *a)
{
    for (struct block *b = a->first; b; b = b->next)
        b->used = 0;
    a->now = a->first;
    a->used = 0;
}

static struct block *block_add(struct arena *a, size_t size, struct err *e)
{
    if (size < BLOCK_SIZE_MIN) size = BLOCK_SIZE_MIN;
    if (size > a->max || a->held > a->max - size) {
        err_set(e, ERR_RETRY, "more than %zu bytes of scratch memory", a->max);
        return NULL;
    }
    struct block *b = calloc(1, sizeof *b);
    char *bytes = b ? aligned_alloc(ALIGN, size) : NULL;
    if (!bytes) {
        free(b);
        err_set(e, ERR_RETRY, "out of memory for %zu bytes", size);
        return NULL;
    }
    *b = (struct block){.size = size, .bytes = bytes};
    a->held += size;
    struct block **end = &a->first;
    while (*end)
        end = &(*end)->next;
    *end = b;
    return b;
}

void *arena_alloc(struct arena *a, size_t size, struct err *e)
{
    if (size > SIZE_MAX - ALIGN) {
        err_set(e, ERR_RETRY, "out of memory for %zu bytes", size);
        return NULL;
    }
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    if (!size) size = ALIGN;
    struct block *b = a->now ? a->now : a->first;
    while (b && b->size - b->used < size)
        b = b->next;
    if (!b) b = block_add(a, size, e);
    if (!b) return NULL;
    a->now = b;
    void *p = b->bytes + b->used;
    b->used += size;
    a->used += size;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}

void *arena_zalloc(struct arena *a, size_t size, struct err *e)
{
    void *p = arena_alloc(a, size, e);
    if (p) memset(p, 0, size);
    return p;
}

char *arena_strdup(struct arena *a, const char *s, struct err *e)
{
    size_t size = strlen(s) + 1;
    char *p = arena_alloc(a, size, e);
    if (p) memcpy(p, s, size);
    return p;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}

size_t arena_peak(const struct arena *a)
{
    return a->peak;
}

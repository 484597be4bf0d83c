/* map.c - see map.h.  Open addressing with linear probing; a removed entry leaves a mark until the
 * next growth. */
#include "map.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_MIN 64u

struct slot {
    char *key; /* NULL: empty or, with removed, a mark */
    void *value;
    bool removed;
};

struct map {
    struct slot *slots;
    size_t size, count, used; /* used: count and marks */
};

/* FNV-1a, 64 bits. */
static size_t hash(const char *key)
{
    uint64_t h = 14695981039346656037u;
    for (; *key; key++)
        h = (h ^ (unsigned char)*key) * 1099511628211u;
    return (size_t)(h ^ h >> 32);
}

struct map *map_create(struct err *e)
{
    struct map *m = calloc(1, sizeof *m);
    if (m) m->slots = calloc(SLOTS_MIN, sizeof *m->slots);
    if (!m || !m->slots) {
        free(m);
        err_set(e, ERR_RETRY, "out of memory for a map");
        return NULL;
    }
    m->size = SLOTS_MIN;
    return m;
}

void map_free(struct map *m)
{
    if (!m) return;
    for (size_t i = 0; i < m->size; i++)
        free(m->slots[i].key);
    free(m->slots);
    free(m);
}

static struct slot *find(const struct map *m, const char *key)
{
    for (size_t i = hash(key) & (m->size - 1);; i = (i + 1) & (m->size - 1)) {
        struct slot *s = &m->slots[i];
        if (!s->key && !s->removed) return NULL;
        if (s->key && !strcmp(s->key, key)) return s;
    }
}

static struct slot *find_free(struct slot *slots, size_t size, const char *key)
{
    size_t i = hash(key) & (size - 1);
    while (slots[i].key)
        i = (i + 1) & (size - 1);
    return &slots[i];
}

static int grow(struct map *m, struct err *e)
{
    size_t size = m->size;
    while (m->count * 2 >= size)
        size *= 2;
    struct slot *slots = calloc(size, sizeof *slots);
    if (!slots) return err_set(e, ERR_RETRY, "out of memory for a map of %zu", m->count);
    for (size_t i = 0; i < m->size; i++)
        if (m->slots[i].key) *find_free(slots, size, m->slots[i].key) = m->slots[i];
    free(m->slots);
    m->slots = slots;
    m->size = size;
    m->used = m->count;
    return 0;
}

void *map_get(const struct map *m, const char *key)
{
    struct slot *s = find(m, key);
    return s ? s->value : NULL;
}

int map_put(struct map *m, const char *key, void *value, struct err *e)
{
    struct slot *s = find(m, key);
    if (s) {
        s->value = value;
        return 0;
    }
    if (m->used * 4 >= m->size * 3 && grow(m, e) < 0) return -1;
    char *copy = strdup(key);
    if (!copy) return err_set(e, ERR_RETRY, "out of memory for \"%s\"", key);
    s = find_free(m->slots, m->size, key);
    if (!s->removed) m->used++;
    *s = (struct slot){.key = copy, .value = value};
    m->count++;
    return 0;
}

void *map_take(struct map *m, const char *key)
{
    struct slot *s = find(m, key);
    if (!s) return NULL;
    void *value = s->value;
    free(s->key);
    *s = (struct slot){.removed = true};
    m->count--;
    return value;
}

size_t map_count(const struct map *m)
{
    return m->count;
}

void *map_next(const struct map *m, size_t *at)
{
    while (*at < m->size) {
        struct slot *s = &m->slots[(*at)++];
        if (s->key) return s->value;
    }
    return NULL;
}

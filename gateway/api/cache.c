/* cache.c - see cache.h.  Sets of eight entries; the set is chosen by a hash with a random start,
 * so that nobody outside can aim at one set. */
#include "api/cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "seal/seal.h"

#define WAYS 8

struct slot {
    int64_t put_ms;
    char key[CACHE_KEY_SIZE]; /* "" when empty */
};

struct cache {
    pthread_mutex_t lock;
    size_t sets, value_size;
    uint64_t start;
    struct slot *slots;
    char *values;
};

struct cache *cache_create(int entries_max, size_t value_size, struct err *e)
{
    struct cache *c = calloc(1, sizeof *c);
    if (!c) goto fail;
    pthread_mutex_init(&c->lock, NULL);
    c->sets = ((size_t)entries_max + WAYS - 1) / WAYS;
    c->value_size = value_size;
    seal_random(&c->start, sizeof c->start);
    c->slots = calloc(c->sets * WAYS, sizeof *c->slots);
    c->values = calloc(c->sets * WAYS, value_size);
    if (c->slots && c->values) return c;
    cache_free(c);
fail:
    err_set(e, ERR_RETRY, "out of memory for a table of %d entries", entries_max);
    return NULL;
}

void cache_free(struct cache *c)
{
    if (!c) return;
    pthread_mutex_destroy(&c->lock);
    free(c->slots);
    free(c->values);
    free(c);
}

static size_t set_of(const struct cache *c, const char *key)
{
    uint64_t h = 14695981039346656037u ^ c->start; /* FNV-1a */
    for (; *key; key++)
        h = (h ^ (unsigned char)*key) * 1099511628211u;
    return (size_t)((h ^ h >> 32) % c->sets) * WAYS;
}

/* The slot of key, else the one to forget: an empty one, or the oldest. */
static size_t slot_for(const struct cache *c, const char *key, bool *found)
{
    size_t first = set_of(c, key), victim = first;
    *found = false;
    for (size_t i = first; i < first + WAYS; i++) {
        const struct slot *s = &c->slots[i], *v = &c->slots[victim];
        if (!strcmp(s->key, key)) {
            *found = true;
            return i;
        }
        if (v->key[0] && (!s->key[0] || s->put_ms < v->put_ms)) victim = i;
    }
    return victim;
}

bool cache_get(struct cache *c, const char *key, void *value, int64_t *put_ms)
{
    bool found;
    if (!*key || strlen(key) >= CACHE_KEY_SIZE) return false;
    pthread_mutex_lock(&c->lock);
    size_t i = slot_for(c, key, &found);
    if (found) {
        memcpy(value, c->values + i * c->value_size, c->value_size);
        *put_ms = c->slots[i].put_ms;
    }
    pthread_mutex_unlock(&c->lock);
    return found;
}

void cache_put(struct cache *c, const char *key, const void *value, int64_t now_ms)
{
    bool found;
    if (!*key || strlen(key) >= CACHE_KEY_SIZE) return;
    pthread_mutex_lock(&c->lock);
    size_t i = slot_for(c, key, &found);
    strcpy(c->slots[i].key, key);
    c->slots[i].put_ms = now_ms;
    memcpy(c->values + i * c->value_size, value, c->value_size);
    pthread_mutex_unlock(&c->lock);
}

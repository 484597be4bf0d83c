/* parked.c - see parked.h.  One hash table under one lock, read round and round in pieces. */
#include "api/parked.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 16384

struct parked_table {
    pthread_mutex_t lock; /* of everything */
    struct parked *buckets[BUCKETS];
    int count;
    int some_at, cold_at; /* the buckets where the next round's piece begins */
};

struct parked_table *parked_create(struct err *e)
{
    struct parked_table *t = calloc(1, sizeof *t);
    if (t)
        pthread_mutex_init(&t->lock, NULL);
    else
        err_set(e, ERR_RETRY, "out of memory");
    return t;
}

void parked_free(struct parked_table *t)
{
    if (!t) return;
    pthread_mutex_destroy(&t->lock);
    free(t);
}

static unsigned bucket_of(const char *id)
{
    uint64_t h = 14695981039346656037u;
    for (; *id; id++)
        h = (h ^ (unsigned char)*id) * 1099511628211u;
    return (unsigned)(h ^ h >> 32) % BUCKETS;
}

void parked_add(struct parked_table *t, struct parked *take)
{
    pthread_mutex_lock(&t->lock);
    struct parked **bucket = &t->buckets[bucket_of(take->id)];
    take->next = *bucket;
    *bucket = take;
    t->count++;
    pthread_mutex_unlock(&t->lock);
}

int parked_count(struct parked_table *t)
{
    pthread_mutex_lock(&t->lock);
    int n = t->count;
    pthread_mutex_unlock(&t->lock);
    return n;
}

bool parked_has(struct parked_table *t, const char *id)
{
    bool found = false;
    pthread_mutex_lock(&t->lock);
    for (const struct parked *p = t->buckets[bucket_of(id)]; p && !found; p = p->next)
        found = !strcmp(p->id, id);
    pthread_mutex_unlock(&t->lock);
    return found;
}

/* Moves *at from its bucket to the list. */
static void move(struct parked_table *t, struct parked **at, struct parked **list)
{
    struct parked *p = *at;
    *at = p->next;
    p->next = *list;
    *list = p;
    t->count--;
}

struct parked *parked_take(struct parked_table *t, const char *id)
{
    struct parked *taken = NULL;
    pthread_mutex_lock(&t->lock);
    for (struct parked **at = &t->buckets[bucket_of(id)]; *at;) {
        if (!strcmp((*at)->id, id))
            move(t, at, &taken);
        else
            at = &(*at)->next;
    }
    pthread_mutex_unlock(&t->lock);
    return taken;
}

struct parked *parked_take_overdue(struct parked_table *t, int64_t now_ms, bool all,
                                   bool look_at_peers)
{
    struct parked *taken = NULL;
    pthread_mutex_lock(&t->lock);
    for (int b = 0; b < BUCKETS; b++) {
        for (struct parked **at = &t->buckets[b]; *at;) {
            const struct parked *p = *at;
            if (all || p->deadline_ms <= now_ms || (look_at_peers && http_peer_gone(p->r)))
                move(t, at, &taken);
            else
                at = &(*at)->next;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return taken;
}

int parked_some(struct parked_table *t, char (*ids)[ID_SIZE], int max)
{
    int n = 0;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < BUCKETS && n < max; i++) {
        for (const struct parked *p = t->buckets[t->some_at]; p && n < max; p = p->next)
            memcpy(ids[n++], p->id, ID_SIZE);
        t->some_at = (t->some_at + 1) % BUCKETS;
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}

/* Ids hold no character that would need quotes in an array.  A bucket that is left in its middle is
 * gone on with in the next round, not at once: many polls of one id would hold up all others. */
int parked_due_for_cold(struct parked_table *t, int64_t now_ms, int64_t again_ms, int max,
                        char *list)
{
    int n = 0;
    size_t size = 0;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; t->count && i < BUCKETS && n < max; i++) {
        for (struct parked *p = t->buckets[t->cold_at]; p && n < max; p = p->next) {
            if (p->cold_ms > now_ms) continue;
            p->cold_ms = again_ms;
            size += (size_t)sprintf(list + size, "%c%s", n ? ',' : '{', p->id);
            n++;
        }
        t->cold_at = (t->cold_at + 1) % BUCKETS;
    }
    pthread_mutex_unlock(&t->lock);
    if (n) memcpy(list + size, "}", 2);
    return n;
}

void parked_hurry(struct parked_table *t, const char *id, int64_t now_ms)
{
    pthread_mutex_lock(&t->lock);
    for (struct parked *p = t->buckets[bucket_of(id)]; p; p = p->next)
        if (!strcmp(p->id, id) && p->cold_ms > now_ms) p->cold_ms = now_ms;
    pthread_mutex_unlock(&t->lock);
}

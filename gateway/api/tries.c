/* tries.c - see tries.h. */
#include "api/tries.h"

#include <pthread.h>
#include <stdlib.h>

#include "api/cache.h"

struct tries {
    pthread_mutex_t lock; /* a count is read and written in one piece */
    struct cache *seen;   /* who -> struct count */
    int max;
    int64_t window_ms;
};

struct count {
    int64_t since_ms;
    int failures;
};

struct tries *tries_create(int entries_max, int max, int64_t window_ms, struct err *e)
{
    struct tries *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    t->max = max;
    t->window_ms = window_ms;
    t->seen = cache_create(entries_max, sizeof(struct count), e);
    if (t->seen) return t;
    tries_free(t);
    return NULL;
}

void tries_free(struct tries *t)
{
    if (!t) return;
    cache_free(t->seen);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* Of the window that now lies in. */
static struct count count_of(struct tries *t, const char *who, int64_t now_ms)
{
    struct count n;
    int64_t put_ms;
    if (!cache_get(t->seen, who, &n, &put_ms) || now_ms - n.since_ms >= t->window_ms)
        n = (struct count){now_ms, 0};
    return n;
}

int64_t tries_wait_ms(struct tries *t, const char *who, int64_t now_ms)
{
    pthread_mutex_lock(&t->lock);
    struct count n = count_of(t, who, now_ms);
    pthread_mutex_unlock(&t->lock);
    return n.failures < t->max ? 0 : n.since_ms + t->window_ms - now_ms;
}

void tries_failed(struct tries *t, const char *who, int64_t now_ms)
{
    pthread_mutex_lock(&t->lock);
    struct count n = count_of(t, who, now_ms);
    if (n.failures < t->max) n.failures++;
    cache_put(t->seen, who, &n, now_ms);
    pthread_mutex_unlock(&t->lock);
}

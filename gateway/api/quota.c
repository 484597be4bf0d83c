/* quota.c - see quota.h.
 *
 * Requests: one number an account, the time at which its requests so far would have been spread out
 * evenly.  It may lie a minute ahead of now, and each request moves it by a minute / limit. */
#include "api/quota.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "api/cache.h"

#define MINUTE_US INT64_C(60000000)

struct quota {
    pthread_mutex_t lock; /* a state is read and written in one piece */
    struct cache *uses;   /* account -> struct use */
};

struct use {
    int64_t even_us; /* see above */
    int64_t held_ms, limit;
    enum quota_kind held; /* what it was held up by, at held_ms */
};

struct quota *quota_create(struct err *e)
{
    struct quota *q = calloc(1, sizeof *q);
    if (!q) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&q->lock, NULL);
    q->uses = cache_create(QUOTA_ACCOUNTS_MAX, sizeof(struct use), e);
    if (q->uses) return q;
    quota_free(q);
    return NULL;
}

void quota_free(struct quota *q)
{
    if (!q) return;
    cache_free(q->uses);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static void fill(int64_t *own, int64_t preset)
{
    if (*own == QUOTA_PRESET) *own = preset;
}

void quota_fill(struct quota_limits *own, const struct quota_limits *presets)
{
    fill(&own->requests_per_minute, presets->requests_per_minute);
    fill(&own->tokens_in_flight, presets->tokens_in_flight);
    fill(&own->runs, presets->runs);
    fill(&own->storage_bytes, presets->storage_bytes);
}

static struct use use_of(struct quota *q, const char *account)
{
    struct use u;
    int64_t put_ms;
    if (!cache_get(q->uses, account, &u, &put_ms)) u = (struct use){0};
    return u;
}

int quota_request(struct quota *q, const char *account, int64_t limit, int64_t now_ms)
{
    int64_t now_us = now_ms * 1000, wait_us = 0;
    if (!limit) return 0;
    int64_t step_us = MINUTE_US / limit;
    pthread_mutex_lock(&q->lock);
    struct use u = use_of(q, account);
    if (u.even_us < now_us) u.even_us = now_us;
    if (u.even_us + step_us > now_us + MINUTE_US)
        wait_us = u.even_us + step_us - now_us - MINUTE_US;
    else
        u.even_us += step_us;
    if (!wait_us) cache_put(q->uses, account, &u, now_ms);
    pthread_mutex_unlock(&q->lock);
    return (int)((wait_us + 999999) / 1000000);
}

void quota_note(struct quota *q, const char *account, enum quota_kind kind, int64_t limit,
                int64_t now_ms)
{
    pthread_mutex_lock(&q->lock);
    struct use u = use_of(q, account);
    u.held = kind;
    u.limit = limit;
    u.held_ms = now_ms;
    cache_put(q->uses, account, &u, now_ms);
    pthread_mutex_unlock(&q->lock);
}

bool quota_reason(struct quota *q, const char *account, int64_t now_ms, char out[QUOTA_REASON_SIZE])
{
    pthread_mutex_lock(&q->lock);
    struct use u = use_of(q, account);
    pthread_mutex_unlock(&q->lock);
    if (u.held == QUOTA_NOTHING || now_ms - u.held_ms > QUOTA_TELL_MS) return false;
    if (u.held == QUOTA_REQUESTS)
        snprintf(out, QUOTA_REASON_SIZE,
                 "this account sends more than its %" PRId64
                 " requests a minute; the next ones are "
                 "let in one by one, and waiting costs nothing",
                 u.limit);
    else
        snprintf(
            out, QUOTA_REASON_SIZE,
            "this account has about as many tokens in line and running as it may have, %" PRId64
            "; the next requests are let in as these are done, and waiting costs nothing",
            u.limit);
    return true;
}

/* quota.c - see quota.h.
 *
 * Requests: one number an account, the time at which its requests so far would have been spread out
 * evenly.  It may lie a minute ahead of now, and each request moves it by a minute / limit.  Redis
 * has the same number for the requests of all gateways; here is the larger of what Redis said last,
 * moved by what it does not know yet, and this gateway's own. */
#include "api/quota.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cache.h"

#define MINUTE_US INT64_C(60000000)

struct quota {
    pthread_mutex_t lock; /* a state is read and written in one piece */
    struct cache *uses;   /* account -> struct seen */
    char (*posts)[TENANT_SIZE];
    int post_count;
};

struct seen {
    int64_t even_us;             /* see above */
    int64_t unposted, step_us;   /* requests that Redis does not know */
    bool listed;                 /* in posts */
    int64_t elsewhere, heard_ms; /* tokens, when that was learnt */
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
    q->posts = calloc(QUOTA_POSTS_MAX, sizeof *q->posts);
    if (q->posts)
        q->uses = cache_create(QUOTA_ACCOUNTS_MAX, sizeof(struct seen), e);
    else
        err_set(e, ERR_RETRY, "out of memory");
    if (q->uses) return q;
    quota_free(q);
    return NULL;
}

void quota_free(struct quota *q)
{
    if (!q) return;
    cache_free(q->uses);
    free(q->posts);
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

static struct seen use_of(struct quota *q, const char *account)
{
    struct seen u;
    int64_t put_ms;
    if (!cache_get(q->uses, account, &u, &put_ms)) u = (struct seen){0};
    return u;
}

/* One more that the others are to be told of; when the list is full it stays with us. */
static void note_request(struct quota *q, const char *account, struct seen *u, int64_t step_us)
{
    u->unposted++;
    u->step_us = step_us;
    if (u->listed || q->post_count == QUOTA_POSTS_MAX) return;
    snprintf(q->posts[q->post_count++], TENANT_SIZE, "%s", account);
    u->listed = true;
}

int quota_request(struct quota *q, const char *account, int64_t limit, int64_t now_ms)
{
    int64_t now_us = now_ms * 1000, wait_us = 0;
    if (!limit) return 0;
    int64_t step_us = MINUTE_US / limit;
    pthread_mutex_lock(&q->lock);
    struct seen u = use_of(q, account);
    if (u.even_us < now_us) u.even_us = now_us;
    if (u.even_us + step_us > now_us + MINUTE_US)
        wait_us = u.even_us + step_us - now_us - MINUTE_US;
    else
        u.even_us += step_us;
    if (!wait_us) note_request(q, account, &u, step_us);
    if (!wait_us) cache_put(q->uses, account, &u, now_ms);
    pthread_mutex_unlock(&q->lock);
    return (int)((wait_us + 999999) / 1000000);
}

int quota_take(struct quota *q, struct quota_post *posts, int max, int64_t now_ms)
{
    int n = 0;
    pthread_mutex_lock(&q->lock);
    while (n < max && q->post_count) {
        struct quota_post *p = &posts[n++];
        memcpy(p->account, q->posts[--q->post_count], sizeof p->account);
        struct seen u = use_of(q, p->account);
        p->requests = u.unposted;
        p->step_us = u.step_us;
        u.unposted = 0;
        u.listed = false;
        cache_put(q->uses, p->account, &u, now_ms);
    }
    pthread_mutex_unlock(&q->lock);
    return n;
}

void quota_learn(struct quota *q, const char *account, int64_t ahead_us, int64_t elsewhere,
                 int64_t now_ms)
{
    pthread_mutex_lock(&q->lock);
    struct seen u = use_of(q, account);
    int64_t even_us = now_ms * 1000 + ahead_us + u.unposted * u.step_us;
    if (even_us > u.even_us) u.even_us = even_us;
    u.elsewhere = elsewhere;
    u.heard_ms = now_ms;
    cache_put(q->uses, account, &u, now_ms);
    pthread_mutex_unlock(&q->lock);
}

int64_t quota_elsewhere(struct quota *q, const char *account, int64_t now_ms)
{
    pthread_mutex_lock(&q->lock);
    struct seen u = use_of(q, account);
    pthread_mutex_unlock(&q->lock);
    return now_ms - u.heard_ms <= QUOTA_HEARD_MS ? u.elsewhere : 0;
}

void quota_note(struct quota *q, const char *account, enum quota_kind kind, int64_t limit,
                int64_t now_ms)
{
    pthread_mutex_lock(&q->lock);
    struct seen u = use_of(q, account);
    u.held = kind;
    u.limit = limit;
    u.held_ms = now_ms;
    cache_put(q->uses, account, &u, now_ms);
    pthread_mutex_unlock(&q->lock);
}

bool quota_reason(struct quota *q, const char *account, int64_t now_ms, char out[QUOTA_REASON_SIZE])
{
    pthread_mutex_lock(&q->lock);
    struct seen u = use_of(q, account);
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

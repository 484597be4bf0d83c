/* share.c - see share.h. */
#include "api/share.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/flight.h"
#include "api/quota.h"
#include "base/clock.h"
#include "base/log.h"
#include "seal/seal.h"
#include "store/store.h"

#define STORE_TIMEOUT_MS 1000
#define PAUSE_MS         1000 /* Redis is left alone for so long after a failure */
#define SLICE_MS         50

struct share {
    struct quota *quota;
    struct flight *flight;
    struct store *store;
    char gateway[80]; /* with random letters: an older process of the same name is another one */
    bool away;
    atomic_bool stopping;
    pthread_t thread;
    bool started;
    struct quota_post posts[USES_MAX];
    struct flight_holding holdings[USES_MAX];
    struct use uses[USES_MAX];
};

/* What Redis says is of a moment after now_ms: a slow answer may let in a little more, never less. */
static int tell(struct share *s, int count, struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    if (!count) return 0;
    if (store_share(s->store, s->gateway, QUOTA_HEARD_MS, s->uses, count, e) < 0) return -1;
    for (int i = 0; i < count; i++)
        quota_learn(s->quota, s->uses[i].account, s->uses[i].ahead_us, s->uses[i].elsewhere,
                    now_ms);
    return 0;
}

/* Returns how many accounts were told of.  Those whose telling failed are not told of again: this
 * gateway has counted them. */
static int tell_requests(struct share *s, struct err *e)
{
    int n = quota_take(s->quota, s->posts, USES_MAX, clock_mono_ms());
    for (int i = 0; i < n; i++)
        s->uses[i] = (struct use){.account = s->posts[i].account,
                                  .requests = s->posts[i].requests,
                                  .step_us = s->posts[i].step_us,
                                  .tokens = flight_tokens(s->flight, s->posts[i].account)};
    return tell(s, n, e) < 0 ? -1 : n;
}

static int tell_tokens(struct share *s, struct err *e)
{
    int n = flight_holdings(s->flight, s->holdings, USES_MAX);
    for (int i = 0; i < n; i++)
        s->uses[i] =
            (struct use){.account = s->holdings[i].account, .tokens = s->holdings[i].tokens};
    return tell(s, n, e) < 0 ? -1 : n;
}

/* Until there is nothing more to tell, or a round is full. */
static int each(struct share *s, int (*some)(struct share *, struct err *), struct err *e)
{
    int n = USES_MAX;
    for (int told = 0; told < SHARE_POSTS_MAX && n == USES_MAX; told += n)
        if ((n = some(s, e)) < 0) return -1;
    return 0;
}

/* What was let in while Redis is away is this gateway's own for good: told of later, it would look as
 * if it had come at once. */
static int wait_for_store(struct share *s, struct err *e)
{
    if (!s->away || store_ping(s->store, e) == 0) return 0;
    while (quota_take(s->quota, s->posts, USES_MAX, clock_mono_ms()) == USES_MAX)
        continue;
    return -1;
}

static int64_t round_of(struct share *s)
{
    struct err e = {0};
    int rc = wait_for_store(s, &e);
    if (rc == 0) rc = each(s, tell_requests, &e);
    if (rc == 0) rc = each(s, tell_tokens, &e);
    if (rc < 0 && !s->away)
        log_warn("gateway.share", "text=\"%s\" now=\"each gateway counts for itself\"", e.text);
    if (rc == 0 && s->away) log_info("gateway.share", "now=\"the gateways count together again\"");
    s->away = rc < 0;
    return rc < 0 ? PAUSE_MS : SHARE_EVERY_MS;
}

static void *run(void *arg)
{
    struct share *s = arg;
    while (!atomic_load(&s->stopping)) {
        int64_t until_ms = clock_mono_ms() + round_of(s);
        while (!atomic_load(&s->stopping) && clock_mono_ms() < until_ms)
            clock_sleep_ms(SLICE_MS);
    }
    return NULL;
}

struct share *share_create(const struct gateway_conf *conf, struct quota *quota,
                           struct flight *flight, struct err *e)
{
    uint8_t random[6];
    char letters[16];
    struct share *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    s->quota = quota;
    s->flight = flight;
    seal_random(random, sizeof random);
    seal_hex(random, sizeof random, letters);
    snprintf(s->gateway, sizeof s->gateway, "%.60s:%s", conf->name, letters);
    s->store = store_create(conf->redis, conf->redis_prefix, STORE_TIMEOUT_MS, e);
    if (!s->store) goto fail;
    s->started = pthread_create(&s->thread, NULL, run, s) == 0;
    if (s->started) return s;
    err_set(e, ERR_RETRY, "could not start a thread");
fail:
    share_free(s);
    return NULL;
}

void share_free(struct share *s)
{
    if (!s) return;
    atomic_store(&s->stopping, true);
    if (s->started) pthread_join(s->thread, NULL);
    store_free(s->store);
    free(s);
}

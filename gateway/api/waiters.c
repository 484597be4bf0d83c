/* waiters.c - see waiters.h.
 *
 * The polls are in one table (parked.h), and whoever takes one out answers it.
 *
 * Three threads, each with connections of its own:
 *   wake    reads the `done` stream; a future that somebody waits for is fetched and answered there
 *   look    fetches the futures of polls that have just come (they may be settled long since), and
 *           sweeps
 *   cold    asks for what Redis does not have (cold.h): after a second, or, while results are found
 *           there, at once */
#include "api/waiters.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/cold.h"
#include "api/flight.h"
#include "api/parked.h"
#include "api/quota.h"
#include "base/clock.h"
#include "base/log.h"
#include "seal/seal.h"
#include "store/store.h"

#define STORE_TIMEOUT_MS 1000
#define STREAM_WAIT_MS   500
#define STORE_PAUSE_MS   500 /* Redis is left alone for so long after a failure */
#define COLD_TICK_MS     200
#define COLD_WARM_MS     10000 /* so long after one was found there, the next are expected there */

struct fresh {
    struct fresh *next;
    char id[ID_SIZE];
};

struct waiters {
    const struct gateway_conf *conf;
    struct gather *gather;
    struct quota *quota;
    struct flight *flight;
    struct parked_table *parked;
    pthread_mutex_t lock; /* of everything down to hurry; parked's is taken inside it */
    pthread_cond_t came;
    struct fresh *fresh, **fresh_end;
    bool draining, hurry;
    pthread_cond_t hurried; /* a poll wants the cold path at once */
    atomic_bool stopping, store_away;
    _Atomic int64_t cold_warm_ms; /* when a result was last found by the cold path */
    struct store *wake_stream, *wake_store, *look_store;
    struct cold *cold;
    pthread_t threads[3];
    int started;
};

/* ---------------------------------------------------------------- answering */

static void settle(struct waiters *w, const char *id, const struct future *f)
{
    flight_settled(w->flight, id);
    for (struct parked *p = parked_take(w->parked, id); p;) {
        struct parked *next = p->next;
        answer_settled(p->r, p->manner, p->id, p->kind, f);
        free(p);
        p = next;
    }
}

/* What the dispatcher counted lately for one model; many polls of one sweep ask for the same. */
struct view_of {
    char model[MODEL_NAME_SIZE];
    struct queue_view view;
};

static void look_at_queue(struct store *store, const char *model, struct view_of *v)
{
    struct counter counters[] = {{"waiting", 0}, {"workers", 0}};
    struct err e = {0};
    char who[MODEL_NAME_SIZE + 8];
    if (!strcmp(v->model, model)) return;
    snprintf(v->model, sizeof v->model, "%s", model);
    snprintf(who, sizeof who, "queue:%s", model);
    bool known = *model && store_counters_get(store, who, counters, 2, &e) == 1;
    v->view = (struct queue_view){known, counters[0].value, counters[1].value};
}

/* store NULL: it is not said why they wait. */
static void tell_pending(struct waiters *w, struct parked *list, struct store *store)
{
    struct view_of v = {0};
    struct queue_state state;
    while (list) {
        struct parked *next = list->next;
        if (store) look_at_queue(store, list->model, &v);
        queue_describe(&state, list->model, &v.view);
        if (quota_reason(w->quota, list->account, clock_mono_ms(), state.reason))
            state.state = "paused_rate_limit";
        answer_pending(list->r, list->manner, list->id, &state);
        free(list);
        list = next;
    }
}

/* ---------------------------------------------------------------- parking */

/* Up to a fifth less than the setting, so that polls which came together do not come back together.
 */
static int64_t hold_ms(const struct waiters *w)
{
    uint32_t random;
    seal_random(&random, sizeof random);
    return w->conf->poll_hold_ms - (int64_t)(random % (uint32_t)(w->conf->poll_hold_ms / 5 + 1));
}

void waiters_park(struct waiters *w, struct http_request *r, const char *id, enum job_kind kind,
                  struct manner manner, const char *account, const char *model)
{
    struct parked *p = calloc(1, sizeof *p);
    struct fresh *f = calloc(1, sizeof *f);
    int64_t now = clock_mono_ms();

    if (!p || !f) {
        free(p);
        free(f);
        answer_busy(r, manner, "no memory for this poll now");
        return;
    }
    p->r = r;
    p->manner = manner;
    p->kind = kind;
    snprintf(p->id, sizeof p->id, "%s", id);
    snprintf(p->account, sizeof p->account, "%s", account);
    snprintf(p->model, sizeof p->model, "%s", model);
    p->deadline_ms = now + hold_ms(w);
    p->cold_ms = now + COLD_FIRST_MS;
    memcpy(f->id, p->id, sizeof f->id);

    pthread_mutex_lock(&w->lock);
    bool draining = w->draining;
    if (!draining) {
        parked_add(w->parked, p);
        *w->fresh_end = f;
        w->fresh_end = &f->next;
        pthread_cond_signal(&w->came);
    }
    pthread_mutex_unlock(&w->lock);
    if (draining) {
        free(f);
        tell_pending(w, p, NULL);
    }
}

int waiters_parked(struct waiters *w)
{
    return parked_count(w->parked);
}

void waiters_drain(struct waiters *w)
{
    pthread_mutex_lock(&w->lock);
    w->draining = true;
    pthread_mutex_unlock(&w->lock);
    tell_pending(w, parked_take_overdue(w->parked, clock_mono_ms(), true, false), NULL);
}

/* ---------------------------------------------------------------- fetching from Redis */

/* -1: Redis is away.  Not there, or not readable, is 0: the cold path finds what there is. */
static int fetch(struct waiters *w, struct store *store, const char *id)
{
    struct future f = {0};
    struct err e = {0};
    int n = store_future_get(store, id, &f, &e);
    if (n == 1) settle(w, id, &f);
    if (n < 0 && !atomic_exchange(&w->store_away, true))
        log_warn("gateway.redis", "text=\"%s\" now=\"results come from the log\"", e.text);
    if (n >= 0 && atomic_exchange(&w->store_away, false)) log_info("gateway.redis", "now=\"back\"");
    future_clear(&f);
    return n;
}

static void on_settled(void *arg, const char *id)
{
    struct waiters *w = arg;
    if (parked_has(w->parked, id)) (void)fetch(w, w->wake_store, id);
    gather_note(w->gather, id);
    flight_settled(w->flight, id);
}

static void *wake(void *arg)
{
    struct waiters *w = arg;
    char last[STORE_STREAM_ID_SIZE] = "$";
    struct err e = {0};
    while (!atomic_load(&w->stopping))
        if (store_wait_settled(w->wake_stream, last, STREAM_WAIT_MS, on_settled, w, &e) < 0)
            clock_sleep_ms(STORE_PAUSE_MS);
    return NULL;
}

/* Waits for a poll that has just come, until the next sweep at the latest. */
static struct fresh *next_fresh(struct waiters *w, int64_t until_ms)
{
    struct timespec until;
    int64_t wait_ms = until_ms - clock_mono_ms();
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (wait_ms > 0 ? wait_ms : 0) * 1000000;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;

    pthread_mutex_lock(&w->lock);
    if (!w->fresh && wait_ms > 0) pthread_cond_timedwait(&w->came, &w->lock, &until);
    struct fresh *list = w->fresh;
    w->fresh = NULL;
    w->fresh_end = &w->fresh;
    pthread_mutex_unlock(&w->lock);
    return list;
}

static void sweep(struct waiters *w, char (*ids)[ID_SIZE], bool look_at_peers)
{
    tell_pending(w, parked_take_overdue(w->parked, clock_mono_ms(), false, look_at_peers),
                 w->look_store);
    int n = parked_some(w->parked, ids, SWEEP_IDS_MAX);
    for (int i = 0; i < n; i++)
        if (fetch(w, w->look_store, ids[i]) < 0) break;
}

/* Were results found by the cold path lately: was Redis emptied, is it away, does nobody fill it? */
static bool is_warm(const struct waiters *w, int64_t now_ms)
{
    return now_ms - atomic_load(&w->cold_warm_ms) <= COLD_WARM_MS;
}

/* Redis does not have it.  While the cold path is warm this one is looked for there at once. */
static void hurry(struct waiters *w, const char *id)
{
    int64_t now = clock_mono_ms();
    if (!is_warm(w, now)) return;
    parked_hurry(w->parked, id, now);
    pthread_mutex_lock(&w->lock);
    w->hurry = true;
    pthread_cond_signal(&w->hurried);
    pthread_mutex_unlock(&w->lock);
}

static void look_at_fresh(struct waiters *w, struct fresh *list, int64_t *away_until_ms)
{
    while (list) {
        struct fresh *next = list->next;
        int found = clock_mono_ms() < *away_until_ms ? -1 : fetch(w, w->look_store, list->id);
        if (found < 0 && clock_mono_ms() >= *away_until_ms)
            *away_until_ms = clock_mono_ms() + STORE_PAUSE_MS;
        if (found <= 0) hurry(w, list->id);
        free(list);
        list = next;
    }
}

static void *look(void *arg)
{
    struct waiters *w = arg;
    char(*ids)[ID_SIZE] = calloc(SWEEP_IDS_MAX, sizeof *ids);
    int64_t sweep_ms = 0, peers_ms = 0, away_until_ms = 0;

    while (ids && !atomic_load(&w->stopping)) {
        look_at_fresh(w, next_fresh(w, sweep_ms), &away_until_ms);
        int64_t now = clock_mono_ms();
        if (now < sweep_ms) continue;
        bool look_at_peers = now >= peers_ms;
        if (look_at_peers) peers_ms = now + PEERS_EVERY_MS;
        sweep(w, ids, look_at_peers);
        sweep_ms = clock_mono_ms() + SWEEP_MS;
    }
    free(ids);
    return NULL;
}

/* ---------------------------------------------------------------- the cold path */

/* What is due for a look into Postgres; returns how many. */
static int due_for_cold(struct waiters *w, char *list)
{
    int64_t now = clock_mono_ms();
    bool soon = atomic_load(&w->store_away) || is_warm(w, now);
    return parked_due_for_cold(w->parked, now, now + (soon ? COLD_FIRST_MS : COLD_EVERY_MS),
                               COLD_IDS_MAX, list);
}

static bool wanted(void *arg, const char *id)
{
    const struct waiters *w = arg;
    return parked_has(w->parked, id);
}

/* It cannot come any more, and asking again would not help. */
static void settle_gone(struct waiters *w, const char *id)
{
    for (struct parked *p = parked_take(w->parked, id); p;) {
        struct parked *next = p->next;
        http_answer_error(p->r, 410, "the result of \"%s\" is no longer kept", id);
        free(p);
        p = next;
    }
}

static void on_cold(void *arg, const char *id, const struct future *f)
{
    struct waiters *w = arg;
    atomic_store(&w->cold_warm_ms, clock_mono_ms());
    if (f)
        settle(w, id, f);
    else
        settle_gone(w, id);
}

/* Until a poll asks for it, or for a while. */
static void wait_for_hurry(struct waiters *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += COLD_TICK_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&w->lock);
    if (!w->hurry) pthread_cond_timedwait(&w->hurried, &w->lock, &until);
    w->hurry = false;
    pthread_mutex_unlock(&w->lock);
}

static void *cold(void *arg)
{
    struct waiters *w = arg;
    const struct cold_asker asker = {wanted, on_cold, w};
    char *list = malloc((size_t)COLD_IDS_MAX * (ID_SIZE + 1) + 2);
    while (list && !atomic_load(&w->stopping)) {
        struct err e = {0};
        int due = due_for_cold(w, list);
        if (due && cold_look_up(w->cold, list, &asker, &e) < 0)
            log_warn("gateway.cold", "text=\"%s\"", e.text);
        if (due < COLD_IDS_MAX || e.kind) wait_for_hurry(w);
    }
    free(list);
    return NULL;
}

/* ---------------------------------------------------------------- birth and death */

static struct store *open_store(const struct waiters *w, struct err *e)
{
    return store_create(w->conf->redis, w->conf->redis_prefix, STORE_TIMEOUT_MS, e);
}

static int open_doors(struct waiters *w, struct err *e)
{
    if (!(w->parked = parked_create(e))) return -1;
    if (!(w->wake_stream = open_store(w, e)) || !(w->wake_store = open_store(w, e))) return -1;
    if (!(w->look_store = open_store(w, e))) return -1;
    return (w->cold = cold_create(w->conf, e)) ? 0 : -1;
}

struct waiters *waiters_create(const struct gateway_conf *conf, struct gather *gather,
                               struct quota *quota, struct flight *flight, struct err *e)
{
    static void *(*const mains[])(void *) = {wake, look, cold};
    pthread_condattr_t attr;
    struct waiters *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    w->conf = conf;
    w->gather = gather;
    w->quota = quota;
    w->flight = flight;
    w->fresh_end = &w->fresh;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->came, &attr);
    pthread_cond_init(&w->hurried, &attr);
    atomic_store(&w->cold_warm_ms, clock_mono_ms() - COLD_WARM_MS - 1);
    pthread_condattr_destroy(&attr);
    if (open_doors(w, e) < 0) goto fail;
    for (; w->started < 3; w->started++) {
        if (pthread_create(&w->threads[w->started], NULL, mains[w->started], w) != 0) {
            err_set(e, ERR_RETRY, "could not start a thread");
            goto fail;
        }
    }
    return w;
fail:
    waiters_free(w);
    return NULL;
}

void waiters_free(struct waiters *w)
{
    if (!w) return;
    atomic_store(&w->stopping, true);
    for (int i = 0; i < w->started; i++)
        pthread_join(w->threads[i], NULL);
    if (w->parked)
        tell_pending(w, parked_take_overdue(w->parked, clock_mono_ms(), true, false), NULL);
    for (struct fresh *f = w->fresh; f;) {
        struct fresh *next = f->next;
        free(f);
        f = next;
    }
    store_free(w->wake_stream);
    store_free(w->wake_store);
    store_free(w->look_store);
    cold_free(w->cold);
    parked_free(w->parked);
    pthread_cond_destroy(&w->came);
    pthread_cond_destroy(&w->hurried);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

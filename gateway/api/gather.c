/* gather.c - see gather.h.
 *
 * One list of parked polls under one lock, and one thread that looks: at a poll that has just come,
 * at one whose sampler had a result, at all of them now and then (a wake-up may be lost with
 * Redis), and at those whose time is over.  Whoever takes a poll off the list owns it.
 *
 * While it waits for Postgres all polls wait, so it waits for a moment only, and after a failure it
 * asks Redis alone for a while. */
#include "api/gather.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/cold.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "store/store.h"

#define STORE_TIMEOUT_MS 1000
#define DB_MS            2000
#define LOOK_EVERY_MS    1000
#define ANSWER_MAX       (COMPLETIONS_MAX * (ID_SIZE + 64) + 256)

struct poll {
    struct poll *next;
    struct http_request *r;
    struct gathering what;
    int64_t deadline_ms, look_ms; /* when it is to be looked at again */
    int64_t cold_ms;              /* when Postgres is to be asked, whatever Redis says */
    bool due;
};

struct gather {
    const struct gateway_conf *conf;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct poll *polls, *looking; /* the one that is off the list while it is looked at */
    atomic_int count;             /* of both */
    bool draining, stopping;
    struct store *store;
    struct db *db;
    int64_t db_again_ms; /* not before: it could not be asked */
    pthread_t thread;
    bool started;
};

/* ---------------------------------------------------------------- what is new */

struct completion {
    int64_t offset;
    bool failed;
    char id[ID_SIZE];
};

struct found {
    struct completion *list; /* of COMPLETIONS_MAX */
    int count;
    int64_t cursor;
    const struct gathering *what;
};

/* The number of a sample in its id, <sampler>:<kind>:<seq>:<tag>. */
static int64_t number_of(const char *id)
{
    const char *tag = strrchr(id, ':');
    while (tag && tag > id && tag[-1] != ':')
        tag--;
    return tag ? strtoll(tag, NULL, 10) : -1;
}

static void add(struct found *f, int64_t offset, const char *status, const char *id)
{
    if (offset >= f->cursor) f->cursor = offset + 1;
    if (number_of(id) / CLONE_SEQS != f->what->clone || f->count == COMPLETIONS_MAX) return;
    struct completion *c = &f->list[f->count++];
    c->offset = offset;
    c->failed = strcmp(status, "ok") != 0;
    snprintf(c->id, sizeof c->id, "%s", id);
}

static void on_seen(void *arg, int64_t offset, const char *status, const char *id)
{
    add(arg, offset, status, id);
}

/* How far billing has read that partition: below it, Postgres knows every result. */
static int read_ingested(struct gather *g, const struct gathering *w, int64_t *next, struct err *e)
{
    struct db_result *rows = NULL;
    char partition[16];
    snprintf(partition, sizeof partition, "%d", w->partition);
    int n = db_queryf(g->db, &rows, e,
                      "SELECT next_offset FROM ingest_cursors WHERE topic = $1 AND partition = "
                      "$2::integer",
                      w->topic, partition, NULL);
    *next = n == 1 ? db_int(rows, 0, 0) : 0;
    db_result_free(rows);
    return n < 0 ? -1 : 0;
}

/* From the cursor up to `before` out of Postgres.  1: all of it was found, 0: billing is not that
 * far, or there is more than fits. */
static int read_old(struct gather *g, struct found *f, int64_t before, struct err *e)
{
    struct db_result *rows = NULL;
    int64_t ingested;
    char from[24], to[24];
    if (read_ingested(g, f->what, &ingested, e) < 0) return -1;
    bool all = ingested >= before;
    if (ingested <= f->cursor) return all;
    snprintf(from, sizeof from, "%" PRId64, f->cursor);
    snprintf(to, sizeof to, "%" PRId64, all ? before : ingested);
    int n = db_queryf(g->db, &rows, e,
                      "SELECT log_offset, status, job_id FROM job_outcomes WHERE parent_id = $1 "
                      "AND log_offset >= $2::bigint AND log_offset < $3::bigint "
                      "ORDER BY log_offset LIMIT 1000",
                      f->what->sampler, from, to, NULL);
    for (int i = 0; i < n; i++)
        add(f, db_int(rows, i, 0), db_text(rows, i, 1), db_text(rows, i, 2));
    db_result_free(rows);
    if (n < 0) return -1;
    return all && n < COMPLETIONS_MAX;
}

/* Redis first; where it does not reach back far enough, Postgres up to there, and only then Redis.
 * `away`: Postgres is left alone, and nothing found where it would have to be asked.  `cold`: when
 * Redis reaches back and has nothing new, Postgres is asked as well, because nobody may be filling
 * Redis. */
static int look_up(struct gather *g, struct found *f, bool away, bool cold, struct err *e)
{
    const struct gathering *w = f->what;
    int64_t complete_from;
    f->count = 0;
    f->cursor = w->cursor;
    if (store_group_after(g->store, w->sampler, w->topic, w->partition, w->cursor, COMPLETIONS_MAX,
                          &complete_from, on_seen, f, e) < 0) {
        log_debug("gateway.redis", "text=\"%s\"", e->text);
        err_clear(e);
        complete_from = INT64_MAX;
    }
    if (complete_from <= w->cursor) {
        if (f->count || away || !cold) return 0;
        return read_old(g, f, INT64_MAX, e) < 0 ? -1 : 0;
    }
    f->count = 0;
    f->cursor = w->cursor;
    if (away) return 0;
    int all = read_old(g, f, complete_from, e);
    if (all <= 0 || complete_from == INT64_MAX) return all < 0 ? -1 : 0;
    if (f->cursor < complete_from) f->cursor = complete_from;
    int room = COMPLETIONS_MAX - f->count;
    return store_group_after(g->store, w->sampler, w->topic, w->partition, f->cursor, room,
                             &complete_from, on_seen, f, e) < 0
               ? -1
               : 0;
}

/* ---------------------------------------------------------------- answering */

static char *write_answer(const struct found *f, size_t *size)
{
    struct err e = {0};
    struct buf b;
    buf_init(&b, ANSWER_MAX);
    int rc = buf_printf(&b, &e, "{\"completions\": [");
    for (int i = 0; i < f->count && rc == 0; i++)
        rc = buf_printf(&b, &e, "%s{\"state\": \"%s\", \"request_id\": \"%s\"}", i ? ", " : "",
                        f->list[i].failed ? "failed" : "finished", f->list[i].id);
    if (rc == 0) rc = buf_printf(&b, &e, "], \"cursor\": %" PRId64 "}", f->cursor);
    char *text = rc == 0 ? buf_take(&b, size) : NULL;
    buf_clear(&b);
    return text;
}

/* Takes p. */
static void answer(struct poll *p, const struct found *f)
{
    size_t size = 0;
    char *text = write_answer(f, &size);
    if (text)
        http_answer(p->r, 200, "application/json", text, size);
    else
        http_answer_retry(p->r, 429, 1, "no memory for the answer now");
    free(p);
}

static void answer_nothing(struct poll *p)
{
    struct found none = {.cursor = p->what.cursor, .what = &p->what};
    answer(p, &none);
}

/* ---------------------------------------------------------------- the list */

/* Counted already. */
static void put(struct gather *g, struct poll *p)
{
    pthread_mutex_lock(&g->lock);
    bool draining = g->draining;
    if (g->looking == p) g->looking = NULL;
    if (!draining) {
        p->next = g->polls;
        g->polls = p;
        pthread_cond_signal(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
    if (draining) {
        atomic_fetch_sub(&g->count, 1);
        answer_nothing(p);
    }
}

/* Takes p from where it is looked at. */
static void finish(struct gather *g, struct poll *p, const struct found *f)
{
    pthread_mutex_lock(&g->lock);
    g->looking = NULL;
    pthread_mutex_unlock(&g->lock);
    atomic_fetch_sub(&g->count, 1);
    answer(p, f);
}

/* The first that is due, taken off; NULL: none, and *until_ms says when the next one is. */
static struct poll *take_due(struct gather *g, int64_t now_ms, int64_t *until_ms)
{
    struct poll *p = NULL;
    *until_ms = now_ms + LOOK_EVERY_MS;
    for (struct poll **at = &g->polls; *at; at = &(*at)->next) {
        if (!(*at)->due && (*at)->look_ms > now_ms) {
            if ((*at)->look_ms < *until_ms) *until_ms = (*at)->look_ms;
            continue;
        }
        p = *at;
        *at = p->next;
        p->due = false; /* what happens from here on makes it due again */
        break;
    }
    g->looking = p;
    return p;
}

static struct poll *wait_for_due(struct gather *g)
{
    struct poll *p = NULL;
    pthread_mutex_lock(&g->lock);
    while (!g->stopping) {
        int64_t now_ms = clock_mono_ms(), until_ms;
        p = take_due(g, now_ms, &until_ms);
        if (p) break;
        struct timespec until = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
        pthread_cond_timedwait(&g->changed, &g->lock, &until);
    }
    pthread_mutex_unlock(&g->lock);
    return p;
}

/* Answers p, or puts it back. */
static void look(struct gather *g, struct poll *p, struct found *f)
{
    struct err e = {0};
    int64_t now_ms = clock_mono_ms();
    bool away = now_ms < g->db_again_ms, cold = now_ms >= p->cold_ms;
    f->what = &p->what;
    int rc = look_up(g, f, away, cold, &e);
    if (rc < 0) {
        log_warn("gateway.gather", "text=\"%s\"", e.text);
        now_ms = clock_mono_ms();
        g->db_again_ms = now_ms + COLD_EVERY_MS;
        f->count = 0;
        f->cursor = p->what.cursor;
    }
    if (f->count || now_ms >= p->deadline_ms) {
        finish(g, p, f);
        return;
    }
    if (cold && !away) p->cold_ms = now_ms + COLD_EVERY_MS;
    p->what.cursor = f->cursor; /* what was another clone's need not be looked at again */
    p->look_ms = now_ms + LOOK_EVERY_MS < p->deadline_ms ? now_ms + LOOK_EVERY_MS : p->deadline_ms;
    put(g, p);
}

static void *run(void *arg)
{
    struct gather *g = arg;
    struct poll *p;
    struct found f = {.list = calloc(COMPLETIONS_MAX, sizeof *f.list)};
    while (f.list && (p = wait_for_due(g)))
        look(g, p, &f);
    free(f.list);
    return NULL;
}

/* ---------------------------------------------------------------- the door */

void gather_park(struct gather *g, struct http_request *r, const struct gathering *what,
                 int64_t wait_ms)
{
    struct poll *p = calloc(1, sizeof *p);
    if (!p) {
        http_answer_retry(r, 429, 1, "no memory for this poll now");
        return;
    }
    p->r = r;
    p->what = *what;
    p->deadline_ms = clock_mono_ms() + wait_ms;
    p->cold_ms = clock_mono_ms() + COLD_FIRST_MS;
    p->due = true;
    atomic_fetch_add(&g->count, 1);
    put(g, p);
}

/* <sampler>:<kind>:<seq>:<tag> */
static bool is_of(const char *id, const char *sampler)
{
    size_t length = strlen(sampler);
    return !strncmp(id, sampler, length) && id[length] == ':';
}

void gather_note(struct gather *g, const char *id)
{
    if (!atomic_load(&g->count)) return;
    pthread_mutex_lock(&g->lock);
    if (g->looking && is_of(id, g->looking->what.sampler)) g->looking->due = true;
    for (struct poll *p = g->polls; p; p = p->next) {
        if (!is_of(id, p->what.sampler)) continue;
        p->due = true;
        pthread_cond_signal(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
}

void gather_drain(struct gather *g)
{
    pthread_mutex_lock(&g->lock);
    g->draining = true;
    struct poll *list = g->polls;
    g->polls = NULL;
    pthread_mutex_unlock(&g->lock);
    while (list) {
        struct poll *next = list->next;
        atomic_fetch_sub(&g->count, 1);
        answer_nothing(list);
        list = next;
    }
}

static int open_doors(struct gather *g, struct err *e)
{
    g->store = store_create(g->conf->redis, g->conf->redis_prefix, STORE_TIMEOUT_MS, e);
    if (g->store) g->db = db_create(g->conf->postgres, "tinworks-gateway", e);
    if (!g->db) return -1;
    db_set_patience(g->db, DB_MS);
    g->started = pthread_create(&g->thread, NULL, run, g) == 0;
    return g->started ? 0 : err_set(e, ERR_RETRY, "could not start a thread");
}

struct gather *gather_create(const struct gateway_conf *conf, struct err *e)
{
    pthread_condattr_t attr;
    struct gather *g = calloc(1, sizeof *g);
    if (!g) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    g->conf = conf;
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (open_doors(g, e) == 0) return g;
    gather_free(g);
    return NULL;
}

void gather_free(struct gather *g)
{
    if (!g) return;
    pthread_mutex_lock(&g->lock);
    g->stopping = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
    if (g->started) pthread_join(g->thread, NULL);
    gather_drain(g);
    store_free(g->store);
    db_free(g->db);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

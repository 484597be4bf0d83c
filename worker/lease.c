/* lease.c - see lease.h. */
#include "lease.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "conf.h"
#include "db/db.h"

#define HELD_MAX (2 * PARTITIONS_MAX)
#define EAGER_MS 500
#define AWAY_MS  60000 /* nothing could be published for that long: an alarm */

struct held {
    enum stream stream;
    int partition;
    int64_t epoch;
};

struct event_node {
    struct lease_event event;
    struct event_node *next;
};

struct lease {
    struct lease_conf conf;
    char lease_text[32]; /* "15000 milliseconds" */
    struct db *db;       /* the thread's */
    pthread_t thread;
    bool running;
    struct held held[HELD_MAX]; /* the thread's */
    int held_count;
    _Atomic int64_t good_ms; /* when the last good renewal was sent, monotonic */
    atomic_bool started, lost;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool stop;
    struct event_node *first, **last;
};

static int push(struct lease *l, const struct lease_event *ev, struct err *e)
{
    struct event_node *n = malloc(sizeof *n);
    if (!n) return err_set(e, ERR_RETRY, "out of memory for a lease event");
    *n = (struct event_node){.event = *ev};
    pthread_mutex_lock(&l->lock);
    *l->last = n;
    l->last = &n->next;
    pthread_mutex_unlock(&l->lock);
    if (ev->lost) atomic_store(&l->lost, true);
    return 0;
}

static enum stream stream_of(const char *name)
{
    return !strcmp(name, stream_name(STREAM_SAMPLE)) ? STREAM_SAMPLE : STREAM_TRAIN;
}

static bool still_ours(const struct held *h, const struct db_result *r)
{
    for (int i = 0; i < db_rows(r); i++)
        if (stream_of(db_text(r, i, 0)) == h->stream && db_int(r, i, 1) == h->partition)
            return db_int(r, i, 2) == h->epoch;
    return false;
}

/* Makes row i of r ours: its columns are stream, partition, epoch and the three positions. */
static int hold(struct lease *l, const struct db_result *r, int i, bool clean, bool other_numerics,
                struct err *e)
{
    struct lease_event ev = {
        .stream = stream_of(db_text(r, i, 0)),
        .partition = (int)db_int(r, i, 1),
        .epoch = db_int(r, i, 2),
        .resume_offset = db_int(r, i, 3),
        .scan_offset = db_int(r, i, 4),
        .scan_epoch = db_int(r, i, 5),
        .clean = clean,
        .other_numerics = other_numerics,
    };
    l->held[l->held_count++] = (struct held){ev.stream, ev.partition, ev.epoch};
    return push(l, &ev, e);
}

/* A row with our name that we do not hold: the answer to our taking it was lost on its way. */
static int adopt(struct lease *l, const struct db_result *r, struct err *e)
{
    int held = l->held_count, rc = 0;
    for (int i = 0; i < db_rows(r) && rc == 0 && l->held_count < HELD_MAX; i++) {
        bool known = false;
        for (int k = 0; k < held && !known; k++)
            known = l->held[k].stream == stream_of(db_text(r, i, 0)) &&
                    l->held[k].partition == db_int(r, i, 1);
        if (known) continue;
        log_warn("lease.adopted", "stream=%s partition=%s", db_text(r, i, 0), db_text(r, i, 1));
        rc = hold(l, r, i, false, false, e);
    }
    return rc;
}

static int renew(struct lease *l, struct err *e)
{
    struct db_result *r = NULL;
    if (db_queryf(l->db, &r, e,
                  "UPDATE shards SET lease_until = clock_timestamp() + $1::interval"
                  " WHERE model = $2 AND owner = $3 RETURNING stream, partition, epoch,"
                  " resume_offset, scan_offset, scan_epoch",
                  l->lease_text, l->conf.model, l->conf.owner, NULL) < 0)
        return -1;
    int kept = 0, rc = adopt(l, r, e);
    for (int i = 0; i < l->held_count; i++) {
        struct held h = l->held[i];
        if (still_ours(&h, r)) {
            l->held[kept++] = h;
            continue;
        }
        struct lease_event ev = {
            .lost = true, .stream = h.stream, .partition = h.partition, .epoch = h.epoch};
        if (push(l, &ev, e) < 0) rc = -1;
    }
    l->held_count = kept;
    db_result_free(r);
    return rc;
}

static int take(struct lease *l, struct err *e)
{
    struct db_result *r = NULL;
    char slot[16];
    snprintf(slot, sizeof slot, "%d", l->conf.slot);
    int n = db_queryf(l->db, &r, e,
                      "UPDATE shards s SET owner = $1, slot = $2::int, epoch = s.epoch + 1,"
                      " lease_until = clock_timestamp() + $3::interval, drained = false,"
                      " numerics = $5 FROM shards was"
                      " WHERE (was.model, was.stream, was.partition)"
                      " = (s.model, s.stream, s.partition) AND s.model = $4"
                      " AND s.lease_until < clock_timestamp() AND s.owner IS DISTINCT FROM $1"
                      " AND (coalesce(s.numerics, $5) = $5 OR $6::boolean)"
                      " RETURNING s.stream, s.partition, s.epoch, s.resume_offset, s.scan_offset,"
                      " s.scan_epoch, was.drained, coalesce(was.numerics, $5) <> $5",
                      l->conf.owner, slot, l->lease_text, l->conf.model, l->conf.numerics,
                      l->conf.numerics_change ? "true" : "false", NULL);
    int rc = n < 0 ? -1 : 0;
    for (int i = 0; i < n && rc == 0 && l->held_count < HELD_MAX; i++)
        rc = hold(l, r, i, db_bool(r, i, 6), db_bool(r, i, 7), e);
    db_result_free(r);
    return rc;
}

/* One round.  The lease counts from when the renewal was sent, so the database's clock does not
 * matter.  Who has lost a shard is about to leave and takes none: it would keep its successor,
 * which may be late with a renewal itself, from going on. */
static void round_once(struct lease *l)
{
    struct err e = {0};
    int64_t sent = clock_mono_ms();
    if (renew(l, &e) == 0) {
        atomic_store(&l->good_ms, sent);
        if (lease_lost(l) || take(l, &e) == 0) {
            atomic_store(&l->started, true);
            return;
        }
    }
    log_warn("lease.round_failed", "why=\"%s\"", e.text);
}

static void wait_ms(struct lease *l, int64_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (!l->stop && pthread_cond_timedwait(&l->wake, &l->lock, &until) == 0)
        ;
}

/* A database that is away is tried more often; so are shards that another worker still has. */
static int64_t pause_ms(const struct lease *l)
{
    int64_t ms = l->conf.lease_ms / 5;
    bool eager = !lease_good(l) || l->held_count < l->conf.shards;
    return eager && ms > EAGER_MS ? EAGER_MS : ms;
}

static void *run(void *arg)
{
    struct lease *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->stop) {
        pthread_mutex_unlock(&l->lock);
        round_once(l);
        pthread_mutex_lock(&l->lock);
        wait_ms(l, pause_ms(l));
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

struct lease *lease_open(const struct lease_conf *conf, struct err *e)
{
    struct lease *l = calloc(1, sizeof *l);
    if (!l) {
        err_set(e, ERR_RETRY, "out of memory for leases");
        return NULL;
    }
    l->conf = *conf;
    l->last = &l->first;
    atomic_store(&l->good_ms, clock_mono_ms() - conf->lease_ms);
    snprintf(l->lease_text, sizeof l->lease_text, "%" PRId64 " milliseconds", conf->lease_ms);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&l->lock, NULL);
    l->db = db_create(conf->postgres, "tinworks-worker-lease", e);
    if (!l->db) goto fail;
    if (pthread_create(&l->thread, NULL, run, l)) {
        err_set(e, ERR_RETRY, "could not start the lease thread");
        goto fail;
    }
    l->running = true;
    return l;
fail:
    lease_close(l, LEASE_KEPT);
    return NULL;
}

bool lease_next(struct lease *l, struct lease_event *out)
{
    pthread_mutex_lock(&l->lock);
    struct event_node *n = l->first;
    if (n) {
        l->first = n->next;
        if (!l->first) l->last = &l->first;
    }
    pthread_mutex_unlock(&l->lock);
    if (!n) return false;
    *out = n->event;
    free(n);
    return true;
}

bool lease_good(const struct lease *l)
{
    return clock_mono_ms() - atomic_load(&l->good_ms) < l->conf.lease_ms * 4 / 5;
}

int lease_wait_good(struct lease *l, struct err *e)
{
    if (lease_good(l) && !atomic_load(&l->lost)) return 0;
    log_warn("lease.paused", "owner=%s", l->conf.owner);
    int64_t since_ms = clock_mono_ms();
    bool told = false;
    while (!lease_good(l) && !atomic_load(&l->lost)) {
        if (stop_requested()) return err_set(e, ERR_RETRY, "no lease to publish under at the stop");
        if (!told && clock_mono_ms() - since_ms > AWAY_MS) {
            log_error("lease.away", "owner=%s s=%d", l->conf.owner, AWAY_MS / 1000);
            told = true;
        }
        clock_sleep_ms(20);
    }
    if (atomic_load(&l->lost))
        return err_set(e, ERR_LOST, "a shard was taken over by another worker");
    log_info("lease.resumed", "owner=%s", l->conf.owner);
    return 0;
}

bool lease_lost(const struct lease *l)
{
    return atomic_load(&l->lost);
}

bool lease_started(const struct lease *l)
{
    return atomic_load(&l->started);
}

static void release_all(struct lease *l, bool drained)
{
    struct err e = {0};
    if (db_queryf(l->db, NULL, &e,
                  "UPDATE shards SET lease_until = clock_timestamp(), drained = $3::boolean"
                  " WHERE model = $1 AND owner = $2",
                  l->conf.model, l->conf.owner, drained ? "true" : "false", NULL) < 0)
        log_err("lease.release", &e);
}

void lease_close(struct lease *l, enum lease_end how)
{
    if (!l) return;
    if (l->running) {
        pthread_mutex_lock(&l->lock);
        l->stop = true;
        pthread_cond_signal(&l->wake);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    if (how != LEASE_KEPT) release_all(l, how == LEASE_DRAINED);
    for (struct lease_event ev; lease_next(l, &ev);)
        ;
    db_free(l->db);
    pthread_cond_destroy(&l->wake);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

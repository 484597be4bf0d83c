/* expiry.c - see expiry.h.
 *
 * How long a client is silent is measured here, with a clock that does not jump: the last sign of
 * life is read twice, expire_s apart, and only compared.  What time Postgres thinks it is does not
 * matter. */
#include "expiry.h"

#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "db/db.h"
#include "wire/job.h"
#include "wire/payload.h"

#define ROUND_MS    10000
#define ASK_MAX     100   /* questions a round */
#define WATCHED_MAX 65536 /* runs that are watched at a time; more wait for their turn */
#define MARK_SIZE   48
#define PRODUCE_MS  5000
#define EXPIRE_TEXT "a job before this one never came: the client is gone, or it took too long"

/* A run behind a gap. */
struct watched {
    char run[ID_SIZE];
    char mark[MARK_SIZE]; /* its client's last sign of life, as Postgres wrote it */
    int64_t ask_ms;       /* when to look whether that is still the last */
    LIST_ENTRY(watched) link;
};

struct expiry {
    const struct settings *settings;
    struct bus_producer *producer;
    struct stats *stats;
    struct db *db;
    int64_t round_ms;
    int left;     /* questions in this round */
    void *by_run; /* tsearch tree of struct watched */
    LIST_HEAD(, watched) all;
    int watched_count;
};

/* ---------------------------------------------------------------- who is watched */

static int watched_cmp(const void *a, const void *b)
{
    return strcmp(((const struct watched *)a)->run, ((const struct watched *)b)->run);
}

static struct watched *watched_find(struct expiry *x, const char *run)
{
    struct watched key = {0};
    snprintf(key.run, sizeof key.run, "%s", run);
    void *at = tfind(&key, &x->by_run, watched_cmp);
    return at ? *(struct watched **)at : NULL;
}

static void watched_free(struct expiry *x, struct watched *it)
{
    tdelete(it, &x->by_run, watched_cmp);
    LIST_REMOVE(it, link);
    x->watched_count--;
    free(it);
}

/* NULL: there is no room, a later round will do. */
static struct watched *watched_add(struct expiry *x, const char *run)
{
    if (x->watched_count == WATCHED_MAX) return NULL;
    struct watched *it = calloc(1, sizeof *it);
    if (!it) return NULL;
    snprintf(it->run, sizeof it->run, "%s", run);
    if (!tsearch(it, &x->by_run, watched_cmp)) {
        free(it);
        return NULL;
    }
    LIST_INSERT_HEAD(&x->all, it, link);
    x->watched_count++;
    return it;
}

/* Nobody asked about it when it was due: its gap was filled. */
static void forget_past(struct expiry *x, int64_t now_ms)
{
    int64_t long_ago_ms = now_ms - x->settings->expire_s * 1000 - 2 * ROUND_MS;
    for (struct watched *it = LIST_FIRST(&x->all), *next; it; it = next) {
        next = LIST_NEXT(it, link);
        if (it->ask_ms < long_ago_ms) watched_free(x, it);
    }
}

/* ---------------------------------------------------------------- birth and death */

struct expiry *expiry_create(const struct settings *s, struct bus_producer *producer,
                             struct stats *stats, struct err *e)
{
    struct expiry *x = calloc(1, sizeof *x);
    if (!x) {
        err_set(e, ERR_RETRY, "no memory for the expiry");
        return NULL;
    }
    x->settings = s;
    x->producer = producer;
    x->stats = stats;
    x->db = db_create(s->postgres, "tinworks-dispatcher-expiry", e);
    if (x->db) return x;
    free(x);
    return NULL;
}

void expiry_free(struct expiry *x)
{
    if (!x) return;
    while (!LIST_EMPTY(&x->all))
        watched_free(x, LIST_FIRST(&x->all));
    db_free(x->db);
    free(x);
}

void expiry_begin(struct expiry *x, int64_t now_ms)
{
    x->left = 0;
    int64_t round_ms =
        x->settings->expire_s * 1000 < ROUND_MS ? x->settings->expire_s * 1000 : ROUND_MS;
    if (now_ms - x->round_ms < round_ms) return;
    x->round_ms = now_ms;
    x->left = ASK_MAX;
    forget_past(x, now_ms);
}

/* ---------------------------------------------------------------- a run */

/* 1 with the account and the last sign of life, 0 when there is no such run, -1. */
static int last_sign(struct expiry *x, const char *run, char account[TENANT_SIZE],
                     char mark[MARK_SIZE], struct err *e)
{
    struct db_result *rows = NULL;
    int count = db_queryf(x->db, &rows, e,
                          "SELECT r.account_id, extract(epoch from greatest(s.heartbeat_at,"
                          " r.last_request_at))::text FROM runs r"
                          " JOIN sessions s ON s.id = r.session_id WHERE r.id = $1",
                          run, NULL);
    if (count > 0) {
        snprintf(account, TENANT_SIZE, "%s", db_text(rows, 0, 0));
        snprintf(mark, MARK_SIZE, "%s", db_text(rows, 0, 1));
    }
    db_result_free(rows);
    return count;
}

/* 1 when the client has given no sign of life for expire_s, 0 when it is too early to say, -1. */
static int silent(struct expiry *x, const char *run, char account[TENANT_SIZE], struct err *e)
{
    char mark[MARK_SIZE];
    struct watched *it = watched_find(x, run);
    int found = last_sign(x, run, account, mark, e);
    if (found <= 0) return found;
    if (it && !strcmp(it->mark, mark)) return 1;
    if (!it) it = watched_add(x, run);
    if (!it) return 0;
    snprintf(it->mark, sizeof it->mark, "%s", mark);
    it->ask_ms = clock_mono_ms() + x->settings->expire_s * 1000;
    return 0;
}

/* The id is nobody's future; it only names the record. */
static struct job *expire_job(const char *run, const char *account, struct err *e)
{
    char id[ID_SIZE + 32];
    size_t size;
    snprintf(id, sizeof id, "%s:expire:%" PRId64, run, clock_wall_ms());
    char *payload = reject_encode(EXPIRE_TEXT, &size, e);
    if (!payload) return NULL;
    struct job *job = job_create(id, JOB_EXPIRE, account, run, 0, CONTENT_JSON, payload, size, e);
    free(payload);
    if (job) snprintf(job->source, sizeof job->source, "dispatcher");
    return job;
}

static int append(struct expiry *x, const char *run, const char *account, const char *topic,
                  int partition, struct err *e)
{
    struct job_scratch scratch;
    struct header headers[WIRE_HEADERS_MAX];
    struct job *job = expire_job(run, account, e);
    if (!job) return -1;
    struct bus_record record = {.topic = topic,
                                .partition = partition,
                                .key = run,
                                .headers = headers,
                                .header_count = job_headers(job, &scratch, headers),
                                .value = job->payload,
                                .size = job->size};
    failpoint_pass("dp.before_expire", run);
    int64_t offset = bus_produce_wait(x->producer, &record, PRODUCE_MS, e);
    job_free(job);
    if (offset < 0) return -1;
    failpoint_pass("dp.after_expire", run);
    atomic_fetch_add(&x->stats->expired, 1);
    log_info("dispatcher.expire", "run=%s topic=%s partition=%d offset=%lld", run, topic, partition,
             (long long)offset);
    return 0;
}

int expiry_consider(struct expiry *x, const char *run, const char *topic, int partition,
                    bool overdue, struct err *e)
{
    char account[TENANT_SIZE], mark[MARK_SIZE];
    struct err why = {0};
    struct watched *it = watched_find(x, run);
    if (x->left <= 0 || (!overdue && it && clock_mono_ms() < it->ask_ms)) return 0;
    x->left--;
    int over = overdue ? last_sign(x, run, account, mark, &why) : silent(x, run, account, &why);
    if (over > 0 && append(x, run, account, topic, partition, &why) == 0) {
        if ((it = watched_find(x, run))) watched_free(x, it);
        return 1;
    }
    if (!why.kind) return 0;
    if (why.kind == ERR_LOST || why.kind == ERR_BUG)
        return err_set(e, why.kind, "giving up run \"%s\": %s", run, why.text);
    log_warn("dispatcher.expire", "run=%s error=\"%s\"", run, why.text);
    x->left = 0;
    return 0;
}

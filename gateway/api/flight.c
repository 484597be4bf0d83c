/* flight.c - see flight.h. */
#include "api/flight.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cache.h"
#include "base/clock.h"

#define BUCKETS     4096
#define WINDOW_BITS 256 /* numbers above the first missing one that are told apart */

struct holder {
    struct holder *next;
    char account[TENANT_SIZE];
    int64_t tokens;
    int jobs; /* it lives as long as it has any */
};

struct flying {
    struct flying *next;
    struct holder *holder;
    char id[ID_SIZE], model[MODEL_NAME_SIZE];
    enum stream stream;
    int partition;
    int64_t offset; /* -1: not known yet */
    int64_t tokens, check_ms;
};

/* Which numbers of a run were let in: all below `next`, and above it those whose bit is set. */
struct numbers {
    int64_t next; /* -1: not known */
    uint8_t above[WINDOW_BITS];
};

struct flight {
    pthread_mutex_t lock; /* of everything */
    struct flying *jobs[BUCKETS];
    struct holder *holders[BUCKETS];
    struct cache *runs; /* run -> struct numbers */
    int count, check_at, holdings_at;
};

struct flight *flight_create(struct err *e)
{
    struct flight *f = calloc(1, sizeof *f);
    if (!f) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&f->lock, NULL);
    f->runs = cache_create(FLIGHT_RUNS_MAX, sizeof(struct numbers), e);
    if (f->runs) return f;
    flight_free(f);
    return NULL;
}

void flight_free(struct flight *f)
{
    if (!f) return;
    for (int b = 0; b < BUCKETS; b++) {
        for (struct flying *j = f->jobs[b], *next; j; j = next) {
            next = j->next;
            free(j);
        }
        for (struct holder *h = f->holders[b], *next; h; h = next) {
            next = h->next;
            free(h);
        }
    }
    cache_free(f->runs);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

/* ---------------------------------------------------------------- numbers of a run */

static struct numbers numbers_of(struct flight *f, const char *run)
{
    struct numbers n;
    int64_t put_ms;
    if (!cache_get(f->runs, run, &n, &put_ms)) n = (struct numbers){.next = -1};
    return n;
}

/* Everything below `next` is there; moves on over what came early. */
static void advance(struct numbers *n, int64_t next)
{
    int64_t by = n->next < 0 ? WINDOW_BITS : next - n->next;
    n->next = next;
    if (by >= WINDOW_BITS) {
        memset(n->above, 0, sizeof n->above);
        return;
    }
    memmove(n->above, n->above + by, (size_t)(WINDOW_BITS - by));
    memset(n->above + WINDOW_BITS - by, 0, (size_t)by);
}

static void mark(struct numbers *n, int64_t seq)
{
    if (n->next < 0 && seq) return;
    if (n->next < 0) n->next = 0; /* its creation: from here on we see everything */
    if (seq < n->next) return;
    int64_t at = seq - n->next;
    n->above[at < WINDOW_BITS ? at : WINDOW_BITS - 1] = 1;
    while (n->above[0])
        advance(n, n->next + 1);
}

/* Must it be let in, because what is in flight may wait for it?  Not so when it is sure that no
 * number below one that was let in is missing, nor when it comes too early by far. */
static bool needed(const struct numbers *n, int64_t seq)
{
    if (n->next < 0) return true;
    return memchr(n->above, 1, sizeof n->above) && seq - n->next < WINDOW_BITS;
}

/* ---------------------------------------------------------------- the table */

static unsigned bucket_of(const char *text)
{
    uint64_t h = 14695981039346656037u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    return (unsigned)(h ^ h >> 32) % BUCKETS;
}

static struct flying **place_of(struct flight *f, const char *id)
{
    struct flying **at = &f->jobs[bucket_of(id)];
    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    return at;
}

static struct holder **holder_of(struct flight *f, const char *account)
{
    struct holder **at = &f->holders[bucket_of(account)];
    while (*at && strcmp((*at)->account, account) != 0)
        at = &(*at)->next;
    return at;
}

/* What there is no memory or room for is not counted. */
static void count_in(struct flight *f, struct holder **place, const struct job *job,
                     const char *model, int64_t now_ms)
{
    struct flying *j = f->count < FLIGHT_JOBS_MAX ? calloc(1, sizeof *j) : NULL;
    struct holder *h = *place;
    if (j && !h && (h = calloc(1, sizeof *h))) {
        snprintf(h->account, sizeof h->account, "%s", job->tenant);
        *place = h;
    }
    if (!j || !h) {
        free(j);
        return;
    }
    unsigned b = bucket_of(job->id);
    *j = (struct flying){.next = f->jobs[b],
                         .holder = h,
                         .stream = job_kind_is_train(job->kind) ? STREAM_TRAIN : STREAM_SAMPLE,
                         .partition = job->partition,
                         .offset = -1,
                         .tokens = job->tokens,
                         .check_ms = now_ms + FLIGHT_CHECK_MS};
    memcpy(j->id, job->id, sizeof j->id);
    snprintf(j->model, sizeof j->model, "%s", model);
    f->jobs[b] = j;
    f->count++;
    h->jobs++;
    h->tokens += j->tokens;
}

static void count_out(struct flight *f, struct flying **at)
{
    struct flying *j = *at;
    struct holder *h = j->holder;
    *at = j->next;
    f->count--;
    h->jobs--;
    h->tokens -= j->tokens;
    free(j);
    if (h->jobs) return;
    *holder_of(f, h->account) = h->next;
    free(h);
}

/* ---------------------------------------------------------------- the door */

static bool admit(struct flight *f, const struct job *job, const char *model,
                  struct flight_room room, int64_t now_ms)
{
    bool train = job_kind_is_train(job->kind);
    struct numbers n = {0};
    struct holder **holder = holder_of(f, job->tenant);
    if (*place_of(f, job->id)) return true;
    if (train) n = numbers_of(f, job->parent);
    bool again = train && n.next > job->seq; /* a repeated call: it was let in once */
    int64_t there = train ? 0 : room.elsewhere, here = *holder ? (*holder)->tokens : 0;
    bool any = there || *holder;
    bool full = room.max && job->tokens && any && there + here + job->tokens > room.max;
    if (full && !again && (!train || !needed(&n, job->seq))) return false;
    if (job->tokens && !again) count_in(f, holder, job, model, now_ms);
    if (train && !again) {
        mark(&n, job->seq);
        cache_put(f->runs, job->parent, &n, now_ms);
    }
    return true;
}

bool flight_admit(struct flight *f, const struct job *job, const char *model,
                  struct flight_room room, int64_t now_ms)
{
    pthread_mutex_lock(&f->lock);
    bool in = admit(f, job, model, room, now_ms);
    pthread_mutex_unlock(&f->lock);
    return in;
}

/* Of a job that was published twice the first record counts, and the second is further on: a log
 * that is done with up to there is done with the first one too. */
void flight_published(struct flight *f, const char *job_id, int64_t offset)
{
    pthread_mutex_lock(&f->lock);
    struct flying *j = *place_of(f, job_id);
    if (j) j->offset = offset;
    pthread_mutex_unlock(&f->lock);
}

bool flight_knows(struct flight *f, const char *run, int64_t seq)
{
    pthread_mutex_lock(&f->lock);
    struct numbers n = numbers_of(f, run);
    pthread_mutex_unlock(&f->lock);
    if (n.next < 0 || seq >= n.next + WINDOW_BITS) return false;
    return seq < n.next || n.above[seq - n.next];
}

/* Cuts the last ":part" off text and returns the part; NULL: there is none. */
static char *cut_last(char *text)
{
    char *colon = strrchr(text, ':');
    if (!colon) return NULL;
    *colon = '\0';
    return colon + 1;
}

/* <run>:<kind>:<seq>:<tag>: a run's jobs are decided in order, so all up to this one were there. */
static void learn(struct flight *f, const char *id)
{
    char run[ID_SIZE];
    snprintf(run, sizeof run, "%s", id);
    if (!strstr(run, ":train:") || !cut_last(run)) return;
    const char *seq = cut_last(run);
    if (!seq || !cut_last(run)) return;
    struct numbers n = numbers_of(f, run);
    int64_t next = strtoll(seq, NULL, 10) + 1;
    if (next <= n.next) return;
    advance(&n, next);
    while (n.above[0])
        advance(&n, n.next + 1);
    cache_put(f->runs, run, &n, clock_mono_ms());
}

void flight_settled(struct flight *f, const char *job_id)
{
    pthread_mutex_lock(&f->lock);
    struct flying **at = place_of(f, job_id);
    if (*at) {
        count_out(f, at);
        learn(f, job_id);
    }
    pthread_mutex_unlock(&f->lock);
}

void flight_dropped(struct flight *f, const char *job_id)
{
    pthread_mutex_lock(&f->lock);
    struct flying **at = place_of(f, job_id);
    if (*at) count_out(f, at);
    pthread_mutex_unlock(&f->lock);
}

static json_t *describe(const struct flying *j)
{
    json_t *at = j->offset < 0 ? json_null() : json_integer(j->offset);
    return json_pack("{s:s, s:s, s:s, s:i, s:o}", "id", j->id, "model", j->model, "stream",
                     stream_name(j->stream), "partition", j->partition, "at", at);
}

char *flight_due(struct flight *f, int64_t now_ms)
{
    json_t *list = json_array();
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < BUCKETS && json_array_size(list) < FLIGHT_CHECK_MAX; i++) {
        for (struct flying *j = f->jobs[f->check_at];
             j && json_array_size(list) < FLIGHT_CHECK_MAX; j = j->next) {
            if (j->check_ms > now_ms) continue;
            j->check_ms = now_ms + FLIGHT_CHECK_MS;
            json_array_append_new(list, describe(j)); /* without memory it is asked for later */
        }
        f->check_at = (f->check_at + 1) % BUCKETS;
    }
    pthread_mutex_unlock(&f->lock);
    char *text = json_array_size(list) ? json_dumps(list, JSON_COMPACT) : NULL;
    json_decref(list);
    return text;
}

int64_t flight_tokens(struct flight *f, const char *account)
{
    pthread_mutex_lock(&f->lock);
    struct holder *h = *holder_of(f, account);
    int64_t tokens = h ? h->tokens : 0;
    pthread_mutex_unlock(&f->lock);
    return tokens;
}

int flight_jobs(struct flight *f)
{
    pthread_mutex_lock(&f->lock);
    int n = f->count;
    pthread_mutex_unlock(&f->lock);
    return n;
}

/* A bucket that is left in its middle gets its turn in the next round. */
int flight_holdings(struct flight *f, struct flight_holding *out, int max)
{
    int n = 0;
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < BUCKETS && n < max; i++) {
        for (const struct holder *h = f->holders[f->holdings_at]; h && n < max; h = h->next) {
            memcpy(out[n].account, h->account, sizeof out[n].account);
            out[n++].tokens = h->tokens;
        }
        f->holdings_at = (f->holdings_at + 1) % BUCKETS;
    }
    pthread_mutex_unlock(&f->lock);
    return n;
}

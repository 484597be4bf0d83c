/* batcher.c - see batcher.h.
 *
 * A run keeps its ordered jobs in a list by seq; what could run now (the head, and for passes the
 * unbroken chain behind it) is its offer.  An account keeps, for each class, the runs that have an
 * offer, oldest next job first. A batch is built job by job: the account that was served least, its
 * oldest offer.  Trees (tsearch) find runs, accounts and jobs by name, so nothing here is linear in
 * the jobs held but the walk to a late job's place. */
#include "plan/batcher.h"

#include <assert.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#define CLASS_COUNT 3

struct job {
    struct run *run; /* run and seq are the key in the tree */
    int64_t seq;
    int64_t tokens, added_ms;
    uint64_t order; /* of arrival */
    enum batch_class cls;
    bool out; /* handed out, not done yet */
    void *tag;
    struct job *prev, *next;
};

/* A run in one of its account's lists; head NULL: it is in none. */
struct offer {
    struct run *run;
    struct job *head;
    struct offer *prev, *next;
};

struct run {
    char *id;                /* the key in the tree */
    struct account *account; /* NULL until its first job */
    int64_t applied;
    bool known;                             /* applied means something */
    bool settled;                           /* applied will not move down any more */
    struct job *first, *last;               /* ordered, by seq; handed out ones are in front */
    struct job *sample_first, *sample_last; /* in order of arrival, handed out ones too */
    struct job *chain_last;                 /* last of the ordered jobs that are on offer */
    int out;                                /* ordered jobs handed out */
    struct offer offers[CLASS_COUNT];
};

struct account {
    char *id; /* the key in the tree */
    int64_t served;
    int runs, jobs;
    int64_t passed_over; /* the batch in which its next job did not fit */
    struct offer *first[CLASS_COUNT], *last[CLASS_COUNT];
    struct account *prev, *next;
};

struct batcher {
    struct batcher_conf conf;
    void *runs, *accounts, *jobs; /* tsearch trees */
    struct account *account_list;
    int account_count, sweep_at;
    int job_count, held;
    uint64_t order;
    int64_t level; /* what the least served of the busy accounts had when it was last picked */
    int64_t batch;
    int offered_jobs[CLASS_COUNT];
    int64_t offered_tokens[CLASS_COUNT];
    struct job **picked; /* jobs_max */
};

/* ---------------------------------------------------------------- names */

static int run_cmp(const void *a, const void *b)
{
    return strcmp(((const struct run *)a)->id, ((const struct run *)b)->id);
}

static int account_cmp(const void *a, const void *b)
{
    return strcmp(((const struct account *)a)->id, ((const struct account *)b)->id);
}

static int job_cmp(const void *a, const void *b)
{
    const struct job *x = a, *y = b;
    if (x->run != y->run) return (uintptr_t)x->run < (uintptr_t)y->run ? -1 : 1;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static struct run *run_find(const struct batcher *b, const char *id)
{
    struct run key = {.id = (char *)id};
    void *at = tfind(&key, &b->runs, run_cmp);
    return at ? *(struct run **)at : NULL;
}

static struct job *job_find(const struct batcher *b, struct run *run, int64_t seq)
{
    struct job key = {.run = run, .seq = seq};
    void *at = tfind(&key, &b->jobs, job_cmp);
    return at ? *(struct job **)at : NULL;
}

static struct run *run_get(struct batcher *b, const char *id, struct err *e)
{
    struct run *run = run_find(b, id);
    if (run) return run;
    run = calloc(1, sizeof *run);
    if (run) run->id = strdup(id);
    if (!run || !run->id || !tsearch(run, &b->runs, run_cmp)) {
        if (run) free(run->id);
        free(run);
        err_set(e, ERR_RETRY, "no memory for run \"%s\"", id);
        return NULL;
    }
    for (int c = 0; c < CLASS_COUNT; c++)
        run->offers[c].run = run;
    return run;
}

/* ---------------------------------------------------------------- accounts */

static void account_free(struct batcher *b, struct account *a)
{
    tdelete(a, &b->accounts, account_cmp);
    if (a->prev)
        a->prev->next = a->next;
    else
        b->account_list = a->next;
    if (a->next) a->next->prev = a->prev;
    b->account_count--;
    free(a->id);
    free(a);
}

/* An idle account at or below the level would start at the level again, so forgetting it changes
 * nothing. */
static void accounts_sweep(struct batcher *b)
{
    if (b->account_count < b->sweep_at) return;
    for (struct account *a = b->account_list, *next; a; a = next) {
        next = a->next;
        if (!a->runs && !a->jobs && a->served <= b->level) account_free(b, a);
    }
    b->sweep_at = 2 * b->account_count + 64;
}

static struct account *account_get(struct batcher *b, const char *id, struct err *e)
{
    struct account key = {.id = (char *)id};
    void *at = tfind(&key, &b->accounts, account_cmp);
    if (at) return *(struct account **)at;
    accounts_sweep(b);
    struct account *a = calloc(1, sizeof *a);
    if (a) a->id = strdup(id);
    if (!a || !a->id || !tsearch(a, &b->accounts, account_cmp)) {
        if (a) free(a->id);
        free(a);
        err_set(e, ERR_RETRY, "no memory for account \"%s\"", id);
        return NULL;
    }
    a->next = b->account_list;
    if (a->next) a->next->prev = a;
    b->account_list = a;
    b->account_count++;
    return a;
}

static int64_t cost(int64_t tokens)
{
    return tokens > 0 ? tokens : 1;
}

/* ---------------------------------------------------------------- offers */

static void offer_list(struct offer *o, enum batch_class cls, struct job *head)
{
    struct account *a = o->run->account;
    struct offer *after = a->last[cls];
    while (after && after->head->order > head->order)
        after = after->prev;
    o->head = head;
    o->prev = after;
    o->next = after ? after->next : a->first[cls];
    if (o->prev)
        o->prev->next = o;
    else
        a->first[cls] = o;
    if (o->next)
        o->next->prev = o;
    else
        a->last[cls] = o;
}

static void offer_unlist(struct offer *o, enum batch_class cls)
{
    struct account *a = o->run->account;
    if (o->prev)
        o->prev->next = o->next;
    else
        a->first[cls] = o->next;
    if (o->next)
        o->next->prev = o->prev;
    else
        a->last[cls] = o->prev;
    o->head = NULL;
    o->prev = o->next = NULL;
}

static void count_offered(struct batcher *b, const struct job *job, int sign)
{
    b->offered_jobs[job->cls] += sign;
    b->offered_tokens[job->cls] += sign * job->tokens;
}

static struct offer *run_offer(struct run *run)
{
    if (run->offers[CLASS_PASS].head) return &run->offers[CLASS_PASS];
    if (run->offers[CLASS_STEP].head) return &run->offers[CLASS_STEP];
    return NULL;
}

static void chain_extend(struct batcher *b, struct run *run)
{
    struct job *last = run->chain_last;
    while (last->cls == CLASS_PASS && last->next && last->next->cls == CLASS_PASS &&
           last->next->seq == last->seq + 1) {
        last = last->next;
        count_offered(b, last, 1);
    }
    run->chain_last = last;
}

/* Offers what is next in the run, if it may run now; takes in what joined the chain. */
static void run_open(struct batcher *b, struct run *run)
{
    struct job *head = run->first;
    if (run->out || !head) return;
    if (!run_offer(run)) {
        if (head->seq != run->applied + 1) return;
        offer_list(&run->offers[head->cls], head->cls, head);
        count_offered(b, head, 1);
        run->chain_last = head;
    }
    chain_extend(b, run);
}

static void run_close(struct batcher *b, struct run *run)
{
    struct offer *o = run_offer(run);
    if (!o) return;
    struct job *job = o->head;
    offer_unlist(o, job->cls);
    for (;; job = job->next) {
        count_offered(b, job, -1);
        if (job == run->chain_last) break;
    }
    run->chain_last = NULL;
}

static struct job *sample_waiting(struct job *job)
{
    while (job && job->out)
        job = job->next;
    return job;
}

/* ---------------------------------------------------------------- jobs */

static void list_insert(struct job **first, struct job **last, struct job *after, struct job *job)
{
    job->prev = after;
    job->next = after ? after->next : *first;
    if (job->prev)
        job->prev->next = job;
    else
        *first = job;
    if (job->next)
        job->next->prev = job;
    else
        *last = job;
}

static void list_remove(struct job **first, struct job **last, struct job *job)
{
    if (job->prev)
        job->prev->next = job->next;
    else
        *first = job->next;
    if (job->next)
        job->next->prev = job->prev;
    else
        *last = job->prev;
}

/* Unlinks and frees.  The run's ordered offer must be closed; a sample's is mended here. */
static void job_forget(struct batcher *b, struct job *job)
{
    struct run *run = job->run;
    if (job->cls == CLASS_SAMPLE) {
        struct offer *o = &run->offers[CLASS_SAMPLE];
        struct job *next = job->next;
        if (!job->out) count_offered(b, job, -1);
        bool offered = o->head == job;
        if (offered) offer_unlist(o, CLASS_SAMPLE);
        list_remove(&run->sample_first, &run->sample_last, job);
        next = sample_waiting(next);
        if (offered && next) offer_list(o, CLASS_SAMPLE, next);
    } else {
        if (job->out) run->out--;
        list_remove(&run->first, &run->last, job);
    }
    tdelete(job, &b->jobs, job_cmp);
    if (!job->out) b->held--;
    b->job_count--;
    run->account->jobs--;
    free(job);
}

/* Forgets the ordered jobs up to seq.  The run must be closed. */
static void run_pass(struct batcher *b, struct run *run, int64_t seq)
{
    while (run->first && run->first->seq <= seq) {
        struct job *job = run->first;
        if (!job->out && b->conf.dropped) b->conf.dropped(b->conf.dropped_arg, job->tag);
        job_forget(b, job);
    }
}

static void run_place(struct batcher *b, struct run *run, struct job *job)
{
    struct job *after = run->last;
    while (after && after->seq > job->seq)
        after = after->prev;
    /* A job that belongs before the chain's head (the start moved down) makes another offer. */
    if (!after) run_close(b, run);
    list_insert(&run->first, &run->last, after, job);
    run_open(b, run);
}

static void sample_place(struct batcher *b, struct run *run, struct job *job)
{
    struct offer *o = &run->offers[CLASS_SAMPLE];
    list_insert(&run->sample_first, &run->sample_last, run->sample_last, job);
    count_offered(b, job, 1);
    if (!o->head) offer_list(o, CLASS_SAMPLE, job);
}

/* ---------------------------------------------------------------- the door */

struct batcher *batcher_create(const struct batcher_conf *conf, struct err *e)
{
    if (conf->jobs_max < 1 || conf->tokens_max < 1 || conf->wait_ms < 0 || conf->queue_max < 1) {
        err_set(e, ERR_USER,
                "jobs_max %d, tokens_max %lld, queue_max %d must be at least 1 and wait_ms %d at "
                "least 0",
                conf->jobs_max, (long long)conf->tokens_max, conf->queue_max, conf->wait_ms);
        return NULL;
    }
    struct batcher *b = calloc(1, sizeof *b);
    if (b) b->picked = calloc((size_t)conf->jobs_max, sizeof(struct job *));
    if (!b || !b->picked) {
        free(b);
        err_set(e, ERR_RETRY, "no memory for a batcher");
        return NULL;
    }
    b->conf = *conf;
    b->sweep_at = 64;
    return b;
}

static void run_destroy(void *node)
{
    struct run *run = node;
    free(run->id);
    free(run);
}

static void account_destroy(void *node)
{
    struct account *a = node;
    free(a->id);
    free(a);
}

void batcher_free(struct batcher *b)
{
    if (!b) return;
    tdestroy(b->jobs, free);
    tdestroy(b->runs, run_destroy);
    tdestroy(b->accounts, account_destroy);
    free(b->picked);
    free(b);
}

int batcher_run_set(struct batcher *b, const char *id, int64_t applied, struct err *e)
{
    struct run *run = run_get(b, id, e);
    if (!run) return -1;
    run_close(b, run);
    run->applied = applied;
    run->known = run->settled = true;
    run_pass(b, run, applied);
    run_open(b, run);
    return 0;
}

void batcher_run_drop(struct batcher *b, const char *id, void (*dropped)(void *arg, void *tag),
                      void *arg)
{
    struct run *run = run_find(b, id);
    if (!run) return;
    run_close(b, run);
    while (run->first || run->sample_first) {
        struct job *job = run->first ? run->first : run->sample_first;
        if (!job->out && dropped) dropped(arg, job->tag);
        job_forget(b, job);
    }
    if (run->account) run->account->runs--;
    tdelete(run, &b->runs, run_cmp);
    run_destroy(run);
}

static bool is_past(struct run *run, const struct batcher_job *in)
{
    if (in->cls == CLASS_SAMPLE || !run->known || in->seq > run->applied) return false;
    return run->settled;
}

static int run_bind(struct batcher *b, struct run *run, const struct batcher_job *in, struct err *e)
{
    if (!run->account) {
        run->account = account_get(b, in->account, e);
        if (!run->account) return -1;
        run->account->runs++;
    }
    if (in->cls != CLASS_SAMPLE && (!run->known || in->seq <= run->applied)) {
        run->applied = in->seq - 1;
        run->known = true;
    }
    return 0;
}

int batcher_add(struct batcher *b, const struct batcher_job *in, int64_t now_ms, struct err *e)
{
    assert(in->cls >= CLASS_PASS && in->cls <= CLASS_SAMPLE && in->tokens >= 0);
    struct run *run = run_find(b, in->run);
    if (run && (is_past(run, in) || job_find(b, run, in->seq))) return 0;
    if (b->job_count >= b->conf.queue_max)
        return err_set(e, ERR_RETRY, "%d jobs wait already, the most there may be", b->job_count);
    if (!run && !(run = run_get(b, in->run, e))) return -1;

    struct job *job = calloc(1, sizeof *job);
    if (!job) return err_set(e, ERR_RETRY, "no memory for a job");
    *job = (struct job){.run = run,
                        .seq = in->seq,
                        .tokens = in->tokens,
                        .added_ms = now_ms,
                        .order = ++b->order,
                        .cls = in->cls,
                        .tag = in->tag};
    if (run_bind(b, run, in, e) < 0 || !tsearch(job, &b->jobs, job_cmp)) {
        free(job);
        return err_set(e, ERR_RETRY, "no memory for a job");
    }
    struct account *a = run->account;
    if (a->jobs++ == 0 && a->served < b->level) a->served = b->level;
    b->job_count++;
    b->held++;
    if (in->cls == CLASS_SAMPLE)
        sample_place(b, run, job);
    else
        run_place(b, run, job);
    return 1;
}

/* The offer that is first in line: of the account that was served least, its oldest.  NULL: none.
 */
static struct offer *next_offer(const struct batcher *b, enum batch_class cls, int64_t batch)
{
    struct offer *best = NULL;
    for (struct account *a = b->account_list; a; a = a->next) {
        struct offer *o = a->first[cls];
        if (!o || a->passed_over == batch) continue;
        const struct account *other = best ? best->run->account : NULL;
        if (!best || a->served < other->served ||
            (a->served == other->served && o->head->order < best->head->order))
            best = o;
    }
    return best;
}

static int64_t oldest_ms(const struct batcher *b, enum batch_class cls)
{
    int64_t oldest = -1;
    for (const struct account *a = b->account_list; a; a = a->next) {
        const struct offer *o = a->first[cls];
        if (o && (oldest < 0 || o->head->added_ms < oldest)) oldest = o->head->added_ms;
    }
    return oldest;
}

/* When the class's batch is due; -1: it has no jobs. */
static int64_t class_due_ms(const struct batcher *b, enum batch_class cls)
{
    if (!b->offered_jobs[cls]) return -1;
    int64_t since = oldest_ms(b, cls);
    bool full =
        b->offered_jobs[cls] >= b->conf.jobs_max || b->offered_tokens[cls] >= b->conf.tokens_max;
    return full ? since : since + b->conf.wait_ms;
}

static int class_pick(const struct batcher *b, int64_t now_ms, bool flush)
{
    struct offer *best = NULL;
    int best_cls = -1;
    for (int c = 0; c < CLASS_COUNT; c++) {
        int64_t due = class_due_ms(b, (enum batch_class)c);
        if (due < 0 || (!flush && due > now_ms)) continue;
        struct offer *o = next_offer(b, (enum batch_class)c, -1);
        int64_t served = o->run->account->served;
        if (best && served > best->run->account->served) continue;
        if (best && served == best->run->account->served && o->head->order > best->head->order)
            continue;
        best = o;
        best_cls = c;
    }
    return best_cls;
}

static struct job *offer_take(struct batcher *b, struct offer *o)
{
    struct run *run = o->run;
    struct job *job = o->head;
    offer_unlist(o, job->cls);
    count_offered(b, job, -1);
    job->out = true;
    b->held--;
    if (job->cls == CLASS_SAMPLE) {
        struct job *next = sample_waiting(job->next);
        if (next) offer_list(o, CLASS_SAMPLE, next);
    } else {
        run->out++;
        run->settled = true;
        if (job == run->chain_last)
            run->chain_last = NULL;
        else
            offer_list(o, job->cls, job->next);
    }
    struct account *a = run->account;
    if (a->served > b->level) b->level = a->served;
    a->served += cost(job->tokens);
    return job;
}

int batcher_due(struct batcher *b, int64_t now_ms, bool flush, void **tags)
{
    int cls = class_pick(b, now_ms, flush);
    if (cls < 0) return 0;
    b->batch++;
    int count = 0;
    int64_t tokens = 0;
    while (count < b->conf.jobs_max && (!count || tokens < b->conf.tokens_max)) {
        struct offer *o = next_offer(b, (enum batch_class)cls, b->batch);
        if (!o) break;
        if (count && tokens + o->head->tokens > b->conf.tokens_max) {
            o->run->account->passed_over = b->batch;
            continue;
        }
        struct job *job = offer_take(b, o);
        tokens += job->tokens;
        b->picked[count] = job;
        tags[count++] = job->tag;
    }
    /* What is left of a chain waits until the part that goes now is done. */
    for (int i = 0; i < count && cls != CLASS_SAMPLE; i++)
        run_close(b, b->picked[i]->run);
    return count;
}

void batcher_done(struct batcher *b, const char *id, int64_t seq, int64_t tokens)
{
    struct run *run = run_find(b, id);
    if (!run) return;
    struct job *job = job_find(b, run, seq);
    bool sample = job ? job->cls == CLASS_SAMPLE : !run->known;
    if (run->account)
        run->account->served += cost(tokens) - (job && job->out ? cost(job->tokens) : 0);
    if (sample) {
        if (!job) return;
        if (!job->out && b->conf.dropped) b->conf.dropped(b->conf.dropped_arg, job->tag);
        job_forget(b, job);
        return;
    }
    run_close(b, run);
    if (seq > run->applied) run->applied = seq;
    run->settled = true;
    /* Results come in seq order, so what lies below is past as well. */
    run_pass(b, run, run->applied);
    run_open(b, run);
}

int64_t batcher_next_ms(const struct batcher *b)
{
    int64_t next = -1;
    for (int c = 0; c < CLASS_COUNT; c++) {
        int64_t due = class_due_ms(b, (enum batch_class)c);
        if (due >= 0 && (next < 0 || due < next)) next = due;
    }
    return next;
}

int batcher_held(const struct batcher *b)
{
    return b->held;
}

bool batcher_behind_gap(const struct batcher *b, const char *id, int64_t *since_ms)
{
    struct run *run = run_find(b, id);
    if (!run || !run->first || run->out || run_offer(run)) return false;
    *since_ms = run->first->added_ms;
    return true;
}

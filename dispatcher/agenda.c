/* agenda.c - see agenda.h.
 *
 * The batcher decides; this keeps what the batcher's tags point to (items), which plan each is
 * in, and enough of each run to drop it whole.  Results may be read before their jobs (two
 * partitions, two fetches): a training run remembers how far it is, a sample's result leaves a mark
 * that its job takes away. */
#include "agenda.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "plan/batcher.h"

#define EARLY_MAX                                                                                  \
    65536 /* sample results whose jobs were not read yet; the oldest mark goes first */

LIST_HEAD(item_list, item);

struct run {
    char *id; /* the key in the tree */
    enum stream stream;
    int partition;
    int64_t heard_ms;
    bool gap_marked;
    int64_t gap_from_ms; /* not overdue by what it waited before */
    bool gap_anew;       /* gap_from_ms is the next look's, once it is not marked any more */
    struct item_list items;
    LIST_ENTRY(run) link;
};

struct plan {
    int64_t made_ms;
    bool stale;
    struct item_list items;
    TAILQ_ENTRY(plan) link;
};

/* A job that waits (plan NULL, the batcher holds it) or is in a plan. */
struct item {
    char *id; /* the key in the tree */
    struct run *run;
    struct plan *plan;
    int64_t seq, offset, tokens;
    LIST_ENTRY(item) of_run, of_plan;
};

struct early {
    uint64_t key; /* of the job id; 0: free */
};

struct agenda {
    struct agenda_conf conf;
    struct batcher *batcher;
    void *runs, *items, *early_tree; /* tsearch trees */
    LIST_HEAD(, run) run_list;
    TAILQ_HEAD(plan_list, plan) plans; /* oldest first */
    int active, known;
    int64_t plan_number;
    struct early *early; /* a ring */
    int early_next;
    void **tags; /* jobs_max */
};

/* ---------------------------------------------------------------- names */

static int run_cmp(const void *a, const void *b)
{
    return strcmp(((const struct run *)a)->id, ((const struct run *)b)->id);
}

static int item_cmp(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->id, ((const struct item *)b)->id);
}

static int early_cmp(const void *a, const void *b)
{
    uint64_t x = ((const struct early *)a)->key, y = ((const struct early *)b)->key;
    return x < y ? -1 : x > y;
}

static struct run *run_find(const struct agenda *a, const char *id)
{
    struct run key = {.id = (char *)id};
    void *at = tfind(&key, &a->runs, run_cmp);
    return at ? *(struct run **)at : NULL;
}

static struct item *item_find(const struct agenda *a, const char *id)
{
    struct item key = {.id = (char *)id};
    void *at = tfind(&key, &a->items, item_cmp);
    return at ? *(struct item **)at : NULL;
}

static struct run *run_get(struct agenda *a, const char *id, enum stream stream, int partition,
                           struct err *e)
{
    struct run *run = run_find(a, id);
    if (run) return run;
    run = calloc(1, sizeof *run);
    if (run) run->id = strdup(id);
    if (!run || !run->id || !tsearch(run, &a->runs, run_cmp)) {
        if (run) free(run->id);
        free(run);
        err_set(e, ERR_RETRY, "no memory for run \"%s\"", id);
        return NULL;
    }
    run->stream = stream;
    run->partition = partition;
    LIST_INSERT_HEAD(&a->run_list, run, link);
    return run;
}

/* ---------------------------------------------------------------- items and plans */

static void plan_leave(struct agenda *a, struct item *item)
{
    struct plan *plan = item->plan;
    if (!plan) return;
    LIST_REMOVE(item, of_plan);
    item->plan = NULL;
    if (!LIST_EMPTY(&plan->items)) return;
    if (!plan->stale) a->active--;
    TAILQ_REMOVE(&a->plans, plan, link);
    free(plan);
}

static void item_free(struct agenda *a, struct item *item)
{
    plan_leave(a, item);
    tdelete(item, &a->items, item_cmp);
    LIST_REMOVE(item, of_run);
    a->known--;
    free(item->id);
    free(item);
}

/* The batcher lets a job go that it never handed out. */
static void on_dropped(void *arg, void *tag)
{
    item_free(arg, tag);
}

static void run_forget(struct agenda *a, struct run *run)
{
    batcher_run_drop(a->batcher, run->id, on_dropped, a);
    while (!LIST_EMPTY(&run->items))
        item_free(a, LIST_FIRST(&run->items));
    tdelete(run, &a->runs, run_cmp);
    LIST_REMOVE(run, link);
    free(run->id);
    free(run);
}

/* ---------------------------------------------------------------- birth and death */

struct agenda *agenda_create(const struct agenda_conf *conf, struct err *e)
{
    struct agenda *a = calloc(1, sizeof *a);
    if (!a) {
        err_set(e, ERR_RETRY, "no memory for a slot's agenda");
        return NULL;
    }
    a->conf = *conf;
    LIST_INIT(&a->run_list);
    TAILQ_INIT(&a->plans);
    a->batcher = batcher_create(&(struct batcher_conf){.jobs_max = conf->jobs_max,
                                                       .tokens_max = conf->tokens_max,
                                                       .wait_ms = conf->wait_ms,
                                                       .queue_max = conf->queue_max,
                                                       .dropped = on_dropped,
                                                       .dropped_arg = a},
                                e);
    if (!a->batcher) goto fail;
    a->tags = calloc((size_t)conf->jobs_max, sizeof *a->tags);
    a->early = calloc(EARLY_MAX, sizeof *a->early);
    if (!a->tags || !a->early) {
        err_set(e, ERR_RETRY, "no memory for a slot's agenda");
        goto fail;
    }
    return a;
fail:
    agenda_free(a);
    return NULL;
}

static void leave_alone(void *node)
{
    (void)node; /* it lies in the ring */
}

void agenda_free(struct agenda *a)
{
    if (!a) return;
    while (!LIST_EMPTY(&a->run_list))
        run_forget(a, LIST_FIRST(&a->run_list));
    batcher_free(a->batcher);
    tdestroy(a->early_tree, leave_alone);
    free(a->early);
    free(a->tags);
    free(a);
}

/* ---------------------------------------------------------------- what the logs say */

/* A key of 0 means "free"; that one id in 2^64 has it costs one needless plan. */
static int early_add(struct agenda *a, const char *job_id, struct err *e)
{
    struct early *slot = &a->early[a->early_next];
    struct early key = {.key = seed_of(job_id)};
    if (!key.key || tfind(&key, &a->early_tree, early_cmp)) return 0;
    if (slot->key) tdelete(slot, &a->early_tree, early_cmp);
    *slot = key;
    if (!tsearch(slot, &a->early_tree, early_cmp)) {
        slot->key = 0;
        return err_set(e, ERR_RETRY, "no memory for a result's mark");
    }
    a->early_next = (a->early_next + 1) % EARLY_MAX;
    return 0;
}

static bool early_take(struct agenda *a, const char *job_id)
{
    if (!a->early_tree) return false;
    struct early key = {.key = seed_of(job_id)};
    void *at = tfind(&key, &a->early_tree, early_cmp);
    if (!at) return false;
    struct early *slot = *(struct early **)at;
    tdelete(slot, &a->early_tree, early_cmp);
    slot->key = 0;
    return true;
}

/* -1: a control record, which is never planned. */
static int class_of(enum job_kind kind)
{
    switch (kind) {
    case JOB_FORWARD:
    case JOB_FORWARD_BACKWARD:
        return CLASS_PASS;
    case JOB_CREATE:
    case JOB_OPTIM_STEP:
    case JOB_SAVE:
    case JOB_SAVE_SAMPLER:
    case JOB_LOAD:
    case JOB_REJECT:
        return CLASS_STEP;
    case JOB_SAMPLE:
    case JOB_COMPUTE_LOGPROBS:
        return CLASS_SAMPLE;
    default:
        return -1;
    }
}

static struct item *item_create(struct agenda *a, struct run *run, const struct job *job,
                                struct err *e)
{
    struct item *item = calloc(1, sizeof *item);
    if (item) item->id = strdup(job->id);
    if (!item || !item->id || !tsearch(item, &a->items, item_cmp)) {
        if (item) free(item->id);
        free(item);
        err_set(e, ERR_RETRY, "no memory for job \"%s\"", job->id);
        return NULL;
    }
    item->run = run;
    item->seq = job->seq;
    item->offset = job->offset;
    item->tokens = job->tokens;
    LIST_INSERT_HEAD(&run->items, item, of_run);
    a->known++;
    return item;
}

int agenda_job(struct agenda *a, enum stream stream, const struct job *job, int64_t now_ms,
               struct err *e)
{
    int cls = class_of(job->kind);
    if (cls < 0 || item_find(a, job->id)) return 0;
    if (cls == CLASS_SAMPLE && early_take(a, job->id)) return 0;
    struct run *run = run_get(a, job->parent, stream, job->partition, e);
    struct item *item = run ? item_create(a, run, job, e) : NULL;
    if (!item) return -1;
    run->heard_ms = now_ms;
    run->gap_marked = false;
    int added = batcher_add(a->batcher,
                            &(struct batcher_job){.run = job->parent,
                                                  .account = job->tenant,
                                                  .seq = job->seq,
                                                  .cls = (enum batch_class)cls,
                                                  .tokens = job->tokens,
                                                  .tag = item},
                            now_ms, e);
    if (added < 1) item_free(a, item);
    return added;
}

int agenda_result(struct agenda *a, enum stream stream, int partition, const struct result *r,
                  int64_t now_ms, struct err *e)
{
    struct run *run = run_find(a, r->parent);
    struct item *item = item_find(a, r->job_id);
    bool planned = item && item->plan; /* otherwise the batcher lets it go, and so it goes */
    if (stream == STREAM_SAMPLE && !item) return early_add(a, r->job_id, e);
    if (run) {
        run->heard_ms = now_ms;
        run->gap_marked = false;
        int64_t tokens = r->usage.prefill + r->usage.sample + r->usage.train;
        batcher_done(a->batcher, r->parent, r->seq, tokens);
    } else {
        run = run_get(a, r->parent, stream, partition, e);
        if (!run) return -1;
        run->heard_ms = now_ms;
        if (batcher_run_set(a->batcher, r->parent, r->seq, e) < 0) return -1;
    }
    if (planned) item_free(a, item);
    return 0;
}

void agenda_forget_shard(struct agenda *a, enum stream stream, int partition)
{
    for (struct run *run = LIST_FIRST(&a->run_list), *next; run; run = next) {
        next = LIST_NEXT(run, link);
        if (run->stream == stream && run->partition == partition) run_forget(a, run);
    }
}

/* ---------------------------------------------------------------- plans */

static void plan_fill(struct plan *plan, struct batch *batch, void **tags, int count)
{
    for (int i = count - 1; i >= 0; i--) {
        struct item *item = tags[i];
        struct batch_entry *out = &batch->entries[i];
        item->plan = plan;
        LIST_INSERT_HEAD(&plan->items, item, of_plan);
        out->stream = item->run->stream;
        out->partition = item->run->partition;
        out->offset = item->offset;
        out->tokens = item->tokens;
        memcpy(out->job_id, item->id, strlen(item->id) + 1);
        memcpy(out->run, item->run->id, strlen(item->run->id) + 1);
    }
}

int agenda_next(struct agenda *a, int64_t now_ms, struct batch **out, struct err *e)
{
    *out = NULL;
    int64_t due_ms = agenda_next_ms(a);
    if (due_ms < 0 || due_ms > now_ms) return 0;
    /* Before the batcher is asked: what it handed out without a plan would never leave it. */
    struct plan *plan = calloc(1, sizeof *plan);
    struct batch *batch = batch_create(a->plan_number + 1, a->conf.jobs_max, e);
    if (!plan || !batch) {
        free(plan);
        batch_free(batch);
        return err_set(e, ERR_RETRY, "no memory for a plan");
    }
    batch->count = batcher_due(a->batcher, now_ms, false, a->tags);
    if (!batch->count) {
        free(plan);
        batch_free(batch);
        return 0;
    }
    a->plan_number++;
    a->active++;
    plan->made_ms = now_ms;
    LIST_INIT(&plan->items);
    plan_fill(plan, batch, a->tags, batch->count);
    TAILQ_INSERT_TAIL(&a->plans, plan, link);
    *out = batch;
    return 1;
}

int64_t agenda_next_ms(const struct agenda *a)
{
    return a->active < a->conf.plans_max ? batcher_next_ms(a->batcher) : -1;
}

void agenda_tidy(struct agenda *a, int64_t now_ms)
{
    struct plan *plan;
    while ((plan = TAILQ_FIRST(&a->plans)) && now_ms - plan->made_ms >= a->conf.forget_ms)
        run_forget(a, LIST_FIRST(&plan->items)->run);
    TAILQ_FOREACH(plan, &a->plans, link)
    {
        if (plan->stale || now_ms - plan->made_ms < a->conf.stale_ms) continue;
        plan->stale = true;
        a->active--;
    }
    for (struct run *run = LIST_FIRST(&a->run_list), *next; run; run = next) {
        next = LIST_NEXT(run, link);
        bool idle = now_ms - run->heard_ms >= a->conf.idle_ms;
        if (idle && LIST_EMPTY(&run->items)) run_forget(a, run);
    }
}

int agenda_held(const struct agenda *a)
{
    return batcher_held(a->batcher);
}

int agenda_known(const struct agenda *a)
{
    return a->known;
}

int agenda_plans(const struct agenda *a)
{
    return a->active;
}

/* ---------------------------------------------------------------- gaps */

/* Is it behind a gap, and since when has the oldest of what waits there been waiting?  That counts, and not how old this
 * gap is: a client that closes one gap and leaves the next holds the shard's position up as well. */
static bool gap_look(const struct agenda *a, struct run *run, int64_t now_ms, int64_t *since_ms)
{
    if (!batcher_behind_gap(a->batcher, run->id, since_ms) || run->gap_marked) return false;
    if (run->gap_anew) run->gap_from_ms = now_ms;
    run->gap_anew = false;
    if (*since_ms < run->gap_from_ms) *since_ms = run->gap_from_ms;
    return true;
}

void agenda_gaps(struct agenda *a, int64_t now_ms, int64_t min_ms, int64_t overdue_ms,
                 void (*seen)(void *arg, const char *run, int partition, bool overdue), void *arg)
{
    struct run *run;
    LIST_FOREACH(run, &a->run_list, link)
    {
        int64_t since_ms;
        if (!gap_look(a, run, now_ms, &since_ms)) continue;
        bool overdue = now_ms - since_ms >= overdue_ms;
        if (!overdue && now_ms - run->heard_ms < min_ms) continue;
        seen(arg, run->id, run->partition, overdue);
    }
}

void agenda_gap_mark(struct agenda *a, const char *id)
{
    struct run *run = run_find(a, id);
    if (!run) return;
    run->gap_marked = run->gap_anew = true;
}

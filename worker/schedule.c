/* schedule.c - see schedule.h.
 *
 * A run is in the busy list while it holds a task.  Whatever takes tasks, takes them from the front
 * of a run's unbroken row, so that the order within the run is kept by construction; a run with a
 * task in the batcher is left to the batcher until those are out. */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>
#include "map.h"
#include "suspect.h"

#define QUEUE_MAX      65536 /* tasks in the batcher */
#define ANSWERED_MAX   64    /* runs remembered as answered just now */
#define COMPANY_MAX_US 100000
#define RETURN_MAX_US  1000000 /* a run that takes longer is not waited for */

struct plan {
    struct batch *batch;
    int64_t arrived_us;
    struct plan *next;
};

struct schedule {
    struct schedule_conf conf;
    struct schedule_stats stats;
    struct batcher *batcher;
    struct map *held; /* job id -> struct task */
    struct plan *plans, **plans_end;
    int plan_count;
    struct run *busy_first, *busy_last;
    struct run *answered[ANSWERED_MAX];
    int answered_at;
    int64_t pass_us; /* of a usual pass */
    int64_t batch_end_us;
    void **tags; /* jobs_max */
};

/* What is being built. */
struct draft {
    struct task **out;
    int count, jobs_max;
    int64_t tokens, tokens_max;
};

struct schedule *schedule_create(const struct schedule_conf *conf, struct err *e)
{
    struct schedule *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for a schedule");
        return NULL;
    }
    s->conf = *conf;
    s->plans_end = &s->plans;
    struct batcher_conf bc = {
        .jobs_max = conf->jobs_max, .tokens_max = conf->tokens_max, .queue_max = QUEUE_MAX};
    s->tags = calloc((size_t)conf->jobs_max, sizeof *s->tags);
    s->held = map_create(e);
    s->batcher = batcher_create(&bc, e);
    if (!s->tags) err_set(e, ERR_RETRY, "out of memory for a schedule");
    if (s->tags && s->held && s->batcher) return s;
    schedule_free(s);
    return NULL;
}

static void plan_drop(struct schedule *s)
{
    struct plan *p = s->plans;
    s->plans = p->next;
    if (!s->plans) s->plans_end = &s->plans;
    s->plan_count--;
    batch_free(p->batch);
    free(p);
}

void schedule_free(struct schedule *s)
{
    if (!s) return;
    while (s->plans)
        plan_drop(s);
    batcher_free(s->batcher);
    map_free(s->held);
    free(s->tags);
    free(s);
}

/* ---------------------------------------------------------------- what is there */

static void busy_add(struct schedule *s, struct run *run)
{
    if (run->busy) return;
    run->busy = true;
    run->busy_next = NULL;
    run->busy_prev = s->busy_last;
    if (s->busy_last)
        s->busy_last->busy_next = run;
    else
        s->busy_first = run;
    s->busy_last = run;
}

static void busy_remove(struct schedule *s, struct run *run)
{
    if (!run->busy) return;
    run->busy = false;
    if (run->busy_prev)
        run->busy_prev->busy_next = run->busy_next;
    else
        s->busy_first = run->busy_next;
    if (run->busy_next)
        run->busy_next->busy_prev = run->busy_prev;
    else
        s->busy_last = run->busy_prev;
}

static struct task *head(const struct run *run)
{
    if (run->paused) return NULL;
    return order_at(run->order, order_applied(run->order) + 1);
}

/* How long the run's client takes from an answer to its next job. */
static void came_back(struct run *run, int64_t now_us)
{
    int64_t us = now_us - run->answered_us;
    if (!run->answered_us || us > RETURN_MAX_US) return;
    run->return_us = run->return_us ? (3 * run->return_us + us) / 4 : us;
}

int schedule_task(struct schedule *s, struct task *t, struct err *e)
{
    if (map_put(s->held, t->job->id, t, e) < 0) return -1;
    if (!t->run->busy) came_back(t->run, t->arrived_us);
    busy_add(s, t->run);
    return 0;
}

static void answered_add(struct schedule *s, struct run *run)
{
    for (int i = 0; i < ANSWERED_MAX; i++)
        if (s->answered[i] == run) return;
    s->answered[s->answered_at] = run;
    s->answered_at = (s->answered_at + 1) % ANSWERED_MAX;
}

void schedule_done(struct schedule *s, struct task *t, int64_t now_us)
{
    struct run *run = t->run;
    map_take(s->held, t->job->id);
    batcher_done(s->batcher, run->id, t->job->seq, t->job->tokens);
    run->answered_us = s->batch_end_us = now_us;
    if (order_held(run->order)) return;
    busy_remove(s, run);
    answered_add(s, run);
}

void schedule_forget(struct schedule *s, struct task *t)
{
    map_take(s->held, t->job->id);
    if (!order_held(t->run->order)) busy_remove(s, t->run);
}

void schedule_run_drop(struct schedule *s, struct run *run)
{
    busy_remove(s, run);
    batcher_run_drop(s->batcher, run->id, NULL, NULL);
    run->fed = 0;
    for (int i = 0; i < ANSWERED_MAX; i++)
        if (s->answered[i] == run) s->answered[i] = NULL;
}

static void held_again(void *arg, void *item)
{
    ((struct task *)item)->state = TASK_HELD;
}

void schedule_put_back(struct schedule *s, struct run *run)
{
    batcher_run_drop(s->batcher, run->id, NULL, NULL);
    run->fed = 0;
    order_each(run->order, held_again, NULL);
}

bool schedule_ready(const struct schedule *s)
{
    for (const struct run *run = s->busy_first; run; run = run->busy_next)
        if (head(run)) return true;
    return false;
}

bool schedule_ready_of(const struct schedule *s, const struct shard *shard)
{
    for (const struct run *run = s->busy_first; run; run = run->busy_next)
        if (run->shard == shard && head(run)) return true;
    return false;
}

/* ---------------------------------------------------------------- plans */

void schedule_plan(struct schedule *s, struct batch *take_plan, int64_t now_us)
{
    struct plan *p = calloc(1, sizeof *p);
    if (!p) {
        batch_free(take_plan); /* a hint less */
        return;
    }
    if (s->plan_count == SCHEDULE_PLANS_MAX) {
        plan_drop(s);
        s->stats.plans_stale++;
    }
    *p = (struct plan){.batch = take_plan, .arrived_us = now_us};
    *s->plans_end = p;
    s->plans_end = &p->next;
    s->plan_count++;
}

/* The task may run now: first of its run's row that nobody chose, and of the draft's class. */
static bool fits(const struct draft *d, const struct task *t)
{
    if (t->state != TASK_HELD || t->run->fed || t->run->paused) return false;
    if (suspect_is(t->run, t)) return false;
    if (d->count == d->jobs_max) return false;
    if (d->count && d->tokens + t->job->tokens > d->tokens_max) return false;
    if (d->count && d->out[0]->cls != t->cls) return false;
    int64_t seq = order_applied(t->run->order) + 1;
    while (seq < t->job->seq) {
        const struct task *before = order_at(t->run->order, seq++);
        if (!before || before->state != TASK_TAKEN || before->cls != CLASS_PASS) return false;
    }
    return seq == t->job->seq && (t->cls == CLASS_PASS || head(t->run) == t);
}

static bool put(struct draft *d, struct task *t)
{
    if (!fits(d, t)) return false;
    t->state = TASK_TAKEN;
    d->tokens += t->job->tokens;
    d->out[d->count++] = t;
    return true;
}

enum plan_use { PLAN_USED, PLAN_STALE, PLAN_LATER };

static enum plan_use plan_put(struct schedule *s, struct draft *d, const struct plan *p,
                              int64_t now_us)
{
    bool used = false, later = false;
    for (int i = 0; i < p->batch->count; i++) {
        const struct batch_entry *entry = &p->batch->entries[i];
        if (entry->stream != STREAM_TRAIN) continue;
        struct task *t = map_get(s->held, entry->job_id);
        if (!t)
            later |= now_us - p->arrived_us < s->conf.plan_wait_us;
        else if (put(d, t))
            used = true;
        else if (t->state == TASK_HELD && !t->run->fed)
            later = true;
    }
    if (used) return PLAN_USED;
    return later ? PLAN_LATER : PLAN_STALE;
}

/* Fills the draft from plans, oldest first, as long as they are of one class and there is room. */
static void plans_put(struct schedule *s, struct draft *d, int64_t now_us)
{
    struct plan **at = &s->plans;
    while (*at && d->count < d->jobs_max) {
        struct plan *p = *at;
        enum plan_use use = plan_put(s, d, p, now_us);
        if (use == PLAN_LATER) {
            at = &p->next;
            continue;
        }
        if (use == PLAN_USED)
            s->stats.plans_used++;
        else
            s->stats.plans_stale++;
        *at = p->next;
        if (!p->next) s->plans_end = at;
        s->plan_count--;
        batch_free(p->batch);
        free(p);
    }
}

/* ---------------------------------------------------------------- without a plan */

/* Adds what else is ready to the draft that a plan began: the pass has room, and its plan may be a
 * while. */
static void fill(struct schedule *s, struct draft *d)
{
    for (struct run *run = s->busy_first; run && d->count < d->jobs_max; run = run->busy_next) {
        int64_t seq = order_applied(run->order) + 1;
        for (struct task *t; !run->paused && (t = order_at(run->order, seq)); seq++)
            if (t->state != TASK_TAKEN && !put(d, t)) break;
    }
}

static int feed_run(struct schedule *s, struct run *run, bool alone, int64_t now_us, struct err *e)
{
    int64_t seq = order_applied(run->order) + 1;
    if (!run->fed && batcher_run_set(s->batcher, run->id, seq - 1, e) < 0) return -1;
    for (struct task *t; (t = order_at(run->order, seq)); seq++) {
        if (t->state != TASK_HELD) continue;
        if (suspect_is(run, t)) return 0;
        if (!alone && now_us - t->arrived_us < s->conf.plan_wait_us) return 0;
        struct batcher_job job = {.run = run->id,
                                  .account = t->job->tenant,
                                  .seq = seq,
                                  .cls = t->cls,
                                  .tokens = t->job->tokens,
                                  .tag = t};
        int added = batcher_add(s->batcher, &job, t->arrived_us / 1000, e);
        if (added < 0 && e->kind == ERR_RETRY && run->fed) return 0; /* full: the rest later */
        if (added < 0) return -1;
        if (!added) return err_set(e, ERR_BUG, "job \"%s\" is a copy in the batcher", t->job->id);
        t->state = TASK_FED;
        run->fed++;
    }
    return 0;
}

static int self_plan(struct schedule *s, struct draft *d, bool alone, int64_t now_us, struct err *e)
{
    for (struct run *run = s->busy_first; run; run = run->busy_next)
        if (head(run) && feed_run(s, run, alone, now_us, e) < 0) return -1;
    int count = batcher_due(s->batcher, now_us / 1000, true, s->tags);
    for (int i = 0; i < count; i++) {
        struct task *t = s->tags[i];
        t->state = TASK_TAKEN;
        t->run->fed--;
        d->out[d->count++] = t;
    }
    if (count) s->stats.self_planned++;
    return 0;
}

/* ---------------------------------------------------------------- company */

/* The time a pass may give: a quarter of what a pass takes, but at least company_us. */
static int64_t patience_us(const struct schedule *s)
{
    int64_t us = s->pass_us / 4;
    if (us > COMPANY_MAX_US) us = COMPANY_MAX_US;
    return us > s->conf.company_us ? us : s->conf.company_us;
}

/* How long to wait for the runs that are expected within patience; 0: not at all.  Patience counts
 * from when the oldest job could have run; a run that is half its usual time late is given up. */
static int64_t company_wait_us(const struct schedule *s, int64_t now_us)
{
    int64_t since = now_us, until = 0;
    for (const struct run *run = s->busy_first; run; run = run->busy_next) {
        const struct task *t = head(run);
        if (t && t->arrived_us < since) since = t->arrived_us;
    }
    if (since < s->batch_end_us) since = s->batch_end_us;
    int64_t end = since + patience_us(s);
    for (int i = 0; i < ANSWERED_MAX; i++) {
        const struct run *run = s->answered[i];
        if (!run || head(run) || !run->return_us) continue;
        int64_t expected = run->answered_us + run->return_us;
        int64_t late = expected + run->return_us / 2;
        /* What it holds came before what is next: that is on its way. */
        if (run->busy) late = run->answered_us + RETURN_MAX_US;
        if (expected > end) continue;
        if (late > end) late = end;
        if (late > until) until = late;
    }
    return until > now_us ? until - now_us : 0;
}

/* Would a pass be next?  Steps never wait. */
static bool step_ready(const struct schedule *s)
{
    for (const struct run *run = s->busy_first; run; run = run->busy_next) {
        const struct task *t = head(run);
        if (t && t->cls == CLASS_STEP) return true;
    }
    return false;
}

void schedule_pass_took(struct schedule *s, int64_t us)
{
    s->pass_us = s->pass_us ? (3 * s->pass_us + us) / 4 : us;
}

/* ---------------------------------------------------------------- the next batch */

/* A job that a worker may have died of runs alone, before everything else. */
static struct task *take_suspect(struct schedule *s)
{
    for (struct run *run = s->busy_first; run; run = run->busy_next) {
        struct task *t = head(run);
        if (!t || t->state != TASK_HELD || run->fed || !suspect_is(run, t)) continue;
        t->state = TASK_TAKEN;
        return t;
    }
    return NULL;
}

static int64_t young_wait_us(const struct schedule *s, int64_t now_us)
{
    int64_t wait = -1;
    for (const struct run *run = s->busy_first; run; run = run->busy_next) {
        const struct task *t = head(run);
        if (!t) continue;
        int64_t left = t->arrived_us + s->conf.plan_wait_us - now_us;
        if (left < 0) left = 0;
        if (wait < 0 || left < wait) wait = left;
    }
    return wait;
}

int schedule_next(struct schedule *s, bool alone, int64_t now_us, struct task **out,
                  int64_t *wait_us, struct err *e)
{
    struct draft d = {.out = out, .jobs_max = s->conf.jobs_max, .tokens_max = s->conf.tokens_max};
    *wait_us = -1;
    if (!schedule_ready(s)) return 0;
    if ((out[0] = take_suspect(s))) return 1;
    int64_t company = step_ready(s) ? 0 : company_wait_us(s, now_us);
    if (company) {
        *wait_us = company;
        return 0;
    }
    plans_put(s, &d, now_us);
    if (d.count) {
        fill(s, &d);
        return d.count;
    }
    if (self_plan(s, &d, alone, now_us, e) < 0) return -1;
    if (!d.count) *wait_us = young_wait_us(s, now_us);
    return d.count;
}

const struct schedule_stats *schedule_stats(const struct schedule *s)
{
    return &s->stats;
}

/* schedule.h - which training jobs run next, together.
 *
 * Batch plans of the dispatcher come first: the jobs of the oldest plan that can run now, then those of later plans of
 * the same class, then what else is ready, up to the limits.  Without a plan the same policy as the dispatcher's
 * (plan/batcher.h) decides here.  A plan is a hint: jobs that are over, chosen already or out of order are dropped from
 * it.  No bit of a result depends on anything decided here.
 *
 * A pass also waits a little for company: how long a client takes from an answer to its next job is known, so a run that
 * was answered just now is waited for when it is expected soon enough.  Two clients in step then stay in step, and one
 * pass serves both.  Patience is company_us or a quarter of a usual pass, whichever is more; steps never wait, and neither
 * does a run that is alone.
 *
 * A job that a worker may have died of (suspect.h) goes first and alone.  A paused run has nothing ready.
 *
 * Pure: the clock is an argument, and nothing is known of Kafka.  One thread at a time. */
#ifndef WORKER_SCHEDULE_H
#define WORKER_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "task.h"
#include "wire/batch.h"

#define SCHEDULE_PLANS_MAX 1024 /* plans that wait; the oldest is dropped for a new one */

struct schedule;

struct schedule_conf {
    int jobs_max;
    int64_t tokens_max;
    int64_t plan_wait_us; /* how long a young job waits for its plan while there is other work */
    int64_t company_us;   /* the least patience of a pass */
};

struct schedule_stats {
    int64_t plans_used, plans_stale, self_planned;
};

struct schedule *schedule_create(const struct schedule_conf *conf, struct err *e);
void schedule_free(struct schedule *s); /* NULL is fine */

/* A task was put into its run's order. */
int schedule_task(struct schedule *s, struct task *t, struct err *e) WARN_UNUSED;
/* A task leaves the order: it is over. */
void schedule_done(struct schedule *s, struct task *t, int64_t now_us);
/* A task leaves it behind a gap: it was never due. */
void schedule_forget(struct schedule *s, struct task *t);
/* What was chosen of the run could not be run now: it is held again, and its turn comes when it is not paused. */
void schedule_put_back(struct schedule *s, struct run *run);
/* The run leaves this worker; its tasks are over. */
void schedule_run_drop(struct schedule *s, struct run *run);

/* Takes a plan.  A job of it that is not here yet is waited for as long as plan_wait_us. */
void schedule_plan(struct schedule *s, struct batch *take_plan, int64_t now_us);

/* Up to jobs_max tasks of one class, in the order in which they are to run; returns the count.  0: nothing is to be
 * done now, and *wait_us says when to ask again (-1: not before something arrives).
 * alone: there is no other work, so that young jobs do not wait for a plan. */
int schedule_next(struct schedule *s, bool alone, int64_t now_us, struct task **out, int64_t *wait_us,
                  struct err *e);

/* A pass took that long; its share is what a pass may wait for company. */
void schedule_pass_took(struct schedule *s, int64_t us);

/* Is there any job that could run now?  And any of that shard? */
bool schedule_ready(const struct schedule *s);
bool schedule_ready_of(const struct schedule *s, const struct shard *shard);
const struct schedule_stats *schedule_stats(const struct schedule *s);

#endif

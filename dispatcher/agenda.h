/* agenda.h - what one slot has before it: jobs minus results, and the plans made of them.
 *
 * Pure: it is told what the logs say and what time it is, and answers with batch plans.  It orders nothing that
 * matters (the worker does), so forgetting is always allowed: a job that is not planned runs a little later.
 * Everything in it comes from the logs between a shard's offsets and their ends.  One thread at a time. */
#ifndef DISPATCHER_AGENDA_H
#define DISPATCHER_AGENDA_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/batch.h"
#include "wire/job.h"
#include "wire/result.h"

struct agenda;

struct agenda_conf {
    int jobs_max;       /* per plan; at most BATCH_JOBS_MAX */
    int64_t tokens_max; /* per plan */
    int wait_ms;        /* for company; what is over sooner never needs a plan */
    int queue_max;      /* jobs remembered */
    int plans_max;      /* unfinished plans; more are not made */
    int64_t stale_ms;   /* an older unfinished plan does not count any more */
    int64_t forget_ms;  /* the runs of an older unfinished plan are forgotten */
    int64_t idle_ms;    /* a run that nothing was heard of for so long is forgotten */
};

struct agenda *agenda_create(const struct agenda_conf *conf, struct err *e);
void agenda_free(struct agenda *a); /* NULL is fine */

/* A job was read (its partition and offset are set).  1: it waits now; 0: not ours to plan (a copy, past, a control record);
 * -1 ERR_RETRY: too many wait. */
int agenda_job(struct agenda *a, enum stream stream, const struct job *job, int64_t now_ms,
               struct err *e) WARN_UNUSED;

/* An official result was read, before or after its job. */
int agenda_result(struct agenda *a, enum stream stream, int partition, const struct result *r, int64_t now_ms,
                  struct err *e) WARN_UNUSED;

/* The shard has another owner: all that is known of its runs is dropped. */
void agenda_forget_shard(struct agenda *a, enum stream stream, int partition);

/* 1 and *out (the caller's) when a plan is due, 0 when none is, -1.  An idle slot's jobs wait as well: its worker
 * starts a lone job at once, and a plan for it would only come late. */
int agenda_next(struct agenda *a, int64_t now_ms, struct batch **out, struct err *e) WARN_UNUSED;
/* When agenda_next() may say 1 without anything new; -1: not before something new. */
int64_t agenda_next_ms(const struct agenda *a);

/* Time passes: stale plans, forgotten runs.  Now and then. */
void agenda_tidy(struct agenda *a, int64_t now_ms);

int agenda_held(const struct agenda *a);    /* jobs waiting for a plan */
int agenda_known(const struct agenda *a);   /* those in plans too */
int agenda_plans(const struct agenda *a);   /* unfinished and not stale */

/* Runs that wait behind a gap, of which nothing was heard for min_ms, and that were not marked.  overdue: the oldest of what waits
 * there does so for overdue_ms; such a run is shown also when more and more of it comes. */
void agenda_gaps(struct agenda *a, int64_t now_ms, int64_t min_ms, int64_t overdue_ms,
                 void (*seen)(void *arg, const char *run, int partition, bool overdue), void *arg);
/* Until its next job or result the run is not shown as a gap any more; what waits counts from then on. */
void agenda_gap_mark(struct agenda *a, const char *run);

#endif

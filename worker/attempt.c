/* attempt.c - suspects' attempts, counted in Postgres. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "suspect.h"
#include "worker.h"

#define NUMBER_SIZE 24

/* The number of this attempt, or -1.  Nobody else counts while the shard is ours, so a number is
 * written and not an increment, which a lost answer would repeat. */
static int64_t count(struct worker *w, const char *job_id, struct err *e)
{
    char number[NUMBER_SIZE];
    int64_t since = 0, attempts = suspect_attempts(w, job_id, e);
    int n;
    if (attempts < 0) return -1;
    snprintf(number, sizeof number, "%" PRId64, ++attempts);
    do
        n = db_queryf(w->db, NULL, e,
                      "INSERT INTO job_attempts (job_id, attempts) VALUES ($1, $2::integer)"
                      " ON CONFLICT (job_id) DO UPDATE SET attempts = excluded.attempts,"
                      " updated_at = now()",
                      job_id, number, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    err_clear(e);
    return attempts;
}

static int give_up(struct worker *w, struct task *t, int64_t attempts, struct err *e)
{
    char text[160];
    snprintf(text, sizeof text,
             "this job ended the worker %" PRId64 " times and was given up (poison)", attempts);
    log_error("job.poison", "job=%s attempts=%" PRId64, t->job->id, attempts);
    counters_add(w->counters, COUNT_POISON, 1);
    if (publish_job_dlq(w, t, text, e) < 0 || publish_gave_up(w, t, text, e) < 0) return -1;
    return 1;
}

int suspect_begin(struct worker *w, struct task *t, struct err *e)
{
    int64_t attempts = count(w, t->job->id, e);
    if (attempts < 0) return -1;
    log_warn("job.suspect", "job=%s attempt=%" PRId64, t->job->id, attempts);
    if (attempts < w->conf->poison_attempts) return 0;
    return give_up(w, t, attempts, e);
}

int64_t suspect_attempts(struct worker *w, const char *job_id, struct err *e)
{
    struct db_result *r = NULL;
    int64_t since = 0, attempts = 0;
    int n;
    do
        n = db_queryf(w->db, &r, e, "SELECT attempts FROM job_attempts WHERE job_id = $1", job_id,
                      NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    err_clear(e);
    if (n > 0) attempts = db_int(r, 0, 0);
    db_result_free(r);
    return attempts;
}

bool suspect_forgive(struct worker *w, const char *job_id)
{
    struct err e = {0};
    return db_queryf(w->db, NULL, &e,
                     "UPDATE job_attempts SET attempts = attempts - 1 WHERE job_id = $1", job_id,
                     NULL) >= 0;
}

int suspect_end(struct worker *w, const char *job_id, struct err *e)
{
    int64_t since = 0;
    int n;
    do
        n = db_queryf(w->db, NULL, e, "DELETE FROM job_attempts WHERE job_id = $1", job_id, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    err_clear(e);
    return 0;
}

int suspect_forget_old(struct worker *w, struct err *e)
{
    int n =
        db_queryf(w->db, NULL, e,
                  "DELETE FROM job_attempts WHERE updated_at < now() - interval '8 days'", NULL);
    return n < 0 ? -1 : 0;
}

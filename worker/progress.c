/* progress.c - see progress.h.  Two queues in order of offset; covered entries leave at the front.
 */
#include "progress.h"

#include <stdbool.h>
#include <stdlib.h>
#include "queue.h"

struct job_at {
    int64_t offset, seq;
    const void *owner;
    bool done;
};

struct result_at {
    int64_t offset, epoch, job;
};

struct progress {
    struct queue jobs, results; /* of struct job_at, of struct result_at */
    int64_t next_job; /* the offset after the last one read */
    int64_t next_result, next_epoch;
    bool caught_up;
};

struct progress *progress_create(const struct progress_at *from, struct err *e)
{
    struct progress *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for a shard's progress");
        return NULL;
    }
    p->jobs.unit = sizeof(struct job_at);
    p->results.unit = sizeof(struct result_at);
    p->next_job = from->resume;
    p->next_result = from->scan;
    p->next_epoch = from->scan_epoch;
    return p;
}

void progress_free(struct progress *p)
{
    if (!p) return;
    queue_clear(&p->jobs);
    queue_clear(&p->results);
    free(p);
}

int progress_job(struct progress *p, int64_t offset, const void *owner, int64_t seq, struct err *e)
{
    const struct job_at job = {.offset = offset, .owner = owner, .seq = seq};
    if (queue_push(&p->jobs, &job, e) < 0) return -1;
    p->next_job = offset + 1;
    return 0;
}

void progress_job_done(struct progress *p, int64_t offset)
{
    struct job_at *job = queue_find(&p->jobs, offset);
    if (job) job->done = true;
}

void progress_covered(struct progress *p, const void *owner, int64_t seq)
{
    for (size_t i = 0; i < queue_count(&p->jobs); i++) {
        struct job_at *job = queue_at(&p->jobs, i);
        if (job->owner == owner && job->seq <= seq) job->done = true;
    }
}

int progress_result(struct progress *p, int64_t offset, int64_t epoch, int64_t job, struct err *e)
{
    const struct result_at result = {.offset = offset, .epoch = epoch, .job = job};
    if (queue_push(&p->results, &result, e) < 0) return -1;
    progress_results_end(p, offset + 1, epoch);
    return 0;
}

void progress_result_job(struct progress *p, int64_t offset, int64_t job)
{
    struct result_at *result = queue_find(&p->results, offset);
    if (result) result->job = job;
}

void progress_results_end(struct progress *p, int64_t next, int64_t epoch)
{
    if (next > p->next_result) p->next_result = next;
    if (epoch > p->next_epoch) p->next_epoch = epoch;
}

void progress_caught_up(struct progress *p)
{
    p->caught_up = true;
}

static bool result_covered(const struct progress *p, const struct result_at *r, int64_t resume)
{
    return r->job < 0 ? p->caught_up : r->job < resume;
}

/* The first job that is not covered, also not by a snapshot of owner at seq; NULL: all are. */
static const struct job_at *job_needed(const struct progress *p, const void *owner, int64_t seq)
{
    for (size_t i = 0; i < queue_count(&p->jobs); i++) {
        const struct job_at *job = queue_at(&p->jobs, i);
        if (!job->done && !(owner && job->owner == owner && job->seq <= seq)) return job;
    }
    return NULL;
}

static const struct result_at *result_needed(const struct progress *p, int64_t resume)
{
    for (size_t i = 0; i < queue_count(&p->results); i++) {
        const struct result_at *result = queue_at(&p->results, i);
        if (!result_covered(p, result, resume)) return result;
    }
    return NULL;
}

void progress_with(const struct progress *p, const void *owner, int64_t seq,
                   struct progress_at *out)
{
    const struct job_at *job = job_needed(p, owner, seq);
    out->resume = job ? job->offset : p->next_job;
    const struct result_at *result = result_needed(p, out->resume);
    out->scan = result ? result->offset : p->next_result;
    out->scan_epoch = result ? result->epoch : p->next_epoch;
}

/* Entries below the offset leave. */
static void drop_below(struct queue *q, int64_t offset)
{
    while (queue_count(q) && queue_offset(q, 0) < offset)
        queue_pop(q);
}

void progress_get(struct progress *p, struct progress_at *out)
{
    progress_with(p, NULL, 0, out);
    drop_below(&p->jobs, out->resume);
    drop_below(&p->results, out->scan);
}

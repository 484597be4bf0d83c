/* progress.c - see progress.h.  Two queues in order of offset; covered entries leave at the front.
 */
#include "progress.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct job_at {
    int64_t offset, seq;
    const void *owner;
    bool done;
};

struct result_at {
    int64_t offset, epoch, job;
};

struct progress {
    struct job_at *jobs;
    size_t job_first, job_end, job_size;
    struct result_at *results;
    size_t result_first, result_end, result_size;
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
    p->next_job = from->resume;
    p->next_result = from->scan;
    p->next_epoch = from->scan_epoch;
    return p;
}

void progress_free(struct progress *p)
{
    if (!p) return;
    free(p->jobs);
    free(p->results);
    free(p);
}

/* Room for one more of unit bytes at *end; moves the entries to the front before it grows. */
static int room(void *array, size_t unit, size_t *first, size_t *end, size_t *size, struct err *e)
{
    char **a = array;
    if (*end < *size) return 0;
    if (*first > *size / 2) {
        memmove(*a, *a + *first * unit, (*end - *first) * unit);
        *end -= *first;
        *first = 0;
        return 0;
    }
    size_t grown = *size ? *size * 2 : 256;
    char *bytes = realloc(*a, grown * unit);
    if (!bytes) return err_set(e, ERR_RETRY, "out of memory for %zu log positions", grown);
    *a = bytes;
    *size = grown;
    return 0;
}

int progress_job(struct progress *p, int64_t offset, const void *owner, int64_t seq, struct err *e)
{
    if (room(&p->jobs, sizeof *p->jobs, &p->job_first, &p->job_end, &p->job_size, e) < 0) return -1;
    p->jobs[p->job_end++] = (struct job_at){.offset = offset, .owner = owner, .seq = seq};
    p->next_job = offset + 1;
    return 0;
}

static struct job_at *job_find(struct progress *p, int64_t offset)
{
    size_t low = p->job_first, high = p->job_end;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (p->jobs[mid].offset < offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low < p->job_end && p->jobs[low].offset == offset ? &p->jobs[low] : NULL;
}

void progress_job_done(struct progress *p, int64_t offset)
{
    struct job_at *job = job_find(p, offset);
    if (job) job->done = true;
}

void progress_covered(struct progress *p, const void *owner, int64_t seq)
{
    for (size_t i = p->job_first; i < p->job_end; i++)
        if (p->jobs[i].owner == owner && p->jobs[i].seq <= seq) p->jobs[i].done = true;
}

int progress_result(struct progress *p, int64_t offset, int64_t epoch, int64_t job, struct err *e)
{
    if (room(&p->results, sizeof *p->results, &p->result_first, &p->result_end, &p->result_size,
             e) < 0)
        return -1;
    p->results[p->result_end++] = (struct result_at){.offset = offset, .epoch = epoch, .job = job};
    progress_results_end(p, offset + 1, epoch);
    return 0;
}

void progress_result_job(struct progress *p, int64_t offset, int64_t job)
{
    size_t low = p->result_first, high = p->result_end;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (p->results[mid].offset < offset)
            low = mid + 1;
        else
            high = mid;
    }
    if (low < p->result_end && p->results[low].offset == offset) p->results[low].job = job;
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

void progress_with(const struct progress *p, const void *owner, int64_t seq,
                   struct progress_at *out)
{
    size_t j = p->job_first, r = p->result_first;
    while (j < p->job_end &&
           (p->jobs[j].done || (owner && p->jobs[j].owner == owner && p->jobs[j].seq <= seq)))
        j++;
    out->resume = j < p->job_end ? p->jobs[j].offset : p->next_job;
    while (r < p->result_end && result_covered(p, &p->results[r], out->resume))
        r++;
    out->scan = r < p->result_end ? p->results[r].offset : p->next_result;
    out->scan_epoch = r < p->result_end ? p->results[r].epoch : p->next_epoch;
}

void progress_get(struct progress *p, struct progress_at *out)
{
    progress_with(p, NULL, 0, out);
    while (p->job_first < p->job_end && p->jobs[p->job_first].offset < out->resume)
        p->job_first++;
    while (p->result_first < p->result_end && p->results[p->result_first].offset < out->scan)
        p->result_first++;
}

/* seen.c - see seen.h.  A queue in order of arrival, and the same ids by name. */
#include "seen.h"

#include <stdlib.h>
#include <string.h>
#include "map.h"

#define QUEUE_MIN 256

struct one {
    char *id;
    int64_t job, result; /* offsets; result -1: not decided yet */
};

struct seen {
    struct map *by_id;
    struct one *queue;
    size_t first, end, size;
    size_t ids_max;
};

struct seen *seen_create(int ids_max, struct err *e)
{
    struct seen *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for ids");
        return NULL;
    }
    s->ids_max = (size_t)ids_max;
    s->by_id = map_create(e);
    if (s->by_id) return s;
    free(s);
    return NULL;
}

static void forget_first(struct seen *s)
{
    struct one *it = &s->queue[s->first++];
    map_take(s->by_id, it->id);
    free(it->id);
}

void seen_free(struct seen *s)
{
    if (!s) return;
    while (s->first < s->end)
        forget_first(s);
    map_free(s->by_id);
    free(s->queue);
    free(s);
}

bool seen_has(const struct seen *s, const char *job_id)
{
    return map_get(s->by_id, job_id) != NULL;
}

int seen_count(const struct seen *s)
{
    return (int)(s->end - s->first);
}

static int room(struct seen *s, struct err *e)
{
    if (s->end < s->size) return 0;
    if (s->first > s->size / 2) {
        memmove(s->queue, s->queue + s->first, (s->end - s->first) * sizeof *s->queue);
        s->end -= s->first;
        s->first = 0;
        return 0;
    }
    size_t size = s->size ? 2 * s->size : QUEUE_MIN;
    struct one *grown = realloc(s->queue, size * sizeof *grown);
    if (!grown) return err_set(e, ERR_RETRY, "out of memory for %zu ids", size);
    s->queue = grown;
    s->size = size;
    return 0;
}

int seen_add(struct seen *s, const char *job_id, int64_t job, int64_t result, struct err *e)
{
    if (room(s, e) < 0) return -1;
    char *id = strdup(job_id);
    if (!id) return err_set(e, ERR_RETRY, "out of memory for an id");
    if (map_put(s->by_id, id, s, e) < 0) {
        free(id);
        return -1;
    }
    s->queue[s->end++] = (struct one){.id = id, .job = job, .result = result};
    if (s->end - s->first > s->ids_max) forget_first(s);
    return 0;
}

void seen_decided(struct seen *s, int64_t job, int64_t result)
{
    size_t low = s->first, high = s->end;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (s->queue[mid].job < job)
            low = mid + 1;
        else
            high = mid;
    }
    if (low < s->end && s->queue[low].job == job) s->queue[low].result = result;
}

void seen_booked(struct seen *s, int64_t next)
{
    while (s->first < s->end && s->queue[s->first].result >= 0 && s->queue[s->first].result < next)
        forget_first(s);
}

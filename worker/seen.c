/* seen.c - see seen.h.  A queue in order of arrival, and the same ids by name. */
#include "seen.h"

#include <stdlib.h>
#include <string.h>
#include "map.h"
#include "queue.h"

struct one {
    int64_t job, result; /* offsets; result -1: not decided yet */
    char *id;
};

struct seen {
    struct map *by_id;
    struct queue queue; /* of struct one */
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
    s->queue.unit = sizeof(struct one);
    s->by_id = map_create(e);
    if (s->by_id) return s;
    free(s);
    return NULL;
}

static void forget_first(struct seen *s)
{
    struct one *it = queue_at(&s->queue, 0);
    map_take(s->by_id, it->id);
    free(it->id);
    queue_pop(&s->queue);
}

void seen_free(struct seen *s)
{
    if (!s) return;
    while (queue_count(&s->queue))
        forget_first(s);
    map_free(s->by_id);
    queue_clear(&s->queue);
    free(s);
}

bool seen_has(const struct seen *s, const char *job_id)
{
    return map_get(s->by_id, job_id) != NULL;
}

int seen_count(const struct seen *s)
{
    return (int)queue_count(&s->queue);
}

int seen_add(struct seen *s, const char *job_id, int64_t job, int64_t result, struct err *e)
{
    struct one it = {.job = job, .result = result, .id = strdup(job_id)};
    if (!it.id) return err_set(e, ERR_RETRY, "out of memory for an id");
    if (queue_push(&s->queue, &it, e) < 0) {
        free(it.id);
        return -1;
    }
    if (map_put(s->by_id, it.id, s, e) < 0) {
        queue_unpush(&s->queue);
        free(it.id);
        return -1;
    }
    if (queue_count(&s->queue) > s->ids_max) forget_first(s);
    return 0;
}

void seen_decided(struct seen *s, int64_t job, int64_t result)
{
    struct one *it = queue_find(&s->queue, job);
    if (it) it->result = result;
}

void seen_booked(struct seen *s, int64_t next)
{
    while (queue_count(&s->queue)) {
        const struct one *it = queue_at(&s->queue, 0);
        if (it->result < 0 || it->result >= next) return;
        forget_first(s);
    }
}

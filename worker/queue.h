/* queue.h - entries in ascending order of a log's offset: they come at the end, leave at the front, and are found by it.
 *
 * Each entry begins with its offset, an int64_t.  Pointers into the queue are good until the next push. */
#ifndef WORKER_QUEUE_H
#define WORKER_QUEUE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "base/err.h"

struct queue {
    size_t unit; /* bytes of an entry; the rest begins as zero */
    char *entries;
    size_t first, end, size;
};

void queue_clear(struct queue *q);
/* A copy of entry comes to the end. */
int queue_push(struct queue *q, const void *entry, struct err *e) WARN_UNUSED;
/* Takes back the push just made. */
static inline void queue_unpush(struct queue *q)
{
    q->end--;
}
/* The entry of that offset, or NULL. */
void *queue_find(const struct queue *q, int64_t offset);

static inline size_t queue_count(const struct queue *q)
{
    return q->end - q->first;
}

/* i: 0 .. queue_count() - 1, from the front. */
static inline void *queue_at(const struct queue *q, size_t i)
{
    return q->entries + (q->first + i) * q->unit;
}

static inline int64_t queue_offset(const struct queue *q, size_t i)
{
    int64_t offset;
    memcpy(&offset, queue_at(q, i), sizeof offset);
    return offset;
}

/* The first entry leaves. */
static inline void queue_pop(struct queue *q)
{
    q->first++;
}

#endif

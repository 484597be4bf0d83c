/* queue.c - see queue.h.  An array whose entries move to the front before it grows. */
#include "queue.h"

#include <stdlib.h>

#define SIZE_MIN 256

void queue_clear(struct queue *q)
{
    free(q->entries);
    *q = (struct queue){.unit = q->unit};
}

static int make_room(struct queue *q, struct err *e)
{
    if (q->end < q->size) return 0;
    if (q->first > q->size / 2) {
        memmove(q->entries, queue_at(q, 0), queue_count(q) * q->unit);
        q->end -= q->first;
        q->first = 0;
        return 0;
    }
    size_t size = q->size ? 2 * q->size : SIZE_MIN;
    char *grown = realloc(q->entries, size * q->unit);
    if (!grown) return err_set(e, ERR_RETRY, "out of memory for %zu log positions", size);
    q->entries = grown;
    q->size = size;
    return 0;
}

int queue_push(struct queue *q, const void *entry, struct err *e)
{
    if (make_room(q, e) < 0) return -1;
    memcpy(q->entries + q->end++ * q->unit, entry, q->unit);
    return 0;
}

void *queue_find(const struct queue *q, int64_t offset)
{
    size_t low = 0, high = queue_count(q);
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (queue_offset(q, mid) < offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low < queue_count(q) && queue_offset(q, low) == offset ? queue_at(q, low) : NULL;
}

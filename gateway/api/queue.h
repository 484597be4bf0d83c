/* queue.h - why a request is not answered yet, in words that a person understands.
 *
 * The dispatcher counts, once a second, how many requests each base model has open and how many
 * workers serve it (Redis, queue:{model}).  A poll is told only after it was held for its whole
 * time, so what is merely being computed is seldom called paused. */
#ifndef API_QUEUE_H
#define API_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include "api/quota.h"

struct queue_view {
    bool known; /* somebody counts */
    int64_t waiting, workers;
};

struct queue_state {
    const char *state;              /* "active", "paused_capacity", "paused_rate_limit" (quota.h) */
    char reason[QUOTA_REASON_SIZE]; /* "" when active; no character that JSON would escape */
};

/* model holds only letters, digits and ".-_/" (models.name). */
void queue_describe(struct queue_state *out, const char *model, const struct queue_view *v);

#endif

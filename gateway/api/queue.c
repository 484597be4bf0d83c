/* queue.c - see queue.h. */
#include "api/queue.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *plural(int64_t n)
{
    return n == 1 ? "" : "s";
}

void queue_describe(struct queue_state *out, const char *model, const struct queue_view *v)
{
    out->state = "active";
    out->reason[0] = '\0';
    if (!v->known || !*model) return;
    if (v->workers < 1) {
        out->state = "paused_capacity";
        snprintf(out->reason, sizeof out->reason,
                 "no worker serves %s at the moment; the request is kept and runs as soon as one "
                 "is back, and waiting costs nothing",
                 model);
        return;
    }
    int64_t others = v->waiting - 1;
    if (others < 1) return; /* it is alone: it is running */
    out->state = "paused_capacity";
    snprintf(out->reason, sizeof out->reason,
             "%" PRId64 " other request%s for %s %s in line or running on %" PRId64
             " worker%s; accounts take turns, and waiting costs nothing",
             others, plural(others), model, others == 1 ? "is" : "are", v->workers,
             plural(v->workers));
}

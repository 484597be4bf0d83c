/* counters.h - what this worker did, for people: written to Redis as worker:<slot> every second.
 *
 * Counting is lock-free and from any thread; a thread of its own talks to Redis, so that a Redis that is away slows
 * nothing down. */
#ifndef WORKER_COUNTERS_H
#define WORKER_COUNTERS_H

#include <stdint.h>
#include "base/err.h"

enum count {
    COUNT_JOBS,
    COUNT_BATCHES,
    COUNT_BATCHES_MULTI_RUN,
    COUNT_RUNS_RESIDENT,
    COUNT_TOKENS_TRAIN,
    COUNT_TOKENS_SAMPLE,
    COUNT_TOKENS_PREFILL,
    COUNT_REPLAYED,
    COUNT_DIGEST_MISMATCHES,
    COUNT_FENCED,
    COUNT_PLANS_USED,
    COUNT_PLANS_STALE,
    COUNT_SELF_PLANNED,
    COUNT_SNAPSHOTS,
    COUNT_SHARDS,
    COUNT_POISON,
    COUNT_RUNS_PAUSED,
    COUNT_SNAPSHOTS_DAMAGED,
    COUNT_NUMERICS_CHANGED,
    COUNT_PREFIX_HIT_TOKENS,
    COUNT_PREFIX_EVICTIONS,
    COUNT_SHARDS_REFUSED,
    COUNT_COUNT
};

struct counters;

struct counters *counters_open(const char *redis, const char *prefix, int slot, struct err *e);
void counters_close(struct counters *c); /* writes once more; NULL is fine */
void counters_add(struct counters *c, enum count which, int64_t n);
void counters_set(struct counters *c, enum count which, int64_t n);
int64_t counters_get(const struct counters *c, enum count which);

#endif

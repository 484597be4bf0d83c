/* settings.h - what a dispatcher is told, and what it counts. */
#ifndef DISPATCHER_SETTINGS_H
#define DISPATCHER_SETTINGS_H

#include <stdatomic.h>
#include <stdint.h>
#include "base/err.h"

struct settings {
    const char *kafka_brokers, *kafka_config, *topic_prefix, *postgres, *redis, *redis_prefix, *data;
    int64_t future_ttl_s;
    int64_t jobs_max, tokens_max, wait_ms, queue_max; /* of a slot's batcher */
    int64_t plans_max, stale_ms, forget_ms;           /* of a slot's plans */
    int64_t catalog_ms;
    int64_t expire_s, gap_max_s;
    int64_t guard_ms, billing_late_s;
    int64_t sweep_s, keep_s, session_silent_s; /* sweep.h */
    int64_t instance;
};

int settings_read(struct settings *s, int argc, char **argv, struct err *e) WARN_UNUSED;

/* Written by one thread each, read by the main thread. */
struct stats {
    /* resolver */
    atomic_llong settled, fenced, unreadable, conflicts, rebuilds, retries;
    /* main thread */
    atomic_llong swept;
    /* planner */
    atomic_llong jobs, results, plans, planned_jobs, shared_plans, held, expired, partitions;
    /* guard */
    atomic_llong retention_near, billing_late;
};

#endif

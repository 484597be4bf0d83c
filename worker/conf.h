/* conf.h - the worker's settings: one table, also `tinworks-worker --help`. */
#ifndef WORKER_CONF_H
#define WORKER_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define SLOTS_MAX      16  /* partitions of <model>.batches */
#define PARTITIONS_MAX 256 /* of a stream of one model */

struct worker_conf {
    const char *kafka_brokers, *kafka_config, *topic_prefix, *postgres, *redis, *redis_prefix;
    const char *data; /* blob folder: snapshots/ and checkpoints/ lie in it */
    const char *model, *model_dir, *device, *weights;
    bool replace_weights; /* accept other weights under a model name that is known */
    int64_t slot, threads, ranks, replicas;
    int64_t train_partitions, sample_partitions, kafka_replication;
    int64_t lease_ms;
    int64_t plan_wait_ms, company_ms;
    int64_t batch_jobs_max, batch_tokens_max;
    int64_t snapshot_replay_ms, snapshot_idle_ms, progress_ms;
    int64_t adapters_mb, sampler_cache_mb, kv_mb, scratch_mb;
    int64_t held_mb, samples_max;
    int64_t poison_attempts;
    int64_t sweep_every_ms, sweep_age_s;
    int64_t unsnapshotted_ms;
    bool numerics_change; /* an operator accepts that bits may change */
    bool paged_moments;
};

/* -1 with ERR_USER: the text names the setting, its value and what was expected. */
int worker_conf_read(struct worker_conf *conf, int argc, char **argv, struct err *e) WARN_UNUSED;

#endif

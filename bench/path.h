/* path.h - bench "path": POST to answer through everything, beside the bare Kafka round trip. */
#ifndef BENCH_PATH_H
#define BENCH_PATH_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct path_conf {
    const char *base_url, *api_key, *kafka_brokers, *kafka_config, *topic_prefix, *model;
    int64_t count, warmup;
    bool json;
};

int path_run(const struct path_conf *conf, struct err *e) WARN_UNUSED;

#endif

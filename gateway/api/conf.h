/* conf.h - the gateway's settings. */
#ifndef API_CONF_H
#define API_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include "api/quota.h"
#include "base/err.h"

struct gateway_conf {
    const char *listen, *kafka_brokers, *kafka_config, *topic_prefix, *postgres, *redis,
        *redis_prefix, *secret_file, *data, *name, *public_url, *tls_certificate, *tls_key;
    int64_t port, http_threads, workers, connections_max, connections_per_address;
    int64_t idle_s, head_s, body_s;
    int64_t poll_hold_ms, queue_bytes_max, ack_ms, future_ttl_s;
    int64_t token_s, url_s;
    int64_t attempts_max, key_good_ms;
    struct quota_limits limits; /* of an account that has none of its own */
    bool tokens, session_polls, log_requests, zstd;
};

int gateway_conf_read(struct gateway_conf *conf, int argc, char **argv, struct err *e) WARN_UNUSED;

#endif

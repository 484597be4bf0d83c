/* conf.c - see conf.h.  One table: name, type, default, limits, help. */
#include "api/conf.h"

#include <stddef.h>

#include "base/conf.h"

int gateway_conf_read(struct gateway_conf *c, int argc, char **argv, struct err *e)
{
    const struct conf_item items[] = {
        {"listen", CONF_STR, &c->listen, "127.0.0.1", 0, 0, "IPv4 address to serve on"},
        {"port", CONF_INT, &c->port, "8080", 0, 65535, "port to serve on; 0: any free one"},
        {"kafka_brokers", CONF_STR, &c->kafka_brokers, NULL, 0, 0, "host:port, more after commas"},
        {"kafka_config", CONF_STR, &c->kafka_config, "", 0, 0,
         "properties file of a cluster that asks who is there; empty: none"},
        {"topic_prefix", CONF_STR, &c->topic_prefix, "tw.", 0, 0,
         "what every topic's name begins with"},
        {"postgres", CONF_STR, &c->postgres, NULL, 0, 0, "libpq connection text"},
        {"redis", CONF_STR, &c->redis, NULL, 0, 0, "redis://host:port/db or unix:///path"},
        {"redis_prefix", CONF_STR, &c->redis_prefix, "", 0, 0, "what every Redis key begins with"},
        {"secret_file", CONF_STR, &c->secret_file, NULL, 0, 0,
         "64 hex digits: the key of request ids and API keys"},
        {"data", CONF_STR, &c->data, NULL, 0, 0, "folder of checkpoints and snapshots"},
        {"gateway_name", CONF_STR, &c->name, "0", 0, 0, "which gateway this is, for its counters"},
        {"http_threads", CONF_INT, &c->http_threads, "2", 1, 64, "event threads"},
        {"http_workers", CONF_INT, &c->workers, "4", 1, 64,
         "threads that wait for Postgres, a connection each"},
        {"connections_max", CONF_INT, &c->connections_max, "16384", 16, 1000000,
         "open client connections"},
        {"connections_per_address", CONF_INT, &c->connections_per_address, "4096", 0, 1000000,
         "of them from one address; 0: all (behind a proxy)"},
        {"head_s", CONF_INT, &c->head_s, "10", 1, 3600,
         "a request's head has to be there in this time"},
        {"body_s", CONF_INT, &c->body_s, "60", 1, 3600,
         "and its body in this time, with 1 KiB/s at least"},
        {"tls_certificate", CONF_STR, &c->tls_certificate, "", 0, 0,
         "PEM file, the server's own first: HTTPS instead of HTTP"},
        {"tls_key", CONF_STR, &c->tls_key, "", 0, 0, "PEM file of the certificate's private key"},
        {"zstd", CONF_BOOL, &c->zstd, "0", 0, 0,
         "clients are told to compress forward_backward's bodies"},
        {"log_requests", CONF_BOOL, &c->log_requests, "0", 0, 0,
         "a line in the log for each request"},
        {"idle_s", CONF_INT, &c->idle_s, "100", 1, 3600,
         "silent connections are closed after this"},
        {"poll_hold_ms", CONF_INT, &c->poll_hold_ms, "25000", 10, 40000,
         "how long a poll of a pending future is held"},
        {"queue_bytes_max", CONF_INT, &c->queue_bytes_max, "268435456", 1 << 20, INT64_MAX,
         "bytes of jobs that wait for Kafka's acknowledgement"},
        {"ack_ms", CONF_INT, &c->ack_ms, "20000", 1000, 25000,
         "how long a job waits for that before its call is answered with 503"},
        {"future_ttl_s", CONF_INT, &c->future_ttl_s, "7200", 1, 1 << 30,
         "life of a future that was read back from the log"},
        {"tokens", CONF_BOOL, &c->tokens, "0", 0, 0,
         "clients exchange their key for short-lived tokens"},
        {"token_s", CONF_INT, &c->token_s, "1800", 120, 86400, "life of a token"},
        {"session_polls", CONF_BOOL, &c->session_polls, "1", 0, 0,
         "one poll for all samples of a sampling session, instead of one a sample"},
        {"public_url", CONF_STR, &c->public_url, "", 0, 0,
         "what clients' addresses of this service begin with, in front of /api/v1; empty: http:// "
         "(https:// with TLS) and their Host header"},
        {"url_s", CONF_INT, &c->url_s, "900", 1, 900, "life of a download address"},
        {"key_good_ms", CONF_INT, &c->key_good_ms, "30000", 0, 300000,
         "how long a key is not asked for again: so long a revoked one may work, and a new limit be "
         "unknown"},
        {"attempts_max", CONF_INT, &c->attempts_max, "10", 1, 1000000,
         "wrong keys a minute from one address, or for one key id; behind a proxy all clients have "
         "its address"},
        {"requests_per_minute", CONF_INT, &c->limits.requests_per_minute, "60000", 0, 60000000,
         "calls but for polls that an account may make, unless it has a limit of its own; 0: any"},
        {"tokens_in_flight", CONF_INT, &c->limits.tokens_in_flight, "67108864", 0, INT64_MAX,
         "the same for tokens in line and running; 0: any"},
        {"runs_max", CONF_INT, &c->limits.runs, "1000", 0, INT64_MAX,
         "the same for open training runs; 0: any"},
        {"storage_bytes_max", CONF_INT, &c->limits.storage_bytes, "1099511627776", 0, INT64_MAX,
         "the same for bytes of checkpoints; 0: any"},
        {0}};
    int rest;
    if (conf_read(items, "tinworks-gateway: the clients' HTTP protocol in, jobs out, futures back",
                  argc, argv, &rest, e) < 0)
        return -1;
    if (rest != argc)
        return err_set(e, ERR_USER, "unexpected argument \"%s\", expected flags only", argv[rest]);
    return 0;
}

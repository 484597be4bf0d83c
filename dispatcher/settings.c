/* settings.c - see settings.h. */
#include "settings.h"

#include <stddef.h>
#include "base/conf.h"

int settings_read(struct settings *s, int argc, char **argv, struct err *e)
{
    int rest;
    const struct conf_item items[] = {
        {"kafka_brokers", CONF_STR, &s->kafka_brokers, NULL, 0, 0, "host:port, more after commas"},
        {"kafka_config", CONF_STR, &s->kafka_config, "", 0, 0,
         "properties file of a cluster that asks who is there; empty: none"},
        {"topic_prefix", CONF_STR, &s->topic_prefix, "tw.", 0, 0, "before every topic's name"},
        {"postgres", CONF_STR, &s->postgres, NULL, 0, 0, "as libpq reads it"},
        {"redis", CONF_STR, &s->redis, NULL, 0, 0, "redis://host:port/db or unix:///path"},
        {"redis_prefix", CONF_STR, &s->redis_prefix, "", 0, 0, "before every key's name"},
        {"future_ttl_s", CONF_INT, &s->future_ttl_s, "7200", 1, 30 * 86400,
         "lifetime of a settled future in Redis"},
        {"plan_jobs_max", CONF_INT, &s->jobs_max, "64", 1, 1024, "jobs in a batch plan"},
        {"plan_tokens_max", CONF_INT, &s->tokens_max, "32768", 1, 1 << 30,
         "tokens in a batch plan; a single larger job goes alone"},
        {"plan_gather_ms", CONF_INT, &s->wait_ms, "1", 0, 60000,
         "how long a job waits for company in a plan"},
        {"plan_queue_max", CONF_INT, &s->queue_max, "100000", 1, 10000000,
         "jobs remembered of a slot; beyond, reading its jobs pauses"},
        {"plan_ahead_max", CONF_INT, &s->plans_max, "2", 1, 64, "unfinished plans of a slot"},
        {"plan_stale_ms", CONF_INT, &s->stale_ms, "30000", 100, 3600000,
         "after that an unfinished plan does not hold up the next"},
        {"plan_forget_ms", CONF_INT, &s->forget_ms, "600000", 1000, 86400000,
         "after that an unfinished plan's runs are forgotten"},
        {"catalog_ms", CONF_INT, &s->catalog_ms, "1000", 10, 60000,
         "how often models and shards are read from Postgres"},
        {"expire_s", CONF_INT, &s->expire_s, "600", 1, 30 * 86400,
         "a run behind a gap expires when its client was silent for that long"},
        {"gap_max_s", CONF_INT, &s->gap_max_s, "21600", 1, 6 * 86400,
         "it expires also when the same gap stayed open for that long, whatever its client does"},
        {"guard_ms", CONF_INT, &s->guard_ms, "30000", 100, 3600000,
         "how often log retention and billing are looked at"},
        {"billing_late_s", CONF_INT, &s->billing_late_s, "300", 1, 7 * 86400,
         "a result that is not billed after that long is an alarm"},
        {"data", CONF_STR, &s->data, NULL, 0, 0, "folder of checkpoints and snapshots"},
        {"sweep_s", CONF_INT, &s->sweep_s, "10", 1, 86400,
         "how often expired checkpoints are removed"},
        {"keep_s", CONF_INT, &s->keep_s, "86400", 1, 30 * 86400,
         "how long an overwritten version, or a sampler's own checkpoint after its session, stays"},
        {"session_silent_s", CONF_INT, &s->session_silent_s, "86400", 60, 30 * 86400,
         "a session without a sign of life for that long is over"},
        {"dispatcher_number", CONF_INT, &s->instance, "0", 0, 1000000,
         "number of this process in the counters' name"},
        {0}};
    if (conf_read(items, "plans batches, and carries results into Redis", argc, argv, &rest, e) < 0)
        return -1;
    if (rest < argc) return err_set(e, ERR_USER, "unexpected word \"%s\", see --help", argv[rest]);
    return 0;
}

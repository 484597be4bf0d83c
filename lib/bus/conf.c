/* conf.c - see conf.h.  Reconnects are quick, because a broker that is back must be used at once:
 * the gateway answers 503 meanwhile. */
#include "conf.h"

#include <stdio.h>
#include "base/log.h"
#include "bus/bus.h"

/* syslog levels up to 3 are errors, 4 a warning.  A broker that is away is odd and handled, so
 * nothing here is an error of ours. */
static void on_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    log_event(level <= 4 ? LOG_WARN : LOG_DEBUG, "bus.client", "client=%s what=%s text=\"%s\"",
              rk ? rd_kafka_name(rk) : "", facility, text);
}

int bus_conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, struct err *e)
{
    char why[256];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why) == RD_KAFKA_CONF_OK) return 0;
    return err_set(e, ERR_BUG, "cannot set %s to \"%s\": %s", name, value, why);
}

rd_kafka_conf_t *bus_conf(const char *brokers, const char *client_id, struct err *e)
{
    char record_max[32];
    if (!brokers || !*brokers) {
        err_set(e, ERR_USER, "no Kafka broker is named, expected host:port");
        return NULL;
    }
    snprintf(record_max, sizeof record_max, "%u", BUS_RECORD_MAX + BUS_FRAME_MAX);
    const char *const pairs[][2] = {
        {"bootstrap.servers", brokers},
        {"client.id", client_id},
        {"message.max.bytes", record_max},
        {"socket.nagle.disable", "true"},
        {"socket.keepalive.enable", "true"},
        {"socket.timeout.ms", "15000"},
        {"reconnect.backoff.ms", "100"},
        {"reconnect.backoff.max.ms", "1000"},
        {"topic.metadata.refresh.fast.interval.ms", "100"},
        {"topic.metadata.refresh.interval.ms", "60000"},
        {"allow.auto.create.topics", "false"},
        {"log.connection.close", "false"},
    };
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (bus_conf_set(conf, pairs[i][0], pairs[i][1], e) < 0) {
            rd_kafka_conf_destroy(conf);
            return NULL;
        }
    }
    if (bus_security_apply(conf, e) < 0) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    rd_kafka_conf_set_log_cb(conf, on_log);
    return conf;
}

rd_kafka_t *bus_client(rd_kafka_type_t type, rd_kafka_conf_t *conf, struct err *e)
{
    char why[256];
    rd_kafka_t *rk = rd_kafka_new(type, conf, why, sizeof why);
    if (rk) return rk;
    rd_kafka_conf_destroy(conf);
    err_set(e, ERR_RETRY, "cannot make a Kafka client: %s", why);
    return NULL;
}

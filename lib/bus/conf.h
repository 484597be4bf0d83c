/* conf.h - what bus.c's files share: librdkafka's settings and how its errors become ours.  Inside
 * this room only. */
#ifndef BUS_CONF_H
#define BUS_CONF_H

#include <librdkafka/rdkafka.h>
#include "base/err.h"

/* A record's own framing, on top of BUS_RECORD_MAX. */
#define BUS_FRAME_MAX (64 << 10)

/* Settings that every client of ours has.  NULL on failure. */
rd_kafka_conf_t *bus_conf(const char *brokers, const char *client_id, struct err *e);
int bus_conf_set(rd_kafka_conf_t *conf, const char *name, const char *value,
                 struct err *e) WARN_UNUSED;

/* What bus_security_read() found, into conf. */
int bus_security_apply(rd_kafka_conf_t *conf, struct err *e) WARN_UNUSED;

/* A client; takes conf. */
rd_kafka_t *bus_client(rd_kafka_type_t type, rd_kafka_conf_t *conf, struct err *e);

#endif

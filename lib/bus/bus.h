/* bus.h - Kafka as we use it: named partitions, explicit offsets, waited-for acks.
 *
 * No consumer groups, no transactions, no hashing: producers name the partition, consumers name the offset, and
 * an offset that is not there is an error (auto.offset.reset=error), never a jump.  Producers are idempotent with
 * acks=all and linger 0.  Every object may be used from several threads unless its comment says otherwise. */
#ifndef BUS_BUS_H
#define BUS_BUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/header.h"

#define BUS_RECORD_MAX  (17u << 20) /* value, key and headers of one record */
#define BUS_HEADERS_MAX 32

/* ---------------------------------------------------------------- a guarded cluster */

/* How every client that this process makes from now on gets in: a file of name=value lines in the manner of Kafka's
 * own tools (security.protocol, sasl.mechanism, sasl.username, sasl.password, ssl.ca.location, ...; # begins a
 * comment).  Other names are refused, since they could change what we promise; so is a file that others may read.
 * To be called before there are threads; "" or NULL: no file, a cluster that asks nothing. */
int bus_security_read(const char *path, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- topics */

struct bus_topic {
    const char *name;
    int partitions;
    int64_t retention_ms;
};
/* Creates those that are missing (replication factor rf; with 3 or more a write needs 2 replicas in sync) and waits
 * until each has a leader; an existing topic is left as it is.  ERR_RETRY when the broker cannot be reached within timeout_ms. */
int bus_topics_ensure(const char *brokers, const struct bus_topic *topics, int count, int rf, int timeout_ms,
                      struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- producing */

struct bus_producer;

struct bus_producer_conf {
    const char *client_id;  /* shows in the broker's logs */
    size_t queue_bytes_max; /* records waiting for acks; above it produce says ERR_RETRY */
    int ack_ms;             /* a record that is not acked by then has failed; 0: BUS_ACK_MS */
    /* No record is delivered after one of its partition that was not: none fails for want of time (ack_ms is not
     * heeded, who waits must give up itself), and whatever else loses one kills the producer. */
    bool gapless;
};
#define BUS_ACK_MS 20000

/* A background thread serves delivery reports. */
struct bus_producer *bus_producer_create(const char *brokers, const struct bus_producer_conf *conf, struct err *e);
void bus_producer_free(struct bus_producer *p); /* does not flush: what waits gets its callback (-1) first; NULL is fine */

/* Called once per record from the producer's thread: offset >= 0 and e->kind ERR_NONE, or -1 and why (ERR_RETRY: may
 * or may not have been written; ERR_LOST: the producer is dead and must be made anew). */
typedef void bus_acked(void *arg, int64_t offset, const struct err *e);

struct bus_record {
    const char *topic;
    int partition;
    const char *key; /* NUL-terminated; may be NULL */
    const struct header *headers;
    int header_count;
    const void *value; /* copied */
    size_t size;
};
/* Queues the record; order within a partition is kept.  On -1 acked is not called. */
int bus_produce(struct bus_producer *p, const struct bus_record *r, bus_acked *acked, void *arg,
                struct err *e) WARN_UNUSED;

/* The same, and waits for the ack.  Returns the offset or -1. */
int64_t bus_produce_wait(struct bus_producer *p, const struct bus_record *r, int timeout_ms, struct err *e) WARN_UNUSED;

/* Waits until everything queued is acked or failed and its callback has returned.  Not from a callback. */
int bus_flush(struct bus_producer *p, int timeout_ms, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- consuming */

/* One record in one piece of memory, owned by its holder; it may outlive the consumer.  Headers after the first
 * BUS_HEADERS_MAX are not read. */
struct bus_message {
    const char *topic;
    int partition;
    int64_t offset;
    int64_t append_ms; /* LogAppendTime, ms since 1970 */
    char *key;         /* NUL-terminated copy or NULL */
    struct header headers[BUS_HEADERS_MAX];
    int header_count;
    const void *value;
    size_t size;
};
void bus_message_free(struct bus_message *m);

struct bus_consumer; /* one thread at a time */

struct bus_consumer *bus_consumer_create(const char *brokers, const char *client_id, struct err *e);
void bus_consumer_free(struct bus_consumer *c);

#define BUS_OFFSET_END (-1) /* only what is written from now on */

/* Adds a partition, read from offset on; replaces its position when it is assigned already.  BUS_OFFSET_END asks the
 * broker for the end before it returns (ERR_RETRY when there is no answer); other offsets do not wait. */
int bus_assign(struct bus_consumer *c, const char *topic, int partition, int64_t offset, struct err *e) WARN_UNUSED;
int bus_unassign(struct bus_consumer *c, const char *topic, int partition, struct err *e) WARN_UNUSED;

/* No more records of that partition come, and what was read ahead is dropped, until it is resumed where it was.  Doing it
 * twice is fine. */
int bus_pause(struct bus_consumer *c, const char *topic, int partition, struct err *e) WARN_UNUSED;
int bus_resume(struct bus_consumer *c, const char *topic, int partition, struct err *e) WARN_UNUSED;

/* Up to max messages into out, waiting up to wait_ms for the first.  Returns the count (0: none), or -1:
 * ERR_RETRY (broker away; call again) or ERR_LOST (an offset is out of range: the text names the partition). */
int bus_poll(struct bus_consumer *c, struct bus_message **out, int max, int wait_ms, struct err *e) WARN_UNUSED;

/* First and next-to-be-written offset of a partition. */
int bus_offsets(struct bus_consumer *c, const char *topic, int partition, int64_t *first, int64_t *next,
                int timeout_ms, struct err *e) WARN_UNUSED;
/* The first offset whose append time is >= wall_ms; the end when there is none. */
int bus_offset_at(struct bus_consumer *c, const char *topic, int partition, int64_t wall_ms, int64_t *offset,
                  int timeout_ms, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- looking up */

/* A consumer for bus_read_each alone: it fetches no more than it must, and never waits for what is not there. */
struct bus_consumer *bus_finder_create(const char *brokers, const char *client_id, struct err *e);

/* Reads the records at those offsets (rising) of one partition, in one pass, and calls found for each in order: m is
 * lent, and NULL when the log has deleted it.  Its own short-lived assignment, so c must have no other.  -1: ERR_RETRY
 * when not all came within timeout_ms, ERR_USER when the log ends before one of them; those before it were told. */
typedef void bus_found(void *arg, int i, const struct bus_message *m);
int bus_read_each(struct bus_consumer *c, const char *topic, int partition, const int64_t *offsets, int count,
                  int timeout_ms, bus_found *found, void *arg, struct err *e) WARN_UNUSED;

#endif

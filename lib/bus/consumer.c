/* consumer.c - named partitions from explicit offsets into one queue; see bus.h.
 *
 * librdkafka's group consumer would look for a group coordinator (and make Kafka create its offsets
 * topic) though we never join a group, so this uses the interface below it: start and stop a
 * partition, read one queue. */
#include "bus/bus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "conf.h"

#define POLL_MAX       1024
#define OFFSET_WAIT_MS 10000 /* for BUS_OFFSET_END */
#define LEADER_WAIT_MS 100   /* between two looks */
#define FIND_MAX       64    /* records of one look-up in hand */
#define FIND_GAP_MAX   64    /* offsets that are read over rather than jumped over */

struct part {
    rd_kafka_topic_t *rkt;
    int partition;
    int64_t next; /* records below it are left over from an earlier position */
    bool paused;
};

struct bus_consumer {
    rd_kafka_t *rk;
    rd_kafka_queue_t *queue;
    struct part *parts;
    int count;
    bool away;          /* librdkafka said so since the last poll */
    struct err delayed; /* came together with records; told at the next poll */
};

/* Runs inside rd_kafka_poll, so on the consumer's own thread. */
static void on_error(rd_kafka_t *rk, int code, const char *text, void *arg)
{
    struct bus_consumer *c = arg;
    if (code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) c->away = true;
    log_debug("bus.consumer", "client=%s error=\"%s\"", rd_kafka_name(rk), text);
}

/* How much is fetched ahead, and how long a fetch waits for what is not written yet. */
struct appetite {
    const char *wait_ms, *fetch_bytes, *ahead_messages, *ahead_kbytes;
};

static rd_kafka_conf_t *consumer_conf(struct bus_consumer *c, const char *brokers,
                                      const char *client_id, const struct appetite *a,
                                      struct err *e)
{
    const char *const pairs[][2] = {
        {"enable.auto.commit", "false"},
        {"enable.auto.offset.store", "false"},
        {"auto.offset.reset", "error"},
        {"isolation.level", "read_uncommitted"}, /* we write no transactions */
        {"check.crcs", "true"},
        {"fetch.min.bytes", "1"},
        {"fetch.wait.max.ms", a->wait_ms},
        {"fetch.error.backoff.ms", "100"},
        {"fetch.message.max.bytes", a->fetch_bytes},
        {"queued.min.messages", a->ahead_messages},
        {"queued.max.messages.kbytes", a->ahead_kbytes},
    };
    rd_kafka_conf_t *conf = bus_conf(brokers, client_id, e);
    for (size_t i = 0; conf && i < sizeof pairs / sizeof *pairs; i++) {
        if (bus_conf_set(conf, pairs[i][0], pairs[i][1], e) < 0) {
            rd_kafka_conf_destroy(conf);
            return NULL;
        }
    }
    if (!conf) return NULL;
    rd_kafka_conf_set_opaque(conf, c);
    rd_kafka_conf_set_error_cb(conf, on_error);
    return conf;
}

static struct bus_consumer *create(const char *brokers, const char *client_id,
                                   const struct appetite *a, struct err *e)
{
    struct bus_consumer *c = calloc(1, sizeof *c);
    if (!c) {
        err_set(e, ERR_RETRY, "out of memory for a consumer");
        return NULL;
    }
    rd_kafka_conf_t *conf = consumer_conf(c, brokers, client_id, a, e);
    c->rk = conf ? bus_client(RD_KAFKA_CONSUMER, conf, e) : NULL;
    if (!c->rk) {
        free(c);
        return NULL;
    }
    c->queue = rd_kafka_queue_new(c->rk);
    return c;
}

/* librdkafka stops to fetch when ahead_kbytes lie in its queue unpacked, but what one fetch brings is
 * bounded as it was packed, and is unpacked whole.  So a fetch asks for little.  A record of ours packs
 * to half a KiB at least, which its ids and its digest take: 32 KiB of a partition are 64 records at
 * most.  A larger record comes all the same, alone. */
struct bus_consumer *bus_consumer_create(const char *brokers, const char *client_id, struct err *e)
{
    return create(brokers, client_id,
                  &(struct appetite){.wait_ms = "100",
                                     .fetch_bytes = "32768",
                                     .ahead_messages = "10000",
                                     .ahead_kbytes = "16384"},
                  e);
}

/* A fetch that waits holds up the next one, for another place, on the same connection.  A record
 * larger than fetch_bytes comes all the same, alone. */
struct bus_consumer *bus_finder_create(const char *brokers, const char *client_id, struct err *e)
{
    return create(brokers, client_id,
                  &(struct appetite){.wait_ms = "5",
                                     .fetch_bytes = "262144",
                                     .ahead_messages = "64",
                                     .ahead_kbytes = "1024"},
                  e);
}

static void part_stop(struct part *it)
{
    if (!it->paused) rd_kafka_consume_stop(it->rkt, it->partition);
    rd_kafka_topic_destroy(it->rkt);
}

void bus_consumer_free(struct bus_consumer *c)
{
    if (!c) return;
    while (c->count)
        part_stop(&c->parts[--c->count]);
    rd_kafka_queue_destroy(c->queue);
    rd_kafka_destroy(c->rk);
    free(c->parts);
    free(c);
}

static struct part *part_find(struct bus_consumer *c, const char *topic, int partition)
{
    for (int i = 0; i < c->count; i++)
        if (c->parts[i].partition == partition &&
            !strcmp(rd_kafka_topic_name(c->parts[i].rkt), topic))
            return &c->parts[i];
    return NULL;
}

static int part_start(struct bus_consumer *c, const char *topic, int partition, int64_t offset,
                      struct err *e)
{
    struct part *grown = realloc(c->parts, ((size_t)c->count + 1) * sizeof *grown);
    if (!grown) return err_set(e, ERR_RETRY, "out of memory for a partition");
    c->parts = grown;
    rd_kafka_topic_t *rkt = rd_kafka_topic_new(c->rk, topic, NULL);
    if (!rkt)
        return err_set(e, ERR_BUG, "topic \"%s\": %s", topic,
                       rd_kafka_err2str(rd_kafka_last_error()));
    if (rd_kafka_consume_start_queue(rkt, partition, offset, c->queue) < 0) {
        err_set(e, ERR_BUG, "cannot read %s/%d from %lld: %s", topic, partition, (long long)offset,
                rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_topic_destroy(rkt);
        return -1;
    }
    c->parts[c->count++] = (struct part){.rkt = rkt, .partition = partition, .next = offset};
    return 0;
}

int bus_assign(struct bus_consumer *c, const char *topic, int partition, int64_t offset,
               struct err *e)
{
    int64_t first;
    if (offset < BUS_OFFSET_END || partition < 0)
        return err_set(e, ERR_BUG, "cannot read %s/%d from offset %lld", topic, partition,
                       (long long)offset);
    /* The end is looked up now: "from now on" must not mean "from when the broker answered". */
    if (offset == BUS_OFFSET_END &&
        bus_offsets(c, topic, partition, &first, &offset, OFFSET_WAIT_MS, e) < 0)
        return -1;
    struct err ignored = {0};
    if (bus_unassign(c, topic, partition, &ignored) < 0 && ignored.kind == ERR_LOST) {
        if (e) *e = ignored;
        return -1;
    }
    return part_start(c, topic, partition, offset, e);
}

int bus_unassign(struct bus_consumer *c, const char *topic, int partition, struct err *e)
{
    struct part *it = part_find(c, topic, partition);
    if (!it) return err_set(e, ERR_BUG, "%s/%d is not assigned", topic, partition);
    part_stop(it);
    *it = c->parts[--c->count];
    return 0;
}

/* Reading starts and stops whole: librdkafka's own pause keeps what it has fetched. */
int bus_pause(struct bus_consumer *c, const char *topic, int partition, struct err *e)
{
    struct part *it = part_find(c, topic, partition);
    if (!it) return err_set(e, ERR_BUG, "%s/%d is not assigned", topic, partition);
    if (!it->paused) rd_kafka_consume_stop(it->rkt, partition);
    it->paused = true;
    return 0;
}

int bus_resume(struct bus_consumer *c, const char *topic, int partition, struct err *e)
{
    struct part *it = part_find(c, topic, partition);
    if (!it) return err_set(e, ERR_BUG, "%s/%d is not assigned", topic, partition);
    if (!it->paused) return 0;
    if (rd_kafka_consume_start_queue(it->rkt, partition, it->next, c->queue) < 0)
        return err_set(e, ERR_BUG, "cannot read %s/%d from %lld: %s", topic, partition,
                       (long long)it->next, rd_kafka_err2str(rd_kafka_last_error()));
    it->paused = false;
    return 0;
}

/* ---------------------------------------------------------------- messages */

static size_t headers_size(const rd_kafka_headers_t *h, int *count)
{
    const char *name;
    const void *value;
    size_t size, total = 0;
    *count = 0;
    while (h && *count < BUS_HEADERS_MAX &&
           !rd_kafka_header_get_all(h, (size_t)*count, &name, &value, &size)) {
        total += strlen(name) + 1 + size + 1;
        (*count)++;
    }
    return total;
}

static char *put(char **at, const void *bytes, size_t size)
{
    char *start = *at;
    if (size) memcpy(start, bytes, size);
    start[size] = '\0';
    *at = start + size + 1;
    return start;
}

/* One allocation: the struct, then topic, key, headers and value, each with a NUL after it.  A
 * message so made may outlive its consumer, which librdkafka's own may not. */
static struct bus_message *copy_message(const rd_kafka_message_t *from, struct err *e)
{
    rd_kafka_headers_t *headers = NULL;
    rd_kafka_timestamp_type_t type;
    const char *topic = rd_kafka_topic_name(from->rkt);
    int count;
    if (rd_kafka_message_headers(from, &headers)) headers = NULL;
    size_t size = sizeof(struct bus_message) + headers_size(headers, &count) + strlen(topic) + 1 +
                  from->key_len + 1 + from->len + 1;
    struct bus_message *m = malloc(size);
    if (!m) {
        err_set(e, ERR_LOST, "out of memory for a record of %zu bytes", size);
        return NULL;
    }
    memset(m, 0, sizeof *m);
    char *at = (char *)(m + 1);
    m->topic = put(&at, topic, strlen(topic));
    m->partition = from->partition;
    m->offset = from->offset;
    m->append_ms = rd_kafka_message_timestamp(from, &type);
    if (from->key) m->key = put(&at, from->key, from->key_len);
    for (int i = 0; i < count; i++) {
        const char *name;
        const void *value;
        size_t value_size;
        rd_kafka_header_get_all(headers, (size_t)i, &name, &value, &value_size);
        m->headers[i].name = put(&at, name, strlen(name));
        m->headers[i].value = put(&at, value, value ? value_size : 0);
    }
    m->header_count = count;
    m->size = from->len;
    m->value = put(&at, from->payload, from->len);
    return m;
}

void bus_message_free(struct bus_message *m)
{
    free(m);
}

/* What an error that came instead of a record means to the reader. */
static void read_error(const rd_kafka_message_t *m, struct err *e)
{
    const char *topic = m->rkt ? rd_kafka_topic_name(m->rkt) : "";
    enum err_kind kind = ERR_RETRY;
    switch (m->err) {
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
    case RD_KAFKA_RESP_ERR__BAD_MSG:
    case RD_KAFKA_RESP_ERR__FATAL:
        kind = ERR_LOST;
        break;
    default:
        break;
    }
    err_set(e, kind, "cannot read %s/%d: %s", topic, m->partition,
            m->payload ? rd_kafka_message_errstr(m) : rd_kafka_err2str(m->err));
}

/* One thing from the queue: a record for out (1), something to skip (0), a failure (-1). */
static int take(struct bus_consumer *c, const rd_kafka_message_t *from, struct bus_message **out,
                struct err *e)
{
    if (from->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) return 0;
    if (from->err) {
        read_error(from, e);
        return -1;
    }
    struct part *it = part_find(c, rd_kafka_topic_name(from->rkt), from->partition);
    if (!it || it->paused || from->offset < it->next) return 0;
    *out = copy_message(from, e);
    if (!*out) return -1;
    it->next = from->offset + 1;
    return 1;
}

/* The first record is waited for, the rest is what is there: librdkafka's own batch call would wait
 * for a full one. */
static int fetch(struct bus_consumer *c, rd_kafka_message_t **raw, int max, int wait_ms)
{
    ssize_t n = rd_kafka_consume_batch_queue(c->queue, wait_ms, raw, 1);
    if (n <= 0 || max == 1) return (int)n;
    ssize_t more = rd_kafka_consume_batch_queue(c->queue, 0, raw + 1, (size_t)max - 1);
    return (int)n + (more > 0 ? (int)more : 0);
}

int bus_poll(struct bus_consumer *c, struct bus_message **out, int max, int wait_ms, struct err *e)
{
    rd_kafka_message_t *raw[POLL_MAX];
    int count = 0;
    if (c->delayed.kind) {
        if (e) *e = c->delayed;
        err_clear(&c->delayed);
        return -1;
    }
    rd_kafka_poll(c->rk, 0); /* on_error */
    int n = fetch(c, raw, max < POLL_MAX ? max : POLL_MAX, wait_ms);
    for (int i = 0; i < n; i++) {
        struct err why = {0};
        int got = take(c, raw[i], &out[count], &why);
        rd_kafka_message_destroy(raw[i]);
        if (got > 0) count++;
        /* A lost partition is worse news than a broker that is away. */
        if (got < 0 && (!c->delayed.kind || why.kind == ERR_LOST)) c->delayed = why;
    }
    bool away = c->away;
    c->away = false;
    if (count) return count;
    if (c->delayed.kind) {
        if (e) *e = c->delayed;
        err_clear(&c->delayed);
        return -1;
    }
    if (away && c->count) return err_set(e, ERR_RETRY, "no Kafka broker can be reached");
    return 0;
}

/* ---------------------------------------------------------------- offsets */

/* A partition that was just made, or whose broker just came, may have a leader that does not know it
 * yet. */
static bool leader_is_coming(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION ||
           code == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
           code == RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE;
}

int bus_offsets(struct bus_consumer *c, const char *topic, int partition, int64_t *first,
                int64_t *next, int timeout_ms, struct err *e)
{
    int64_t until = clock_mono_ms() + timeout_ms;
    for (;;) {
        rd_kafka_resp_err_t code =
            rd_kafka_query_watermark_offsets(c->rk, topic, partition, first, next, timeout_ms);
        if (!code) return 0;
        if (!leader_is_coming(code) || clock_mono_ms() >= until)
            return err_set(e, ERR_RETRY, "cannot look up the offsets of %s/%d: %s", topic,
                           partition, rd_kafka_err2str(code));
        clock_sleep_ms(LEADER_WAIT_MS);
    }
}

int bus_offset_at(struct bus_consumer *c, const char *topic, int partition, int64_t wall_ms,
                  int64_t *offset, int timeout_ms, struct err *e)
{
    int64_t first;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *it = rd_kafka_topic_partition_list_add(list, topic, partition);
    it->offset = wall_ms; /* in: a time; out: an offset */
    rd_kafka_resp_err_t code = rd_kafka_offsets_for_times(c->rk, list, timeout_ms);
    if (!code) code = it->err;
    *offset = it->offset;
    rd_kafka_topic_partition_list_destroy(list);
    if (code)
        return err_set(e, ERR_RETRY, "cannot look up the time %lld in %s/%d: %s",
                       (long long)wall_ms, topic, partition, rd_kafka_err2str(code));
    if (*offset >= 0) return 0;
    return bus_offsets(c, topic, partition, &first, offset, timeout_ms, e);
}

/* ---------------------------------------------------------------- looking up */

struct search {
    const char *topic;
    int partition;
    const int64_t *offsets;
    int count, at; /* the next to be found */
    int64_t deadline_ms;
    bus_found *found;
    void *arg;
};

/* Tells what m, the next record there is, says about those that are looked for. */
static void search_see(struct search *s, const struct bus_message *m)
{
    while (s->at < s->count && s->offsets[s->at] < m->offset)
        s->found(s->arg, s->at++, NULL);
    if (s->at < s->count && s->offsets[s->at] == m->offset) s->found(s->arg, s->at++, m);
}

/* Reads on from the next one until all are found or one lies far ahead. */
static int search_run(struct bus_consumer *c, struct search *s, struct err *e)
{
    struct bus_message *got[FIND_MAX];
    int64_t next = s->offsets[s->at];
    while (s->at < s->count && s->offsets[s->at] - next <= FIND_GAP_MAX) {
        int64_t left = s->deadline_ms - clock_mono_ms();
        if (left <= 0)
            return err_set(e, ERR_RETRY, "the record at offset %lld of %s/%d did not come in time",
                           (long long)s->offsets[s->at], s->topic, s->partition);
        int n = bus_poll(c, got, FIND_MAX, left < 100 ? (int)left : 100, e);
        if (n < 0 && e->kind == ERR_LOST) return -1;
        err_clear(e);
        for (int i = 0; i < n; i++) {
            search_see(s, got[i]);
            next = got[i]->offset + 1;
            bus_message_free(got[i]);
        }
    }
    return 0;
}

/* The next one is out of range: deleted, as all of them below the first that is there, or not
 * written. */
static int search_skip(struct bus_consumer *c, struct search *s, struct err *e)
{
    int64_t first, next, left = s->deadline_ms - clock_mono_ms();
    if (bus_offsets(c, s->topic, s->partition, &first, &next, left > 1 ? (int)left : 1, e) < 0)
        return -1;
    if (s->offsets[s->at] >= next)
        return err_set(e, ERR_USER, "there is no record at offset %lld of %s/%d, which ends at %lld",
                       (long long)s->offsets[s->at], s->topic, s->partition, (long long)next);
    if (s->offsets[s->at] >= first)
        return err_set(e, ERR_RETRY, "the record at offset %lld of %s/%d could not be read",
                       (long long)s->offsets[s->at], s->topic, s->partition);
    while (s->at < s->count && s->offsets[s->at] < first)
        s->found(s->arg, s->at++, NULL);
    return 0;
}

int bus_read_each(struct bus_consumer *c, const char *topic, int partition, const int64_t *offsets,
                  int count, int timeout_ms, bus_found *found, void *arg, struct err *e)
{
    struct search s = {.topic = topic,
                       .partition = partition,
                       .offsets = offsets,
                       .count = count,
                       .deadline_ms = clock_mono_ms() + timeout_ms,
                       .found = found,
                       .arg = arg};
    if (c->count) return err_set(e, ERR_BUG, "this consumer reads other partitions");
    while (s.at < s.count) {
        struct err why = {0};
        err_clear(&c->delayed); /* of an earlier look-up */
        if (part_start(c, topic, partition, offsets[s.at], e) < 0) return -1;
        int rc = search_run(c, &s, &why);
        part_stop(&c->parts[--c->count]);
        if (rc < 0 && why.kind != ERR_LOST) {
            *e = why;
            return -1;
        }
        if (rc < 0 && search_skip(c, &s, e) < 0) return -1;
    }
    return 0;
}

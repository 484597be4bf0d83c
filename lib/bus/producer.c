/* producer.c - an idempotent producer whose acks come from one thread; see bus.h.
 *
 * `waiting` counts records whose callback has not returned, so that a flush means "everybody has
 * been told", which librdkafka's own flush (it serves callbacks on the caller's thread) does not.
 */
#include "bus/bus.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "conf.h"

#define POLL_MS 100

struct bus_producer {
    rd_kafka_t *rk;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t waiting;
};

struct ack {
    bus_acked *acked;
    void *arg;
};

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

static struct timespec deadline_in(int ms)
{
    int64_t us = clock_mono_us() + (int64_t)(ms > 0 ? ms : 0) * 1000;
    return (struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
}

/* What a librdkafka error means to whoever produced. */
static enum err_kind kind_of(rd_kafka_t *rk, rd_kafka_resp_err_t code)
{
    if (code == RD_KAFKA_RESP_ERR__FATAL || rd_kafka_fatal_error(rk, NULL, 0)) return ERR_LOST;
    if (code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE) return ERR_USER;
    return ERR_RETRY;
}

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *arg)
{
    struct bus_producer *p = arg;
    struct ack *ack = m->_private;
    struct err e = {0};
    if (m->err)
        err_set(&e, kind_of(rk, m->err), "record for %s/%d was not acknowledged: %s",
                rd_kafka_topic_name(m->rkt), m->partition, rd_kafka_err2str(m->err));
    if (ack->acked) ack->acked(ack->arg, m->err ? -1 : m->offset, &e);
    free(ack);
    pthread_mutex_lock(&p->lock);
    if (--p->waiting == 0) pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_error(rd_kafka_t *rk, int code, const char *text, void *arg)
{
    char why[256];
    if (rd_kafka_fatal_error(rk, why, sizeof why))
        log_error("bus.producer.fatal", "client=%s error=\"%s\"", rd_kafka_name(rk), why);
    else
        log_warn("bus.producer", "client=%s error=\"%s\"", rd_kafka_name(rk), text);
}

static void *serve(void *arg)
{
    struct bus_producer *p = arg;
    while (!atomic_load(&p->stop))
        rd_kafka_poll(p->rk, POLL_MS);
    return NULL;
}

/* What timed out is not covered by librdkafka's own guarantee, so with it nothing times out. */
static rd_kafka_conf_t *producer_conf(struct bus_producer *p, const char *brokers,
                                      const struct bus_producer_conf *pc, struct err *e)
{
    char kbytes[32], ack_ms[32];
    size_t k = pc->queue_bytes_max / 1024;
    snprintf(ack_ms, sizeof ack_ms, "%d", pc->gapless ? 0 : pc->ack_ms ? pc->ack_ms : BUS_ACK_MS);
    snprintf(kbytes, sizeof kbytes, "%zu", k < 1 ? 1 : k > 2147483647 ? 2147483647 : k);
    const char *const pairs[][2] = {
        {"enable.idempotence", "true"},
        {"acks", "all"},
        {"linger.ms", "0"},
        {"compression.codec", "zstd"},
        {"delivery.timeout.ms", ack_ms},
        {"request.timeout.ms", "10000"},
        {"retry.backoff.ms", "50"},
        {"queue.buffering.max.kbytes", kbytes},
        {"queue.buffering.max.messages", "1000000"},
        {"enable.gapless.guarantee", "true"}, /* the last; librdkafka warns whenever it is set */
    };
    size_t count = sizeof pairs / sizeof *pairs - !pc->gapless;
    rd_kafka_conf_t *conf = bus_conf(brokers, pc->client_id, e);
    for (size_t i = 0; conf && i < count; i++) {
        if (bus_conf_set(conf, pairs[i][0], pairs[i][1], e) < 0) {
            rd_kafka_conf_destroy(conf);
            return NULL;
        }
    }
    if (!conf) return NULL;
    rd_kafka_conf_set_opaque(conf, p);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_conf_set_error_cb(conf, on_error);
    return conf;
}

struct bus_producer *bus_producer_create(const char *brokers, const struct bus_producer_conf *pc,
                                         struct err *e)
{
    struct bus_producer *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for a producer");
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    cond_init(&p->changed);
    rd_kafka_conf_t *conf = producer_conf(p, brokers, pc, e);
    p->rk = conf ? bus_client(RD_KAFKA_PRODUCER, conf, e) : NULL;
    if (!p->rk) goto fail;
    if (pthread_create(&p->thread, NULL, serve, p)) {
        err_set(e, ERR_RETRY, "cannot start the producer's thread");
        goto fail;
    }
    p->started = true;
    return p;
fail:
    bus_producer_free(p);
    return NULL;
}

void bus_producer_free(struct bus_producer *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    if (p->started) pthread_join(p->thread, NULL);
    if (p->rk) {
        /* Whoever waits for an ack is told that there will be none. */
        rd_kafka_purge(p->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        while (p->waiting)
            rd_kafka_poll(p->rk, POLL_MS);
        rd_kafka_destroy(p->rk);
    }
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int check_size(const struct bus_record *r, struct err *e)
{
    size_t size = r->size;
    if (r->header_count < 0 || r->header_count > BUS_HEADERS_MAX)
        return err_set(e, ERR_BUG, "a record with %d headers, expected at most %d", r->header_count,
                       BUS_HEADERS_MAX);
    if (size <= BUS_RECORD_MAX) {
        size += r->key ? strlen(r->key) : 0;
        for (int i = 0; i < r->header_count; i++)
            size += strlen(r->headers[i].name) + strlen(r->headers[i].value);
    }
    if (size > BUS_RECORD_MAX)
        return err_set(e, ERR_USER, "a record of %zu bytes, expected at most %u", size,
                       BUS_RECORD_MAX);
    return 0;
}

static rd_kafka_headers_t *copy_headers(const struct bus_record *r)
{
    rd_kafka_headers_t *h = rd_kafka_headers_new((size_t)r->header_count);
    for (int i = 0; i < r->header_count; i++)
        rd_kafka_header_add(h, r->headers[i].name, -1, r->headers[i].value, -1);
    return h;
}

/* The counter goes up before the record is queued: its ack may come before producev returns. */
static void count(struct bus_producer *p, int change)
{
    pthread_mutex_lock(&p->lock);
    p->waiting = change > 0 ? p->waiting + 1 : p->waiting - 1;
    if (!p->waiting) pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

/* The topic goes by its handle: one that is only named is looked up at librdkafka's next scan,
 * which may be a second away. */
static rd_kafka_resp_err_t queue(struct bus_producer *p, const struct bus_record *r,
                                 struct ack *ack)
{
    rd_kafka_topic_t *topic = rd_kafka_topic_new(p->rk, r->topic, NULL);
    if (!topic) return rd_kafka_last_error();
    rd_kafka_headers_t *headers = copy_headers(r);
    rd_kafka_resp_err_t code =
        rd_kafka_producev(p->rk, RD_KAFKA_V_RKT(topic), RD_KAFKA_V_PARTITION(r->partition),
                          RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                          RD_KAFKA_V_KEY((void *)r->key, r->key ? strlen(r->key) : 0),
                          RD_KAFKA_V_VALUE((void *)r->value, r->size), RD_KAFKA_V_HEADERS(headers),
                          RD_KAFKA_V_OPAQUE(ack), RD_KAFKA_V_END);
    if (code) rd_kafka_headers_destroy(headers); /* still ours when producev fails */
    rd_kafka_topic_destroy(topic);
    return code;
}

int bus_produce(struct bus_producer *p, const struct bus_record *r, bus_acked *acked, void *arg,
                struct err *e)
{
    if (check_size(r, e) < 0) return -1;
    struct ack *ack = malloc(sizeof *ack);
    if (!ack) return err_set(e, ERR_RETRY, "out of memory for a record");
    *ack = (struct ack){acked, arg};
    if (failpoint("bus.fatal", r->topic, NULL) < 0)
        rd_kafka_test_fatal_error(p->rk, RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, "forced");
    count(p, 1);
    rd_kafka_resp_err_t code = queue(p, r, ack);
    if (!code) return 0;
    count(p, -1);
    free(ack);
    return err_set(e, kind_of(p->rk, code), "cannot queue a record for %s/%d: %s", r->topic,
                   r->partition, rd_kafka_err2str(code));
}

/* ---------------------------------------------------------------- waiting */

/* Shared by the waiter and the callback; whoever is last frees it, for the waiter may give up
 * first. */
struct wait {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int users;
    bool done;
    int64_t offset;
    struct err e;
};

static void wait_leave(struct wait *w)
{
    pthread_mutex_lock(&w->lock);
    int left = --w->users;
    pthread_mutex_unlock(&w->lock);
    if (left) return;
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static void wait_acked(void *arg, int64_t offset, const struct err *e)
{
    struct wait *w = arg;
    pthread_mutex_lock(&w->lock);
    w->done = true;
    w->offset = offset;
    w->e = *e;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    wait_leave(w);
}

int64_t bus_produce_wait(struct bus_producer *p, const struct bus_record *r, int timeout_ms,
                         struct err *e)
{
    struct timespec deadline = deadline_in(timeout_ms);
    struct wait *w = calloc(1, sizeof *w);
    if (!w) return err_set(e, ERR_RETRY, "out of memory for a record");
    pthread_mutex_init(&w->lock, NULL);
    cond_init(&w->changed);
    w->users = 2;
    if (bus_produce(p, r, wait_acked, w, e) < 0) {
        w->users = 1;
        wait_leave(w);
        return -1;
    }
    int64_t offset = -1;
    int late = 0;
    pthread_mutex_lock(&w->lock);
    while (!w->done && !late)
        late = pthread_cond_timedwait(&w->changed, &w->lock, &deadline);
    if (!w->done)
        err_set(e, ERR_RETRY, "record for %s/%d was not acknowledged in %d ms", r->topic,
                r->partition, timeout_ms);
    else if (w->offset >= 0)
        offset = w->offset;
    else if (e)
        *e = w->e;
    pthread_mutex_unlock(&w->lock);
    wait_leave(w);
    return offset;
}

int bus_flush(struct bus_producer *p, int timeout_ms, struct err *e)
{
    struct timespec deadline = deadline_in(timeout_ms);
    int late = 0;
    pthread_mutex_lock(&p->lock);
    while (p->waiting && !late)
        late = pthread_cond_timedwait(&p->changed, &p->lock, &deadline);
    size_t left = p->waiting;
    pthread_mutex_unlock(&p->lock);
    if (!left) return 0;
    return err_set(e, ERR_RETRY, "%zu records were not acknowledged in %d ms", left, timeout_ms);
}

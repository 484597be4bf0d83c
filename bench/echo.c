/* echo.c - see echo.h. */
#include "echo.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"
#include "bus/bus.h"

#define PAYLOAD_SIZE 1024
#define QUEUE_BYTES  (1u << 20)
#define START_MS     15000
#define TRIP_MS      20000
#define RETENTION_MS (3600 * 1000)

struct side {
    char to[256];
    struct bus_producer *producer;
    struct bus_consumer *consumer;
};

struct echo {
    struct side near, far;
    pthread_t thread;
    bool started;
    atomic_bool stopping;
    struct err far_error; /* read after the thread has ended */
    atomic_bool far_failed;
};

static int side_open(struct side *s, const char *brokers, const char *name, const char *from,
                     const char *to, struct err *e)
{
    snprintf(s->to, sizeof s->to, "%s", to);
    s->producer = bus_producer_create(
        brokers, &(struct bus_producer_conf){.client_id = name, .queue_bytes_max = QUEUE_BYTES}, e);
    if (s->producer) s->consumer = bus_consumer_create(brokers, name, e);
    if (!s->consumer) return -1;
    return bus_assign(s->consumer, from, 0, BUS_OFFSET_END, e);
}

static void side_close(struct side *s)
{
    bus_consumer_free(s->consumer);
    bus_producer_free(s->producer);
}

static void on_acked(void *arg, int64_t offset, const struct err *e)
{
    (void)arg; /* a record that is lost is a round trip that does not end */
    (void)offset;
    (void)e;
}

static int send_record(struct side *s, struct err *e)
{
    static const char payload[PAYLOAD_SIZE];
    struct bus_record record = {.topic = s->to, .value = payload, .size = sizeof payload};
    return bus_produce(s->producer, &record, on_acked, NULL, e);
}

static void *answer(void *arg)
{
    struct echo *x = arg;
    while (!atomic_load(&x->stopping)) {
        struct bus_message *m = NULL;
        int count = bus_poll(x->far.consumer, &m, 1, 50, &x->far_error);
        if (count > 0) bus_message_free(m);
        if (count == 0 || (count > 0 && send_record(&x->far, &x->far_error) == 0)) continue;
        atomic_store(&x->far_failed, true);
        break;
    }
    return NULL;
}

struct echo *echo_create(const char *brokers, const char *prefix, struct err *e)
{
    char ping[200], pong[200];
    struct echo *x = calloc(1, sizeof *x);
    if (!x) {
        err_set(e, ERR_RETRY, "no memory for the echo");
        return NULL;
    }
    snprintf(ping, sizeof ping, "%sbench.ping", prefix);
    snprintf(pong, sizeof pong, "%sbench.pong", prefix);
    const struct bus_topic topics[] = {{ping, 1, RETENTION_MS}, {pong, 1, RETENTION_MS}};
    if (bus_topics_ensure(brokers, topics, 2, 1, START_MS, e) < 0) goto fail;
    if (side_open(&x->near, brokers, "tinworks-bench-near", pong, ping, e) < 0) goto fail;
    if (side_open(&x->far, brokers, "tinworks-bench-far", ping, pong, e) < 0) goto fail;
    if (pthread_create(&x->thread, NULL, answer, x)) {
        err_set(e, ERR_RETRY, "could not start a thread");
        goto fail;
    }
    x->started = true;
    return x;
fail:
    echo_free(x);
    return NULL;
}

void echo_free(struct echo *x)
{
    if (!x) return;
    atomic_store(&x->stopping, true);
    if (x->started) pthread_join(x->thread, NULL);
    side_close(&x->far);
    side_close(&x->near);
    free(x);
}

int echo_round_trip(struct echo *x, int64_t *took_us, struct err *e)
{
    struct bus_message *m = NULL;
    int64_t began_us = clock_mono_us(), until_ms = clock_mono_ms() + TRIP_MS;
    if (send_record(&x->near, e) < 0) return -1;
    while (!m) {
        if (atomic_load(&x->far_failed)) return err_set(e, ERR_RETRY, "the answering side failed");
        if (clock_mono_ms() > until_ms)
            return err_set(e, ERR_RETRY, "a round trip took more than %d ms", TRIP_MS);
        if (bus_poll(x->near.consumer, &m, 1, 100, e) < 0) return -1;
    }
    *took_us = clock_mono_us() - began_us;
    bus_message_free(m);
    return 0;
}

/* publisher.c - see publisher.h.
 *
 * The answer waits for the ack without a thread: the request is kept in `struct submit`, and the
 * producer's callback, which comes exactly once for each queued record, lets it go. */
#include "api/publisher.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/flight.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "bus/bus.h"

#define REBUILD_EVERY_MS 1000

struct publisher {
    const struct gateway_conf *conf;
    struct flight *flight;
    pthread_rwlock_t lock; /* of producer: shared to use it, exclusive to replace it */
    struct bus_producer *producer;
    atomic_bool lost;
    int64_t rebuilt_ms;
};

struct submit {
    struct publisher *publisher;
    struct http_request *r;
    char *answer; /* NULL: then */
    size_t answer_size;
    publisher_then *then;
    void *arg;
    char job_id[ID_SIZE];
    enum job_kind kind;
};

static struct bus_producer *make_producer(const struct publisher *p, struct err *e)
{
    const struct bus_producer_conf conf = {.client_id = "tinworks-gateway",
                                           .queue_bytes_max = (size_t)p->conf->queue_bytes_max,
                                           .ack_ms = (int)p->conf->ack_ms};
    return bus_producer_create(p->conf->kafka_brokers, &conf, e);
}

struct publisher *publisher_create(const struct gateway_conf *conf, struct flight *flight,
                                   struct err *e)
{
    struct publisher *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    p->conf = conf;
    p->flight = flight;
    pthread_rwlock_init(&p->lock, NULL);
    p->producer = make_producer(p, e);
    if (p->producer) return p;
    publisher_free(p);
    return NULL;
}

void publisher_free(struct publisher *p)
{
    if (!p) return;
    bus_producer_free(p->producer);
    pthread_rwlock_destroy(&p->lock);
    free(p);
}

void publisher_tick(struct publisher *p)
{
    struct err e = {0};
    if (!atomic_load(&p->lost) || clock_mono_ms() - p->rebuilt_ms < REBUILD_EVERY_MS) return;
    p->rebuilt_ms = clock_mono_ms();
    struct bus_producer *fresh = make_producer(p, &e);
    if (!fresh) {
        log_err("gateway.producer", &e);
        return;
    }
    pthread_rwlock_wrlock(&p->lock);
    struct bus_producer *dead = p->producer;
    p->producer = fresh;
    atomic_store(&p->lost, false);
    pthread_rwlock_unlock(&p->lock);
    bus_producer_free(dead);
    log_warn("gateway.producer", "what=\"the Kafka producer died and was made anew\"");
}

int publisher_flush(struct publisher *p, int timeout_ms, struct err *e)
{
    pthread_rwlock_rdlock(&p->lock);
    int rc = bus_flush(p->producer, timeout_ms, e);
    pthread_rwlock_unlock(&p->lock);
    return rc;
}

/* The record may or may not be in the log.  Its id is derived, so a retry is the same job. */
static void not_published(struct publisher *p, struct http_request *r, const char *job_id,
                          const struct err *e)
{
    flight_dropped(p->flight, job_id);
    if (e->kind == ERR_LOST) atomic_store(&p->lost, true);
    log_warn("gateway.publish", "text=\"%s\"", e->text);
    if (e->kind == ERR_USER)
        http_answer_error(r, 413, "the request does not fit one record");
    else
        http_answer_retry(r, 503, 1, "the job log cannot be written now, try again");
}

static void on_acked(void *arg, int64_t offset, const struct err *e)
{
    struct submit *s = arg;
    failpoint_pass("gw.after_ack", NULL);
    if (offset >= 0) flight_published(s->publisher->flight, s->job_id, offset);
    if (offset >= 0) failpoint_pass("gw.before_reply", NULL);
    if (offset >= 0 && s->then) {
        s->then(s->arg, s->r, s->job_id, s->kind);
    } else if (offset >= 0) {
        http_answer(s->r, 200, "application/json", s->answer, s->answer_size);
    } else {
        not_published(s->publisher, s->r, s->job_id, e);
        free(s->answer);
    }
    free(s);
}

static int produce(struct publisher *p, const char *model, const struct job *job, struct submit *s,
                   struct err *e)
{
    enum stream stream = job_kind_is_train(job->kind) ? STREAM_TRAIN : STREAM_SAMPLE;
    struct header headers[WIRE_HEADERS_MAX];
    struct job_scratch scratch;
    char topic[TOPIC_SIZE];

    if (topic_jobs(topic, p->conf->topic_prefix, model, stream, e) < 0) return -1;
    struct bus_record record = {.topic = topic,
                                .partition = job->partition,
                                .key = job->parent,
                                .headers = headers,
                                .header_count = job_headers(job, &scratch, headers),
                                .value = job->payload,
                                .size = job->size};
    if (failpoint("gw.before_produce", job->id, e) < 0) return -1;
    pthread_rwlock_rdlock(&p->lock);
    int rc = bus_produce(p->producer, &record, on_acked, s, e);
    pthread_rwlock_unlock(&p->lock);
    return rc;
}

/* Takes s; NULL: there was no memory for it. */
static void submit(struct publisher *p, struct http_request *r, const char *model,
                   const struct job *job, struct submit *s)
{
    struct err e = {0};
    if (!s)
        err_set(&e, ERR_RETRY, "out of memory");
    else if (produce(p, model, job, s, &e) == 0)
        return; /* from here on it is on_acked()'s */
    not_published(p, r, job->id, &e);
    if (s) free(s->answer);
    free(s);
}

void publisher_submit(struct publisher *p, struct http_request *r, const char *model,
                      const struct job *job, char *take_answer, size_t answer_size)
{
    struct submit *s = take_answer ? malloc(sizeof *s) : NULL;
    if (s) {
        *s = (struct submit){
            .publisher = p, .r = r, .answer = take_answer, .answer_size = answer_size};
        memcpy(s->job_id, job->id, sizeof s->job_id);
    } else {
        free(take_answer);
    }
    submit(p, r, model, job, s);
}

void publisher_submit_then(struct publisher *p, struct http_request *r, const char *model,
                           const struct job *job, publisher_then *then, void *arg)
{
    struct submit *s = malloc(sizeof *s);
    if (s) {
        *s = (struct submit){.publisher = p, .r = r, .then = then, .arg = arg, .kind = job->kind};
        memcpy(s->job_id, job->id, sizeof s->job_id);
    }
    submit(p, r, model, job, s);
}

/* publisher.h - jobs into Kafka; the client is answered when the broker has acknowledged.
 *
 * A producer that has died is replaced by publisher_tick().  Safe from any thread but for the tick.
 */
#ifndef API_PUBLISHER_H
#define API_PUBLISHER_H

#include "api/gateway.h"
#include "wire/job.h"

struct flight;
struct publisher;

/* flight is told of jobs that could not be published, and must outlive it. */
struct publisher *publisher_create(const struct gateway_conf *conf, struct flight *flight,
                                   struct err *e);
void publisher_free(struct publisher *p); /* what is not acknowledged yet is answered 503 */
void publisher_tick(struct publisher *p);
int publisher_flush(struct publisher *p, int timeout_ms, struct err *e) WARN_UNUSED;

/* Puts job on its model's log and answers r with 200 and take_answer (malloc'ed JSON, NULL: out of
 * memory) after the ack, with 503 if none comes in time.  The job and its payload are borrowed
 * until this returns. */
void publisher_submit(struct publisher *p, struct http_request *r, const char *model,
                      const struct job *job, char *take_answer, size_t answer_size);

/* The same, but after the ack r is then()'s. */
typedef void publisher_then(void *arg, struct http_request *r, const char *job_id,
                            enum job_kind kind);
void publisher_submit_then(struct publisher *p, struct http_request *r, const char *model,
                           const struct job *job, publisher_then *then, void *arg);

#endif

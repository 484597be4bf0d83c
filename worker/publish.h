/* publish.h - results out: in order, without waiting, every ack counted.
 *
 * A result is the commit point of its job, so nothing here may fail quietly: a delivery that is not acked ends the
 * process.  Acks arrive on librdkafka's thread and wait in a queue until the main thread collects them. */
#ifndef WORKER_PUBLISH_H
#define WORKER_PUBLISH_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "bus/bus.h"
#include "task.h"
#include "wire/result.h"

struct worker;
struct publisher;

struct publisher *publisher_create(const char *brokers, int slot, struct err *e);
void publisher_free(struct publisher *p); /* does not flush; NULL is fine */

/* Sends a result of t.  Waits for a good lease first; -1 when there is none to come. */
int publish_result(struct worker *w, struct task *t, struct result *r, struct err *e) WARN_UNUSED;
/* The same for a job without a task (refused before it had one). */
int publish_job_result(struct worker *w, struct shard *s, const struct job *job, struct result *r, struct err *e) WARN_UNUSED;

/* Ends a task: publishes what was decided, or, when the log has decided already, compares only.
 * ok takes payload (malloc'ed). */
int publish_ok(struct worker *w, struct task *t, enum content content, char *take_payload, size_t size,
               struct usage usage, struct err *e) WARN_UNUSED;
int publish_failed(struct worker *w, struct task *t, const char *text, struct err *e) WARN_UNUSED;
/* The same with category server: we could not do it, and trying again will not help. */
int publish_gave_up(struct worker *w, struct task *t, const char *text, struct err *e) WARN_UNUSED;
int publish_cancelled(struct worker *w, struct task *t, const char *text, struct err *e) WARN_UNUSED;

/* Writes the shard's barrier and waits for its ack; returns its offset or -1. */
int64_t publish_barrier(struct worker *w, const struct shard *s, struct err *e) WARN_UNUSED;

/* Copies an unreadable record to the dlq, with the reason, and waits for the ack. */
int publish_dlq(struct worker *w, const struct bus_message *m, const char *reason, struct err *e) WARN_UNUSED;

/* The same for a job that was read but cannot be run. */
int publish_job_dlq(struct worker *w, const struct task *t, const char *reason, struct err *e) WARN_UNUSED;

/* Books the acks that came; -1 when a delivery failed. */
int publish_collect(struct worker *w, struct err *e) WARN_UNUSED;
/* Waits until everything sent is acked, and books it. */
int publish_flush(struct worker *w, struct err *e) WARN_UNUSED;

#endif

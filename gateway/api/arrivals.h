/* arrivals.h - numbers for training calls that come without one.
 *
 * hpcai posts a call only after the last one was acknowledged, so arrival order is execution order.
 * A number is given out and remembered under the call's X-Idempotency-Key in one statement of
 * Postgres, before the job is published: a repeated call, to this gateway or another, before a
 * restart or after, gets the same number and so is the same job.  A call without a key is always a
 * new one. */
#ifndef API_ARRIVALS_H
#define API_ARRIVALS_H

#include "api/gateway.h"

#define ARRIVAL_KEY_MAX 512 /* bytes of X-Idempotency-Key */

/* STEP_ON: *seq is the call's number in that run.  Answers 400 (a key that is too long) or 503. */
enum step arrivals_number(struct call *c, const char *run, int64_t *seq);

/* The call's X-Idempotency-Key, or a fresh one for a call without.  -1: it is too long. */
int arrivals_key(struct call *c, char key[ARRIVAL_KEY_MAX + 1], struct err *e) WARN_UNUSED;

#endif

/* echo.h - the bare Kafka round trip: produce to one topic, a second thread answers on another.
 *
 * What a job costs at least: two produces with acks=all and two fetches on the same broker, with nothing between them. */
#ifndef BENCH_ECHO_H
#define BENCH_ECHO_H

#include <stdint.h>
#include "base/err.h"

struct echo;

/* Makes <prefix>bench.ping and <prefix>bench.pong when they are missing, and starts the second thread. */
struct echo *echo_create(const char *brokers, const char *prefix, struct err *e);
void echo_free(struct echo *x); /* NULL is fine */

/* There and back once. */
int echo_round_trip(struct echo *x, int64_t *took_us, struct err *e) WARN_UNUSED;

#endif

/* swarm.h - thousands of HTTP/1.1 connections on one thread, one POST at a time on each.
 *
 * A connection that ends while an answer is due is made anew and the POST is sent again, as an SDK
 * does; swarm_repeats() says how often.  Toward a loopback address connections come from several
 * addresses (127.0.0.2 and on), because a server bounds how many it takes from one. */
#ifndef BENCH_SWARM_H
#define BENCH_SWARM_H

#include <stddef.h>
#include "base/err.h"

struct swarm;

/* line's answer; body has a NUL behind it.  It may post on the same line again. */
typedef void swarm_answer(void *arg, int line, int status, const char *body, size_t size);

/* base_url is http://IPv4:port. */
struct swarm *swarm_create(const char *base_url, const char *api_key, int lines,
                           swarm_answer *answer, void *arg, struct err *e);
void swarm_free(struct swarm *s); /* NULL is fine */

/* Copies body.  The line must be idle. */
int swarm_post(struct swarm *s, int line, const char *path, const char *body, struct err *e);
/* Carries bytes for up to wait_ms. */
int swarm_step(struct swarm *s, int wait_ms, struct err *e) WARN_UNUSED;
int swarm_unsent(const struct swarm *s); /* posts that are not all on their way yet */
long long swarm_repeats(const struct swarm *s);

#endif

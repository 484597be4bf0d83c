/* client.h - one SDK client as the wire sees it: HTTP/1.1 over a kept connection, submit, then poll. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct client;

struct client *client_create(const char *base_url, const char *api_key, struct err *e);
void client_free(struct client *c); /* NULL is fine */

/* A session and a fresh adapter of the smallest size on model (NULL or "": the first that can be trained). */
int client_open(struct client *c, const char *model, struct err *e) WARN_UNUSED;
const char *client_model(const struct client *c);
const char *client_run(const struct client *c); /* the adapter's id */

/* Each waits for the final answer.  *ack_us is when the request id came, *answer_us when the answer did, both after
 * the first byte was sent. */
struct took {
    int64_t ack_us, answer_us;
};
int client_optim_step(struct client *c, struct took *took, struct err *e) WARN_UNUSED;
/* Only sends it; the answer is not waited for. */
int client_submit_step(struct client *c, struct err *e) WARN_UNUSED;
/* A forward of one token, in protobuf as the SDK sends it. */
int client_forward(struct client *c, struct took *took, struct err *e) WARN_UNUSED;

/* Ends the session, so that the server need not wait for heartbeats. */
void client_finish(struct client *c);

#endif

/* answer.h - a settled or pending future as an HTTP answer, in the form that this client reads. */
#ifndef API_ANSWER_H
#define API_ANSWER_H

#include "api/queue.h"
#include "http/server.h"
#include "store/store.h"
#include "wire/kind.h"

/* How one poll wants to be answered; taken from its headers when it comes. */
struct manner {
    bool protobuf;    /* it accepts protobuf results */
    bool pending_408; /* tinker is silent on 408, others want 200 */
    bool hpcai;       /* it has other words for what is pending, and for what is too much */
    bool direct;      /* it asked for the result itself: a failure is a 400 */
};
struct manner manner_of(const struct http_request *r);

/* f is copied where it has to be kept. */
void answer_settled(struct http_request *r, struct manner m, const char *id, enum job_kind kind,
                    const struct future *f);
void answer_pending(struct http_request *r, struct manner m, const char *id,
                    const struct queue_state *q);
/* There is too much to do: in the form that makes this client wait before it polls again. */
void answer_busy(struct http_request *r, struct manner m, const char *why);
void answer_failed(struct http_request *r, const char *category, const char *text);

#endif

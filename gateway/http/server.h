/* server.h - an HTTP/1.1 server on libmicrohttpd: routes, bounded bodies, answers now or later.
 *
 * A few event threads carry all connections.  A handler is called there once the whole body is in
 * memory; it may answer at once, keep the request and let any thread answer later, or ask to be
 * called again on a worker thread because it has to wait for something.  Every request is answered
 * exactly once; after http_answer*() it belongs to the server and must not be touched.
 *
 * The server answers by itself: 400 (a target or headers that cannot be right), 404, 405, 411, 413,
 * 414, 431, 503.  Error bodies are JSON, {"detail": text}, but for what the library refuses before
 * we see it.  A body that was announced too large is refused before it is read; one that is not
 * announced is not taken (head.h).  Who is too slow is cut without an answer (watch.h). */
#ifndef HTTP_SERVER_H
#define HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define HTTP_HEADERS_MAX      100
#define HTTP_HEADER_BYTES_MAX (8u << 10)

struct http_server;
struct http_request;

enum http_verdict {
    HTTP_TAKEN,  /* answered, or kept and to be answered later */
    HTTP_WORKER, /* call me again on a worker thread; only when worker is NULL */
};

/* tag is the route's.  worker is NULL on an event thread, else what worker_create made for this
 * thread. */
typedef enum http_verdict http_handler(void *ctx, void *worker, struct http_request *r,
                                       const void *tag);

struct http_route {
    const char *method;
    const char *pattern; /* path.h */
    size_t body_max;
    http_handler *handler;
    const void *tag;
};

struct http_conf {
    const char *address; /* IPv4, dotted */
    int port;            /* 0: any free one */
    int threads;         /* event threads */
    int workers;         /* worker threads */
    int workers_queue_max;
    int connections_max;           /* lowered to what this process may open, see descriptors.h */
    int connections_per_address;   /* 0: as many as there are */
    const char *certificate, *key; /* PEM files: HTTPS; NULL or "": HTTP */
    int64_t head_ms, body_ms;      /* watch.h */
    bool log_requests;             /* one line an answered request: method, route, client, status */
    int idle_s; /* a silent connection is closed after this; parked requests are not silent */
    const struct http_route *routes; /* borrowed */
    int route_count;
    void *ctx;
    /* when too many wait for a worker; NULL: 503 */
    int (*busy_status)(const struct http_request *r);
    void *(*worker_create)(void *ctx, struct err *e);
    void (*worker_free)(void *worker);
};

/* Binds and serves.  NULL on failure. */
struct http_server *http_server_create(const struct http_conf *conf, struct err *e);
int http_server_port(const struct http_server *s);
int http_server_waiting(const struct http_server *s); /* requests whose answer is not sent yet */

int64_t http_server_cuts(const struct http_server *s); /* connections that were too slow */

/* Takes no more connections; those that are open go on, and are closed after their next answer. */
void http_server_quiesce(struct http_server *s);
/* From now on no handler is called any more; requests get 503.  Once http_server_waiting() is 0
 * after this, what the handlers use may go. */
void http_server_refuse(struct http_server *s);
/* Only when no request is waiting. */
void http_server_free(struct http_server *s);

/* ---------------------------------------------------------------- the request */

const char *http_header(const struct http_request *r, const char *name); /* NULL: absent */
/* Whether one of the accept headers names that type ("application/x-protobuf"). */
bool http_accepts(const struct http_request *r, const char *type);
const char *http_body(const struct http_request *r, size_t *size); /* never NULL; NUL after it */
/* Replaces a body that came as zstd by what is in it, size_max bytes at most; size_max 0: none is
 * taken that is encoded.  0, or the status to refuse it with and why.  Again is fine. */
#define HTTP_WHY_SIZE 128
int http_unpack(struct http_request *r, size_t size_max, char why[HTTP_WHY_SIZE]) WARN_UNUSED;
/* The segment of the index-th "*"; NULL when the pattern has fewer. */
const char *http_star(const struct http_request *r, int index);
const char *http_query(const struct http_request *r, const char *name);
uint32_t http_peer(const struct http_request *r); /* IPv4 address, host order */

/* Whether the peer has closed its end.  Only for a request that is kept and that nobody else can
 * answer now. */
bool http_peer_gone(const struct http_request *r);

/* ---------------------------------------------------------------- the answer */

/* take_body was malloc'ed (NULL with size 0: none); content_type NULL only without a body. */
void http_answer(struct http_request *r, int status, const char *content_type, char *take_body,
                 size_t size);
/* size bytes of take_fd from offset on; the descriptor is closed when they are sent. */
void http_answer_file(struct http_request *r, int status, const char *content_type, int take_fd,
                      uint64_t offset, uint64_t size);

/* size bytes that are made while they are sent: read() fills up to max bytes (at least one) of what
 * is at pos, where the last call ended, and returns how many, or -1, which cuts the connection.  It
 * runs on an event thread.  done() is called once, whatever became of the answer. */
struct http_source {
    void *arg;
    long (*read)(void *arg, uint64_t pos, char *out, size_t max);
    void (*done)(void *arg);
};
void http_answer_stream(struct http_request *r, int status, const char *content_type, uint64_t size,
                        const struct http_source *source);

/* Goes out with the answer; call it before that.  At most HTTP_EXTRAS_MAX of them; name is kept as
 * it is, value is copied and cut at HTTP_EXTRA_SIZE. */
#define HTTP_EXTRAS_MAX 4
#define HTTP_EXTRA_SIZE 256
void http_set_header(struct http_request *r, const char *name, const char *value);

/* {"detail": text} */
void http_answer_error(struct http_request *r, int status, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* The same, with a Retry-After header. */
void http_answer_retry(struct http_request *r, int status, int retry_after_s, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

#endif

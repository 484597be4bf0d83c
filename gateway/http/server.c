/* server.c - see server.h.
 *
 * The life of a request: libmicrohttpd shows us its target (on_target), its headers, its body in
 * pieces, and its end (on_request); then the handler runs.  A request that is not answered when the
 * handler returns is suspended: its socket leaves the epoll set and costs nothing until
 * http_answer() resumes it.
 *
 * `state` decides between the event thread that wants to suspend and the thread that wants to
 * answer.  Only the one that sees the other's mark acts:
 *
 *   RUNNING ── event thread, after suspending ──▶ SUSPENDED ── answer: resume ──▶ ANSWERED
 *      └────── answer (nothing to resume yet) ───────────────────────────────────▶ ANSWERED */
#include "http/server.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "http/descriptors.h"
#include "http/detail.h"
#include "http/head.h"
#include "http/path.h"
#include "http/tls.h"
#include "http/unpack.h"
#include "http/watch.h"
#include "http/workers.h"

/* What a connection has for its head and for reading.  The library clears all of it between two
 * requests, so every parked poll of a connection that is kept costs this much. */
#define CONNECTION_MEMORY (16u << 10)
#define DISCARD_MAX       (64u << 10) /* read and dropped past a body's limit */
#define REFUSED_BODY_MAX  (1u << 20)  /* read and dropped so that a refusal keeps its connection */
#define STREAM_BLOCK      (64u << 10) /* of an answer that is made while it is sent */

struct http_server {
    struct http_conf conf;
    struct MHD_Daemon *daemon;
    struct workers *workers;
    struct watch *watch;
    int listen_fd; /* ours once quiesced */
    atomic_bool quiesced, refusing;
    atomic_int waiting; /* handlers' requests that are not answered */
    atomic_int unsent;  /* those whose answer is not on its way yet, a little longer */
};

enum state { RUNNING, SUSPENDED, ANSWERED };

struct http_request {
    struct http_server *server;
    struct MHD_Connection *connection;
    struct watched *watched;
    const struct http_route *route;
    struct path path;
    bool path_ok, target_long, begun, called, unpacked;
    bool discard;   /* refused already: the body is read and dropped */
    bool close;     /* the connection ends with this answer */
    size_t dropped; /* bytes past the limit */
    struct buf body;
    int stars[PATH_SEGMENTS_MAX];
    int fd;
    atomic_int state;
    /* the answer */
    int status, retry_after_s;
    const char *content_type;
    char *answer; /* in memory, unless one of the next two has it */
    size_t answer_size;
    int file; /* -1: none */
    struct http_source source;
    uint64_t part_offset, part_size; /* of the file or the source */
    int extra_count;
    struct extra *extras; /* few answers have any, and a parked request costs what is in here */
};

struct extra {
    const char *name;
    char value[HTTP_EXTRA_SIZE];
};

/* ---------------------------------------------------------------- answering */

static void set_answer(struct http_request *r, int status, const char *content_type,
                       char *take_body, size_t size)
{
    r->status = status;
    r->content_type = content_type;
    r->answer = take_body;
    r->answer_size = size;
}

static void set_detail(struct http_request *r, int status, const char *text)
{
    size_t size = 0;
    char *body = detail_json(text, &size);
    set_answer(r, status, body ? "application/json" : NULL, body, size);
}

/* Lets the answer that was set go out.  r may be gone when this returns. */
static void release(struct http_request *r)
{
    struct MHD_Connection *connection = r->connection;
    struct http_server *s = r->server;
    if (atomic_exchange(&r->state, ANSWERED) == SUSPENDED) MHD_resume_connection(connection);
    atomic_fetch_sub(&s->waiting, 1); /* last: at zero nobody is about to resume anything */
}

void http_answer(struct http_request *r, int status, const char *content_type, char *take_body,
                 size_t size)
{
    set_answer(r, status, content_type, take_body, size);
    release(r);
}

void http_answer_error(struct http_request *r, int status, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list va;
    va_start(va, fmt);
    vsnprintf(text, sizeof text, fmt, va);
    va_end(va);
    set_detail(r, status, text);
    release(r);
}

void http_answer_retry(struct http_request *r, int status, int retry_after_s, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list va;
    va_start(va, fmt);
    vsnprintf(text, sizeof text, fmt, va);
    va_end(va);
    r->retry_after_s = retry_after_s;
    set_detail(r, status, text);
    release(r);
}

void http_answer_file(struct http_request *r, int status, const char *content_type, int take_fd,
                      uint64_t offset, uint64_t size)
{
    set_answer(r, status, content_type, NULL, 0);
    r->file = take_fd;
    r->part_offset = offset;
    r->part_size = size;
    release(r);
}

void http_answer_stream(struct http_request *r, int status, const char *content_type, uint64_t size,
                        const struct http_source *source)
{
    set_answer(r, status, content_type, NULL, 0);
    r->source = *source;
    r->part_size = size;
    release(r);
}

void http_set_header(struct http_request *r, const char *name, const char *value)
{
    assert(r->extra_count < HTTP_EXTRAS_MAX);
    if (!r->extras) r->extras = calloc(HTTP_EXTRAS_MAX, sizeof *r->extras);
    if (!r->extras) return;
    r->extras[r->extra_count].name = name;
    snprintf(r->extras[r->extra_count].value, HTTP_EXTRA_SIZE, "%s", value);
    r->extra_count++;
}

static ssize_t read_source(void *cls, uint64_t pos, char *out, size_t max)
{
    const struct http_source *source = cls;
    long n = source->read(source->arg, pos, out, max);
    return n > 0 ? n : MHD_CONTENT_READER_END_WITH_ERROR;
}

static void end_source(void *cls)
{
    struct http_source *source = cls;
    source->done(source->arg);
    free(source);
}

static struct MHD_Response *stream_response(struct http_request *r)
{
    struct http_source *source = malloc(sizeof *source);
    if (!source) return NULL; /* the source is ended with r */
    *source = r->source;
    struct MHD_Response *response = MHD_create_response_from_callback(
        r->part_size, STREAM_BLOCK, read_source, source, end_source);
    if (!response) {
        free(source);
        return NULL;
    }
    r->source.done = NULL;
    return response;
}

/* NULL: what the answer is made of stays r's and is freed with it. */
static struct MHD_Response *make_response(struct http_request *r)
{
    struct MHD_Response *response;
    if (r->source.done) return stream_response(r);
    if (r->file >= 0) {
        response = MHD_create_response_from_fd_at_offset64(r->part_size, r->file, r->part_offset);
        if (response) r->file = -1;
    } else if (r->answer_size) {
        response =
            MHD_create_response_from_buffer_with_free_callback(r->answer_size, r->answer, free);
        if (response) r->answer = NULL;
    } else {
        response = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
    }
    return response;
}

/* The route, not the target: ids and names are not for the log.  The agent's text is the client's,
 * so only what cannot break a line is kept of it. */
static void log_request(const struct http_request *r)
{
    char agent[80];
    const char *given = http_header(r, MHD_HTTP_HEADER_USER_AGENT);
    snprintf(agent, sizeof agent, "%s", given ? given : "");
    for (char *at = agent; *at; at++)
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\') *at = '?';
    log_info("http.request", "method=%s route=%s agent=\"%s\" status=%d",
             r->route ? r->route->method : "-", r->route ? r->route->pattern : "-", agent,
             r->status);
}

static enum MHD_Result queue_answer(struct http_request *r)
{
    if (r->server->conf.log_requests) log_request(r);
    struct MHD_Response *response = make_response(r);
    if (!response) return MHD_NO; /* closes the connection */
    if (r->content_type) MHD_add_response_header(response, "Content-Type", r->content_type);
    for (int i = 0; i < r->extra_count; i++)
        MHD_add_response_header(response, r->extras[i].name, r->extras[i].value);
    if (r->retry_after_s) {
        char text[16];
        snprintf(text, sizeof text, "%d", r->retry_after_s);
        MHD_add_response_header(response, "Retry-After", text);
    }
    if (r->close || atomic_load(&r->server->quiesced))
        MHD_add_response_header(response, "Connection", "close");
    enum MHD_Result rc = MHD_queue_response(r->connection, (unsigned)r->status, response);
    MHD_destroy_response(response);
    return rc;
}

/* ---------------------------------------------------------------- headers and body */

static void refuse(struct http_request *r, int status, bool close, const char *text)
{
    r->discard = true;
    r->close |= close;
    set_detail(r, status, text);
}

static void find_route(struct http_request *r, const char *method)
{
    bool path_known = false;
    const struct http_conf *conf = &r->server->conf;
    for (int i = 0; i < conf->route_count; i++) {
        memset(r->stars, -1, sizeof r->stars);
        if (!path_matches(&r->path, conf->routes[i].pattern, r->stars)) continue;
        path_known = true;
        if (strcmp(conf->routes[i].method, method) != 0) continue;
        r->route = &conf->routes[i];
        return;
    }
    if (path_known)
        refuse(r, 405, false, "this address does not know that method");
    else
        refuse(r, 404, false, "there is nothing at this address");
}

/* The head is fine: who answers, and is the body small enough? */
static void admit(struct http_request *r, const char *method, long long length)
{
    struct err e = {0};
    find_route(r, method);
    size_t body_max = r->route ? r->route->body_max : REFUSED_BODY_MAX;
    buf_init(&r->body, body_max);
    if (length > (long long)body_max) {
        char text[96];
        snprintf(text, sizeof text, "the body has %lld bytes, at most %zu are taken here", length,
                 body_max);
        if (!r->discard) refuse(r, 413, true, text);
        r->close = true;
    } else if (!r->discard && length > 0 && buf_reserve(&r->body, (size_t)length, &e) < 0) {
        refuse(r, 503, true, "no memory for the body now");
    }
}

/* With all headers there. */
static void begin(struct http_request *r, const char *method, const char *version)
{
    struct head head;
    head_read(&head, r->connection, method, version);
    if (r->target_long)
        refuse(r, 414, true, "the request target is too long");
    else if (head.status)
        refuse(r, head.status, true, head.why);
    else if (!r->path_ok)
        refuse(r, 400, true, "the request target cannot be read");
    else
        admit(r, method, head.length);
    if (head.length > 0)
        watched_body(r->watched);
    else
        watched_answer(r->watched);
}

/* One piece of the body.  -1: cut the connection, nobody listens there. */
static int take_body(struct http_request *r, const char *bytes, size_t size)
{
    struct err e = {0};
    watched_bytes(r->watched, size);
    if (!r->discard && buf_append(&r->body, bytes, size, &e) < 0)
        refuse(r, 503, true, "no memory for the body now");
    if (!r->discard) return 0;
    r->dropped += size;
    return r->dropped > (r->close ? DISCARD_MAX : REFUSED_BODY_MAX) ? -1 : 0;
}

/* ---------------------------------------------------------------- dispatch */

static void run_on_worker(void *arg, void *worker, void *item)
{
    struct http_server *s = arg;
    struct http_request *r = item;
    enum http_verdict v = r->route->handler(s->conf.ctx, worker, r, r->route->tag);
    assert(v == HTTP_TAKEN);
    (void)v;
}

static enum MHD_Result dispatch(struct http_request *r)
{
    struct http_server *s = r->server;
    int running = RUNNING;

    r->called = true;
    watched_answer(r->watched);
    r->fd = MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    atomic_fetch_add(&s->unsent, 1);
    atomic_fetch_add(&s->waiting, 1); /* before the look at refusing, see http_server_refuse() */
    if (atomic_load(&s->refusing)) {
        http_answer_retry(r, 503, 1, "this server is stopping");
        return queue_answer(r);
    }
    enum http_verdict v = r->route->handler(s->conf.ctx, NULL, r, r->route->tag);
    if (v == HTTP_TAKEN && atomic_load(&r->state) == ANSWERED) return queue_answer(r);

    MHD_suspend_connection(r->connection);
    if (!atomic_compare_exchange_strong(&r->state, &running, SUSPENDED)) {
        MHD_resume_connection(r->connection); /* answered in between */
        return MHD_YES;
    }
    if (v == HTTP_WORKER && workers_add(s->workers, r) < 0)
        http_answer_retry(r, s->conf.busy_status ? s->conf.busy_status(r) : 503, 1,
                          "too many requests are waiting");
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **con_cls)
{
    struct http_request *r = *con_cls;
    (void)cls, (void)url;
    if (!r) return MHD_NO;
    if (!r->begun) {
        r->begun = true;
        begin(r, method, version);
        return r->discard && r->close ? queue_answer(r) : MHD_YES;
    }
    if (*upload_size) {
        int rc = take_body(r, upload, *upload_size);
        *upload_size = 0;
        return rc < 0 ? MHD_NO : MHD_YES;
    }
    if (r->discard || r->called) return queue_answer(r);
    return dispatch(r);
}

static void *on_target(void *cls, const char *target, struct MHD_Connection *connection)
{
    struct http_request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->server = cls;
    r->connection = connection;
    r->file = -1;
    r->watched =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    watched_head(r->watched);
    r->target_long = strlen(target) > PATH_TARGET_MAX;
    r->path_ok = path_init(&r->path, target) == 0;
    return r;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct http_request *r = *con_cls;
    (void)cls, (void)connection, (void)why;
    if (!r) return;
    if (r->called) atomic_fetch_sub(&r->server->unsent, 1);
    watched_rest(r->watched);
    path_clear(&r->path);
    buf_clear(&r->body);
    free(r->answer);
    free(r->extras);
    if (r->file >= 0) close(r->file);
    if (r->source.done) r->source.done(r->source.arg);
    free(r);
    *con_cls = NULL;
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http_server *s = cls;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        watch_remove(*context);
        *context = NULL;
        return;
    }
    *context = watch_add(
        s->watch,
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd);
}

/* path.c decodes, after splitting; libmicrohttpd must leave the target as it came. */
static size_t keep_escapes(void *cls, struct MHD_Connection *connection, char *s)
{
    (void)cls, (void)connection;
    return strlen(s);
}

static void on_log(void *cls, const char *fmt, va_list va)
{
    char text[256];
    (void)cls;
    vsnprintf(text, sizeof text, fmt, va);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("http.library", "text=\"%s\"", text);
}

/* ---------------------------------------------------------------- the server */

static struct MHD_Daemon *start_daemon(struct http_server *s, const struct sockaddr_in *at,
                                       const struct tls *tls)
{
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem secrets[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, tls->certificate},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, tls->key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)TLS_PRIORITIES},
        {MHD_OPTION_END, 0, NULL},
    };
    if (tls->certificate) flags |= MHD_USE_TLS;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_SOCK_ADDR, at, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)s->conf.threads,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->conf.connections_max,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)s->conf.connections_per_address,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)s->conf.idle_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY, MHD_OPTION_LISTEN_BACKLOG_SIZE, 1024u,
        MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_URI_LOG_CALLBACK, on_target, s,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        NULL, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL, MHD_OPTION_ARRAY,
        tls->certificate ? secrets : secrets + 3, MHD_OPTION_END);
}

static struct workers *start_workers(struct http_server *s, struct err *e)
{
    struct workers_conf workers = {.count = s->conf.workers,
                                   .queue_max = s->conf.workers_queue_max,
                                   .run = run_on_worker,
                                   .arg = s,
                                   .ctx = s->conf.ctx,
                                   .create = s->conf.worker_create,
                                   .free = s->conf.worker_free};
    return workers_create(&workers, e);
}

static int serve(struct http_server *s, const struct tls *tls, struct err *e)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->conf.port)};
    struct watch_conf watch = {.head_ms = s->conf.head_ms, .body_ms = s->conf.body_ms};
    if (inet_pton(AF_INET, s->conf.address, &at.sin_addr) != 1)
        return err_set(e, ERR_USER, "\"%s\" is no IPv4 address", s->conf.address);
    s->conf.connections_max = descriptors_raise(s->conf.connections_max);
    if (!(s->watch = watch_create(&watch, e)) || !(s->workers = start_workers(s, e))) return -1;
    s->daemon = start_daemon(s, &at, tls);
    if (s->daemon) return 0;
    return err_set(e, ERR_RETRY, "could not listen on %s:%d: %s", s->conf.address, s->conf.port,
                   strerror(errno));
}

struct http_server *http_server_create(const struct http_conf *conf, struct err *e)
{
    struct tls tls;
    if (tls_read(&tls, conf->certificate, conf->key, e) < 0) return NULL;
    struct http_server *s = calloc(1, sizeof *s);
    if (s) {
        s->conf = *conf;
        s->listen_fd = -1;
    } else {
        err_set(e, ERR_RETRY, "out of memory");
    }
    if (s && serve(s, &tls, e) < 0) {
        http_server_free(s);
        s = NULL;
    }
    tls_clear(&tls); /* the library has its own copy */
    return s;
}

int http_server_port(const struct http_server *s)
{
    return MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

int http_server_waiting(const struct http_server *s)
{
    int unsent = atomic_load(&s->unsent);
    return unsent ? unsent : atomic_load(&s->waiting);
}

int64_t http_server_cuts(const struct http_server *s)
{
    return watch_cuts(s->watch);
}

void http_server_quiesce(struct http_server *s)
{
    if (atomic_exchange(&s->quiesced, true)) return;
    s->listen_fd = MHD_quiesce_daemon(s->daemon);
    if (s->listen_fd >= 0) shutdown(s->listen_fd, SHUT_RDWR);
}

void http_server_refuse(struct http_server *s)
{
    atomic_store(&s->refusing, true);
}

void http_server_free(struct http_server *s)
{
    if (!s) return;
    if (s->daemon) MHD_stop_daemon(s->daemon);
    workers_free(s->workers);
    watch_free(s->watch);
    if (s->listen_fd >= 0) close(s->listen_fd);
    free(s);
}

/* ---------------------------------------------------------------- reading the request */

const char *http_header(const struct http_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, name);
}

struct accepts {
    const char *type;
    bool found;
};

static enum MHD_Result look_at_accept(void *cls, enum MHD_ValueKind kind, const char *name,
                                      const char *value)
{
    struct accepts *a = cls;
    (void)kind;
    if (value && !strcasecmp(name, MHD_HTTP_HEADER_ACCEPT) && strcasestr(value, a->type))
        a->found = true;
    return MHD_YES;
}

bool http_accepts(const struct http_request *r, const char *type)
{
    struct accepts a = {type, false};
    MHD_get_connection_values(r->connection, MHD_HEADER_KIND, look_at_accept, &a);
    return a.found;
}

const char *http_body(const struct http_request *r, size_t *size)
{
    *size = r->body.size;
    return r->body.size ? r->body.data : "";
}

int http_unpack(struct http_request *r, size_t size_max, char why[HTTP_WHY_SIZE])
{
    const char *encoding = http_header(r, MHD_HTTP_HEADER_CONTENT_ENCODING);
    if (r->unpacked || !encoding || !*encoding || !strcasecmp(encoding, "identity")) return 0;
    if (strcasecmp(encoding, "zstd") != 0 || !size_max) {
        snprintf(why, HTTP_WHY_SIZE, "the body is encoded (Content-Encoding), expected it plain%s",
                 size_max ? " or as zstd" : "");
        return 415;
    }
    r->unpacked = true;
    switch (unpack_zstd(&r->body, size_max)) {
    case UNPACK_OK:
        return 0;
    case UNPACK_TOO_LARGE:
        snprintf(why, HTTP_WHY_SIZE,
                 "the body is larger than %zu bytes once it is unpacked, or needs a window of more "
                 "than %u",
                 size_max, 1u << UNPACK_WINDOW_LOG);
        return 413;
    case UNPACK_BAD:
        snprintf(why, HTTP_WHY_SIZE, "the body is not one whole zstd frame");
        return 400;
    case UNPACK_NO_MEMORY:
        break;
    }
    snprintf(why, HTTP_WHY_SIZE, "no memory for the body now");
    return 503;
}

const char *http_star(const struct http_request *r, int index)
{
    return r->stars[index] < 0 ? NULL : r->path.segments[r->stars[index]];
}

const char *http_query(const struct http_request *r, const char *name)
{
    return path_query(&r->path, name);
}

uint32_t http_peer(const struct http_request *r)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info ? info->client_addr : NULL;
    if (!address || address->sa_family != AF_INET) return 0;
    return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr);
}

/* Not by reading: what TLS says last, or a next request, may lie in front of the end. */
bool http_peer_gone(const struct http_request *r)
{
    struct pollfd p = {.fd = r->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0;
}

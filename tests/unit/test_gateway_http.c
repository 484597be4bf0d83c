/* test_gateway_http.c - the server, spoken to over a loopback socket, byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "http/detail.h"
#include "http/server.h"

#define BODY_MAX    100
#define ANSWER_MAX  65536
#define PATIENCE_MS 20000

static struct http_server *server;
static _Atomic(struct http_request *) kept;
static int a_worker; /* its address is the worker */

static void answer_text(struct http_request *r, const char *text)
{
    http_answer(r, 200, "text/plain", strdup(text), strlen(text));
}

static enum http_verdict echo(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    size_t size;
    const char *body = http_body(r, &size);
    answer_text(r, size ? body : "empty");
    return HTTP_TAKEN;
}

static enum http_verdict star(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    char text[256];
    snprintf(text, sizeof text, "%s|%s|%s", http_star(r, 0),
             http_query(r, "q") ? http_query(r, "q") : "-", (const char *)tag);
    answer_text(r, text);
    return HTTP_TAKEN;
}

static enum http_verdict keep(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    atomic_store(&kept, r);
    return HTTP_TAKEN;
}

static enum http_verdict needs_worker(void *ctx, void *worker, struct http_request *r,
                                      const void *tag)
{
    if (!worker) return HTTP_WORKER;
    answer_text(r, worker == &a_worker ? "worker" : "stranger");
    return HTTP_TAKEN;
}

static enum http_verdict accepts(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    answer_text(r, http_accepts(r, "application/x-protobuf") ? "yes" : "no");
    return HTTP_TAKEN;
}

/* "middle" of a file that is gone from its folder already. */
static enum http_verdict part_of_a_file(void *ctx, void *worker, struct http_request *r,
                                        const void *tag)
{
    char name[] = "/tmp/tinworks-http-XXXXXX";
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "before middle after", 19), 19);
    assert_int_equal(unlink(name), 0);
    http_set_header(r, "Content-Range", "bytes 7-12/19");
    http_set_header(r, "X-More", "yes");
    http_answer_file(r, 206, "application/octet-stream", fd, 7, 6);
    return HTTP_TAKEN;
}

static atomic_int sources_ended;

static long count_up(void *arg, uint64_t pos, char *out, size_t max)
{
    size_t n = max < 1000 ? max : 1000;
    if (arg && pos >= 2000) return -1;
    for (size_t i = 0; i < n; i++)
        out[i] = (char)('a' + (pos + i) % 26);
    return (long)n;
}

static void end_count(void *arg)
{
    atomic_fetch_add(&sources_ended, 1);
}

static enum http_verdict stream(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    struct http_source source = {.arg = (void *)tag, .read = count_up, .done = end_count};
    http_answer_stream(r, 200, "text/plain", 26 * 1000, &source);
    return HTTP_TAKEN;
}

static const struct http_route routes[] = {
    {"GET", "/file", BODY_MAX, part_of_a_file, NULL}, {"GET", "/stream", BODY_MAX, stream, NULL},
    {"GET", "/broken", BODY_MAX, stream, "broken"},   {"POST", "/echo", BODY_MAX, echo, NULL},
    {"GET", "/star/*", BODY_MAX, star, "tag"},        {"GET", "/keep", BODY_MAX, keep, NULL},
    {"GET", "/worker", BODY_MAX, needs_worker, NULL}, {"DELETE", "/star/*", BODY_MAX, star, "gone"},
    {"GET", "/accepts", BODY_MAX, accepts, NULL},
};

static void *make_worker(void *ctx, struct err *e)
{
    return &a_worker;
}

static void drop_worker(void *worker)
{
    assert_ptr_equal(worker, &a_worker);
}

static int start(int64_t head_ms, int per_address)
{
    struct err e = {0};
    struct http_conf conf = {.address = "127.0.0.1",
                             .threads = 2,
                             .workers = 2,
                             .workers_queue_max = 16,
                             .connections_max = 64,
                             .connections_per_address = per_address,
                             .head_ms = head_ms,
                             .body_ms = 4 * head_ms,
                             .idle_s = 30,
                             .routes = routes,
                             .route_count = sizeof routes / sizeof *routes,
                             .worker_create = make_worker,
                             .worker_free = drop_worker};
    atomic_store(&kept, NULL);
    server = http_server_create(&conf, &e);
    return server ? 0 : -1;
}

static int setup(void **state)
{
    return start(PATIENCE_MS, 0);
}

static int setup_impatient(void **state)
{
    return start(300, 0);
}

static int setup_few(void **state)
{
    return start(PATIENCE_MS, 2);
}

static int teardown(void **state)
{
    http_server_free(server);
    return 0;
}

static int dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)http_server_port(server))};
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Reads until one whole answer (by its Content-Length) is there. */
static void hear(int fd, char answer[ANSWER_MAX])
{
    size_t size = 0;
    for (;;) {
        ssize_t n = recv(fd, answer + size, ANSWER_MAX - 1 - size, 0);
        assert_true(n > 0);
        size += (size_t)n;
        answer[size] = '\0';
        const char *end = strstr(answer, "\r\n\r\n"),
                   *length = strcasestr(answer, "Content-Length:");
        if (!end) continue;
        size_t body = length && length < end ? (size_t)atol(length + 15) : 0;
        if (size >= (size_t)(end + 4 - answer) + body) return;
    }
}

/* One request on a connection of its own. */
static void ask(const char *request, const char *status, const char *part)
{
    static char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, request);
    hear(fd, answer);
    if (!strstr(answer, status) || !strstr(answer, part))
        fail_msg("asked: %s\nheard: %s\nexpected %s and %s", request, answer, status, part);
    close(fd);
}

static void a_request_is_answered_and_its_connection_stays(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    for (int i = 0; i < 3; i++) {
        say(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        hear(fd, answer);
        assert_non_null(strstr(answer, " 200 "));
        assert_non_null(strstr(answer, "\r\n\r\nhello"));
    }
    say(fd, "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
    hear(fd, answer);
    assert_non_null(strstr(answer, " 404 "));
    assert_non_null(strstr(answer, "{\"detail\": "));
    say(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    hear(fd, answer);
    assert_non_null(strstr(answer, "\r\n\r\nempty"));
    close(fd);
}

static void segments_and_queries_are_decoded(void **state)
{
    ask("GET /star/a%2Fb:c+d?q=x%26y HTTP/1.1\r\nHost: x\r\n\r\n", " 200 ",
        "\r\n\r\na/b:c+d|x&y|tag");
    ask("DELETE /star/z HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n", " 200 ",
        "\r\n\r\nz|-|gone");
    ask("PUT /star/z HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", " 405 ", "detail");
    ask("GET /star/a%00b HTTP/1.1\r\nHost: x\r\n\r\n", " 400 ", "detail");
}

/* Sends it and says what comes back until the connection is closed. */
static void ask_to_the_end(const char *request, size_t size, char answer[ANSWER_MAX])
{
    int fd = dial();
    size_t got = 0;
    assert_int_equal(send(fd, request, size, MSG_NOSIGNAL), size);
    for (ssize_t n; (n = recv(fd, answer + got, ANSWER_MAX - 1 - got, 0)) > 0;)
        got += (size_t)n;
    answer[got] = '\0';
    close(fd);
}

/* A refusal, then the end: what lies behind it is not taken for a request.  (libmicrohttpd 0.9.75
 * sends the head of some of its own refusals twice, so answers are not counted.) */
static void check_refused(const char *request, size_t size, const char *status)
{
    char answer[ANSWER_MAX];
    ask_to_the_end(request, size, answer);
    if (!strstr(answer, status) || strstr(answer, " 200 "))
        fail_msg("asked: %s\nheard: %s\nexpected %s", request, answer, status);
}

#define CHECK_REFUSED(text, status) check_refused(text, sizeof(text) - 1, status)

static void a_body_over_its_limit_is_refused(void **state)
{
    ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", " 413 ",
        "101 bytes, at most 100");
    ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", " 413 ", "detail");
    CHECK_REFUSED("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999\r\n\r\n",
                  " 413 ");
}

static void a_body_without_its_length_is_refused(void **state)
{
    CHECK_REFUSED("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "3\r\nabc\r\n0\r\n\r\nGET /star/smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
                  " 411 ");
    CHECK_REFUSED("POST /echo HTTP/1.1\r\nHost: x\r\n\r\nGET /star/smuggled HTTP/1.1\r\n", " 411 ");
}

static void an_unclear_length_is_refused_and_the_connection_closed(void **state)
{
    static const char *const unclear[] = {"Content-Length: 5\r\nTransfer-Encoding: chunked",
                                          "Content-Length: 5\r\nContent-Length: 5",
                                          "Content-Length: 5, 5",
                                          "Content-Length: +5",
                                          "Content-Length: 0x5",
                                          "Content-Length: -1",
                                          "Content-Length: 5 ",
                                          "Content-Length:",
                                          "Content-Length : 5",
                                          "Content-Length\t: 5"};
    for (size_t i = 0; i < sizeof unclear / sizeof *unclear; i++) {
        char request[256];
        int n = snprintf(request, sizeof request,
                         "POST /echo HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n0\r\n\r\nGET /star/smuggled "
                         "HTTP/1.1\r\nHost: x\r\n\r\n",
                         unclear[i]);
        check_refused(request, (size_t)n, " 400 ");
    }
}

static void a_head_that_could_be_read_in_two_ways_is_refused(void **state)
{
    CHECK_REFUSED("GET /star/a HTTP/1.1\nHost: x\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\n\tb\r\nX: a\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\nX: a\0b\r\nY: z\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\nX y: a\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\n\r\n", " 400 "); /* no Host */
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\n\r\nGET /star/b HTTP/1.1\r\n\r\n", " 400 ");
    CHECK_REFUSED("GET /star/a HTTP/1.1\r\nHost: x\r\n\nGET /star/b HTTP/1.1\r\n\r\n", " 400 ");
}

/* What the places of headers are compared by must hold however they come in. */
static void a_large_head_in_small_pieces_is_read(void **state)
{
    char head[8192], answer[ANSWER_MAX];
    int n = sprintf(head, "GET /star/a HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 60; i++)
        n += sprintf(head + n, "x-header-%02d:%*s%080d \r\n", i, i % 3, "", i);
    n += sprintf(head + n, "\r\n");
    int fd = dial();
    for (int round = 0; round < 2; round++) {
        for (int at = 0; at < n; at += 97) {
            size_t size = (size_t)(n - at < 97 ? n - at : 97);
            assert_int_equal(send(fd, head + at, size, MSG_NOSIGNAL), size);
            if (round) clock_sleep_ms(1);
        }
        hear(fd, answer);
        assert_non_null(strstr(answer, " 200 "));
    }
    close(fd);
}

static void a_target_that_is_too_long_is_refused(void **state)
{
    char request[12000];
    int n = sprintf(request, "GET /star/");
    memset(request + n, 'a', 9000);
    strcpy(request + n + 9000, " HTTP/1.1\r\nHost: x\r\n\r\n");
    check_refused(request, strlen(request), " 414 ");
}

static struct http_request *wait_for_kept(void)
{
    struct http_request *r;
    for (int64_t until = clock_mono_ms() + PATIENCE_MS;
         !(r = atomic_load(&kept)) && clock_mono_ms() < until;)
        clock_sleep_ms(1);
    assert_non_null(r);
    return r;
}

static void wait_until_idle(void)
{
    for (int64_t until = clock_mono_ms() + PATIENCE_MS;
         http_server_waiting(server) && clock_mono_ms() < until;)
        clock_sleep_ms(1);
    assert_int_equal(http_server_waiting(server), 0);
}

static void a_kept_request_is_answered_from_another_thread(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, "GET /keep HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_request *r = wait_for_kept();
    assert_int_equal(http_server_waiting(server), 1);
    assert_false(http_peer_gone(r));
    answer_text(r, "later");
    hear(fd, answer);
    assert_non_null(strstr(answer, "\r\n\r\nlater"));
    wait_until_idle();
    close(fd);
}

static void a_client_that_left_is_noticed(void **state)
{
    int fd = dial();
    say(fd, "GET /keep HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_request *r = wait_for_kept();
    close(fd);
    for (int64_t until = clock_mono_ms() + PATIENCE_MS;
         !http_peer_gone(r) && clock_mono_ms() < until;)
        clock_sleep_ms(1);
    assert_true(http_peer_gone(r));
    answer_text(r, "to nobody");
}

static void work_that_waits_runs_on_a_worker(void **state)
{
    ask("GET /worker HTTP/1.1\r\nHost: x\r\n\r\n", " 200 ", "\r\n\r\nworker");
}

static void all_accept_headers_count(void **state)
{
    ask("GET /accepts HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n", " 200 ",
        "\r\n\r\nno");
    ask("GET /accepts HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\naccept: "
        "application/x-protobuf\r\n\r\n",
        " 200 ", "\r\n\r\nyes");
}

static void a_part_of_a_file_is_sent_with_its_headers(void **state)
{
    ask("GET /file HTTP/1.1\r\nHost: x\r\n\r\n", " 206 ", "\r\n\r\nmiddle");
    ask("GET /file HTTP/1.1\r\nHost: x\r\n\r\n", " 206 ", "Content-Range: bytes 7-12/19\r\n");
    ask("GET /file HTTP/1.1\r\nHost: x\r\n\r\n", " 206 ", "X-More: yes\r\n");
}

static void wait_for_ends(int count)
{
    for (int64_t until = clock_mono_ms() + PATIENCE_MS;
         atomic_load(&sources_ended) < count && clock_mono_ms() < until;)
        clock_sleep_ms(1);
    assert_int_equal(atomic_load(&sources_ended), count);
}

static void an_answer_that_is_made_while_it_is_sent_is_whole(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    atomic_store(&sources_ended, 0);
    say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(fd, answer);
    const char *body = strstr(answer, "\r\n\r\n") + 4;
    assert_int_equal(strlen(body), 26000);
    for (int i = 0; i < 26000; i++)
        assert_int_equal(body[i], 'a' + i % 26);
    wait_for_ends(1);
    close(fd);
}

static void a_source_that_fails_cuts_the_connection(void **state)
{
    char answer[ANSWER_MAX];
    size_t size = 0;
    int fd = dial();
    atomic_store(&sources_ended, 0);
    say(fd, "GET /broken HTTP/1.1\r\nHost: x\r\n\r\n");
    for (ssize_t n; (n = recv(fd, answer + size, sizeof answer - 1 - size, 0)) > 0;)
        size += (size_t)n;
    answer[size] = '\0';
    assert_non_null(strstr(answer, "Content-Length: 26000"));
    assert_true(size < 26000);
    wait_for_ends(1);
    close(fd);
}

static void too_many_headers_are_refused(void **state)
{
    char request[8192];
    int n = sprintf(request, "GET /star/a HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < HTTP_HEADERS_MAX; i++)
        n += sprintf(request + n, "x-h%d: 1\r\n", i);
    strcpy(request + n, "\r\n");
    ask(request, " 431 ", "detail");
}

static void headers_of_too_many_bytes_are_refused(void **state)
{
    char request[HTTP_HEADER_BYTES_MAX + 1024];
    int n = sprintf(request, "GET /star/a HTTP/1.1\r\nHost: x\r\nX: ");
    memset(request + n, 'a', HTTP_HEADER_BYTES_MAX);
    strcpy(request + n + HTTP_HEADER_BYTES_MAX, "\r\n\r\n");
    check_refused(request, strlen(request), " 431 ");
}

static void check_cut(int fd)
{
    char byte;
    ssize_t n = recv(fd, &byte, 1, 0);
    assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
    close(fd);
}

/* One byte now and then is not silence, and yet it is cut. */
static void drip(int fd, const char *text)
{
    for (const char *at = text; *at; at++) {
        if (send(fd, at, 1, MSG_NOSIGNAL) < 0) return;
        clock_sleep_ms(50);
    }
    fail_msg("a client was allowed to drip \"%s\"", text);
}

#define SLOWLY                                                                                     \
    "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901" \
    "23456789"

static void who_is_slow_is_cut(void **state)
{
    int silent = dial(), head = dial(), body = dial();
    int64_t cuts = http_server_cuts(server);
    say(head, "GET /star/a HTTP/1.1\r\nX: ");
    drip(head, SLOWLY);
    check_cut(head);
    check_cut(silent);
    say(body, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
    drip(body, SLOWLY);
    check_cut(body);
    assert_true(http_server_cuts(server) >= cuts + 3);
}

static void a_connection_that_rests_is_not_slow_until_it_begins_again(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, "GET /star/a HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(fd, answer);
    clock_sleep_ms(1000);
    say(fd, "GET /star/a HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(fd, answer);
    assert_non_null(strstr(answer, " 200 "));
    say(fd, "GE");
    drip(fd, SLOWLY);
    check_cut(fd);
}

static void a_parked_request_is_not_slow(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, "GET /keep HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_request *r = wait_for_kept();
    clock_sleep_ms(1500);
    assert_false(http_peer_gone(r));
    answer_text(r, "late");
    hear(fd, answer);
    assert_non_null(strstr(answer, "\r\n\r\nlate"));
    close(fd);
}

static void one_address_gets_so_many_connections(void **state)
{
    char answer[ANSWER_MAX];
    int fds[3] = {dial(), dial(), -1};
    for (int i = 0; i < 2; i++) {
        say(fds[i], "GET /star/a HTTP/1.1\r\nHost: x\r\n\r\n");
        hear(fds[i], answer);
        assert_non_null(strstr(answer, " 200 "));
    }
    check_cut(fds[2] = dial());
    close(fds[0]);
    for (;;) { /* its place is free once the server has seen the end */
        int fd = dial();
        send(fd, "GET /star/a HTTP/1.1\r\nHost: x\r\n\r\n", 33, MSG_NOSIGNAL);
        ssize_t n = recv(fd, answer, 12, 0);
        close(fd);
        if (n == 12) break;
        clock_sleep_ms(5);
    }
    close(fds[1]);
}

static void a_certificate_that_cannot_be_used_is_named(void **state)
{
    struct http_conf conf = {
        .address = "127.0.0.1", .certificate = "/no/such.pem", .key = "/no/key"};
    struct err e = {0};
    assert_null(http_server_create(&conf, &e));
    assert_non_null(strstr(e.text, "\"/no/such.pem\": No such file"));
    conf.certificate = "";
    assert_null(http_server_create(&conf, &e));
    assert_non_null(strstr(e.text, "expected both or neither"));
    conf.certificate = conf.key = "/proc/self/cmdline"; /* some text */
    assert_null(http_server_create(&conf, &e));
    assert_non_null(strstr(e.text, "cannot be used"));
}

static void a_quiet_server_finishes_what_it_has(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, "GET /keep HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_request *r = wait_for_kept();
    http_server_quiesce(server);
    answer_text(r, "last");
    hear(fd, answer);
    assert_non_null(strstr(answer, "\r\n\r\nlast"));
    assert_non_null(strcasestr(answer, "Connection: close"));
    assert_int_equal(recv(fd, answer, 1, 0), 0);
    close(fd);
}

static void an_idle_server_has_sent_its_last_answer(void **state)
{
    char answer[ANSWER_MAX];
    int fd = dial();
    say(fd, "GET /keep HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_request *r = wait_for_kept();
    answer_text(r, "just in time");
    wait_until_idle();
    http_server_free(server);
    server = NULL;
    hear(fd, answer);
    assert_non_null(strstr(answer, "\r\n\r\njust in time"));
    close(fd);
}

static void an_error_text_is_always_json(void **state)
{
    size_t size;
    char *body = detail_json("a \"b\"\n\\ \xc3\xa9 \xff \xe2\x82", &size);
    assert_string_equal(body, "{\"detail\": \"a \\\"b\\\"\\u000a\\\\ \xc3\xa9 ? ??\"}");
    assert_int_equal(size, strlen(body));
    free(body);
}

#define WITH_SERVER(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(a_request_is_answered_and_its_connection_stays),
        WITH_SERVER(segments_and_queries_are_decoded),
        WITH_SERVER(a_body_over_its_limit_is_refused),
        WITH_SERVER(a_body_without_its_length_is_refused),
        WITH_SERVER(an_unclear_length_is_refused_and_the_connection_closed),
        WITH_SERVER(a_head_that_could_be_read_in_two_ways_is_refused),
        WITH_SERVER(a_large_head_in_small_pieces_is_read),
        WITH_SERVER(a_target_that_is_too_long_is_refused),
        WITH_SERVER(headers_of_too_many_bytes_are_refused),
        cmocka_unit_test_setup_teardown(who_is_slow_is_cut, setup_impatient, teardown),
        cmocka_unit_test_setup_teardown(a_connection_that_rests_is_not_slow_until_it_begins_again,
                                        setup_impatient, teardown),
        cmocka_unit_test_setup_teardown(a_parked_request_is_not_slow, setup_impatient, teardown),
        cmocka_unit_test_setup_teardown(one_address_gets_so_many_connections, setup_few, teardown),
        cmocka_unit_test(a_certificate_that_cannot_be_used_is_named),
        WITH_SERVER(a_kept_request_is_answered_from_another_thread),
        WITH_SERVER(a_client_that_left_is_noticed),
        WITH_SERVER(work_that_waits_runs_on_a_worker),
        WITH_SERVER(all_accept_headers_count),
        WITH_SERVER(a_part_of_a_file_is_sent_with_its_headers),
        WITH_SERVER(an_answer_that_is_made_while_it_is_sent_is_whole),
        WITH_SERVER(a_source_that_fails_cuts_the_connection),
        WITH_SERVER(too_many_headers_are_refused),
        WITH_SERVER(a_quiet_server_finishes_what_it_has),
        WITH_SERVER(an_idle_server_has_sent_its_last_answer),
        cmocka_unit_test(an_error_text_is_always_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

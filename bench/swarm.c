/* swarm.c - see swarm.h. */
#include "swarm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_MAX        8192
#define EVENTS            256
#define CONNECTING_MAX    256 /* at once, so that the server's backlog is never full */
#define LINES_PER_ADDRESS 3000
#define DESCRIPTORS_SPARE 64
#define REPEATS_PER_LINE  20

enum state { IDLE, QUEUED, CONNECTING, SENDING, READING };

struct line {
    enum state state;
    int fd;        /* -1: none */
    char *request; /* all of it; NULL: none is due */
    size_t size, sent, got;
    char answer[ANSWER_MAX];
};

struct swarm {
    struct sockaddr_in to;
    char host[64], key[160];
    int epoll, count, connecting, unsent;
    int *queue, head, queued; /* lines that wait to be connected: a ring */
    long long repeats;
    struct line *lines;
    swarm_answer *answer;
    void *arg;
};

/* ---------------------------------------------------------------- connections */

static int watch(struct swarm *s, int line, int verb, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.fd = line};
    return epoll_ctl(s->epoll, verb, s->lines[line].fd, &ev);
}

static void enqueue(struct swarm *s, int line)
{
    s->lines[line].state = QUEUED;
    s->queue[(s->head + s->queued++) % s->count] = line;
}

static int bind_near(const struct swarm *s, int fd, int line)
{
    struct sockaddr_in from = {.sin_family = AF_INET};
    int on = 1;
    if (ntohl(s->to.sin_addr.s_addr) >> 24 != 127) return 0;
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(line / LINES_PER_ADDRESS));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    return bind(fd, (struct sockaddr *)&from, sizeof from);
}

static int dial(struct swarm *s, int line, struct err *e)
{
    struct line *l = &s->lines[line];
    l->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || bind_near(s, l->fd, line) < 0 ||
        (connect(l->fd, (struct sockaddr *)&s->to, sizeof s->to) < 0 && errno != EINPROGRESS) ||
        watch(s, line, EPOLL_CTL_ADD, EPOLLOUT) < 0)
        return err_set(e, ERR_RETRY, "connection %d: %s", line, strerror(errno));
    l->state = CONNECTING;
    s->connecting++;
    return 0;
}

static int dial_some(struct swarm *s, struct err *e)
{
    while (s->queued && s->connecting < CONNECTING_MAX) {
        int line = s->queue[s->head];
        s->head = (s->head + 1) % s->count;
        s->queued--;
        if (dial(s, line, e) < 0) return -1;
    }
    return 0;
}

/* The other side has ended it: once more from the start, if an answer is due. */
static int hang_up(struct swarm *s, int line, struct err *e)
{
    struct line *l = &s->lines[line];
    if (l->state == CONNECTING) s->connecting--;
    close(l->fd);
    l->fd = -1;
    l->state = IDLE;
    if (!l->request) return 0;
    if (l->sent == l->size) s->unsent++;
    l->sent = l->got = 0;
    if (++s->repeats > (long long)s->count * REPEATS_PER_LINE)
        return err_set(e, ERR_RETRY, "the server ends connections again and again");
    enqueue(s, line);
    return 0;
}

/* ---------------------------------------------------------------- bytes */

static int send_more(struct swarm *s, int line, struct err *e)
{
    struct line *l = &s->lines[line];
    while (l->sent < l->size) {
        ssize_t n = send(l->fd, l->request + l->sent, l->size - l->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return hang_up(s, line, e);
        l->sent += (size_t)n;
    }
    l->state = l->sent < l->size ? SENDING : READING;
    if (l->state == READING) s->unsent--;
    watch(s, line, EPOLL_CTL_MOD, l->state == SENDING ? EPOLLOUT : EPOLLIN);
    return 0;
}

/* The body of a whole answer, or NULL. */
static const char *whole(const struct line *l, size_t *size)
{
    const char *end = strstr(l->answer, "\r\n\r\n");
    const char *length = end ? strcasestr(l->answer, "\r\nContent-Length:") : NULL;
    if (!length || length > end) return NULL;
    *size = (size_t)atoll(length + 17);
    end += 4;
    return (size_t)(l->answer + l->got - end) >= *size ? end : NULL;
}

static void deliver(struct swarm *s, int line, const char *body, size_t size)
{
    struct line *l = &s->lines[line];
    int status = atoi(l->answer + 9); /* behind "HTTP/1.1 " */
    free(l->request);
    l->request = NULL;
    l->state = IDLE;
    l->got = 0;
    s->answer(s->arg, line, status, body, size);
}

static int read_more(struct swarm *s, int line, struct err *e)
{
    struct line *l = &s->lines[line];
    size_t size;
    ssize_t n = recv(l->fd, l->answer + l->got, sizeof l->answer - 1 - l->got, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0 || !l->request) return hang_up(s, line, e);
    l->got += (size_t)n;
    l->answer[l->got] = '\0';
    const char *body = whole(l, &size);
    if (body)
        deliver(s, line, body, size);
    else if (l->got == sizeof l->answer - 1)
        return err_set(e, ERR_USER, "an answer has more than %d bytes", ANSWER_MAX);
    return 0;
}

static int on_event(struct swarm *s, int line, struct err *e)
{
    struct line *l = &s->lines[line];
    int error = 0;
    socklen_t size = sizeof error;
    switch (l->state) {
    case CONNECTING:
        getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) return hang_up(s, line, e);
        s->connecting--;
        return send_more(s, line, e);
    case SENDING:
        return send_more(s, line, e);
    case READING:
    case IDLE:
        return read_more(s, line, e);
    case QUEUED:
        break;
    }
    return 0;
}

/* ---------------------------------------------------------------- the swarm */

static int raise_descriptors(int lines, struct err *e)
{
    struct rlimit lim;
    rlim_t want = (rlim_t)lines + DESCRIPTORS_SPARE;
    if (getrlimit(RLIMIT_NOFILE, &lim) < 0) return err_set(e, ERR_RETRY, "no limit of open files");
    if (lim.rlim_cur >= want) return 0;
    lim.rlim_cur = want;
    if (want <= lim.rlim_max && setrlimit(RLIMIT_NOFILE, &lim) == 0) return 0;
    return err_set(e, ERR_USER, "%d connections need %llu open files, the hard limit is %llu",
                   lines, (unsigned long long)want, (unsigned long long)lim.rlim_max);
}

static int open_swarm(struct swarm *s, const char *base_url, struct err *e)
{
    char address[32];
    int port;
    if (sscanf(base_url, "http://%31[0-9.]:%d", address, &port) != 2 ||
        inet_pton(AF_INET, address, &s->to.sin_addr) != 1)
        return err_set(e, ERR_USER, "\"%s\" is not http://IPv4:port", base_url);
    s->to.sin_family = AF_INET;
    s->to.sin_port = htons((uint16_t)port);
    snprintf(s->host, sizeof s->host, "%s:%d", address, port);
    if (raise_descriptors(s->count, e) < 0) return -1;
    s->lines = calloc((size_t)s->count, sizeof *s->lines);
    s->queue = calloc((size_t)s->count, sizeof *s->queue);
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!s->lines || !s->queue || s->epoll < 0)
        return err_set(e, ERR_RETRY, "no memory for %d connections", s->count);
    for (int i = 0; i < s->count; i++)
        s->lines[i].fd = -1;
    return 0;
}

struct swarm *swarm_create(const char *base_url, const char *api_key, int lines,
                           swarm_answer *answer, void *arg, struct err *e)
{
    struct swarm *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "no memory for a swarm");
        return NULL;
    }
    *s = (struct swarm){.epoll = -1, .count = lines, .answer = answer, .arg = arg};
    snprintf(s->key, sizeof s->key, "%s", api_key);
    if (open_swarm(s, base_url, e) == 0) return s;
    swarm_free(s);
    return NULL;
}

void swarm_free(struct swarm *s)
{
    if (!s) return;
    for (int i = 0; s->lines && i < s->count; i++) {
        if (s->lines[i].fd >= 0) close(s->lines[i].fd);
        free(s->lines[i].request);
    }
    if (s->epoll >= 0) close(s->epoll);
    free(s->lines);
    free(s->queue);
    free(s);
}

int swarm_post(struct swarm *s, int line, const char *path, const char *body, struct err *e)
{
    struct line *l = &s->lines[line];
    int n = asprintf(&l->request,
                     "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: AsyncTinker/bench\r\nX-API-Key: "
                     "%s\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     path, s->host, s->key, strlen(body), body);
    if (n < 0) {
        l->request = NULL;
        return err_set(e, ERR_RETRY, "no memory for a request");
    }
    l->size = (size_t)n;
    l->sent = l->got = 0;
    s->unsent++;
    if (l->fd >= 0) return send_more(s, line, e);
    enqueue(s, line);
    return 0;
}

int swarm_step(struct swarm *s, int wait_ms, struct err *e)
{
    struct epoll_event events[EVENTS];
    if (dial_some(s, e) < 0) return -1;
    int n = epoll_wait(s->epoll, events, EVENTS, wait_ms);
    if (n < 0 && errno != EINTR) return err_set(e, ERR_RETRY, "epoll: %s", strerror(errno));
    for (int i = 0; i < n; i++)
        if (on_event(s, events[i].data.fd, e) < 0) return -1;
    return 0;
}

int swarm_unsent(const struct swarm *s)
{
    return s->unsent;
}

long long swarm_repeats(const struct swarm *s)
{
    return s->repeats;
}

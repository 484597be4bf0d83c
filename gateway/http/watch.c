/* watch.c - see watch.h.
 *
 * What a connection is at, and since when, is one atomic word: the event threads write it, the
 * watching thread reads it.  It writes in one case only, when the first bytes of a next head come
 * in on a resting connection: the library does not show us those, but the kernel counts them. */
#include "http/watch.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/clock.h"

#define LOOK_EVERY_MS 1000
#define SLICE_MS      50

enum at { HEAD, BODY, ANSWER, REST };

struct watched {
    struct watch *watch;
    struct watched *next, **here;
    int fd;
    _Atomic uint64_t at;    /* enum at in the low two bits, since when above them */
    _Atomic uint64_t bytes; /* of the body; while resting: what the kernel had received */
};

struct watch {
    struct watch_conf conf;
    pthread_mutex_t lock; /* of the list; whoever is in it has an open fd */
    struct watched *list;
    atomic_bool stopping;
    atomic_llong cuts;
    pthread_t thread;
    bool started;
};

static uint64_t word(enum at at, int64_t since_ms)
{
    return (uint64_t)since_ms << 2 | at;
}

static void turn(struct watched *c, enum at at)
{
    atomic_store(&c->at, word(at, clock_mono_ms()));
}

static uint64_t received(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0 ? 0 : info.tcpi_bytes_received;
}

/* ---------------------------------------------------------------- looking */

static bool too_slow(const struct watch_conf *conf, uint64_t bytes, int64_t ms)
{
    if (ms > conf->body_ms) return true;
    return ms > conf->head_ms && bytes < (uint64_t)ms * WATCH_BYTES_PER_S / 1000;
}

static bool is_late(struct watch *w, struct watched *c, int64_t now_ms)
{
    uint64_t at = atomic_load(&c->at), bytes = atomic_load(&c->bytes);
    int64_t ms = now_ms - (int64_t)(at >> 2);
    switch ((enum at)(at & 3)) {
    case HEAD:
        return ms > w->conf.head_ms;
    case BODY:
        return too_slow(&w->conf, bytes, ms);
    case REST:
        if (received(c->fd) != bytes)
            atomic_compare_exchange_strong(&c->at, &at, word(HEAD, now_ms));
        return false;
    case ANSWER:
        break;
    }
    return false;
}

static void look(struct watch *w)
{
    int64_t now_ms = clock_mono_ms();
    pthread_mutex_lock(&w->lock);
    for (struct watched *c = w->list; c; c = c->next) {
        if (!is_late(w, c, now_ms)) continue;
        shutdown(c->fd, SHUT_RDWR); /* the library sees the end and closes it */
        atomic_store(&c->at, word(ANSWER, now_ms));
        atomic_fetch_add(&w->cuts, 1);
    }
    pthread_mutex_unlock(&w->lock);
}

static void *run(void *arg)
{
    struct watch *w = arg;
    int64_t every_ms = w->conf.head_ms / 4 < LOOK_EVERY_MS ? w->conf.head_ms / 4 : LOOK_EVERY_MS;
    int64_t due_ms = clock_mono_ms() + every_ms;
    while (!atomic_load(&w->stopping)) {
        clock_sleep_ms(every_ms < SLICE_MS ? every_ms : SLICE_MS);
        if (clock_mono_ms() < due_ms) continue;
        look(w);
        due_ms = clock_mono_ms() + every_ms;
    }
    return NULL;
}

struct watch *watch_create(const struct watch_conf *conf, struct err *e)
{
    struct watch *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    w->conf = *conf;
    pthread_mutex_init(&w->lock, NULL);
    if (pthread_create(&w->thread, NULL, run, w) == 0) {
        w->started = true;
        return w;
    }
    err_set(e, ERR_RETRY, "could not start a thread");
    watch_free(w);
    return NULL;
}

void watch_free(struct watch *w)
{
    if (!w) return;
    atomic_store(&w->stopping, true);
    if (w->started) pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

int64_t watch_cuts(const struct watch *w)
{
    return atomic_load(&w->cuts);
}

/* ---------------------------------------------------------------- one connection */

struct watched *watch_add(struct watch *w, int fd)
{
    struct watched *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->watch = w;
    c->fd = fd;
    turn(c, HEAD);
    pthread_mutex_lock(&w->lock);
    c->next = w->list;
    c->here = &w->list;
    if (c->next) c->next->here = &c->next;
    w->list = c;
    pthread_mutex_unlock(&w->lock);
    return c;
}

void watch_remove(struct watched *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->watch->lock);
    *c->here = c->next;
    if (c->next) c->next->here = c->here;
    pthread_mutex_unlock(&c->watch->lock);
    free(c);
}

/* A head that is being waited for already goes on with the time that it has. */
void watched_head(struct watched *c)
{
    if (c && (atomic_load(&c->at) & 3) != HEAD) turn(c, HEAD);
}

void watched_body(struct watched *c)
{
    if (!c) return;
    atomic_store(&c->bytes, 0);
    turn(c, BODY);
}

void watched_bytes(struct watched *c, size_t size)
{
    if (c) atomic_fetch_add(&c->bytes, size);
}

void watched_answer(struct watched *c)
{
    if (c) turn(c, ANSWER);
}

void watched_rest(struct watched *c)
{
    if (!c) return;
    atomic_store(&c->bytes, received(c->fd));
    turn(c, REST);
}

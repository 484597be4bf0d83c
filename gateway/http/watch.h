/* watch.h - connections that take too long are cut.
 *
 * A head has to be there head_ms after its first byte (the first one: after the connection was
 * made, TLS included), a body body_ms after its head and, once head_ms are over, it has to come
 * with at least WATCH_BYTES_PER_S.  The library only knows silence, and a byte now and then is not
 * silent.  A request that is being answered, or parked, is never cut here; a connection that rests
 * between two requests is the library's to close (idle_s).
 *
 * A thread of its own looks about once a second; the calls below are a store or two. */
#ifndef HTTP_WATCH_H
#define HTTP_WATCH_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define WATCH_BYTES_PER_S 1024

struct watch;
struct watched; /* one connection */

struct watch_conf {
    int64_t head_ms, body_ms;
};

struct watch *watch_create(const struct watch_conf *conf, struct err *e);
void watch_free(struct watch *w); /* when no connection is left */
int64_t watch_cuts(const struct watch *w);

/* NULL without memory: that one is not watched, and the calls below take NULL. */
struct watched *watch_add(struct watch *w, int fd);
void watch_remove(struct watched *c); /* before fd is closed */

void watched_head(struct watched *c); /* a request line is there */
void watched_body(struct watched *c); /* the head is whole, a body follows */
void watched_bytes(struct watched *c, size_t size);
void watched_answer(struct watched *c); /* the request is whole */
void watched_rest(struct watched *c);   /* it was answered */

#endif

/* store.h - what we keep in Redis: settled futures with a lifetime, wake-ups, the resolver's cursors, counters.
 *
 * Redis may be empty or absent at any time: it is speed, not truth.  The results log is the truth.
 * Keys, all of them (prefix configurable):
 *   future:{id}                 string: one line "status content-type\n", then the payload; EX future_ttl
 *   resolver:{topic}:{part}     hash: offset (next to read), epoch (highest seen), since (where this Redis began)
 *   done                        stream: one entry per settled future (field id), trimmed to about 100,000
 *   group:{group}               sorted set: "status id" of the settled futures of one group by the offset of their
 *                               results, the newest GROUP_KEPT; EX future_ttl
 *   worker:{slot}               hash of counters, EX 30 s
 *   gateway:{id}                hash of counters, EX 30 s
 *   queue:{model}               hash: waiting (requests asked and not answered), workers (with a lease); EX 30 s
 *   use:{account}               hash: even (see below), and for each gateway "tokens time" of what it has in
 *                               flight; EX a minute longer than even lies ahead
 * A struct store is one connection; one thread at a time.  It reconnects by itself: a call that met a lost
 * connection returns ERR_RETRY and the next call tries anew.  Every command has a timeout.
 * The process must ignore SIGPIPE (stop_on_signals does). */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct store;

/* url: redis://[:password@]127.0.0.1:6379/0 or unix:///path.  Does not connect yet.  The url is copied. */
struct store *store_create(const char *url, const char *prefix, int timeout_ms, struct err *e);
void store_free(struct store *s); /* NULL is fine */
int store_ping(struct store *s, struct err *e) WARN_UNUSED;
/* Bytes that Redis uses, and the most that it may (0: it has no bound). */
int store_memory(struct store *s, int64_t *used, int64_t *max, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- futures */

struct future {
    char status[16];        /* "ok", "failed", "cancelled" */
    char content_type[48];
    char *payload;          /* owned */
    size_t size;
};
void future_clear(struct future *f);

/* 1 and *out when settled, 0 when not (yet) there, -1 on failure. */
int store_future_get(struct store *s, const char *id, struct future *out, struct err *e) WARN_UNUSED;

/* Puts one future back after it was read from the log (cold path); an existing one is kept. */
int store_future_put(struct store *s, const char *id, const struct future *f, int ttl_s, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- resolver */

struct cursor {
    int64_t offset; /* next to read */
    int64_t epoch;  /* highest seen below it */
};
/* 1 and *out, 0 when there is none (empty Redis), -1. */
int store_cursor_get(struct store *s, const char *topic, int partition, struct cursor *out, struct err *e) WARN_UNUSED;

struct settled {
    const char *id;
    struct future future; /* payload borrowed here */
    const char *group;    /* NULL: none */
    int64_t offset;       /* of its result, when it has a group */
};
/* One script, atomically: the cursor must still equal *from (a missing one counts as equal when create is true);
 * SET NX EX every future, XADD done, cursor := *to.  Returns 1 when done, 0 when the cursor was another (look
 * again), -1. */
int store_settle(struct store *s, const char *topic, int partition, const struct cursor *from, bool create,
                 const struct cursor *to, const struct settled *futures, int count, int ttl_s,
                 struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- wake-ups */

/* Blocks up to wait_ms for futures settled after *last (a stream id, "$" at first, updated) and calls seen for each.
 * Returns the number seen, or -1.  Needs a connection of its own. */
#define STORE_STREAM_ID_SIZE 48
int store_wait_settled(struct store *s, char last[STORE_STREAM_ID_SIZE], int wait_ms,
                       void (*seen)(void *arg, const char *id), void *arg, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- groups */

#define GROUP_KEPT 20000

/* Calls seen for up to max of the group's settled futures whose results lie at `from` or later, in order.  All of a
 * group lie in one partition of results; *complete_from is the offset from which on Redis knows all of them (what is
 * older was lost or trimmed; INT64_MAX: it knows nothing).  Returns the number seen, or -1. */
typedef void group_seen(void *arg, int64_t offset, const char *status, const char *id);
int store_group_after(struct store *s, const char *group, const char *topic, int partition, int64_t from, int max,
                      int64_t *complete_from, group_seen *seen, void *arg, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- what accounts use */

#define USES_MAX 128

/* What one gateway tells of an account, and what it learns of all of them together. */
struct use {
    const char *account;
    int64_t requests, step_us; /* new ones since it told last, and a minute divided by the account's limit */
    int64_t tokens;            /* that it has in flight now */
    int64_t ahead_us;          /* out: the account's requests, spread out evenly, reach so far ahead of now */
    int64_t elsewhere;         /* out: tokens that the other gateways have in flight */
};
/* Up to USES_MAX accounts in one script, by Redis' clock.  gateway is a name that no other has; one that has not told for
 * stale_ms has nothing in flight. */
int store_share(struct store *s, const char *gateway, int stale_ms, struct use *uses, int count,
                struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- counters */

struct counter {
    const char *name;
    int64_t value;
};
/* Replaces the hash `who` ("worker:0") and gives it 30 s. */
int store_counters_set(struct store *s, const char *who, const struct counter *counters, int count,
                       struct err *e) WARN_UNUSED;
/* Fills the values of those names that the hash `who` has, 0 for the others.  1: the hash is there, 0: it is not. */
int store_counters_get(struct store *s, const char *who, struct counter *counters, int count,
                       struct err *e) WARN_UNUSED;

#endif

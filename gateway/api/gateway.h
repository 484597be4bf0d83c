/* gateway.h - the gateway as one thing, and the call that an endpoint is given.
 *
 * An endpoint runs on an event thread first, with db NULL.  What it needs is usually in the caches;
 * when it is not, it returns HTTP_WORKER before it has changed anything and is called again with a
 * Postgres connection. */
#ifndef API_GATEWAY_H
#define API_GATEWAY_H

#include <jansson.h>
#include <stdatomic.h>
#include "api/conf.h"
#include "api/quota.h"
#include "api/token.h"
#include "db/db.h"
#include "http/server.h"
#include "wire/ids.h"

struct accounts;
struct cache;
struct flight;
struct gather;
struct publisher;
struct share;
struct store;
struct touched;
struct waiters;

struct gateway_counts {
    atomic_llong requests, submits, refused, auth_failures, forbidden, limited, telemetry_events;
};

struct gateway {
    struct gateway_conf conf;
    struct secret secret;
    struct accounts *accounts;
    struct cache *runs, *samplers; /* owner.h */
    struct quota *quota;
    struct flight *flight;
    struct share *share;
    struct publisher *publisher;
    struct gather *gather;
    struct waiters *waiters;
    struct touched *touched;
    struct http_server *http;
    struct gateway_counts counts;
    atomic_bool store_full; /* Redis has no room for more: samples wait outside */
    /* the main thread's */
    struct db *db;
    struct store *store;
    int64_t tick_ms;
};

/* Opens everything and begins to serve. */
int gateway_open(struct gateway *g, const struct gateway_conf *conf, struct err *e) WARN_UNUSED;
void gateway_tick(struct gateway *g); /* housekeeping; call it a few times a second */
/* Takes nothing new, answers what is parked, waits for what is in flight.  -1: somebody is still
 * waiting, so nothing may be closed; end the process. */
int gateway_drain(struct gateway *g, struct err *e) WARN_UNUSED;
void gateway_close(struct gateway *g); /* what was opened, in reverse; fine after a failed open */

/* ---------------------------------------------------------------- one call */

struct call {
    struct gateway *g;
    struct db *db; /* NULL on an event thread */
    struct http_request *r;
    char account[TENANT_SIZE], key[KEY_ID_SIZE]; /* who calls, and with which key */
    bool by_token;                               /* it was a token of that key */
    unsigned scopes;
    bool disabled; /* its account is */
    struct quota_limits limits;
    bool poll; /* told to repeat it, the client does so at once, unless it is told well */
};
/* The client is hpcai's: it knows neither sessions nor numbers, reads JSON only, and names
 * checkpoints hpcai://. */
bool call_is_hpcai(const struct call *c);

/* How far a call has come after one of its steps. */
enum step {
    STEP_ON,       /* go on */
    STEP_WORKER,   /* needs Postgres: return HTTP_WORKER */
    STEP_ANSWERED, /* it was refused, and that was answered */
};
enum http_verdict step_verdict(enum step s); /* of the two that end a call */

/* The body as a JSON object (json_decref it); NULL: answered with 400. */
json_t *call_body(struct call *c);
/* Answers by kind: user 400, retry 503, all else 500 and a line in the log. */
enum http_verdict call_fail(struct call *c, const struct err *e);
enum http_verdict call_not_found(struct call *c, const char *what, const char *id);
enum http_verdict call_answer(struct call *c, int status, json_t *take);
/* A JSON text that Postgres made; copied. */
enum http_verdict call_answer_text(struct call *c, const char *text);
/* What a query came to: n < 0 failed, 0 `what` of that id not found, else its one text.  Takes
 * rows. */
enum http_verdict call_answer_row(struct call *c, int n, struct db_result *take_rows,
                                  const char *what, const char *id, const struct err *e);
enum http_verdict call_done(struct call *c); /* 204 */

#endif

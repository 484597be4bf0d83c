/* quota.h - how much of the service an account may use, and whether it may use more now.
 *
 * Where waiting helps (requests a minute, tokens in flight) the client is told to come back, and
 * its polls say why for a while; where it does not (runs, storage) the call is a user error.
 * Requests and tokens are counted in memory, so that no call waits for a count; what other gateways
 * let in is learnt a moment later (share.h).  Runs and storage are counted in Postgres, so that two
 * calls at the same moment may both get in.  Safe from any thread; the clock is the caller's. */
#ifndef API_QUOTA_H
#define API_QUOTA_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/ids.h"

#define QUOTA_ACCOUNTS_MAX 16384 /* whose requests are remembered */
#define QUOTA_POSTS_MAX    4096  /* accounts that wait to be told of; others' are this gateway's own */
#define QUOTA_HEARD_MS     2000  /* so long what was learnt of tokens in flight elsewhere holds */
#define QUOTA_TELL_MS      60000 /* for so long polls say that an account was held up */

/* 0: no limit.  An account's own; what it has none of (QUOTA_PRESET) is the gateway's. */
struct quota_limits {
    int64_t requests_per_minute, tokens_in_flight, runs, storage_bytes;
};
#define QUOTA_PRESET (-1)
void quota_fill(struct quota_limits *own, const struct quota_limits *presets);

enum quota_kind { QUOTA_NOTHING, QUOTA_REQUESTS, QUOTA_TOKENS };

struct quota;
struct quota *quota_create(struct err *e);
void quota_free(struct quota *q); /* NULL is fine */

/* Counts one request.  0: go on; else in how many seconds there is room for it (it was not
 * counted). `limit` come at once after a rest, and `limit` a minute from then on; limit 0: any
 * number. */
int quota_request(struct quota *q, const char *account, int64_t limit, int64_t now_ms);

/* What this gateway let in since it was last taken, of up to max accounts.  Returns how many. */
struct quota_post {
    char account[TENANT_SIZE];
    int64_t requests, step_us; /* a minute divided by the limit */
};
int quota_take(struct quota *q, struct quota_post *posts, int max, int64_t now_ms);

/* All gateways together: the account's requests, spread out evenly, reach so far ahead of now; and
 * the others have so many tokens of it in flight. */
void quota_learn(struct quota *q, const char *account, int64_t ahead_us, int64_t elsewhere,
                 int64_t now_ms);
/* Tokens of the account that other gateways had in flight when they were last heard of. */
int64_t quota_elsewhere(struct quota *q, const char *account, int64_t now_ms);

/* The account was told to come back; its polls shall say so. */
void quota_note(struct quota *q, const char *account, enum quota_kind kind, int64_t limit,
                int64_t now_ms);

/* Why the account is held up, in words, when it was so lately; false: it was not. */
#define QUOTA_REASON_SIZE 320
bool quota_reason(struct quota *q, const char *account, int64_t now_ms,
                  char out[QUOTA_REASON_SIZE]);

#endif

/* accounts.h - who calls, and whether they have credit.
 *
 * A key tml-<id>-<secret> is known by HMAC-SHA-256(server secret, whole key) in api_keys; a token
 * (token.h) by its signature and the key that it was given for.  Answers are kept for a short while
 * (key_good_ms bounds how long a revoked key and its tokens work, and after how long a disabled
 * account or a new limit is noticed); while Postgres cannot be asked, a key or a credit that was
 * good before stays good.
 *
 * Wrong keys are counted by the caller's address and by the id that they name.  Who has too many is
 * not looked up any more, right or wrong, until the minute is over; keys that this gateway has seen
 * to be right are not guesses and go on. */
#ifndef API_ACCOUNTS_H
#define API_ACCOUNTS_H

#include "api/gateway.h"

#define KEY_BAD_MS          5000
#define CREDIT_MS           2000
#define ATTEMPTS_WINDOW_MS  60000
#define ACCOUNTS_CACHED_MAX 16384

struct accounts *accounts_create(const struct secret *secret, int attempts_max, int64_t key_good_ms,
                                 struct err *e);
void accounts_free(struct accounts *a);

/* Fills what c knows of the caller; on STEP_WORKER that is what was known last, account "" if
 * nothing was.  Refusals: 401 (with "invalid_token" for a token, so that the
 * client fetches another); 429 after too many failures. */
enum step accounts_check_key(struct accounts *a, struct call *c);

/* 403 when the key has none of these scopes, or when its account is disabled and the call is not
 * quiet (routes.c). */
enum step accounts_check_rights(struct call *c, unsigned scopes, bool quiet);

/* Whose key or token that is, c's own or somebody else's, if its account's things may be read with
 * it: 1 and account, 0 nobody's, -1 failed, ERR_USER: a token whose time is over.  A wrong one counts
 * as a failed attempt of c's; a token that we signed is none, whatever became of it.  Needs c->db. */
int accounts_of(struct accounts *a, struct call *c, const char *key, char account[TENANT_SIZE],
                struct err *e) WARN_UNUSED;
/* The key of that id and HMAC is gone: this gateway knows it at once. */
void accounts_forget(struct accounts *a, const char *key_id, const char *hmac);

/* 402 when the account's balance is not above zero. */
enum step accounts_check_credit(struct accounts *a, struct call *c);

#endif

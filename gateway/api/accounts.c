/* accounts.c - see accounts.h. */
#include "api/accounts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cache.h"
#include "api/token.h"
#include "api/tries.h"
#include "base/clock.h"
#include "base/log.h"
#include "seal/seal.h"
#include "wire/scope.h"

#define KEY_MAX         256
#define CACHED_KEY_SIZE (KEY_ID_SIZE + 8)
#define WHO_SIZE        (KEY_ID_SIZE + 8)

struct accounts {
    struct secret secret;
    int64_t key_good_ms;
    struct cache *keys;    /* HMAC in hex, or "id:" and a token's key's id -> struct known_key */
    struct cache *credits; /* account -> bool */
    struct tries *tries;   /* failed ones, by "address:" and by "key:" and the id that was named */
};

struct known_key {
    bool good, disabled; /* disabled: its account is */
    char account[TENANT_SIZE], id[KEY_ID_SIZE];
    unsigned scopes;
    struct quota_limits limits; /* the account's own */
};

struct accounts *accounts_create(const struct secret *secret, int attempts_max, int64_t key_good_ms,
                                 struct err *e)
{
    struct accounts *a = calloc(1, sizeof *a);
    if (!a) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    a->secret = *secret;
    a->key_good_ms = key_good_ms;
    a->keys = cache_create(ACCOUNTS_CACHED_MAX, sizeof(struct known_key), e);
    if (a->keys) a->credits = cache_create(ACCOUNTS_CACHED_MAX, sizeof(bool), e);
    if (a->credits)
        a->tries = tries_create(ACCOUNTS_CACHED_MAX, attempts_max, ATTEMPTS_WINDOW_MS, e);
    if (a->tries) return a;
    accounts_free(a);
    return NULL;
}

void accounts_free(struct accounts *a)
{
    if (!a) return;
    cache_free(a->keys);
    cache_free(a->credits);
    tries_free(a->tries);
    free(a);
}

/* ---------------------------------------------------------------- failed attempts */

/* tml-<id>-<secret>: the id lies between the first and the last dash. */
static int key_id(const char *key, char *id, size_t size)
{
    const char *last = strrchr(key, '-');
    if (strncmp(key, "tml-", 4) != 0 || last <= key + 4 || !last[1]) return -1;
    size_t length = (size_t)(last - key) - 4;
    if (length >= size) return -1;
    memcpy(id, key + 4, length);
    id[length] = '\0';
    return 0;
}

/* Whom a wrong key is held against. */
struct suspects {
    char address[WHO_SIZE], key[WHO_SIZE]; /* key "": it names no id */
};

/* key NULL: none, or one whose id is not known. */
static struct suspects suspects_of(const struct call *c, const char *key)
{
    struct suspects s = {0};
    char id[KEY_ID_SIZE];
    snprintf(s.address, sizeof s.address, "address:%08x", http_peer(c->r));
    if (key && key_id(key, id, sizeof id) == 0) snprintf(s.key, sizeof s.key, "key:%s", id);
    return s;
}

/* 0, or for how long nobody looks at what they present. */
static int64_t wait_ms(struct accounts *a, const struct suspects *s, int64_t now)
{
    int64_t address = tries_wait_ms(a->tries, s->address, now);
    int64_t key = *s->key ? tries_wait_ms(a->tries, s->key, now) : 0;
    return address > key ? address : key;
}

static void count_failure(struct accounts *a, struct call *c, const struct suspects *s, int64_t now)
{
    tries_failed(a->tries, s->address, now);
    if (*s->key) tries_failed(a->tries, s->key, now);
    atomic_fetch_add(&c->g->counts.auth_failures, 1);
}

static enum step turn_away(struct call *c, int64_t for_ms)
{
    atomic_fetch_add(&c->g->counts.auth_failures, 1);
    http_answer_retry(c->r, 429, (int)((for_ms + 999) / 1000),
                      "too many wrong API keys from this address or for this key's id, try again "
                      "in %d s",
                      (int)((for_ms + 999) / 1000));
    return STEP_ANSWERED;
}

static enum step refuse(struct accounts *a, struct call *c, const char *key)
{
    int64_t now = clock_mono_ms();
    struct suspects s = suspects_of(c, key);
    int64_t for_ms = wait_ms(a, &s, now);
    if (for_ms) return turn_away(c, for_ms);
    count_failure(a, c, &s, now);
    http_answer_error(c->r, 401, "the API key in X-API-Key is missing, unknown or revoked");
    return STEP_ANSWERED;
}

/* The client fetches another one when it reads this header. */
static enum step refuse_token(struct call *c)
{
    http_set_header(c->r, "WWW-Authenticate", "Bearer error=\"invalid_token\"");
    http_answer_error(c->r, 401, "the token in X-API-Key has expired or its key was revoked");
    return STEP_ANSWERED;
}

/* ---------------------------------------------------------------- keys */

static int64_t own_limit(const struct db_result *rows, int column)
{
    return db_is_null(rows, 0, column) ? QUOTA_PRESET : db_int(rows, 0, column);
}

static void read_known(const struct db_result *rows, struct known_key *k, struct err *e)
{
    snprintf(k->account, sizeof k->account, "%s", db_text(rows, 0, 1));
    k->disabled = db_bool(rows, 0, 2);
    k->limits = (struct quota_limits){own_limit(rows, 4), own_limit(rows, 5), own_limit(rows, 6),
                                      own_limit(rows, 7)};
    if (scopes_parse(db_text(rows, 0, 3), &k->scopes, e) < 0) e->kind = ERR_BUG;
}

/* hmac NULL: the caller knows otherwise that the key was there.  Its comparison takes as long for a
 * key that is not there. */
static int look_up_id(struct db *db, const char *id, const char *hmac, struct known_key *k,
                      struct err *e)
{
    static const char nobodys[SEAL_SHA256_HEX_SIZE];
    struct db_result *rows = NULL;
    memset(k, 0, sizeof *k);
    int n = db_queryf(db, &rows, e,
                      "SELECT k.hmac, k.account_id, a.disabled_at IS NOT NULL, k.scopes, "
                      "a.requests_per_minute, a.tokens_in_flight, a.runs_max, a.storage_bytes_max "
                      "FROM api_keys k JOIN accounts a ON a.id = k.account_id "
                      "WHERE k.id = $1 AND k.revoked_at IS NULL",
                      id, NULL);
    if (n < 0) return -1;
    const char *known = n == 1 ? db_text(rows, 0, 0) : nobodys;
    bool equal = !hmac || seal_equal(known, hmac, SEAL_SHA256_HEX_SIZE - 1);
    k->good = n == 1 && equal;
    snprintf(k->id, sizeof k->id, "%s", id);
    if (k->good) read_known(rows, k, e);
    db_result_free(rows);
    return e->kind ? -1 : 0;
}

static int look_up_key(struct db *db, const char *key, const char *hmac, struct known_key *k,
                       struct err *e)
{
    char id[KEY_ID_SIZE];
    memset(k, 0, sizeof *k);
    return key_id(key, id, sizeof id) < 0 ? 0 : look_up_id(db, id, hmac, k, e);
}

static void hmac_of(const struct accounts *a, const char *key, char hmac[SEAL_SHA256_HEX_SIZE])
{
    uint8_t mac[SEAL_SHA256_SIZE];
    seal_hmac_sha256(a->secret.key, sizeof a->secret.key, key, strlen(key), mac);
    seal_hex(mac, sizeof mac, hmac);
}

/* An uncached key while Postgres is away: nobody can tell, so the client is asked to wait. */
static enum step nobody_knows(struct call *c, const struct err *e)
{
    log_warn("gateway.auth", "text=\"%s\"", e->text);
    http_answer_retry(c->r, 429, 2, "keys cannot be checked now, try again");
    return STEP_ANSWERED;
}

/* What is asked for: a key as it was presented, or the key of a token that was checked. */
struct question {
    const char *cached; /* its name in the cache */
    const char *key;    /* NULL: the token's */
    const char *hmac, *id;
};

static int ask_postgres(struct call *c, const struct question *q, struct known_key *k,
                        struct err *e)
{
    return q->key ? look_up_key(c->db, q->key, q->hmac, k, e)
                  : look_up_id(c->db, q->id, NULL, k, e);
}

/* STEP_ON: *k says what is known; STEP_WORKER: what was known last.  Who has failed too often is
 * turned away before anything is looked up, so that a guess is not even tried. */
static enum step find_key(struct accounts *a, struct call *c, const struct question *q,
                          struct known_key *k)
{
    int64_t now = clock_mono_ms(), put_ms = 0;
    struct known_key fresh;
    struct err e = {0};
    memset(k, 0, sizeof *k);
    bool known = cache_get(a->keys, q->cached, k, &put_ms);
    if (known && now - put_ms <= (k->good ? a->key_good_ms : KEY_BAD_MS)) return STEP_ON;
    bool was_good = known && k->good, signed_by_us = !q->key;
    struct suspects s = suspects_of(c, q->key);
    int64_t for_ms = was_good || signed_by_us ? 0 : wait_ms(a, &s, now);
    if (for_ms) return turn_away(c, for_ms);
    if (!c->db) return STEP_WORKER;
    if (ask_postgres(c, q, &fresh, &e) == 0) {
        *k = fresh;
        cache_put(a->keys, q->cached, k, now);
    } else if (!was_good) {
        return nobody_knows(c, &e);
    }
    return STEP_ON;
}

static void name_token_key(const char *id, char cached[CACHED_KEY_SIZE])
{
    snprintf(cached, CACHED_KEY_SIZE, "id:%s", id);
}

static bool is_token(const char *key)
{
    return !strncmp(key, "eyJ", 3);
}

/* STEP_WORKER: it is to be asked for again, and until then this is who calls. */
static enum step known_caller(struct call *c, const struct known_key *k, enum step step)
{
    if (!k->good || step == STEP_ANSWERED) return step;
    memcpy(c->account, k->account, sizeof c->account);
    memcpy(c->key, k->id, sizeof c->key);
    c->scopes = k->scopes;
    c->disabled = k->disabled;
    c->limits = k->limits;
    quota_fill(&c->limits, &c->g->conf.limits);
    return step;
}

static enum step check_token(struct accounts *a, struct call *c, const char *token)
{
    struct claims claims;
    struct known_key k;
    char cached[CACHED_KEY_SIZE];
    enum token_verdict verdict = token_read(token, &a->secret, clock_wall_ms() / 1000, &claims);
    if (verdict == TOKEN_BAD) return refuse(a, c, NULL);
    if (verdict == TOKEN_EXPIRED) return refuse_token(c);
    name_token_key(claims.key, cached);
    struct question q = {.cached = cached, .id = claims.key};
    enum step step = find_key(a, c, &q, &k);
    if (step == STEP_ON && (!k.good || strcmp(k.account, claims.account) != 0))
        return refuse_token(c);
    c->by_token = true;
    return known_caller(c, &k, step);
}

enum step accounts_check_key(struct accounts *a, struct call *c)
{
    const char *key = http_header(c->r, "X-API-Key");
    char hmac[SEAL_SHA256_HEX_SIZE];
    struct known_key k;
    if (key && c->g->conf.tokens && is_token(key)) return check_token(a, c, key);
    if (!key || strlen(key) >= KEY_MAX) return refuse(a, c, NULL);
    hmac_of(a, key, hmac);
    struct question q = {.cached = hmac, .key = key, .hmac = hmac};
    enum step step = find_key(a, c, &q, &k);
    return step == STEP_ON && !k.good ? refuse(a, c, key) : known_caller(c, &k, step);
}

/* Scopes that let a key read what its account has. */
#define READING (SCOPE_READ | SCOPE_TRAIN)

int accounts_of(struct accounts *a, struct call *c, const char *key, char account[TENANT_SIZE],
                struct err *e)
{
    int64_t now = clock_mono_ms();
    struct suspects s = suspects_of(c, key);
    struct known_key k = {0};
    struct claims claims;
    char hmac[SEAL_SHA256_HEX_SIZE];
    enum token_verdict token = TOKEN_BAD;
    if (strlen(key) >= TOKEN_SIZE) return 0;
    if (c->g->conf.tokens && is_token(key))
        token = token_read(key, &a->secret, clock_wall_ms() / 1000, &claims);
    if (token == TOKEN_EXPIRED)
        return err_set(e, ERR_USER, "the weights access token has expired");
    bool guess = token == TOKEN_BAD; /* as long as it is not known; what we signed is none */
    if (guess && wait_ms(a, &s, now))
        return err_set(e, ERR_RETRY, "too many wrong keys from one address or for one id");
    hmac_of(a, key, hmac);
    if ((guess ? look_up_key(c->db, key, hmac, &k, e)
               : look_up_id(c->db, claims.key, NULL, &k, e)) < 0)
        return -1;
    if (guess && !k.good) count_failure(a, c, &s, now);
    if (!k.good || !scopes_suffice(k.scopes, READING)) return 0;
    memcpy(account, k.account, TENANT_SIZE);
    return 1;
}

void accounts_forget(struct accounts *a, const char *key_id, const char *hmac)
{
    char cached[CACHED_KEY_SIZE];
    struct known_key bad = {0};
    name_token_key(key_id, cached);
    cache_put(a->keys, cached, &bad, clock_mono_ms());
    cache_put(a->keys, hmac, &bad, clock_mono_ms());
}

/* ---------------------------------------------------------------- rights */

static enum step forbid(struct call *c)
{
    atomic_fetch_add(&c->g->counts.forbidden, 1);
    return STEP_ANSWERED;
}

enum step accounts_check_rights(struct call *c, unsigned scopes, bool quiet)
{
    char asked[SCOPES_TEXT_SIZE], held[SCOPES_TEXT_SIZE];
    if (!scopes_suffice(c->scopes, scopes)) {
        scopes_text(scopes, " or ", asked);
        scopes_text(c->scopes, ", ", held);
        http_answer_error(c->r, 403,
                          "this call needs an API key with the scope %s, this key has %s only",
                          asked, held);
        return forbid(c);
    }
    if (c->disabled && !quiet) {
        http_answer_error(c->r, 403,
                          "this account is disabled: what it has can be read, and nothing new be "
                          "asked for");
        return forbid(c);
    }
    return STEP_ON;
}

/* ---------------------------------------------------------------- credit */

enum step accounts_check_credit(struct accounts *a, struct call *c)
{
    int64_t now = clock_mono_ms(), put_ms = 0;
    struct db_result *rows = NULL;
    struct err e = {0};
    bool credit = false;

    bool known = cache_get(a->credits, c->account, &credit, &put_ms);
    if (!known || now - put_ms > CREDIT_MS) {
        if (!c->db) return STEP_WORKER;
        int n = db_queryf(c->db, &rows, &e,
                          "SELECT balance_pico > 0 FROM balances WHERE account_id = $1", c->account,
                          NULL);
        if (n >= 0) {
            credit = n == 1 && db_bool(rows, 0, 0);
            cache_put(a->credits, c->account, &credit, now);
        } else if (!known) {
            call_fail(c, &e);
            return STEP_ANSWERED;
        }
        db_result_free(rows);
    }
    if (credit) return STEP_ON;
    http_answer_error(c->r, 402, "this account has no credit left");
    return STEP_ANSWERED;
}

/* auth.c - the caller's own key: exchanged for a token, shown, deleted. */
#include <stdio.h>

#include "api/accounts.h"
#include "api/endpoints.h"
#include "api/sql.h"
#include "base/clock.h"

/* What the key's owner is called; an account without an address is called by its name. */
#define SQL_EMAIL "coalesce(nullif(a.email, ''), a.name)"

/* Only a key can be exchanged: a token that made the next one would never end. */
enum http_verdict api_token(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    char token[TOKEN_SIZE];
    int64_t now_s = clock_wall_ms() / 1000;
    struct claims claims = {.issued_s = now_s, .expires_s = now_s + c->g->conf.token_s};
    if (!c->g->conf.tokens) {
        http_answer_error(c->r, 404, "tokens are not offered here, send the API key itself");
        return HTTP_TAKEN;
    }
    if (c->by_token) {
        http_answer_error(c->r, 401, "a token cannot be exchanged for another, send the API key");
        return HTTP_TAKEN;
    }
    int n = db_queryf(c->db, &rows, &e, "SELECT a.email FROM accounts a WHERE a.id = $1",
                      c->account, NULL);
    snprintf(claims.account, sizeof claims.account, "%s", c->account);
    snprintf(claims.key, sizeof claims.key, "%s", c->key);
    if (n == 1) snprintf(claims.email, sizeof claims.email, "%s", db_text(rows, 0, 0));
    db_result_free(rows);
    if (n < 0 || token_make(token, &c->g->secret, &claims, &e) < 0) return call_fail(c, &e);
    return call_answer(c, 200, json_pack("{s:s}", "jwt", token));
}

enum http_verdict api_show_key(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    int n = db_queryf(c->db, &rows, &e,
                      "SELECT json_build_object('key_id', k.number, 'name', k.name, 'note', "
                      "k.note, 'details', json_build_object('org_details', "
                      "json_build_object('name', a.name), 'user_details', "
                      "json_build_object('email', " SQL_EMAIL ")))::text "
                      "FROM api_keys k JOIN accounts a ON a.id = k.account_id WHERE k.id = $1",
                      c->key, NULL);
    return call_answer_row(c, n, rows, "API key", c->key, &e);
}

/* No other key than the one that is presented can be deleted this way. */
enum http_verdict api_delete_key(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    int n = db_queryf(c->db, &rows, &e,
                      "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 "
                      "AND account_id = $2 RETURNING hmac",
                      c->key, c->account, NULL);
    if (n == 1) accounts_forget(c->g->accounts, c->key, db_text(rows, 0, 0));
    db_result_free(rows);
    return n < 0 ? call_fail(c, &e) : call_done(c);
}

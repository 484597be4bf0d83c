/* key.c - API keys: tml-<id>-<52 characters of base32 over 32 random bytes>.
 *
 * The key is printed when it is made and never again: the database keeps HMAC-SHA-256(server
 * secret, key), from which it cannot be had back, nor tried without the secret. */
#include "commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "seal/seal.h"
#include "table.h"
#include "wire/ids.h"
#include "wire/scope.h"

#define KEY_RANDOM_SIZE 32
#define KEY_ID_SIZE     14 /* base32 of 8 bytes, and the NUL */
#define SCOPES_PRESET   "train,sample,read"

static void make_key(char id[KEY_ID_SIZE], char *key, size_t size)
{
    uint8_t random[KEY_RANDOM_SIZE];
    char text[KEY_RANDOM_SIZE * 8 / 5 + 2];
    seal_random(random, 8);
    seal_base32(random, 8, id);
    seal_random(random, sizeof random);
    seal_base32(random, sizeof random, text);
    snprintf(key, size, "tml-%s-%s", id, text);
    explicit_bzero(random, sizeof random);
    explicit_bzero(text, sizeof text);
}

int key_create(const struct command_input *in, struct err *e)
{
    const char *account, *name = arg(in->args, "name"), *scopes = arg(in->args, "scopes");
    char account_id[ACCOUNT_ID_SIZE], list[SCOPES_TEXT_SIZE], id[KEY_ID_SIZE], key[128];
    unsigned held;
    uint8_t hmac[SEAL_SHA256_SIZE];
    char hex[SEAL_SHA256_HEX_SIZE];
    struct secret secret;
    if (arg_must(in->args, "account", &account, e) < 0) return -1;
    if (scopes_parse(scopes ? scopes : SCOPES_PRESET, &held, e) < 0)
        return err_prefix(e, "--scopes");
    scopes_text(held, ",", list);
    if (name && strlen(name) > 100)
        return err_set(e, ERR_USER, "--name has %zu bytes, expected at most 100", strlen(name));
    if (account_find(in->db, account, account_id, e) < 0) return -1;
    if (secret_read(&secret, in->settings->secret_file, e) < 0) return -1;
    make_key(id, key, sizeof key);
    seal_hmac_sha256(secret.key, sizeof secret.key, key, strlen(key), hmac);
    explicit_bzero(&secret, sizeof secret);
    seal_hex(hmac, sizeof hmac, hex);
    int rc = db_queryf(in->db, NULL, e,
                       "INSERT INTO api_keys (id, account_id, hmac, scopes, name) "
                       "VALUES ($1, $2, $3, $4, $5)",
                       id, account_id, hex, list, name ? name : "", NULL);
    if (rc >= 0) {
        log_info("key.created", "key=%s account=%s scopes=%s", id, account_id, list);
        printf("%s\n", key);
    }
    explicit_bzero(key, sizeof key);
    return rc < 0 ? -1 : 0;
}

int key_revoke(const struct command_input *in, struct err *e)
{
    const char *id = in->args->words[0];
    if (!strncmp(id, "tml-", 4)) /* and do not repeat it: it would stand in a log */
        return err_set(e, ERR_USER,
                       "this looks like a whole key, expected its id: the part after tml-");
    int n = db_queryf(in->db, NULL, e,
                      "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1",
                      id, NULL);
    if (n < 0) return -1;
    if (!n) return err_set(e, ERR_USER, "there is no key with the id \"%.60s\"", id);
    log_info("key.revoked", "key=%s", id);
    printf("%s is revoked\n", id);
    return 0;
}

int key_list(const struct command_input *in, struct err *e)
{
    static const struct column columns[] = {
        {"key", "key_id", CELL_TEXT},         {"account", "account_id", CELL_TEXT},
        {"of", "account", CELL_TEXT},         {"name", "name", CELL_TEXT},
        {"scopes", "scopes", CELL_TEXT},      {"created", "created_at", CELL_TEXT},
        {"revoked", "revoked_at", CELL_TEXT},
    };
    enum table_format format;
    struct db_result *rows = NULL;
    if (table_format_of(arg(in->args, "format"), &format, e) < 0) return -1;
    int n = db_queryf(
        in->db, &rows, e,
        "SELECT k.id, k.account_id, a.name, k.name, k.scopes, "
        "  to_char(k.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
        "  to_char(k.revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') "
        "FROM api_keys k JOIN accounts a ON a.id = k.account_id ORDER BY k.created_at, k.id",
        NULL);
    struct table *t = n < 0 ? NULL : table_create(columns, 7, e);
    int rc = t ? 0 : -1;
    for (int r = 0; rc == 0 && r < n; r++) {
        const char *cells[7];
        for (int c = 0; c < 7; c++)
            cells[c] = db_text(rows, r, c);
        rc = table_add(t, cells, e);
    }
    if (rc == 0) table_print(t, format, stdout);
    table_free(t);
    db_result_free(rows);
    return rc;
}

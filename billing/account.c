/* account.c - accounts and their credit.
 *
 * Credit is a double entry like a charge: what the customer gains, cash has given.  The row in
 * `credits`, both entries and the balance are one transaction. */
#include "commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "money.h"
#include "seal/seal.h"
#include "table.h"

#define NAME_MAX_SIZE    100
#define RANDOM_SIZE      16
#define RANDOM_TEXT_SIZE 27 /* base32 of it, and the NUL */

/* "acct_" or "" and 26 characters that cannot be guessed */
static void random_id(const char *prefix, char *out, size_t size)
{
    uint8_t random[RANDOM_SIZE];
    char text[RANDOM_TEXT_SIZE];
    seal_random(random, sizeof random);
    seal_base32(random, sizeof random, text);
    snprintf(out, size, "%s%s", prefix, text);
}

int account_find(struct db *db, const char *id_or_name, char out[ACCOUNT_ID_SIZE], struct err *e)
{
    struct db_result *rows;
    int n = db_queryf(db, &rows, e, "SELECT id FROM accounts WHERE id = $1 OR name = $1",
                      id_or_name, NULL);
    if (n < 0) return -1;
    if (n) snprintf(out, ACCOUNT_ID_SIZE, "%s", db_text(rows, 0, 0));
    db_result_free(rows);
    if (n) return 0;
    return err_set(e, ERR_USER, "there is no account with the id or name \"%.100s\"", id_or_name);
}

/* An id is not a name, or --account could mean two. */
static int check_name(const char *name, struct err *e)
{
    size_t n = strlen(name);
    bool good = n > 0 && n <= NAME_MAX_SIZE && strncmp(name, "acct_", 5) && *name != ' ';
    for (const char *c = name; good && *c; c++)
        good = (unsigned char)*c >= ' ' && *c != 127;
    if (good) return 0;
    return err_set(e, ERR_USER,
                   "account name \"%.100s\", expected 1 to %d printable bytes, not beginning with "
                   "acct_ or a space",
                   name, NAME_MAX_SIZE);
}

/* Inside a transaction. */
static int add_credit(struct db *db, const char *account, int64_t pico, const char *reason,
                      struct err *e)
{
    char id[64], gives[24], takes[24];
    random_id("", id, sizeof id);
    snprintf(gives, sizeof gives, "%" PRId64, pico);
    snprintf(takes, sizeof takes, "%" PRId64, -pico);
    if (db_queryf(
            db, NULL, e,
            "INSERT INTO credits (id, account_id, amount_pico, reason) VALUES ($1, $2, $3, $4)", id,
            account, gives, reason, NULL) < 0)
        return -1;
    if (db_queryf(db, NULL, e,
                  "INSERT INTO ledger_entries (tx, account, amount_pico, created_at) VALUES "
                  "('credit:' || $1::text, 'customer:' || $2::text, $3::bigint, now()), "
                  "('credit:' || $1::text, 'cash', $4::bigint, now())",
                  id, account, gives, takes, NULL) < 0)
        return -1;
    if (db_queryf(db, NULL, e,
                  "INSERT INTO balances AS b (account_id, balance_pico) VALUES ($1, $2) "
                  "ON CONFLICT (account_id) DO UPDATE "
                  "SET balance_pico = b.balance_pico + excluded.balance_pico",
                  account, gives, NULL) < 0)
        return -1;
    return 0;
}

/* Nobody repeats these by himself, so an unknown end is said plainly. */
static int commit(struct db *db, const char *look, struct err *e)
{
    bool unknown;
    if (db_commit(db, &unknown, e) == 0) return 0;
    return unknown ? err_prefix(e, "it may or may not have been done, see %s", look) : -1;
}

int account_create(const struct command_input *in, struct err *e)
{
    const char *name = in->args->words[0], *credit = arg(in->args, "credit-usd");
    char id[ACCOUNT_ID_SIZE];
    int64_t pico = 0;
    if (check_name(name, e) < 0) return -1;
    if (credit && money_parse("--credit-usd", credit, USD_DECIMALS, &pico, e) < 0) return -1;
    if (pico < 0) return err_set(e, ERR_USER, "--credit-usd is \"%s\", expected 0 or more", credit);
    random_id("acct_", id, sizeof id);
    if (db_begin(in->db, e) < 0) return -1;
    if (db_queryf(in->db, NULL, e, "INSERT INTO accounts (id, name) VALUES ($1, $2)", id, name,
                  NULL) < 0) {
        if (strstr(e->text, "accounts_name_key"))
            err_set(e, ERR_USER, "there is an account named \"%s\" already", name);
        goto undo;
    }
    if (db_queryf(in->db, NULL, e, "INSERT INTO balances (account_id) VALUES ($1)", id, NULL) < 0)
        goto undo;
    if (pico && add_credit(in->db, id, pico, "with the account", e) < 0) goto undo;
    if (commit(in->db, "account list", e) < 0) return -1;
    log_info("account.created", "account=%s credit_pico=%" PRId64, id, pico);
    printf("%s\n", id);
    return 0;
undo:
    db_rollback(in->db);
    return -1;
}

int account_credit(const struct command_input *in, struct err *e)
{
    const char *usd, *reason = arg(in->args, "reason");
    char id[ACCOUNT_ID_SIZE], text[MONEY_TEXT_SIZE];
    int64_t pico;
    if (arg_must(in->args, "usd", &usd, e) < 0 ||
        money_parse("--usd", usd, USD_DECIMALS, &pico, e) < 0)
        return -1;
    if (!pico) return err_set(e, ERR_USER, "--usd is \"%s\", expected something to add", usd);
    if (pico < 0 && (!reason || !*reason))
        return err_set(e, ERR_USER, "--usd is \"%s\": a correction needs its --reason", usd);
    if (account_find(in->db, in->args->words[0], id, e) < 0 || db_begin(in->db, e) < 0) return -1;
    if (add_credit(in->db, id, pico, reason ? reason : "", e) < 0) {
        db_rollback(in->db);
        return -1;
    }
    if (commit(in->db, "account list", e) < 0) return -1;
    log_info("account.credited", "account=%s pico=%" PRId64, id, pico);
    printf("%s: %s USD added\n", id, money_text_of(pico, USD_DECIMALS, 2, text));
    return 0;
}

int account_disable(const struct command_input *in, struct err *e)
{
    char id[ACCOUNT_ID_SIZE];
    if (account_find(in->db, in->args->words[0], id, e) < 0) return -1;
    if (db_queryf(in->db, NULL, e,
                  "UPDATE accounts SET disabled_at = coalesce(disabled_at, now()) WHERE id = $1",
                  id, NULL) < 0)
        return -1;
    log_info("account.disabled", "account=%s", id);
    printf("%s is disabled\n", id);
    return 0;
}

int account_enable(const struct command_input *in, struct err *e)
{
    char id[ACCOUNT_ID_SIZE];
    if (account_find(in->db, in->args->words[0], id, e) < 0) return -1;
    if (db_queryf(in->db, NULL, e, "UPDATE accounts SET disabled_at = NULL WHERE id = $1", id,
                  NULL) < 0)
        return -1;
    log_info("account.enabled", "account=%s", id);
    printf("%s is enabled\n", id);
    return 0;
}

/* ---------------------------------------------------------------- limits */

#define PRESET_WORD "default"

static const struct {
    const char *flag, *shown;
} limits[] = {{"requests-per-minute", "requests a minute"},
              {"tokens-in-flight", "tokens in flight"},
              {"runs", "open training runs"},
              {"storage-bytes", "bytes of checkpoints"}};
#define LIMITS (sizeof limits / sizeof *limits)

/* Leaves *out as it is, "", where nothing was said. */
static int read_limit(const struct args *args, const char *flag, const char **out, struct err *e)
{
    const char *text = arg(args, flag);
    if (!text) return 0;
    size_t digits = strspn(text, "0123456789");
    if (strcmp(text, PRESET_WORD) != 0 && (!digits || digits > 18 || text[digits]))
        return err_set(
            e, ERR_USER,
            "--%s is \"%.40s\", expected a whole number, 0 for no limit, or " PRESET_WORD, flag,
            text);
    *out = text;
    return 0;
}

/* clang-format off */
#define SQL_SET(column, value)                                                                     \
    column " = CASE WHEN " value " = '' THEN " column                                              \
    " ELSE nullif(nullif(" value ", ''), '" PRESET_WORD "')::bigint END"
#define SQL_LIMIT                                                                                  \
    "UPDATE accounts SET " SQL_SET("requests_per_minute", "$2") ", "                               \
    SQL_SET("tokens_in_flight", "$3") ", " SQL_SET("runs_max", "$4") ", "                          \
    SQL_SET("storage_bytes_max", "$5") " WHERE id = $1 "                                           \
    "RETURNING requests_per_minute, tokens_in_flight, runs_max, storage_bytes_max"
/* clang-format on */

int account_limit(const struct command_input *in, struct err *e)
{
    char id[ACCOUNT_ID_SIZE];
    const char *values[LIMITS] = {"", "", "", ""};
    struct db_result *rows = NULL;
    for (size_t i = 0; i < LIMITS; i++)
        if (read_limit(in->args, limits[i].flag, &values[i], e) < 0) return -1;
    if (account_find(in->db, in->args->words[0], id, e) < 0) return -1;
    const char *params[] = {id, values[0], values[1], values[2], values[3]};
    if (db_query(in->db, SQL_LIMIT, params, 1 + LIMITS, &rows, e) < 0) return -1;
    for (size_t i = 0; i < LIMITS; i++) {
        const char *now = db_is_null(rows, 0, (int)i) ? PRESET_WORD : db_text(rows, 0, (int)i);
        if (*values[i])
            log_info("account.limit", "account=%s what=%s to=%s", id, limits[i].flag, now);
        printf("%-20s %s\n", limits[i].shown, !strcmp(now, "0") ? "no limit" : now);
    }
    db_result_free(rows);
    return 0;
}

int account_list(const struct command_input *in, struct err *e)
{
    static const struct column columns[] = {
        {"account", "account_id", CELL_TEXT}, {"name", "account", CELL_TEXT},
        {"keys", "keys", CELL_COUNT},         {"balance USD", "balance_usd", CELL_USD},
        {"created", "created_at", CELL_TEXT}, {"disabled", "disabled_at", CELL_TEXT},
    };
    enum table_format format;
    struct db_result *rows = NULL;
    char usd[MONEY_TEXT_SIZE];
    if (table_format_of(arg(in->args, "format"), &format, e) < 0) return -1;
    int n = db_queryf(
        in->db, &rows, e,
        "SELECT a.id, a.name, (SELECT count(*) FROM api_keys k "
        "    WHERE k.account_id = a.id AND k.revoked_at IS NULL), coalesce(b.balance_pico, 0), "
        "  to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
        "  to_char(a.disabled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') "
        "FROM accounts a LEFT JOIN balances b ON b.account_id = a.id ORDER BY a.created_at, a.id",
        NULL);
    struct table *t = n < 0 ? NULL : table_create(columns, 6, e);
    int rc = t ? 0 : -1;
    for (int r = 0; rc == 0 && r < n; r++) {
        const char *cells[] = {
            db_text(rows, r, 0), db_text(rows, r, 1),
            db_text(rows, r, 2), money_text(db_text(rows, r, 3), USD_DECIMALS, 2, usd),
            db_text(rows, r, 4), db_text(rows, r, 5)};
        rc = table_add(t, cells, e);
    }
    if (rc == 0) table_print(t, format, stdout);
    table_free(t);
    db_result_free(rows);
    return rc;
}

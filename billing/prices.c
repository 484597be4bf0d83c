/* prices.c - see prices.h; and the commands that list and change prices. */
#include "prices.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "commands.h"
#include "money.h"
#include "period.h"
#include "table.h"

#define SQL_US(x, infinite)                                                                        \
    "CASE WHEN isfinite(" x ") THEN (extract(epoch FROM " x ") * 1000000)::bigint ELSE " infinite  \
    " END"

static int read_price(const struct db_result *rows, int r, struct price *out, struct err *e)
{
    int n = snprintf(out->model, sizeof out->model, "%s", db_text(rows, r, 0));
    out->kind = usage_kind_of(db_text(rows, r, 1));
    out->pico = db_int(rows, r, 2);
    out->from = db_is_null(rows, r, 3) ? TIME_BEGIN : db_int(rows, r, 3);
    out->to = db_is_null(rows, r, 4) ? TIME_END : db_int(rows, r, 4);
    if (n < (int)sizeof out->model && out->kind < USAGE_KINDS) return 0;
    return err_set(e, ERR_BUG, "the price of \"%s\" for \"%s\" cannot be read", db_text(rows, r, 0),
                   db_text(rows, r, 1));
}

int prices_load(struct db *db, struct price **out, struct err *e)
{
    struct db_result *rows = NULL;
    *out = NULL;
    /* First the lock, then a snapshot: a list that was committed while we waited is seen. */
    if (db_queryf(db, NULL, e, "LOCK TABLE prices IN ACCESS SHARE MODE", NULL) < 0) return -1;
    int n = db_queryf(db, &rows, e,
                      "SELECT model, kind, pico_usd_per_token, " SQL_US(
                          "valid_from", "NULL") ", " SQL_US("valid_to", "NULL") " FROM prices",
                      NULL);
    if (n < 0) return -1;
    *out = calloc((size_t)n + 1, sizeof **out);
    int rc = *out ? n : err_set(e, ERR_RETRY, "out of memory for %d prices", n);
    for (int r = 0; rc >= 0 && r < n; r++)
        if (read_price(rows, r, &(*out)[r], e) < 0) rc = -1;
    db_result_free(rows);
    if (rc >= 0) return rc;
    free(*out);
    *out = NULL;
    return -1;
}

/* ---------------------------------------------------------------- price set */

struct change {
    const char *model, *kind, *from; /* from NULL: now */
    char pico[24], from_text[TIME_TEXT_SIZE];
};

static int read_change(const struct args *a, struct change *out, struct err *e)
{
    const char *usd, *from = arg(a, "from");
    int64_t pico, us;
    if (arg_must(a, "model", &out->model, e) < 0 || arg_must(a, "kind", &out->kind, e) < 0 ||
        arg_must(a, "usd-per-million", &usd, e) < 0)
        return -1;
    if (!*out->model || strlen(out->model) > 120)
        return err_set(e, ERR_USER, "--model is \"%.130s\", expected a base model's name or *",
                       out->model);
    if (usage_kind_of(out->kind) == USAGE_KINDS)
        return err_set(e, ERR_USER, "--kind is \"%.60s\", expected prefill, sample or train",
                       out->kind);
    if (money_parse("--usd-per-million", usd, PRICE_DECIMALS, &pico, e) < 0) return -1;
    if (pico < 0 || pico > PRICE_PICO_MAX)
        return err_set(e, ERR_USER, "--usd-per-million is \"%s\", expected 0 to 1000", usd);
    snprintf(out->pico, sizeof out->pico, "%" PRId64, pico);
    out->from = NULL;
    if (!from) return 0;
    if (time_parse("--from", from, &us, e) < 0) return -1;
    out->from = time_text(us, out->from_text);
    return 0;
}

/* The moment of change, decided while nobody else can bill: *out is the caller's to free. */
static int decide_from(struct db *db, const struct change *c, struct db_result **out, struct err *e)
{
    const char *params[] = {c->from};
    int n = db_query(db,
                     "SELECT t, t < clock_timestamp() FROM "
                     "(SELECT coalesce($1::timestamptz, clock_timestamp() + interval '1 ms') t) x",
                     params, 1, out, e);
    if (n < 0) return -1;
    if (c->from && db_bool(*out, 0, 1)) {
        db_result_free(*out);
        *out = NULL;
        return err_set(e, ERR_USER,
                       "--from %s is past, expected a time to come: what was used until now "
                       "has its price",
                       c->from);
    }
    return 0;
}

static int refuse_if_found(struct db *db, const char *sql, const struct change *c, const char *from,
                           const char *why, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(db, &rows, e, sql, c->model, c->kind, from, NULL);
    if (n > 0)
        err_set(e, ERR_USER, "the %s price of \"%s\" cannot change at %s: %s (%s)", c->kind,
                c->model, from, why, db_text(rows, 0, 0));
    db_result_free(rows);
    return n ? -1 : 0;
}

static int change(struct db *db, const struct change *c, const char *from, struct err *e)
{
    /* The server's clock may run before ours. */
    if (refuse_if_found(db,
                        "SELECT max(hour) FROM usage_hours WHERE hour + interval '1 hour' > $3 "
                        "AND ($1 = '*' OR model = $1) AND kind = $2 AND EXISTS (SELECT 1 FROM "
                        "job_outcomes o WHERE o.decided_at >= $3 AND ($1 = '*' OR o.model = $1)) "
                        "HAVING count(*) > 0",
                        c, from, "usage after it was billed already", e) < 0)
        return -1;
    if (refuse_if_found(db,
                        "SELECT valid_from FROM prices WHERE model = $1 AND kind = $2 "
                        "AND valid_from >= $3 ORDER BY 1 LIMIT 1",
                        c, from, "another price begins then or later", e) < 0)
        return -1;
    if (db_queryf(db, NULL, e,
                  "UPDATE prices SET valid_to = $3 WHERE model = $1 AND kind = $2 "
                  "AND valid_to IS NULL",
                  c->model, c->kind, from, NULL) < 0)
        return -1;
    return db_queryf(db, NULL, e,
                     "INSERT INTO prices (model, kind, pico_usd_per_token, valid_from) "
                     "VALUES ($1, $2, $3, $4)",
                     c->model, c->kind, c->pico, from, NULL);
}

int price_set(const struct command_input *in, struct err *e)
{
    struct change c;
    struct db_result *when = NULL;
    char usd[MONEY_TEXT_SIZE];
    if (read_change(in->args, &c, e) < 0) return -1;
    if (db_begin(in->db, e) < 0) return -1;
    if (db_script(in->db, "LOCK TABLE prices IN ACCESS EXCLUSIVE MODE", e) < 0 ||
        decide_from(in->db, &c, &when, e) < 0 || change(in->db, &c, db_text(when, 0, 0), e) < 0)
        goto undo;
    if (db_commit(in->db, NULL, e) < 0) {
        err_prefix(e, "see price list whether it was done");
        goto undo;
    }
    printf("%s tokens of %s cost %s USD per million from %s\n", c.kind, c.model,
           money_text(c.pico, PRICE_DECIMALS, 2, usd), db_text(when, 0, 0));
    log_info("price.set", "model=%s kind=%s pico_per_token=%s from=\"%s\"", c.model, c.kind, c.pico,
             db_text(when, 0, 0));
    db_result_free(when);
    return 0;
undo:
    db_rollback(in->db);
    db_result_free(when);
    return -1;
}

int price_list(const struct command_input *in, struct err *e)
{
    static const struct column columns[] = {
        {"model", "model", CELL_TEXT},
        {"kind", "kind", CELL_TEXT},
        {"USD per million", "usd_per_million", CELL_USD},
        {"from", "valid_from", CELL_TEXT},
        {"to", "valid_to", CELL_TEXT},
    };
    enum table_format format;
    struct db_result *rows = NULL;
    char usd[MONEY_TEXT_SIZE];
    if (table_format_of(arg(in->args, "format"), &format, e) < 0) return -1;
    int n = db_queryf(in->db, &rows, e,
                      "SELECT model, kind, pico_usd_per_token, "
                      "CASE WHEN isfinite(valid_from) THEN to_char(valid_from AT TIME ZONE 'UTC', "
                      "  'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') ELSE '' END, "
                      "to_char(valid_to AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') "
                      "FROM prices ORDER BY model, kind, valid_from",
                      NULL);
    struct table *t = n < 0 ? NULL : table_create(columns, 5, e);
    int rc = t ? 0 : -1;
    for (int r = 0; rc == 0 && r < n; r++) {
        const char *cells[] = {db_text(rows, r, 0), db_text(rows, r, 1),
                               money_text(db_text(rows, r, 2), PRICE_DECIMALS, 2, usd),
                               db_text(rows, r, 3), db_text(rows, r, 4)};
        rc = table_add(t, cells, e);
    }
    if (rc == 0) table_print(t, format, stdout);
    table_free(t);
    db_result_free(rows);
    return rc;
}

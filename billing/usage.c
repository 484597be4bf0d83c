/* usage.c - the report: tokens and amounts of a period, one line a group.
 *
 * Three sources make one list of charges: whole hours from usage_hours, and the two cut ends from
 * single outcomes, whose amount of each kind is their entry in the ledger.  All sums are Postgres'
 * exact ones. */
#include "commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "money.h"
#include "period.h"
#include "price.h"
#include "table.h"

/* $1 account or "", $2 to $3 whole hours, $4 to $5 and $6 to $7 the cut ends. */
#define CHARGES                                                                                    \
    "WITH charges AS ("                                                                            \
    "  SELECT hour AS at, account_id, model, parent_id, kind, tokens, amount_pico, jobs, "         \
    "    jobs_once FROM usage_hours"                                                               \
    "  WHERE hour >= $2::timestamptz AND hour < $3::timestamptz"                                   \
    "    AND ($1::text = '' OR account_id = $1)"                                                   \
    "  UNION ALL"                                                                                  \
    "  SELECT o.decided_at, o.account_id, o.model, o.parent_id, k.kind, k.tokens,"                 \
    "    coalesce(l.amount_pico, 0), 1, k.first::int"                                              \
    "  FROM job_outcomes o CROSS JOIN LATERAL (VALUES"                                             \
    "    ('prefill', o.prefill_tokens, true), ('sample', o.sample_tokens, o.prefill_tokens = 0),"  \
    "    ('train', o.train_tokens, o.prefill_tokens = 0 AND o.sample_tokens = 0)"                  \
    "  ) k (kind, tokens, first)"                                                                  \
    "  LEFT JOIN ledger_entries l ON l.tx = o.job_id"                                              \
    "    AND l.account = 'revenue:' || o.model || ':' || k.kind"                                   \
    "  WHERE k.tokens > 0 AND ($1::text = '' OR o.account_id = $1) AND"                            \
    "    ((o.decided_at >= $4::timestamptz AND o.decided_at < $5::timestamptz) OR"                 \
    "     (o.decided_at >= $6::timestamptz AND o.decided_at < $7::timestamptz)))"

#define SUM_OF(field, k) "coalesce(sum(c." field ") FILTER (WHERE c.kind = '" k "'), 0)"
#define SUMS                                                                                                                       \
    "coalesce(sum(c.jobs_once), 0) AS jobs, " SUM_OF("tokens", "prefill") " AS pt, " SUM_OF(                                       \
        "tokens",                                                                                                                  \
        "sample") " AS st, " SUM_OF("tokens",                                                                                      \
                                    "train") " AS tt, " SUM_OF("amount_pico",                                                      \
                                                               "prefill") " AS pa, " SUM_OF("amou"                                 \
                                                                                            "nt_"                                  \
                                                                                            "pic"                                  \
                                                                                            "o",                                   \
                                                                                            "samp"                                 \
                                                                                            "le") " AS sa, " SUM_OF("amount_pico", \
                                                                                                                    "train") " AS ta"

/* Pico-dollars a token, as whole digits: "" without tokens, "~" before an average of several
 * prices. */
#define PRICE(amount, tokens)                                                                      \
    "CASE WHEN " tokens " = 0 THEN '' ELSE CASE WHEN " amount " % " tokens                         \
    " <> 0 THEN '~' ELSE '' END || round(" amount " / " tokens ")::text END"
#define SHOWN                                                                                      \
    "jobs, pt, st, tt, " PRICE("pa", "pt") ", " PRICE("sa", "st") ", " PRICE(                      \
        "ta", "tt") ", pa + sa + ta"

/* group, name and id of the account, model; then what SHOWN says */
#define GROUPED(group, order)                                                                      \
    CHARGES " SELECT grp, coalesce(name, account_id), account_id, model, " SHOWN                   \
            " FROM (SELECT " group                                                                 \
            " AS grp, a.name, c.account_id, max(c.model) AS model, min(c.at) AS begun, " SUMS      \
            " FROM charges c LEFT JOIN accounts a ON a.id = c.account_id "                         \
            "GROUP BY 1, a.name, c.account_id) x ORDER BY " order

static const char all_groups[] =
    CHARGES " SELECT 'total', '', '', '', " SHOWN " FROM (SELECT " SUMS " FROM charges c) x";

static const char by_kind[] = CHARGES " SELECT kind, jobs, t, " PRICE(
    "a", "t") ", a FROM (SELECT kind, sum(jobs) AS jobs, "
              "sum(tokens) AS t, sum(amount_pico) AS a FROM charges GROUP BY kind) x ORDER BY kind";

static const char all_kinds[] =
    CHARGES " SELECT 'total', coalesce(sum(jobs_once), 0), coalesce(sum(tokens), 0), '', "
            "coalesce(sum(amount_pico), 0) FROM charges";

static const struct grouping {
    const char *name, *title, *column, *sql;
    bool with_model;
} groupings[] = {
    {"run", "run or sampler", "run", GROUPED("c.parent_id", "begun, grp"), true},
    {"day", "day (UTC)", "day",
     GROUPED("to_char(c.at AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "grp, 2, 3"), false},
    {"month", "month (UTC)", "month",
     GROUPED("to_char(c.at AT TIME ZONE 'UTC', 'YYYY-MM')", "grp, 2, 3"), false},
    {"model", "model", "model", GROUPED("c.model", "grp, 2, 3"), false},
    {"account", NULL, NULL, GROUPED("c.account_id", "2, 3"), false},
};
#define GROUPING_COUNT (int)(sizeof groupings / sizeof *groupings)

struct question {
    char account[ACCOUNT_ID_SIZE]; /* "": all */
    char times[6][TIME_TEXT_SIZE];
    const char *params[7];
    enum table_format format;
};

static int read_question(const struct command_input *in, struct question *q, struct err *e)
{
    const char *account = arg(in->args, "account"), *from = arg(in->args, "from"),
               *to = arg(in->args, "to");
    int64_t from_us = TIME_BEGIN, to_us = TIME_END;
    struct period p;
    *q->account = '\0';
    if (table_format_of(arg(in->args, "format"), &q->format, e) < 0) return -1;
    if (from && time_parse("--from", from, &from_us, e) < 0) return -1;
    if (to && time_parse("--to", to, &to_us, e) < 0) return -1;
    if (period_cut(from_us, to_us, &p, e) < 0) return -1;
    if (account && account_find(in->db, account, q->account, e) < 0) return -1;
    const int64_t times[6] = {p.hour_from, p.hour_to, p.from, p.head_to, p.tail_from, p.to};
    q->params[0] = q->account;
    for (int i = 0; i < 6; i++)
        q->params[i + 1] = time_text(times[i], q->times[i]);
    return 0;
}

/* ---------------------------------------------------------------- rows */

#define COLUMNS_MAX 12

/* A price as PRICE wrote it, in USD per million tokens.  Only people are told that it is an
 * average. */
static char *price_cell(const char *text, enum table_format format, char *out)
{
    bool average = *text == '~', tell = average && format == FORMAT_TABLE;
    if (!*text) return strcpy(out, "");
    *out = '~';
    money_text(text + average, PRICE_DECIMALS, 2, out + tell);
    return out;
}

/* Row r of an answer whose columns are texts and counts, then prices from price_at on, the amount
 * last. */
static int add_row(struct table *t, const struct db_result *rows, int r, int columns, int price_at,
                   bool total, enum table_format format, struct err *e)
{
    const char *cells[COLUMNS_MAX];
    char texts[COLUMNS_MAX][MONEY_TEXT_SIZE + 1];
    for (int c = 0; c < columns; c++)
        cells[c] = c < price_at      ? db_text(rows, r, c)
                   : c < columns - 1 ? price_cell(db_text(rows, r, c), format, texts[c])
                                     : money_text(db_text(rows, r, c), USD_DECIMALS, 2, texts[c]);
    return total ? table_total(t, cells, e) : table_add(t, cells, e);
}

/* A table of all rows of sql, and the one row of total_sql below them. */
static struct table *make_table(struct db *db, const struct question *q, const char *sql,
                                const char *total_sql, const struct column *columns, int count,
                                int price_at, struct err *e)
{
    struct db_result *rows = NULL, *total = NULL;
    struct table *t = table_create(columns, count, e);
    int rc = t ? 0 : -1;
    int n = rc == 0 ? db_query(db, sql, q->params, 7, &rows, e) : -1;
    if (n < 0 || db_query(db, total_sql, q->params, 7, &total, e) < 0) rc = -1;
    for (int r = 0; rc == 0 && r < n; r++)
        rc = add_row(t, rows, r, count, price_at, false, q->format, e);
    if (rc == 0) rc = add_row(t, total, 0, count, price_at, true, q->format, e);
    db_result_free(rows);
    db_result_free(total);
    if (rc == 0) return t;
    table_free(t);
    return NULL;
}

static struct table *kinds_table(struct db *db, const struct question *q, struct err *e)
{
    static const struct column columns[] = {
        {"kind", "kind", CELL_TEXT},
        {"jobs", "jobs", CELL_COUNT},
        {"tokens", "tokens", CELL_COUNT},
        {"USD per million", "usd_per_million", CELL_USD},
        {"amount USD", "amount_usd", CELL_USD},
    };
    return make_table(db, q, by_kind, all_kinds, columns, 5, 3, e);
}

/* columns (room for COLUMNS_MAX) are made for the grouping and must live as long as the table. */
static struct table *groups_table(struct db *db, const struct grouping *g, const struct question *q,
                                  struct column *columns, struct err *e)
{
    const struct column all[COLUMNS_MAX] = {
        {g->title, g->column, CELL_TEXT},
        {"account", "account", CELL_TEXT},
        {NULL, "account_id", CELL_TEXT},
        {g->with_model ? "model" : NULL, g->with_model ? "model" : NULL, CELL_TEXT},
        {"jobs", "jobs", CELL_COUNT},
        {"prefill", "prefill_tokens", CELL_COUNT},
        {"sample", "sample_tokens", CELL_COUNT},
        {"train", "train_tokens", CELL_COUNT},
        {NULL, "prefill_usd_per_million", CELL_USD},
        {NULL, "sample_usd_per_million", CELL_USD},
        {NULL, "train_usd_per_million", CELL_USD},
        {"amount USD", "amount_usd", CELL_USD},
    };
    memcpy(columns, all, sizeof all);
    return make_table(db, q, g->sql, all_groups, columns, COLUMNS_MAX, 8, e);
}

static const struct grouping *find_grouping(const char *by, struct err *e)
{
    for (int i = 0; i < GROUPING_COUNT; i++)
        if (!strcmp(by, groupings[i].name)) return &groupings[i];
    err_set(e, ERR_USER, "--by is \"%.60s\", expected run, day, month, model, kind or account", by);
    return NULL;
}

/* All figures of a report are of one moment. */
static int report(const struct command_input *in, const struct grouping *g,
                  const struct question *q, struct err *e)
{
    struct column columns[COLUMNS_MAX];
    struct table *groups = NULL, *kinds = NULL;
    int rc = -1;
    if (g && !(groups = groups_table(in->db, g, q, columns, e))) goto out;
    bool people = q->format == FORMAT_TABLE;
    if ((!g || people) && !(kinds = kinds_table(in->db, q, e))) goto out;
    if (groups) table_print(groups, q->format, stdout);
    if (groups && kinds) printf("\n");
    if (kinds) table_print(kinds, q->format, stdout);
    rc = 0;
out:
    table_free(groups);
    table_free(kinds);
    return rc;
}

int usage_command(const struct command_input *in, struct err *e)
{
    struct question q;
    const char *by = arg(in->args, "by");
    const struct grouping *g = NULL;
    if (!by) by = "run";
    if (strcmp(by, "kind") && !(g = find_grouping(by, e))) return -1;
    if (read_question(in, &q, e) < 0) return -1;
    if (db_begin(in->db, e) < 0) return -1;
    int rc = db_script(in->db,
                       "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;"
                       "SET LOCAL statement_timeout = 0",
                       e);
    if (rc == 0) rc = report(in, g, &q, e);
    db_rollback(in->db); /* it only read */
    return rc;
}

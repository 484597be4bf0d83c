/* audit.c - the books against themselves and, with --log, against the logs.
 *
 * Everything is computed a second time, by Postgres and from the outcomes alone: what each job must
 * have cost, and from that the hours, the ledger and the balances.  The outcomes are compared with
 * the results logs, read whole under the reading rule, up to the cursors of the same snapshot of
 * the database. */
#include "commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "bus/bus.h"
#include "outcome.h"
#include "parts.h"

#define SHOWN_MAX   5
#define POLL_MAX    512
#define POLL_MS     1000
#define SILENCE_MAX 60 /* polls without a record where there must be one */
#define LINES_SIZE  (8u << 20)
#define OFFSETS_MS  20000

/* What each kind of each job must have cost. */
static const char make_charges[] =
    "CREATE TEMP TABLE audit_charges ON COMMIT DROP AS "
    "SELECT o.job_id, o.account_id, o.model, o.parent_id, o.decided_at,"
    "  date_trunc('hour', o.decided_at, 'UTC') AS hour, k.kind, k.tokens,"
    "  p.pico_usd_per_token AS price, k.tokens * p.pico_usd_per_token::numeric AS pico,"
    "  k.nr = min(k.nr) OVER (PARTITION BY o.job_id) AS first "
    "FROM job_outcomes o CROSS JOIN LATERAL (VALUES (1, 'prefill', o.prefill_tokens),"
    "  (2, 'sample', o.sample_tokens), (3, 'train', o.train_tokens)) k (nr, kind, tokens) "
    "LEFT JOIN LATERAL (SELECT pico_usd_per_token FROM prices p WHERE p.kind = k.kind"
    "  AND p.model IN (o.model, '*') AND p.valid_from <= o.decided_at"
    "  AND (p.valid_to IS NULL OR o.decided_at < p.valid_to)"
    "  ORDER BY p.model <> o.model, p.valid_from DESC LIMIT 1) p ON true "
    "WHERE k.tokens > 0; ANALYZE audit_charges";

static const char make_log[] =
    "CREATE TEMP TABLE audit_log (" OUTCOME_TABLE ", sure boolean) ON COMMIT DROP;"
    "CREATE TEMP TABLE audit_parts (topic text, partition integer, first_offset bigint)"
    "  ON COMMIT DROP";

/* Each gives one text for each difference. */
struct rule {
    const char *says, *sql;
    bool log;
};
static const struct rule rules[] = {
    {"each outcome is the first official result of its job in the log, and the reverse",
     "WITH official AS (SELECT DISTINCT ON (job_id) * FROM audit_log"
     "  ORDER BY job_id, topic, partition, log_offset) "
     "SELECT CASE WHEN o.job_id IS NULL THEN format('job %s: in the log (%s/%s at %s), no outcome',"
     "  l.job_id, l.topic, l.partition, l.log_offset)"
     "  WHEN l.job_id IS NULL THEN format('job %s: an outcome (%s/%s at %s), not in the log',"
     "  o.job_id, o.topic, o.partition, o.log_offset)"
     "  ELSE format('job %s: outcome and log differ', o.job_id) END "
     "FROM official l FULL JOIN job_outcomes o ON o.job_id = l.job_id "
     "LEFT JOIN audit_parts p ON p.topic = o.topic AND p.partition = o.partition "
     "WHERE (o.job_id IS NULL AND l.sure)"
     "  OR (l.job_id IS NULL AND (p.topic IS NULL OR o.log_offset >= p.first_offset))"
     "  OR (l.job_id IS NOT NULL AND o.job_id IS NOT NULL AND o.log_offset >= p.first_offset AND"
     "   (o.account_id, o.model, o.parent_id, o.kind, o.seq, o.status, o.prefill_tokens,"
     "    o.sample_tokens, o.train_tokens, o.digest, o.topic, o.partition, o.log_offset,"
     "    o.decided_at) IS DISTINCT FROM"
     "   (l.account_id, l.model, l.parent_id, l.kind, l.seq, l.status, l.prefill_tokens,"
     "    l.sample_tokens, l.train_tokens, l.digest, l.topic, l.partition, l.log_offset,"
     "    l.decided_at))",
     true},
    {"each outcome costs its tokens at the prices of its time",
     "SELECT format('job %s: %s pico-dollars, expected %s', o.job_id, o.amount_pico,"
     "  coalesce(c.pico::text, 'a price that does not exist')) "
     "FROM job_outcomes o LEFT JOIN (SELECT job_id, CASE WHEN bool_or(price IS NULL) THEN NULL"
     "  ELSE sum(pico) END AS pico, true AS any FROM audit_charges GROUP BY job_id) c USING "
     "(job_id)"
     "WHERE o.amount_pico IS DISTINCT FROM CASE WHEN c.any THEN c.pico ELSE 0 END",
     false},
    {"failed and cancelled jobs cost nothing",
     "SELECT format('job %s: %s, %s pico-dollars', job_id, status, amount_pico) FROM job_outcomes "
     "WHERE status <> 'ok' AND (amount_pico <> 0 OR prefill_tokens <> 0 OR sample_tokens <> 0"
     "  OR train_tokens <> 0)",
     false},
    {"each billed account exists",
     "SELECT format('account %s: %s outcomes, no such account', o.account_id, count(*)) "
     "FROM job_outcomes o WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.id = o.account_id) "
     "GROUP BY o.account_id",
     false},
    {"the hours are the sums of the outcomes",
     "SELECT format('%s %s %s %s: %s tokens, %s pico-dollars, %s jobs; expected %s, %s, %s', hour,"
     "  account_id, parent_id, kind, u.tokens, u.amount_pico, u.jobs, c.tokens, c.pico, c.jobs) "
     "FROM usage_hours u FULL JOIN (SELECT hour, account_id, model, parent_id, kind,"
     "  sum(tokens) AS tokens, sum(pico) AS pico, count(*) AS jobs,"
     "  count(*) FILTER (WHERE first) AS jobs_once FROM audit_charges GROUP BY 1, 2, 3, 4, 5) c "
     "USING (hour, account_id, model, parent_id, kind) "
     "WHERE (u.tokens, u.amount_pico, u.jobs, u.jobs_once) IS DISTINCT FROM"
     "  (c.tokens, c.pico, c.jobs, c.jobs_once)",
     false},
    {"the entries of each transaction in the ledger sum to zero",
     "SELECT format('transaction %s: %s pico-dollars too much', tx, sum(amount_pico)) "
     "FROM ledger_entries GROUP BY tx HAVING sum(amount_pico) <> 0",
     false},
    {"the ledger holds an entry for each charge and each credit, and no other",
     "WITH expected AS ("
     "  SELECT job_id AS tx, 'customer:' || account_id AS account, -sum(pico) AS pico"
     "    FROM audit_charges GROUP BY job_id, account_id HAVING sum(pico) <> 0"
     "  UNION ALL SELECT job_id, 'revenue:' || model || ':' || kind, pico FROM audit_charges"
     "    WHERE pico <> 0"
     "  UNION ALL SELECT 'credit:' || id, 'customer:' || account_id, amount_pico FROM credits"
     "  UNION ALL SELECT 'credit:' || id, 'cash', -amount_pico FROM credits) "
     "SELECT format('transaction %s, %s: %s pico-dollars, expected %s', tx, account,"
     "  coalesce(l.amount_pico::text, 'nothing'), coalesce(x.pico::text, 'nothing')) "
     "FROM ledger_entries l FULL JOIN expected x USING (tx, account) "
     "WHERE l.amount_pico IS DISTINCT FROM x.pico",
     false},
    {"each balance is the account's credits less its charges",
     "WITH moved AS (SELECT account_id, -pico AS pico FROM audit_charges"
     "  UNION ALL SELECT account_id, amount_pico FROM credits) "
     "SELECT format('account %s: %s pico-dollars, expected %s', account_id, b.balance_pico, "
     "x.pico) "
     "FROM balances b FULL JOIN (SELECT account_id, sum(pico) AS pico FROM moved GROUP BY 1) x "
     "USING (account_id) WHERE coalesce(b.balance_pico, 0) <> coalesce(x.pico, 0)",
     false},
};
#define RULE_COUNT (int)(sizeof rules / sizeof *rules)

/* ---------------------------------------------------------------- reading the logs */

struct reader {
    struct bus_consumer *in;
    struct db *db;
    struct buf lines;
    int64_t records, fenced, bad;
};

static int send_lines(struct reader *r, struct err *e)
{
    if (!r->lines.size) return 0;
    int rc = db_copy(r->db, "COPY audit_log (" OUTCOME_COLUMNS ", sure) FROM STDIN", r->lines.data,
                     r->lines.size, e);
    buf_clear(&r->lines);
    return rc;
}

/* sure: the epoch in force is known, because the log is there from its beginning or a take-over was
 * seen. */
static int take(struct reader *r, struct part *p, const struct bus_message *m, bool *sure,
                struct err *e)
{
    struct outcome o;
    struct err why = {0};
    r->records++;
    switch (outcome_read(m, p->model, p->stream, &p->reading, &o, &why)) {
    case OUTCOME_READ:
        if (outcome_line(&o, p->model, p->topic, p->partition, &r->lines, e) < 0 ||
            buf_printf(&r->lines, e, "\t%s\n", *sure ? "t" : "f") < 0)
            return -1;
        break;
    case OUTCOME_BARRIER:
        *sure = true;
        break;
    case OUTCOME_FENCED:
        r->fenced++;
        break;
    case OUTCOME_BAD:
        if (why.kind != ERR_USER) {
            *e = why;
            return -1;
        }
        r->bad++;
        break;
    }
    p->next = m->offset + 1;
    return r->lines.size > LINES_SIZE / 2 ? send_lines(r, e) : 0;
}

static int poll_part(struct reader *r, struct part *p, int64_t end, bool *sure, struct err *e)
{
    struct bus_message *got[POLL_MAX];
    int n = bus_poll(r->in, got, POLL_MAX, POLL_MS, e), rc = n;
    for (int i = 0; i < n; i++) {
        if (rc >= 0 && got[i]->offset < end && take(r, p, got[i], sure, e) < 0) rc = -1;
        if (rc >= 0 && got[i]->offset >= end) p->next = end;
        bus_message_free(got[i]);
    }
    return rc;
}

/* One partition from its first record to where its cursor stands. */
static int read_part(struct reader *r, struct part *p, struct err *e)
{
    int64_t first, next, end = p->folded.next;
    char partition[16], offset[24];
    if (bus_offsets(r->in, p->topic, p->partition, &first, &next, OFFSETS_MS, e) < 0) return -1;
    if (next < end)
        return err_set(e, ERR_USER, "%s/%d ends at %" PRId64 " but was billed up to %" PRId64,
                       p->topic, p->partition, next, end);
    snprintf(partition, sizeof partition, "%d", p->partition);
    snprintf(offset, sizeof offset, "%" PRId64, first);
    if (db_queryf(r->db, NULL, e, "INSERT INTO audit_parts VALUES ($1, $2::int, $3::bigint)",
                  p->topic, partition, offset, NULL) < 0)
        return -1;
    if (first > 0)
        printf("note  %s/%d begins at %" PRId64 ": what is older cannot be compared\n", p->topic,
               p->partition, first);
    bool sure = first == 0;
    p->reading = (struct reading){0};
    p->next = first;
    if (first >= end) return 0;
    if (bus_assign(r->in, p->topic, p->partition, first, e) < 0) return -1;
    for (int silent = 0; p->next < end;) {
        int n = poll_part(r, p, end, &sure, e);
        if (n < 0 && e->kind != ERR_RETRY) return -1;
        silent = n > 0 ? 0 : silent + 1;
        if (silent < SILENCE_MAX) continue;
        return err_set(e, ERR_RETRY,
                       "%s/%d gives no record at %" PRId64 ", expected up to %" PRId64, p->topic,
                       p->partition, p->next, end);
    }
    err_clear(e);
    return bus_unassign(r->in, p->topic, p->partition, e);
}

static int read_logs(const struct command_input *in, struct err *e)
{
    struct reader r = {.db = in->db};
    struct parts parts = {0};
    int rc = -1;
    buf_init(&r.lines, LINES_SIZE);
    if (db_script(in->db, make_log, e) < 0) goto out;
    if (parts_refresh(&parts, in->db, in->settings->topic_prefix, false, e) < 0) goto out;
    r.in = bus_consumer_create(in->settings->kafka_brokers, "tinworks-billing-audit", e);
    if (!r.in) goto out;
    for (int i = 0; i < parts.count; i++)
        if (read_part(&r, &parts.items[i], e) < 0) goto out;
    if (send_lines(&r, e) < 0 || db_script(in->db, "ANALYZE audit_log", e) < 0) goto out;
    printf("log   %d partitions, %" PRId64 " records, %" PRId64 " fenced, %" PRId64 " unreadable\n",
           parts.count, r.records, r.fenced, r.bad);
    rc = 0;
out:
    buf_clear(&r.lines);
    bus_consumer_free(r.in);
    parts_clear(&parts);
    return rc;
}

/* ---------------------------------------------------------------- verdicts */

/* Returns the number of differences. */
static int64_t judge(struct db *db, const struct rule *rule, struct err *e)
{
    struct db_result *rows = NULL;
    char sql[4096], shown[16];
    snprintf(shown, sizeof shown, "%d", SHOWN_MAX);
    int size = snprintf(sql, sizeof sql,
                        "WITH found (text) AS (%s) SELECT text, count(*) OVER () FROM found LIMIT "
                        "$1::int",
                        rule->sql);
    if (size >= (int)sizeof sql) return err_set(e, ERR_BUG, "a rule of the audit is too long");
    int n = db_queryf(db, &rows, e, sql, shown, NULL);
    if (n < 0) return err_prefix(e, "%s", rule->says);
    int64_t found = n ? db_int(rows, 0, 1) : 0;
    printf("%-5s %s\n", found ? "WRONG" : "ok", rule->says);
    for (int r = 0; r < n; r++)
        printf("      - %s\n", db_text(rows, r, 0));
    if (found > n) printf("      - and %" PRId64 " more\n", found - n);
    db_result_free(rows);
    return found;
}

static int judge_all(const struct command_input *in, bool with_log, struct err *e)
{
    int64_t wrong = 0;
    int judged = 0;
    if (with_log && read_logs(in, e) < 0) return -1;
    if (db_script(in->db, make_charges, e) < 0) return -1;
    for (int i = 0; i < RULE_COUNT; i++) {
        if (rules[i].log && !with_log) continue;
        int64_t found = judge(in->db, &rules[i], e);
        if (found < 0) return -1;
        wrong += found;
        judged++;
    }
    if (!wrong) {
        printf("the books are right by %d rules\n", judged);
        return 0;
    }
    return err_set(e, ERR_USER, "the audit found %" PRId64 " differences", wrong);
}

int audit_command(const struct command_input *in, struct err *e)
{
    if (db_begin(in->db, e) < 0) return -1;
    int rc = db_script(in->db,
                       "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"
                       "SET LOCAL statement_timeout = 0;"
                       "SET LOCAL idle_in_transaction_session_timeout = 0",
                       e);
    if (rc == 0) rc = judge_all(in, arg(in->args, "log") != NULL, e);
    db_rollback(in->db); /* the temporary tables go with it */
    return rc;
}

/* fold.c - see fold.h. */
#include "fold.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/failpoint.h"
#include "money.h"
#include "prices.h"

#define LINE_MAX_ 1200

/* ---------------------------------------------------------------- cursors */

static bool has_moved(const struct part *p)
{
    return p->next != p->folded.next || p->reading.max_epoch != p->folded.epoch;
}

/* Locks p's cursor.  When it is not where the batch began, the batch has nothing of p to give. */
static int lock_cursor(struct db *db, struct part *p, struct batch *b, struct err *e)
{
    struct db_result *row = NULL;
    char partition[16];
    snprintf(partition, sizeof partition, "%d", p->partition);
    int n = db_queryf(db, &row, e,
                      "SELECT next_offset, max_epoch FROM ingest_cursors "
                      "WHERE topic = $1 AND partition = $2 FOR UPDATE",
                      p->topic, partition, NULL);
    if (n < 0) return -1;
    struct position now = {0};
    if (n) now = (struct position){db_int(row, 0, 0), db_int(row, 0, 1)};
    db_result_free(row);
    if (!n) return err_set(e, ERR_BUG, "the cursor of %s/%d is gone", p->topic, p->partition);
    if (now.next == p->folded.next && now.epoch == p->folded.epoch) return 0;
    p->folded = now;
    p->next = now.next;
    p->reading = (struct reading){.max_epoch = now.epoch};
    p->fresh = true;
    b->stale++;
    return 0;
}

static int lock_cursors(struct db *db, struct parts *ps, struct batch *b, struct err *e)
{
    for (int i = 0; i < ps->count; i++)
        if (has_moved(&ps->items[i]) && lock_cursor(db, &ps->items[i], b, e) < 0) return -1;
    return 0;
}

static int move_cursors(struct db *db, const struct parts *ps, struct err *e)
{
    for (const struct part *p = ps->items; p < ps->items + ps->count; p++) {
        char partition[16], next[24], epoch[24];
        if (!has_moved(p)) continue;
        snprintf(partition, sizeof partition, "%d", p->partition);
        snprintf(next, sizeof next, "%" PRId64, p->next);
        snprintf(epoch, sizeof epoch, "%" PRId64, p->reading.max_epoch);
        if (db_queryf(db, NULL, e,
                      "UPDATE ingest_cursors SET next_offset = $3, max_epoch = $4 "
                      "WHERE topic = $1 AND partition = $2",
                      p->topic, partition, next, epoch, NULL) < 0)
            return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------- rows */

static const char make_rows[] =
    "CREATE TEMP TABLE IF NOT EXISTS fold_rows (" OUTCOME_TABLE
    ", prefill_pico bigint, sample_pico bigint, train_pico bigint) ON COMMIT DELETE ROWS";

static const char copy_rows[] =
    "COPY fold_rows (" OUTCOME_COLUMNS ", prefill_pico, sample_pico, train_pico) FROM STDIN";

/* In log order, so that of two copies in one batch the first counts.  What is left in fold_rows
 * then is what was new. */
static const char insert_outcomes[] =
    "WITH fresh AS ("
    "  INSERT INTO job_outcomes (" OUTCOME_COLUMNS ", amount_pico)"
    "  SELECT " OUTCOME_COLUMNS ", prefill_pico + sample_pico + train_pico FROM fold_rows"
    "  ORDER BY topic, partition, log_offset"
    "  ON CONFLICT (job_id) DO NOTHING RETURNING topic, partition, log_offset) "
    "DELETE FROM fold_rows r WHERE NOT EXISTS (SELECT 1 FROM fresh f"
    "  WHERE f.topic = r.topic AND f.partition = r.partition AND f.log_offset = r.log_offset)";

/* In key order, so that two consumers of different partitions never wait for each other in a
 * circle. */
static const char add_hours[] =
    "INSERT INTO usage_hours AS u"
    "  (hour, account_id, model, parent_id, kind, tokens, amount_pico, jobs, jobs_once) "
    "SELECT date_trunc('hour', decided_at, 'UTC'), account_id, model, parent_id, k.kind,"
    "  sum(k.tokens)::bigint, sum(k.pico), count(*), count(*) FILTER (WHERE k.first) "
    "FROM fold_rows, LATERAL (VALUES"
    "  ('prefill', prefill_tokens, prefill_pico, true),"
    "  ('sample', sample_tokens, sample_pico, prefill_tokens = 0),"
    "  ('train', train_tokens, train_pico, prefill_tokens = 0 AND sample_tokens = 0)"
    ") k (kind, tokens, pico, first) "
    "WHERE k.tokens > 0 GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5 "
    "ON CONFLICT (hour, account_id, model, parent_id, kind) DO UPDATE SET"
    "  tokens = u.tokens + excluded.tokens, amount_pico = u.amount_pico + excluded.amount_pico,"
    "  jobs = u.jobs + excluded.jobs, jobs_once = u.jobs_once + excluded.jobs_once";

static const char add_entries[] =
    "INSERT INTO ledger_entries (tx, account, amount_pico, created_at) "
    "SELECT job_id, l.account, l.pico, decided_at FROM fold_rows, LATERAL (VALUES"
    "  ('customer:' || account_id, -(prefill_pico + sample_pico + train_pico)),"
    "  ('revenue:' || model || ':prefill', prefill_pico),"
    "  ('revenue:' || model || ':sample', sample_pico),"
    "  ('revenue:' || model || ':train', train_pico)) l (account, pico) "
    "WHERE l.pico <> 0";

static const char move_balances[] =
    "INSERT INTO balances AS b (account_id, balance_pico) "
    "SELECT account_id, -sum(prefill_pico + sample_pico + train_pico) FROM fold_rows "
    "GROUP BY account_id HAVING sum(prefill_pico + sample_pico + train_pico) <> 0 "
    "ORDER BY account_id "
    "ON CONFLICT (account_id) DO UPDATE SET balance_pico = b.balance_pico + excluded.balance_pico";

static int add_line(const struct outcome *o, const struct part *p, const struct price *prices,
                    int price_count, struct buf *text, struct err *e)
{
    int64_t amounts[USAGE_KINDS], total;
    if (price_charge(prices, price_count, p->model, o->decided_ms * 1000, o->tokens, amounts,
                     &total, e) < 0)
        return err_prefix(e, "job \"%s\"", o->job_id);
    if (outcome_line(o, p->model, p->topic, p->partition, text, e) < 0) return -1;
    return buf_printf(text, e, "\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\n", amounts[USAGE_PREFILL],
                      amounts[USAGE_SAMPLE], amounts[USAGE_TRAIN]);
}

/* COPY's text of what is not stale; returns the number of lines. */
static int write_lines(struct db *db, const struct parts *ps, const struct batch *b,
                       struct buf *text, struct err *e)
{
    struct price *prices;
    int price_count = prices_load(db, &prices, e), lines = 0;
    if (price_count < 0) return -1;
    for (const struct outcome *o = b->outcomes; lines >= 0 && o < b->outcomes + b->count; o++) {
        const struct part *p = &ps->items[o->part];
        if (p->fresh) continue;
        lines = add_line(o, p, prices, price_count, text, e) < 0 ? -1 : lines + 1;
    }
    free(prices);
    return lines;
}

static int write_rows(struct db *db, const struct parts *ps, struct batch *b, struct err *e)
{
    struct buf text;
    int rc = -1;
    buf_init(&text, (size_t)b->count * LINE_MAX_ + 1);
    int lines = write_lines(db, ps, b, &text, e);
    if (lines <= 0) {
        rc = lines;
        goto out;
    }
    if (db_script(db, make_rows, e) < 0 || db_copy(db, copy_rows, text.data, text.size, e) < 0)
        goto out;
    b->copies = db_query(db, insert_outcomes, NULL, 0, NULL, e);
    failpoint_pass("bl.after_insert", NULL);
    if (b->copies < 0 || db_query(db, add_hours, NULL, 0, NULL, e) < 0 ||
        db_query(db, add_entries, NULL, 0, NULL, e) < 0 ||
        db_query(db, move_balances, NULL, 0, NULL, e) < 0)
        goto out;
    b->added = lines - b->copies;
    rc = 0;
out:
    buf_clear(&text);
    return rc;
}

int fold(struct db *db, struct parts *ps, struct batch *b, struct err *e)
{
    b->added = b->copies = b->stale = 0;
    if (db_begin(db, e) < 0) return -1;
    if (lock_cursors(db, ps, b, e) < 0 || write_rows(db, ps, b, e) < 0 ||
        move_cursors(db, ps, e) < 0) {
        db_rollback(db);
        return -1;
    }
    failpoint_pass("bl.before_commit", NULL);
    if (db_commit(db, NULL, e) < 0) return -1;
    failpoint_pass("bl.after_commit", NULL);
    for (struct part *p = ps->items; p < ps->items + ps->count; p++)
        p->folded = (struct position){p->next, p->reading.max_epoch};
    return 0;
}

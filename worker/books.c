/* books.c - see books.h. */
#include "books.h"

#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "worker.h"

#define NUMBER_SIZE 24
#define IDS_MAX     ((size_t)4 << 20) /* bytes of one question */

int books_cursor(struct worker *w, const struct shard *s, struct books_at *out, struct err *e)
{
    char partition[NUMBER_SIZE];
    struct db_result *r = NULL;
    int64_t since = 0;
    int n;
    snprintf(partition, sizeof partition, "%d", s->partition);
    do
        n = db_queryf(w->db, &r, e,
                      "SELECT next_offset, max_epoch FROM ingest_cursors"
                      " WHERE topic = $1 AND partition = $2::int",
                      w->results_topic[s->stream], partition, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) return -1;
    err_clear(e);
    *out = (struct books_at){0};
    if (n) *out = (struct books_at){db_int(r, 0, 0), db_int(r, 0, 1)};
    db_result_free(r);
    return 0;
}

/* The ids as Postgres writes an array. */
static int write_ids(struct task *const *tasks, int count, struct buf *out, struct err *e)
{
    if (buf_append(out, "{", 1, e) < 0) return -1;
    for (int i = 0; i < count; i++) {
        if (i && buf_append(out, ",", 1, e) < 0) return -1;
        if (buf_append(out, "\"", 1, e) < 0) return -1;
        for (const char *at = tasks[i]->job->id; *at; at++) {
            if ((*at == '"' || *at == '\\') && buf_append(out, "\\", 1, e) < 0) return -1;
            if (buf_append(out, at, 1, e) < 0) return -1;
        }
        if (buf_append(out, "\"", 1, e) < 0) return -1;
    }
    return buf_append(out, "}", 2, e); /* and its NUL */
}

/* Rows are cursors (no id) and outcomes. */
static void read_rows(struct worker *w, const struct db_result *r, int rows,
                      struct task *const *tasks, int count, int64_t *out)
{
    for (int row = 0; row < rows; row++) {
        if (db_is_null(r, row, 0)) {
            struct shard *s = shard_find(w, STREAM_SAMPLE, (int)db_int(r, row, 1));
            if (s) seen_booked(s->seen, db_int(r, row, 2));
            continue;
        }
        for (int i = 0; i < count; i++)
            if (!strcmp(tasks[i]->job->id, db_text(r, row, 0))) out[i] = db_int(r, row, 2);
    }
}

int books_look_up(struct worker *w, struct task *const *tasks, int count, int64_t *out,
                  struct err *e)
{
    struct db_result *r = NULL;
    struct buf ids;
    int64_t since = 0;
    int n = -1;
    for (int i = 0; i < count; i++)
        out[i] = -1;
    buf_init(&ids, IDS_MAX);
    if (write_ids(tasks, count, &ids, e) < 0) goto out;
    do
        n = db_queryf(w->db, &r, e,
                      "SELECT NULL AS job_id, partition, next_offset FROM ingest_cursors"
                      " WHERE topic = $1 UNION ALL SELECT job_id, NULL, log_offset"
                      " FROM job_outcomes WHERE job_id = ANY ($2::text[])",
                      w->results_topic[STREAM_SAMPLE], ids.data, NULL);
    while (n < 0 && worker_again(w, &since, e));
    if (n < 0) goto out;
    err_clear(e);
    read_rows(w, r, n, tasks, count, out);
    db_result_free(r);
out:
    buf_clear(&ids);
    return n < 0 ? -1 : 0;
}

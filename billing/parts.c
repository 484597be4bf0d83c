/* parts.c - see parts.h. */
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTITIONS_MAX 4096 /* a stream's, as models says */

void parts_clear(struct parts *ps)
{
    free(ps->items);
    *ps = (struct parts){0};
}

struct part *parts_find(const struct parts *ps, const char *topic, int partition)
{
    for (int i = 0; i < ps->count; i++)
        if (ps->items[i].partition == partition && !strcmp(ps->items[i].topic, topic))
            return &ps->items[i];
    return NULL;
}

static int by_topic(const void *a, const void *b)
{
    const struct part *x = a, *y = b;
    int order = strcmp(x->topic, y->topic);
    return order ? order : x->partition - y->partition;
}

static void rewind_to(struct part *p, struct position at)
{
    p->folded = at;
    p->next = at.next;
    p->reading = (struct reading){.max_epoch = at.epoch};
    p->fresh = true;
}

/* Fills p->folded from its cursor, which is made if wanted.  Returns 0 when there is none. */
static int read_cursor(struct db *db, struct part *p, bool create, struct err *e)
{
    struct db_result *row = NULL;
    char partition[16];
    snprintf(partition, sizeof partition, "%d", p->partition);
    if (create && db_queryf(db, NULL, e,
                            "INSERT INTO ingest_cursors (topic, partition) VALUES ($1, $2) "
                            "ON CONFLICT DO NOTHING",
                            p->topic, partition, NULL) < 0)
        return -1;
    int n = db_queryf(db, &row, e,
                      "SELECT next_offset, max_epoch FROM ingest_cursors "
                      "WHERE topic = $1 AND partition = $2",
                      p->topic, partition, NULL);
    if (n > 0) rewind_to(p, (struct position){db_int(row, 0, 0), db_int(row, 0, 1)});
    db_result_free(row);
    return n;
}

static int add(struct parts *ps, struct db *db, const struct part *p, bool create, struct err *e)
{
    struct part *grown = realloc(ps->items, ((size_t)ps->count + 1) * sizeof *grown);
    if (!grown) return err_set(e, ERR_RETRY, "out of memory for a partition");
    ps->items = grown;
    ps->items[ps->count] = *p;
    int n = read_cursor(db, &ps->items[ps->count], create, e);
    if (n > 0) ps->count++;
    return n < 0 ? -1 : 0;
}

static int add_stream(struct parts *ps, struct db *db, const char *prefix, const char *model,
                      enum stream stream, int64_t partitions, bool create, struct err *e)
{
    struct part p = {.stream = stream};
    if (snprintf(p.model, sizeof p.model, "%s", model) >= (int)sizeof p.model ||
        partitions > PARTITIONS_MAX)
        return err_set(e, ERR_BUG, "model \"%.140s\" with %lld partitions cannot be read", model,
                       (long long)partitions);
    if (topic_results(p.topic, prefix, model, stream, e) < 0) return -1;
    for (p.partition = 0; p.partition < partitions; p.partition++)
        if (!parts_find(ps, p.topic, p.partition) && add(ps, db, &p, create, e) < 0) return -1;
    return 0;
}

int parts_refresh(struct parts *ps, struct db *db, const char *prefix, bool create, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(db, &rows, e, "SELECT name, train_partitions, sample_partitions FROM models",
                      NULL);
    int rc = n < 0 ? -1 : 0;
    for (int r = 0; rc == 0 && r < n; r++) {
        const char *model = db_text(rows, r, 0);
        rc = add_stream(ps, db, prefix, model, STREAM_TRAIN, db_int(rows, r, 1), create, e);
        if (rc == 0)
            rc = add_stream(ps, db, prefix, model, STREAM_SAMPLE, db_int(rows, r, 2), create, e);
    }
    db_result_free(rows);
    if (ps->count) qsort(ps->items, (size_t)ps->count, sizeof *ps->items, by_topic);
    return rc;
}

int parts_reset(struct parts *ps, struct db *db, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(db, &rows, e,
                      "SELECT topic, partition, next_offset, max_epoch FROM ingest_cursors", NULL);
    if (n < 0) return -1;
    for (int r = 0; r < n; r++) {
        struct part *p = parts_find(ps, db_text(rows, r, 0), (int)db_int(rows, r, 1));
        if (p) rewind_to(p, (struct position){db_int(rows, r, 2), db_int(rows, r, 3)});
    }
    db_result_free(rows);
    return 0;
}

/* catalog.c - see catalog.h.  One query; a partition that nobody has taken yet has no row in
 * shards. */
#include "catalog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARDS_MAX 100000

static const char query[] =
    "SELECT m.name, k.stream, p, coalesce(s.epoch, 0), coalesce(s.slot, -1),"
    " coalesce(s.resume_offset, 0), coalesce(s.scan_offset, 0), coalesce(s.scan_epoch, 0),"
    " coalesce(s.lease_until > clock_timestamp(), false)"
    " FROM models m"
    " CROSS JOIN LATERAL (VALUES ('train', m.train_partitions), ('sample', m.sample_partitions))"
    " AS k (stream, n)"
    " CROSS JOIN LATERAL generate_series(0, k.n - 1) AS p"
    " LEFT JOIN shards s ON s.model = m.name AND s.stream = k.stream AND s.partition = p"
    " ORDER BY m.name, k.stream, p";

struct held_catalog {
    struct catalog catalog; /* first: a catalog's holder is found from it */
    atomic_int references;
    struct catalog_shard *shards;
};

struct catalog_box {
    pthread_mutex_t lock;
    struct catalog *latest;
    int64_t version;
};

void catalog_free(struct catalog *c)
{
    struct held_catalog *held = (struct held_catalog *)c;
    if (!held || atomic_fetch_sub(&held->references, 1) > 1) return;
    free(held->shards);
    free(held);
}

static void read_shard(const struct db_result *rows, int i, struct catalog_shard *s)
{
    snprintf(s->model, sizeof s->model, "%s", db_text(rows, i, 0));
    s->stream = strcmp(db_text(rows, i, 1), "sample") ? STREAM_TRAIN : STREAM_SAMPLE;
    s->partition = (int)db_int(rows, i, 2);
    s->epoch = db_int(rows, i, 3);
    s->slot = (int)db_int(rows, i, 4);
    s->resume_offset = db_int(rows, i, 5);
    s->scan_offset = db_int(rows, i, 6);
    s->scan_epoch = db_int(rows, i, 7);
    s->held = db_bool(rows, i, 8);
}

struct catalog *catalog_load(struct db *db, struct err *e)
{
    struct db_result *rows = NULL;
    struct held_catalog *held = NULL;
    int count = db_query(db, query, NULL, 0, &rows, e);
    if (count < 0) return NULL;
    if (count > SHARDS_MAX) {
        err_set(e, ERR_BUG, "%d shards, expected at most %d", count, SHARDS_MAX);
        goto fail;
    }
    held = calloc(1, sizeof *held);
    if (held) held->shards = calloc((size_t)count + 1, sizeof *held->shards);
    if (!held || !held->shards) {
        err_set(e, ERR_RETRY, "no memory for %d shards", count);
        goto fail;
    }
    for (int i = 0; i < count; i++)
        read_shard(rows, i, &held->shards[i]);
    atomic_init(&held->references, 1);
    held->catalog = (struct catalog){.count = count, .shards = held->shards};
    db_result_free(rows);
    return &held->catalog;
fail:
    db_result_free(rows);
    free(held);
    return NULL;
}

struct catalog_box *catalog_box_create(struct err *e)
{
    struct catalog_box *box = calloc(1, sizeof *box);
    if (!box) {
        err_set(e, ERR_RETRY, "no memory for the catalog");
        return NULL;
    }
    pthread_mutex_init(&box->lock, NULL);
    return box;
}

void catalog_box_free(struct catalog_box *box)
{
    if (!box) return;
    catalog_free(box->latest);
    pthread_mutex_destroy(&box->lock);
    free(box);
}

void catalog_post(struct catalog_box *box, struct catalog *take)
{
    pthread_mutex_lock(&box->lock);
    struct catalog *old = box->latest;
    take->version = ++box->version;
    box->latest = take;
    pthread_mutex_unlock(&box->lock);
    catalog_free(old);
}

struct catalog *catalog_take(struct catalog_box *box, int64_t seen)
{
    struct catalog *c = NULL;
    pthread_mutex_lock(&box->lock);
    if (box->latest && box->latest->version > seen) {
        c = box->latest;
        atomic_fetch_add(&((struct held_catalog *)c)->references, 1);
    }
    pthread_mutex_unlock(&box->lock);
    return c;
}

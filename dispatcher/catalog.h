/* catalog.h - which models there are, and who owns their shards: read from Postgres, handed to the threads.
 *
 * A snapshot never changes once it is posted; each thread holds a reference to the one it works with. */
#ifndef DISPATCHER_CATALOG_H
#define DISPATCHER_CATALOG_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "db/db.h"
#include "wire/ids.h"

struct catalog_shard {
    char model[128];
    enum stream stream;
    int partition;
    int64_t epoch;
    int slot; /* -1: nobody has owned it yet */
    bool held; /* its owner's lease has not ended */
    int64_t resume_offset, scan_offset, scan_epoch;
};

struct catalog {
    int64_t version; /* rises with every post */
    int count;
    const struct catalog_shard *shards;
};

/* A new snapshot with one reference. */
struct catalog *catalog_load(struct db *db, struct err *e);
void catalog_free(struct catalog *c); /* gives a reference back; NULL is fine */

struct catalog_box; /* the latest snapshot; any thread */

struct catalog_box *catalog_box_create(struct err *e);
void catalog_box_free(struct catalog_box *box); /* NULL is fine */
void catalog_post(struct catalog_box *box, struct catalog *take);
/* The latest snapshot if its version is above seen, to be given back; otherwise NULL. */
struct catalog *catalog_take(struct catalog_box *box, int64_t seen);

#endif

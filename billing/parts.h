/* parts.h - the results partitions of all models, and how far each is folded in. */
#ifndef BILLING_PARTS_H
#define BILLING_PARTS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "db/db.h"
#include "wire/ids.h"
#include "wire/result.h"

/* A place in a results log is an offset and the epoch in force there, never one without the other.
 */
struct position {
    int64_t next, epoch;
};

struct part {
    char model[128];
    enum stream stream;
    char topic[TOPIC_SIZE];
    int partition;
    struct position folded; /* as the database said last */
    int64_t next;           /* what was read but is not folded yet goes up to here */
    struct reading reading;
    bool fresh; /* not assigned yet, or to be assigned again at `folded` */
};

struct parts {
    struct part *items; /* by topic, partition: everybody locks in one order */
    int count;
};

void parts_clear(struct parts *ps);

/* Adds the partitions that the table models has and ps has not (marked fresh, their cursors read or
 * made).  The order may change: only while nothing refers to an index.  create false: a partition
 * without a cursor is left out. */
int parts_refresh(struct parts *ps, struct db *db, const char *prefix, bool create,
                  struct err *e) WARN_UNUSED;

/* Reads all cursors again and marks every partition fresh there. */
int parts_reset(struct parts *ps, struct db *db, struct err *e) WARN_UNUSED;

/* NULL when there is none. */
struct part *parts_find(const struct parts *ps, const char *topic, int partition);

#endif

/* fold.h - a batch of results into outcomes, ledger, balances, hours and cursors: one transaction.
 *
 * A job's outcome is written once because its id is a primary key, and everything else is made only
 * from outcomes that were new.  The cursors move in the same transaction and must still be where
 * the batch began, so a batch that was read twice, or by two consumers, counts once. */
#ifndef BILLING_FOLD_H
#define BILLING_FOLD_H

#include "base/err.h"
#include "db/db.h"
#include "outcome.h"
#include "parts.h"

#define FOLD_MAX 100000 /* outcomes in a batch */

struct batch {
    struct outcome *outcomes; /* room for max; in the order read */
    int count, max;
    int added;  /* out: new outcomes */
    int copies; /* out: of jobs that had an outcome already */
    int stale;  /* out: partitions left out, see below */
};

/* Commits outcomes and the positions that ps has read up to, and makes those its folded ones.  A
 * partition whose cursor somebody else has moved is left out with all its outcomes and rewound to
 * that cursor (fresh). -1: nothing of it is known to have happened; parts_reset() tells. */
int fold(struct db *db, struct parts *ps, struct batch *b, struct err *e) WARN_UNUSED;

#endif

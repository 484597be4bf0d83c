/* lease.h - which shards are ours, and until when.
 *
 * A thread with its own database connection renews all leases every lease / 5 and takes over shards whose lease
 * has ended, with epoch + 1.  It never touches the logs: what it took is handed to the main thread as an event, in
 * order.  Ownership is enforced by the barrier in the results log; the lease only keeps two workers from fighting. */
#ifndef WORKER_LEASE_H
#define WORKER_LEASE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/ids.h"

struct lease;

struct lease_conf {
    const char *postgres, *model;
    const char *owner; /* random, one a process */
    int slot;
    int64_t lease_ms;
    int shards; /* how many there are; while some are in other hands we look more often */
    const char *numerics;  /* our numerics class: shards of another one are left alone */
    bool numerics_change;  /* ... unless an operator said so */
};

/* Starts the thread.  conf's texts must live as long as the lease. */
struct lease *lease_open(const struct lease_conf *conf, struct err *e);

struct lease_event {
    bool lost; /* somebody else has it now */
    enum stream stream;
    int partition;
    int64_t epoch;
    int64_t resume_offset, scan_offset, scan_epoch; /* taken only, as are: */
    bool clean;         /* the last owner drained */
    bool other_numerics; /* and had another numerics class */
};
/* The next event into *out; false when there is none. */
bool lease_next(struct lease *l, struct lease_event *out);

/* May we publish?  The last good renewal was sent less than 0.8 lease ago.  Any thread. */
bool lease_good(const struct lease *l);
/* Waits until lease_good() or until stop is asked for: -1 then, or when a shard was lost meanwhile. */
int lease_wait_good(struct lease *l, struct err *e) WARN_UNUSED;

/* Was any shard of ours taken over by somebody else?  Any thread. */
bool lease_lost(const struct lease *l);

/* Has the first round of take-overs been made?  (It may have found every shard in other hands.) */
bool lease_started(const struct lease *l);

/* How the shards are left. */
enum lease_end {
    LEASE_KEPT,     /* they end with time                                                              */
    LEASE_RELEASED, /* given up at once, so that a successor need not wait; something may be half done */
    LEASE_DRAINED,  /* the same, and nothing is half done                                              */
};
/* Ends the thread.  NULL is fine. */
void lease_close(struct lease *l, enum lease_end how);

#endif

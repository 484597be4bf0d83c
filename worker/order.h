/* order.h - the order of one run's jobs: strictly by seq, whatever the order in which they arrive.
 *
 * applied is the last seq that is over; applied + 1 is next.  What arrives early is held behind the gap.  The first
 * job of a seq wins: another one with the same mark (its kind) is its copy, one with another mark came too late for its
 * seq.  Which marks each of the last ORDER_PAST seqs has seen is the order's past; it goes into snapshots, so that who
 * loads one answers as this order would have.  Everything here is a function of the log, so a replay decides the same. */
#ifndef WORKER_ORDER_H
#define WORKER_ORDER_H

#include <stdint.h>
#include "base/err.h"

#define ORDER_WINDOW 4096 /* how far a seq may lie above the unbroken row */
#define ORDER_PAST   4096 /* how many seqs that are over are remembered; jobs of older ones count as copies */
#define ORDER_MARKS  8

struct order;

struct order *order_create(int64_t applied, struct err *e); /* -1: nothing is over yet, 0 is next */
void order_free(struct order *o);                           /* items are not touched; NULL is fine */

enum order_added {
    ORDER_HELD, /* it is in, due or behind a gap                                              */
    ORDER_COPY, /* a job of its seq and mark was here before                                  */
    ORDER_USED, /* its seq is another job's, of another mark: fail it                         */
    ORDER_LATE, /* its seq was given up by order_expire() before any job of it came: fail it  */
    ORDER_FAR,  /* more than ORDER_WINDOW above the unbroken row: fail it                     */
};
/* One of the above, or -1 (memory).  mark is below ORDER_MARKS. */
int order_add(struct order *o, int64_t seq, int mark, void *item, struct err *e) WARN_UNUSED;

/* The item that is held for seq, or NULL. */
void *order_at(const struct order *o, int64_t seq);

int64_t order_applied(const struct order *o);
int64_t order_unbroken(const struct order *o); /* from applied + 1 up to here every seq is held or given up */
int64_t order_held(const struct order *o);     /* items held */

/* seq is applied + 1: it is over and its item let go.  Seqs given up that follow are over too. */
void order_done(struct order *o, int64_t seq);

/* Gives up the gaps: items behind the first one are handed to failed() and let go, and their seqs and the missing
 * ones between them are given up.  What is before the first gap stays.  Returns how many items failed. */
int order_expire(struct order *o, void (*failed)(void *arg, void *item), void *arg);

/* Hands every held item to each(), in order of seq. */
void order_each(const struct order *o, void (*each)(void *arg, void *item), void *arg);

/* The marks of the last seqs that are over, a byte of bits each, the youngest (applied) last; 0: given up and no job of it
 * came so far.  Returns how many, at most ORDER_PAST. */
int order_past(const struct order *o, uint8_t out[ORDER_PAST]);
/* The same into a fresh order; what is older counts as seen. */
void order_recall(struct order *o, const uint8_t *past, int count);

#endif

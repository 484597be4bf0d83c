/* comm.h - sums over ranks: devices of which each computes a part of the same thing.
 *
 * A table that is filled twice, as ops.h's is: comm_cpu() with threads of one process that share
 * their memory, comm_nccl() with NCCL.  A rank is a device and the thread that drives it; all ranks
 * of a group make the same calls in the same order, and a rank that stays away keeps the others
 * waiting.  As with ops, what goes wrong on the way comes out of the devices' next sync().
 *
 * Order.  Element i of a sum is ((x0[i] + x1[i]) + x2[i]) + ... over the ranks in their order,
 * whatever its place and the count.  So the row law holds and bits repeat.  ncclAllReduce does not
 * promise that: in a ring the rank that begins depends on where in the buffer an element lies.  A
 * filling with NCCL must fetch the parts and add them up itself. */
#ifndef KERNELS_COMM_H
#define KERNELS_COMM_H

#include "kernels/ops.h"

#define COMM_RANKS_MAX 8

struct comm; /* one rank's end of a group */

struct comm_ops {
    const char *name;
    /* A group of 1 to COMM_RANKS_MAX ranks: ends[r] belongs to the thread that drives devices[r],
     * which must stay open for as long. */
    int (*open)(struct device *const *devices, int ranks, struct comm **ends, struct err *e);
    /* All ends of a group together, once no rank is in a call.  NULLs are fine. */
    void (*close)(struct comm **ends, int ranks);
    /* x [count] becomes the sum of all ranks' x, on every rank. */
    void (*all_reduce)(struct comm *c, float *x, size_t count);
};

const struct comm_ops *comm_cpu(void);

/* NULL with ERR_USER when this build has no NCCL. */
const struct comm_ops *comm_nccl(struct err *e);

#endif

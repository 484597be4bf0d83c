/* comm.h - sums over ranks: devices of which each computes a part of the same thing.
 *
 * A table that is filled twice, as ops.h's is: comm_cpu() with threads of one process that share
 * their memory, comm_nccl() with NCCL, for GPUs of this machine and ranks of one process.  A rank
 * is a device and the thread that drives it; all ranks of a group make the same calls in the same
 * order, and a rank that stays away keeps the others waiting.
 *
 * Failures.  As with ops, what goes wrong on the way comes out of the devices' next sync(), as
 * ERR_LOST.  When one rank's GPU fails those of the whole group do, with a text that names it, and
 * no rank is left waiting for it: neither in all_reduce() nor in an op that waits for a device.  So
 * all ranks go on making their calls, which do nothing any more.
 *
 * Order.  Element i of a sum is ((x0[i] + x1[i]) + x2[i]) + ... over the ranks in their order,
 * whatever its place and the count.  So the row law holds and bits repeat.  ncclAllReduce does not
 * promise that: in a ring the rank that begins depends on where in the buffer an element lies.  So
 * comm_nccl() has NCCL fetch the parts and adds them up itself, to the same bits as comm_cpu().
 * Up to some ten thousand elements parts go whole to every rank, longer ones by shares. */
#ifndef KERNELS_COMM_H
#define KERNELS_COMM_H

#include "kernels/ops.h"

#define COMM_RANKS_MAX 8

struct comm; /* one rank's end of a group */

struct comm_ops {
    const char *name;
    /* A group of 1 to COMM_RANKS_MAX ranks: ends[r] belongs to the thread that drives devices[r],
     * which must stay open for as long and be in no other group.  One thread opens and closes all.
     * GPUs must be different ones, opened with ops_cuda()'s table.  ERR_RETRY when there is no room
     * or, with the library's words, when NCCL cannot join them; ERR_LOST when one has failed. */
    int (*open)(struct device *const *devices, int ranks, struct comm **ends, struct err *e);
    /* All ends of a group together, once no rank is in a call.  NULLs are fine. */
    void (*close)(struct comm **ends, int ranks);
    /* x [count], memory of the rank's device, becomes the sum of all ranks' x, on every rank.  count
     * is the same on all ranks and may be 0.  As an op, it need not be done when it returns. */
    void (*all_reduce)(struct comm *c, float *x, size_t count);
};

const struct comm_ops *comm_cpu(void);

/* NULL with ERR_USER when this build has no NCCL, or libnccl.so.2 is not on this machine. */
const struct comm_ops *comm_nccl(struct err *e);

#endif

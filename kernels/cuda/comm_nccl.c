/* comm_nccl.c - stands where sums over GPUs are not built: it only says so. */
#include "kernels/comm.h"

const struct comm_ops *comm_nccl(struct err *e)
{
    err_set(e, ERR_USER, "several CUDA devices were asked for, but this build has no NCCL");
    return NULL;
}

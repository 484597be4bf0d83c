/* comm_nccl.c - stands for comm_nccl.cu in builds without CUDA or NCCL: it only says so. */
#include "kernels/comm.h"

const struct comm_ops *comm_nccl(struct err *e)
{
    err_set(e, ERR_USER, "several CUDA devices were asked for, but this build has no NCCL");
    return NULL;
}

/* ops_cuda.c - stands where the CUDA twin is not built: it only says so. */
#include "kernels/ops.h"

const struct ops *ops_cuda(int index, struct err *e)
{
    err_set(e, ERR_USER, "device \"cuda:%d\" was asked for, but this build has no CUDA", index);
    return NULL;
}

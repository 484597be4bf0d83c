/* nccl_calls.h - the calls of NCCL that comm_nccl.cu makes.
 *
 * libnccl.so.2 is looked for when several GPUs are first asked for (nccl_load.cu): a build needs
 * nccl.h alone, and its programs run without the library on machines that have one GPU or none.
 * Emulation has a plain filling (nccl_plain.cc). */
#ifndef KERNELS_CUDA_NCCL_CALLS_H
#define KERNELS_CUDA_NCCL_CALLS_H

#include "kernels/cuda/cuda.h"

#ifdef CUDA_EMULATED
typedef struct nccl_plain *ncclComm_t;
enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6
};
enum ncclDataType_t { ncclFloat = 7 };

extern "C" {
ncclResult_t ncclCommInitAll(ncclComm_t *comms, int count, const int *devices);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
/* On a GPU it ends what its own rank has under way; here, where a call waits for the others, it
 * ends the others' calls as well. */
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
const char *ncclGetErrorString(ncclResult_t error);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream);
/* For tests.  The calling thread's nth send, receive or gather from here (1: the next) fails. */
void nccl_plain_fail(int nth);
}
#else
#include <nccl.h>
#endif

#define NCCL_CALLS(X)                                                                              \
    X(CommInitAll)                                                                                 \
    X(CommDestroy)                                                                                 \
    X(CommAbort)                                                                                   \
    X(CommGetAsyncError)                                                                           \
    X(GetErrorString)                                                                              \
    X(GroupStart)                                                                                  \
    X(GroupEnd)                                                                                    \
    X(Send)                                                                                        \
    X(Recv)                                                                                        \
    X(AllGather)

struct nccl_calls {
#define NCCL_MEMBER(name) decltype(&nccl##name) name;
    NCCL_CALLS(NCCL_MEMBER)
#undef NCCL_MEMBER
};

/* For good; NULL with ERR_USER where the library, or a call in it, is missing. */
const struct nccl_calls *nccl_load(struct err *e);

#endif

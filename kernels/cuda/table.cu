/* table.cu - the GPU's table of operations. */
#include "kernels/cuda/cuda.h"

static enum ops_dtype act_dtype(enum ops_dtype weights)
{
    return weights;
}

static const struct ops cuda_table = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .numerics = cuda_numerics,
    .act_dtype = act_dtype,
    .pass_rows = OPS_CUDA_PASS_ROWS,
    .logits_bytes = OPS_CUDA_LOGITS_BYTES,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .alloc_paged = cuda_alloc_paged,
    .release_paged = cuda_release_paged,
    .memory = cuda_memory,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .recorded = cuda_recorded,
    .pack = cuda_pack,
    .pack_other_way = cuda_pack_other_way,
    .packed_free = cuda_packed_free,
    .packed_bytes = cuda_packed_bytes,
    .gemm = cuda_gemm,
    .project = cuda_project,
    .project_back = cuda_project_back,
    .gather = cuda_gather,
    .scatter = cuda_scatter,
    .rms_norm = cuda_rms_norm,
    .rms_norm_back = cuda_rms_norm_back,
    .rope = cuda_rope,
    .rope_back = cuda_rope_back,
    .swiglu = cuda_swiglu,
    .swiglu_back = cuda_swiglu_back,
    .kv_floats = cuda_kv_floats,
    .kv_write = cuda_kv_write,
    .attention = cuda_attention,
    .attention_back = cuda_attention_back,
    .logprob = cuda_logprob,
    .logprob_back = cuda_logprob_back,
    .pick = cuda_pick,
    .sum_squares = cuda_sum_squares,
    .adamw = cuda_adamw,
};

/* The oldest chip that the build has code for. */
#define OLDEST 8 /* compute capability 8.0 */
/* Of shared memory a CUDA block: decoding heads of 128 takes 141 KiB.  sm_86 and sm_89 have 99. */
#define SHARED_LEAST (160 * 1024)

static int look(int index, struct err *e)
{
    struct cudaDeviceProp prop;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (!error && index >= count)
        return err_set(e, ERR_USER, "device \"cuda:%d\" was asked for, but this machine has %d",
                       index, count);
    if (!error) error = cudaGetDeviceProperties(&prop, index);
    if (error)
        return err_set(e, ERR_USER, "device \"cuda:%d\" was asked for, but cannot be had: %s",
                       index, cudaGetErrorString(error));
    if (prop.major < OLDEST)
        return err_set(e, ERR_USER, "device \"cuda:%d\" is sm_%d%d; the oldest supported is sm_80",
                       index, prop.major, prop.minor);
    if (prop.sharedMemPerBlockOptin < SHARED_LEAST)
        return err_set(e, ERR_USER,
                       "device \"cuda:%d\" has %zu bytes of shared memory a block, needed are %d",
                       index, prop.sharedMemPerBlockOptin, SHARED_LEAST);
    return 0;
}

const struct ops *ops_cuda(int index, struct err *e)
{
    return look(index, e) < 0 ? NULL : &cuda_table;
}

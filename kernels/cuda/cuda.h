/* cuda.h - inside the CUDA kernels: the device, launching, and what kernels share.
 *
 * A .cu file of this folder includes only this one.  Compiled by nvcc it is CUDA; compiled by a C++
 * compiler with CUDA_EMULATED it is the same code on a CPU (emulate.h), which is how it is tested
 * where there is no GPU.
 *
 * Everything is asked of one stream, in order.  The first failure is kept in the device with the
 * name of what failed; from then on nothing is done any more, and sync() says ERR_LOST.
 *
 * Row law.  A sum's order is fixed by the shape of a row alone, never by the number of rows, and
 * floats are never added by atomics.  The orders are this device's own, not those of the CPU, so
 * bits are equal within a numerics class only, and the class names the chip and the build.
 * Contraction is off (-fmad=false): where a multiply and an add are fused, fmaf says so. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>
#ifdef CUDA_EMULATED
#include "kernels/cuda/emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

extern "C" {
#include "kernels/ops.h"
}

/* ------------------------------------------------------------------ the device */

#define STAGE_PARTS   4
#define STAGE_GROWTHS 16 /* doublings */

struct blas;
struct pager; /* paged.h */
struct recorder; /* record.cu */

/* Device memory that grows when more is asked for and is kept. */
struct cuda_buffer {
    void *p;
    size_t bytes;
};

/* Where descriptors are on their way: STAGE_PARTS parts, on the host in pinned memory. */
struct cuda_stage_memory {
    char *host, *dev;
    size_t part_bytes;
};

struct cuda_stage_ring { /* see cuda_stage */
    struct cuda_stage_memory now, before[STAGE_GROWTHS]; /* before: in use, perhaps, by this op */
    int growths, part;
    size_t used;                   /* of the part */
    cudaEvent_t left[STAGE_PARTS]; /* when a part was last left */
};

struct device {
    int index;
    cudaStream_t stream;
    int failed;       /* 0; 1 while `failure` is written; 2 */
    char failure[256];
    struct blas *blas;
    struct cuda_buffer scratch, gemm_scratch;
    struct cuda_stage_ring stage;
    struct recorder *recorder;
    /* Of a member of a group of GPUs (comm_nccl.cu): looks after the group while the host waits. */
    void (*watch)(struct device *d);
    struct comm *comm;
    struct pager *pager; /* NULL: no memory is paged yet */
    char numerics[2][128]; /* weights in fp32, in bf16 */
};

/* Keeps the first failure: what was tried, and why it failed.  May be called by several threads. */
void cuda_keep_text(struct device *d, const char *what, const char *why);
void cuda_keep(struct device *d, cudaError_t error, const char *what); /* unless cudaSuccess */
bool cuda_failed(const struct device *d);

/* Makes d the calling thread's current device, which every call of the runtime that makes something
 * or asks for work needs: ranks are driven by a thread each, and opened and closed by one. */
void cuda_use(struct device *d);

/* Waits for an event, looking after the group meanwhile; and, as a member of one, for the stream
 * before a call that may itself wait for it, where nobody would look. */
void cuda_wait_for_event(struct device *d, cudaEvent_t event);
void cuda_wait_if_member(struct device *d);

/* Copies an op's descriptors, which the caller may reuse at once, to the device.  The pointer is
 * good (and 64-byte aligned) for the kernels that the same op launches after it; an op may stage
 * four times.  NULL when the device has failed, or for no bytes. */
const void *cuda_stage(struct device *d, const void *host, size_t bytes);

/* Temporary device memory, 256-byte aligned and not cleared, for the kernels that are launched until
 * the next call; what an op needs it asks for in one call.  cuda_gemm has its own, so that project
 * may hold some across it.  NULL when the device has failed: then every LAUNCH does nothing. */
void *cuda_scratch(struct device *d, size_t bytes);
void *cuda_buffer_get(struct device *d, struct cuda_buffer *b, size_t bytes);

/* ------------------------------------------------------------------ asking and launching */

/* Something asked of the stream, with all that it depends on: it can be compared with what was asked
 * another time, and asked again. */
struct cuda_call {
    virtual ~cuda_call() = default;
    virtual bool same(const struct cuda_call *other) const = 0;
    virtual struct cuda_call *copy(void) const = 0;
    virtual void run(struct device *d) const = 0; /* a failure is kept */
};

/* Does it, or notes it for later (record.cu).  Nothing when the device has failed.  Makes d current. */
void cuda_ask(struct device *d, const struct cuda_call *call);

/* The call fn(d, &args).  A is compared by its operator==. */
template <class A> struct cuda_call_of final : cuda_call {
    typedef void function(struct device *d, const A *args);
    function *fn;
    A args;

    cuda_call_of(function *f, const A &a) : fn(f), args(a)
    {
    }
    bool same(const struct cuda_call *other) const override
    {
        const cuda_call_of *o = dynamic_cast<const cuda_call_of *>(other);
        return o && o->fn == fn && o->args == args;
    }
    struct cuda_call *copy(void) const override
    {
        return new cuda_call_of(*this);
    }
    void run(struct device *d) const override
    {
        fn(d, &args);
    }
};

template <class A>
static inline void cuda_ask_for(struct device *d, void (*fn)(struct device *, const A *), const A &args)
{
    const struct cuda_call_of<A> call(fn, args);
    cuda_ask(d, &call);
}

/* Arguments of a kernel are compared by their bits, or by its operator== where a struct has one; it
 * needs one where there are gaps between its members, for those hold anything.  (To operator== the
 * two zeros are equal; no such struct has a number that may be either.) */
template <class T> static inline bool cuda_same(const T &a, const T &b)
{
    if constexpr (std::is_class_v<T> && requires { a == b; })
        return a == b;
    else
        return memcmp(&a, &b, sizeof a) == 0;
}

/* There is a gap in it. */
static inline bool operator==(const struct act &a, const struct act &b)
{
    return a.p == b.p && a.dtype == b.dtype;
}

static inline bool cuda_same_shape(dim3 a, dim3 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z;
}

#define SHARED_PLAIN ((size_t)48 * 1024) /* dynamic shared memory that needs no permission */

/* A launch of a kernel, for cuda_call_of. */
template <class... P> struct cuda_launch {
    void (*kernel)(P...);
    const char *name;
    dim3 grid, block;
    size_t shared_bytes;
    std::tuple<P...> args;

    bool operator==(const cuda_launch &o) const
    {
        return kernel == o.kernel && cuda_same_shape(grid, o.grid) &&
               cuda_same_shape(block, o.block) && shared_bytes == o.shared_bytes &&
               same_args(o, std::index_sequence_for<P...>());
    }
    template <size_t... I> bool same_args(const cuda_launch &o, std::index_sequence<I...>) const
    {
        return (cuda_same(std::get<I>(args), std::get<I>(o.args)) && ...);
    }
};

template <class... P> static void cuda_launch_run(struct device *d, const cuda_launch<P...> *l)
{
#ifdef CUDA_EMULATED
    emulate_launch(l->grid, l->block, l->shared_bytes, d->stream,
                   [kernel = l->kernel, args = l->args]() { std::apply(kernel, args); });
#else
    const void *kernel = (const void *)l->kernel;
    if (l->shared_bytes > SHARED_PLAIN)
        cuda_keep(d,
                  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)l->shared_bytes),
                  l->name);
    if (cuda_failed(d)) return;
    std::apply(
        [&](const P &...args) {
            void *pointers[] = {(void *)&args...}; /* which are only read */
            cudaLaunchKernel(kernel, l->grid, l->block, pointers, l->shared_bytes, d->stream);
        },
        l->args);
#endif
    cuda_keep(d, cudaGetLastError(), l->name);
}

/* An empty grid is no launch. */
template <class... P>
static inline void cuda_launch_ask(struct device *d, const char *name, void (*kernel)(P...), dim3 grid,
                                   dim3 block, size_t shared_bytes,
                                   std::type_identity_t<P>... args)
{
    if (cuda_failed(d) || !grid.x || !grid.y || !grid.z) return;
    const cuda_launch<P...> l = {kernel, name, grid, block, shared_bytes, {args...}};
    cuda_ask_for(d, cuda_launch_run<P...>, l);
}

/* LAUNCH(d, kernel, grid, block, dynamic shared bytes, arguments ...): a kernel that is a template
 * stands in parentheses.  In a kernel SHARED_DYNAMIC(type, name) declares `type *name`, the dynamic
 * shared memory, 128-byte aligned. */
#define LAUNCH(d, kernel, grid, block, shared_bytes, ...)                                          \
    cuda_launch_ask(d, #kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)
#ifdef CUDA_EMULATED
#define SHARED_DYNAMIC(type, name) type *name = (type *)emulate_shared()
/* Of memory given away in pieces: a step beyond the first `used` of a piece's `room` is an error. */
#define GUARD(p, used, room) emulate_guard(p, used, room)
#else
#define SHARED_DYNAMIC(type, name)                                                                 \
    extern __shared__ __align__(128) unsigned char shared_dynamic[];                               \
    type *name = (type *)shared_dynamic
#define GUARD(p, used, room) ((void)(p), (void)(used), (void)(room))
#endif

/* ------------------------------------------------------------------ what kernels share */

#define WARP     32
#define ALL_LANES 0xffffffffu

__host__ __device__ static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Over the 32 lanes of a warp, all of which take part and get the result: lane i with i ^ 16, ^ 8,
 * ^ 4, ^ 2, ^ 1. */
template <class T> __device__ static inline T warp_sum(T v)
{
    for (int with = WARP / 2; with > 0; with /= 2)
        v += __shfl_xor_sync(ALL_LANES, v, with);
    return v;
}

__device__ static inline float warp_max(float v)
{
    for (int with = WARP / 2; with > 0; with /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, with));
    return v;
}

/* Over all threads of a block of one dimension, a multiple of 32: the lanes of each warp, then the
 * warps, in the same way.  All threads take part and get the result. */
template <class T> __device__ static inline T block_sum(T v)
{
    __shared__ T part[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    __syncthreads(); /* `part` may still be read by who was slow in the call before */
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : T(0));
}

__device__ static inline float block_max(float v)
{
    __shared__ float part[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_max(lane < warps ? part[lane] : -INFINITY);
}

/* To bf16 as ops.h says: to the nearest, ties to even, subnormals to zero of their sign. */
__device__ static inline __nv_bfloat16 bf16_of(float f)
{
    unsigned bits = __float_as_uint(f);
    if ((bits & 0x7f800000u) == 0) return __ushort_as_bfloat16((unsigned short)(bits >> 16 & 0x8000u));
    return __float2bfloat16_rn(f);
}

/* ------------------------------------------------------------------ the table's functions */

extern "C" {
struct device *cuda_open(int index, int threads, struct err *e);
void cuda_close(struct device *d);
const char *cuda_numerics(const struct device *d, enum ops_dtype weights);
void *cuda_alloc(struct device *d, size_t bytes, struct err *e);
void cuda_release(struct device *d, void *p);
void *cuda_alloc_paged(struct device *d, size_t bytes, struct err *e);
void cuda_release_paged(struct device *d, void *p);
int cuda_memory(struct device *d, size_t *free_bytes, size_t *total_bytes, struct err *e);
void cuda_upload(struct device *d, void *to, const void *from_host, size_t bytes);
void cuda_download(struct device *d, void *to_host, const void *from, size_t bytes);
void cuda_copy(struct device *d, void *to, const void *from, size_t bytes);
void cuda_zero(struct device *d, void *p, size_t bytes);
int cuda_sync(struct device *d, struct err *e);
void cuda_record_begin(struct device *d, uint64_t key);
void cuda_record_end(struct device *d);
struct ops_recorded cuda_recorded(const struct device *d);
struct packed *cuda_pack(struct device *d, const struct ops_matrix *w, enum ops_dtype keep,
                         bool transpose, struct err *e);
struct packed *cuda_pack_other_way(struct device *d, const struct packed *w,
                                   const struct ops_matrix *m, struct err *e);
void cuda_packed_free(struct device *d, struct packed *w);
size_t cuda_packed_bytes(int out, int in, enum ops_dtype keep, bool transpose);
void cuda_gemm(struct device *d, struct act y, struct act x, int rows, const struct packed *w,
               bool add);
void cuda_project(struct device *d, struct act x, int rows, const struct projection *p, int count);
void cuda_project_back(struct device *d, struct act dx, struct act dy, struct act x, int rows,
                       const struct projection_back *p);
void cuda_gather(struct device *d, struct act y, struct act table, const int32_t *ids, int rows,
                 int width);
void cuda_scatter(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                  int width);
void cuda_rms_norm(struct device *d, struct act y, struct act x, const float *gain, int rows,
                   int width, float eps);
void cuda_rms_norm_back(struct device *d, struct act dx, struct act dy, struct act x,
                        const float *gain, int rows, int width, float eps, bool add);
void cuda_rope(struct device *d, struct act x, const float *cosine, const float *sine,
               const struct kv_seg *segs, int seg_count, int heads, int head_dim);
void cuda_rope_back(struct device *d, struct act dx, const float *cosine, const float *sine,
                    const struct kv_seg *segs, int seg_count, int heads, int head_dim);
void cuda_swiglu(struct device *d, struct act y, struct act gate, struct act up, size_t count);
void cuda_swiglu_back(struct device *d, struct act dgate, struct act dup, struct act dy,
                      struct act gate, struct act up, size_t count);
size_t cuda_kv_floats(const struct attn_shape *shape);
void cuda_kv_write(struct device *d, struct act k, struct act v, const struct kv_seg *segs,
                   int seg_count, const struct attn_shape *shape);
void cuda_attention(struct device *d, struct act o, float *lse, struct act q,
                    const struct kv_seg *segs, int seg_count, const struct attn_shape *shape);
void cuda_attention_back(struct device *d, struct act dq, struct act dk, struct act dv,
                         struct act dout, struct act o, const float *lse, struct act q,
                         const struct kv_seg *segs, int seg_count,
                         const struct attn_shape *shape);
void cuda_logprob(struct device *d, float *logprob, float *lse, const float *logits,
                  const int *first, const int32_t *ids, int rows, int vocab);
void cuda_logprob_back(struct device *d, float *logits, const float *lse, const float *g,
                       const int *first, const int32_t *ids, int rows, int vocab);
void cuda_pick(struct device *d, int32_t *ids, const float *logits, const struct pick *picks,
               int count, int vocab);
double cuda_sum_squares(struct device *d, const struct adam_tensor *tensors, int count);
void cuda_adamw(struct device *d, const struct adamw_step *step, const struct adam_tensor *tensors,
                int count);
}

#endif

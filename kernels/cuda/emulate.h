/* emulate.h - enough of CUDA, in plain C++, to run the kernels of this folder on a CPU.
 *
 * It takes the place of <cuda_runtime.h> and <cuda_bf16.h> where CUDA_EMULATED is defined.  Blocks
 * run one after the other; the threads of a block are fibers that run until they wait for one
 * another, forwards in one block and backwards in the next, so that a missing barrier shows; with
 * EMULATE_BACKWARDS in the environment it is the other way round.
 * Dynamic shared memory is NaN (all ones) when a block starts, and a step beyond it is an error of
 * AddressSanitizer; memory of the "device" is ordinary memory of exactly the size asked for, which it
 * is an error to touch from outside a kernel.  Pinned memory of the host is the other way round.
 *
 * What a stream is asked for is done at once; in a stream that is late, only when somebody waits for
 * it, so that a wait that is missing shows.
 *
 * A stream that is captured does nothing: its work is noted and done each time the graph is launched.
 * Pinned memory that is on its way to the device is an error to touch until the host has waited for it.
 *
 * It is stricter than a GPU: all threads of a block have to meet at the same __syncthreads(), and
 * all lanes that a mask names at the same place.  Where they do not, the process ends and says who
 * waits where.  What it cannot show: how fast anything is, what tensor cores round, and two blocks
 * that get in each other's way.
 *
 * There are EMULATE_DEVICES devices, which several threads may drive: kernels run one after the other
 * whoever launches them.  As in CUDA each thread has a current device, and a call with a stream or an
 * event of another one is an error.
 *
 * For tests of a whole process, by its environment:
 *   EMULATE_MEMORY_MB=N  what each device has; 64 GiB without it
 *   EMULATE_LOSE=FILE    while FILE is there with a number N in it, the Nth kernel, copy or fill from then on
 *                        loses its device as a fault in a kernel would: nothing is done any more, whatever is
 *                        asked of the device from there on or waits for it fails.  FILE gets the name
 *                        FILE.lost, so that one process is hurt, and once. */
#ifndef KERNELS_CUDA_EMULATE_H
#define KERNELS_CUDA_EMULATE_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__    inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n)       __attribute__((aligned(n)))
#define __shared__         static /* keeps what the block before left there */
#define __restrict__       __restrict
#define EMULATE_DEVICES    8
#define EMULATE_SHARED_MAX ((size_t)227 * 1024) /* of a block on sm_90; sm_80 has 163 KiB */

/* ------------------------------------------------------------------ small types */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

/* ------------------------------------------------------------------ numbers */

static inline unsigned __float_as_uint(float f)
{
    unsigned bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float __uint_as_float(unsigned bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
/* To the nearest, ties to even; subnormals stay, a NaN becomes 0x7fff. */
static inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    unsigned bits = __float_as_uint(f);
    if (isnan(f)) return {0x7fff};
    return {(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float f)
{
    return __float2bfloat16_rn(f);
}
static inline float __bfloat162float(__nv_bfloat16 h)
{
    return __uint_as_float((unsigned)h.bits << 16);
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h)
{
    return h.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits)
{
    return {bits};
}

#define __expf expf /* glibc's headers have a name like it */
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline int min(int a, int b)
{
    return a < b ? a : b;
}
static inline int max(int a, int b)
{
    return a > b ? a : b;
}
template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
/* A fiber is never interrupted.  For whole numbers only: floats are never added so. */
template <class T> static inline T atomicAdd(T *p, T v)
{
    static_assert(T(1) / 2 == 0);
    T before = *p;
    *p += v;
    return before;
}

/* ------------------------------------------------------------------ threads */

#define EMULATE_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern struct uint3 emulate_thread_index, emulate_block_index;
extern struct dim3 emulate_block_size, emulate_grid_size;
#define threadIdx emulate_thread_index
#define blockIdx  emulate_block_index
#define blockDim  emulate_block_size
#define gridDim   emulate_grid_size
#define warpSize  32

void __syncthreads(EMULATE_SITE);

/* The lanes of mask meet here, each with something of its own; the last one to come calls fn, which
 * sees all of them (lanes[i] for the bits of mask, NULL for others), then all go on.  Whatever a
 * warp does together can be written with it: shuffles are, and a tile of a tensor core can be. */
typedef void emulate_together(unsigned mask, void *const lanes[32]);
void emulate_warp(unsigned mask, void *mine, emulate_together *fn, const char *file, int line);

static inline void emulate_nothing(unsigned mask, void *const lanes[32])
{
    (void)mask, (void)lanes;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATE_SITE)
{
    int mine = 0;
    emulate_warp(mask, &mine, emulate_nothing, file, line);
}

template <class T> struct emulate_shuffle {
    T give, take;
    int from; /* a lane */
};
/* Ends the process: a lane asks one that is not in the mask. */
void emulate_no_lane(int lane, int from);

template <class T> static void emulate_shuffle_all(unsigned mask, void *const lanes[32])
{
    for (int i = 0; i < 32; i++) {
        emulate_shuffle<T> *s = (emulate_shuffle<T> *)lanes[i];
        if (!s) continue;
        if (!(mask >> s->from & 1)) emulate_no_lane(i, s->from);
        s->take = ((emulate_shuffle<T> *)lanes[s->from])->give;
    }
}
int emulate_lane(void);

template <class T>
static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32, EMULATE_SITE)
{
    int lane = emulate_lane();
    emulate_shuffle<T> s = {v, v, (lane & ~(width - 1)) + (from & (width - 1))};
    emulate_warp(mask, &s, emulate_shuffle_all<T>, file, line);
    return s.take;
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, EMULATE_SITE)
{
    int lane = emulate_lane(), from = lane ^ with;
    emulate_shuffle<T> s = {v, v, from / width > lane / width ? lane : from};
    emulate_warp(mask, &s, emulate_shuffle_all<T>, file, line);
    return s.take;
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, int by, int width = 32, EMULATE_SITE)
{
    int lane = emulate_lane(), from = lane + by;
    emulate_shuffle<T> s = {v, v, from / width == lane / width ? from : lane};
    emulate_warp(mask, &s, emulate_shuffle_all<T>, file, line);
    return s.take;
}

struct emulate_vote {
    bool yes;
    unsigned all;
};
static inline void emulate_vote_all(unsigned mask, void *const lanes[32])
{
    unsigned all = 0;
    (void)mask;
    for (int i = 0; i < 32; i++)
        if (lanes[i] && ((emulate_vote *)lanes[i])->yes) all |= 1u << i;
    for (int i = 0; i < 32; i++)
        if (lanes[i]) ((emulate_vote *)lanes[i])->all = all;
}
static inline unsigned __ballot_sync(unsigned mask, int yes, EMULATE_SITE)
{
    emulate_vote v = {yes != 0, 0};
    emulate_warp(mask, &v, emulate_vote_all, file, line);
    return v.all;
}

/* ------------------------------------------------------------------ launching */

typedef int cudaError_t;
typedef struct emulate_stream *cudaStream_t;
enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};

/* Work of a stream, which owns all that it needs. */
typedef std::function<cudaError_t(void)> emulate_work;
/* Does it at once, or notes it where the stream is being captured. */
cudaError_t emulate_do(cudaStream_t stream, const emulate_work &work);

/* Calls body once for every thread. */
void emulate_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    const std::function<void(void)> &body);
/* The dynamic shared memory of the block that runs. */
void *emulate_shared(void);

/* For tests.  The calling thread's nth launch from here (1: the next) does nothing but fail so. */
extern "C" void emulate_fail_launch(int nth, cudaError_t error);
/* For tests.  What a device's streams say from here on: cudaErrorNotReady, as if a kernel waited for
 * another device, until emulate_unhang(); or an error, as of a device that is lost. */
extern "C" void emulate_state(int device, cudaError_t state);
void emulate_unhang(int device);
/* The next capture cannot be made a graph. */
extern "C" void emulate_fail_graph(cudaError_t error);
/* Whether the library's products are sums of two chains over k from here on, instead of one. */
extern "C" void emulate_blas_apart(int yes);

/* Between these two host code may touch memory of the device, as if it were a kernel.  Elsewhere
 * AddressSanitizer keeps it out. */
void emulate_device_begin(void);
void emulate_device_end(void);
/* For an allocation that is given away in pieces: lets AddressSanitizer see a step beyond the first
 * `used` of a piece's `room` bytes.  From then on both host and kernels are let in. */
void emulate_guard(void *p, size_t used, size_t room);
/* The device that was current when p was allocated; -1 where p is no allocation. */
extern "C" int emulate_device_of(void *p);
int emulate_stream_device(cudaStream_t stream);

/* ------------------------------------------------------------------ the runtime's calls */

typedef struct emulate_event *cudaEvent_t;
typedef struct emulate_graph *cudaGraph_t;
typedef struct emulate_graph_exec *cudaGraphExec_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
/* While a stream is captured its thread may not wait, allocate or release. */
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
struct cudaDeviceProp {
    char name[256];
    int major, minor;
    size_t sharedMemPerBlockOptin;
};

cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaGetDevice(int *index);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
/* Not CUDA's: what this stream is asked for from here on is done as late as can be. */
void emulate_late(cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);

#endif

/* act.cuh - activations as kernels read and write them: fp32 or bf16 in memory, fp32 in registers.
 *
 * Numbers go in fours where rows allow it.  Whether they do changes how they are read, never what is
 * summed in which order. */
#ifndef KERNELS_CUDA_ACT_CUH
#define KERNELS_CUDA_ACT_CUH

#include <assert.h>
#include "kernels/cuda/cuda.h"

typedef __nv_bfloat16 bf16;

/* LAUNCH of kernel<float> or kernel<bf16>. */
#define LAUNCH_OF(d, dtype, kernel, grid, block, shared_bytes, ...)                                \
    cuda_launch_ask(d, #kernel, (dtype) == OPS_F32 ? kernel<float> : kernel<bf16>, grid, block,    \
                    shared_bytes, __VA_ARGS__)

static inline bool act_is(struct act a, enum ops_dtype dtype)
{
    return a.dtype == dtype && (dtype == OPS_F32 || dtype == OPS_BF16);
}

static inline bool act_valid(struct act a)
{
    return act_is(a, OPS_F32) || act_is(a, OPS_BF16);
}

/* Whether rows of ld numbers from p begin at multiples of 16 bytes. */
static inline bool act_aligned(struct act a, int ld)
{
    return (uintptr_t)a.p % 16 == 0 && (size_t)ld * ops_size(a.dtype) % 16 == 0;
}

/* From the i-th number on. */
__host__ __device__ static inline struct act act_from(struct act a, size_t i)
{
    a.p = (char *)a.p + i * (a.dtype == OPS_F32 ? sizeof(float) : sizeof(bf16));
    return a;
}

/* ------------------------------------------------------------------ one number */

__device__ static inline float wide(float f)
{
    return f;
}

__device__ static inline float wide(bf16 f)
{
    return __bfloat162float(f);
}

__device__ static inline void put(float *to, float f)
{
    *to = f;
}

__device__ static inline void put(bf16 *to, float f)
{
    *to = bf16_of(f);
}

/* As it is where both are bf16. */
__device__ static inline void put(bf16 *to, bf16 f)
{
    *to = f;
}

__device__ static inline void put(float *to, bf16 f)
{
    *to = wide(f);
}

/* ------------------------------------------------------------------ some numbers */

/* Two of bf16, lo in the lower half; rounded as bf16_of does. */
__device__ static inline uint32_t bf16_two(float lo, float hi)
{
    return __bfloat16_as_ushort(bf16_of(lo)) | (uint32_t)__bfloat16_as_ushort(bf16_of(hi)) << 16;
}

__device__ static inline float4 whole_4(const float *p)
{
    return *(const float4 *)p;
}

__device__ static inline float4 whole_4(const bf16 *p)
{
    uint2 v = *(const uint2 *)p;
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}

/* Four numbers, of which `count` are there (fewer than 1: none); zero for the others.  aligned: four
 * may be read at once. */
template <class T> __device__ static inline float4 load_4(const T *p, int count, bool aligned)
{
    if (count >= 4 && aligned) return whole_4(p);
    float4 v = make_float4(0, 0, 0, 0);
    if (count > 0) v.x = wide(p[0]);
    if (count > 1) v.y = wide(p[1]);
    if (count > 2) v.z = wide(p[2]);
    if (count > 3) v.w = wide(p[3]);
    return v;
}

__device__ static inline void put_whole_4(float *to, float4 v)
{
    *(float4 *)to = v;
}

__device__ static inline void put_whole_4(bf16 *to, float4 v)
{
    *(uint2 *)to = make_uint2(bf16_two(v.x, v.y), bf16_two(v.z, v.w));
}

/* Four numbers, of which `count` are wanted. */
template <class T> __device__ static inline void store_4(T *to, float4 v, int count, bool aligned)
{
    if (count >= 4 && aligned) {
        put_whole_4(to, v);
        return;
    }
    if (count > 0) put(&to[0], v.x);
    if (count > 1) put(&to[1], v.y);
    if (count > 2) put(&to[2], v.z);
    if (count > 3) put(&to[3], v.w);
}

__device__ static inline void put_whole_2(float *to, float x, float y)
{
    *(float2 *)to = make_float2(x, y);
}

__device__ static inline void put_whole_2(bf16 *to, float x, float y)
{
    *(uint32_t *)to = bf16_two(x, y);
}

/* Two numbers, of which `count` are wanted. */
template <class T> __device__ static inline void store_2(T *to, float x, float y, int count, bool aligned)
{
    if (count >= 2 && aligned) {
        put_whole_2(to, x, y);
        return;
    }
    if (count > 0) put(&to[0], x);
    if (count > 1) put(&to[1], y);
}

#endif

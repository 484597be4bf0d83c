/* vec.h - sixteen floats at a time, whatever the machine's registers hold.
 *
 * All arithmetic that order matters for is written with these sixteen lanes, so that every
 * instruction set adds in the same order: AVX-512 takes one register a v16, AVX2 two, others four.
 * The build forbids contraction: a multiply and an add are fused where v_fma says so, nowhere
 * else. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VX_LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define VX_LANES 8
#else
#define VX_LANES 4
#endif
#define V_PARTS (16 / VX_LANES)

typedef float vx __attribute__((vector_size(4 * VX_LANES)));
typedef int32_t vxi __attribute__((vector_size(4 * VX_LANES)));
typedef float v4f __attribute__((vector_size(16)));
typedef struct {
    vx p[V_PARTS];
} v16;

#define V_INLINE static inline __attribute__((always_inline))

V_INLINE vx vx_fma(vx a, vx b, vx c)
{
#if defined(__AVX512F__)
    return (vx)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vx)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    vx r;
    for (int i = 0; i < VX_LANES; i++)
        r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

V_INLINE vx vx_select(vxi mask, vx yes, vx no)
{
    return (vx)((mask & (vxi)yes) | (~mask & (vxi)no));
}

#define V_EACH(i) for (int i = 0; i < V_PARTS; i++)

V_INLINE v16 v_set1(float x)
{
    v16 r;
    V_EACH(i) r.p[i] = x - (vx){0};
    return r;
}

V_INLINE v16 v_load(const float *p)
{
    v16 r;
    memcpy(&r, p, sizeof r);
    return r;
}

V_INLINE void v_store(float *p, v16 a)
{
    memcpy(p, &a, sizeof a);
}

/* The first n of sixteen; the other lanes are zero. */
V_INLINE v16 v_load_n(const float *p, int n)
{
    if (n == 16) return v_load(p);
    float t[16] = {0};
    memcpy(t, p, (size_t)n * sizeof *p);
    return v_load(t);
}

V_INLINE void v_store_n(float *p, v16 a, int n)
{
    if (n == 16) {
        v_store(p, a);
        return;
    }
    float t[16];
    v_store(t, a);
    memcpy(p, t, (size_t)n * sizeof *p);
}

V_INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    V_EACH(i) c.p[i] = vx_fma(a.p[i], b.p[i], c.p[i]);
    return c;
}

V_INLINE v16 v_add(v16 a, v16 b)
{
    V_EACH(i) a.p[i] += b.p[i];
    return a;
}

V_INLINE v16 v_sub(v16 a, v16 b)
{
    V_EACH(i) a.p[i] -= b.p[i];
    return a;
}

V_INLINE v16 v_mul(v16 a, v16 b)
{
    V_EACH(i) a.p[i] *= b.p[i];
    return a;
}

V_INLINE v16 v_div(v16 a, v16 b)
{
    V_EACH(i) a.p[i] /= b.p[i];
    return a;
}

V_INLINE v16 v_max(v16 a, v16 b)
{
    V_EACH(i) a.p[i] = vx_select(a.p[i] > b.p[i], a.p[i], b.p[i]);
    return a;
}

/* Lanes 0 .. n-1 of a, the others x; n may be anything. */
V_INLINE v16 v_keep(v16 a, int n, float x)
{
    if (n >= 16) return a;
    float t[16];
    v_store(t, a);
    for (int i = n < 0 ? 0 : n; i < 16; i++)
        t[i] = x;
    return v_load(t);
}

/* The lanes as a tree: i + (i + 8), + 4, + 2, + 1. */
V_INLINE float v_sum(v16 a)
{
    v4f q[4];
    memcpy(q, &a, sizeof q);
    v4f s = (q[0] + q[2]) + (q[1] + q[3]);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

V_INLINE float v_max_lane(v16 a)
{
    float t[16];
    v_store(t, a);
    float m = t[0];
    for (int i = 1; i < 16; i++)
        m = t[i] > m ? t[i] : m;
    return m;
}

/* A square of VX_LANES: to[j, i] = from[i, j], rows ldt and ldf apart.  Step s exchanges squares of
 * s beside the diagonal. */
V_INLINE void vx_turn(float *to, size_t ldt, const float *from, size_t ldf)
{
    vx m[VX_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < VX_LANES; i++)
        memcpy(&m[i], from + (size_t)i * ldf, sizeof m[i]);
#pragma GCC unroll 4
    for (int s = 1; s < VX_LANES; s *= 2) {
        vxi low, high;
#pragma GCC unroll 16
        for (int j = 0; j < VX_LANES; j++) {
            low[j] = j & s ? VX_LANES + j - s : j;
            high[j] = j & s ? VX_LANES + j : j + s;
        }
#pragma GCC unroll 16
        for (int i = 0; i < VX_LANES; i++) {
            if (i & s) continue;
            vx a = m[i], b = m[i + s];
            m[i] = __builtin_shuffle(a, b, low);
            m[i + s] = __builtin_shuffle(a, b, high);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < VX_LANES; i++)
        memcpy(to + (size_t)i * ldt, &m[i], sizeof m[i]);
}

/* exp in fp32, below 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor series to the
 * seventh power, scaled by 2^n.  Below -87.33 it is exactly 0, above 88.37 it stays at exp(88.37);
 * a NaN stays one. */
V_INLINE v16 v_exp(v16 x)
{
    const vx zero = {0}, magic = 12582912.0f + zero; /* 1.5 * 2^23: adding it rounds */
    V_EACH(i)
    {
        vx a = x.p[i];
        vxi small = a < -87.33f + zero;
        a = vx_select(a > 88.37f + zero, 88.37f + zero, a);
        vx n = vx_fma(a, 1.44269504f + zero, magic) - magic;
        n = vx_select(small, zero, n);
        vx r = vx_fma(n, -0.693359375f + zero, a);
        r = vx_fma(n, 2.12194440e-4f + zero, r);
        vx p = 1.0f / 5040.0f + zero;
        p = vx_fma(p, r, 1.0f / 720.0f + zero);
        p = vx_fma(p, r, 1.0f / 120.0f + zero);
        p = vx_fma(p, r, 1.0f / 24.0f + zero);
        p = vx_fma(p, r, 1.0f / 6.0f + zero);
        p = vx_fma(p, r, 0.5f + zero);
        p = vx_fma(p, r, 1.0f + zero);
        p = vx_fma(p, r, 1.0f + zero);
        /* Adding 1.5 * 2^23 + 127 leaves n + 127 in the low bits; a NaN makes rubbish there and the
         * product keeps the NaN of p. */
        vxi bits = (vxi)(n + (magic + 127.0f)) << 23;
        x.p[i] = vx_select(small, zero, p * (vx)bits);
    }
    return x;
}

#endif

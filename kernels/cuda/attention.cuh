/* attention.cuh - what a block of keys does to a query, which is the same however many queries there
 * are and whoever walks the blocks:
 *   s = q k^T, each a chain over the head's width from zero
 *   m' = max(m, max s)    p = 2^(s e - m' e)    carry = 2^(m e - m' e)      e = scale / ln 2
 *   sum = sum carry + (sum of p: 16 in each of four lanes, then the lanes as a tree)
 *   o = o carry + (p v, a chain over the block's keys from zero)
 * Queries, keys and values are rounded to bf16, and so is p before it meets the values; sums, the
 * softmax and the outputs are in fp32.
 *
 * The last line keeps a block's share of the output apart until it is finished.  So blocks may be
 * worked out side by side and their shares be added in turn, with the bits of one block after the
 * other. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/kv.cuh"

#define FEW 16 /* queries of a tile where they are few */

struct attn_args {
    struct act o, q;
    float *lse;
    struct attn_tiles tiles;
    struct attn_dims s;

    bool operator==(const attn_args &) const = default;
};

/* Attends from tiles of FEW queries; `blocks` is how many blocks of keys the longest segment has. */
void cuda_attention_few(struct device *d, const struct attn_args *a, unsigned tiles, int blocks);

/* The keys of a block that a query at a position may see; not positive: none. */
__device__ static inline int keys_seen(int position, int block)
{
    return position - block * KEYS + 1;
}

/* The largest score among a row's first `keys`; the others become minus infinity.  half: 0 for the
 * lane's upper row, 1 for the lower. */
__device__ static inline float row_max(float s[KEYS / 8][4], int half, int keys)
{
    float most = -INFINITY;
    UNROLL
    for (int n = 0; n < KEYS / 8; n++)
        UNROLL
        for (int j = 0; j < 2; j++) {
            float *x = &s[n][2 * half + j];
            if (8 * n + 2 * lane_pair() + j >= keys) *x = -INFINITY;
            most = fmaxf(most, *x);
        }
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    return fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
}

/* A row's scores become weights; returns their sum.  most: the maximum so far, times the exponent. */
__device__ static inline float row_weights(float s[KEYS / 8][4], int half, float exponent,
                                           float most)
{
    float sum = 0;
    UNROLL
    for (int n = 0; n < KEYS / 8; n++)
        UNROLL
        for (int j = 0; j < 2; j++) {
            float *x = &s[n][2 * half + j];
            *x = exp2f(fmaf(*x, exponent, -most));
            sum += *x;
        }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    return sum + __shfl_xor_sync(ALL_LANES, sum, 2);
}

/* Calls take(n, sum) with each 16 x 8 tile n of weights [16, 64] times values [64, D], the chain
 * over keys begun from zero. */
template <int D, class F>
__device__ static inline void weigh_values(const float weights[KEYS / 8][4], const bf16 *values,
                                           const F &take)
{
    const int ld = D + TILE_PAD;
    uint32_t p[KEYS / 16][4];
    UNROLL
    for (int k = 0; k < KEYS / 16; k++)
        as_a(p[k], weights[2 * k], weights[2 * k + 1]);
    UNROLL
    for (int n = 0; n < D / 16; n++) {
        float sum[2][4] = {};
        UNROLL
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t v[4];
            tile_b_turned(v, values + k * 16 * ld + n * 16, ld);
            mma(sum[0], p[k], v);
            mma(sum[1], p[k], v + 2);
        }
        take(2 * n, sum[0]);
        take(2 * n + 1, sum[1]);
    }
}

/* A query past the tile's end does as the last one does, and its results are dropped. */
__device__ static inline int query_there(const struct attn_args &a, const struct attn_tile &t,
                                         int query)
{
    return min(query, attn_queries(a.s, t) - 1);
}

__device__ static inline int last_block(const struct attn_args &a, const struct attn_tile &t,
                                        int queries)
{
    return attn_position(a.s, t, query_there(a, t, t.first + queries - 1)) / KEYS;
}

__device__ static inline float lse_of(float most, float sum)
{
    return (most + log2f(sum)) * LN_2;
}

#endif

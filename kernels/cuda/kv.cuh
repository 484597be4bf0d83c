/* kv.cuh - how the device lays out a block of keys and values, and what both ways through attention
 * read of it.
 *
 * A block is in bf16.  For each KV head: keys [64, wide], then values [64, wide], wide being
 * head_dim filled up to a multiple of 16 with zeros.  A block's part of a layer begins at a multiple
 * of 16 bytes, as it does where blocks are multiples of kv_floats() from an alloc().
 *
 * Queries.  The query heads that share a KV head are taken together: query i of a segment and KV
 * head is position i / group, head i % group of them, so that few positions still fill a tile.
 *
 * Types.  Tiles are in bf16 and sums in fp32 whatever activations are.  So their type is looked at where
 * a tile is loaded or stored, once for all of it, and there is one set of kernels for both. */
#ifndef KERNELS_CUDA_KV_CUH
#define KERNELS_CUDA_KV_CUH

#include <vector>
#include "kernels/cuda/mma.h"

#define KEYS    OPS_KV_BLOCK
#define QUERIES 64 /* of a tile */
#define LOG2_E  1.44269504f
#define LN_2    0.693147181f

/* What a kernel must know of the shape.  Kernels are compiled for a few widths D >= head_dim and
 * fill up with zeros, which changes no sum. */
struct attn_dims {
    int heads, kv_heads, group, dim, wide;
    float scale;    /* 1 / sqrt(head_dim) */
    float exponent; /* scale / ln 2: weights are powers of two */
    bool aligned;   /* rows of q, o and their gradients may be read 16 bytes at a time */

    bool operator==(const attn_dims &) const = default;
};

/* What a CUDA block works on: a segment and one tile of its queries, or one block of its keys. */
struct attn_tile {
    int row, rows, start; /* the segment, as in kv_seg */
    int first;            /* query, or block of keys */
    int table;            /* where the segment's blocks begin in the table of blocks */
};

struct attn_tiles {
    const struct attn_tile *list;
    const bf16 *const *table;

    bool operator==(const attn_tiles &) const = default;
};

__host__ __device__ static inline int kv_wide(int head_dim)
{
    return (head_dim + 15) / 16 * 16;
}

static inline struct attn_dims attn_dims_of(const struct attn_shape *s)
{
    assert(s->head_dim <= OPS_HEAD_DIM_MAX && s->heads % s->kv_heads == 0);
    struct attn_dims d = {};
    d.heads = s->heads;
    d.kv_heads = s->kv_heads;
    d.group = s->heads / s->kv_heads;
    d.dim = s->head_dim;
    d.wide = kv_wide(s->head_dim);
    d.scale = 1.0f / sqrtf((float)s->head_dim);
    d.exponent = d.scale * LOG2_E;
    return d;
}

/* This layer's part of a block. */
static inline bf16 *kv_block(const struct kv_seg *g, int block)
{
    bf16 *p = (bf16 *)(g->blocks[block] + g->layer_offset);
    assert((uintptr_t)p % 16 == 0);
    return p;
}

static inline int kv_blocks(const struct kv_seg *g)
{
    return ceil_div(g->start + g->rows, KEYS);
}

/* Adds the segment's blocks to the table; says where they begin. */
static inline int kv_table_add(std::vector<const bf16 *> *table, const struct kv_seg *g)
{
    int begin = (int)table->size();
    for (int b = 0; b < kv_blocks(g); b++)
        table->push_back(kv_block(g, b));
    return begin;
}

template <class T> static const T *stage_all(struct device *d, const std::vector<T> &list)
{
    return (const T *)cuda_stage(d, list.data(), list.size() * sizeof(T));
}

/* Calls fn.run<D>() with the width that the kernels are compiled for. */
template <class F> static void attn_by_width(int head_dim, const F &fn)
{
    if (head_dim <= 32)
        fn.template run<32>();
    else if (head_dim <= 64)
        fn.template run<64>();
    else if (head_dim <= 96)
        fn.template run<96>();
    else if (head_dim <= 128)
        fn.template run<128>();
    else
        fn.template run<256>();
}

/* ------------------------------------------------------------------ on the device */

__device__ static inline int attn_queries(const struct attn_dims &s, const struct attn_tile &t)
{
    return t.rows * s.group;
}

__device__ static inline int attn_position(const struct attn_dims &s, const struct attn_tile &t,
                                           int query)
{
    return t.start + query / s.group;
}

/* Which [row, head] of q, o, lse this is. */
__device__ static inline size_t attn_place(const struct attn_dims &s, const struct attn_tile &t,
                                           int kv_head, int query)
{
    return (size_t)(t.row + query / s.group) * s.heads + kv_head * s.group + query % s.group;
}

/* Keys of one KV head of a block; the values come behind them. */
__device__ static inline const bf16 *kv_keys(const struct attn_dims &s, const struct attn_tiles &a,
                                             const struct attn_tile &t, int block, int kv_head)
{
    return a.table[t.table + block] + (size_t)kv_head * 2 * KEYS * s.wide;
}

/* Begins to copy keys or values [64, wide] to [64, D + TILE_PAD] by `threads` threads, thread being
 * this one.  Rows from `rows` on, which nobody has written or another sequence did, become zero:
 * a weight of zero does not make up for a NaN. */
template <int D>
__device__ static inline void kv_fetch(bf16 *to, const bf16 *from, int wide, int rows, int thread,
                                       int threads)
{
    for (int i = thread; i < KEYS * D / 8; i += threads) {
        int r = i / (D / 8), c = i % (D / 8) * 8;
        bf16 *p = to + r * (D + TILE_PAD) + c;
        if (r < rows && c < wide)
            copy_16(p, from + r * wide + c);
        else
            *(uint4 *)p = make_uint4(0, 0, 0, 0);
    }
}

/* 16 bytes of a query to shared memory in bf16, zeros for what is not there of them. */
__device__ static inline void query_put(bf16 *to, const float *from, int count, bool aligned)
{
    put_4(to, load_4(from, count, aligned));
}

__device__ static inline void query_put(bf16 *to, const bf16 *from, int count, bool aligned)
{
    if (count >= 8 && aligned)
        *(uint4 *)to = *(const uint4 *)from;
    else
        for (int i = 0; i < 8; i++)
            to[i] = i < count ? from[i] : __ushort_as_bfloat16(0);
}

template <int D, int ROWS, class T>
__device__ static inline void queries_load_from(bf16 *to, const T *from, const struct attn_dims &s,
                                                const struct attn_tile &t, int kv_head, int first)
{
    const int wide = 16 / sizeof(T);
    for (int i = threadIdx.x; i < ROWS * D / wide; i += blockDim.x) {
        int r = i / (D / wide), c = i % (D / wide) * wide, query = first + r;
        int count = query < attn_queries(s, t) ? s.dim - c : 0;
        const T *p = count > 0 ? from + attn_place(s, t, kv_head, query) * s.dim + c : from;
        query_put(to + r * (D + TILE_PAD) + c, p, count, s.aligned);
    }
}

/* ROWS queries from `first` on, [row, heads, dim], to [ROWS, D + TILE_PAD] in bf16. */
template <int D, int ROWS>
__device__ static inline void queries_load(bf16 *to, const struct act &from, const struct attn_dims &s,
                                           const struct attn_tile &t, int kv_head, int first)
{
    if (from.dtype == OPS_F32)
        queries_load_from<D, ROWS>(to, (const float *)from.p, s, t, kv_head, first);
    else
        queries_load_from<D, ROWS>(to, (const bf16 *)from.p, s, t, kv_head, first);
}

/* s [16, 8 N] = a [16, D] b [8 N, D]^T, each chain over the head's width from zero; N is even. */
template <int D, int N>
__device__ static inline void scores(float s[N][4], const bf16 *a, const bf16 *b)
{
    const int ld = D + TILE_PAD;
    UNROLL
    for (int n = 0; n < N; n++)
        UNROLL
        for (int i = 0; i < 4; i++)
            s[n][i] = 0;
    UNROLL
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4], right[4];
        tile_a(left, a + k, ld);
        UNROLL
        for (int n = 0; n < N; n += 2) {
            tile_b(right, b + n * 8 * ld + k, ld);
            mma(s[n], left, right);
            mma(s[n + 1], left, right + 2);
        }
    }
}

/* Two neighbouring tiles of C, rounded, as an A. */
__device__ static inline void as_a(uint32_t a[4], const float left[4], const float right[4])
{
    a[0] = bf16_pair(left[0], left[1]);
    a[1] = bf16_pair(left[2], left[3]);
    a[2] = bf16_pair(right[0], right[1]);
    a[3] = bf16_pair(right[2], right[3]);
}

#endif

/* attention.cu - causal attention over packed sequences (arXiv 2205.14135, 2307.08691), and writing
 * the keys and values it reads.
 *
 * Queries, keys and values are rounded to bf16, and so are the weights before they meet the values;
 * sums, the softmax and the outputs are in fp32.  What a block of 64 keys does to a query:
 *   s = q k^T, each a chain over the head's width from zero
 *   m' = max(m, max s)    p = 2^(s e - m' e)    carry = 2^(m e - m' e)      e = scale / ln 2
 *   sum = sum carry + (sum of p: 16 in each of four lanes, then the lanes as a tree)
 *   o = o carry + (p v, a chain over the block's keys from zero)
 * The last line keeps a block's contribution apart until it is finished.  So blocks may be worked
 * out side by side and then added in turn, with the bits of one after the other: many queries take a
 * tile of 64 to a CUDA block, whose warps walk the keys together; few, as in decoding, take a tile
 * of 16 to a CUDA block, whose warps each have a block of keys to themselves. */
#include "kernels/cuda/kv.cuh"

/* ------------------------------------------------------------------ writing */

/* Positions of one segment in one block. */
struct kv_run {
    int row, rows, slot;
    bf16 *block;
};

__device__ static void kv_write_rows(bf16 *to, const float *from, const struct attn_dims &s,
                                     const struct kv_run &run)
{
    int kv_head = blockIdx.y;
    for (int i = threadIdx.x; i < run.rows * s.wide / 4; i += blockDim.x) {
        int r = i / (s.wide / 4), c = i % (s.wide / 4) * 4;
        size_t row = (size_t)(run.row + r) * s.kv_heads + kv_head;
        put_4(to + (run.slot + r) * s.wide + c,
              load_4(from + row * s.dim + (c < s.dim ? c : 0), s.dim - c, s.fours));
    }
}

__global__ static void kv_write_kernel(const float *k, const float *v, const struct kv_run *runs,
                                       struct attn_dims s)
{
    struct kv_run run = runs[blockIdx.x];
    bf16 *keys = run.block + (size_t)blockIdx.y * 2 * KEYS * s.wide;
    kv_write_rows(keys, k, s, run);
    kv_write_rows(keys + KEYS * s.wide, v, s, run);
}

size_t cuda_kv_floats(const struct attn_shape *s)
{
    return (size_t)s->kv_heads * 2 * KEYS * kv_wide(s->head_dim) * sizeof(bf16) / sizeof(float);
}

void cuda_kv_write(struct device *d, const float *k, const float *v, const struct kv_seg *segs,
                   int seg_count, const struct attn_shape *shape)
{
    struct attn_dims s = attn_dims_of(shape);
    s.fours = in_fours(k, s.dim) && in_fours(v, s.dim);
    std::vector<struct kv_run> runs;
    for (const struct kv_seg *g = segs; g < segs + seg_count; g++)
        for (int done = 0, rows; done < g->rows; done += rows) {
            int pos = g->start + done, slot = pos % KEYS;
            rows = g->rows - done < KEYS - slot ? g->rows - done : KEYS - slot;
            runs.push_back({g->row + done, rows, slot, kv_block(g, pos / KEYS)});
        }
    LAUNCH(d, kv_write_kernel, dim3((unsigned)runs.size(), s.kv_heads), 128, 0, k, v,
           stage_all(d, runs), s);
}

/* ------------------------------------------------------------------ a warp's sixteen queries */

struct attn_args {
    float *o, *lse;
    const float *q;
    struct attn_tiles tiles;
    struct attn_dims s;
};

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

/* ------------------------------------------------------------------ many queries */

/* Where the next keys and values are fetched while these are worked on. */
template <int D> struct attn_many {
    static const int ld = D + TILE_PAD, threads = 128;
    static const int stages = D <= 128 ? 2 : 1;
    static const size_t shared = (QUERIES + stages * 2 * KEYS) * ld * sizeof(bf16);
};

template <int D>
__device__ static inline void keys_fetch(bf16 *to, const struct attn_args &a,
                                         const struct attn_tile &t, int block)
{
    const bf16 *from = kv_keys(a.s, a.tiles, t, block, blockIdx.y);
    int rows = min(KEYS, t.start + t.rows - block * KEYS);
    kv_fetch<D>(to, from, a.s.wide, rows, threadIdx.x, attn_many<D>::threads);
    kv_fetch<D>(to + KEYS * (D + TILE_PAD), from + KEYS * a.s.wide, a.s.wide, rows, threadIdx.x,
                attn_many<D>::threads);
    copy_commit();
}

template <int D>
__device__ static inline void many_out(const struct attn_args &a, const struct attn_tile &t,
                                       const float o[D / 8][4], const float most[2],
                                       const float sum[2], int query)
{
    UNROLL
    for (int h = 0; h < 2; h++) {
        if (query + 8 * h >= attn_queries(a.s, t)) continue;
        size_t place = attn_place(a.s, t, blockIdx.y, query + 8 * h);
        UNROLL
        for (int n = 0; n < D / 8; n++) {
            int c = 8 * n + 2 * lane_pair();
            if (c < a.s.dim)
                store_2(a.o + place * a.s.dim + c, o[n][2 * h] / sum[h], o[n][2 * h + 1] / sum[h],
                        a.s.dim - c, a.s.fours);
        }
        if (lane_pair() == 0) a.lse[place] = lse_of(most[h], sum[h]);
    }
}

template <int D>
__global__ static void __launch_bounds__(attn_many<D>::threads)
    attention_many_kernel(struct attn_args a)
{
    const int ld = attn_many<D>::ld, stages = attn_many<D>::stages;
    SHARED_DYNAMIC(bf16, q);
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int warp = threadIdx.x / WARP, query = t.first + 16 * warp + lane_group();
    int position[2] = {attn_position(a.s, t, query_there(a, t, query)),
                       attn_position(a.s, t, query_there(a, t, query + 8))};
    float o[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    int last = last_block(a, t, QUERIES);
    bf16 *fetched = q + QUERIES * ld;
    queries_load<D, QUERIES>(q, a.q, a.s, t, blockIdx.y, t.first);
    keys_fetch<D>(fetched, a, t, 0);
    for (int b = 0; b <= last; b++) {
        bf16 *keys = fetched + b % stages * 2 * KEYS * ld;
        if (stages == 2 && b < last) {
            keys_fetch<D>(fetched + (b + 1) % stages * 2 * KEYS * ld, a, t, b + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float s[KEYS / 8][4], carry[2];
        bool seen[2];
        scores<D, KEYS / 8>(s, q + 16 * warp * ld, keys);
        UNROLL
        for (int h = 0; h < 2; h++) {
            int n = keys_seen(position[h], b);
            float m = fmaxf(most[h], row_max(s, h, n) * a.s.exponent);
            seen[h] = n > 0;
            carry[h] = exp2f(most[h] - m);
            sum[h] = fmaf(sum[h], carry[h], row_weights(s, h, a.s.exponent, m));
            most[h] = m;
        }
        weigh_values<D>(s, keys + KEYS * ld, [&](int n, const float pv[4]) {
            UNROLL
            for (int i = 0; i < 4; i++)
                if (seen[i / 2]) o[n][i] = fmaf(o[n][i], carry[i / 2], pv[i]);
        });
        __syncthreads(); /* before these keys are overwritten */
        if (stages == 1 && b < last) keys_fetch<D>(fetched, a, t, b + 1);
    }
    many_out<D>(a, t, o, most, sum, query);
}

/* ------------------------------------------------------------------ few queries */

#define FEW 16 /* queries of a tile */

/* Each warp has its own keys and values; when it is done with the values, its share of the output
 * lies in their place. */
template <int D> struct attn_few {
    static const int ld = D + TILE_PAD, warps = D <= 128 ? 4 : 2, threads = warps * WARP;
    static const int tile = KEYS * ld;         /* keys or values of a block */
    static const int values = FEW * D / threads; /* of the output that a thread adds up */
    static const size_t shared =
        (FEW * ld + warps * 2 * tile) * sizeof(bf16) + 3 * warps * FEW * sizeof(float);
};

/* What the warps say of each row to one another. */
struct few_rows {
    float *most;  /* [warps][FEW] the largest score of the warp's block, times the exponent */
    float *carry; /* [warps][FEW] negative: the row does not see the block */
    float *sum;   /* [warps][FEW] */
};

/* The warp's keys (part 0) or values (part 1) of a block, as a group of copies that is empty where
 * there is no such block. */
template <int D>
__device__ static inline void few_fetch(bf16 *to, const struct attn_args &a,
                                        const struct attn_tile &t, int block, int last, int part)
{
    if (block <= last)
        kv_fetch<D>(to + part * attn_few<D>::tile,
                    kv_keys(a.s, a.tiles, t, block, blockIdx.y) + part * KEYS * a.s.wide, a.s.wide,
                    min(KEYS, t.start + t.rows - block * KEYS), threadIdx.x % WARP, WARP);
    copy_commit();
}

/* The warp's block, scored: weights in s, and what the others must know of them.  most[] goes on
 * to what it is after all warps' blocks. */
template <int D>
__device__ static inline void few_weights(float s[KEYS / 8][4], const struct few_rows &rows,
                                          float most[2], const int position[2], int block,
                                          float exponent)
{
    int warp = threadIdx.x / WARP;
    UNROLL
    for (int h = 0; h < 2; h++) {
        int row = lane_group() + 8 * h;
        float before = most[h];
        for (int w = 0; w < warp; w++)
            before = fmaxf(before, rows.most[w * FEW + row]);
        float m = fmaxf(before, rows.most[warp * FEW + row]);
        for (int w = 0; w < attn_few<D>::warps; w++)
            most[h] = fmaxf(most[h], rows.most[w * FEW + row]);
        float sum = row_weights(s, h, exponent, m);
        if (lane_pair() == 0) {
            rows.carry[warp * FEW + row] =
                keys_seen(position[h], block) > 0 ? exp2f(before - m) : -1.0f;
            rows.sum[warp * FEW + row] = sum;
        }
    }
}

/* Adds the blocks of `count` warps in turn to this thread's part of the output, and to its row's sum
 * where it has a row. */
template <int D>
__device__ static inline void few_add(float o[attn_few<D>::values], float *sum,
                                      const struct few_rows &rows, const bf16 *fetched, int count)
{
    for (int w = 0; w < count; w++) {
        const float *share = (const float *)(fetched + (2 * w + 1) * attn_few<D>::tile);
        UNROLL
        for (int i = 0; i < attn_few<D>::values; i++) {
            int at = threadIdx.x + i * attn_few<D>::threads;
            float carry = rows.carry[w * FEW + at / D];
            if (carry >= 0) o[i] = fmaf(o[i], carry, share[at]);
        }
        if (threadIdx.x < FEW && rows.carry[w * FEW + threadIdx.x] >= 0)
            *sum = fmaf(*sum, rows.carry[w * FEW + threadIdx.x], rows.sum[w * FEW + threadIdx.x]);
    }
}

template <int D>
__device__ static inline void few_out(const struct attn_args &a, const struct attn_tile &t,
                                      const float o[attn_few<D>::values], const float most[2],
                                      float sum, const struct few_rows &rows)
{
    if (threadIdx.x < FEW) rows.sum[threadIdx.x] = sum;
    if (threadIdx.x < WARP && lane_pair() == 0)
        UNROLL
        for (int h = 0; h < 2; h++)
            rows.most[lane_group() + 8 * h] = most[h];
    __syncthreads();
    UNROLL
    for (int i = 0; i < attn_few<D>::values; i++) {
        int at = threadIdx.x + i * attn_few<D>::threads, row = at / D, c = at % D;
        if (t.first + row < attn_queries(a.s, t) && c < a.s.dim)
            a.o[attn_place(a.s, t, blockIdx.y, t.first + row) * a.s.dim + c] = o[i] / rows.sum[row];
    }
    int query = t.first + threadIdx.x;
    if (threadIdx.x < FEW && query < attn_queries(a.s, t))
        a.lse[attn_place(a.s, t, blockIdx.y, query)] = lse_of(rows.most[threadIdx.x], sum);
}

template <int D>
__global__ static void __launch_bounds__(attn_few<D>::threads) attention_few_kernel(struct attn_args a)
{
    const int ld = attn_few<D>::ld, warps = attn_few<D>::warps, tile = attn_few<D>::tile;
    SHARED_DYNAMIC(bf16, q);
    bf16 *fetched = q + FEW * ld;
    float *floats = (float *)(fetched + warps * 2 * tile);
    const struct few_rows rows = {floats, floats + warps * FEW, floats + 2 * warps * FEW};
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int warp = threadIdx.x / WARP, query = t.first + lane_group();
    int position[2] = {attn_position(a.s, t, query_there(a, t, query)),
                       attn_position(a.s, t, query_there(a, t, query + 8))};
    float o[attn_few<D>::values] = {}, most[2] = {-INFINITY, -INFINITY}, sum = 0;
    int last = last_block(a, t, FEW);
    bf16 *keys = fetched + warp * 2 * tile, *values = keys + tile;
    few_fetch<D>(keys, a, t, warp, last, 0);
    few_fetch<D>(keys, a, t, warp, last, 1);
    queries_load<D, FEW>(q, a.q, a.s, t, blockIdx.y, t.first);
    __syncthreads();
    for (int first = 0; first <= last; first += warps) {
        int b = first + warp;
        float s[KEYS / 8][4];
        copy_wait<1>();
        __syncwarp();
        if (b <= last) scores<D, KEYS / 8>(s, q, keys);
        UNROLL
        for (int h = 0; h < 2; h++) {
            float m = -INFINITY;
            if (b <= last) m = row_max(s, h, keys_seen(position[h], b)) * a.s.exponent;
            if (lane_pair() == 0) rows.most[warp * FEW + lane_group() + 8 * h] = m;
        }
        __syncthreads();
        few_fetch<D>(keys, a, t, b + warps, last, 0);
        copy_wait<1>();
        __syncwarp();
        if (b <= last) {
            float share[D / 8][4];
            few_weights<D>(s, rows, most, position, b, a.s.exponent);
            weigh_values<D>(s, values, [&](int n, const float pv[4]) {
                UNROLL
                for (int i = 0; i < 4; i++)
                    share[n][i] = pv[i];
            });
            __syncwarp(); /* all lanes are done with the values */
            UNROLL
            for (int n = 0; n < D / 8; n++)
                UNROLL
                for (int h = 0; h < 2; h++)
                    *(float2 *)((float *)values + (lane_group() + 8 * h) * D + 8 * n +
                                2 * lane_pair()) = make_float2(share[n][2 * h], share[n][2 * h + 1]);
        }
        __syncthreads();
        few_add<D>(o, &sum, rows, fetched, min(warps, last + 1 - first));
        __syncthreads(); /* before the shares are overwritten */
        few_fetch<D>(keys, a, t, b + warps, last, 1);
    }
    copy_wait<0>();
    few_out<D>(a, t, o, most, sum, rows);
}

/* ------------------------------------------------------------------ the op */

struct attn_launch {
    struct device *d;
    struct attn_args a;
    struct attn_tiles many, few;
    unsigned many_count, few_count;

    template <int D> void run(void) const
    {
        struct attn_args args = a;
        args.tiles = many;
        LAUNCH(d, (attention_many_kernel<D>), dim3(many_count, a.s.kv_heads),
               (unsigned)attn_many<D>::threads, attn_many<D>::shared, args);
        args.tiles = few;
        LAUNCH(d, (attention_few_kernel<D>), dim3(few_count, a.s.kv_heads),
               (unsigned)attn_few<D>::threads, attn_few<D>::shared, args);
    }
};

void cuda_attention(struct device *d, float *o, float *lse, const float *q,
                    const struct kv_seg *segs, int seg_count, const struct attn_shape *shape)
{
    struct attn_dims s = attn_dims_of(shape);
    s.fours = in_fours(q, s.dim) && in_fours(o, s.dim);
    std::vector<struct attn_tile> many, few;
    std::vector<const bf16 *> table;
    for (const struct kv_seg *g = segs; g < segs + seg_count; g++) {
        int all = g->rows * s.group, size = all <= FEW ? FEW : QUERIES;
        struct attn_tile t = {g->row, g->rows, g->start, 0, kv_table_add(&table, g)};
        for (int i = ceil_div(all, size) - 1; i >= 0; i--) { /* those with the most keys first */
            t.first = i * size;
            (size == FEW ? few : many).push_back(t);
        }
    }
    const bf16 *const *blocks = stage_all(d, table);
    struct attn_launch l = {d, {o, lse, q, {}, s}, {stage_all(d, many), blocks},
                            {stage_all(d, few), blocks}, (unsigned)many.size(),
                            (unsigned)few.size()};
    attn_by_width(s.dim, l);
}

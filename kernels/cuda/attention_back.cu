/* attention_back.cu - the way back through causal attention (arXiv 2307.08691, algorithm 2).
 *
 * The weights are worked out again from the scores and the stored logarithm:
 *   P = exp(s - lse)   dV = P^T dO   dP = dO V^T   dS = P (dP - D)   dQ = dS K   dK = dS^T Q
 * with D = sum(dO O) of a row, and dQ, dK times scale at the end.  All factors of these products are
 * rounded to bf16, P and dS among them, and dO in D too, so that dP - D vanishes where it should;
 * sums are in fp32.
 *
 * Nothing is added to memory: one kernel owns tiles of queries (dQ; it leaves D for the other) and
 * walks blocks of keys, the other owns blocks of keys (dK, dV) and walks tiles of queries of all
 * heads that share them.  Each sum is one chain in that order, begun at the segment's first key or
 * the block's first query; so no sequence notices another. */
#include "kernels/cuda/kv.cuh"

#define STRIP 32 /* of 64 keys, or queries, whose scores are in flight at once */

struct back_args {
    struct act dq, dk, dv, dout, o, q;
    float *delta; /* D, like lse */
    const float *lse;
    struct attn_tiles tiles;
    struct attn_dims s;

    bool operator==(const back_args &) const = default;
};

/* Four tiles of 64 rows: keys, values, queries, dO. */
template <int D> struct back_size {
    static const int ld = D + TILE_PAD, tile = 64 * ld;
    static const size_t tiles = 4 * tile * sizeof(bf16);
};

/* Begins to copy a block's keys and values, side by side from `keys` on. */
template <int D>
__device__ static inline void block_fetch(bf16 *keys, const struct back_args &a,
                                          const struct attn_tile &t, int block)
{
    const bf16 *from = kv_keys(a.s, a.tiles, t, block, blockIdx.y);
    int rows = min(KEYS, t.rows - block * KEYS);
    kv_fetch<D>(keys, from, a.s.wide, rows, threadIdx.x, blockDim.x);
    kv_fetch<D>(keys + back_size<D>::tile, from + KEYS * a.s.wide, a.s.wide, rows, threadIdx.x,
                blockDim.x);
    copy_commit();
}

/* Rows of a gradient [16, 8 N], times scale, to `to` where the row is there. */
template <int N, class T>
__device__ static inline void gradient_out_to(T *to, const float sum[N][4], int half, float scale,
                                              int count, bool aligned)
{
    UNROLL
    for (int n = 0; n < N; n++) {
        int c = 8 * n + 2 * lane_pair();
        if (c < count)
            store_2(to + c, scale * sum[n][2 * half], scale * sum[n][2 * half + 1], count - c,
                    aligned);
    }
}

template <int N>
__device__ static inline void gradient_out(const struct act &to, size_t at, const float sum[N][4],
                                           int half, float scale, int count, bool aligned)
{
    if (to.dtype == OPS_F32)
        gradient_out_to<N>((float *)to.p + at, sum, half, scale, count, aligned);
    else
        gradient_out_to<N>((bf16 *)to.p + at, sum, half, scale, count, aligned);
}

/* ------------------------------------------------------------------ queries */

#define DQ_THREADS 128

__device__ static inline float rounded(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

/* D of the warp's queries: each lane's fours, the lanes as a tree. */
template <class T>
__device__ static inline void deltas(const T *dout, const T *o, const struct back_args &a,
                                     const struct attn_tile &t, int first)
{
    int lane = threadIdx.x % WARP;
    for (int r = 0; r < 16 && first + r < attn_queries(a.s, t); r++) {
        size_t place = attn_place(a.s, t, blockIdx.y, first + r);
        float sum = 0;
        for (int i = 4 * lane; i < a.s.dim; i += 4 * WARP) {
            float4 x = load_4(dout + place * a.s.dim + i, a.s.dim - i, a.s.aligned);
            float4 y = load_4(o + place * a.s.dim + i, a.s.dim - i, a.s.aligned);
            sum = fmaf(rounded(x.x), y.x, sum);
            sum = fmaf(rounded(x.y), y.y, sum);
            sum = fmaf(rounded(x.z), y.z, sum);
            sum = fmaf(rounded(x.w), y.w, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) a.delta[place] = sum;
    }
    __syncwarp();
}

/* What a lane knows of its two queries. */
struct query_pair {
    int position[2];
    float lse[2], delta[2]; /* lse in powers of two */
};

__device__ static inline struct query_pair queries_known(const struct back_args &a,
                                                         const struct attn_tile &t, int query)
{
    struct query_pair p;
    UNROLL
    for (int h = 0; h < 2; h++) {
        int at = min(query + 8 * h, attn_queries(a.s, t) - 1);
        size_t place = attn_place(a.s, t, blockIdx.y, at);
        p.position[h] = attn_position(a.s, t, at);
        p.lse[h] = a.lse[place] * LOG2_E;
        p.delta[h] = a.delta[place];
    }
    return p;
}

/* dq [16, D] += dS of the warp's queries and a strip of keys, times these keys. */
template <int D>
__device__ static inline void strip_to_dq(float dq[D / 8][4], const bf16 *q, const bf16 *dout,
                                          const bf16 *keys, const bf16 *values,
                                          const struct query_pair &p, int key, float exponent)
{
    const int ld = D + TILE_PAD;
    float s[STRIP / 8][4], dp[STRIP / 8][4];
    uint32_t ds[STRIP / 16][4];
    scores<D, STRIP / 8>(s, q, keys);
    scores<D, STRIP / 8>(dp, dout, values);
    UNROLL
    for (int n = 0; n < STRIP / 8; n++)
        UNROLL
        for (int i = 0; i < 4; i++) {
            int h = i / 2;
            bool seen = key + 8 * n + 2 * lane_pair() + i % 2 <= p.position[h];
            float weight = exp2f(fmaf(s[n][i], exponent, -p.lse[h]));
            s[n][i] = seen ? weight * (dp[n][i] - p.delta[h]) : 0;
        }
    UNROLL
    for (int k = 0; k < STRIP / 16; k++)
        as_a(ds[k], s[2 * k], s[2 * k + 1]);
    UNROLL
    for (int n = 0; n < D / 16; n++)
        UNROLL
        for (int k = 0; k < STRIP / 16; k++) {
            uint32_t b[4];
            tile_b_turned(b, keys + k * 16 * ld + n * 16, ld);
            mma(dq[2 * n], ds[k], b);
            mma(dq[2 * n + 1], ds[k], b + 2);
        }
}

template <int D>
__global__ static void __launch_bounds__(DQ_THREADS) attention_dq_kernel(struct back_args a)
{
    const int ld = back_size<D>::ld, tile = back_size<D>::tile;
    SHARED_DYNAMIC(bf16, keys);
    bf16 *values = keys + tile, *q = values + tile, *dout = q + tile;
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int row = threadIdx.x / WARP * 16, query = t.first + row + lane_group();
    float dq[D / 8][4] = {};
    int last = attn_position(a.s, t, min(t.first + QUERIES, attn_queries(a.s, t)) - 1) / KEYS;
    block_fetch<D>(keys, a, t, 0);
    queries_load<D, QUERIES>(q, a.q, a.s, t, blockIdx.y, t.first);
    queries_load<D, QUERIES>(dout, a.dout, a.s, t, blockIdx.y, t.first);
    if (a.dout.dtype == OPS_F32)
        deltas((const float *)a.dout.p, (const float *)a.o.p, a, t, t.first + row);
    else
        deltas((const bf16 *)a.dout.p, (const bf16 *)a.o.p, a, t, t.first + row);
    struct query_pair p = queries_known(a, t, query);
    for (int b = 0; b <= last; b++) {
        copy_wait<0>();
        __syncthreads();
        for (int k = 0; k < KEYS; k += STRIP)
            strip_to_dq<D>(dq, q + row * ld, dout + row * ld, keys + k * ld, values + k * ld, p,
                           b * KEYS + k, a.s.exponent);
        __syncthreads(); /* before these keys are overwritten */
        if (b < last) block_fetch<D>(keys, a, t, b + 1);
    }
    UNROLL
    for (int h = 0; h < 2; h++)
        if (query + 8 * h < attn_queries(a.s, t))
            gradient_out<D / 8>(a.dq, attn_place(a.s, t, blockIdx.y, query + 8 * h) * a.s.dim, dq, h,
                                a.s.scale, a.s.dim, a.s.aligned);
}

/* ------------------------------------------------------------------ keys */

/* A warp owns 16 keys and WIDE numbers of dK and dV; where D is more, other warps work out the same
 * weights for the rest. */
template <int D> struct dkv_size {
    static const int parts = D <= 128 ? 1 : 2, wide = D / parts, threads = parts * 4 * WARP;
    static const size_t shared = back_size<D>::tiles + QUERIES * (2 * sizeof(float) + sizeof(int));
};

/* Of a tile of queries: position, -1 past the end; lse in powers of two; D. */
struct queries_known_all {
    int *position;
    float *lse, *delta;
};

__device__ static inline void queries_say(const struct queries_known_all &k,
                                          const struct back_args &a, const struct attn_tile &t,
                                          int first)
{
    int query = first + threadIdx.x;
    if (threadIdx.x >= QUERIES) return;
    bool there = query < attn_queries(a.s, t);
    size_t place = there ? attn_place(a.s, t, blockIdx.y, query) : 0;
    k.position[threadIdx.x] = there ? attn_position(a.s, t, query) : -1;
    k.lse[threadIdx.x] = there ? a.lse[place] * LOG2_E : 0;
    k.delta[threadIdx.x] = there ? a.delta[place] : 0;
}

/* sum [16, WIDE] += left [16, STRIP] right [STRIP, WIDE] */
template <int D, int WIDE>
__device__ static inline void strip_add(float sum[WIDE / 8][4], const float left[STRIP / 8][4],
                                        const bf16 *right)
{
    const int ld = D + TILE_PAD;
    uint32_t a[STRIP / 16][4];
    UNROLL
    for (int k = 0; k < STRIP / 16; k++)
        as_a(a[k], left[2 * k], left[2 * k + 1]);
    UNROLL
    for (int n = 0; n < WIDE / 16; n++)
        UNROLL
        for (int k = 0; k < STRIP / 16; k++) {
            uint32_t b[4];
            tile_b_turned(b, right + k * 16 * ld + n * 16, ld);
            mma(sum[2 * n], a[k], b);
            mma(sum[2 * n + 1], a[k], b + 2);
        }
}

/* P^T and dS^T of the warp's keys, the first of them at position key, and a strip of queries. */
template <int D>
__device__ static inline void strip_weights(float p[STRIP / 8][4], float ds[STRIP / 8][4],
                                            const bf16 *keys, const bf16 *values, const bf16 *q,
                                            const bf16 *dout, const struct queries_known_all &known,
                                            int at, int key, float exponent)
{
    scores<D, STRIP / 8>(p, keys, q);
    scores<D, STRIP / 8>(ds, values, dout);
    UNROLL
    for (int n = 0; n < STRIP / 8; n++)
        UNROLL
        for (int i = 0; i < 4; i++) {
            int query = at + 8 * n + 2 * lane_pair() + i % 2;
            bool seen = key + lane_group() + i / 2 * 8 <= known.position[query];
            float weight = exp2f(fmaf(p[n][i], exponent, -known.lse[query]));
            p[n][i] = seen ? weight : 0;
            ds[n][i] = seen ? weight * (ds[n][i] - known.delta[query]) : 0;
        }
}

template <int D>
__global__ static void __launch_bounds__(dkv_size<D>::threads) attention_dkv_kernel(struct back_args a)
{
    const int ld = back_size<D>::ld, tile = back_size<D>::tile, wide = dkv_size<D>::wide;
    SHARED_DYNAMIC(bf16, keys);
    bf16 *values = keys + tile, *q = values + tile, *dout = q + tile;
    float *floats = (float *)(dout + tile);
    const struct queries_known_all known = {(int *)(floats + 2 * QUERIES), floats, floats + QUERIES};
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int warp = threadIdx.x / WARP, row = warp % 4 * 16, column = warp / 4 * wide;
    int key = t.first * KEYS + row, all = attn_queries(a.s, t);
    float dk[wide / 8][4] = {}, dv[wide / 8][4] = {};
    block_fetch<D>(keys, a, t, t.first);
    copy_wait<0>();
    for (int first = t.first * KEYS * a.s.group; first < all; first += QUERIES) {
        __syncthreads(); /* before queries are overwritten */
        queries_load<D, QUERIES>(q, a.q, a.s, t, blockIdx.y, first);
        queries_load<D, QUERIES>(dout, a.dout, a.s, t, blockIdx.y, first);
        queries_say(known, a, t, first);
        __syncthreads();
        for (int i = 0; i < QUERIES && first + i < all; i += STRIP) {
            float p[STRIP / 8][4], ds[STRIP / 8][4];
            strip_weights<D>(p, ds, keys + row * ld, values + row * ld, q + i * ld, dout + i * ld,
                             known, i, key, a.s.exponent);
            strip_add<D, wide>(dv, p, dout + i * ld + column);
            strip_add<D, wide>(dk, ds, q + i * ld + column);
        }
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        int at = key + lane_group() + 8 * h, count = a.s.dim - column;
        if (at >= t.rows) continue;
        size_t place = ((size_t)(t.row + at) * a.s.kv_heads + blockIdx.y) * a.s.dim + column;
        gradient_out<wide / 8>(a.dk, place, dk, h, a.s.scale, count, a.s.aligned);
        gradient_out<wide / 8>(a.dv, place, dv, h, 1.0f, count, a.s.aligned);
    }
}

/* ------------------------------------------------------------------ the op */

struct back_launch {
    struct device *d;
    struct back_args a;
    struct attn_tiles queries, keys;
    unsigned queries_count, keys_count;

    template <int D> void run(void) const
    {
        struct back_args args = a;
        args.tiles = queries;
        LAUNCH(d, (attention_dq_kernel<D>), dim3(queries_count, a.s.kv_heads), DQ_THREADS,
               back_size<D>::tiles, args);
        args.tiles = keys;
        LAUNCH(d, (attention_dkv_kernel<D>), dim3(keys_count, a.s.kv_heads),
               (unsigned)dkv_size<D>::threads, dkv_size<D>::shared, args);
    }
};

void cuda_attention_back(struct device *d, struct act dq, struct act dk, struct act dv,
                         struct act dout, struct act o, const float *lse, struct act q,
                         const struct kv_seg *segs, int seg_count, const struct attn_shape *shape)
{
    struct attn_dims s = attn_dims_of(shape);
    s.aligned = true;
    for (const struct act &a : {dq, dk, dv, dout, o, q}) {
        assert(act_is(a, q.dtype));
        s.aligned = s.aligned && act_aligned(a, s.dim);
    }
    std::vector<struct attn_tile> queries, keys;
    std::vector<const bf16 *> table;
    size_t rows = 0;
    for (const struct kv_seg *g = segs; g < segs + seg_count; g++) {
        assert(g->start == 0);
        struct attn_tile t = {g->row, g->rows, 0, 0, kv_table_add(&table, g)};
        for (int i = ceil_div(g->rows * s.group, QUERIES) - 1; i >= 0; i--) {
            t.first = i * QUERIES; /* those with the most keys first */
            queries.push_back(t);
        }
        for (t.first = 0; t.first < kv_blocks(g); t.first++)
            keys.push_back(t);
        if (rows < (size_t)(g->row + g->rows)) rows = (size_t)(g->row + g->rows);
    }
    const bf16 *const *blocks = stage_all(d, table);
    float *delta = (float *)cuda_scratch(d, rows * s.heads * sizeof *delta);
    struct back_launch l = {d, {dq, dk, dv, dout, o, q, delta, lse, {}, s},
                            {stage_all(d, queries), blocks}, {stage_all(d, keys), blocks},
                            (unsigned)queries.size(), (unsigned)keys.size()};
    attn_by_width(s.dim, l);
}

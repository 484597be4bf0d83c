/* attention_few.cu - attention from up to sixteen queries of a KV head, as in decoding.
 *
 * Each block of keys is a warp's own, and what the warps made of theirs is added in turn.  Where there
 * is work enough for all processors, one CUDA block takes a tile and its warps go through the keys
 * in strides.  Where there is not, as with one long sequence, every block of keys becomes a CUDA
 * block, in three kernels: the scores and their maxima, the blocks' shares of the output, and the
 * sum of the shares.  Both ways do the same additions. */
#include "kernels/cuda/attention.cuh"

/* ------------------------------------------------------------------ what both ways do */

/* One row of a block: its scores become weights; the row's four lanes agree, the first of them says
 * its carry (negative: the row does not see the block) and sum.  before, own: the largest score
 * before this block and in it, times the exponent. */
__device__ static inline void few_row(float s[KEYS / 8][4], int half, int keys, float exponent,
                                      float before, float own, float *carry, float *sum)
{
    float most = fmaxf(before, own), all = row_weights(s, half, exponent, most);
    if (lane_pair() != 0) return;
    *carry = keys > 0 ? exp2f(before - most) : -1.0f;
    *sum = all;
}

/* Goes on to the next block's share of a number of the output, or of the sum. */
__device__ static inline float few_on(float so_far, float carry, float share)
{
    return carry >= 0 ? fmaf(so_far, carry, share) : so_far;
}

__device__ static inline void number_out(const struct act &to, size_t at, float number)
{
    if (to.dtype == OPS_F32)
        put((float *)to.p + at, number);
    else
        put((bf16 *)to.p + at, number);
}

/* A tile [FEW, D] of C, 8 columns from 8 n on. */
__device__ static inline void few_put(float *to, int width, int n, const float c[4])
{
    UNROLL
    for (int h = 0; h < 2; h++)
        *(float2 *)(to + (lane_group() + 8 * h) * width + 8 * n + 2 * lane_pair()) =
            make_float2(c[2 * h], c[2 * h + 1]);
}

/* ------------------------------------------------------------------ one tile, one CUDA block */

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
        for (int w = 0; w < attn_few<D>::warps; w++)
            most[h] = fmaxf(most[h], rows.most[w * FEW + row]);
        float own = rows.most[warp * FEW + row];
        few_row(s, h, keys_seen(position[h], block), exponent, before, own,
                &rows.carry[warp * FEW + row], &rows.sum[warp * FEW + row]);
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
            o[i] = few_on(o[i], rows.carry[w * FEW + at / D], share[at]);
        }
        int row = w * FEW + threadIdx.x;
        if (threadIdx.x < FEW) *sum = few_on(*sum, rows.carry[row], rows.sum[row]);
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
            number_out(a.o, attn_place(a.s, t, blockIdx.y, t.first + row) * a.s.dim + c,
                       o[i] / rows.sum[row]);
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
                few_put((float *)values, D, n, share[n]);
        }
        __syncthreads();
        few_add<D>(o, &sum, rows, fetched, min(warps, last + 1 - first));
        __syncthreads(); /* before the shares are overwritten */
        few_fetch<D>(keys, a, t, b + warps, last, 1);
    }
    copy_wait<0>();
    few_out<D>(a, t, o, most, sum, rows);
}

/* ------------------------------------------------------------------ a CUDA block for each block */

/* What the kernels leave for one another, for each tile, KV head and block of keys ("part"). */
struct few_parts {
    float *scores; /* [parts][KEYS / 2][WARP] as the lanes have them */
    float *most;   /* [parts][FEW] the largest score, times the exponent */
    float *carry;  /* [parts][FEW] see few_row */
    float *sum;    /* [parts][FEW] */
    float *share;  /* [parts][FEW][D] */
    int blocks;    /* parts of a tile and KV head; those after its last block are not looked at */

    bool operator==(const few_parts &) const = default;
};

#define PART_FLOATS(D) (KEYS / 2 * WARP + FEW * (3 + (D)))
#define SPLIT_FLOATS   ((size_t)1 << 24) /* at most in scratch */
#define SPLIT_TILES    64                /* times KV heads: as many keep the processors busy anyway */
#define SPLIT_BLOCKS   8                 /* fewer are soon done */

__device__ static inline size_t part_of(const struct few_parts &p, int block)
{
    return ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * p.blocks + block;
}

template <int D> struct few_split {
    static const int ld = D + TILE_PAD;
    static const size_t scores = (FEW + KEYS) * ld * sizeof(bf16);
    static const size_t shares = KEYS * ld * sizeof(bf16);
};

/* The scores of the warp's block that its queries see, and their maxima. */
template <int D>
__global__ static void __launch_bounds__(WARP) few_scores_kernel(struct attn_args a, struct few_parts p)
{
    SHARED_DYNAMIC(bf16, q);
    bf16 *keys = q + FEW * few_split<D>::ld;
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int b = blockIdx.z, query = t.first + lane_group();
    if (b > last_block(a, t, FEW)) return;
    kv_fetch<D>(keys, kv_keys(a.s, a.tiles, t, b, blockIdx.y), a.s.wide,
                min(KEYS, t.start + t.rows - b * KEYS), threadIdx.x, WARP);
    copy_commit();
    queries_load<D, FEW>(q, a.q, a.s, t, blockIdx.y, t.first);
    copy_wait<0>();
    __syncwarp();
    float s[KEYS / 8][4];
    size_t part = part_of(p, b);
    scores<D, KEYS / 8>(s, q, keys);
    UNROLL
    for (int h = 0; h < 2; h++) {
        int position = attn_position(a.s, t, query_there(a, t, query + 8 * h));
        float most = row_max(s, h, keys_seen(position, b)) * a.s.exponent;
        if (lane_pair() == 0) p.most[part * FEW + lane_group() + 8 * h] = most;
    }
    UNROLL
    for (int i = 0; i < KEYS / 2; i++)
        p.scores[(part * (KEYS / 2) + i) * WARP + threadIdx.x] = s[i / 4][i % 4];
}

/* The largest score of a row before a block, each of the row's lanes looking at every fourth. */
__device__ static inline float most_before(const struct few_parts &p, int block, int row)
{
    float most = -INFINITY;
    for (int b = lane_pair(); b < block; b += 4)
        most = fmaxf(most, p.most[part_of(p, b) * FEW + row]);
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    return fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
}

template <int D>
__global__ static void __launch_bounds__(WARP) few_shares_kernel(struct attn_args a, struct few_parts p)
{
    SHARED_DYNAMIC(bf16, values);
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int b = blockIdx.z, query = t.first + lane_group();
    if (b > last_block(a, t, FEW)) return;
    kv_fetch<D>(values, kv_keys(a.s, a.tiles, t, b, blockIdx.y) + KEYS * a.s.wide, a.s.wide,
                min(KEYS, t.start + t.rows - b * KEYS), threadIdx.x, WARP);
    copy_commit();
    float s[KEYS / 8][4];
    size_t part = part_of(p, b);
    UNROLL
    for (int i = 0; i < KEYS / 2; i++)
        s[i / 4][i % 4] = p.scores[(part * (KEYS / 2) + i) * WARP + threadIdx.x];
    UNROLL
    for (int h = 0; h < 2; h++) {
        int position = attn_position(a.s, t, query_there(a, t, query + 8 * h));
        size_t row = part * FEW + lane_group() + 8 * h;
        few_row(s, h, keys_seen(position, b), a.s.exponent, most_before(p, b, lane_group() + 8 * h),
                p.most[row], &p.carry[row], &p.sum[row]);
    }
    copy_wait<0>();
    __syncwarp();
    weigh_values<D>(s, values, [&](int n, const float pv[4]) {
        few_put(p.share + part * FEW * D, D, n, pv);
    });
}

#define SUM_THREADS 256

/* A thread has one number of the output; width: D of the other kernels. */
__global__ static void few_sum_kernel(struct attn_args a, struct few_parts p, int width)
{
    struct attn_tile t = a.tiles.list[blockIdx.x];
    int at = blockIdx.z * SUM_THREADS + threadIdx.x, row = at / width, c = at % width;
    if (t.first + row >= attn_queries(a.s, t) || c >= a.s.dim) return;
    int last = last_block(a, t, FEW);
    float o = 0, sum = 0, most = -INFINITY;
    for (int b = 0; b <= last; b++) {
        size_t i = part_of(p, b) * FEW + row;
        o = few_on(o, p.carry[i], p.share[i * width + c]);
        sum = few_on(sum, p.carry[i], p.sum[i]);
        most = fmaxf(most, p.most[i]);
    }
    size_t place = attn_place(a.s, t, blockIdx.y, t.first + row);
    number_out(a.o, place * a.s.dim + c, o / sum);
    if (c == 0) a.lse[place] = lse_of(most, sum);
}

/* ------------------------------------------------------------------ the choice */

/* At least `blocks`, and the same for some hundreds of positions: what is launched then stays the
 * same while sequences grow (record.h).  The CUDA blocks that have none return at once. */
static int rounded_up(int blocks)
{
    int step = 1;
    while (step * 8 < blocks)
        step *= 2;
    return ceil_div(blocks, step) * step;
}

struct few_launch {
    struct device *d;
    struct attn_args a;
    unsigned tiles;
    int blocks;

    template <int D> void split(size_t parts) const
    {
        float *at = (float *)cuda_scratch(d, parts * PART_FLOATS(D) * sizeof(float));
        if (!at) return; /* the device has failed */
        struct few_parts p = {};
        p.blocks = blocks;
        p.scores = at, at += parts * (KEYS / 2) * WARP;
        p.share = at, at += parts * FEW * D;
        p.most = at, at += parts * FEW;
        p.carry = at, at += parts * FEW;
        p.sum = at;
        dim3 grid(tiles, a.s.kv_heads, blocks);
        LAUNCH(d, (few_scores_kernel<D>), grid, WARP, few_split<D>::scores, a, p);
        LAUNCH(d, (few_shares_kernel<D>), grid, WARP, few_split<D>::shares, a, p);
        grid.z = FEW * D / SUM_THREADS;
        LAUNCH(d, few_sum_kernel, grid, SUM_THREADS, 0, a, p, D);
    }

    template <int D> void run(void) const
    {
        size_t parts = (size_t)tiles * a.s.kv_heads * blocks;
        if (tiles * a.s.kv_heads <= SPLIT_TILES && blocks >= SPLIT_BLOCKS && blocks <= 65535 &&
            parts * PART_FLOATS(D) <= SPLIT_FLOATS)
            split<D>(parts);
        else
            LAUNCH(d, (attention_few_kernel<D>), dim3(tiles, a.s.kv_heads),
                   (unsigned)attn_few<D>::threads, attn_few<D>::shared, a);
    }
};

void cuda_attention_few(struct device *d, const struct attn_args *a, unsigned tiles, int blocks)
{
    struct few_launch l = {d, *a, tiles, rounded_up(blocks)};
    attn_by_width(a->s.dim, l);
}

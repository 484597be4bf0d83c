/* attention.cu - causal attention over packed sequences (arXiv 2205.14135, 2307.08691), and writing
 * the keys and values it reads.
 *
 * Many queries take a tile of 64 to a CUDA block, whose four warps walk the keys together; few, as
 * in decoding, go to attention_few.cu, with the same bits: attention.cuh says why. */
#include "kernels/cuda/attention.cuh"

/* ------------------------------------------------------------------ writing */

/* Positions of one segment in one block. */
struct kv_run {
    int row, rows, slot;
    bf16 *block;
};

template <class T>
__device__ static void kv_write_rows(bf16 *to, const T *from, const struct attn_dims &s,
                                     const struct kv_run &run)
{
    int kv_head = blockIdx.y;
    for (int i = threadIdx.x; i < run.rows * s.wide / 4; i += blockDim.x) {
        int r = i / (s.wide / 4), c = i % (s.wide / 4) * 4;
        size_t row = (size_t)(run.row + r) * s.kv_heads + kv_head;
        put_4(to + (run.slot + r) * s.wide + c,
              load_4(from + row * s.dim + (c < s.dim ? c : 0), s.dim - c, s.aligned));
    }
}

template <class T>
__global__ static void kv_write_kernel(const void *k, const void *v, const struct kv_run *runs,
                                       struct attn_dims s)
{
    struct kv_run run = runs[blockIdx.x];
    bf16 *keys = run.block + (size_t)blockIdx.y * 2 * KEYS * s.wide;
    kv_write_rows(keys, (const T *)k, s, run);
    kv_write_rows(keys + KEYS * s.wide, (const T *)v, s, run);
}

size_t cuda_kv_floats(const struct attn_shape *s)
{
    return (size_t)s->kv_heads * 2 * KEYS * kv_wide(s->head_dim) * sizeof(bf16) / sizeof(float);
}

void cuda_kv_write(struct device *d, struct act k, struct act v, const struct kv_seg *segs,
                   int seg_count, const struct attn_shape *shape)
{
    struct attn_dims s = attn_dims_of(shape);
    assert(act_valid(k) && act_is(v, k.dtype));
    s.aligned = act_aligned(k, s.dim) && act_aligned(v, s.dim);
    std::vector<struct kv_run> runs;
    for (const struct kv_seg *g = segs; g < segs + seg_count; g++)
        for (int done = 0, rows; done < g->rows; done += rows) {
            int pos = g->start + done, slot = pos % KEYS;
            rows = g->rows - done < KEYS - slot ? g->rows - done : KEYS - slot;
            runs.push_back({g->row + done, rows, slot, kv_block(g, pos / KEYS)});
        }
    LAUNCH_OF(d, k.dtype, kv_write_kernel, dim3((unsigned)runs.size(), s.kv_heads), 128, 0, k.p, v.p,
              stage_all(d, runs), s);
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

template <int D, class T>
__device__ static inline void many_out(T *to, const struct attn_args &a, const struct attn_tile &t,
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
                store_2(to + place * a.s.dim + c, o[n][2 * h] / sum[h], o[n][2 * h + 1] / sum[h],
                        a.s.dim - c, a.s.aligned);
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
    if (a.o.dtype == OPS_F32)
        many_out<D>((float *)a.o.p, a, t, o, most, sum, query);
    else
        many_out<D>((bf16 *)a.o.p, a, t, o, most, sum, query);
}

/* ------------------------------------------------------------------ the op */

struct many_launch {
    struct device *d;
    struct attn_args a;
    unsigned tiles;

    template <int D> void run(void) const
    {
        LAUNCH(d, (attention_many_kernel<D>), dim3(tiles, a.s.kv_heads),
               (unsigned)attn_many<D>::threads, attn_many<D>::shared, a);
    }
};

void cuda_attention(struct device *d, struct act o, float *lse, struct act q,
                    const struct kv_seg *segs, int seg_count, const struct attn_shape *shape)
{
    struct attn_dims s = attn_dims_of(shape);
    assert(act_valid(q) && act_is(o, q.dtype));
    s.aligned = act_aligned(q, s.dim) && act_aligned(o, s.dim);
    std::vector<struct attn_tile> many, few;
    std::vector<const bf16 *> table;
    int longest = 0; /* of those with few queries */
    for (const struct kv_seg *g = segs; g < segs + seg_count; g++) {
        int all = g->rows * s.group, size = all <= FEW ? FEW : QUERIES;
        struct attn_tile t = {g->row, g->rows, g->start, 0, kv_table_add(&table, g)};
        for (int i = ceil_div(all, size) - 1; i >= 0; i--) { /* those with the most keys first */
            t.first = i * size;
            (size == FEW ? few : many).push_back(t);
        }
        if (size == FEW && longest < kv_blocks(g)) longest = kv_blocks(g);
    }
    const bf16 *const *blocks = stage_all(d, table);
    struct many_launch l = {d, {o, q, lse, {stage_all(d, many), blocks}, s}, (unsigned)many.size()};
    attn_by_width(s.dim, l);
    struct attn_args a = {o, q, lse, {stage_all(d, few), blocks}, s};
    cuda_attention_few(d, &a, (unsigned)few.size(), longest);
}

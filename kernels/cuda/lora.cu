/* lora.cu - projections: the frozen product and the low-rank ones of all groups, each group of rows
 * with its own matrices and rank, in one launch a step.
 *
 * What is multiplied (x, dy, A, B, and u, du where they go on) is rounded to bf16, if it is not in
 * bf16 already; sums are in fp32, u, du and the gradients stay so in memory.  A sum over k is made in
 * pieces of PIECE, each a chain from zero, and the pieces are added in turn.  Many rows walk all
 * pieces in one CUDA block; few, as in decoding, have a block for each piece, and another kernel adds
 * them: the same additions, so that the bits of a row do not depend on how many there are.
 *
 * The gradients are outer products over rows: a CUDA block owns a tile of one gradient and walks the
 * blocks of the datum law in order, each a chain from zero that is then added. */
#include <vector>
#include "kernels/cuda/mma.h"

#define SIDE         64 /* of a tile, and rows of k that are in shared memory at once */
#define LD           (SIDE + TILE_PAD)
#define THREADS      256
#define PIECE        512
#define SPLIT_TILES  256             /* pieces are worked out apart while there are fewer tiles ... */
#define SPLIT_FLOATS ((size_t)1 << 24) /* ... and their sums take no more than this */

/* ------------------------------------------------------------------ tiles on their way */

/* A thread's share of a tile [64, 64], in registers while the tile before it is being used: fours of
 * fp32 or, in x and y, of bf16. */
struct share {
    uint4 v[SIDE * SIDE / 4 / THREADS];
    bool narrow;
};

__device__ static inline uint4 share_of(float4 v)
{
    return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                      __float_as_uint(v.w));
}

__device__ static inline unsigned bits_at(const bf16 *p, int i, int count)
{
    return i < count ? __bfloat16_as_ushort(p[i]) : 0u;
}

/* As load_4, but as they are. */
__device__ static inline uint4 narrow_4(const bf16 *p, int count, bool aligned)
{
    uint2 v = make_uint2(0, 0);
    if (count >= 4 && aligned)
        v = *(const uint2 *)p;
    else
        v = make_uint2(bits_at(p, 0, count) | bits_at(p, 1, count) << 16,
                       bits_at(p, 2, count) | bits_at(p, 3, count) << 16);
    return make_uint4(v.x, v.y, 0, 0);
}

/* Calls take(i, offset, count) for each four of this thread's: where it begins, and how many of it
 * are there of a tile of rows x columns. */
template <class F>
__device__ static inline void share_fours(int ld, int rows, int columns, const F &take)
{
    UNROLL
    for (int i = 0; i < SIDE * SIDE / 4 / THREADS; i++) {
        int at = threadIdx.x + i * THREADS, r = at / (SIDE / 4), c = at % (SIDE / 4) * 4;
        int count = r < rows ? columns - c : 0;
        take(i, count > 0 ? (size_t)r * ld + c : 0, count);
    }
}

/* rows x columns of the tile are there, the others are zero. */
__device__ static inline void share_load(struct share *s, const struct act &from, int ld, int rows,
                                         int columns)
{
    s->narrow = from.dtype != OPS_F32;
    bool aligned = ld % 4 == 0 && ((size_t)from.p & (s->narrow ? 7 : 15)) == 0;
    if (s->narrow)
        share_fours(ld, rows, columns, [&](int i, size_t at, int count) {
            s->v[i] = narrow_4((const bf16 *)from.p + at, count, aligned);
        });
    else
        share_fours(ld, rows, columns, [&](int i, size_t at, int count) {
            s->v[i] = share_of(load_4((const float *)from.p + at, count, aligned));
        });
}

/* To shared memory, in bf16. */
__device__ static inline void share_put(bf16 *to, const struct share *s)
{
    UNROLL
    for (int i = 0; i < SIDE * SIDE / 4 / THREADS; i++) {
        int at = threadIdx.x + i * THREADS;
        bf16 *four = to + at / (SIDE / 4) * LD + at % (SIDE / 4) * 4;
        uint4 v = s->v[i];
        if (s->narrow)
            *(uint2 *)four = make_uint2(v.x, v.y);
        else
            put_4(four, make_float4(__uint_as_float(v.x), __uint_as_float(v.y),
                                    __uint_as_float(v.z), __uint_as_float(v.w)));
    }
}

/* Of a tile [64, 64] each of eight warps owns 16 rows and 32 columns. */
__device__ static inline int warp_row(void)
{
    return threadIdx.x / WARP / 2 * 16;
}

__device__ static inline int warp_column(void)
{
    return threadIdx.x / WARP % 2 * 32;
}

typedef float warp_tile[4][4]; /* 16 rows, 4 times 8 columns: see mma.h */

__device__ static inline void clear(warp_tile c)
{
    UNROLL
    for (int n = 0; n < 4; n++)
        UNROLL
        for (int i = 0; i < 4; i++)
            c[n][i] = 0;
}

__device__ static inline void add(warp_tile to, const warp_tile c)
{
    UNROLL
    for (int n = 0; n < 4; n++)
        UNROLL
        for (int i = 0; i < 4; i++)
            to[n][i] += c[n][i];
}

/* Which task of a launch this is: jobs lie in a row of tasks, each beginning at its `first`. */
template <class T> __device__ static inline int job_of(const T *jobs, int count, int task)
{
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (jobs[middle].first <= task)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ------------------------------------------------------------------ products */

/* y [rows, ldy] (+)= scale x [rows, ldx] w^T, w being [n, k], or turned: w [k, n] itself. */
struct product_job {
    struct act y, x;
    const float *w;
    int ldy, ldx, rows, n, k;
    float scale;
    bool add;
    int first;      /* task: a tile of y */
    size_t pieces;  /* where the sums of pieces begin in scratch, [pieces][rows][n] */
};

template <class T>
__device__ static inline void y_put_to(T *y, const struct product_job &j, float sum)
{
    put(y, j.add ? wide(*y) + j.scale * sum : j.scale * sum);
}

__device__ static inline void y_put(const struct product_job &j, int row, int column, float sum)
{
    size_t at = (size_t)row * j.ldy + column;
    if (j.y.dtype == OPS_F32)
        y_put_to((float *)j.y.p + at, j, sum);
    else
        y_put_to((bf16 *)j.y.p + at, j, sum);
}

/* One 64 x 64 tile of y over k = from .. to - 1, from being a multiple of PIECE. */
struct product_tile {
    struct product_job j;
    int row, column;
};

template <bool TURNED>
__device__ static inline void product_load(struct share *x, struct share *w,
                                           const struct product_tile &t, int k, int to)
{
    const struct product_job &j = t.j;
    const struct act all = {(void *)j.w, OPS_F32};
    share_load(x, act_from(j.x, (size_t)t.row * j.ldx + k), j.ldx, j.rows - t.row, to - k);
    if (TURNED)
        share_load(w, act_from(all, (size_t)k * j.n + t.column), j.n, to - k, j.n - t.column);
    else
        share_load(w, act_from(all, (size_t)t.column * j.k + k), j.k, j.n - t.column, to - k);
}

template <bool TURNED>
__device__ static inline void product_step(warp_tile c, const bf16 *x, const bf16 *w)
{
    UNROLL
    for (int k = 0; k < SIDE; k += 16) {
        uint32_t a[4], b[4];
        tile_a(a, x + warp_row() * LD + k, LD);
        UNROLL
        for (int n = 0; n < 4; n += 2) {
            int column = warp_column() + 8 * n;
            if (TURNED)
                tile_b_turned(b, w + k * LD + column, LD);
            else
                tile_b(b, w + column * LD + k, LD);
            mma(c[n], a, b);
            mma(c[n + 1], a, b + 2);
        }
    }
}

template <bool TURNED>
__device__ static inline void product_sum(warp_tile sum, const struct product_tile &t, int from,
                                          int to)
{
    __shared__ __align__(16) bf16 x[SIDE * LD], w[SIDE * LD];
    bool wanted = t.row + warp_row() < t.j.rows && t.column + warp_column() < t.j.n;
    struct share next_x, next_w;
    warp_tile piece;
    clear(piece);
    clear(sum);
    product_load<TURNED>(&next_x, &next_w, t, from, to);
    for (int k = from; k < to; k += SIDE) {
        share_put(x, &next_x);
        share_put(w, &next_w);
        __syncthreads();
        if (k + SIDE < to) product_load<TURNED>(&next_x, &next_w, t, k + SIDE, to);
        if (wanted) product_step<TURNED>(piece, x, w);
        if ((k + SIDE) % PIECE == 0 || k + SIDE >= to) {
            add(sum, piece);
            clear(piece);
        }
        __syncthreads();
    }
}

template <bool TURNED>
__global__ static void __launch_bounds__(THREADS, 2)
    product_kernel(const struct product_job *jobs, int count, float *pieces)
{
    struct product_tile t;
    t.j = jobs[job_of(jobs, count, blockIdx.x)];
    int tile = blockIdx.x - t.j.first, across = ceil_div(t.j.n, SIDE);
    t.row = tile / across * SIDE;
    t.column = tile % across * SIDE;
    int from = blockIdx.y * PIECE, to = pieces ? min(from + PIECE, t.j.k) : t.j.k;
    warp_tile sum;
    product_sum<TURNED>(sum, t, from, to);
    UNROLL
    for (int n = 0; n < 4; n++)
        UNROLL
        for (int i = 0; i < 4; i++) {
            int r = t.row + warp_row() + lane_group() + i / 2 * 8;
            int c = t.column + warp_column() + 8 * n + 2 * lane_pair() + i % 2;
            if (r >= t.j.rows || c >= t.j.n) continue;
            if (pieces)
                pieces[t.j.pieces + ((size_t)blockIdx.y * t.j.rows + r) * t.j.n + c] = sum[n][i];
            else
                y_put(t.j, r, c, sum[n][i]);
        }
}

/* Adds the pieces of one tile of y. */
__global__ static void pieces_kernel(const struct product_job *jobs, int count, const float *pieces)
{
    struct product_job j = jobs[job_of(jobs, count, blockIdx.x)];
    int tile = blockIdx.x - j.first, across = ceil_div(j.n, SIDE);
    int row = tile / across * SIDE, column = tile % across * SIDE;
    for (int i = threadIdx.x; i < SIDE * SIDE; i += blockDim.x) {
        int r = row + i / SIDE, c = column + i % SIDE;
        if (r >= j.rows || c >= j.n) continue;
        float sum = 0;
        for (int p = 0; p * PIECE < j.k; p++)
            sum += pieces[j.pieces + ((size_t)p * j.rows + r) * j.n + c];
        y_put(j, r, c, sum);
    }
}

/* Jobs of one launch: all turned or none, all with the same k or with no more than one piece. */
struct product_list {
    std::vector<struct product_job> jobs;
    int tasks, pieces;
    size_t floats;
};

static void product_add(struct product_list *l, struct product_job j)
{
    if (!j.rows) return;
    int pieces = ceil_div(j.k, PIECE);
    assert(l->jobs.empty() || pieces == l->pieces);
    j.first = l->tasks;
    j.pieces = l->floats;
    l->pieces = pieces;
    l->tasks += ceil_div(j.rows, SIDE) * ceil_div(j.n, SIDE);
    l->floats += (size_t)pieces * j.rows * j.n;
    l->jobs.push_back(j);
}

static void product_run(struct device *d, const struct product_list *l, bool turned)
{
    if (l->jobs.empty()) return;
    int count = (int)l->jobs.size();
    const struct product_job *jobs = (const struct product_job *)cuda_stage(
        d, l->jobs.data(), l->jobs.size() * sizeof l->jobs[0]);
    bool split = l->pieces > 1 && l->tasks < SPLIT_TILES && l->floats <= SPLIT_FLOATS;
    float *pieces = split ? (float *)cuda_scratch(d, l->floats * sizeof(float)) : NULL;
    dim3 grid(l->tasks, split ? l->pieces : 1);
    if (turned)
        LAUNCH(d, (product_kernel<true>), grid, THREADS, 0, jobs, count, pieces);
    else
        LAUNCH(d, (product_kernel<false>), grid, THREADS, 0, jobs, count, pieces);
    if (split) LAUNCH(d, pieces_kernel, l->tasks, THREADS, 0, jobs, count, pieces);
}

/* ------------------------------------------------------------------ the way there */

/* y of the group's rows (+)= x of its rows times w. */
static struct product_job job_over(const struct lora_group *g, struct act y, int ldy, int n,
                                   struct act x, int ldx, int k, const float *w)
{
    struct product_job j = {};
    j.y = act_from(y, (size_t)g->row * ldy);
    j.x = act_from(x, (size_t)g->row * ldx);
    j.w = w;
    j.ldy = ldy;
    j.ldx = ldx;
    j.rows = g->rows;
    j.n = n;
    j.k = k;
    j.scale = 1.0f;
    return j;
}

void cuda_project(struct device *d, struct act x, int rows, const struct projection *p, int count)
{
    struct product_list down = {}, up = {};
    assert(act_valid(x));
    for (int i = 0; i < count; i++) {
        struct act u = act_f32(p[i].u);
        assert(act_valid(p[i].y));
        for (const struct lora_group *g = p[i].groups; g < p[i].groups + p[i].count; g++) {
            assert(g->rank >= 1 && g->rank <= OPS_RANK_MAX);
            struct product_job j = job_over(g, u, p[i].ldu, g->rank, x, p[i].in, p[i].in, g->a);
            j.scale = g->scale;
            product_add(&down, j);
            j = job_over(g, p[i].y, p[i].out, p[i].out, u, p[i].ldu, g->rank, g->b);
            j.add = true;
            product_add(&up, j);
        }
    }
    product_run(d, &down, false);
    for (int i = 0; i < count; i++)
        if (p[i].w) cuda_gemm(d, p[i].y, x, rows, p[i].w, p[i].add);
    product_run(d, &up, false);
}

/* ------------------------------------------------------------------ gradients */

/* grad [height, width] += sum over blocks of left^T right, left [rows, ldl], right [rows, ldr] */
struct outer_job {
    float *grad;
    struct act left, right;
    int ldl, ldr, height, width;
    int block, block_count; /* blocks[block] is the first row of the first */
    int first;              /* task: a tile of grad */
};

struct outer_tile {
    struct outer_job j;
    const int *blocks; /* of this job */
    int row, column;
};

__device__ static inline void outer_load(struct share *left, struct share *right,
                                         const struct outer_tile &t, int block)
{
    int row = t.blocks[block], rows = t.blocks[block + 1] - row;
    share_load(left, act_from(t.j.left, (size_t)row * t.j.ldl + t.row), t.j.ldl, rows,
               t.j.height - t.row);
    share_load(right, act_from(t.j.right, (size_t)row * t.j.ldr + t.column), t.j.ldr, rows,
               t.j.width - t.column);
}

/* c [64, 64] = left [rows, 64]^T right [rows, 64]; a chain over the rows. */
__device__ static inline void outer_step(warp_tile c, const bf16 *left, const bf16 *right, int rows)
{
    for (int k = 0; k < rows; k += 16) {
        uint32_t a[4], b[4];
        tile_a_turned(a, left + k * LD + warp_row(), LD);
        UNROLL
        for (int n = 0; n < 4; n += 2) {
            tile_b_turned(b, right + k * LD + warp_column() + 8 * n, LD);
            mma(c[n], a, b);
            mma(c[n + 1], a, b + 2);
        }
    }
}

/* Calls fn(number of the gradient, its place) for those of this lane that are there. */
template <class F> __device__ static inline void each_of(warp_tile sum, const struct outer_tile &t,
                                                         const F &fn)
{
    UNROLL
    for (int n = 0; n < 4; n++)
        UNROLL
        for (int i = 0; i < 4; i++) {
            int r = t.row + warp_row() + lane_group() + i / 2 * 8;
            int c = t.column + warp_column() + 8 * n + 2 * lane_pair() + i % 2;
            if (r < t.j.height && c < t.j.width)
                fn(&sum[n][i], t.j.grad + (size_t)r * t.j.width + c);
        }
}

__global__ static void __launch_bounds__(THREADS, 2)
    outer_kernel(const struct outer_job *jobs, int count, const int *blocks)
{
    __shared__ __align__(16) bf16 left[SIDE * LD], right[SIDE * LD];
    struct outer_tile t;
    t.j = jobs[job_of(jobs, count, blockIdx.x)];
    t.blocks = blocks + t.j.block;
    int tile = blockIdx.x - t.j.first, across = ceil_div(t.j.width, SIDE);
    t.row = tile / across * SIDE;
    t.column = tile % across * SIDE;
    bool wanted = t.row + warp_row() < t.j.height && t.column + warp_column() < t.j.width;
    struct share next_left, next_right;
    warp_tile sum;
    clear(sum);
    each_of(sum, t, [](float *s, const float *grad) { *s = *grad; });
    outer_load(&next_left, &next_right, t, 0);
    for (int b = 0; b < t.j.block_count; b++) {
        share_put(left, &next_left);
        share_put(right, &next_right);
        __syncthreads();
        if (b + 1 < t.j.block_count) outer_load(&next_left, &next_right, t, b + 1);
        if (wanted) {
            warp_tile piece;
            clear(piece);
            outer_step(piece, left, right, t.blocks[b + 1] - t.blocks[b]);
            add(sum, piece);
        }
        __syncthreads();
    }
    each_of(sum, t, [](const float *s, float *grad) { *grad = *s; });
}

struct outer_list {
    std::vector<struct outer_job> jobs;
    std::vector<int> blocks;
    int tasks;
};

static void outer_add(struct outer_list *l, struct outer_job j)
{
    j.first = l->tasks;
    l->tasks += ceil_div(j.height, SIDE) * ceil_div(j.width, SIDE);
    l->jobs.push_back(j);
}

/* Adds the group's blocks to the list; says where they begin. */
static int blocks_add(struct outer_list *l, const struct lora_group *g)
{
    int begin = (int)l->blocks.size();
    for (int b = 0; b < g->block_count; b++)
        assert(g->blocks[b + 1] >= g->blocks[b] && g->blocks[b + 1] - g->blocks[b] <= SIDE);
    l->blocks.insert(l->blocks.end(), g->blocks, g->blocks + g->block_count + 1);
    return begin;
}

static void outer_run(struct device *d, const struct outer_list *l)
{
    if (l->jobs.empty()) return;
    const struct outer_job *jobs = (const struct outer_job *)cuda_stage(
        d, l->jobs.data(), l->jobs.size() * sizeof l->jobs[0]);
    const int *blocks =
        (const int *)cuda_stage(d, l->blocks.data(), l->blocks.size() * sizeof l->blocks[0]);
    LAUNCH(d, outer_kernel, l->tasks, THREADS, 0, jobs, (int)l->jobs.size(), blocks);
}

/* ------------------------------------------------------------------ the way back */

void cuda_project_back(struct device *d, struct act dx, struct act dy, struct act x, int rows,
                       const struct projection_back *p)
{
    struct product_list down = {}, up = {};
    struct outer_list outers = {};
    struct act u = act_f32(p->u), du = act_f32(p->du);
    bool wants_dx = p->part != BACK_GRADS, wants_grads = p->part != BACK_DX;
    assert(act_valid(dy) && (!dx.p || act_valid(dx)) && (!wants_grads || act_valid(x)));
    static_assert(OPS_KV_BLOCK <= SIDE, "a block of the datum law fits a tile");
    for (const struct lora_group *g = p->groups; g < p->groups + p->count; g++) {
        assert(g->rank >= 1 && g->rank <= OPS_RANK_MAX);
        struct product_job j = job_over(g, du, p->ldu, g->rank, dy, p->out, p->out, g->b);
        j.scale = g->scale;
        if (wants_dx) product_add(&down, j);
        if (dx.p && wants_dx) {
            j = job_over(g, dx, p->in, p->in, du, p->ldu, g->rank, g->a);
            j.add = true;
            product_add(&up, j);
        }
        if (!g->block_count || !wants_grads) continue;
        int block = blocks_add(&outers, g);
        outer_add(&outers, {g->grad_a, du, x, p->ldu, p->in, g->rank, p->in, block,
                            g->block_count, 0});
        outer_add(&outers, {g->grad_b, dy, u, p->out, p->ldu, p->out, g->rank, block,
                            g->block_count, 0});
    }
    product_run(d, &down, true);
    if (dx.p && p->w && wants_dx) cuda_gemm(d, dx, dy, rows, p->w, p->add);
    product_run(d, &up, true);
    outer_run(d, &outers);
}

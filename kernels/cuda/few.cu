/* few.cu - products of few rows, where reading the weights is what takes the time.
 *
 * A warp owns 8 or 16 rows of w and takes them once from end to end, as the B of tensor cores; x, as
 * their A, is shared by the block's warps.  Both come in chunks of k through a ring of stages in
 * shared memory, all but one of which are on their way at any time: some 22 to 33 KiB of w a block.
 *
 * Each output is one chain from k = 0 up, in steps of 16, whatever the number of rows: k is never
 * split, and blocks share out the outputs alone.  So a row's bits are its own.  Whether they are those of
 * cuBLASLt too is for few_trial.cu to find out. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/mma.h"

#define BLOCKS 128 /* enough to keep all processors busy; with more, blocks get more warps */
#define STEP   32  /* of k, between two looks into shared memory: two steps of tensor cores */

/* ROWS of x (16, 32 or 64), of which some may not be there. */
template <int ROWS, int WARPS> struct few_shape {
    static const int tiles = ROWS / 16;           /* A */
    static const int columns = ROWS == 16 ? 1 : 2; /* B of a warp, 8 rows of w each */
    static const int own = 8 * columns, all = ROWS + WARPS * own;
    static const int chunk = ROWS == 16 ? 128 : 64; /* of k */
    static const int ld = chunk + TILE_PAD;
    static const int stages = WARPS == 4 ? 5 : WARPS == 2 ? 8 : 12;
    static const int stage = all * ld; /* x, then each warp's rows of w */
    static const int threads = WARPS * WARP;
    static const size_t shared = stages * stage * sizeof(bf16);
};

/* Chunk number `chunk` of the rows from `from` on, of which `there` are there, goes to a stage, with zeros
 * beyond k.  Where there is no row anything may stand: it gets into outputs that nobody writes. */
template <class S, int ROWS>
__device__ static inline void few_fetch(bf16 *to, const bf16 *from, int ld, int there, int chunk, int k)
{
    const int pieces = S::chunk / 8; /* of a row, 16 bytes each */
    UNROLL
    for (int i = 0; i < ROWS * pieces / S::threads; i++) {
        int at = threadIdx.x + i * S::threads, row = at / pieces, c = at % pieces * 8;
        bf16 *piece = to + row * S::ld + c;
        if (row >= there) continue;
        if (chunk * S::chunk + c < k)
            copy_16(piece, from + (size_t)row * ld + chunk * S::chunk + c);
        else
            *(uint4 *)piece = make_uint4(0, 0, 0, 0);
    }
}

/* What a warp takes out of shared memory for STEP of k. */
template <class S> struct few_step {
    uint32_t a[2][S::tiles][4], b[2][2 * S::columns];
};

template <class S>
__device__ static inline void few_take(struct few_step<S> *s, const bf16 *x, const bf16 *w)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        UNROLL
        for (int i = 0; i < S::tiles; i++)
            tile_a(s->a[half][i], x + i * 16 * S::ld + 16 * half, S::ld);
        if constexpr (S::columns == 2) tile_b(s->b[half], w + 16 * half, S::ld);
    }
    if constexpr (S::columns == 1) tile_b_on(s->b[0], s->b[1], w, S::ld);
}

template <class S, bool BACK>
__device__ static inline void few_multiply(float c[S::tiles][S::columns][4], const few_step<S> &s)
{
    UNROLL
    for (int half = 0; half < 2; half++)
        UNROLL
        for (int i = 0; i < S::tiles; i++)
            UNROLL
            for (int j = 0; j < S::columns; j++)
                mma(c[i][j], s.a[BACK ? 1 - half : half][i], s.b[BACK ? 1 - half : half] + 2 * j);
}

/* A chunk.  What the next step takes is on its way while this one multiplies. */
template <class S, bool BACK>
__device__ static inline void few_chunk(float c[S::tiles][S::columns][4], const bf16 *x, const bf16 *w)
{
    const int steps = S::chunk / STEP;
    few_step<S> s[2];
    few_take<S>(&s[0], x + (BACK ? steps - 1 : 0) * STEP, w + (BACK ? steps - 1 : 0) * STEP);
    UNROLL
    for (int i = 0; i < steps; i++) {
        int next = (BACK ? steps - 2 - i : i + 1) * STEP;
        if (i + 1 < steps) few_take<S>(&s[(i + 1) % 2], x + next, w + next);
        few_multiply<S, BACK>(c, s[i % 2]);
    }
}

/* Rounded as a library does it, subnormals and all. */
__device__ static inline void few_put(const struct blas_product &p, int row, int n, float sum)
{
    size_t at = (size_t)row * p.ldy + n;
    if (row >= p.m || n >= p.n) return;
    if (p.y_dtype == OPS_F32) {
        float *y = (float *)p.y + at;
        *y = p.add ? *y + sum : sum;
    } else {
        bf16 *y = (bf16 *)p.y + at;
        *y = __float2bfloat16_rn(p.add ? __bfloat162float(*y) + sum : sum);
    }
}

/* BACK: the chain goes from the end of k to its beginning, which the trial wants for comparison. */
template <int ROWS, int WARPS, bool BACK>
__global__ static void __launch_bounds__(WARPS *WARP) few_kernel(struct blas_product p)
{
    typedef few_shape<ROWS, WARPS> S;
    SHARED_DYNAMIC(bf16, ring);
    int first = blockIdx.x * WARPS * S::own, warp = threadIdx.x / WARP;
    int chunks = ceil_div(p.k, S::chunk);
    const bf16 *x = (const bf16 *)p.x, *w = (const bf16 *)p.w + (size_t)first * p.ldw;
    float c[S::tiles][S::columns][4] = {};
    auto fetch = [&](int i) {
        bf16 *to = ring + i % S::stages * S::stage;
        int chunk = BACK ? chunks - 1 - i : i;
        if (i < chunks) {
            few_fetch<S, ROWS>(to, x, p.ldx, p.m, chunk, p.k);
            few_fetch<S, WARPS * S::own>(to + ROWS * S::ld, w, p.ldw, p.n - first, chunk, p.k);
        }
        copy_commit();
    };
    for (int i = 0; i < S::stages - 1; i++)
        fetch(i);
    for (int i = 0; i < chunks; i++) {
        copy_wait<S::stages - 2>();
        __syncthreads(); /* the chunk is there for all, and all are done with the one before */
        fetch(i + S::stages - 1);
        const bf16 *stage = ring + i % S::stages * S::stage;
        few_chunk<S, BACK>(c, stage, stage + (ROWS + warp * S::own) * S::ld);
    }
    copy_wait<0>();
    UNROLL
    for (int i = 0; i < S::tiles; i++)
        UNROLL
        for (int j = 0; j < S::columns; j++)
            UNROLL
            for (int v = 0; v < 4; v++)
                few_put(p, 16 * i + lane_group() + v / 2 * 8,
                        first + warp * S::own + 8 * j + 2 * lane_pair() + v % 2, c[i][j][v]);
}

/* ------------------------------------------------------------------ the launch */

/* Not LAUNCH: the product as a whole is what was asked for and noted. */
template <int ROWS, int WARPS, bool BACK>
static void few_launch_now(struct device *d, const struct blas_product *p)
{
    typedef few_shape<ROWS, WARPS> S;
    const cuda_launch<struct blas_product> l = {few_kernel<ROWS, WARPS, BACK>,
                                                "few_kernel",
                                                (unsigned)ceil_div(p->n, WARPS * S::own),
                                                (unsigned)S::threads,
                                                S::shared,
                                                {*p}};
    cuda_launch_run(d, &l);
}

template <int ROWS, bool BACK> static void few_rows_run(struct device *d, const struct blas_product *p)
{
    int blocks = ceil_div(p->n, few_shape<ROWS, 1>::own);
    if (blocks >= 4 * BLOCKS)
        few_launch_now<ROWS, 4, BACK>(d, p);
    else if (blocks >= 2 * BLOCKS)
        few_launch_now<ROWS, 2, BACK>(d, p);
    else
        few_launch_now<ROWS, 1, BACK>(d, p);
}

bool few_fits(const struct blas_product *p)
{
    return p->m > 0 && p->m <= FEW_ROWS && p->n > 0 && p->k > 0 && p->dtype == OPS_BF16 && !p->turned;
}

void few_run(struct device *d, const struct blas_product *p)
{
    if (p->m <= 16)
        few_rows_run<16, false>(d, p);
    else if (p->m <= 32)
        few_rows_run<32, false>(d, p);
    else
        few_rows_run<64, false>(d, p);
}

void few_run_backwards(struct device *d, const struct blas_product *p)
{
    few_rows_run<FEW_ROWS, true>(d, p);
}

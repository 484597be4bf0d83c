/* rows.cu - what is done to each row by itself: gather, norms, rotation, SwiGLU. */
#include "kernels/cuda/act.cuh"

#define THREADS 256

/* ------------------------------------------------------------------ gather and scatter */

template <class Y, class T>
__global__ static void gather_kernel(Y *y, const T *table, const int32_t *ids, int width)
{
    size_t row = blockIdx.x, from = (size_t)ids[row];
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        put(&y[row * width + i], table[from * width + i]);
}

__global__ static void scatter_kernel(float *y, const float *x, const int32_t *index, int width)
{
    size_t row = blockIdx.x, to = (size_t)index[row];
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[to * width + i] = x[row * width + i];
}

static const int32_t *stage_ids(struct device *d, const int32_t *ids, int count)
{
    return (const int32_t *)cuda_stage(d, ids, (size_t)count * sizeof *ids);
}

void cuda_gather(struct device *d, struct act y, struct act table, const int32_t *ids, int rows,
                 int width)
{
    const int32_t *there = stage_ids(d, ids, rows);
    assert(act_is(y, OPS_F32) || (act_is(y, OPS_BF16) && act_is(table, OPS_BF16)));
    if (act_is(table, OPS_F32))
        LAUNCH(d, (gather_kernel<float, float>), rows, THREADS, 0, (float *)y.p,
               (const float *)table.p, there, width);
    else if (y.dtype == OPS_F32)
        LAUNCH(d, (gather_kernel<float, bf16>), rows, THREADS, 0, (float *)y.p,
               (const bf16 *)table.p, there, width);
    else
        LAUNCH(d, (gather_kernel<bf16, bf16>), rows, THREADS, 0, (bf16 *)y.p,
               (const bf16 *)table.p, there, width);
}

void cuda_scatter(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                  int width)
{
    const int32_t *there = stage_ids(d, index, rows);
    LAUNCH(d, scatter_kernel, rows, THREADS, 0, y, x, there, width);
}

/* ------------------------------------------------------------------ RMSNorm */

struct norm_args {
    struct act y, dy, x; /* y: or dx */
    const float *gain;
    int rows, width;
    float eps;
    bool add;
    bool aligned; /* four numbers of a row may be read at once */

    bool operator==(const norm_args &) const = default;
};

/* A row belongs to a warp where it is short (a head), to a block of its own where it is long.  A
 * thread has four numbers, then the four a step further. */
#define NARROW 1024

struct row_place {
    size_t row;
    int first, step; /* of this thread's numbers */
};

template <bool LONG> __device__ static inline struct row_place place_of_row()
{
    if (LONG) return {blockIdx.x, (int)threadIdx.x * 4, THREADS * 4};
    return {(size_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP,
            (int)threadIdx.x % WARP * 4, WARP * 4};
}

template <bool LONG> __device__ static inline float row_sum(float v)
{
    return LONG ? block_sum(v) : warp_sum(v);
}

/* Four numbers from i on of a row of a's width. */
template <class T> __device__ static inline float4 row_4(const T *row, int i, const norm_args &a)
{
    return load_4(row + i, a.width - i, a.aligned);
}

__device__ static inline float4 times_4(float4 v, float4 w)
{
    return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
}

/* sum + v w, one after the other */
__device__ static inline float dot_4(float4 v, float4 w, float sum)
{
    return fmaf(v.w, w.w, fmaf(v.z, w.z, fmaf(v.y, w.y, fmaf(v.x, w.x, sum))));
}

template <bool LONG, class T>
__device__ static inline float inverse_rms(const T *x, const norm_args &a)
{
    const struct row_place p = place_of_row<LONG>();
    float sum = 0;
    for (int i = p.first; i < a.width; i += p.step) {
        float4 v = row_4(x, i, a);
        sum = dot_4(v, v, sum);
    }
    return 1.0f / sqrtf(row_sum<LONG>(sum) / (float)a.width + a.eps);
}

template <bool LONG, class Y, class X> __global__ static void rms_norm_kernel(const norm_args a)
{
    const struct row_place p = place_of_row<LONG>();
    if (p.row >= (size_t)a.rows) return; /* a whole warp */
    const X *x = (const X *)a.x.p + p.row * a.width;
    Y *y = (Y *)a.y.p + p.row * a.width;
    float inv = inverse_rms<LONG>(x, a);
    for (int i = p.first; i < a.width; i += p.step) {
        float4 v = times_4(row_4(x, i, a), make_float4(inv, inv, inv, inv));
        store_4(y + i, times_4(v, row_4(a.gain, i, a)), a.width - i, a.aligned);
    }
}

/* With h = x inv and s = dy gain:  dx = inv (s - h mean(s h)) */
__device__ static inline float norm_slope(float x, float s, float inv, float mean)
{
    return inv * (s - x * inv * mean);
}

template <bool LONG, class T> __global__ static void rms_norm_back_kernel(const norm_args a)
{
    const struct row_place p = place_of_row<LONG>();
    if (p.row >= (size_t)a.rows) return;
    size_t at = p.row * a.width;
    const T *x = (const T *)a.x.p + at, *dy = (const T *)a.dy.p + at;
    T *dx = (T *)a.y.p + at;
    float inv = inverse_rms<LONG>(x, a), sum = 0;
    for (int i = p.first; i < a.width; i += p.step)
        sum = dot_4(row_4(x, i, a), times_4(row_4(dy, i, a), row_4(a.gain, i, a)), sum);
    float mean = row_sum<LONG>(sum) * inv / (float)a.width;
    for (int i = p.first; i < a.width; i += p.step) {
        float4 v = row_4(x, i, a), s = times_4(row_4(dy, i, a), row_4(a.gain, i, a));
        float4 back = make_float4(norm_slope(v.x, s.x, inv, mean), norm_slope(v.y, s.y, inv, mean),
                                  norm_slope(v.z, s.z, inv, mean), norm_slope(v.w, s.w, inv, mean));
        if (a.add) {
            float4 to = row_4(dx, i, a);
            back = make_float4(to.x + back.x, to.y + back.y, to.z + back.z, to.w + back.w);
        }
        store_4(dx + i, back, a.width - i, a.aligned);
    }
}

typedef void norm_kernel(norm_args);

template <bool LONG> static norm_kernel *norm_of(enum ops_dtype y, enum ops_dtype x)
{
    if (x == OPS_F32)
        return y == OPS_F32 ? rms_norm_kernel<LONG, float, float>
                            : rms_norm_kernel<LONG, bf16, float>;
    return y == OPS_F32 ? rms_norm_kernel<LONG, float, bf16> : rms_norm_kernel<LONG, bf16, bf16>;
}

template <bool LONG> static norm_kernel *norm_back_of(enum ops_dtype dtype)
{
    return dtype == OPS_F32 ? rms_norm_back_kernel<LONG, float> : rms_norm_back_kernel<LONG, bf16>;
}

static bool norm_aligned(const norm_args &a)
{
    return act_aligned(a.y, a.width) && act_aligned(a.x, a.width) &&
           act_aligned(act_f32(a.gain), a.width);
}

static unsigned norm_blocks(int rows, int width)
{
    return (unsigned)(width > NARROW ? rows : ceil_div(rows, THREADS / WARP));
}

void cuda_rms_norm(struct device *d, struct act y, struct act x, const float *gain, int rows,
                   int width, float eps)
{
    norm_args a = {y, {}, x, gain, rows, width, eps, false, false};
    assert(act_valid(y) && act_valid(x));
    a.aligned = norm_aligned(a);
    cuda_launch_ask(d, "rms_norm_kernel",
                    width > NARROW ? norm_of<true>(y.dtype, x.dtype) : norm_of<false>(y.dtype, x.dtype),
                    norm_blocks(rows, width), THREADS, 0, a);
}

void cuda_rms_norm_back(struct device *d, struct act dx, struct act dy, struct act x,
                        const float *gain, int rows, int width, float eps, bool add)
{
    norm_args a = {dx, dy, x, gain, rows, width, eps, add, false};
    assert(act_is(dy, dx.dtype) && act_is(x, dx.dtype));
    a.aligned = norm_aligned(a) && act_aligned(dy, width);
    cuda_launch_ask(d, "rms_norm_back_kernel",
                    width > NARROW ? norm_back_of<true>(x.dtype) : norm_back_of<false>(x.dtype),
                    norm_blocks(rows, width), THREADS, 0, a);
}

/* ------------------------------------------------------------------ rotation */

#define ROPE_ROWS 4 /* of a segment, a block */

struct rope_args {
    struct act x;
    const float *cosine, *sine;
    const struct kv_seg *segs;
    int heads, half;
    float sign; /* -1: turns back */
    bool aligned;

    bool operator==(const rope_args &) const = default;
};

/* A thread has four pairs of a head. */
template <class T> __global__ static void rope_kernel(const rope_args a)
{
    const struct kv_seg *g = &a.segs[blockIdx.x];
    int from = (int)blockIdx.y * ROPE_ROWS, rows = min(g->rows - from, ROPE_ROWS);
    int fours = ceil_div(a.half, 4);
    for (int i = threadIdx.x; i < rows * a.heads * fours; i += blockDim.x) {
        int row = from + i / fours / a.heads, head = i / fours % a.heads, k = i % fours * 4;
        int count = a.half - k;
        size_t at = (size_t)(g->start + row) * a.half + k;
        T *x = (T *)a.x.p + ((size_t)(g->row + row) * a.heads + head) * 2 * a.half + k;
        float4 first = load_4(x, count, a.aligned), second = load_4(x + a.half, count, a.aligned);
        float4 c = load_4(a.cosine + at, count, a.aligned), s = load_4(a.sine + at, count, a.aligned);
        s = make_float4(a.sign * s.x, a.sign * s.y, a.sign * s.z, a.sign * s.w);
        store_4(x,
                make_float4(first.x * c.x - second.x * s.x, first.y * c.y - second.y * s.y,
                            first.z * c.z - second.z * s.z, first.w * c.w - second.w * s.w),
                count, a.aligned);
        store_4(x + a.half,
                make_float4(second.x * c.x + first.x * s.x, second.y * c.y + first.y * s.y,
                            second.z * c.z + first.z * s.z, second.w * c.w + first.w * s.w),
                count, a.aligned);
    }
}

static void rope(struct device *d, struct rope_args a, const struct kv_seg *segs, int seg_count)
{
    int most = 0;
    for (int i = 0; i < seg_count; i++)
        most = max(most, segs[i].rows);
    assert(act_valid(a.x));
    a.aligned = act_aligned(a.x, a.half) && act_aligned(act_f32(a.cosine), a.half) &&
                act_aligned(act_f32(a.sine), a.half);
    a.segs = (const struct kv_seg *)cuda_stage(d, segs, (size_t)seg_count * sizeof *segs);
    LAUNCH_OF(d, a.x.dtype, rope_kernel, dim3(seg_count, ceil_div(most, ROPE_ROWS)), THREADS, 0, a);
}

void cuda_rope(struct device *d, struct act x, const float *cosine, const float *sine,
               const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    rope(d, {x, cosine, sine, NULL, heads, head_dim / 2, 1.0f, false}, segs, seg_count);
}

void cuda_rope_back(struct device *d, struct act dx, const float *cosine, const float *sine,
                    const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    rope(d, {dx, cosine, sine, NULL, heads, head_dim / 2, -1.0f, false}, segs, seg_count);
}

/* ------------------------------------------------------------------ SwiGLU */

struct swiglu_args {
    struct act y, dgate, dup, dy, gate, up; /* those of the op */
    size_t count;
    bool aligned;

    bool operator==(const swiglu_args &) const = default;
};

/* Which four numbers are the thread's; the first of them. */
__device__ static inline size_t four_of_thread(void)
{
    return ((size_t)blockIdx.x * THREADS + threadIdx.x) * 4;
}

__device__ static inline int four_count(size_t count, size_t i)
{
    return count - i < 4 ? (int)(count - i) : 4;
}

__device__ static inline float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

__device__ static inline float swiglu(float gate, float up)
{
    return gate * sigmoid(gate) * up;
}

/* dgate and dup of one number; silu' = s (1 + gate (1 - s)) */
__device__ static inline void swiglu_slopes(float *dgate, float *dup, float dy, float g, float u)
{
    float s = sigmoid(g);
    *dup = dy * (g * s);
    *dgate = dy * u * (s * fmaf(g, 1.0f - s, 1.0f));
}

template <class T> __global__ static void swiglu_kernel(const swiglu_args a)
{
    size_t i = four_of_thread();
    if (i >= a.count) return;
    int n = four_count(a.count, i);
    float4 g = load_4((const T *)a.gate.p + i, n, a.aligned);
    float4 u = load_4((const T *)a.up.p + i, n, a.aligned);
    store_4((T *)a.y.p + i,
            make_float4(swiglu(g.x, u.x), swiglu(g.y, u.y), swiglu(g.z, u.z), swiglu(g.w, u.w)), n,
            a.aligned);
}

template <class T> __global__ static void swiglu_back_kernel(const swiglu_args a)
{
    size_t i = four_of_thread();
    if (i >= a.count) return;
    int n = four_count(a.count, i);
    float4 g = load_4((const T *)a.gate.p + i, n, a.aligned), dg;
    float4 u = load_4((const T *)a.up.p + i, n, a.aligned), du;
    float4 dy = load_4((const T *)a.dy.p + i, n, a.aligned);
    swiglu_slopes(&dg.x, &du.x, dy.x, g.x, u.x);
    swiglu_slopes(&dg.y, &du.y, dy.y, g.y, u.y);
    swiglu_slopes(&dg.z, &du.z, dy.z, g.z, u.z);
    swiglu_slopes(&dg.w, &du.w, dy.w, g.w, u.w);
    store_4((T *)a.dgate.p + i, dg, n, a.aligned);
    store_4((T *)a.dup.p + i, du, n, a.aligned);
}

static unsigned swiglu_blocks(size_t count)
{
    return (unsigned)((count + 4 * THREADS - 1) / (4 * THREADS));
}

void cuda_swiglu(struct device *d, struct act y, struct act gate, struct act up, size_t count)
{
    swiglu_args a = {y, {}, {}, {}, gate, up, count, false};
    assert(act_is(gate, y.dtype) && act_is(up, y.dtype));
    a.aligned = act_aligned(y, 0) && act_aligned(gate, 0) && act_aligned(up, 0);
    LAUNCH_OF(d, y.dtype, swiglu_kernel, swiglu_blocks(count), THREADS, 0, a);
}

void cuda_swiglu_back(struct device *d, struct act dgate, struct act dup, struct act dy,
                      struct act gate, struct act up, size_t count)
{
    swiglu_args a = {{}, dgate, dup, dy, gate, up, count, false};
    assert(act_is(dgate, dy.dtype) && act_is(dup, dy.dtype) && act_is(gate, dy.dtype) &&
           act_is(up, dy.dtype));
    a.aligned = act_aligned(dgate, 0) && act_aligned(dup, 0) && act_aligned(dy, 0) &&
                act_aligned(gate, 0) && act_aligned(up, 0);
    LAUNCH_OF(d, dy.dtype, swiglu_back_kernel, swiglu_blocks(count), THREADS, 0, a);
}

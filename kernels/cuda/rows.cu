/* rows.cu - what is done to each row by itself: gather, norms, rotation, SwiGLU. */
#include "kernels/cuda/cuda.h"

#define THREADS 256

/* ------------------------------------------------------------------ gather and scatter */

__device__ static inline float wide(float f)
{
    return f;
}

__device__ static inline float wide(uint16_t half)
{
    return __uint_as_float((unsigned)half << 16);
}

template <class T>
__global__ static void gather_kernel(float *y, const T *table, const int32_t *ids, int width)
{
    size_t row = blockIdx.x, from = (size_t)ids[row];
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[row * width + i] = wide(table[from * width + i]);
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

void cuda_gather(struct device *d, float *y, const float *table, const int32_t *ids, int rows,
                 int width)
{
    const int32_t *there = stage_ids(d, ids, rows);
    LAUNCH(d, gather_kernel<float>, rows, THREADS, 0, y, table, there, width);
}

void cuda_gather_bf16(struct device *d, float *y, const uint16_t *table, const int32_t *ids,
                      int rows, int width)
{
    const int32_t *there = stage_ids(d, ids, rows);
    LAUNCH(d, gather_kernel<uint16_t>, rows, THREADS, 0, y, table, there, width);
}

void cuda_scatter(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                  int width)
{
    const int32_t *there = stage_ids(d, index, rows);
    LAUNCH(d, scatter_kernel, rows, THREADS, 0, y, x, there, width);
}

/* ------------------------------------------------------------------ RMSNorm */

struct norm_args {
    float *y; /* or dx */
    const float *dy, *x, *gain;
    int rows, width;
    float eps;
    bool add;

    bool operator==(const norm_args &) const = default;
};

/* A row belongs to a warp where it is short (a head), to a block of its own where it is long. */
#define NARROW 1024

struct row_place {
    size_t row;
    int first, step; /* of this thread's elements */
};

template <bool LONG> __device__ static inline struct row_place place_of_row()
{
    if (LONG) return {blockIdx.x, (int)threadIdx.x, THREADS};
    return {(size_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, (int)threadIdx.x % WARP, WARP};
}

template <bool LONG> __device__ static inline float row_sum(float v)
{
    return LONG ? block_sum(v) : warp_sum(v);
}

template <bool LONG> __device__ static inline float inverse_rms(const float *x, const norm_args &a)
{
    const struct row_place p = place_of_row<LONG>();
    float sum = 0;
    for (int i = p.first; i < a.width; i += p.step)
        sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(row_sum<LONG>(sum) / (float)a.width + a.eps);
}

template <bool LONG> __global__ static void rms_norm_kernel(const norm_args a)
{
    const struct row_place p = place_of_row<LONG>();
    if (p.row >= (size_t)a.rows) return; /* a whole warp */
    const float *x = a.x + p.row * a.width;
    float *y = a.y + p.row * a.width, inv = inverse_rms<LONG>(x, a);
    for (int i = p.first; i < a.width; i += p.step)
        y[i] = x[i] * inv * a.gain[i];
}

/* With h = x inv and s = dy gain:  dx = inv (s - h mean(s h)) */
template <bool LONG> __global__ static void rms_norm_back_kernel(const norm_args a)
{
    const struct row_place p = place_of_row<LONG>();
    if (p.row >= (size_t)a.rows) return;
    const float *x = a.x + p.row * a.width, *dy = a.dy + p.row * a.width;
    float *dx = a.y + p.row * a.width, inv = inverse_rms<LONG>(x, a), sum = 0;
    for (int i = p.first; i < a.width; i += p.step)
        sum = fmaf(x[i], dy[i] * a.gain[i], sum);
    float mean = row_sum<LONG>(sum) * inv / (float)a.width;
    for (int i = p.first; i < a.width; i += p.step) {
        float back = inv * (dy[i] * a.gain[i] - x[i] * inv * mean);
        dx[i] = a.add ? dx[i] + back : back;
    }
}

void cuda_rms_norm(struct device *d, float *y, const float *x, const float *gain, int rows,
                   int width, float eps)
{
    const norm_args a = {y, NULL, x, gain, rows, width, eps, false};
    if (width > NARROW)
        LAUNCH(d, rms_norm_kernel<true>, rows, THREADS, 0, a);
    else
        LAUNCH(d, rms_norm_kernel<false>, ceil_div(rows, THREADS / WARP), THREADS, 0, a);
}

void cuda_rms_norm_back(struct device *d, float *dx, const float *dy, const float *x,
                        const float *gain, int rows, int width, float eps, bool add)
{
    const norm_args a = {dx, dy, x, gain, rows, width, eps, add};
    if (width > NARROW)
        LAUNCH(d, rms_norm_back_kernel<true>, rows, THREADS, 0, a);
    else
        LAUNCH(d, rms_norm_back_kernel<false>, ceil_div(rows, THREADS / WARP), THREADS, 0, a);
}

/* ------------------------------------------------------------------ rotation */

#define ROPE_ROWS 4 /* of a segment, a block */

struct rope_args {
    float *x;
    const float *cosine, *sine;
    const struct kv_seg *segs;
    int heads, half;
    float sign; /* -1: turns back */

    bool operator==(const rope_args &) const = default;
};

__global__ static void rope_kernel(const rope_args a)
{
    const struct kv_seg *g = &a.segs[blockIdx.x];
    int from = (int)blockIdx.y * ROPE_ROWS, rows = min(g->rows - from, ROPE_ROWS);
    for (int i = threadIdx.x; i < rows * a.heads * a.half; i += blockDim.x) {
        int row = from + i / a.half / a.heads, head = i / a.half % a.heads, k = i % a.half;
        size_t at = (size_t)(g->start + row) * a.half + k;
        float *x = a.x + ((size_t)(g->row + row) * a.heads + head) * 2 * a.half + k;
        float first = x[0], second = x[a.half], c = a.cosine[at], s = a.sign * a.sine[at];
        x[0] = first * c - second * s;
        x[a.half] = second * c + first * s;
    }
}

static void rope(struct device *d, struct rope_args a, const struct kv_seg *segs, int seg_count)
{
    int most = 0;
    for (int i = 0; i < seg_count; i++)
        most = max(most, segs[i].rows);
    a.segs = (const struct kv_seg *)cuda_stage(d, segs, (size_t)seg_count * sizeof *segs);
    LAUNCH(d, rope_kernel, dim3(seg_count, ceil_div(most, ROPE_ROWS)), THREADS, 0, a);
}

void cuda_rope(struct device *d, float *x, const float *cosine, const float *sine,
               const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    rope(d, {x, cosine, sine, NULL, heads, head_dim / 2, 1.0f}, segs, seg_count);
}

void cuda_rope_back(struct device *d, float *dx, const float *cosine, const float *sine,
                    const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    rope(d, {dx, cosine, sine, NULL, heads, head_dim / 2, -1.0f}, segs, seg_count);
}

/* ------------------------------------------------------------------ SwiGLU */

__device__ static inline float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

__global__ static void swiglu_kernel(float *y, const float *gate, const float *up, size_t count)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

__global__ static void swiglu_back_kernel(float *dgate, float *dup, const float *dy,
                                          const float *gate, const float *up, size_t count)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float g = gate[i], u = up[i], from = dy[i], s = sigmoid(g);
    dup[i] = from * (g * s);
    dgate[i] = from * u * (s * fmaf(g, 1.0f - s, 1.0f)); /* silu' = s (1 + gate (1 - s)) */
}

void cuda_swiglu(struct device *d, float *y, const float *gate, const float *up, size_t count)
{
    LAUNCH(d, swiglu_kernel, (unsigned)((count + THREADS - 1) / THREADS), THREADS, 0, y, gate, up,
           count);
}

void cuda_swiglu_back(struct device *d, float *dgate, float *dup, const float *dy,
                      const float *gate, const float *up, size_t count)
{
    LAUNCH(d, swiglu_back_kernel, (unsigned)((count + THREADS - 1) / THREADS), THREADS, 0, dgate,
           dup, dy, gate, up, count);
}

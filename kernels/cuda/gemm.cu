/* gemm.cu - frozen weights in the form that products want them in, and those products.
 *
 * A matrix [out, in] stays row-major, whichever way it is used; its rows and columns are filled up
 * with zeros to multiples of 8, so that whatever the shape every row is 16-byte aligned.  x goes
 * through scratch memory, where it is rounded to bf16 and filled up in the same way: what a product
 * finds differs between few rows and many only in their number. */
#include "kernels/cuda/blas.h"

#include <assert.h>
#include <stdlib.h>

#define FILL        8
#define CHUNK_BYTES ((size_t)32 << 20) /* of a matrix on its way to the device */
#define THREADS     256

struct packed {
    enum ops_dtype dtype; /* OPS_F32 or OPS_BF16 */
    bool turned;
    int out, in; /* as gemm sees them: y [rows, out], x [rows, in] */
    int ld;      /* of data */
    void *data;
    bool borrowed; /* data is that of the other way */
};

static size_t filled(int n)
{
    return (size_t)ceil_div(n, FILL) * FILL;
}

static size_t size_of(enum ops_dtype dtype)
{
    return dtype == OPS_F32 ? sizeof(float) : sizeof(uint16_t);
}

__device__ static inline void put(float *to, float f)
{
    *to = f;
}

__device__ static inline void put(__nv_bfloat16 *to, float f)
{
    *to = bf16_of(f);
}

/* ------------------------------------------------------------------ packing */

/* IEEE half to fp32, exact.  Subnormals are multiples of 2^-24. */
__device__ static inline float half_wide(unsigned h)
{
    unsigned exponent = h >> 10 & 31u, fraction = h & 1023u;
    unsigned bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    if (exponent == 0) bits = __float_as_uint((float)fraction * 0x1p-24f);
    return __uint_as_float(bits | (h & 0x8000u) << 16);
}

__device__ static inline float value(const void *from, enum ops_dtype dtype, size_t i)
{
    if (dtype == OPS_F32) return ((const float *)from)[i];
    unsigned half = ((const uint16_t *)from)[i];
    return dtype == OPS_BF16 ? __uint_as_float(half << 16) : half_wide(half);
}

/* to [gridDim.x, ld] = from [gridDim.x, cols] */
template <class T>
__global__ static void pack_kernel(T *to, int ld, const void *from, enum ops_dtype dtype, int cols)
{
    size_t row = blockIdx.x;
    for (int i = threadIdx.x; i < cols; i += blockDim.x)
        put(&to[row * ld + i], value(from, dtype, row * cols + i));
}

size_t cuda_packed_bytes(int out, int in, enum ops_dtype keep, bool transpose)
{
    (void)transpose;
    return filled(out) * filled(in) * size_of(keep);
}

static void pack_rows(struct device *d, const struct packed *p, const struct ops_matrix *w, int row,
                      int rows)
{
    size_t row_bytes = (size_t)w->cols * size_of(w->dtype), at = (size_t)row * p->ld;
    void *raw = cuda_buffer_get(d, &d->gemm_scratch, (size_t)rows * row_bytes);
    cuda_upload(d, raw, (const char *)w->data + (size_t)row * row_bytes, (size_t)rows * row_bytes);
    if (p->dtype == OPS_F32)
        LAUNCH(d, pack_kernel<float>, rows, THREADS, 0, (float *)p->data + at, p->ld, raw, w->dtype,
               w->cols);
    else
        LAUNCH(d, pack_kernel<__nv_bfloat16>, rows, THREADS, 0, (__nv_bfloat16 *)p->data + at, p->ld,
               raw, w->dtype, w->cols);
}

struct packed *cuda_pack(struct device *d, const struct ops_matrix *w, enum ops_dtype keep,
                         bool transpose, struct err *e)
{
    struct packed *p = (struct packed *)calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for packed weights");
        return NULL;
    }
    p->dtype = keep;
    p->turned = transpose;
    p->out = transpose ? w->cols : w->rows;
    p->in = transpose ? w->rows : w->cols;
    p->ld = (int)filled(w->cols);
    p->data = cuda_alloc(d, cuda_packed_bytes(w->rows, w->cols, keep, transpose), e);
    if (!p->data) {
        free(p);
        return NULL;
    }
    size_t most = CHUNK_BYTES / ((size_t)w->cols * size_of(w->dtype)) + 1;
    for (int row = 0; row < w->rows; row += (int)most)
        pack_rows(d, p, w, row, min(w->rows - row, (int)most));
    return p;
}

struct packed *cuda_pack_other_way(struct device *d, const struct packed *w,
                                   const struct ops_matrix *m, struct err *e)
{
    struct packed *p = (struct packed *)calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for packed weights");
        return NULL;
    }
    *p = {w->dtype, !w->turned, w->in, w->out, w->ld, w->data, true};
    return p;
}

void cuda_packed_free(struct device *d, struct packed *w)
{
    if (!w) return;
    if (!w->borrowed) cuda_release(d, w->data);
    free(w);
}

/* ------------------------------------------------------------------ the product */

/* to [gridDim.x, ld] = x [gridDim.x, width], and zeros beyond width */
template <class T> __global__ static void take_kernel(T *to, int ld, const float *x, int width)
{
    size_t row = blockIdx.x;
    for (int i = threadIdx.x; i < ld; i += blockDim.x)
        put(&to[row * ld + i], i < width ? x[row * width + i] : 0.0f);
}

void cuda_gemm(struct device *d, float *y, const float *x, int rows, const struct packed *w,
               bool add)
{
    struct blas_product p = {rows, w->out, (int)filled(w->in), w->dtype, w->turned, add,
                             NULL, w->data, y,                 0,        w->ld,     w->out};
    if (rows == 0) return;
    assert((uintptr_t)y % blas_align_y(p.ldy) == 0);
    p.ldx = p.k;
    void *taken = cuda_buffer_get(d, &d->gemm_scratch, (size_t)rows * p.ldx * size_of(w->dtype));
    if (w->dtype == OPS_F32)
        LAUNCH(d, take_kernel<float>, rows, THREADS, 0, (float *)taken, p.ldx, x, w->in);
    else
        LAUNCH(d, take_kernel<__nv_bfloat16>, rows, THREADS, 0, (__nv_bfloat16 *)taken, p.ldx, x,
               w->in);
    p.x = taken;
    cuda_ask_for(d, blas_run, p);
}

/* gemm.cu - frozen weights in the form that products want them in, and those products.
 *
 * A matrix [out, in] stays row-major, whichever way it is used; its rows and columns are filled up
 * with zeros to multiples of 8, so that whatever the shape every row is 16-byte aligned.  x is read
 * where it lies if it has the weights' type and such rows.  If not it goes through scratch memory,
 * where it is rounded to bf16 and filled up in the same way.  Either way what a product finds differs
 * between few rows and many only in their number. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/blas.h"

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
    return filled(out) * filled(in) * ops_size(keep);
}

static void pack_rows(struct device *d, const struct packed *p, const struct ops_matrix *w, int row,
                      int rows)
{
    size_t row_bytes = (size_t)w->cols * ops_size(w->dtype), at = (size_t)row * p->ld;
    void *raw = cuda_buffer_get(d, &d->gemm_scratch, (size_t)rows * row_bytes);
    cuda_upload(d, raw, (const char *)w->data + (size_t)row * row_bytes, (size_t)rows * row_bytes);
    if (p->dtype == OPS_F32)
        LAUNCH(d, pack_kernel<float>, rows, THREADS, 0, (float *)p->data + at, p->ld, raw, w->dtype,
               w->cols);
    else
        LAUNCH(d, pack_kernel<bf16>, rows, THREADS, 0, (bf16 *)p->data + at, p->ld,
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
    size_t most = CHUNK_BYTES / ((size_t)w->cols * ops_size(w->dtype)) + 1;
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
template <class T, class X> __global__ static void take_kernel(T *to, int ld, const X *x, int width)
{
    size_t row = blockIdx.x;
    for (int i = threadIdx.x; i < ld; i += blockDim.x)
        if (i < width)
            put(&to[row * ld + i], x[row * width + i]);
        else
            put(&to[row * ld + i], 0.0f);
}

/* x [rows, in] in the form that a product wants it in: rows of ld. */
static const void *take(struct device *d, struct act x, int rows, const struct packed *w, int ld)
{
    if (x.dtype == w->dtype && w->in == ld && act_aligned(x, ld)) return x.p;
    void *to = cuda_buffer_get(d, &d->gemm_scratch, (size_t)rows * ld * ops_size(w->dtype));
    if (w->dtype == OPS_F32)
        LAUNCH(d, (take_kernel<float, float>), rows, THREADS, 0, (float *)to, ld, (const float *)x.p,
               w->in);
    else if (x.dtype == OPS_F32)
        LAUNCH(d, (take_kernel<bf16, float>), rows, THREADS, 0, (bf16 *)to, ld, (const float *)x.p,
               w->in);
    else
        LAUNCH(d, (take_kernel<bf16, bf16>), rows, THREADS, 0, (bf16 *)to, ld, (const bf16 *)x.p,
               w->in);
    return to;
}

void cuda_gemm(struct device *d, struct act y, struct act x, int rows, const struct packed *w,
               bool add)
{
    struct blas_product p = {};
    assert(act_is(x, OPS_F32) || act_is(x, w->dtype));
    assert(act_is(y, OPS_F32) || act_is(y, w->dtype));
    if (rows == 0) return;
    assert((uintptr_t)y.p % blas_align_y(w->out, y.dtype) == 0);
    p.m = rows, p.n = w->out, p.k = (int)filled(w->in);
    p.dtype = w->dtype, p.y_dtype = y.dtype;
    p.turned = w->turned, p.add = add;
    p.x = take(d, x, rows, w, p.k), p.w = w->data, p.y = y.p;
    p.ldx = p.k, p.ldw = w->ld, p.ldy = w->out;
    cuda_ask_for(d, blas_run, p);
}

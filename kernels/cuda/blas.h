/* blas.h - dense products.  cuBLASLt does them (blas_lt.cu; emulation has a plain filling, blas_plain.cc)
 * or, with few rows and where bits are the same, a kernel of our own (few.cu, few_trial.cu). */
#ifndef KERNELS_CUDA_BLAS_H
#define KERNELS_CUDA_BLAS_H

#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/cuda/few.h"
}

struct blas;

struct blas *blas_create(struct err *e);
void blas_free(struct blas *b); /* NULL is fine */
/* Which library it is, as far as bits go. */
const char *blas_version(const struct blas *b);

/* y [m, n] (+)= x [m, k] w^T with w [n, k], or with `turned` x w with w [k, n].  x and w are of
 * `dtype` (OPS_F32, with no rounding of the factors, or OPS_BF16), sums are fp32, y is fp32 or, with
 * factors of bf16, perhaps bf16 as well (rounded once).  x and w and their rows are 16-byte aligned, y
 * as blas_align_y says; ld... count elements. */
struct blas_product {
    int m, n, k;
    enum ops_dtype dtype, y_dtype;
    bool turned, add;
    const void *x, *w;
    void *y;
    int ldx, ldw, ldy;

    bool operator==(const blas_product &) const = default;
};

/* Where rows can be 16-byte aligned, y has to be. */
static inline uint32_t blas_align_y(int ldy, enum ops_dtype dtype)
{
    size_t size = ops_size(dtype);
    return (size_t)ldy * size % 16 == 0 ? 16 : (uint32_t)size;
}

/* How a product is computed depends on everything but m, x, w, y; with few rows it may be another
 * kernel that makes the same additions.  A failure is kept in d. */
void blas_run(struct device *d, const struct blas_product *p);

/* cuBLASLt does it, whatever m is. */
void blas_library(struct device *d, const struct blas_product *p);

/* ------------------------------------------------------------------ few rows */

#define FEW_KINDS 256 /* of products; one more is the library's */

/* What a device knows of them; beside the library's own. */
struct few {
    enum few_by by;
    long done; /* by ours */
    int kinds;
    struct few_kind kind[FEW_KINDS];
};
struct few *blas_few(struct blas *b);

/* Whether few_run() can do it, which it then does with m from 1 to FEW_ROWS. */
bool few_fits(const struct blas_product *p);
void few_run(struct device *d, const struct blas_product *p);
/* For the trial: each sum from the end of k to its beginning. */
void few_run_backwards(struct device *d, const struct blas_product *p);

#endif

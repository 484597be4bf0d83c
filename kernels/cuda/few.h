/* few.h - dense products of few rows (few.cu): who does them, and how that was decided.
 *
 * Which of two kernels does a product changes its speed and never its bits, so nobody needs this but
 * tests and measurements: it is C, beside the table of ops.h. */
#ifndef KERNELS_CUDA_FEW_H
#define KERNELS_CUDA_FEW_H

#include "kernels/ops.h"

#define FEW_ROWS 64 /* with more, a product is cuBLASLt's */

/* How the trial of a kind of product came out (few_trial.cu).  Ours is used after the first alone. */
enum few_verdict {
    FEW_SAME,
    FEW_DIFFERENT,
    FEW_UNTOLD, /* with these weights another order of sums would not have shown */
    FEW_NO_ROOM /* for the trial, in the device's memory */
};

/* A kind of product that was wanted with few rows; see struct blas_product. */
struct few_kind {
    int n, k, ldx, ldw, ldy;
    enum ops_dtype y_dtype;
    enum few_verdict verdict;
    unsigned different; /* outputs, between ours and the library's */
    unsigned telling;   /* between the library's and those of chains that go backwards */
};

/* Who does products of few rows: whom the trial says or, to measure, one of the two whatever it says.
 * Not inside a recording, nor while one is kept whose products nobody has tried: a capture would try
 * them.  Graphs that are kept stay as they were. */
enum few_by { FEW_BY_TRIAL, FEW_BY_LIBRARY, FEW_BY_OURS };

/* y [m, n] (+)= x [m, k] w^T, x and w of bf16: struct blas_product without what is the same in all. */
struct few_product {
    int m, n, k;
    bool add;
    enum ops_dtype y_dtype;
    const void *x, *w;
    void *y;
    int ldx, ldw, ldy;
};

#ifdef __cplusplus
extern "C" {
#endif

void cuda_few_by(struct device *d, enum few_by by);
/* The kinds so far, the latest last; returns their number. */
int cuda_few_kinds(const struct device *d, const struct few_kind **kinds);
/* Products that ours has done so far, trials apart; those of a graph count once, when it is captured. */
long cuda_few_done(const struct device *d);
/* Asks for a product as gemm does. */
void cuda_few_product(struct device *d, const struct few_product *p);

#ifdef __cplusplus
}
#endif
#endif

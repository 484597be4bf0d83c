/* blas_lt.cu - products by cuBLASLt, with an algorithm that does not depend on the number of rows.
 *
 * The library's own choice looks at m, and two algorithms need not add in the same order.  So the
 * heuristic is asked once for each kind of product, at a nominal m and for the alignment that every
 * product of that kind has, and its first answer that does not split k and can do any m is kept.
 * There is no workspace: nothing can be summed across blocks through one.
 *
 * The library counts by columns: row-major y [m, n] is its matrix of n by m. */
#include "kernels/cuda/blas.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>

#define M_NOMINAL  2048
#define ANSWERS    32
#define KINDS_MAX  256 /* shapes of weights, two directions, two types of y; a model has some ten */
#define ALIGNMENT  16

struct kind {
    int n, k, ldx, ldw, ldy;
    enum ops_dtype dtype, y_dtype;
    bool turned;
    cublasLtMatmulAlgo_t algorithm;
};

struct blas {
    cublasLtHandle_t handle;
    char version[32];
    struct few few;
    int kinds;
    struct kind kind[KINDS_MAX];
};

struct blas *blas_create(struct err *e)
{
    struct blas *b = (struct blas *)calloc(1, sizeof *b);
    if (!b) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    cublasStatus_t status = cublasLtCreate(&b->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        err_set(e, ERR_RETRY, "could not start cublasLt: %s", cublasLtGetStatusString(status));
        free(b);
        return NULL;
    }
    snprintf(b->version, sizeof b->version, "cublasLt %zu", cublasLtGetVersion());
    return b;
}

void blas_free(struct blas *b)
{
    if (!b) return;
    cublasLtDestroy(b->handle);
    free(b);
}

const char *blas_version(const struct blas *b)
{
    return b->version;
}

struct few *blas_few(struct blas *b)
{
    return &b->few;
}

/* ------------------------------------------------------------------ a product for the library */

/* Its matrices are first w, then x. */
struct described {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static cudaDataType_t type_of(enum ops_dtype dtype)
{
    return dtype == OPS_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static cublasStatus_t describe(struct described *s, const struct blas_product *p, int m)
{
    cudaDataType_t type = type_of(p->dtype);
    cublasOperation_t turn = p->turned ? CUBLAS_OP_N : CUBLAS_OP_T;
    uint64_t rows = (uint64_t)(p->turned ? p->n : p->k), cols = (uint64_t)(p->turned ? p->k : p->n);
    cublasStatus_t status =
        cublasLtMatmulDescInit(&s->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status = cublasLtMatmulDescSetAttribute(&s->product, CUBLASLT_MATMUL_DESC_TRANSA, &turn,
                                                sizeof turn);
    if (!status) status = cublasLtMatrixLayoutInit(&s->w, type, rows, cols, p->ldw);
    if (!status)
        status = cublasLtMatrixLayoutInit(&s->x, type, (uint64_t)p->k, (uint64_t)m, p->ldx);
    if (!status)
        status = cublasLtMatrixLayoutInit(&s->y, type_of(p->y_dtype), (uint64_t)p->n, (uint64_t)m,
                                          p->ldy);
    return status;
}

static cublasStatus_t preference(cublasLtMatmulPreferenceOpaque_t *pref, uint32_t align_y)
{
    uint64_t workspace = 0;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE, align = ALIGNMENT;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_y, sizeof align_y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_y, sizeof align_y},
    };
    cublasStatus_t status = cublasLtMatmulPreferenceInit(pref);
    for (size_t i = 0; !status && i < sizeof wishes / sizeof *wishes; i++)
        status = cublasLtMatmulPreferenceSetAttribute(pref, wishes[i].name, wishes[i].value,
                                                      wishes[i].bytes);
    return status;
}

static bool splits(const cublasLtMatmulAlgo_t *a)
{
    int32_t split = 0;
    uint32_t reduction = 0;
    size_t written;
    if (cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                             sizeof split, &written) ||
        cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                             sizeof reduction, &written))
        return true;
    return split > 1 || split < 0 || reduction != CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* It is good for few rows and many, and never wants a workspace. */
static bool fits(cublasLtHandle_t handle, const struct blas_product *p,
                 const cublasLtMatmulAlgo_t *a)
{
    static const int some[] = {1, 2, 7, 64, 1000, M_NOMINAL, 8192, 65536};
    for (int m : some) {
        struct described s;
        cublasLtMatmulHeuristicResult_t answer;
        if (describe(&s, p, m) || cublasLtMatmulAlgoCheck(handle, &s.product, &s.w, &s.x, &s.y, &s.y,
                                                          a, &answer))
            return false;
        if (answer.state || answer.workspaceSize > 0) return false;
    }
    return true;
}

static bool choose(struct device *d, struct kind *kind, const struct blas_product *p)
{
    struct described s;
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t answers[ANSWERS];
    int count = 0;
    cublasStatus_t status = describe(&s, p, M_NOMINAL);
    if (!status) status = preference(&pref, blas_align_y(p->ldy, p->y_dtype));
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(d->blas->handle, &s.product, &s.w, &s.x, &s.y, &s.y,
                                                &pref, ANSWERS, answers, &count);
    if (status) {
        cuda_keep_text(d, "choice of an algorithm", cublasLtGetStatusString(status));
        return false;
    }
    for (int i = 0; i < count; i++) {
        if (answers[i].state || splits(&answers[i].algo) ||
            !fits(d->blas->handle, p, &answers[i].algo))
            continue;
        kind->algorithm = answers[i].algo;
        return true;
    }
    cuda_keep_text(d, "choice of an algorithm", "cublasLt has none that fits any number of rows without splitting k");
    return false;
}

static const struct kind *kind_of(struct device *d, const struct blas_product *p)
{
    struct blas *b = d->blas;
    for (int i = 0; i < b->kinds; i++) {
        const struct kind *k = &b->kind[i];
        if (k->n == p->n && k->k == p->k && k->ldx == p->ldx && k->ldw == p->ldw &&
            k->ldy == p->ldy && k->dtype == p->dtype && k->y_dtype == p->y_dtype &&
            k->turned == p->turned)
            return k;
    }
    if (b->kinds == KINDS_MAX) {
        cuda_keep_text(d, "choice of an algorithm", "too many kinds of products");
        return NULL;
    }
    struct kind *k = &b->kind[b->kinds];
    *k = {p->n, p->k, p->ldx, p->ldw, p->ldy, p->dtype, p->y_dtype, p->turned, {}};
    if (!choose(d, k, p)) return NULL;
    b->kinds++;
    return k;
}

void blas_library(struct device *d, const struct blas_product *p)
{
    static const float one = 1, zero = 0;
    struct described s;
    if (cuda_failed(d) || p->m == 0) return;
    const struct kind *kind = kind_of(d, p);
    if (!kind) return;
    cublasStatus_t status = describe(&s, p, p->m);
    if (!status)
        status = cublasLtMatmul(d->blas->handle, &s.product, &one, p->w, &s.w, p->x, &s.x,
                                p->add ? &one : &zero, p->y, &s.y, p->y, &s.y, &kind->algorithm,
                                NULL, 0, d->stream);
    if (status) cuda_keep_text(d, "product", cublasLtGetStatusString(status));
}

/* blas_plain.cc - products one by one, for emulation. */
#include "kernels/cuda/blas.h"

#include <stdlib.h>

struct blas {
    struct few few;
};

static bool apart; /* emulate_blas_apart() */

void emulate_blas_apart(int yes)
{
    apart = yes;
}

struct blas *blas_create(struct err *e)
{
    struct blas *b = (struct blas *)calloc(1, sizeof *b);
    if (!b) err_set(e, ERR_RETRY, "out of memory");
    return b;
}

void blas_free(struct blas *b)
{
    free(b);
}

const char *blas_version(const struct blas *)
{
    return "plain";
}

struct few *blas_few(struct blas *b)
{
    return &b->few;
}

static float number(const void *a, enum ops_dtype dtype, size_t i)
{
    return dtype == OPS_F32 ? ((const float *)a)[i] : __bfloat162float(((const __nv_bfloat16 *)a)[i]);
}

/* One chain; or two, every other sixteen of k, which are added at the end.  Products of bf16 are exact, so
 * that adding them one by one is what the emulated tensor core does (mma.h). */
static float sum_of(const struct blas_product *p, int i, int j)
{
    float sum[2] = {0, 0};
    for (int k = 0; k < p->k; k++) {
        size_t at = p->turned ? (size_t)k * p->ldw + j : (size_t)j * p->ldw + k;
        float x = number(p->x, p->dtype, (size_t)i * p->ldx + k), w = number(p->w, p->dtype, at);
        float *to = &sum[apart ? k / 16 % 2 : 0];
        *to = p->dtype == OPS_F32 ? fmaf(x, w, *to) : *to + x * w;
    }
    return sum[0] + sum[1];
}

static void multiply(const struct blas_product *p)
{
    emulate_device_begin();
    for (int i = 0; i < p->m; i++)
        for (int j = 0; j < p->n; j++) {
            size_t to = (size_t)i * p->ldy + j;
            float sum = sum_of(p, i, j);
            if (p->add) sum += number(p->y, p->y_dtype, to);
            if (p->y_dtype == OPS_F32)
                ((float *)p->y)[to] = sum;
            else
                ((__nv_bfloat16 *)p->y)[to] = __float2bfloat16_rn(sum);
        }
    emulate_device_end();
}

void blas_library(struct device *d, const struct blas_product *p)
{
    if (cuda_failed(d)) return;
    cudaError_t error = emulate_do(d->stream, [product = *p]() {
        multiply(&product);
        return cudaSuccess;
    });
    cuda_keep(d, error, "product");
}

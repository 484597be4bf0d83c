/* rounded.h - numbers that bf16 holds, for kernels that round what they are given to it or keep it so,
 * and activations of either type on a side. */
#ifndef TESTS_CUDA_ROUNDED_H
#define TESTS_CUDA_ROUNDED_H

#include "cuda/sides.h"

#define ROUNDING (0x1p-8 * 1.01) /* of a number to bf16, at most; a little for what fp32 adds to it */

static inline float as_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Like numbers(). */
static inline float *numbers_bf16(size_t n, uint64_t seed)
{
    float *x = numbers(n, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = as_bf16(x[i]);
    return x;
}

/* Takes what is on the device to where it belongs, and releases it. */
static inline void bring(const struct side *s, float *to, float *p, size_t n)
{
    s->ops->download(s->d, to, p, n * sizeof *p);
    drop(s, p);
}

/* ------------------------------------------------------------------ activations */

/* On the CPU, which takes no other, fp32. */
static inline enum ops_dtype type_on(const struct side *s, enum ops_dtype dtype)
{
    return s->ops->act_dtype(OPS_BF16) == OPS_F32 ? OPS_F32 : dtype;
}

/* From the i-th number on, or back to where it began. */
static inline struct act act_at(struct act a, long i)
{
    a.p = (char *)a.p + i * (long)ops_size(a.dtype);
    return a;
}

static inline struct act room_act(const struct side *s, size_t n, enum ops_dtype dtype)
{
    struct err e = {0};
    enum ops_dtype type = type_on(s, dtype);
    struct act a = {s->ops->alloc(s->d, n * ops_size(type), &e), type};
    assert_non_null(a.p);
    return a;
}

/* Rounded where they are to be in bf16. */
static inline void fill_act(const struct side *s, struct act a, const float *x, size_t n)
{
    uint16_t *half = malloc(n * sizeof *half + 1);
    assert_non_null(half);
    for (size_t i = 0; a.dtype == OPS_BF16 && i < n; i++) {
        float f = as_bf16(x[i]);
        memcpy(&half[i], (char *)&f + 2, sizeof *half);
    }
    s->ops->upload(s->d, a.p, a.dtype == OPS_F32 ? (const void *)x : half, n * ops_size(a.dtype));
    free(half);
}

static inline struct act up_act(const struct side *s, const float *x, size_t n, enum ops_dtype dtype)
{
    struct act a = room_act(s, n, dtype);
    fill_act(s, a, x, n);
    return a;
}

static inline void drop_act(const struct side *s, struct act a)
{
    s->ops->release(s->d, a.p);
}

/* Widened. */
static inline void take_act(const struct side *s, float *to, struct act a, size_t n)
{
    uint16_t *half = malloc(n * sizeof *half + 1);
    assert_non_null(half);
    s->ops->download(s->d, a.dtype == OPS_F32 ? (void *)to : half, a.p, n * ops_size(a.dtype));
    for (size_t i = 0; a.dtype == OPS_BF16 && i < n; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
    free(half);
}

/* Like bring() and down(). */
static inline void bring_act(const struct side *s, float *to, struct act a, size_t n)
{
    take_act(s, to, a, n);
    drop_act(s, a);
}

static inline float *down_act(const struct side *s, struct act a, size_t n)
{
    float *x = zeros(n);
    bring_act(s, x, a, n);
    return x;
}

/* Numbers that are kept so without a change. */
static inline float *numbers_as(enum ops_dtype dtype, size_t n, uint64_t seed)
{
    return dtype == OPS_BF16 ? numbers_bf16(n, seed) : numbers(n, seed);
}

/* What a number that is kept so may be wrong by for that. */
static inline double kept(enum ops_dtype dtype, float x)
{
    return dtype == OPS_BF16 ? ROUNDING * fabs((double)x) : 0;
}

static inline const struct ops *twin(void)
{
    struct err e = {0};
    const struct ops *ops = ops_cuda(0, &e);
    if (!ops) fail_msg("%s", e.text);
    return ops;
}

#endif

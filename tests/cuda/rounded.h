/* rounded.h - numbers that bf16 holds, for kernels that round what they are given to it. */
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

static inline const struct ops *twin(void)
{
    struct err e = {0};
    const struct ops *ops = ops_cuda(0, &e);
    if (!ops) fail_msg("%s", e.text);
    return ops;
}

#endif

/* check.h - what the kernels' tests share: numbers, devices, and finite differences. */
#ifndef TESTS_KERNELS_CHECK_H
#define TESTS_KERNELS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/ops.h"

/* The same numbers on every run: a multiplicative generator, uniform in [-1, 1). */
static inline float next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

/* n random numbers; the caller frees.  Exactly n, so that a sanitizer sees a step beyond. */
static inline float *numbers(size_t n, uint64_t seed)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < n; i++)
        x[i] = next_number(&state);
    return x;
}

static inline float *zeros(size_t n)
{
    float *x = calloc(n ? n : 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static inline struct device *device_with(const struct ops *ops, int threads)
{
    struct err e = {0};
    struct device *d = ops->open(0, threads, &e);
    assert_non_null(d);
    return d;
}

static inline void assert_same_bits(const float *a, const float *b, size_t n)
{
    assert_memory_equal(a, b, n * sizeof *a);
}

static inline void assert_near(double got, double want, double tolerance, const char *what,
                               size_t at)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s[%zu] = %.9g, expected %.9g within %.2g", what, at, got, want, tolerance);
}

/* Compares grad with central differences of loss() in each x[i].
 *
 * The tests' losses are sums of a few dozen terms near 1, evaluated in fp32 and added in double, so
 * loss() is wrong by about 1e-6.  Two steps h = 2^-6 and 2^-5 (exact in fp32 beside numbers near
 * 1) are combined so that the error of third order cancels; the noise that remains is about
 * 1e-6 / 2^-6 = 6e-5, the truncation h^4 f^(5) / 5 below it.  1e-3 of the larger of 1 and |grad|
 * is ten times that, and far below what a wrong sign, factor or missing term does. */
static inline void assert_slopes(float *x, size_t n, const float *grad, double (*loss)(void *),
                                 void *arg, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        float keep = x[i];
        double slope[2];
        for (int k = 0; k < 2; k++) {
            float h = k ? 0x1p-5f : 0x1p-6f;
            x[i] = keep + h;
            float up = x[i];
            double above = loss(arg);
            x[i] = keep - h;
            double below = loss(arg);
            slope[k] = (above - below) / ((double)up - (double)x[i]);
        }
        x[i] = keep;
        double fd = (4 * slope[0] - slope[1]) / 3;
        assert_near((double)grad[i], fd, 1e-3 * fmax(1, fabs(fd)), what, i);
    }
}

static inline double weighed(const float *y, const float *weight, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)y[i] * (double)weight[i];
    return sum;
}

#endif

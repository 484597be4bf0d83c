/* sides.h - the same op on the CPU and on the device.  `struct side` is one of them with a value of
 * its own for each array: a test gives both the same numbers and compares what comes back. */
#ifndef TESTS_CUDA_SIDES_H
#define TESTS_CUDA_SIDES_H

#include "kernels/check.h"

struct side {
    const struct ops *ops;
    struct device *d;
};

static inline struct side side_open(const struct ops *ops)
{
    return (struct side){ops, device_with(ops, 2)};
}

/* The definition first, then its twin. */
static inline void sides_open(struct side s[2])
{
    struct err e = {0};
    const struct ops *twin = ops_cuda(0, &e);
    if (!twin) fail_msg("%s", e.text);
    s[0] = side_open(ops_cpu());
    s[1] = side_open(twin);
}

static inline void side_close(struct side *s)
{
    struct err e = {0};
    if (s->ops->sync(s->d, &e) < 0) fail_msg("%s", e.text);
    s->ops->close(s->d);
}

static inline void sides_close(struct side s[2])
{
    side_close(&s[0]);
    side_close(&s[1]);
}

static inline float *room(const struct side *s, size_t n)
{
    struct err e = {0};
    float *p = s->ops->alloc(s->d, n * sizeof *p, &e);
    assert_non_null(p);
    return p;
}

static inline float *up(const struct side *s, const float *x, size_t n)
{
    float *p = room(s, n);
    s->ops->upload(s->d, p, x, n * sizeof *p);
    return p;
}

static inline void drop(const struct side *s, float *p)
{
    s->ops->release(s->d, p);
}

/* Takes what is on the device, and releases it; the caller frees. */
static inline float *down(const struct side *s, float *p, size_t n)
{
    float *x = zeros(n);
    s->ops->download(s->d, x, p, n * sizeof *p);
    drop(s, p);
    return x;
}

static inline void assert_all_near(const float *got, const float *want, size_t n, double tolerance,
                                   const char *what)
{
    for (size_t i = 0; i < n; i++)
        assert_near((double)got[i], (double)want[i], tolerance, what, i);
}

#endif

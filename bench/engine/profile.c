/* profile.c - see profile.h. */
#include "profile.h"

#include <time.h>
#include "engine/inside.h"
#include "figures.h"

static const struct ops *real;
static struct ops timed;
static double began;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The ops that return nothing and start with the device: name, parameters, arguments. */
#define EACH_OP(X)                                                                                 \
    X(copy, (struct device * d, void *to, const void *from, size_t bytes), (d, to, from, bytes))   \
    X(zero, (struct device * d, void *p, size_t bytes), (d, p, bytes))                             \
    X(gemm,                                                                                        \
      (struct device * d, struct act y, struct act x, int rows, const struct packed *w, bool add), \
      (d, y, x, rows, w, add))                                                                     \
    X(project,                                                                                     \
      (struct device * d, struct act x, int rows, const struct projection *p, int n),              \
      (d, x, rows, p, n))                                                                          \
    X(project_back,                                                                                \
      (struct device * d, struct act dx, struct act dy, struct act x, int rows,                    \
       const struct projection_back *p),                                                           \
      (d, dx, dy, x, rows, p))                                                                     \
    X(gather,                                                                                      \
      (struct device * d, struct act y, struct act t, const int32_t *ids, int rows, int width),    \
      (d, y, t, ids, rows, width))                                                                 \
    X(scatter,                                                                                     \
      (struct device * d, float *y, const float *x, const int32_t *ids, int rows, int width),      \
      (d, y, x, ids, rows, width))                                                                 \
    X(rms_norm,                                                                                    \
      (struct device * d, struct act y, struct act x, const float *gain, int rows, int width,      \
       float eps),                                                                                 \
      (d, y, x, gain, rows, width, eps))                                                           \
    X(rms_norm_back,                                                                               \
      (struct device * d, struct act dx, struct act dy, struct act x, const float *gain,           \
       int rows, int width, float eps, bool add),                                                  \
      (d, dx, dy, x, gain, rows, width, eps, add))                                                 \
    X(rope,                                                                                        \
      (struct device * d, struct act x, const float *c, const float *s, const struct kv_seg *g,    \
       int n, int heads, int dim),                                                                 \
      (d, x, c, s, g, n, heads, dim))                                                              \
    X(rope_back,                                                                                   \
      (struct device * d, struct act x, const float *c, const float *s, const struct kv_seg *g,    \
       int n, int heads, int dim),                                                                 \
      (d, x, c, s, g, n, heads, dim))                                                              \
    X(swiglu,                                                                                      \
      (struct device * d, struct act y, struct act gate, struct act up, size_t count),             \
      (d, y, gate, up, count))                                                                     \
    X(swiglu_back,                                                                                 \
      (struct device * d, struct act dgate, struct act dup, struct act dy, struct act gate,        \
       struct act up, size_t count),                                                               \
      (d, dgate, dup, dy, gate, up, count))                                                        \
    X(kv_write,                                                                                    \
      (struct device * d, struct act k, struct act v, const struct kv_seg *g, int n,               \
       const struct attn_shape *s),                                                                \
      (d, k, v, g, n, s))                                                                          \
    X(attention,                                                                                   \
      (struct device * d, struct act o, float *lse, struct act q, const struct kv_seg *g, int n,   \
       const struct attn_shape *s),                                                                \
      (d, o, lse, q, g, n, s))                                                                     \
    X(attention_back,                                                                              \
      (struct device * d, struct act dq, struct act dk, struct act dv, struct act dout,            \
       struct act o, const float *lse, struct act q, const struct kv_seg *g, int n,                \
       const struct attn_shape *s),                                                                \
      (d, dq, dk, dv, dout, o, lse, q, g, n, s))                                                   \
    X(logprob,                                                                                     \
      (struct device * d, float *lp, float *lse, const float *logits, const int *first,            \
       const int32_t *ids, int rows, int vocab),                                                   \
      (d, lp, lse, logits, first, ids, rows, vocab))                                                    \
    X(logprob_back,                                                                                \
      (struct device * d, float *logits, const float *lse, const float *g, const int *first,       \
       const int32_t *ids, int rows, int vocab),                                                   \
      (d, logits, lse, g, first, ids, rows, vocab))                                                     \
    X(adamw,                                                                                       \
      (struct device * d, const struct adamw_step *s, const struct adam_tensor *t, int n),         \
      (d, s, t, n))

#define DEFINE(op, params, args)                                                                   \
    static double op##_s;                                                                          \
    static void timed_##op params                                                                  \
    {                                                                                              \
        double at = seconds();                                                                     \
        real->op args;                                                                             \
        op##_s += seconds() - at;                                                                  \
    }
EACH_OP(DEFINE)

static double sum_squares_s;

static double timed_sum_squares(struct device *d, const struct adam_tensor *t, int count)
{
    double at = seconds(), sum = real->sum_squares(d, t, count);
    sum_squares_s += seconds() - at;
    return sum;
}

void profile_begin(struct engine *en)
{
    real = en->ops;
    timed = *real;
#define WRAP(op, params, args)                                                                     \
    timed.op = timed_##op;                                                                         \
    op##_s = 0;
    EACH_OP(WRAP)
    timed.sum_squares = timed_sum_squares;
    sum_squares_s = 0;
    en->ops = &timed;
    began = seconds();
}

void profile_end(struct engine *en, const char *name)
{
    double all = seconds() - began, ops = sum_squares_s;
    en->ops = real;
#define PRINT(op, params, args)                                                                    \
    if (op##_s > 0) figure_print("engine", name, #op, 100 * op##_s / all, "%");                    \
    ops += op##_s;
    EACH_OP(PRINT)
    if (sum_squares_s > 0)
        figure_print("engine", name, "sum_squares", 100 * sum_squares_s / all, "%");
    figure_print("engine", name, "rest", 100 * (all - ops) / all, "%");
}

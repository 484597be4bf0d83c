/* rows.c - what is done to each row by itself: gather, norms, rotation, SwiGLU. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* ------------------------------------------------------------------ gather and scatter */

struct move_arg {
    float *y;
    const float *x;
    const int32_t *index;
    int rows, width, tasks;
    bool scatter;
};

static void move_task(const void *p, int task, float *scratch)
{
    const struct move_arg *a = p;
    size_t from, to, width = (size_t)a->width;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++) {
        size_t other = (size_t)a->index[i];
        float *y = a->y + (a->scatter ? other : i) * width;
        memcpy(y, a->x + (a->scatter ? i : other) * width, width * sizeof *y);
    }
}

static void move(struct device *d, struct move_arg *a)
{
    size_t steps = (size_t)a->width / 16 + 1;
    a->tasks = cpu_tasks_for(d, (size_t)a->rows, steps);
    cpu_run(d, move_task, a, a->tasks, (size_t)a->rows * steps);
}

void cpu_gather(struct device *d, struct act y, struct act table, const int32_t *ids, int rows,
                int width)
{
    if (table.dtype == OPS_BF16) {
        cpu_gather_bf16(d, cpu_f32(y), table.p, ids, rows, width);
        return;
    }
    struct move_arg a = {
        .y = cpu_f32(y), .x = cpu_f32(table), .index = ids, .rows = rows, .width = width};
    move(d, &a);
}

void cpu_scatter(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                 int width)
{
    struct move_arg a = {
        .y = y, .x = x, .index = index, .rows = rows, .width = width, .scatter = true};
    move(d, &a);
}

/* ------------------------------------------------------------------ RMSNorm */

struct norm_arg {
    float *y; /* or dx */
    const float *dy, *x, *gain;
    int rows, width, tasks;
    float eps;
    bool add;
};

/* Sum over i of a[i] b[i] (c[i] when given), in sixteen lanes. */
V_INLINE float dot(const float *a, const float *b, const float *c, int n)
{
    v16 s = v_set1(0);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 t = v_load(b + i);
        if (c) t = v_mul(t, v_load(c + i));
        s = v_fma(v_load(a + i), t, s);
    }
    if (i < n) {
        v16 t = v_load_n(b + i, n - i);
        if (c) t = v_mul(t, v_load_n(c + i, n - i));
        s = v_fma(v_load_n(a + i, n - i), t, s);
    }
    return v_sum(s);
}

static float inverse_rms(const float *x, int width, float eps)
{
    return 1.0f / sqrtf(dot(x, x, NULL, width) / (float)width + eps);
}

static void norm_task(const void *p, int task, float *scratch)
{
    const struct norm_arg *a = p;
    size_t from, to;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t row = from; row < to; row++) {
        const float *x = a->x + row * (size_t)a->width;
        float *y = a->y + row * (size_t)a->width;
        float inv = inverse_rms(x, a->width, a->eps);
        for (int i = 0; i < a->width; i++)
            y[i] = x[i] * inv * a->gain[i];
    }
}

/* With h = x inv and s = dy gain:  dx = inv (s - h mean(s h)) */
static void norm_back_task(const void *p, int task, float *scratch)
{
    const struct norm_arg *a = p;
    size_t from, to;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t row = from; row < to; row++) {
        const float *x = a->x + row * (size_t)a->width, *dy = a->dy + row * (size_t)a->width;
        float *dx = a->y + row * (size_t)a->width;
        float inv = inverse_rms(x, a->width, a->eps);
        float mean = dot(x, dy, a->gain, a->width) * inv / (float)a->width;
        for (int i = 0; i < a->width; i++) {
            float back = inv * (dy[i] * a->gain[i] - x[i] * inv * mean);
            dx[i] = a->add ? dx[i] + back : back;
        }
    }
}

static void norm(struct device *d, struct norm_arg *a, task_fn *fn)
{
    size_t steps = (size_t)a->width / 8 + 8;
    a->tasks = cpu_tasks_for(d, (size_t)a->rows, steps);
    cpu_run(d, fn, a, a->tasks, (size_t)a->rows * steps);
}

void cpu_rms_norm(struct device *d, struct act y, struct act x, const float *gain, int rows,
                  int width, float eps)
{
    struct norm_arg a = {.y = cpu_f32(y),
                         .x = cpu_f32(x),
                         .gain = gain,
                         .rows = rows,
                         .width = width,
                         .eps = eps};
    norm(d, &a, norm_task);
}

void cpu_rms_norm_back(struct device *d, struct act dx, struct act dy, struct act x,
                       const float *gain, int rows, int width, float eps, bool add)
{
    struct norm_arg a = {.y = cpu_f32(dx),
                         .dy = cpu_f32(dy),
                         .x = cpu_f32(x),
                         .gain = gain,
                         .rows = rows,
                         .width = width,
                         .eps = eps,
                         .add = add};
    norm(d, &a, norm_back_task);
}

/* ------------------------------------------------------------------ rotation */

struct rope_arg {
    float *x;
    const float *cosine, *sine;
    const struct kv_seg *segs;
    int heads, head_dim;
    float sign; /* -1: turns back */
};

static void rotate(float *x, const float *c, const float *s, int half, float sign)
{
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], si = sign * s[i];
        x[i] = a * c[i] - b * si;
        x[i + half] = b * c[i] + a * si;
    }
}

static void rope_task(const void *p, int task, float *scratch)
{
    const struct rope_arg *a = p;
    const struct kv_seg *g = &a->segs[task];
    int half = a->head_dim / 2;
    for (int r = 0; r < g->rows; r++) {
        size_t at = (size_t)(g->start + r) * (size_t)half;
        float *x = a->x + (size_t)(g->row + r) * (size_t)a->heads * (size_t)a->head_dim;
        for (int h = 0; h < a->heads; h++)
            rotate(x + h * a->head_dim, a->cosine + at, a->sine + at, half, a->sign);
    }
}

static void rope(struct device *d, const struct rope_arg *a, int seg_count)
{
    size_t rows = 0;
    for (int i = 0; i < seg_count; i++)
        rows += (size_t)a->segs[i].rows;
    cpu_run(d, rope_task, a, seg_count, rows * (size_t)a->heads * (size_t)a->head_dim / 8);
}

void cpu_rope(struct device *d, struct act x, const float *cosine, const float *sine,
              const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    struct rope_arg a = {cpu_f32(x), cosine, sine, segs, heads, head_dim, 1.0f};
    rope(d, &a, seg_count);
}

void cpu_rope_back(struct device *d, struct act dx, const float *cosine, const float *sine,
                   const struct kv_seg *segs, int seg_count, int heads, int head_dim)
{
    struct rope_arg a = {cpu_f32(dx), cosine, sine, segs, heads, head_dim, -1.0f};
    rope(d, &a, seg_count);
}

/* ------------------------------------------------------------------ SwiGLU */

struct swiglu_arg {
    float *y, *dgate, *dup;
    const float *dy, *gate, *up;
    size_t count;
    int tasks;
};

/* 1 / (1 + exp(-x)) */
V_INLINE v16 sigmoid(v16 x)
{
    return v_div(v_set1(1), v_add(v_set1(1), v_exp(v_sub(v_set1(0), x))));
}

static void swiglu_task(const void *p, int task, float *scratch)
{
    const struct swiglu_arg *a = p;
    size_t from, to;
    cpu_share(a->count, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i += 16) {
        int n = to - i < 16 ? (int)(to - i) : 16;
        v16 gate = v_load_n(a->gate + i, n), up = v_load_n(a->up + i, n);
        v_store_n(a->y + i, v_mul(v_mul(gate, sigmoid(gate)), up), n);
    }
}

static void swiglu_back_task(const void *p, int task, float *scratch)
{
    const struct swiglu_arg *a = p;
    size_t from, to;
    cpu_share(a->count, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i += 16) {
        int n = to - i < 16 ? (int)(to - i) : 16;
        v16 gate = v_load_n(a->gate + i, n), up = v_load_n(a->up + i, n);
        v16 dy = v_load_n(a->dy + i, n), s = sigmoid(gate);
        /* silu' = s (1 + gate (1 - s)) */
        v16 slope = v_mul(s, v_fma(gate, v_sub(v_set1(1), s), v_set1(1)));
        v_store_n(a->dup + i, v_mul(dy, v_mul(gate, s)), n);
        v_store_n(a->dgate + i, v_mul(v_mul(dy, up), slope), n);
    }
}

void cpu_swiglu(struct device *d, struct act y, struct act gate, struct act up, size_t count)
{
    struct swiglu_arg a = {
        .y = cpu_f32(y), .gate = cpu_f32(gate), .up = cpu_f32(up), .count = count};
    a.tasks = cpu_tasks_for(d, count, 2);
    cpu_run(d, swiglu_task, &a, a.tasks, 2 * count);
}

void cpu_swiglu_back(struct device *d, struct act dgate, struct act dup, struct act dy,
                     struct act gate, struct act up, size_t count)
{
    struct swiglu_arg a = {.dgate = cpu_f32(dgate),
                           .dup = cpu_f32(dup),
                           .dy = cpu_f32(dy),
                           .gate = cpu_f32(gate),
                           .up = cpu_f32(up),
                           .count = count};
    a.tasks = cpu_tasks_for(d, count, 3);
    cpu_run(d, swiglu_back_task, &a, a.tasks, 3 * count);
}

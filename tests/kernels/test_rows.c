/* What is done to rows by themselves: gather, scatter, RMSNorm, rotation, SwiGLU. */
#include "kernels/check.h"

struct norm_case {
    const struct ops *ops;
    struct device *d;
    float *x, *gain, *weight;
    int rows, width;
};

#define EPS 1e-3f

static void gather_takes_rows_and_scatter_puts_them_back(void **state)
{
    enum { WIDTH = 19 };
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *table = numbers(11 * WIDTH, 1), *y = zeros(4 * WIDTH), *back = zeros(11 * WIDTH);
    const int32_t ids[] = {10, 0, 3, 7};
    ops->gather(d, act_f32(y), act_f32(table), ids, 4, WIDTH);
    ops->scatter(d, back, y, ids, 4, WIDTH);
    float none[WIDTH] = {0};
    for (int i = 0; i < 4; i++)
        assert_same_bits(y + i * WIDTH, table + ids[i] * WIDTH, WIDTH);
    for (int i = 0; i < 11; i++) {
        bool taken = i == 10 || i == 0 || i == 3 || i == 7;
        assert_same_bits(back + i * WIDTH, taken ? table + i * WIDTH : none, WIDTH);
    }
    free(table), free(y), free(back);
    ops->close(d);
}

static double norm_loss(void *arg)
{
    const struct norm_case *c = arg;
    size_t n = (size_t)(c->rows * c->width);
    float *y = zeros(n);
    c->ops->rms_norm(c->d, act_f32(y), act_f32(c->x), c->gain, c->rows, c->width, EPS);
    double sum = weighed(y, c->weight, n);
    free(y);
    return sum;
}

static void rms_norm_divides_by_the_root_of_the_mean_square(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    for (int width = 1; width < 70; width += 11) {
        float *x = numbers((size_t)(5 * width), 1), *gain = numbers((size_t)width, 2);
        float *y = zeros((size_t)(5 * width));
        ops->rms_norm(d, act_f32(y), act_f32(x), gain, 5, width, EPS);
        for (int r = 0; r < 5; r++) {
            double ss = 0;
            for (int i = 0; i < width; i++)
                ss += (double)x[r * width + i] * (double)x[r * width + i];
            for (int i = 0; i < width; i++)
                assert_near((double)y[r * width + i],
                            (double)x[r * width + i] / sqrt(ss / width + (double)EPS) *
                                (double)gain[i],
                            2e-6, "y", (size_t)i);
        }
        free(x), free(gain), free(y);
    }
    ops->close(d);
}

static void rms_norm_back_agrees_with_finite_differences(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    for (int width = 2; width < 40; width += 15) {
        size_t n = (size_t)(3 * width);
        struct norm_case c = {ops,           d, numbers(n, 3), numbers((size_t)width, 4),
                              numbers(n, 5), 3, width};
        for (size_t i = 0; i < n; i++)
            c.x[i] += c.x[i] < 0 ? -0.5f : 0.5f; /* away from 0, where an RMS of 2 numbers bends */
        float *dx = zeros(n), *more = zeros(n);
        ops->rms_norm_back(d, act_f32(dx), act_f32(c.weight), act_f32(c.x), c.gain, 3, width, EPS,
                           false);
        assert_slopes(c.x, n, dx, norm_loss, &c, "dx");
        memcpy(more, dx, n * sizeof *dx);
        ops->rms_norm_back(d, act_f32(more), act_f32(c.weight), act_f32(c.x), c.gain, 3, width,
                           EPS, true);
        for (size_t i = 0; i < n; i++)
            assert_true(more[i] == dx[i] + dx[i]);
        free(c.x), free(c.gain), free(c.weight), free(dx), free(more);
    }
    ops->close(d);
}

static void rope_turns_pairs_by_their_positions_angle_and_back_undoes_it(void **state)
{
    enum { DIM = 6, HALF = 3, HEADS = 3, ROWS = 5, CONTEXT = 20 };
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float c[CONTEXT * HALF], s[CONTEXT * HALF];
    for (int i = 0; i < CONTEXT * HALF; i++) {
        c[i] = cosf((float)i * 0.37f);
        s[i] = sinf((float)i * 0.37f);
    }
    const struct kv_seg segs[] = {{.row = 0, .rows = 2, .start = 0},
                                  {.row = 2, .rows = 3, .start = 17}};
    float *x = numbers(ROWS * HEADS * DIM, 1), *y = numbers(ROWS * HEADS * DIM, 1);
    ops->rope(d, act_f32(y), c, s, segs, 2, HEADS, DIM);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < HALF; i++) {
                const float *p = x + (r * HEADS + h) * DIM, *q = y + (r * HEADS + h) * DIM;
                double angle = (double)(((r < 2 ? r : 15 + r) * HALF + i)) * (double)0.37f;
                double a = (double)p[i], b = (double)p[i + HALF];
                assert_near((double)q[i], a * cos(angle) - b * sin(angle), 5e-6, "y", (size_t)i);
                assert_near((double)q[i + HALF], b * cos(angle) + a * sin(angle), 5e-6, "y",
                            (size_t)(i + HALF));
            }
    /* A rotation's way back is the rotation by the opposite angle. */
    ops->rope_back(d, act_f32(y), c, s, segs, 2, HEADS, DIM);
    for (int i = 0; i < ROWS * HEADS * DIM; i++)
        assert_near((double)y[i], (double)x[i], 1e-6, "back", (size_t)i);
    free(x), free(y);
    ops->close(d);
}

struct rope_case {
    const struct ops *ops;
    struct device *d;
    float *x, *weight, cosine[64], sine[64];
};

static const struct kv_seg rope_seg = {.row = 0, .rows = 4, .start = 3};

static double rope_loss(void *arg)
{
    struct rope_case *c = arg;
    float y[4 * 2 * 8];
    memcpy(y, c->x, sizeof y);
    c->ops->rope(c->d, act_f32(y), c->cosine, c->sine, &rope_seg, 1, 2, 8);
    return weighed(y, c->weight, 64);
}

static void rope_back_agrees_with_finite_differences(void **state)
{
    struct rope_case c = {.ops = ops_cpu()};
    c.d = device_with(c.ops, 1);
    c.x = numbers(64, 1);
    c.weight = numbers(64, 2);
    for (int i = 0; i < 64; i++) {
        c.cosine[i] = cosf((float)i);
        c.sine[i] = sinf((float)i);
    }
    float dx[64];
    memcpy(dx, c.weight, sizeof dx);
    c.ops->rope_back(c.d, act_f32(dx), c.cosine, c.sine, &rope_seg, 1, 2, 8);
    assert_slopes(c.x, 64, dx, rope_loss, &c, "dx");
    free(c.x), free(c.weight);
    c.ops->close(c.d);
}

struct swiglu_case {
    const struct ops *ops;
    struct device *d;
    float *gate, *up, *weight;
    size_t n;
};

static double swiglu_loss(void *arg)
{
    const struct swiglu_case *c = arg;
    float *y = zeros(c->n);
    c->ops->swiglu(c->d, act_f32(y), act_f32(c->gate), act_f32(c->up), c->n);
    double sum = weighed(y, c->weight, c->n);
    free(y);
    return sum;
}

static void swiglu_and_its_back_agree_with_the_formula_and_finite_differences(void **state)
{
    struct swiglu_case c = {.ops = ops_cpu(), .n = 53};
    c.d = device_with(c.ops, 2);
    c.gate = numbers(c.n, 1);
    c.up = numbers(c.n, 2);
    c.weight = numbers(c.n, 3);
    for (size_t i = 0; i < c.n; i++)
        c.gate[i] *= 4;
    float *y = zeros(c.n), *dgate = zeros(c.n), *dup = zeros(c.n);
    c.ops->swiglu(c.d, act_f32(y), act_f32(c.gate), act_f32(c.up), c.n);
    for (size_t i = 0; i < c.n; i++) {
        double g = (double)c.gate[i];
        assert_near((double)y[i], g / (1 + exp(-g)) * (double)c.up[i], 1e-6, "y", i);
    }
    c.ops->swiglu_back(c.d, act_f32(dgate), act_f32(dup), act_f32(c.weight), act_f32(c.gate),
                       act_f32(c.up), c.n);
    assert_slopes(c.gate, c.n, dgate, swiglu_loss, &c, "dgate");
    assert_slopes(c.up, c.n, dup, swiglu_loss, &c, "dup");
    free(c.gate), free(c.up), free(c.weight), free(y), free(dgate), free(dup);
    c.ops->close(c.d);
}

static void swiglu_stays_finite_at_the_ends(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 1);
    float gate[] = {-1000, 1000, -88, 88, 0}, up[] = {1, 1, 1, 1, 1}, y[5];
    ops->swiglu(d, act_f32(y), act_f32(gate), act_f32(up), 5);
    assert_near((double)y[0], 0, 1e-30, "y", 0);
    assert_true(y[1] == 1000 && y[3] == 88 && y[4] == 0);
    ops->close(d);
}

/* Values made by rows are the same on every instruction set and number of threads. */
static void rows_have_the_same_bits_everywhere(void **state)
{
    enum { ROWS = 70, WIDTH = 333 };
    static const char *const isas[] = {"avx512bf16", "avx512", "avx2", "plain"};
    float *x = numbers(ROWS * WIDTH, 1), *up = numbers(ROWS * WIDTH, 2);
    float *gain = numbers(WIDTH, 3), *first = NULL;
    for (int i = 0; i < 4; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        for (int threads = 1; ops && threads <= 2; threads++) {
            struct device *d = device_with(ops, threads);
            float *y = zeros(3 * ROWS * WIDTH);
            ops->rms_norm(d, act_f32(y), act_f32(x), gain, ROWS, WIDTH, EPS);
            ops->swiglu(d, act_f32(y + ROWS * WIDTH), act_f32(x), act_f32(up), ROWS * WIDTH);
            ops->rms_norm_back(d, act_f32(y + 2 * ROWS * WIDTH), act_f32(up), act_f32(x), gain,
                               ROWS, WIDTH, EPS, false);
            if (first) assert_same_bits(first, y, 3 * ROWS * WIDTH);
            if (!first)
                first = y;
            else
                free(y);
            ops->close(d);
        }
    }
    free(x), free(up), free(gain), free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gather_takes_rows_and_scatter_puts_them_back),
        cmocka_unit_test(rms_norm_divides_by_the_root_of_the_mean_square),
        cmocka_unit_test(rms_norm_back_agrees_with_finite_differences),
        cmocka_unit_test(rope_turns_pairs_by_their_positions_angle_and_back_undoes_it),
        cmocka_unit_test(rope_back_agrees_with_finite_differences),
        cmocka_unit_test(swiglu_and_its_back_agree_with_the_formula_and_finite_differences),
        cmocka_unit_test(swiglu_stays_finite_at_the_ends),
        cmocka_unit_test(rows_have_the_same_bits_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

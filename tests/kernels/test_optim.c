/* The optimizer's two operations. */
#include "kernels/check.h"

static void adamw_follows_the_formula_in_fp32(void **state)
{
    enum { N = 20003 };
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *w = numbers(N, 1), *g = numbers(N, 2), *m = numbers(N, 3), *v = numbers(N, 4);
    double *want = malloc(3 * N * sizeof *want);
    assert_non_null(want);
    struct adamw_step s = {.grad_scale = 0.5f,
                           .decay = 0.999f,
                           .one_minus_beta1 = 0.1f,
                           .beta2 = 0.95f,
                           .one_minus_beta2 = 0.05f,
                           .step_size = 0.01f,
                           .bias2_sqrt = 0.3f,
                           .eps = 1e-8f};
    for (int i = 0; i < N; i++) {
        v[i] = fabsf(v[i]);
        double grad = (double)g[i] * 0.5;
        want[N + i] = (double)m[i] + (grad - (double)m[i]) * (double)s.one_minus_beta1;
        want[2 * N + i] = (double)v[i] * (double)s.beta2 + grad * grad * (double)s.one_minus_beta2;
        want[i] = (double)w[i] * (double)s.decay -
                  (double)s.step_size * want[N + i] /
                      (sqrt(want[2 * N + i]) / (double)s.bias2_sqrt + (double)s.eps);
    }
    /* Three tensors that lie one behind the other: every number must be found, and once only. */
    const struct adam_tensor t[] = {{w, g, m, v, 7, false},
                                    {w + 7, g + 7, m + 7, v + 7, 17000, false},
                                    {w + 17007, g + 17007, m + 17007, v + 17007, N - 17007, false}};
    ops->adamw(d, &s, t, 3);
    for (size_t i = 0; i < N; i++) {
        assert_near((double)w[i], want[i], 1e-6, "w", i);
        assert_near((double)m[i], want[N + i], 1e-6, "m", i);
        assert_near((double)v[i], want[2 * N + i], 1e-6, "v", i);
        assert_true(g[i] == 0);
    }
    free(w), free(g), free(m), free(v), free(want);
    ops->close(d);
}

static double sum_of(const struct ops *ops, struct device *d, float *x, size_t count)
{
    const struct adam_tensor t = {.grad = x, .count = count};
    return ops->sum_squares(d, &t, 1);
}

static void a_sum_of_squares_keeps_its_digits_and_its_bits(void **state)
{
    enum { N = 300001 };
    const struct ops *ops = ops_cpu();
    struct device *one = device_with(ops, 1), *two = device_with(ops, 2);
    float *x = numbers(N, 1);
    double want = 0;
    for (int i = 0; i < N; i++)
        want += (double)x[i] * (double)x[i];
    double got = sum_of(ops, one, x, N);
    assert_near(got, want, 1e-9 * want, "sum", 0);
    assert_true(got == sum_of(ops, two, x, N));
    assert_true(sum_of(ops, one, x, 0) == 0);
    free(x);
    ops->close(one), ops->close(two);
}

/* More of them than partial sums are made at a time. */
static void many_tensors_are_summed_one_by_one(void **state)
{
    enum { N = 70001, TENSORS = 300 };
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *x = numbers(N, 1);
    struct adam_tensor t[TENSORS];
    double want = 0;
    for (size_t i = 0; i < TENSORS; i++) {
        t[i] = (struct adam_tensor){.grad = x + i, .count = i % 3 ? i : N - i};
        want += sum_of(ops, d, x + i, t[i].count);
    }
    assert_true(ops->sum_squares(d, t, TENSORS) == want);
    free(x);
    ops->close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_follows_the_formula_in_fp32),
        cmocka_unit_test(a_sum_of_squares_keeps_its_digits_and_its_bits),
        cmocka_unit_test(many_tensors_are_summed_one_by_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

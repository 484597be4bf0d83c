/* The norm of gradients, and AdamW.  The step has no sum in it: its bits are the CPU's. */
#include "cuda/sides.h"

#define TENSORS 5

static const size_t counts[TENSORS] = {1, 0, 33, 65536 + 1, 3 * 65536};

struct moments {
    struct adam_tensor t[TENSORS];
};

static struct moments take(const struct side *s, float *const x[4])
{
    struct moments m;
    for (int i = 0; i < TENSORS; i++)
        m.t[i] = (struct adam_tensor){up(s, x[0], counts[i]), up(s, x[1], counts[i]),
                                      up(s, x[2], counts[i]), up(s, x[3], counts[i]), counts[i]};
    return m;
}

static void give_back(const struct side *s, struct moments *m, int tensor, float *out[4])
{
    struct adam_tensor *t = &m->t[tensor];
    out[0] = down(s, t->w, t->count), out[1] = down(s, t->grad, t->count);
    out[2] = down(s, t->m, t->count), out[3] = down(s, t->v, t->count);
}

static void a_step_has_the_bits_of_the_definition(void **state)
{
    const struct adamw_step step = {.grad_scale = 0.37f, .decay = 0.9999f, .one_minus_beta1 = 0.1f,
                                    .beta2 = 0.95f, .one_minus_beta2 = 0.05f, .step_size = 1e-3f,
                                    .bias2_sqrt = 0.21f, .eps = 1e-8f};
    size_t n = counts[TENSORS - 1];
    float *x[4] = {numbers(n, 1), numbers(n, 2), numbers(n, 3), numbers(n, 4)};
    struct side s[2];
    struct moments m[2];
    sides_open(s);
    for (size_t i = 0; i < n; i++)
        x[3][i] = fabsf(x[3][i]);
    for (int i = 0; i < 2; i++) {
        m[i] = take(&s[i], x);
        s[i].ops->adamw(s[i].d, &step, m[i].t, TENSORS);
        s[i].ops->adamw(s[i].d, &step, m[i].t, 0);
    }
    for (int i = 0; i < TENSORS; i++) {
        float *a[4], *b[4];
        give_back(&s[0], &m[0], i, a), give_back(&s[1], &m[1], i, b);
        for (int j = 0; j < 4; j++) {
            assert_same_bits(b[j], a[j], counts[i]);
            free(a[j]), free(b[j]);
        }
    }
    for (int j = 0; j < 4; j++)
        free(x[j]);
    sides_close(s);
}

/* Sums of 200,000 squares in double: 1e-12 of the sum is room for any order. */
static void the_norm_agrees_and_tensors_are_summed_one_by_one(void **state)
{
    size_t n = counts[TENSORS - 1];
    float *x[4] = {numbers(n, 1), numbers(n, 2), numbers(n, 3), numbers(n, 4)};
    double sum[2], one_by_one = 0;
    struct side s[2];
    struct moments m[2];
    sides_open(s);
    for (int i = 0; i < 2; i++) {
        m[i] = take(&s[i], x);
        sum[i] = s[i].ops->sum_squares(s[i].d, m[i].t, TENSORS);
    }
    assert_true(sum[0] > 1000);
    assert_near(sum[1], sum[0], 1e-12 * sum[0], "sum of squares", 0);
    for (int i = 0; i < TENSORS; i++)
        one_by_one += s[1].ops->sum_squares(s[1].d, &m[1].t[i], 1);
    assert_true(one_by_one == sum[1]);
    for (int i = 0; i < 2; i++)
        for (int t = 0; t < TENSORS; t++) {
            float *out[4];
            give_back(&s[i], &m[i], t, out);
            free(out[0]), free(out[1]), free(out[2]), free(out[3]);
        }
    for (int j = 0; j < 4; j++)
        free(x[j]);
    sides_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_has_the_bits_of_the_definition),
        cmocka_unit_test(the_norm_agrees_and_tensors_are_summed_one_by_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

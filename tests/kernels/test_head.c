/* Log-probabilities of logits, and their way back. */
#include "kernels/check.h"

static double naive(const float *x, int vocab, int id)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < vocab; i++)
        max = fmax(max, (double)x[i]);
    for (int i = 0; i < vocab; i++)
        sum += exp((double)x[i] - max);
    return (double)x[id] - max - log(sum);
}

static float logprob_alone(const struct ops *ops, struct device *d, const float *x, int vocab,
                           int32_t id)
{
    float lp, lse;
    ops->logprob(d, &lp, &lse, x, NULL, &id, 1, vocab);
    return lp;
}

static void a_logprob_is_the_logit_less_the_log_of_the_sum(void **state)
{
    static const int vocabs[] = {1, 2, 15, 16, 17, 1000, 1024, 1025, 5000};
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    for (int v = 0; v < 9; v++) {
        int vocab = vocabs[v];
        float *x = numbers((size_t)(3 * vocab), 1), lp[3], lse[3];
        const int32_t ids[] = {0, vocab - 1, vocab / 2};
        for (int i = 0; i < 3 * vocab; i++)
            x[i] = x[i] * 30 + (i < vocab ? 0 : 500); /* large ones must not overflow */
        ops->logprob(d, lp, lse, x, NULL, ids, 3, vocab);
        for (int r = 0; r < 3; r++) {
            double want = naive(x + r * vocab, vocab, ids[r]);
            assert_near((double)lp[r], want, 2e-6 * fmax(1, fabs(want)), "logprob", (size_t)r);
            float alone = logprob_alone(ops, d, x + r * vocab, vocab, ids[r]);
            assert_same_bits(&alone, &lp[r], 1);
        }
        free(x);
    }
    ops->close(d);
}

static void a_logit_of_minus_infinity_takes_no_part(void **state)
{
    float x[] = {1, -INFINITY, 2, -INFINITY}, y[] = {1, 2};
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 1);
    assert_true(logprob_alone(ops, d, x, 4, 0) == logprob_alone(ops, d, y, 2, 0));
    assert_true(logprob_alone(ops, d, x, 4, 1) == -INFINITY);
    ops->close(d);
}

#define ROWS 4
struct head_case {
    const struct ops *ops;
    struct device *d;
    float *logits, *g;
    const int *first;
    const int32_t *ids;
    int count, vocab;
};

static const int32_t one_each[] = {0, 36, 7, 7};
static const int several_first[] = {0, 3, 3, 8, 9};
static const int32_t several[] = {5, 0, 36, 1, 2, 1, 20, 36, 9}; /* 1 twice in a row */

static double loss(void *arg)
{
    struct head_case *c = arg;
    float lp[16], lse[ROWS];
    c->ops->logprob(c->d, lp, lse, c->logits, c->first, c->ids, ROWS, c->vocab);
    return weighed(lp, c->g, (size_t)c->count);
}

static float *way_back(struct head_case *c)
{
    size_t n = (size_t)(ROWS * c->vocab);
    float lp[16], lse[ROWS], *dx = zeros(n);
    memcpy(dx, c->logits, n * sizeof *dx);
    c->ops->logprob(c->d, lp, lse, c->logits, c->first, c->ids, ROWS, c->vocab);
    c->ops->logprob_back(c->d, dx, lse, c->g, c->first, c->ids, ROWS, c->vocab);
    return dx;
}

static void the_way_back_agrees_with_finite_differences(void **state)
{
    struct head_case c = {.ops = ops_cpu(), .ids = one_each, .count = ROWS, .vocab = 37};
    c.d = device_with(c.ops, 2);
    c.logits = numbers(ROWS * 37, 1);
    c.g = numbers(9, 2);
    c.g[3] = 0;
    float *dx = way_back(&c);
    assert_slopes(c.logits, ROWS * 37, dx, loss, &c, "dlogits");
    for (int i = 0; i < 37; i++)
        assert_true(dx[3 * 37 + i] == 0);
    free(dx);
    c.first = several_first, c.ids = several, c.count = 9;
    dx = way_back(&c);
    assert_slopes(c.logits, ROWS * 37, dx, loss, &c, "dlogits of several");
    for (int i = 0; i < 37; i++)
        assert_true(dx[37 + i] == 0); /* the row without ids */
    free(dx);
    free(c.logits), free(c.g);
    c.ops->close(c.d);
}

/* Each id of a row gets what it gets when it is the row's only one. */
static void several_ids_of_a_row_have_the_logprobs_of_one(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *x = numbers(ROWS * 1100, 3), lp[9], lse[ROWS];
    ops->logprob(d, lp, lse, x, several_first, several, ROWS, 1100);
    for (int i = 0; i < ROWS; i++)
        for (int c = several_first[i]; c < several_first[i + 1]; c++) {
            float alone = logprob_alone(ops, d, x + i * 1100, 1100, several[c]);
            assert_same_bits(&alone, &lp[c], 1);
        }
    free(x);
    ops->close(d);
}

/* One id a row, said either way, is one path. */
static void one_id_a_row_has_the_same_bits_with_and_without_first(void **state)
{
    static const int first[] = {0, 1, 2, 3, 4};
    struct head_case c = {.ops = ops_cpu(), .ids = one_each, .count = ROWS, .vocab = 1100};
    c.d = device_with(c.ops, 2);
    c.logits = numbers(ROWS * 1100, 4);
    c.g = numbers(ROWS, 5);
    c.g[2] = -0.0f;
    float *plain = way_back(&c);
    c.first = first;
    float *listed = way_back(&c);
    assert_same_bits(plain, listed, ROWS * 1100);
    free(plain), free(listed), free(c.logits), free(c.g);
    c.ops->close(c.d);
}

static void every_instruction_set_has_the_same_bits_on_any_threads(void **state)
{
    static const char *const isas[] = {"plain", "avx2", "avx512"};
    const int vocab = 3000;
    float *logits = numbers((size_t)(ROWS * vocab), 6), *g = numbers(9, 7), *want = NULL;
    float want_lp[9], want_lse[ROWS];
    int seen = 0;
    for (int k = 0; k < 3; k++)
        for (int threads = 1; threads <= 3; threads++) {
            struct head_case c = {.ops = ops_cpu_isa(isas[k]), .logits = logits, .g = g,
                                  .first = several_first, .ids = several, .count = 9,
                                  .vocab = vocab};
            if (!c.ops) continue;
            float lp[9], lse[ROWS];
            c.d = device_with(c.ops, threads);
            c.ops->logprob(c.d, lp, lse, logits, several_first, several, ROWS, vocab);
            float *dx = way_back(&c);
            if (!want) {
                want = dx;
                memcpy(want_lp, lp, sizeof lp), memcpy(want_lse, lse, sizeof lse);
            } else {
                assert_same_bits(want, dx, (size_t)(ROWS * vocab));
                assert_memory_equal(want_lp, lp, sizeof lp);
                assert_memory_equal(want_lse, lse, sizeof lse);
                free(dx);
            }
            c.ops->close(c.d);
            seen++;
        }
    assert_true(seen >= 3);
    free(want), free(logits), free(g);
}

/* A vocabulary of two parts: each part's gradients are those of the whole, when both know the
 * whole's log-sum-exp; an id of the other part has no logprob here. */
static void a_part_of_the_vocabulary_leaves_ids_of_others_out(void **state)
{
    enum { VOCAB = 37, LEFT = 16 };
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *whole = numbers(ROWS * VOCAB, 4), *g = numbers(16, 5), lp[16], lse[ROWS], lp2[16],
          lse2[ROWS];
    float *parts[2] = {zeros(ROWS * LEFT), zeros(ROWS * (VOCAB - LEFT))};
    int32_t ids[2][9];
    for (int p = 0; p < 2; p++) {
        int from = p ? LEFT : 0, vocab = p ? VOCAB - LEFT : LEFT;
        for (int c = 0; c < 9; c++)
            ids[p][c] = several[c] >= from && several[c] < from + vocab ? several[c] - from : -1;
        for (int r = 0; r < ROWS; r++)
            memcpy(parts[p] + r * vocab, whole + r * VOCAB + from, (size_t)vocab * sizeof(float));
        ops->logprob(d, lp2, lse2, parts[p], several_first, ids[p], ROWS, vocab);
        for (int c = 0; c < 9; c++)
            assert_true(ids[p][c] >= 0 ? lp2[c] < 0 : lp2[c] == 0);
    }
    ops->logprob(d, lp, lse, whole, several_first, several, ROWS, VOCAB);
    ops->logprob_back(d, whole, lse, g, several_first, several, ROWS, VOCAB);
    for (int p = 0; p < 2; p++) {
        int from = p ? LEFT : 0, vocab = p ? VOCAB - LEFT : LEFT;
        ops->logprob_back(d, parts[p], lse, g, several_first, ids[p], ROWS, vocab);
        for (int r = 0; r < ROWS; r++)
            assert_same_bits(parts[p] + r * vocab, whole + r * VOCAB + from, (size_t)vocab);
        free(parts[p]);
    }
    free(whole), free(g);
    ops->close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_logprob_is_the_logit_less_the_log_of_the_sum),
        cmocka_unit_test(a_logit_of_minus_infinity_takes_no_part),
        cmocka_unit_test(the_way_back_agrees_with_finite_differences),
        cmocka_unit_test(several_ids_of_a_row_have_the_logprobs_of_one),
        cmocka_unit_test(a_part_of_the_vocabulary_leaves_ids_of_others_out),
        cmocka_unit_test(one_id_a_row_has_the_same_bits_with_and_without_first),
        cmocka_unit_test(every_instruction_set_has_the_same_bits_on_any_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

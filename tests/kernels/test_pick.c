/* The choice of a token: against sorting, at its edges, and that a choice is its own. */
#include "kernels/check.h"

static struct device *d;
static const struct ops *ops;

static int open_device(void **state)
{
    ops = ops_cpu();
    d = device_with(ops, 2);
    return 0;
}

static int close_device(void **state)
{
    ops->close(d);
    return 0;
}

static int32_t pick(const float *logits, int vocab, float temperature, int top_k, float top_p,
                    double u)
{
    const struct pick p = {0, temperature, top_k, top_p, u};
    int32_t id = -1;
    ops->pick(d, &id, logits, &p, 1, vocab);
    assert_in_range(id, 0, vocab - 1);
    return id;
}

/* Uniform in [0, 1). */
static double next_uniform(uint64_t *state)
{
    return ((double)next_number(state) + 1) / 2;
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    static const float logits[] = {0.5f, -1, 2, 2, 2, -0.0f}, zeros_of_both_signs[] = {-0.0f, 0.0f};
    static const float temperatures[] = {0, -1, 1e-39f, NAN};
    for (int t = 0; t < 4; t++)
        for (double u = 0; u < 1; u += 0.1)
            assert_int_equal(pick(logits, 6, temperatures[t], -1, 1, u), 2);
    assert_int_equal(pick(zeros_of_both_signs, 2, 0, -1, 1, 0.9), 0);
}

static void draws_walk_the_ids_in_order(void **state)
{
    const float logits[] = {logf(0.2f), logf(0.5f), logf(0.3f)};
    static const struct {
        double u;
        int32_t id;
    } cases[] = {{0, 0}, {0.19, 0}, {0.21, 1}, {0.69, 1}, {0.71, 2}, {0.9999999999, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(pick(logits, 3, 1, -1, 1, cases[i].u), cases[i].id);
}

static void temperature_sharpens_before_anything_is_cut(void **state)
{
    const float logits[] = {logf(0.4f), logf(0.6f)};
    assert_int_equal(pick(logits, 2, 1, -1, 1, 0.35), 0);
    /* squared: 0.16 to 0.36, so id 0 ends at 0.3077 */
    assert_int_equal(pick(logits, 2, 0.5f, -1, 1, 0.35), 1);
    assert_int_equal(pick(logits, 2, 0.5f, -1, 1, 0.30), 0);
    /* 0.6 reaches top_p 0.65 only when sharpened */
    assert_int_equal(pick(logits, 2, 1, -1, 0.65f, 0.1), 0);
    assert_int_equal(pick(logits, 2, 0.5f, -1, 0.65f, 0.1), 1);
}

/* The same choice by the plain way: sort, cut, add up. */
static int32_t pick_by_sorting(const float *logits, int vocab, double temperature, int top_k,
                               double top_p, double u)
{
    int order[64];
    double mass[64], total = 0, kept = 0, walked = 0;
    bool in[64] = {false};
    float max = logits[0];
    for (int i = 0; i < vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < vocab; i++) {
        int at = i;
        while (at > 0 && logits[order[at - 1]] < logits[i]) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
        mass[i] = exp((double)(logits[i] - max) / temperature);
    }
    int k = top_k > 0 && top_k < vocab ? top_k : vocab;
    for (int i = 0; i < k; i++)
        total += mass[order[i]];
    for (int i = 0; i < k && (top_p >= 1 || kept < top_p * total); i++) {
        in[order[i]] = true;
        kept += mass[order[i]];
    }
    for (int i = 0; i < vocab; i++) {
        if (!in[i]) continue;
        walked += mass[i];
        if (walked > u * kept) return i;
    }
    return -1;
}

static void cuts_as_sorting_would(void **state)
{
    int differ = 0, all = 0;
    for (uint64_t round = 0; round < 3000; round++) {
        uint64_t random = round * 2 + 1;
        int vocab = 2 + (int)(next_uniform(&random) * 62);
        float *logits = numbers((size_t)vocab, round);
        for (int i = 0; i < vocab; i++)
            logits[i] = round % 3 ? logits[i] * 4 : roundf(logits[i] * 4); /* or many ties */
        float temperature = round % 5 ? 1 : 0.3f;
        int top_k = round % 2 ? -1 : 1 + (int)(next_uniform(&random) * vocab);
        float top_p = round % 4 < 2 ? 1 : 0.05f + 0.9f * (float)next_uniform(&random);
        double u = next_uniform(&random);
        differ += pick(logits, vocab, temperature, top_k, top_p, u) !=
                  pick_by_sorting(logits, vocab, (double)temperature, top_k, (double)top_p, u);
        all++;
        free(logits);
    }
    /* fp32 exp against double: a draw on the very edge may fall on the other side */
    print_message("%d of %d draws differ\n", differ, all);
    assert_true(differ <= 2);
}

static void top_k_keeps_the_lower_ids_of_equals(void **state)
{
    static const float logits[] = {1, 3, 3, 3, 3};
    for (double u = 0; u < 1; u += 0.05) {
        assert_int_equal(pick(logits, 5, 1, 1, 1, u), 1);
        assert_in_range(pick(logits, 5, 1, 3, 1, u), 1, 3);
        assert_int_equal(pick(logits, 5, 1, -1, 0.2f, u), 1);
        assert_in_range(pick(logits, 5, 1, -1, 0.4f, u), 1, 2);
        assert_int_equal(pick(logits, 5, 1, -1, 0, u), 1);
    }
    assert_int_equal(pick(logits, 5, 1, 3, 1, 0.99), 3);
    assert_int_equal(pick(logits, 5, 1, 9, 1, 0.999999), 4);
}

static void frequencies_follow_the_probabilities(void **state)
{
    const float logits[] = {logf(0.1f), logf(0.6f), logf(0.05f), logf(0.25f)};
    static const double want[] = {0.1, 0.6, 0.05, 0.25};
    int seen[4] = {0};
    uint64_t random = 11;
    for (int i = 0; i < 20000; i++)
        seen[pick(logits, 4, 1, -1, 1, next_uniform(&random))]++;
    for (int i = 0; i < 4; i++)
        assert_true(fabs(seen[i] / 20000.0 - want[i]) < 0.015);
}

static void logits_of_a_diverged_run_still_give_a_token(void **state)
{
    static const float nans[] = {NAN, NAN, NAN}, some[] = {NAN, 1, INFINITY, -INFINITY};
    static const float none[] = {NAN, -INFINITY, -INFINITY};
    static const float lows[] = {-INFINITY, 2, NAN, -INFINITY, 2};
    for (int top_k = -1; top_k < 3; top_k += 2)
        for (double u = 0; u < 1; u += 0.25) {
            assert_int_equal(pick(nans, 3, 1, top_k, 0.9f, u), 0);
            assert_int_equal(pick(some, 4, 1, top_k, 0.9f, u), 2);
            assert_int_equal(pick(none, 3, 1, top_k, 0.9f, u), 1);
        }
    for (double u = 0; u < 1; u += 0.1) {
        assert_int_equal(pick(lows, 5, 1, -1, 1, u), u < 0.5 ? 1 : 4);
        assert_int_equal(pick(lows, 5, 1, 4, 1, u), u < 0.5 ? 1 : 4);
    }
}

/* ------------------------------------------------------------------ in company */

#define ROWS  5
#define VOCAB 1000
#define PICKS 300

/* Rows in turn and in runs, with all settings. */
static void make_picks(struct pick *p)
{
    uint64_t random = 5;
    for (int i = 0; i < PICKS; i++) {
        int kind = i < 150 ? i : i / 90; /* the last ones differ in their numbers alone */
        p[i] = (struct pick){.row = kind % ROWS,
                             .temperature = kind % 4 == 3 ? 0 : 0.5f + 0.25f * (float)(kind % 7),
                             .top_k = kind % 3 ? -1 : 1 + kind * 6,
                             .top_p = kind % 2 ? 1 : 0.7f,
                             .uniform = next_uniform(&random)};
    }
}

static void a_choice_is_its_own(void **state)
{
    static const char *const isas[] = {"plain", "avx2", "avx512", "avx512bf16"};
    struct pick picks[PICKS], turned[PICKS];
    int32_t alone[PICKS], ids[PICKS];
    float *logits = numbers(ROWS * VOCAB, 9);
    for (int i = 0; i < ROWS * VOCAB; i++)
        logits[i] = i % 2 ? logits[i] * 5 : roundf(logits[i] * 5);
    make_picks(picks);
    for (int i = 0; i < PICKS; i++) {
        alone[i] = pick(logits + picks[i].row * VOCAB, VOCAB, picks[i].temperature,
                        picks[i].top_k, picks[i].top_p, picks[i].uniform);
        turned[PICKS - 1 - i] = picks[i];
    }
    for (int threads = 1; threads <= 3; threads++)
        for (int i = 0; i < 4; i++) {
            const struct ops *isa = ops_cpu_isa(isas[i]);
            if (!isa) continue;
            struct device *other = device_with(isa, threads);
            isa->pick(other, ids, logits, picks, PICKS, VOCAB);
            assert_memory_equal(ids, alone, sizeof ids);
            isa->pick(other, ids, logits, turned, PICKS, VOCAB);
            for (int j = 0; j < PICKS; j++)
                assert_int_equal(ids[PICKS - 1 - j], alone[j]);
            isa->pick(other, ids, logits, picks, 0, VOCAB);
            isa->close(other);
        }
    free(logits);
}

/* Ids of no mass change nothing, also where there is no more room for masses in scratch. */
static void a_vocabulary_may_be_wide(void **state)
{
    float *logits = numbers(OPS_VOCAB_MAX, 3);
    for (int i = 0; i < OPS_VOCAB_MAX; i++)
        logits[i] = i < 150000 ? logits[i] * 5 : -INFINITY;
    for (int i = 0; i < 4; i++) {
        int top_k = i % 2 ? 5000 : -1;
        float top_p = i < 2 ? 1 : 0.8f;
        assert_int_equal(pick(logits, 150000, 0.9f, top_k, top_p, 0.3 + 0.1 * i),
                         pick(logits, OPS_VOCAB_MAX, 0.9f, top_k, top_p, 0.3 + 0.1 * i));
    }
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(draws_walk_the_ids_in_order),
        cmocka_unit_test(temperature_sharpens_before_anything_is_cut),
        cmocka_unit_test(cuts_as_sorting_would),
        cmocka_unit_test(top_k_keeps_the_lower_ids_of_equals),
        cmocka_unit_test(frequencies_follow_the_probabilities),
        cmocka_unit_test(logits_of_a_diverged_run_still_give_a_token),
        cmocka_unit_test(a_choice_is_its_own),
        cmocka_unit_test(a_vocabulary_may_be_wide),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}

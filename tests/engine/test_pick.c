/* test_pick.c - random numbers by counter, and the choice of a token. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "engine/model.h"

/* Known answers of philox4x32-10, published with the Random123 library (kat_vectors). */
static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        philox4x32(cases[i].key, cases[i].counter, out);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
}

static void uniform_numbers_fill_the_unit_interval_and_differ(void **state)
{
    (void)state;
    double sum = 0, low = 1, high = 0;
    for (uint32_t i = 0; i < 10000; i++) {
        double u = sample_uniform(7, i % 100, i / 100);
        assert_true(u >= 0 && u < 1);
        sum += u;
        low = u < low ? u : low;
        high = u > high ? u : high;
    }
    assert_true(fabs(sum / 10000 - 0.5) < 0.02 && low < 0.001 && high > 0.999);
    double u = sample_uniform(7, 3, 5);
    assert_true(u == sample_uniform(7, 3, 5));
    assert_true(u != sample_uniform(8, 3, 5) && u != sample_uniform(7, 4, 5) &&
                u != sample_uniform(7, 5, 3) && u != sample_uniform(7 + (UINT64_C(1) << 32), 3, 5));
}

static void filling_does_not_depend_on_the_pieces(void **state)
{
    (void)state;
    float whole[103], pieces[103], other[103];
    philox_fill(whole, 103, 0, 0.25f, 5, "a");
    philox_fill(pieces, 40, 0, 0.25f, 5, "a");
    philox_fill(pieces + 40, 63, 40, 0.25f, 5, "a");
    philox_fill(other, 103, 0, 0.25f, 5, "b");
    assert_memory_equal(whole, pieces, sizeof whole);
    int same = 0;
    for (int i = 0; i < 103; i++) {
        assert_true(whole[i] >= -0.25f && whole[i] < 0.25f);
        same += whole[i] == other[i];
    }
    assert_true(same < 3);
}

static int32_t pick(const float *logits, int vocab, float temperature, int top_k, float top_p,
                    double u)
{
    const struct pick how = {temperature, top_k, top_p};
    float scratch[64];
    assert_true(vocab <= 64);
    int32_t id = sample_pick(logits, vocab, &how, u, scratch);
    assert_true(id >= 0 && id < vocab);
    return id;
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    (void)state;
    static const float logits[] = {0.5f, -1, 2, 2, 2, -0.0f};
    for (double u = 0; u < 1; u += 0.1)
        assert_int_equal(pick(logits, 6, 0, -1, 1, u), 2);
    static const float zeros[] = {-0.0f, 0.0f};
    assert_int_equal(pick(zeros, 2, 0, -1, 1, 0.9), 0);
}

static void draws_walk_the_ids_in_order(void **state)
{
    (void)state;
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
    (void)state;
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
        mass[i] = exp((logits[i] - max) / temperature);
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
    (void)state;
    int differ = 0, all = 0;
    for (uint32_t round = 0; round < 3000; round++) {
        float logits[64];
        int vocab = 2 + (int)(sample_uniform(1, round, 0) * 62);
        philox_fill(logits, (size_t)vocab, 0, 4, round, "logits");
        if (round % 3 == 0) /* many ties */
            for (int i = 0; i < vocab; i++)
                logits[i] = roundf(logits[i]);
        float temperature = round % 5 ? 1 : 0.3f;
        int top_k = round % 2 ? -1 : 1 + (int)(sample_uniform(1, round, 1) * vocab);
        float top_p = round % 4 < 2 ? 1 : 0.05f + 0.9f * (float)sample_uniform(1, round, 2);
        double u = sample_uniform(1, round, 3);
        int32_t ours = pick(logits, vocab, temperature, top_k, top_p, u);
        int32_t plain =
            pick_by_sorting(logits, vocab, (double)temperature, top_k, (double)top_p, u);
        differ += ours != plain;
        all++;
    }
    /* fp32 exp against double: a draw on the very edge may fall on the other side */
    print_message("%d of %d draws differ\n", differ, all);
    assert_true(differ <= 2);
}

static void top_k_keeps_the_lower_ids_of_equals(void **state)
{
    (void)state;
    static const float logits[] = {1, 3, 3, 3, 3};
    for (double u = 0; u < 1; u += 0.05) {
        assert_int_equal(pick(logits, 5, 1, 1, 1, u), 1);
        assert_in_range(pick(logits, 5, 1, 3, 1, u), 1, 3);
        assert_int_equal(pick(logits, 5, 1, -1, 0.2f, u), 1);
        assert_in_range(pick(logits, 5, 1, -1, 0.4f, u), 1, 2);
    }
    assert_int_equal(pick(logits, 5, 1, 3, 1, 0.99), 3);
    assert_int_equal(pick(logits, 5, 1, 9, 1, 0.999999), 4);
}

static void frequencies_follow_the_probabilities(void **state)
{
    (void)state;
    const float logits[] = {logf(0.1f), logf(0.6f), logf(0.05f), logf(0.25f)};
    static const double want[] = {0.1, 0.6, 0.05, 0.25};
    int seen[4] = {0};
    for (uint32_t i = 0; i < 20000; i++)
        seen[pick(logits, 4, 1, -1, 1, sample_uniform(11, 0, i))]++;
    for (int i = 0; i < 4; i++)
        assert_true(fabs(seen[i] / 20000.0 - want[i]) < 0.015);
}

/* Several draws at once are the draws one by one. */
static void many_draws_are_single_draws(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 200; round++) {
        float logits[50], scratch[50];
        double u[ENGINE_ALT_MAX];
        int32_t ids[ENGINE_ALT_MAX];
        philox_fill(logits, 50, 0, 4, round, "logits");
        float temperature = round % 4 == 0 ? 0 : 0.5f + 0.5f * (float)(round % 3);
        for (uint32_t j = 0; j < ENGINE_ALT_MAX; j++)
            u[j] = alt_uniform(round, j, 3);
        sample_draws(logits, 50, temperature, u, ENGINE_ALT_MAX, scratch, ids);
        for (int j = 0; j < ENGINE_ALT_MAX; j++)
            assert_int_equal(ids[j], pick(logits, 50, temperature, -1, 1, u[j]));
    }
}

static void draws_for_the_prompt_have_numbers_of_their_own(void **state)
{
    (void)state;
    double u = alt_uniform(7, 3, 5);
    assert_true(u >= 0 && u < 1 && u == alt_uniform(7, 3, 5));
    assert_true(u != sample_uniform(7, 3, 5) && u != alt_uniform(7, 5, 3) &&
                u != alt_uniform(8, 3, 5));
}

static void the_top_is_in_order_and_ties_go_by_id(void **state)
{
    (void)state;
    static const float few[] = {1, 3, NAN, 3, -0.0f, 0.0f, -INFINITY};
    static const int32_t want[] = {1, 3, 0, 4, 5, 6, 2, -1, -1};
    int32_t got[ENGINE_TOPK_MAX];
    for (int k = 1; k <= 9; k++) {
        sample_top(few, 7, k, got);
        assert_memory_equal(got, want, (size_t)k * sizeof *got);
    }
    for (uint32_t round = 0; round < 300; round++) {
        float logits[200];
        philox_fill(logits, 200, 0, 3, round, "top");
        for (int i = 0; i < 200 && round % 2; i++)
            logits[i] = roundf(logits[i] * 4); /* many ties */
        int k = 1 + (int)(round % ENGINE_TOPK_MAX);
        sample_top(logits, 200, k, got);
        for (int j = 0; j < k; j++) {
            int before = 0; /* ids that come before this one, whole vocabulary */
            for (int i = 0; i < 200; i++)
                before += logits[i] > logits[got[j]] || (logits[i] == logits[got[j]] && i < got[j]);
            assert_int_equal(before, j);
        }
    }
}

static void logits_of_a_diverged_run_still_give_a_token(void **state)
{
    (void)state;
    static const float nans[] = {NAN, NAN, NAN}, some[] = {NAN, 1, INFINITY, -INFINITY};
    for (int top_k = -1; top_k < 3; top_k += 2)
        for (double u = 0; u < 1; u += 0.25) {
            pick(nans, 3, 1, top_k, 0.9f, u);
            pick(some, 4, 1, top_k, 0.9f, u);
        }
    static const float lows[] = {-INFINITY, 2, NAN, -INFINITY, 2};
    for (double u = 0; u < 1; u += 0.1) {
        int32_t id = pick(lows, 5, 1, -1, 1, u);
        assert_true(id == 1 || id == 4);
    }
}

static bool hit(const char *text, size_t fresh, const char *a, const char *b)
{
    const char *stops[2] = {a, b};
    return stop_string_hit(text, strlen(text), fresh, stops, b ? 2 : 1);
}

static void a_stop_string_counts_when_it_ends_in_the_fresh_bytes(void **state)
{
    (void)state;
    assert_true(hit("hello END", 1, "END", NULL));
    assert_true(hit("hello ENDs", 2, "END", NULL));  /* the token went on */
    assert_false(hit("hello ENDs", 1, "END", NULL)); /* it was there before: too late */
    assert_false(hit("hello EN", 2, "END", NULL));
    assert_true(hit("END", 3, "END", NULL));
    assert_true(hit("a\n\nUser:", 9, "x", "\n\nUser:"));
    assert_false(hit("a", 1, "", NULL));
    assert_false(hit("", 0, "END", NULL));
    assert_false(hit("END", 0, "END", NULL));
    assert_true(hit("aa", 1, "aa", NULL));
    assert_true(hit("END", 100, "END", NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(uniform_numbers_fill_the_unit_interval_and_differ),
        cmocka_unit_test(filling_does_not_depend_on_the_pieces),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(draws_walk_the_ids_in_order),
        cmocka_unit_test(temperature_sharpens_before_anything_is_cut),
        cmocka_unit_test(cuts_as_sorting_would),
        cmocka_unit_test(top_k_keeps_the_lower_ids_of_equals),
        cmocka_unit_test(frequencies_follow_the_probabilities),
        cmocka_unit_test(many_draws_are_single_draws),
        cmocka_unit_test(draws_for_the_prompt_have_numbers_of_their_own),
        cmocka_unit_test(the_top_is_in_order_and_ties_go_by_id),
        cmocka_unit_test(logits_of_a_diverged_run_still_give_a_token),
        cmocka_unit_test(a_stop_string_counts_when_it_ends_in_the_fresh_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

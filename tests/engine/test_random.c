/* test_random.c - random numbers by counter, the likeliest ids, and stop strings. */
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
        cmocka_unit_test(draws_for_the_prompt_have_numbers_of_their_own),
        cmocka_unit_test(the_top_is_in_order_and_ties_go_by_id),
        cmocka_unit_test(a_stop_string_counts_when_it_ends_in_the_fresh_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

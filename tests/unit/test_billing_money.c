/* test_billing_money.c - dollars to pico-dollars and back, exactly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "money.h"
#include "price.h"

static int64_t parsed(const char *text, int decimals)
{
    struct err e = {0};
    int64_t value;
    if (money_parse("--usd", text, decimals, &value, &e) < 0) fail_msg("%s", e.text);
    return value;
}

static void refused(const char *text, int decimals)
{
    struct err e = {0};
    int64_t value;
    assert_int_equal(money_parse("--usd", text, decimals, &value, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "--usd"));
    assert_non_null(strstr(e.text, text));
}

static void test_dollars_become_whole_pico_dollars(void **state)
{
    assert_int_equal(parsed("1", USD_DECIMALS), 1000000000000);
    assert_int_equal(parsed("0.000000000001", USD_DECIMALS), 1);
    assert_int_equal(parsed("-2.50", USD_DECIMALS), -2500000000000);
    assert_int_equal(parsed("0", USD_DECIMALS), 0);
    assert_int_equal(parsed("9223372.036854775807", USD_DECIMALS), INT64_MAX);
}

static void test_a_dollar_per_million_tokens_is_a_million_pico_dollars_a_token(void **state)
{
    assert_int_equal(parsed("1", PRICE_DECIMALS), 1000000);
    assert_int_equal(parsed("0.07", PRICE_DECIMALS), 70000); /* the first price list's prefill */
    assert_int_equal(parsed("0.22", PRICE_DECIMALS), 220000);
    assert_int_equal(parsed("1000", PRICE_DECIMALS), PRICE_PICO_MAX);
}

static void test_what_is_no_amount_is_refused_with_its_text(void **state)
{
    static const char *const bad[] = {
        "",   "-",  ".",   ".5",  "5.",  "1,5",   "1e3", " 1",
        "1 ", "+1", "0x1", "--1", "nan", "1.2.3", "inf", "1.0000000000001"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i], USD_DECIMALS);
    refused("0.0000001", PRICE_DECIMALS);
    refused("9223372.036854775808", USD_DECIMALS);
    refused("99999999999999999999", USD_DECIMALS);
}

static void check_text(const char *digits, int decimals, int min, const char *wanted)
{
    char out[MONEY_TEXT_SIZE];
    assert_string_equal(money_text(digits, decimals, min, out), wanted);
}

static void test_amounts_are_shown_exactly_and_without_needless_zeros(void **state)
{
    check_text("0", 12, 2, "0.00");
    check_text("1", 12, 2, "0.000000000001");
    check_text("2200000", 12, 2, "0.0000022");
    check_text("1000000000000", 12, 2, "1.00");
    check_text("12500000000001", 12, 2, "12.500000000001");
    check_text("-500000000000", 12, 2, "-0.50");
    check_text("70000", 6, 2, "0.07");
    check_text("1000000", 6, 0, "1");
    check_text("99999999999999999999999999999999999999", 12, 2,
               "99999999999999999999999999.999999999999");
}

static void test_text_and_amount_are_inverse(void **state)
{
    static const int64_t amounts[] = {
        0, 1, -1, 999999999999, 1000000000000, 123456789012345678, INT64_MAX, -INT64_MAX};
    char out[MONEY_TEXT_SIZE];
    for (size_t i = 0; i < sizeof amounts / sizeof *amounts; i++)
        assert_int_equal(parsed(money_text_of(amounts[i], 12, 2, out), 12), amounts[i]);
}

static void test_a_charge_that_does_not_fit_is_an_error_not_a_number(void **state)
{
    struct err e = {0};
    int64_t amount, sum = INT64_MAX - 1;
    assert_int_equal(money_charge(INT64_MAX / 2, 3, &amount, &e), -1);
    assert_int_equal(money_charge(-1, 3, &amount, &e), -1);
    assert_int_equal(money_charge(1, -3, &amount, &e), -1);
    assert_int_equal(money_add(&sum, 2, &e), -1);
}

static void test_the_largest_job_at_the_largest_price_fits(void **state)
{
    struct err e = {0};
    int64_t amount, sum = 0;
    for (int k = 0; k < USAGE_KINDS; k++) {
        assert_int_equal(money_charge(JOB_TOKENS_MAX, PRICE_PICO_MAX, &amount, &e), 0);
        assert_int_equal(money_add(&sum, amount, &e), 0);
    }
    assert_int_equal(sum, 6442450941000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dollars_become_whole_pico_dollars),
        cmocka_unit_test(test_a_dollar_per_million_tokens_is_a_million_pico_dollars_a_token),
        cmocka_unit_test(test_what_is_no_amount_is_refused_with_its_text),
        cmocka_unit_test(test_amounts_are_shown_exactly_and_without_needless_zeros),
        cmocka_unit_test(test_text_and_amount_are_inverse),
        cmocka_unit_test(test_a_charge_that_does_not_fit_is_an_error_not_a_number),
        cmocka_unit_test(test_the_largest_job_at_the_largest_price_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_billing_price.c - which price counts, and how a period is cut into hours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "period.h"
#include "price.h"

#define HOUR 3600000000LL

static const struct price prices[] = {
    {"*", USAGE_TRAIN, 10, TIME_BEGIN, 100},
    {"*", USAGE_TRAIN, 20, 100, TIME_END},
    {"big", USAGE_TRAIN, 99, 50, 150},
    {"*", USAGE_SAMPLE, 7, 10, TIME_END},
};
#define COUNT 4

static int64_t pico_at(const char *model, enum usage_kind kind, int64_t at)
{
    const struct price *p = price_at(prices, COUNT, model, kind, at);
    return p ? p->pico : -1;
}

static void test_a_price_holds_from_its_begin_until_just_before_its_end(void **state)
{
    assert_int_equal(pico_at("any", USAGE_TRAIN, 0), 10);
    assert_int_equal(pico_at("any", USAGE_TRAIN, 99), 10);
    assert_int_equal(pico_at("any", USAGE_TRAIN, 100), 20);
    assert_int_equal(pico_at("any", USAGE_SAMPLE, 9), -1);
    assert_int_equal(pico_at("any", USAGE_SAMPLE, 10), 7);
}

static void test_a_models_own_price_goes_before_the_general_one(void **state)
{
    assert_int_equal(pico_at("big", USAGE_TRAIN, 49), 10);
    assert_int_equal(pico_at("big", USAGE_TRAIN, 50), 99);
    assert_int_equal(pico_at("big", USAGE_TRAIN, 149), 99);
    assert_int_equal(pico_at("big", USAGE_TRAIN, 150), 20);
    assert_int_equal(pico_at("big", USAGE_SAMPLE, 60), 7);
}

static void test_each_kind_of_a_job_is_charged_by_its_own_price(void **state)
{
    struct err e = {0};
    int64_t tokens[USAGE_KINDS] = {0, 3, 5}, amounts[USAGE_KINDS], total;
    assert_int_equal(price_charge(prices, COUNT, "big", 60, tokens, amounts, &total, &e), 0);
    assert_int_equal(amounts[USAGE_PREFILL], 0);
    assert_int_equal(amounts[USAGE_SAMPLE], 21);
    assert_int_equal(amounts[USAGE_TRAIN], 495);
    assert_int_equal(total, 516);
}

static void test_a_missing_price_bills_nothing_and_is_named(void **state)
{
    struct err e = {0};
    int64_t tokens[USAGE_KINDS] = {1, 0, 0}, amounts[USAGE_KINDS], total;
    assert_int_equal(price_charge(prices, COUNT, "big", 60, tokens, amounts, &total, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY); /* until an operator sets it */
    assert_non_null(strstr(e.text, "prefill"));
    assert_non_null(strstr(e.text, "big"));
}

static int64_t at(const char *text)
{
    struct err e = {0};
    int64_t us;
    if (time_parse("--from", text, &us, &e) < 0) fail_msg("%s", e.text);
    return us;
}

static void test_dates_and_times_with_their_zone_are_understood(void **state)
{
    assert_int_equal(at("1970-01-01"), 0);
    assert_int_equal(at("2026-11-24"), 1795478400000000);
    assert_int_equal(at("2026-11-24T00:00:00Z"), at("2026-11-24"));
    assert_int_equal(at("2026-11-24T01:30:00+01:30"), at("2026-11-24"));
    assert_int_equal(at("2026-11-23T19:00:00-05:00"), at("2026-11-24"));
    assert_int_equal(at("1970-01-01T00:00:01.25Z"), 1250000);
    assert_int_equal(at("2028-02-29") - at("2028-02-28"), 24 * HOUR);
}

static void test_what_is_no_time_is_refused_with_its_text(void **state)
{
    static const char *const bad[] = {"",
                                      "yesterday",
                                      "2026",
                                      "2026-13-01",
                                      "2026-02-29",
                                      "2026-11-31",
                                      "2026-11-24T10:00:00",
                                      "2026-11-24T24:00:00Z",
                                      "2026-11-24T10:00:00+1",
                                      "2026-11-24Z",
                                      "2026-11-24 ",
                                      "24.11.2026",
                                      "1969-12-31",
                                      "2026-11-24T10:00:00.Z"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        int64_t us;
        assert_int_equal(time_parse("--from", bad[i], &us, &e), -1);
        assert_int_equal(e.kind, ERR_USER);
        assert_non_null(strstr(e.text, bad[i]));
    }
}

static void test_times_are_written_as_they_are_read(void **state)
{
    char text[TIME_TEXT_SIZE];
    int64_t us = at("2026-11-24T10:20:30.123456Z");
    assert_string_equal(time_text(us, text), "2026-11-24T10:20:30.123456Z");
    assert_int_equal(at(text), us);
    assert_string_equal(time_text(TIME_BEGIN, text), "-infinity");
    assert_string_equal(time_text(TIME_END, text), "infinity");
}

/* Each microsecond of [from, to) must lie in exactly one part: their lengths add up. */
static void check_cut(int64_t from, int64_t to)
{
    struct err e = {0};
    struct period p;
    assert_int_equal(period_cut(from, to, &p, &e), 0);
    int64_t hours = p.hour_to > p.hour_from ? p.hour_to - p.hour_from : 0;
    int64_t head = p.head_to > p.from ? p.head_to - p.from : 0;
    int64_t tail = p.to > p.tail_from ? p.to - p.tail_from : 0;
    assert_int_equal(head + hours + tail, to - from);
    assert_int_equal(p.hour_from % HOUR, 0);
    assert_int_equal(p.hour_to % HOUR, 0);
    assert_true(head < HOUR && tail < HOUR);
}

static void test_a_period_is_whole_hours_and_two_cut_ends(void **state)
{
    static const int64_t ends[] = {0,        1,        HOUR - 1,     HOUR,         HOUR + 1,
                                   2 * HOUR, 5 * HOUR, 5 * HOUR + 7, 6 * HOUR - 1, 9 * HOUR};
    int count = sizeof ends / sizeof *ends;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++)
            check_cut(ends[i], ends[j]);
}

static void test_all_time_is_whole_hours_only(void **state)
{
    struct err e = {0};
    struct period p;
    assert_int_equal(period_cut(TIME_BEGIN, TIME_END, &p, &e), 0);
    assert_int_equal(p.hour_from, TIME_BEGIN);
    assert_int_equal(p.hour_to, TIME_END);
    assert_true(p.head_to <= p.from && p.tail_from >= p.to);
    assert_int_equal(period_cut(TIME_BEGIN, HOUR + 5, &p, &e), 0);
    assert_true(p.hour_to == HOUR && p.tail_from == HOUR && p.to == HOUR + 5);
    assert_int_equal(period_cut(5, 5, &p, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_price_holds_from_its_begin_until_just_before_its_end),
        cmocka_unit_test(test_a_models_own_price_goes_before_the_general_one),
        cmocka_unit_test(test_each_kind_of_a_job_is_charged_by_its_own_price),
        cmocka_unit_test(test_a_missing_price_bills_nothing_and_is_named),
        cmocka_unit_test(test_dates_and_times_with_their_zone_are_understood),
        cmocka_unit_test(test_what_is_no_time_is_refused_with_its_text),
        cmocka_unit_test(test_times_are_written_as_they_are_read),
        cmocka_unit_test(test_a_period_is_whole_hours_and_two_cut_ends),
        cmocka_unit_test(test_all_time_is_whole_hours_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_gateway_quota.c - requests a minute, and what is said about them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "api/quota.h"

static struct quota *quota_for_test(void)
{
    struct err e = {0};
    struct quota *q = quota_create(&e);
    assert_non_null(q);
    return q;
}

static int let_in(struct quota *q, const char *account, int64_t limit, int64_t now_ms, int tries)
{
    int n = 0;
    for (int i = 0; i < tries; i++)
        n += quota_request(q, account, limit, now_ms) == 0;
    return n;
}

static void a_rested_account_may_send_its_minute_at_once(void **state)
{
    struct quota *q = quota_for_test();
    assert_int_equal(let_in(q, "a", 30, 1000, 100), 30);
    assert_int_equal(quota_request(q, "a", 30, 1000), 2); /* one each two seconds from here on */
    assert_int_equal(let_in(q, "b", 30, 1000, 100), 30);
    quota_free(q);
}

static void what_was_refused_is_not_counted_and_room_comes_back_evenly(void **state)
{
    struct quota *q = quota_for_test();
    assert_int_equal(let_in(q, "a", 60, 0, 1000), 60);
    assert_int_equal(let_in(q, "a", 60, 500, 1000), 0);
    assert_int_equal(let_in(q, "a", 60, 1000, 1000), 1);
    assert_int_equal(let_in(q, "a", 60, 11000, 1000), 10);
    assert_int_equal(let_in(q, "a", 60, 3600000, 1000), 60);
    quota_free(q);
}

static void a_limit_of_0_is_none(void **state)
{
    struct quota *q = quota_for_test();
    assert_int_equal(let_in(q, "a", 0, 1000, 100000), 100000);
    quota_free(q);
}

static void a_held_up_account_is_told_why_for_a_while(void **state)
{
    struct quota *q = quota_for_test();
    char why[QUOTA_REASON_SIZE];
    assert_false(quota_reason(q, "a", 1000, why));
    quota_note(q, "a", QUOTA_REQUESTS, 600, 1000);
    assert_true(quota_reason(q, "a", 1000 + QUOTA_TELL_MS, why));
    assert_non_null(strstr(why, "its 600 requests a minute"));
    assert_false(quota_reason(q, "b", 1000, why));
    assert_false(quota_reason(q, "a", 1001 + QUOTA_TELL_MS, why));
    quota_note(q, "a", QUOTA_TOKENS, INT64_MAX, 2000);
    assert_true(quota_reason(q, "a", 2000, why));
    assert_non_null(strstr(why, "tokens in line and running"));
    assert_null(strpbrk(why, "\"\\\n")); /* it goes into JSON as it is */
    assert_true(strlen(why) < sizeof why - 1);
    quota_free(q);
}

static void an_accounts_own_limits_go_before_the_gateways(void **state)
{
    struct quota_limits own = {QUOTA_PRESET, 0, 7, QUOTA_PRESET};
    quota_fill(&own, &(struct quota_limits){1, 2, 3, 4});
    assert_int_equal(own.requests_per_minute, 1);
    assert_int_equal(own.tokens_in_flight, 0);
    assert_int_equal(own.runs, 7);
    assert_int_equal(own.storage_bytes, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rested_account_may_send_its_minute_at_once),
        cmocka_unit_test(what_was_refused_is_not_counted_and_room_comes_back_evenly),
        cmocka_unit_test(a_limit_of_0_is_none),
        cmocka_unit_test(a_held_up_account_is_told_why_for_a_while),
        cmocka_unit_test(an_accounts_own_limits_go_before_the_gateways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

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

static void what_was_let_in_is_told_of_once(void **state)
{
    struct quota *q = quota_for_test();
    struct quota_post posts[4];
    assert_int_equal(quota_take(q, posts, 4, 1000), 0);
    let_in(q, "a", 60, 1000, 100);
    let_in(q, "b", 0, 1000, 100); /* no limit, nothing to count */
    assert_int_equal(quota_take(q, posts, 4, 1000), 1);
    assert_string_equal(posts[0].account, "a");
    assert_int_equal(posts[0].requests, 60);
    assert_int_equal(posts[0].step_us, 1000000);
    assert_int_equal(quota_take(q, posts, 4, 1000), 0);
    let_in(q, "a", 60, 3000, 100);
    let_in(q, "c", 60, 3000, 1);
    let_in(q, "d", 60, 3000, 1);
    assert_int_equal(quota_take(q, posts, 2, 3000) + quota_take(q, posts + 2, 2, 3000), 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(posts[i].requests, posts[i].account[0] == 'a' ? 2 : 1);
    quota_free(q);
}

/* Both let a whole minute in before they hear of each other; then together no more than one. */
static void what_other_gateways_let_in_counts_here_too(void **state)
{
    struct quota *q[2] = {quota_for_test(), quota_for_test()};
    struct quota_post post;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(let_in(q[i], "a", 60, 0, 100), 60);
        assert_int_equal(quota_take(q[i], &post, 1, 0), 1);
    }
    for (int i = 0; i < 2; i++)
        quota_learn(q[i], "a", 120 * 1000000, 0, 0);
    for (int64_t now_ms = 1000; now_ms <= 60000; now_ms += 1000)
        assert_int_equal(let_in(q[0], "a", 60, now_ms, 10) + let_in(q[1], "a", 60, now_ms, 10), 0);
    assert_int_equal(let_in(q[0], "a", 60, 61000, 10), 1);
    quota_learn(q[0], "a", 0, 0, 61000); /* Redis was emptied: what is known here stays */
    assert_int_equal(let_in(q[0], "a", 60, 61000, 10), 0);
    quota_learn(q[1], "a", 59 * 1000000, 0, 61000);
    assert_int_equal(let_in(q[1], "a", 60, 61000, 10), 1);
    quota_learn(q[1], "a", 59 * 1000000, 0, 61000); /* the one before is not told of yet */
    assert_int_equal(let_in(q[1], "a", 60, 61000, 10), 0);
    for (int i = 0; i < 2; i++)
        quota_free(q[i]);
}

static void tokens_elsewhere_are_believed_for_a_moment(void **state)
{
    struct quota *q = quota_for_test();
    assert_int_equal(quota_elsewhere(q, "a", 1000), 0);
    quota_learn(q, "a", 0, 700, 1000);
    assert_int_equal(quota_elsewhere(q, "a", 1000 + QUOTA_HEARD_MS), 700);
    assert_int_equal(quota_elsewhere(q, "a", 1001 + QUOTA_HEARD_MS), 0);
    assert_int_equal(quota_elsewhere(q, "b", 1000), 0);
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
        cmocka_unit_test(what_was_let_in_is_told_of_once),
        cmocka_unit_test(what_other_gateways_let_in_counts_here_too),
        cmocka_unit_test(tokens_elsewhere_are_believed_for_a_moment),
        cmocka_unit_test(a_held_up_account_is_told_why_for_a_while),
        cmocka_unit_test(an_accounts_own_limits_go_before_the_gateways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_gateway_tries.c - failures are counted, waited for, and forgotten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "api/tries.h"

#define MINUTE_MS 60000

static struct tries *tries_for_test(int entries)
{
    struct err e = {0};
    struct tries *t = tries_create(entries, 3, MINUTE_MS, &e);
    assert_non_null(t);
    return t;
}

static void who_failed_often_waits_until_the_window_ends(void **state)
{
    struct tries *t = tries_for_test(64);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(tries_wait_ms(t, "a", 1000 + i), 0);
        tries_failed(t, "a", 1000 + i);
    }
    assert_int_equal(tries_wait_ms(t, "a", 1003), MINUTE_MS - 3);
    assert_int_equal(tries_wait_ms(t, "b", 1003), 0);
    assert_int_equal(tries_wait_ms(t, "a", 1000 + MINUTE_MS - 1), 1);
    assert_int_equal(tries_wait_ms(t, "a", 1000 + MINUTE_MS), 0);
    tries_free(t);
}

/* Who goes on failing while he waits does not wait longer for it. */
static void waiting_does_not_grow(void **state)
{
    struct tries *t = tries_for_test(64);
    for (int i = 0; i < 1000; i++)
        tries_failed(t, "a", 5000);
    assert_int_equal(tries_wait_ms(t, "a", 5000 + MINUTE_MS), 0);
    tries_failed(t, "a", 5000 + MINUTE_MS);
    assert_int_equal(tries_wait_ms(t, "a", 5000 + MINUTE_MS), 0);
    tries_free(t);
}

/* However many fail, the table keeps as many as it was made for: the latest. */
static void the_table_is_bounded_and_forgets_the_oldest(void **state)
{
    struct tries *t = tries_for_test(8); /* one set */
    char who[16];
    for (int i = 0; i < 100; i++) {
        snprintf(who, sizeof who, "w%d", i);
        for (int n = 0; n < 3; n++)
            tries_failed(t, who, 1000 + i);
    }
    assert_int_equal(tries_wait_ms(t, "w0", 1100), 0);
    assert_int_equal(tries_wait_ms(t, "w99", 1100), MINUTE_MS - 1);
    tries_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_failed_often_waits_until_the_window_ends),
        cmocka_unit_test(waiting_does_not_grow),
        cmocka_unit_test(the_table_is_bounded_and_forgets_the_oldest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_worker_seen.c - a job's copy is known as one until the books can tell. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "seen.h"

#define MANY 5000

static struct seen *seen_for_test(int ids_max)
{
    struct err e = {0};
    struct seen *s = seen_create(ids_max, &e);
    assert_non_null(s);
    return s;
}

static const char *name(int i)
{
    static char text[32];
    snprintf(text, sizeof text, "job-%d", i);
    return text;
}

/* Every third offset is another record's. */
static void add(struct seen *s, int from, int to)
{
    struct err e = {0};
    for (int i = from; i < to; i++)
        assert_int_equal(seen_add(s, name(i), 3 * i, -1, &e), 0);
}

static void an_undecided_job_is_never_forgotten(void **state)
{
    struct seen *s = seen_for_test(MANY);
    add(s, 0, MANY);
    seen_booked(s, INT64_MAX);
    for (int i = 0; i < MANY; i++)
        assert_true(seen_has(s, name(i)));
    assert_false(seen_has(s, name(MANY)));
    seen_free(s);
}

static void what_the_books_have_leaves_and_nothing_else(void **state)
{
    struct seen *s = seen_for_test(MANY);
    add(s, 0, 4);
    for (int i = 0; i < 4; i++)
        seen_decided(s, 3 * i, 100 + i);
    seen_booked(s, 100);
    assert_int_equal(seen_count(s), 4);
    seen_booked(s, 102); /* of 100 and 101 */
    assert_false(seen_has(s, name(0)) || seen_has(s, name(1)));
    assert_true(seen_has(s, name(2)) && seen_has(s, name(3)));
    seen_free(s);
}

static void one_that_takes_long_keeps_those_behind_it(void **state)
{
    struct seen *s = seen_for_test(MANY);
    add(s, 0, 3);
    seen_decided(s, 3, 50);
    seen_decided(s, 4, 50); /* no job of ours */
    seen_decided(s, 6, 51);
    seen_booked(s, 1000);
    assert_int_equal(seen_count(s), 3);
    seen_decided(s, 0, 60);
    seen_booked(s, 1000);
    assert_int_equal(seen_count(s), 0);
    seen_free(s);
}

static void memory_is_bounded(void **state)
{
    struct seen *s = seen_for_test(100);
    add(s, 0, MANY);
    assert_int_equal(seen_count(s), 100);
    assert_false(seen_has(s, name(MANY - 101)));
    assert_true(seen_has(s, name(MANY - 100)));
    seen_free(s);
}

static void a_row_that_is_used_up_is_used_again(void **state)
{
    struct seen *s = seen_for_test(MANY);
    for (int i = 0; i < MANY; i++) {
        add(s, i, i + 1);
        seen_decided(s, 3 * i, i);
        seen_booked(s, i - 9);
    }
    assert_int_equal(seen_count(s), 10);
    for (int i = MANY - 10; i < MANY; i++)
        assert_true(seen_has(s, name(i)));
    seen_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_undecided_job_is_never_forgotten),
        cmocka_unit_test(what_the_books_have_leaves_and_nothing_else),
        cmocka_unit_test(one_that_takes_long_keeps_those_behind_it),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(a_row_that_is_used_up_is_used_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

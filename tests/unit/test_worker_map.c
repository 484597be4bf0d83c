/* test_worker_map.c - texts to pointers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "map.h"

#define MANY 5000

static int values[MANY];

static const char *name(int i)
{
    static char text[32];
    snprintf(text, sizeof text, "key-%d", i);
    return text;
}

static struct map *map_for_test(int count)
{
    struct err e = {0};
    struct map *m = map_create(&e);
    assert_non_null(m);
    for (int i = 0; i < count; i++)
        assert_int_equal(map_put(m, name(i), &values[i], &e), 0);
    return m;
}

static void what_was_put_is_found_and_nothing_else(void **state)
{
    struct map *m = map_for_test(MANY);
    assert_int_equal(map_count(m), MANY);
    for (int i = 0; i < MANY; i++)
        assert_ptr_equal(map_get(m, name(i)), &values[i]);
    assert_null(map_get(m, "key-"));
    assert_null(map_get(m, name(MANY)));
    map_free(m);
}

static void putting_again_replaces(void **state)
{
    struct err e = {0};
    struct map *m = map_for_test(1);
    assert_int_equal(map_put(m, "key-0", &values[7], &e), 0);
    assert_ptr_equal(map_get(m, "key-0"), &values[7]);
    assert_int_equal(map_count(m), 1);
    map_free(m);
}

static void what_is_taken_is_gone_and_the_rest_stays(void **state)
{
    struct map *m = map_for_test(MANY);
    for (int i = 0; i < MANY; i += 2)
        assert_ptr_equal(map_take(m, name(i)), &values[i]);
    assert_null(map_take(m, name(0)));
    for (int i = 0; i < MANY; i++)
        assert_ptr_equal(map_get(m, name(i)), i % 2 ? &values[i] : NULL);
    assert_int_equal(map_count(m), MANY / 2);
    map_free(m);
}

/* Marks of removed entries must not fill the table up: this would never end. */
static void a_map_that_only_turns_over_stays_small(void **state)
{
    struct err e = {0};
    struct map *m = map_for_test(0);
    for (int i = 0; i < 100 * MANY; i++) {
        assert_int_equal(map_put(m, name(i), &values[i % MANY], &e), 0);
        if (i >= 3) assert_non_null(map_take(m, name(i - 3)));
    }
    assert_int_equal(map_count(m), 3);
    map_free(m);
}

static void a_walk_sees_every_value_once(void **state)
{
    struct map *m = map_for_test(100);
    size_t at = 0;
    int seen = 0;
    for (int *value; (value = map_next(m, &at)); seen++)
        assert_in_range(value - values, 0, 99);
    assert_int_equal(seen, 100);
    map_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_put_is_found_and_nothing_else),
        cmocka_unit_test(putting_again_replaces),
        cmocka_unit_test(what_is_taken_is_gone_and_the_rest_stays),
        cmocka_unit_test(a_map_that_only_turns_over_stays_small),
        cmocka_unit_test(a_walk_sees_every_value_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

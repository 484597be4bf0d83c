/* test_gateway_cache.c - the bounded table of what was looked up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "api/cache.h"

static struct cache *cache_for_test(int entries)
{
    struct err e = {0};
    struct cache *c = cache_create(entries, sizeof(int), &e);
    assert_non_null(c);
    return c;
}

static void what_was_put_is_found_with_its_time(void **state)
{
    struct cache *c = cache_for_test(64);
    int value = 7, got = 0;
    int64_t put_ms = 0;
    assert_false(cache_get(c, "a", &got, &put_ms));
    cache_put(c, "a", &value, 123);
    assert_true(cache_get(c, "a", &got, &put_ms));
    assert_int_equal(got, 7);
    assert_int_equal(put_ms, 123);
    value = 8;
    cache_put(c, "a", &value, 456);
    assert_true(cache_get(c, "a", &got, &put_ms));
    assert_int_equal(got, 8);
    assert_int_equal(put_ms, 456);
    cache_free(c);
}

static void a_full_set_forgets_what_is_oldest(void **state)
{
    struct cache *c = cache_for_test(8); /* one set */
    char key[16];
    int got;
    int64_t put_ms;
    for (int i = 0; i < 9; i++) {
        snprintf(key, sizeof key, "k%d", i);
        cache_put(c, key, &i, 100 + i);
    }
    assert_false(cache_get(c, "k0", &got, &put_ms));
    for (int i = 1; i < 9; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_true(cache_get(c, key, &got, &put_ms));
        assert_int_equal(got, i);
    }
    cache_free(c);
}

static void a_key_that_is_empty_or_too_long_is_not_kept(void **state)
{
    struct cache *c = cache_for_test(8);
    char key[CACHE_KEY_SIZE + 1];
    int value = 1, got;
    int64_t put_ms;
    memset(key, 'x', sizeof key);
    key[CACHE_KEY_SIZE] = '\0';
    cache_put(c, key, &value, 1);
    assert_false(cache_get(c, key, &got, &put_ms));
    cache_put(c, "", &value, 1);
    assert_false(cache_get(c, "", &got, &put_ms));
    key[CACHE_KEY_SIZE - 1] = '\0';
    cache_put(c, key, &value, 1);
    assert_true(cache_get(c, key, &got, &put_ms));
    cache_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_put_is_found_with_its_time),
        cmocka_unit_test(a_full_set_forgets_what_is_oldest),
        cmocka_unit_test(a_key_that_is_empty_or_too_long_is_not_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

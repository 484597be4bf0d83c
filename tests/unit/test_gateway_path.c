/* test_gateway_path.c - request targets taken apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "http/path.h"

static void an_encoded_slash_stays_inside_its_segment(void **state)
{
    struct path p;
    assert_int_equal(path_init(&p, "/a%2Fb/c+d/e:f"), 0);
    assert_int_equal(p.segment_count, 3);
    assert_string_equal(p.segments[0], "a/b");
    assert_string_equal(p.segments[1], "c+d");
    assert_string_equal(p.segments[2], "e:f");
    path_clear(&p);
}

static void a_star_takes_exactly_one_segment(void **state)
{
    struct path p;
    int stars[PATH_SEGMENTS_MAX];
    assert_int_equal(
        path_init(&p, "/api/v1/training_runs/s:train:0/checkpoints/weights/final?limit=3"), 0);
    assert_true(path_matches(&p, "/api/v1/training_runs/*/checkpoints/*/*", stars));
    assert_string_equal(p.segments[stars[0]], "s:train:0");
    assert_string_equal(p.segments[stars[1]], "weights");
    assert_string_equal(p.segments[stars[2]], "final");
    assert_false(path_matches(&p, "/api/v1/training_runs/*/checkpoints", stars));
    assert_false(path_matches(&p, "/api/v1/training_runs/*/checkpoints/*", stars));
    assert_false(path_matches(&p, "/api/v1/training_runs/*/checkpoints/*/*/*", stars));
    path_clear(&p);
    assert_int_equal(path_init(&p, "/api/v1/sessions/"), 0);
    assert_false(path_matches(&p, "/api/v1/sessions/*", stars));
    path_clear(&p);
}

static void the_query_is_decoded_after_it_is_split(void **state)
{
    struct path p;
    assert_int_equal(path_init(&p, "/x?limit=20&name=a%26b%3Dc&flag&offset=0"), 0);
    assert_string_equal(path_query(&p, "limit"), "20");
    assert_string_equal(path_query(&p, "name"), "a&b=c");
    assert_string_equal(path_query(&p, "flag"), "");
    assert_string_equal(path_query(&p, "offset"), "0");
    assert_null(path_query(&p, "missing"));
    path_clear(&p);
}

static void a_target_that_cannot_be_read_is_refused(void **state)
{
    static const char *const bad[] = {
        "",     "*",     "x/y",     "/a%00b", "/a%",
        "/a%4", "/a%zz", "/?a=%00", "/?%",    "/1/2/3/4/5/6/7/8/9/10/11/12/13",
        "/%2"};
    struct path p;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(path_init(&p, bad[i]), -1);
    char *huge = malloc(PATH_TARGET_MAX + 2);
    memset(huge, '/', PATH_TARGET_MAX + 1);
    huge[PATH_TARGET_MAX + 1] = '\0';
    assert_int_equal(path_init(&p, huge), -1);
    free(huge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_encoded_slash_stays_inside_its_segment),
        cmocka_unit_test(a_star_takes_exactly_one_segment),
        cmocka_unit_test(the_query_is_decoded_after_it_is_split),
        cmocka_unit_test(a_target_that_cannot_be_read_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_gateway_queue.c - what a client is told while it waits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "api/queue.h"

static struct queue_state describe(bool known, int64_t waiting, int64_t workers)
{
    struct queue_state s;
    struct queue_view v = {known, waiting, workers};
    queue_describe(&s, "acme/big-1", &v);
    return s;
}

static void what_nobody_counts_is_not_called_paused(void **state)
{
    struct queue_state s = describe(false, 0, 0);
    assert_string_equal(s.state, "active");
    assert_string_equal(s.reason, "");
}

static void a_request_that_is_alone_is_active(void **state)
{
    assert_string_equal(describe(true, 1, 1).state, "active");
    assert_string_equal(describe(true, 0, 3).state, "active");
}

static void without_a_worker_the_reason_names_the_model(void **state)
{
    struct queue_state s = describe(true, 1, 0);
    assert_string_equal(s.state, "paused_capacity");
    assert_non_null(strstr(s.reason, "no worker serves acme/big-1"));
}

static void others_in_line_are_counted(void **state)
{
    struct queue_state s = describe(true, 42, 2);
    assert_string_equal(s.state, "paused_capacity");
    assert_non_null(strstr(s.reason, "41 other requests for acme/big-1 are in line"));
    assert_non_null(strstr(s.reason, "2 workers"));
    s = describe(true, 2, 1);
    assert_non_null(strstr(s.reason, "1 other request for acme/big-1 is in line"));
    assert_non_null(strstr(s.reason, "1 worker;"));
}

static void a_reason_needs_no_escapes(void **state)
{
    for (int workers = 0; workers < 3; workers++) {
        struct queue_state s = describe(true, INT64_MAX, workers);
        assert_null(strpbrk(s.reason, "\"\\\n"));
        assert_true(strlen(s.reason) < sizeof s.reason - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_nobody_counts_is_not_called_paused),
        cmocka_unit_test(a_request_that_is_alone_is_active),
        cmocka_unit_test(without_a_worker_the_reason_names_the_model),
        cmocka_unit_test(others_in_line_are_counted),
        cmocka_unit_test(a_reason_needs_no_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

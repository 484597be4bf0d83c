/* test_gateway_range.c - which bytes a Range header means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "http/range.h"

static void check(const char *header, uint64_t size, enum range_verdict expected, uint64_t first,
                  uint64_t count)
{
    uint64_t got_first, got_count;
    enum range_verdict v = range_read(header, size, &got_first, &got_count);
    if (v != expected || (v != RANGE_NONE && (got_first != first || got_count != count)))
        fail_msg("\"%s\" of %llu is %d: %llu+%llu", header ? header : "no header",
                 (unsigned long long)size, v, (unsigned long long)got_first,
                 (unsigned long long)got_count);
}

static void parts_are_found(void **state)
{
    check("bytes=0-0", 10, RANGE_PART, 0, 1);
    check("bytes=2-4", 10, RANGE_PART, 2, 3);
    check("bytes=2-", 10, RANGE_PART, 2, 8);
    check("bytes=2-99", 10, RANGE_PART, 2, 8);
    check("bytes=-3", 10, RANGE_PART, 7, 3);
    check("bytes=-99", 10, RANGE_PART, 0, 10);
    check("Bytes=9-", 10, RANGE_PART, 9, 1);
}

static void what_is_not_there_is_said(void **state)
{
    check("bytes=10-", 10, RANGE_NONE, 0, 0);
    check("bytes=-0", 10, RANGE_NONE, 0, 0);
    check("bytes=0-", 0, RANGE_NONE, 0, 0);
    check("bytes=-5", 0, RANGE_NONE, 0, 0);
}

static void anything_else_means_the_whole(void **state)
{
    static const char *const ignored[] = {"",          "bytes",       "bytes=",     "bytes=-",
                                          "bytes=4-2", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b",
                                          "bytes=1-2x", "bytes=99999999999999999999-"};
    check(NULL, 10, RANGE_WHOLE, 0, 10);
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        check(ignored[i], 10, RANGE_WHOLE, 0, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_found),
        cmocka_unit_test(what_is_not_there_is_said),
        cmocka_unit_test(anything_else_means_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

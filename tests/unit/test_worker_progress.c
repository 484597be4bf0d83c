/* test_worker_progress.c - how far a shard's logs are covered; a row must never pass what a
 * successor needs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "progress.h"

static const int run_a, run_b;

static struct progress *progress_for_test(int64_t resume, int64_t scan, int64_t epoch)
{
    struct err e = {0};
    struct progress_at from = {resume, scan, epoch};
    struct progress *p = progress_create(&from, &e);
    assert_non_null(p);
    return p;
}

static void job(struct progress *p, int64_t offset, const void *owner, int64_t seq)
{
    struct err e = {0};
    assert_int_equal(progress_job(p, offset, owner, seq, &e), 0);
}

static void result(struct progress *p, int64_t offset, int64_t epoch, int64_t of)
{
    struct err e = {0};
    assert_int_equal(progress_result(p, offset, epoch, of, &e), 0);
}

static void expect(struct progress *p, int64_t resume, int64_t scan, int64_t epoch)
{
    struct progress_at at;
    progress_get(p, &at);
    assert_int_equal(at.resume, resume);
    assert_int_equal(at.scan, scan);
    assert_int_equal(at.scan_epoch, epoch);
}

static void nothing_read_is_where_we_began(void **state)
{
    struct progress *p = progress_for_test(17, 30, 4);
    expect(p, 17, 30, 4);
    progress_free(p);
}

static void the_lowest_uncovered_job_holds_everything_back(void **state)
{
    struct progress *p = progress_for_test(0, 0, 1);
    progress_caught_up(p);
    job(p, 0, &run_a, 0);
    job(p, 1, &run_b, 0);
    job(p, 2, &run_a, 1);
    result(p, 0, 1, 0);
    result(p, 1, 1, 1);
    result(p, 2, 1, 2);
    progress_covered(p, &run_b, 0);
    expect(p, 0, 0, 1);
    progress_covered(p, &run_a, 0);
    expect(p, 2, 2, 1);
    progress_covered(p, &run_a, 1);
    expect(p, 3, 3, 1);
    progress_free(p);
}

static void a_look_ahead_changes_nothing(void **state)
{
    struct progress_at at;
    struct progress *p = progress_for_test(0, 0, 1);
    progress_caught_up(p);
    job(p, 0, &run_a, 5);
    result(p, 0, 1, 0);
    progress_with(p, &run_a, 5, &at);
    assert_int_equal(at.resume, 1);
    assert_int_equal(at.scan, 1);
    expect(p, 0, 0, 1);
    progress_with(p, &run_a, 4, &at);
    assert_int_equal(at.resume, 0);
    progress_free(p);
}

static void copies_and_control_records_are_done_at_once(void **state)
{
    struct progress *p = progress_for_test(5, 0, 1);
    job(p, 5, NULL, 0);
    progress_job_done(p, 5);
    job(p, 7, NULL, 0); /* offsets may have holes */
    progress_job_done(p, 7);
    expect(p, 8, 0, 1);
    progress_free(p);
}

static void a_result_of_an_older_epoch_keeps_the_epoch_in_force_there(void **state)
{
    struct progress *p = progress_for_test(0, 10, 2);
    result(p, 12, 2, -1);
    result(p, 13, 3, -1);
    progress_results_end(p, 20, 4);
    job(p, 0, &run_a, 1);
    progress_result_job(p, 12, 0);
    job(p, 1, &run_a, 2);
    progress_result_job(p, 13, 1);
    progress_caught_up(p);
    expect(p, 0, 12, 2);
    progress_covered(p, &run_a, 1);
    expect(p, 1, 13, 3);
    progress_covered(p, &run_a, 2);
    expect(p, 2, 20, 4);
    progress_free(p);
}

static void a_result_without_its_job_is_needed_until_the_jobs_were_read(void **state)
{
    struct progress *p = progress_for_test(3, 10, 2);
    result(p, 11, 2, -1); /* of a job below 3, covered long ago; but who knows yet? */
    progress_results_end(p, 20, 3);
    job(p, 3, NULL, 0);
    progress_job_done(p, 3);
    expect(p, 4, 11, 2);
    progress_caught_up(p);
    expect(p, 4, 20, 3);
    progress_free(p);
}

static void a_result_that_is_not_acked_yet_is_never_passed(void **state)
{
    struct progress *p = progress_for_test(0, 0, 1);
    progress_caught_up(p);
    job(p, 0, NULL, 0);
    job(p, 1, NULL, 0);
    result(p, 4, 1, 0);
    progress_job_done(p, 0);
    expect(p, 1, 5, 1); /* the next one lies at 5 or above */
    progress_free(p);
}

static void thousands_pass_through(void **state)
{
    struct progress *p = progress_for_test(0, 0, 1);
    progress_caught_up(p);
    for (int64_t i = 0; i < 10000; i++) {
        job(p, i, NULL, 0);
        result(p, i, 1, i);
        if (i >= 3) progress_job_done(p, i - 3);
        if (i % 100 == 99) expect(p, i - 2, i - 2, 1);
    }
    progress_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_read_is_where_we_began),
        cmocka_unit_test(the_lowest_uncovered_job_holds_everything_back),
        cmocka_unit_test(a_look_ahead_changes_nothing),
        cmocka_unit_test(copies_and_control_records_are_done_at_once),
        cmocka_unit_test(a_result_of_an_older_epoch_keeps_the_epoch_in_force_there),
        cmocka_unit_test(a_result_without_its_job_is_needed_until_the_jobs_were_read),
        cmocka_unit_test(a_result_that_is_not_acked_yet_is_never_passed),
        cmocka_unit_test(thousands_pass_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

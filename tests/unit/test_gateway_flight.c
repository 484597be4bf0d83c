/* test_gateway_flight.c - tokens in flight: a fence that never stops the work it fences in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "api/flight.h"

#define MAX 1000

static struct flight *flight_for_test(void)
{
    struct err e = {0};
    struct flight *f = flight_create(&e);
    assert_non_null(f);
    return f;
}

static struct job job_of(const char *account, const char *parent, enum job_kind kind, int64_t seq,
                         int64_t tokens)
{
    struct job j = {.kind = kind, .seq = seq, .tokens = tokens};
    snprintf(j.tenant, sizeof j.tenant, "%s", account);
    snprintf(j.parent, sizeof j.parent, "%s", parent);
    snprintf(j.id, sizeof j.id, "%s:%s:%lld:tag", parent, job_kind_name(kind), (long long)seq);
    return j;
}

static bool pass(struct flight *f, const char *run, int64_t seq, int64_t tokens)
{
    struct job j = job_of("a", run, JOB_FORWARD_BACKWARD, seq, tokens);
    return flight_admit(f, &j, "m", (struct flight_room){MAX, 0}, 0);
}

static void born(struct flight *f, const char *run)
{
    struct job j = job_of("a", run, JOB_CREATE, 0, 0);
    assert_true(flight_admit(f, &j, "m", (struct flight_room){MAX, 0}, 0));
}

static void done(struct flight *f, const char *run, int64_t seq)
{
    struct job j = job_of("a", run, JOB_FORWARD_BACKWARD, seq, 0);
    flight_settled(f, j.id);
}

static bool sample(struct flight *f, const char *account, int64_t seq, int64_t tokens)
{
    struct job j = job_of(account, "s:sample:0", JOB_SAMPLE, seq, tokens);
    return flight_admit(f, &j, "m", (struct flight_room){MAX, 0}, 0);
}

static void a_full_account_waits_until_something_is_done(void **state)
{
    struct flight *f = flight_for_test();
    born(f, "s:train:0");
    assert_true(pass(f, "s:train:0", 1, 600));
    assert_false(pass(f, "s:train:0", 2, 600));
    assert_true(pass(f, "s:train:0", 2, 400));
    assert_int_equal(flight_tokens(f, "a"), 1000);
    assert_false(pass(f, "s:train:0", 3, 1));
    done(f, "s:train:0", 1);
    assert_int_equal(flight_tokens(f, "a"), 400);
    assert_true(pass(f, "s:train:0", 3, 600));
    flight_free(f);
}

static void whoever_has_nothing_in_flight_is_let_in_whatever_its_size(void **state)
{
    struct flight *f = flight_for_test();
    assert_true(sample(f, "a", 0, 50 * MAX));
    assert_false(sample(f, "a", 1, 1));
    assert_true(sample(f, "b", 0, 1)); /* another account's */
    flight_free(f);
}

/* A sample can wait for what the others have in flight; a training call may be what that waits for. */
static void samples_wait_for_other_gateways_and_training_does_not(void **state)
{
    struct flight *f = flight_for_test();
    struct flight_room full = {MAX, 900};
    struct job drawn = job_of("a", "s:sample:0", JOB_SAMPLE, 0, 200);
    struct job small = job_of("a", "s:sample:0", JOB_SAMPLE, 1, 100);
    struct job pass_1 = job_of("a", "s:train:0", JOB_FORWARD_BACKWARD, 1, 200);
    born(f, "s:train:0");
    assert_false(flight_admit(f, &drawn, "m", full, 0));
    assert_true(flight_admit(f, &pass_1, "m", full, 0));
    assert_false(flight_admit(f, &small, "m", full, 0));
    done(f, "s:train:0", 1);
    assert_true(flight_admit(f, &small, "m", full, 0));
    assert_true(flight_admit(f, &drawn, "m", (struct flight_room){MAX, 0}, 0));
    flight_free(f);
}

static void accounts_with_tokens_are_named_round_and_round(void **state)
{
    struct flight *f = flight_for_test();
    struct flight_holding some[2];
    int seen[5] = {0};
    char name[2] = "a";
    assert_int_equal(flight_holdings(f, some, 2), 0);
    for (int i = 0; i < 5; i++, name[0]++)
        assert_true(sample(f, name, i, 10 + i));
    for (int round = 0; round < 5; round++) {
        int n = flight_holdings(f, some, 2);
        for (int i = 0; i < n; i++) {
            assert_int_equal(some[i].tokens, 10 + some[i].account[0] - 'a');
            seen[some[i].account[0] - 'a']++;
        }
    }
    for (int i = 0; i < 5; i++)
        assert_true(seen[i] >= 1);
    flight_free(f);
}

static void a_repeated_call_is_counted_once_and_never_refused(void **state)
{
    struct flight *f = flight_for_test();
    born(f, "s:train:0");
    for (int i = 0; i < 3; i++)
        assert_true(pass(f, "s:train:0", 1, 900));
    assert_int_equal(flight_tokens(f, "a"), 900);
    done(f, "s:train:0", 1);
    done(f, "s:train:0", 1);
    assert_int_equal(flight_tokens(f, "a"), 0);
    assert_true(pass(f, "s:train:0", 1, 900)); /* late: it is decided already */
    assert_int_equal(flight_tokens(f, "a"), 0);
    flight_free(f);
}

/* The SDK sends the chunks 2 and 3 of one call first, and 1 when both were let in: nothing of the
 * run can be done before, so refusing any of them would stop it for good. */
static void chunks_that_come_before_the_first_one_are_let_in(void **state)
{
    struct flight *f = flight_for_test();
    born(f, "s:train:0");
    assert_true(pass(f, "s:train:0", 2, 900));
    assert_true(pass(f, "s:train:0", 3, 900));
    assert_true(pass(f, "s:train:0", 1, 900));
    assert_false(pass(f, "s:train:0", 4, 900)); /* now all that is in flight can be done */
    assert_false(pass(f, "s:train:0", 5, 900)); /* the next call's chunks, before the first again */
    for (int seq = 1; seq <= 3; seq++)
        done(f, "s:train:0", seq);
    assert_true(pass(f, "s:train:0", 5, 900));
    assert_true(pass(f, "s:train:0", 6, 900));
    assert_true(pass(f, "s:train:0", 4, 900));
    assert_false(pass(f, "s:train:0", 7, 900));
    flight_free(f);
}

/* Leaving a number out on purpose is no way around the limit for ever. */
static void what_comes_far_too_early_is_refused(void **state)
{
    struct flight *f = flight_for_test();
    int in = 0;
    born(f, "s:train:0");
    for (int seq = 2; seq < 5000; seq++)
        in += pass(f, "s:train:0", seq, 900);
    assert_true(in > 100 && in < 300);
    assert_true(pass(f, "s:train:0", 1, 900));
    flight_free(f);
}

/* After a restart it is not known which numbers came before. */
static void a_run_that_is_not_known_is_let_in_until_a_result_tells_where_it_is(void **state)
{
    struct flight *f = flight_for_test();
    assert_true(pass(f, "s:train:0", 7, 900));
    assert_true(pass(f, "s:train:0", 8, 900));
    assert_true(pass(f, "s:train:0", 6, 900));
    assert_false(flight_knows(f, "s:train:0", 7));
    done(f, "s:train:0", 6);
    done(f, "s:train:0", 7);
    assert_true(flight_knows(f, "s:train:0", 7));
    assert_false(pass(f, "s:train:0", 9, 900));
    flight_free(f);
}

/* It is not decided, so nothing is learnt from it: what was sent before it may still be missing. */
static void a_job_that_was_not_published_is_not_in_flight(void **state)
{
    struct flight *f = flight_for_test();
    struct job j = job_of("a", "s:train:0", JOB_FORWARD_BACKWARD, 3, 900);
    born(f, "s:train:0");
    assert_true(pass(f, "s:train:0", 2, 900));
    assert_true(pass(f, "s:train:0", 3, 900));
    flight_dropped(f, j.id);
    assert_int_equal(flight_tokens(f, "a"), 900);
    assert_false(flight_knows(f, "s:train:0", 1));
    assert_true(pass(f, "s:train:0", 3, 900)); /* again */
    assert_true(pass(f, "s:train:0", 4, 900));
    flight_free(f);
}

static void calls_without_tokens_are_let_in_and_keep_the_count_of_numbers(void **state)
{
    struct flight *f = flight_for_test();
    struct job step = job_of("a", "s:train:0", JOB_OPTIM_STEP, 2, 0);
    born(f, "s:train:0");
    assert_true(pass(f, "s:train:0", 1, 900));
    assert_true(flight_admit(f, &step, "m", (struct flight_room){MAX, 0}, 0));
    assert_true(flight_knows(f, "s:train:0", 2));
    assert_false(flight_knows(f, "s:train:0", 3));
    assert_false(pass(f, "s:train:0", 3, 900));
    flight_free(f);
}

static void check_due(struct flight *f, int64_t now_ms, const char *expected)
{
    char *due = flight_due(f, now_ms);
    if (expected)
        assert_string_equal(due, expected);
    else
        assert_null(due);
    free(due);
}

static void jobs_of_whose_end_nobody_told_are_asked_for_again_and_again(void **state)
{
    struct flight *f = flight_for_test();
    struct job j = job_of("a", "s:sample:0", JOB_SAMPLE, 0, 10);
    assert_true(flight_admit(f, &j, "m", (struct flight_room){MAX, 0}, 0));
    check_due(f, FLIGHT_CHECK_MS - 1, NULL);
    for (int round = 1; round < 4; round++) {
        check_due(f, round * FLIGHT_CHECK_MS,
                  "[{\"id\":\"s:sample:0:sample:0:tag\",\"model\":\"m\",\"stream\":\"sample\","
                  "\"partition\":0,\"at\":null}]");
        check_due(f, round * FLIGHT_CHECK_MS + 1, NULL);
    }
    flight_settled(f, j.id);
    check_due(f, INT64_MAX / 2, NULL);
    flight_free(f);
}

/* One that ends in the dlq has no outcome: its log, done with up to there, tells. */
static void they_are_asked_for_by_their_place_in_the_log(void **state)
{
    struct flight *f = flight_for_test();
    struct job j = job_of("a", "s:train:0", JOB_FORWARD, 1, 10);
    j.partition = 3;
    flight_published(f, j.id, 5); /* not in flight here: nothing */
    assert_true(flight_admit(f, &j, "org/a \"model\"", (struct flight_room){MAX, 0}, 0));
    assert_int_equal(flight_jobs(f), 1);
    flight_published(f, j.id, 0);
    check_due(f, FLIGHT_CHECK_MS,
              "[{\"id\":\"s:train:0:forward:1:tag\",\"model\":\"org/a \\\"model\\\"\","
              "\"stream\":\"train\",\"partition\":3,\"at\":0}]");
    flight_dropped(f, j.id);
    assert_int_equal(flight_jobs(f), 0);
    assert_int_equal(flight_tokens(f, "a"), 0);
    flight_free(f);
}

static void beyond_its_bound_jobs_are_not_counted(void **state)
{
    struct flight *f = flight_for_test();
    for (int i = 0; i < FLIGHT_JOBS_MAX + 100; i++) {
        struct job j = job_of("a", "s:sample:0", JOB_SAMPLE, i, 1);
        assert_true(flight_admit(f, &j, "m", (struct flight_room){0, 0}, 0));
    }
    assert_int_equal(flight_tokens(f, "a"), FLIGHT_JOBS_MAX);
    flight_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_account_waits_until_something_is_done),
        cmocka_unit_test(whoever_has_nothing_in_flight_is_let_in_whatever_its_size),
        cmocka_unit_test(samples_wait_for_other_gateways_and_training_does_not),
        cmocka_unit_test(accounts_with_tokens_are_named_round_and_round),
        cmocka_unit_test(a_repeated_call_is_counted_once_and_never_refused),
        cmocka_unit_test(chunks_that_come_before_the_first_one_are_let_in),
        cmocka_unit_test(what_comes_far_too_early_is_refused),
        cmocka_unit_test(a_run_that_is_not_known_is_let_in_until_a_result_tells_where_it_is),
        cmocka_unit_test(a_job_that_was_not_published_is_not_in_flight),
        cmocka_unit_test(calls_without_tokens_are_let_in_and_keep_the_count_of_numbers),
        cmocka_unit_test(jobs_of_whose_end_nobody_told_are_asked_for_again_and_again),
        cmocka_unit_test(they_are_asked_for_by_their_place_in_the_log),
        cmocka_unit_test(beyond_its_bound_jobs_are_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_worker_schedule.c - which jobs run together; the clock is an argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "schedule.h"
#include "suspect.h"

#define JOBS_MAX 4
#define RUNS_MAX 4

static const struct schedule_conf conf = {
    .jobs_max = JOBS_MAX, .tokens_max = 1000, .plan_wait_us = 2000, .company_us = 8000};

struct bench {
    struct schedule *schedule;
    struct run runs[RUNS_MAX];
    struct task *out[JOBS_MAX];
    int count;
    int64_t wait_us;
    int64_t offset; /* of the next job */
};

static int setup(void **state)
{
    struct err e = {0};
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->schedule = schedule_create(&conf, &e);
    assert_non_null(b->schedule);
    for (int i = 0; i < RUNS_MAX; i++) {
        snprintf(b->runs[i].id, ID_SIZE, "run-%c", 'a' + i);
        b->runs[i].order = order_create(0, &e);
        assert_non_null(b->runs[i].order);
    }
    *state = b;
    return 0;
}

static void task_drop(void *arg, void *item)
{
    struct task *t = item;
    job_free(t->job);
    free(t);
}

static int teardown(void **state)
{
    struct bench *b = *state;
    schedule_free(b->schedule);
    for (int i = 0; i < RUNS_MAX; i++) {
        order_each(b->runs[i].order, task_drop, NULL);
        order_free(b->runs[i].order);
    }
    free(b);
    return 0;
}

/* A job "a1" arrives: run a, seq 1. */
static void arrive(struct bench *b, const char *name, enum job_kind kind, int64_t tokens,
                   int64_t now_us)
{
    struct err e = {0};
    struct run *run = &b->runs[name[0] - 'a'];
    struct task *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->job = job_create(name, kind, "account", run->id, atoi(name + 1), CONTENT_JSON, "{}", 2, &e);
    assert_non_null(t->job);
    t->job->tokens = tokens;
    t->job->offset = b->offset++;
    t->run = run;
    t->cls = kind == JOB_FORWARD_BACKWARD ? CLASS_PASS : CLASS_STEP;
    t->arrived_us = now_us;
    assert_int_equal(order_add(run->order, t->job->seq, 0, t, &e), ORDER_HELD);
    assert_int_equal(schedule_task(b->schedule, t, &e), 0);
}

static void plan(struct bench *b, const char *names, int64_t now_us)
{
    struct err e = {0};
    char text[128], *rest = text;
    snprintf(text, sizeof text, "%s", names);
    struct batch *made = batch_create(1, (int)(strlen(names) + 1) / 3, &e);
    assert_non_null(made);
    for (int i = 0; i < made->count; i++)
        snprintf(made->entries[i].job_id, ID_SIZE, "%s", strtok_r(rest, " ", &rest));
    schedule_plan(b->schedule, made, now_us);
}

/* What runs next, as "a1 b1". */
static void expect(struct bench *b, int64_t now_us, const char *names)
{
    struct err e = {0};
    char text[128] = "";
    b->count = schedule_next(b->schedule, true, now_us, b->out, &b->wait_us, &e);
    assert_in_range(b->count, 0, JOBS_MAX);
    for (int i = 0; i < b->count; i++) {
        strcat(text, i ? " " : "");
        strcat(text, b->out[i]->job->id);
    }
    assert_string_equal(text, names);
}

static void done(struct bench *b, int64_t now_us)
{
    for (int i = 0; i < b->count; i++) {
        struct task *t = b->out[i];
        suspect_done(t->run, t);
        order_done(t->run->order, t->job->seq);
        schedule_done(b->schedule, t, now_us);
        task_drop(NULL, t);
    }
    b->count = 0;
}

static void without_a_plan_ready_passes_of_all_runs_go_together(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 0);
    expect(b, 0, "a1 a2 b1");
    done(b, 10);
    expect(b, 10, "");
    assert_int_equal(b->wait_us, -1);
    assert_int_equal(schedule_stats(b->schedule)->self_planned, 1);
}

static void a_gap_holds_its_run_and_no_other(void **state)
{
    struct bench *b = *state;
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 0);
    expect(b, 0, "b1");
    done(b, 1);
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 2);
    expect(b, 20000, "a1 a2");
    done(b, 3);
}

static void a_plan_decides_what_goes_first_and_the_rest_fills_up(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 600, 0);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 300, 0);
    arrive(b, "c1", JOB_FORWARD_BACKWARD, 300, 0);
    plan(b, "c1", 0);
    expect(b, 0, "c1 a1");
    done(b, 1);
    assert_int_equal(schedule_stats(b->schedule)->plans_used, 1);
    expect(b, 20000, "b1");
    done(b, 2);
}

static void a_repeated_a_stale_and_a_wrong_plan_change_nothing(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    plan(b, "a1", 0);
    plan(b, "a1", 0);
    plan(b, "z9", 0);
    expect(b, 3000, "a1");
    done(b, 3000);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 3000);
    expect(b, 20000, "b1");
    done(b, 20000);
    assert_int_equal(schedule_stats(b->schedule)->plans_used, 1);
    assert_int_equal(schedule_stats(b->schedule)->plans_stale, 2);
}

static void a_plan_in_the_wrong_order_cannot_turn_a_run_around(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a2", JOB_OPTIM_STEP, 0, 0);
    arrive(b, "a3", JOB_FORWARD_BACKWARD, 10, 0);
    plan(b, "a3 a2 a1", 0);
    expect(b, 0, "a1");
    done(b, 1);
    expect(b, 20000, "a2");
    done(b, 20001);
    expect(b, 40000, "a3");
    done(b, 40001);
}

static void a_plan_for_jobs_that_are_not_here_yet_waits_for_them(void **state)
{
    struct bench *b = *state;
    plan(b, "a1 b1", 0);
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 100);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 200);
    expect(b, 300, "a1 b1");
    done(b, 400);
    assert_int_equal(schedule_stats(b->schedule)->plans_used, 1);
    assert_int_equal(schedule_stats(b->schedule)->plans_stale, 0);
}

static void a_step_does_not_wait_for_company(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_OPTIM_STEP, 0, 1000);
    expect(b, 1000, "a1");
    done(b, 1100);
    arrive(b, "a2", JOB_OPTIM_STEP, 0, 5000);
    expect(b, 5000, "a2");
    done(b, 5100);
    arrive(b, "b1", JOB_OPTIM_STEP, 0, 5200);
    expect(b, 5200, "b1");
    done(b, 5300);
}

static void a_pass_waits_for_a_run_that_is_expected_back(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 1000);
    expect(b, 1000, "a1");
    done(b, 2000);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 6000); /* back after 4 ms */
    expect(b, 6000, "a2");
    done(b, 7000);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 7500);
    expect(b, 7500, "");
    assert_int_equal(b->wait_us, 5500); /* until a is half its time late */
    arrive(b, "a3", JOB_FORWARD_BACKWARD, 10, 11000);
    expect(b, 11000, "b1 a3");
    done(b, 12000);
}

static void a_run_that_does_not_come_back_is_given_up(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 1000);
    expect(b, 1000, "a1");
    done(b, 2000);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 6000);
    expect(b, 6000, "a2");
    done(b, 7000);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 7500);
    expect(b, 7500, "");
    expect(b, 7500 + b->wait_us, "b1");
    done(b, 14000);
}

static void a_lone_run_never_waits(void **state)
{
    struct bench *b = *state;
    char name[8];
    int64_t now_us = 1000;
    for (int seq = 1; seq < 20; seq++, now_us += 5000) {
        snprintf(name, sizeof name, "a%d", seq);
        arrive(b, name, JOB_FORWARD_BACKWARD, 10, now_us);
        expect(b, now_us, name);
        done(b, now_us + 1000);
    }
}

static void a_run_that_leaves_takes_its_plans_along(void **state)
{
    struct err e = {0};
    struct bench *b = *state;
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    struct task *t = order_at(b->runs[0].order, 2);
    schedule_forget(b->schedule, t);
    schedule_run_drop(b->schedule, &b->runs[0]);
    plan(b, "a2", 0);
    b->count = schedule_next(b->schedule, true, 5000, b->out, &b->wait_us, &e);
    assert_int_equal(b->count, 0);
    assert_false(schedule_ready(b->schedule));
}

static void what_a_worker_may_have_died_of_runs_alone_and_first(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a3", JOB_OPTIM_STEP, 0, 0);
    arrive(b, "b1", JOB_OPTIM_STEP, 0, 0);
    arrive(b, "b2", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "c1", JOB_FORWARD_BACKWARD, 10, 0);
    b->runs[0].suspect_below = b->runs[1].suspect_below = 5; /* all of a and b, not c */
    plan(b, "c1 a1 a2", 0);
    expect(b, 0, "a1");
    done(b, 1);
    expect(b, 1, "a2"); /* may have shared a1's batch */
    done(b, 2);
    expect(b, 2, "b1"); /* a3 may not: it is a step */
    done(b, 3);
    expect(b, 20000, "c1 b2"); /* nor b2: b1 was a step */
    done(b, 20001);
    expect(b, 20001, "a3");
    done(b, 20002);
}

static void what_the_log_has_decided_is_no_suspect(void **state)
{
    struct bench *b = *state;
    struct official known = {.status = RESULT_OK};
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 0);
    struct task *replayed = order_at(b->runs[0].order, 1);
    replayed->known = &known;
    b->runs[0].suspect_below = 3;
    expect(b, 0, "a1 b1"); /* a2 does not slip in behind it */
    replayed->known = NULL;
    b->runs[0].suspect_passes = false;
    done(b, 1);
    b->runs[0].suspect_passes = false;
    expect(b, 1, "a2");
    done(b, 2);
}

static void a_paused_run_has_nothing_ready(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_FORWARD_BACKWARD, 10, 0);
    arrive(b, "a2", JOB_OPTIM_STEP, 0, 0);
    b->runs[0].paused = true;
    plan(b, "a1", 0);
    expect(b, 5000, "");
    assert_false(schedule_ready(b->schedule));
    arrive(b, "b1", JOB_FORWARD_BACKWARD, 10, 5000);
    expect(b, 30000, "b1");
    done(b, 30001);
    b->runs[0].paused = false;
    expect(b, 60000, "a1");
    done(b, 60001);
    expect(b, 60002, "a2");
    done(b, 60003);
}

static void what_was_put_back_is_chosen_again(void **state)
{
    struct bench *b = *state;
    arrive(b, "a1", JOB_SAVE, 0, 0);
    arrive(b, "a2", JOB_FORWARD_BACKWARD, 10, 0);
    for (int i = 0; i < 3; i++) {
        expect(b, i * 1000, "a1");
        schedule_put_back(b->schedule, &b->runs[0]);
        b->count = 0;
    }
    expect(b, 5000, "a1");
    done(b, 5001);
    expect(b, 9000, "a2");
    done(b, 9001);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_a_plan_ready_passes_of_all_runs_go_together),
        TEST(a_gap_holds_its_run_and_no_other),
        TEST(a_plan_decides_what_goes_first_and_the_rest_fills_up),
        TEST(a_repeated_a_stale_and_a_wrong_plan_change_nothing),
        TEST(a_plan_in_the_wrong_order_cannot_turn_a_run_around),
        TEST(a_plan_for_jobs_that_are_not_here_yet_waits_for_them),
        TEST(a_step_does_not_wait_for_company),
        TEST(a_pass_waits_for_a_run_that_is_expected_back),
        TEST(a_run_that_does_not_come_back_is_given_up),
        TEST(a_lone_run_never_waits),
        TEST(a_run_that_leaves_takes_its_plans_along),
        TEST(what_a_worker_may_have_died_of_runs_alone_and_first),
        TEST(what_the_log_has_decided_is_no_suspect),
        TEST(a_paused_run_has_nothing_ready),
        TEST(what_was_put_back_is_chosen_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_agenda.c - jobs minus results, as the dispatcher remembers them for one slot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "agenda.h"

static const struct agenda_conf conf = {.jobs_max = 8,
                                        .tokens_max = 1000,
                                        .wait_ms = 5,
                                        .queue_max = 16,
                                        .plans_max = 2,
                                        .stale_ms = 1000,
                                        .forget_ms = 10000,
                                        .idle_ms = 60000};

static struct agenda *agenda_for_test(void)
{
    struct agenda *a = agenda_create(&conf, &(struct err){0});
    assert_non_null(a);
    return a;
}

/* Every run is its own account; its partition is the number of its first letter. */
static struct job job_for_test(const char *run, int64_t seq, enum job_kind kind)
{
    struct job job = {.kind = kind, .seq = seq, .tokens = 10, .offset = 100 + seq};
    job.partition = run[0] - 'a';
    snprintf(job.id, sizeof job.id, "%s:%d:%d", run, (int)kind, (int)seq);
    snprintf(job.tenant, sizeof job.tenant, "of-%s", run);
    snprintf(job.parent, sizeof job.parent, "%s", run);
    return job;
}

static int read_job(struct agenda *a, const char *run, int64_t seq, enum job_kind kind,
                    int64_t now_ms, struct err *e)
{
    struct job job = job_for_test(run, seq, kind);
    return agenda_job(a, job_kind_is_train(kind) ? STREAM_TRAIN : STREAM_SAMPLE, &job, now_ms, e);
}

static void asked(struct agenda *a, const char *run, int64_t seq, enum job_kind kind,
                  int64_t now_ms)
{
    struct err e = {0};
    assert_int_equal(read_job(a, run, seq, kind, now_ms, &e), 1);
}

static void decided(struct agenda *a, const char *run, int64_t seq, enum job_kind kind,
                    int64_t now_ms)
{
    struct err e = {0};
    struct job job = job_for_test(run, seq, kind);
    struct result r = {.kind = kind, .seq = seq, .usage = {.train = 10}};
    memcpy(r.job_id, job.id, sizeof r.job_id);
    memcpy(r.parent, job.parent, sizeof r.parent);
    enum stream stream = job_kind_is_train(kind) ? STREAM_TRAIN : STREAM_SAMPLE;
    assert_int_equal(agenda_result(a, stream, job.partition, &r, now_ms, &e), 0);
}

/* The plan as "run.seq run.seq"; "" when none is due. */
static void assert_plan(struct agenda *a, int64_t now_ms, const char *expected)
{
    char text[512] = "";
    struct err e = {0};
    struct batch *b;
    int due = agenda_next(a, now_ms, &b, &e);
    assert_true(due >= 0);
    for (int i = 0; due && i < b->count; i++) {
        char one[ID_SIZE + 32];
        snprintf(one, sizeof one, "%s%s.%d", i ? " " : "", b->entries[i].run,
                 (int)b->entries[i].offset - 100);
        strcat(text, one);
        assert_int_equal(b->entries[i].partition, b->entries[i].run[0] - 'a');
    }
    batch_free(b);
    assert_string_equal(text, expected);
}

static void jobs_wait_for_company_on_an_idle_slot_too(void **state)
{
    struct agenda *a = agenda_for_test();
    asked(a, "a", 0, JOB_CREATE, 0);
    decided(a, "a", 0, JOB_CREATE, 1); /* a worker did not wait for a plan */
    asked(a, "b", 1, JOB_FORWARD_BACKWARD, 1);
    asked(a, "c", 1, JOB_FORWARD, 3);
    assert_plan(a, 5, "");
    assert_int_equal(agenda_next_ms(a), 6);
    assert_plan(a, 6, "b.1 c.1");
    agenda_free(a);
}

static void what_is_decided_already_is_not_planned_whichever_is_read_first(void **state)
{
    struct agenda *a = agenda_for_test();
    decided(a, "a", 3, JOB_FORWARD, 0);
    decided(a, "s", 5, JOB_SAMPLE, 0);
    struct err e = {0};
    assert_int_equal(read_job(a, "a", 2, JOB_FORWARD, 0, &e), 0);
    assert_int_equal(read_job(a, "a", 3, JOB_FORWARD, 0, &e), 0);
    assert_int_equal(read_job(a, "s", 5, JOB_SAMPLE, 0, &e), 0);
    assert_plan(a, 100, "");
    asked(a, "a", 4, JOB_FORWARD, 0);
    asked(a, "s", 6, JOB_SAMPLE, 0);
    decided(a, "s", 6, JOB_SAMPLE, 0); /* a worker did not wait for a plan */
    assert_plan(a, 100, "a.4");
    assert_plan(a, 100, "");
    assert_int_equal(agenda_known(a), 1);
    agenda_free(a);
}

static void a_slot_has_only_so_many_unfinished_plans(void **state)
{
    struct agenda *a = agenda_for_test();
    asked(a, "a", 1, JOB_FORWARD, 0);
    assert_plan(a, 5, "a.1");
    asked(a, "b", 1, JOB_FORWARD, 5);
    assert_plan(a, 10, "b.1");
    asked(a, "c", 1, JOB_FORWARD, 10);
    assert_int_equal(agenda_next_ms(a), -1);
    assert_plan(a, 100, "");
    decided(a, "b", 1, JOB_FORWARD, 100);
    assert_plan(a, 100, "c.1");
    agenda_free(a);
}

static void a_plan_that_grew_stale_does_not_hold_up_the_next(void **state)
{
    struct agenda *a = agenda_for_test();
    asked(a, "a", 1, JOB_FORWARD, 0);
    assert_plan(a, 5, "a.1");
    asked(a, "b", 1, JOB_FORWARD, 5);
    assert_plan(a, 10, "b.1");
    asked(a, "c", 1, JOB_FORWARD, 10);
    agenda_tidy(a, 999);
    assert_plan(a, 999, "");
    agenda_tidy(a, 1005);
    assert_int_equal(agenda_plans(a), 1);
    assert_plan(a, 1005, "c.1");
    decided(a, "a", 1, JOB_FORWARD, 1010); /* late, and it counts only once */
    assert_int_equal(agenda_plans(a), 2);
    agenda_free(a);
}

static void a_plan_that_nobody_answers_is_forgotten_with_its_runs(void **state)
{
    struct agenda *a = agenda_for_test();
    asked(a, "a", 1, JOB_FORWARD, 0);
    assert_plan(a, 5, "a.1");
    asked(a, "a", 2, JOB_OPTIM_STEP, 0);
    agenda_tidy(a, 10005);
    assert_int_equal(agenda_known(a), 0);
    assert_int_equal(agenda_plans(a), 0);
    asked(a, "a", 3, JOB_FORWARD, 10005);
    assert_plan(a, 10010, "a.3");
    agenda_free(a);
}

static void another_owner_means_starting_over_with_that_shard_only(void **state)
{
    struct agenda *a = agenda_for_test();
    asked(a, "a", 1, JOB_FORWARD, 0);
    asked(a, "b", 1, JOB_FORWARD, 0);
    assert_plan(a, 5, "a.1 b.1");
    agenda_forget_shard(a, STREAM_TRAIN, 0);
    assert_int_equal(agenda_known(a), 1);
    asked(a, "a", 1, JOB_FORWARD, 5); /* read again from the log */
    assert_plan(a, 10, "a.1");
    decided(a, "b", 1, JOB_FORWARD, 10);
    assert_int_equal(agenda_plans(a), 1);
    agenda_free(a);
}

static void control_records_and_copies_are_not_planned(void **state)
{
    struct agenda *a = agenda_for_test();
    struct err e = {0};
    assert_int_equal(read_job(a, "a", 0, JOB_EXPIRE, 0, &e), 0);
    assert_int_equal(read_job(a, "s", 0, JOB_CANCEL, 0, &e), 0);
    asked(a, "a", 1, JOB_REJECT, 0); /* it uses its seq up, so it has its turn */
    assert_int_equal(read_job(a, "a", 1, JOB_REJECT, 0, &e), 0);
    assert_int_equal(read_job(a, "a", 1, JOB_FORWARD, 0, &e), 0); /* the first copy of a seq wins */
    assert_int_equal(agenda_known(a), 1);
    assert_plan(a, 5, "a.1");
    agenda_free(a);
}

static void too_many_waiting_jobs_are_left_in_the_log(void **state)
{
    struct agenda *a = agenda_for_test();
    struct err e = {0};
    for (int i = 0; i < conf.queue_max; i++)
        asked(a, "s", i, JOB_SAMPLE, 0);
    assert_int_equal(read_job(a, "s", 99, JOB_SAMPLE, 0, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_int_equal(agenda_known(a), conf.queue_max);
    decided(a, "s", 3, JOB_SAMPLE, 0);
    asked(a, "s", 99, JOB_SAMPLE, 0);
    agenda_free(a);
}

static void see(void *arg, const char *run, int partition, bool overdue)
{
    strcat(arg, run);
    if (overdue) strcat(arg, "!");
    assert_int_equal(partition, run[0] - 'a');
}

static void assert_gaps(struct agenda *a, int64_t now_ms, const char *expected)
{
    char seen[128] = "";
    agenda_gaps(a, now_ms, 50, 1000, see, seen);
    assert_string_equal(seen, expected);
}

/* More of it comes all the time, and the missing one does not. */
static void a_gap_that_is_kept_open_is_overdue_one_day(void **state)
{
    struct agenda *a = agenda_for_test();
    decided(a, "a", 1, JOB_FORWARD, 0);
    for (int i = 0; i <= 5; i++) {
        asked(a, "a", 3 + i, JOB_FORWARD, 200 * i);
        assert_gaps(a, 200 * i, i < 5 ? "" : "a!");
    }
    agenda_gap_mark(a, "a");
    asked(a, "a", 60, JOB_FORWARD, 1010); /* heard of again; the gap counts anew */
    assert_gaps(a, 1010, "");
    assert_gaps(a, 1100, "a");
    asked(a, "a", 2, JOB_FORWARD, 1200); /* it came, and the next one did not */
    decided(a, "a", 2, JOB_FORWARD, 1200);
    for (int seq = 3; seq <= 8; seq++)
        decided(a, "a", seq, JOB_FORWARD, 1900);
    asked(a, "a", 61, JOB_FORWARD, 2005);
    assert_gaps(a, 2009, "");
    assert_gaps(a, 2010, "a!"); /* another gap, but 60 waits for as long as that */
    agenda_free(a);
}

static void a_run_behind_a_gap_is_shown_until_it_is_marked_or_heard_of(void **state)
{
    struct agenda *a = agenda_for_test();
    decided(a, "a", 1, JOB_FORWARD, 0);
    asked(a, "a", 3, JOB_FORWARD, 0);
    asked(a, "b", 1, JOB_FORWARD, 0);
    assert_gaps(a, 49, "");
    assert_gaps(a, 50, "a");
    agenda_gap_mark(a, "a");
    assert_gaps(a, 60, "");
    asked(a, "a", 4, JOB_FORWARD, 70);
    assert_gaps(a, 120, "a");
    asked(a, "a", 2, JOB_FORWARD, 120);
    assert_gaps(a, 500, "");
    agenda_free(a);
}

/* Two logs, read in any interleaving, some results before their jobs: nothing is planned twice,
 * nothing stays. */
static void nothing_is_planned_twice_and_nothing_stays(void **state)
{
    enum { RUNS = 5, SEQS = 200 };
    struct agenda *a = agenda_for_test();
    int jobs[RUNS] = {0}, results[RUNS] = {0}, planned[RUNS][SEQS] = {{0}}, left = RUNS * SEQS;
    unsigned seed = 4711;
    for (int64_t now = 0; left && now < 1000000; now++) {
        int i = (int)(rand_r(&seed) % RUNS);
        char run[2] = {(char)('a' + i), '\0'};
        enum job_kind kind = i < 3 ? JOB_FORWARD : JOB_SAMPLE;
        struct err e = {0};
        if (rand_r(&seed) % 2 && jobs[i] < SEQS && jobs[i] < results[i] + 4) {
            int said = read_job(a, run, jobs[i], kind, now, &e);
            if (said >= 0) jobs[i]++;
        } else if (results[i] < SEQS && results[i] < jobs[i] + 3 && rand_r(&seed) % 4 == 0) {
            decided(a, run, results[i]++, kind, now);
            left--;
        }
        struct batch *b;
        int due = agenda_next(a, now, &b, &e);
        for (int k = 0; due > 0 && k < b->count; k++)
            planned[b->entries[k].run[0] - 'a'][b->entries[k].offset - 100]++;
        batch_free(b);
    }
    assert_int_equal(left, 0);
    for (int i = 0; i < RUNS; i++) {
        char run[2] = {(char)('a' + i), '\0'};
        for (; jobs[i] < SEQS; jobs[i]++)
            assert_int_equal(read_job(a, run, jobs[i], i < 3 ? JOB_FORWARD : JOB_SAMPLE, 0, NULL),
                             0);
        for (int k = 0; k < SEQS; k++)
            assert_in_range(planned[i][k], 0, 1);
    }
    assert_int_equal(agenda_known(a), 0);
    assert_int_equal(agenda_plans(a), 0);
    agenda_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_wait_for_company_on_an_idle_slot_too),
        cmocka_unit_test(what_is_decided_already_is_not_planned_whichever_is_read_first),
        cmocka_unit_test(a_slot_has_only_so_many_unfinished_plans),
        cmocka_unit_test(a_plan_that_grew_stale_does_not_hold_up_the_next),
        cmocka_unit_test(a_plan_that_nobody_answers_is_forgotten_with_its_runs),
        cmocka_unit_test(another_owner_means_starting_over_with_that_shard_only),
        cmocka_unit_test(control_records_and_copies_are_not_planned),
        cmocka_unit_test(too_many_waiting_jobs_are_left_in_the_log),
        cmocka_unit_test(a_gap_that_is_kept_open_is_overdue_one_day),
        cmocka_unit_test(a_run_behind_a_gap_is_shown_until_it_is_marked_or_heard_of),
        cmocka_unit_test(nothing_is_planned_twice_and_nothing_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

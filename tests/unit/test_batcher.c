/* test_batcher.c - the batching policy, as sentences; the clock is an argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "plan/batcher.h"

#define JOBS_MAX 4

static const struct batcher_conf conf = {
    .jobs_max = JOBS_MAX, .tokens_max = 1000, .wait_ms = 5, .queue_max = 64};

static struct batcher *batcher_for_test(const struct batcher_conf *c)
{
    struct err e = {0};
    struct batcher *b = batcher_create(c, &e);
    assert_non_null(b);
    return b;
}

/* Adds a job tagged with its name; returns what batcher_add says. */
static int add_full(struct batcher *b, const char *account, const char *run, int64_t seq,
                    enum batch_class cls, int64_t tokens, const char *tag, int64_t now_ms)
{
    struct err e = {0};
    return batcher_add(b,
                       &(struct batcher_job){.run = run,
                                             .account = account,
                                             .seq = seq,
                                             .cls = cls,
                                             .tokens = tokens,
                                             .tag = (void *)tag},
                       now_ms, &e);
}

static void add(struct batcher *b, const char *account, const char *run, int64_t seq,
                enum batch_class cls, const char *tag, int64_t now_ms)
{
    assert_int_equal(add_full(b, account, run, seq, cls, 10, tag, now_ms), 1);
}

static void assert_batch(struct batcher *b, int64_t now_ms, bool flush, const char *expected)
{
    void *tags[64];
    char text[512] = "";
    int count = batcher_due(b, now_ms, flush, tags);
    for (int i = 0; i < count; i++) {
        if (i) strcat(text, " ");
        strcat(text, tags[i]);
    }
    assert_string_equal(text, expected);
}

static void assert_due(struct batcher *b, int64_t now_ms, const char *expected)
{
    assert_batch(b, now_ms, false, expected);
}

static void a_batch_waits_for_company_and_mixes_runs(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "run-a", 1, CLASS_PASS, "a1", 0);
    add(b, "x", "run-a", 2, CLASS_STEP, "a2", 1);
    add(b, "y", "run-b", 1, CLASS_PASS, "b1", 2);
    assert_int_equal(batcher_next_ms(b), 5);
    assert_due(b, 4, "");
    assert_due(b, 5, "a1 b1");
    assert_due(b, 8, ""); /* a2 waits until a1 is done */
    assert_int_equal(batcher_next_ms(b), -1);
    batcher_done(b, "run-a", 1, 10);
    assert_due(b, 8, "a2"); /* it has waited long enough already */
    batcher_free(b);
}

static void a_flush_does_not_wait(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "run-a", 1, CLASS_PASS, "a1", 0);
    assert_batch(b, 0, true, "a1");
    assert_batch(b, 0, true, "");
    batcher_free(b);
}

static void a_full_batch_is_due_at_once(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    const char *const tags[] = {"r0", "r1", "r2", "r3", "r4"};
    for (int i = 0; i < 5; i++)
        add(b, "x", tags[i], 1, CLASS_PASS, tags[i], 100);
    assert_int_equal(batcher_next_ms(b), 100);
    assert_due(b, 100, "r0 r1 r2 r3");
    assert_int_equal(batcher_held(b), 1);
    assert_due(b, 100, "");
    assert_due(b, 105, "r4");
    batcher_free(b);
}

static void tokens_close_a_batch_and_a_larger_job_goes_alone(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    assert_int_equal(add_full(b, "x", "r1", 1, CLASS_PASS, 600, "600", 0), 1);
    assert_int_equal(add_full(b, "x", "r2", 1, CLASS_PASS, 5000, "5000", 0), 1);
    assert_int_equal(add_full(b, "y", "r3", 1, CLASS_PASS, 300, "300", 0), 1);
    assert_due(b, 0, "600 300"); /* full by tokens; what does not fit is passed over */
    assert_due(b, 0, "5000");
    batcher_free(b);
}

static void several_chunks_of_a_run_share_a_batch_in_seq_order(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    assert_int_equal(batcher_run_set(b, "r", 0, &(struct err){0}), 0);
    add(b, "x", "r", 2, CLASS_PASS, "c2", 0);
    add(b, "x", "r", 3, CLASS_PASS, "c3", 0);
    add(b, "x", "r", 4, CLASS_STEP, "step", 0);
    assert_batch(b, 9, true, ""); /* the first chunk is sent last */
    add(b, "x", "r", 1, CLASS_PASS, "c1", 9);
    assert_batch(b, 9, true, "c1 c2 c3");
    batcher_done(b, "r", 1, 10);
    batcher_done(b, "r", 2, 10);
    assert_batch(b, 9, true, "");
    batcher_done(b, "r", 3, 10);
    assert_batch(b, 9, true, "step");
    batcher_free(b);
}

static void a_long_chain_continues_after_its_first_part_is_done(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    const char *const tags[] = {"1", "2", "3", "4", "5", "6"};
    for (int i = 0; i < 6; i++)
        add(b, "x", "r", i + 1, CLASS_PASS, tags[i], 0);
    assert_batch(b, 0, true, "1 2 3 4");
    assert_batch(b, 0, true, "");
    for (int i = 1; i <= 4; i++)
        batcher_done(b, "r", i, 10);
    assert_batch(b, 0, true, "5 6");
    batcher_free(b);
}

static void a_gap_holds_a_run_back_and_nobody_else(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    assert_int_equal(batcher_run_set(b, "r", 4, &(struct err){0}), 0);
    add(b, "x", "r", 6, CLASS_PASS, "r6", 0);
    add(b, "x", "other", 1, CLASS_PASS, "other", 0);
    assert_batch(b, 100, true, "other");
    assert_batch(b, 100, true, "");
    int64_t since_ms = -9;
    assert_true(batcher_behind_gap(b, "r", &since_ms));
    assert_int_equal(since_ms, 0);
    assert_false(batcher_behind_gap(b, "other", &since_ms));
    add(b, "x", "r", 5, CLASS_PASS, "r5", 100);
    assert_false(batcher_behind_gap(b, "r", &since_ms));
    assert_batch(b, 100, true, "r5 r6");
    batcher_free(b);
}

static void a_run_that_was_never_set_starts_at_its_lowest_waiting_job(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "r", 8, CLASS_PASS, "r8", 0);
    add(b, "x", "r", 7, CLASS_PASS, "r7", 0);
    assert_batch(b, 0, true, "r7 r8");
    assert_int_equal(add_full(b, "x", "r", 6, CLASS_PASS, 10, "r6", 0), 0);
    batcher_free(b);
}

static void copies_are_not_taken_twice(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "r", 1, CLASS_PASS, "r1", 0);
    assert_int_equal(add_full(b, "x", "r", 1, CLASS_PASS, 10, "again", 0), 0);
    assert_batch(b, 0, true, "r1");
    assert_int_equal(add_full(b, "x", "r", 1, CLASS_PASS, 10, "again", 0), 0); /* handed out */
    batcher_done(b, "r", 1, 10);
    assert_int_equal(add_full(b, "x", "r", 1, CLASS_PASS, 10, "again", 0), 0); /* past */
    add(b, "x", "s", 1, CLASS_SAMPLE, "s1", 0);
    assert_int_equal(add_full(b, "x", "s", 1, CLASS_SAMPLE, 10, "again", 0), 0);
    assert_batch(b, 0, true, "s1");
    assert_int_equal(batcher_held(b), 0);
    batcher_free(b);
}

static void classes_do_not_mix(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "r1", 1, CLASS_STEP, "step", 0);
    add(b, "x", "r2", 1, CLASS_PASS, "pass", 0);
    add(b, "x", "s", 9, CLASS_SAMPLE, "s9", 0);
    add(b, "x", "r3", 1, CLASS_STEP, "step3", 0);
    assert_batch(b, 0, true, "step step3");
    assert_batch(b, 0, true, "pass");
    assert_batch(b, 0, true, "s9");
    batcher_free(b);
}

static void samples_of_one_sampler_need_no_order_and_do_not_wait_for_each_other(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    const char *const tags[] = {"9", "2", "7", "4", "5", "1"};
    for (int i = 0; i < 6; i++)
        add(b, "x", "s", tags[i][0] - '0', CLASS_SAMPLE, tags[i], 0);
    assert_batch(b, 0, true, "9 2 7 4");
    assert_batch(b, 0, true, "5 1");
    batcher_done(b, "s", 2, 10);
    add(b, "x", "s", 3, CLASS_SAMPLE, "3", 0);
    assert_batch(b, 0, true, "3");
    batcher_free(b);
}

static void a_quiet_account_goes_before_the_rest_of_a_flood(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    char runs[12][8];
    for (int i = 0; i < 12; i++) {
        snprintf(runs[i], sizeof runs[i], "f%d", i);
        add(b, "flood", runs[i], 1, CLASS_PASS, "f", 0);
    }
    assert_batch(b, 0, true, "f f f f");
    add(b, "quiet", "q", 1, CLASS_PASS, "q1", 1);
    add(b, "quiet", "q", 2, CLASS_PASS, "q2", 1);
    assert_batch(b, 1, true, "q1 f q2 f"); /* level at first, then in turn */
    batcher_free(b);
}

static void turns_go_by_tokens_not_by_jobs(void **state)
{
    struct batcher_conf one = conf;
    one.jobs_max = 1;
    struct batcher *b = batcher_for_test(&one);
    int64_t served[2] = {0, 0};
    static char big[40][8], small[40][8];
    for (int i = 0; i < 10; i++) {
        snprintf(big[i], sizeof big[i], "B%d", i);
        assert_int_equal(add_full(b, "big", big[i], 1, CLASS_PASS, 300, "B", 0), 1);
    }
    for (int i = 0; i < 40; i++) {
        snprintf(small[i], sizeof small[i], "s%d", i);
        assert_int_equal(add_full(b, "small", small[i], 1, CLASS_PASS, 50, "s", 0), 1);
    }
    for (int i = 0; i < 21; i++) {
        void *tag;
        assert_int_equal(batcher_due(b, 0, true, &tag), 1);
        if (!strcmp(tag, "B"))
            served[0] += 300;
        else
            served[1] += 50;
    }
    assert_in_range(served[0], served[1] - 300, served[1] + 300);
    batcher_free(b);
}

static void the_tokens_that_were_really_served_decide_the_next_turn(void **state)
{
    struct batcher_conf one = conf;
    one.jobs_max = 1;
    struct batcher *b = batcher_for_test(&one);
    add(b, "x", "x1", 1, CLASS_PASS, "x1", 0);
    add(b, "x", "x2", 1, CLASS_PASS, "x2", 0);
    add(b, "y", "y1", 1, CLASS_PASS, "y1", 0);
    add(b, "y", "y2", 1, CLASS_PASS, "y2", 0);
    assert_batch(b, 0, true, "x1");
    batcher_done(b, "x1", 1, 500); /* thought to be 10 */
    assert_batch(b, 0, true, "y1");
    assert_batch(b, 0, true, "y2");
    assert_batch(b, 0, true, "x2");
    batcher_free(b);
}

static void idleness_earns_no_credit(void **state)
{
    struct batcher_conf one = conf;
    one.jobs_max = 1;
    struct batcher *b = batcher_for_test(&one);
    char runs[24][8];
    add(b, "late", "warm", 1, CLASS_PASS, "w", 0);
    assert_batch(b, 0, true, "w");
    batcher_done(b, "warm", 1, 10);
    for (int i = 0; i < 12; i++) {
        snprintf(runs[i], sizeof runs[i], "a%d", i);
        add(b, "busy", runs[i], 1, CLASS_PASS, "a", 0);
    }
    for (int i = 0; i < 8; i++)
        assert_batch(b, 0, true, "a");
    for (int i = 12; i < 16; i++) {
        snprintf(runs[i], sizeof runs[i], "l%d", i);
        add(b, "late", runs[i], 1, CLASS_PASS, "l", 1);
    }
    char order[9] = "";
    for (int i = 0; i < 6; i++) {
        void *tag;
        assert_int_equal(batcher_due(b, 1, true, &tag), 1);
        strcat(order, tag);
    }
    assert_string_equal(order, "lalala");
    batcher_free(b);
}

static void a_run_moves_on_with_jobs_that_were_never_added(void **state)
{
    struct batcher *b = batcher_for_test(&conf);
    assert_int_equal(batcher_run_set(b, "r", 1, &(struct err){0}), 0);
    batcher_done(b, "r", 2, 10);
    assert_int_equal(add_full(b, "x", "r", 2, CLASS_PASS, 10, "2", 0), 0);
    add(b, "x", "r", 3, CLASS_PASS, "3", 0);
    assert_batch(b, 0, true, "3");
    batcher_free(b);
}

static void collect(void *arg, void *tag)
{
    strcat(arg, tag);
}

static void what_is_past_is_dropped_and_its_tag_comes_back(void **state)
{
    char dropped[64] = "";
    struct batcher_conf c = conf;
    c.dropped = collect;
    c.dropped_arg = dropped;
    struct batcher *b = batcher_for_test(&c);
    add(b, "x", "r", 1, CLASS_PASS, "1", 0);
    add(b, "x", "r", 2, CLASS_PASS, "2", 0);
    add(b, "x", "r", 3, CLASS_PASS, "3", 0);
    add(b, "x", "r", 5, CLASS_PASS, "5", 0);
    batcher_done(b, "r", 1, 10); /* a worker ran it before any plan */
    assert_string_equal(dropped, "1");
    assert_int_equal(batcher_run_set(b, "r", 4, &(struct err){0}), 0);
    assert_string_equal(dropped, "123");
    assert_batch(b, 0, true, "5");
    assert_string_equal(dropped, "123");
    batcher_free(b);
}

static void a_dropped_run_leaves_nothing_behind(void **state)
{
    char dropped[64] = "";
    struct batcher *b = batcher_for_test(&conf);
    add(b, "x", "r", 1, CLASS_PASS, "1", 0);
    add(b, "x", "r", 2, CLASS_STEP, "2", 0);
    add(b, "x", "r", 9, CLASS_SAMPLE, "9", 0);
    assert_batch(b, 0, true, "1");
    batcher_run_drop(b, "r", collect, dropped);
    assert_string_equal(dropped, "29");
    assert_int_equal(batcher_held(b), 0);
    assert_int_equal(batcher_next_ms(b), -1);
    batcher_done(b, "r", 1, 10); /* late news about it is harmless */
    add(b, "x", "r", 7, CLASS_PASS, "7", 0);
    assert_batch(b, 0, true, "7");
    batcher_free(b);
}

static void the_queue_has_an_end(void **state)
{
    struct batcher_conf c = conf;
    c.queue_max = 2;
    struct batcher *b = batcher_for_test(&c);
    add(b, "x", "r", 1, CLASS_PASS, "1", 0);
    add(b, "x", "r", 2, CLASS_PASS, "2", 0);
    struct err e = {0};
    struct batcher_job job = {.run = "r", .account = "x", .seq = 3, .cls = CLASS_PASS};
    assert_int_equal(batcher_add(b, &job, 0, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_batch(b, 0, true, "1 2");
    assert_int_equal(batcher_add(b, &job, 0, &e), -1); /* handed out is not done */
    batcher_done(b, "r", 1, 10);
    assert_int_equal(batcher_add(b, &job, 0, &e), 1);
    batcher_free(b);
}

static void limits_that_make_no_sense_are_refused(void **state)
{
    struct batcher_conf c = conf;
    c.jobs_max = 0;
    struct err e = {0};
    assert_null(batcher_create(&c, &e));
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "jobs_max 0"));
}

/* A thousand random moves against the two laws that must never break: a run's jobs come in seq
 * order without a gap, each once, and nothing of a run comes while earlier ones are out in another
 * batch. */
static void order_holds_under_any_arrival(void **state)
{
    enum { RUNS = 7, SEQS = 60 };
    struct batcher_conf c = conf;
    c.queue_max = RUNS * SEQS;
    struct batcher *b = batcher_for_test(&c);
    static int64_t seqs[RUNS][SEQS];
    int given[RUNS] = {0};
    int64_t next[RUNS];
    char name[8], account[8];
    unsigned seed = 12345;
    for (int r = 0; r < RUNS; r++) {
        next[r] = 1;
        snprintf(name, sizeof name, "%d", r);
        assert_int_equal(batcher_run_set(b, name, 0, &(struct err){0}), 0);
        for (int s = 0; s < SEQS; s++)
            seqs[r][s] = s + 1;
        for (int s = SEQS - 1; s > 0; s--) {
            int other = (int)(rand_r(&seed) % (unsigned)(s + 1));
            int64_t t = seqs[r][s];
            seqs[r][s] = seqs[r][other];
            seqs[r][other] = t;
        }
    }
    int left = RUNS * SEQS;
    for (int64_t now = 0; left && now < 100000; now++) {
        int r = (int)(rand_r(&seed) % RUNS);
        if (given[r] < SEQS) {
            int64_t seq = seqs[r][given[r]++];
            snprintf(name, sizeof name, "%d", r);
            snprintf(account, sizeof account, "%d", r % 3);
            enum batch_class cls = seq % 5 ? CLASS_PASS : CLASS_STEP;
            struct batcher_job job = {name, account, seq,
                                      cls,  seq,     (void *)(intptr_t)(r * 1000 + seq)};
            assert_int_equal(batcher_add(b, &job, now, &(struct err){0}), 1);
        }
        void *tags[JOBS_MAX];
        int count = batcher_due(b, now, false, tags);
        for (int i = 0; i < count; i++) {
            int run = (int)((intptr_t)tags[i] / 1000);
            assert_int_equal((intptr_t)tags[i] % 1000, next[run]);
            next[run]++;
        }
        for (int i = 0; i < count; i++, left--) {
            snprintf(name, sizeof name, "%d", (int)((intptr_t)tags[i] / 1000));
            batcher_done(b, name, (intptr_t)tags[i] % 1000, 3);
        }
    }
    assert_int_equal(left, 0);
    assert_int_equal(batcher_held(b), 0);
    batcher_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_waits_for_company_and_mixes_runs),
        cmocka_unit_test(a_flush_does_not_wait),
        cmocka_unit_test(a_full_batch_is_due_at_once),
        cmocka_unit_test(tokens_close_a_batch_and_a_larger_job_goes_alone),
        cmocka_unit_test(several_chunks_of_a_run_share_a_batch_in_seq_order),
        cmocka_unit_test(a_long_chain_continues_after_its_first_part_is_done),
        cmocka_unit_test(a_gap_holds_a_run_back_and_nobody_else),
        cmocka_unit_test(a_run_that_was_never_set_starts_at_its_lowest_waiting_job),
        cmocka_unit_test(copies_are_not_taken_twice),
        cmocka_unit_test(classes_do_not_mix),
        cmocka_unit_test(samples_of_one_sampler_need_no_order_and_do_not_wait_for_each_other),
        cmocka_unit_test(a_quiet_account_goes_before_the_rest_of_a_flood),
        cmocka_unit_test(turns_go_by_tokens_not_by_jobs),
        cmocka_unit_test(the_tokens_that_were_really_served_decide_the_next_turn),
        cmocka_unit_test(idleness_earns_no_credit),
        cmocka_unit_test(a_run_moves_on_with_jobs_that_were_never_added),
        cmocka_unit_test(what_is_past_is_dropped_and_its_tag_comes_back),
        cmocka_unit_test(a_dropped_run_leaves_nothing_behind),
        cmocka_unit_test(the_queue_has_an_end),
        cmocka_unit_test(limits_that_make_no_sense_are_refused),
        cmocka_unit_test(order_holds_under_any_arrival),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

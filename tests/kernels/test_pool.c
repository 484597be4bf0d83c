/* The thread pool: every task once, run after run. */
#include "kernels/check.h"
#include "kernels/cpu/pool.h"

#include <time.h>

struct tally {
    int counts[64];
    const int *offset; /* written by the caller between runs: tasks must see it */
    int seen[64];
};

static void count(const void *arg, int task, int thread)
{
    struct tally *t = (struct tally *)arg;
    t->counts[task]++;
    t->seen[task] = *t->offset;
    if (thread < 0 || thread >= 4) abort();
}

static void every_task_runs_once_and_sees_what_was_written_before(void **state)
{
    struct pool *p = pool_create(4, NULL);
    assert_non_null(p);
    struct tally t = {0};
    int offset = 0;
    t.offset = &offset;
    for (int run = 0; run < 3000; run++) {
        int tasks = run % 64;
        memset(t.counts, 0, sizeof t.counts);
        offset = run;
        pool_run(p, count, &t, tasks);
        for (int i = 0; i < 64; i++) {
            assert_int_equal(t.counts[i], i < tasks ? 1 : 0);
            if (i < tasks) assert_int_equal(t.seen[i], run);
        }
    }
    pool_free(p);
}

static void threads_that_went_to_sleep_are_woken(void **state)
{
    struct pool *p = pool_create(3, NULL);
    assert_non_null(p);
    struct tally t = {0};
    int offset = 7;
    t.offset = &offset;
    for (int run = 1; run <= 20; run++) {
        const struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
        pool_run(p, count, &t, 8);
        for (int i = 0; i < 8; i++)
            assert_int_equal(t.counts[i], run);
    }
    pool_free(p);
}

static void a_senseless_number_of_threads_is_refused(void **state)
{
    struct err e = {0};
    assert_null(pool_create(0, &e));
    assert_int_equal(e.kind, ERR_USER);
    assert_null(pool_create(POOL_THREADS_MAX + 1, &e));
}

static void a_gpu_that_is_not_there_is_refused(void **state)
{
    struct err e = {0};
    assert_null(ops_cuda(99, &e));
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "cuda:99"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_and_sees_what_was_written_before),
        cmocka_unit_test(threads_that_went_to_sleep_are_woken),
        cmocka_unit_test(a_senseless_number_of_threads_is_refused),
        cmocka_unit_test(a_gpu_that_is_not_there_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

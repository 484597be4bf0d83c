/* Sums over GPUs: the bits of comm_cpu() whatever the count and the place, and what the ranks hear when one fails.  On a
 * real machine groups are as large as it has devices. */
#include <pthread.h>
#include "cuda/sides.h"
#include "kernels/comm.h"

struct rank {
    const struct ops *ops;
    const struct comm_ops *comm;
    struct device *d;
    struct comm *end;
    void (*fn)(struct rank *r);
    int number;
    float *x; /* on the host */
    float *there;
    size_t count, from;
    pthread_t thread;
};

struct team {
    int count;
    struct rank ranks[COMM_RANKS_MAX];
};

static int devices_here(void)
{
    struct err e = {0};
    int n = 0;
    while (n < COMM_RANKS_MAX && ops_cuda(n, &e))
        n++;
    if (n == 0) fail_msg("%s", e.text);
    return n;
}

/* By one thread, as the engine does. */
static void team_open(struct team *t, int count)
{
    struct device *devices[COMM_RANKS_MAX];
    struct comm *ends[COMM_RANKS_MAX];
    struct err e = {0};
    *t = (struct team){.count = count};
    for (int r = 0; r < count; r++) {
        const struct ops *ops = ops_cuda(r, &e);
        assert_non_null(ops);
        devices[r] = ops->open(r, 2, &e);
        assert_non_null(devices[r]);
        t->ranks[r] = (struct rank){.ops = ops, .d = devices[r], .number = r};
    }
    const struct comm_ops *comm = comm_nccl(&e);
    if (!comm || comm->open(devices, count, ends, &e) < 0) fail_msg("%s", e.text);
    for (int r = 0; r < count; r++) {
        t->ranks[r].comm = comm;
        t->ranks[r].end = ends[r];
    }
}

static void team_close(struct team *t)
{
    struct comm *ends[COMM_RANKS_MAX];
    for (int r = 0; r < t->count; r++)
        ends[r] = t->ranks[r].end;
    t->ranks[0].comm->close(ends, t->count);
    for (int r = 0; r < t->count; r++) {
        assert_null(ends[r]);
        t->ranks[r].ops->close(t->ranks[r].d);
    }
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    r->fn(r);
    return NULL;
}

/* Rank 0 is the caller's, as in the engine. */
static void team_do(struct team *t, void (*fn)(struct rank *r))
{
    for (int r = t->count - 1; r >= 0; r--) {
        t->ranks[r].fn = fn;
        if (r > 0)
            assert_int_equal(pthread_create(&t->ranks[r].thread, NULL, rank_main, &t->ranks[r]), 0);
        else
            fn(&t->ranks[0]);
    }
    for (int r = 1; r < t->count; r++)
        pthread_join(t->ranks[r].thread, NULL);
}

/* ------------------------------------------------------------------ sums */

/* Twice, so that the second begins with the sums of the first; x ends as what came out. */
static void sum_twice(struct rank *r)
{
    struct err e = {0};
    size_t bytes = r->count * sizeof(float);
    r->there = r->ops->alloc(r->d, bytes, &e);
    r->ops->upload(r->d, r->there, r->x, bytes);
    r->comm->all_reduce(r->end, r->there, r->count);
    r->comm->all_reduce(r->end, r->there, r->count);
    r->ops->download(r->d, r->x, r->there, bytes);
    r->ops->release(r->d, r->there);
}

static void *sum_on_cpu(void *arg)
{
    struct rank *r = arg;
    comm_cpu()->all_reduce(r->end, r->x, r->count);
    comm_cpu()->all_reduce(r->end, r->x, r->count);
    return NULL;
}

/* want[0]: the definition's sums of all ranks' x. */
static void define(float **want, int count, size_t n)
{
    struct device *devices[COMM_RANKS_MAX] = {NULL};
    struct comm *ends[COMM_RANKS_MAX];
    struct rank all[COMM_RANKS_MAX];
    struct err e = {0};
    assert_int_equal(comm_cpu()->open(devices, count, ends, &e), 0);
    for (int r = 0; r < count; r++) {
        all[r] = (struct rank){.end = ends[r], .x = want[r], .count = n};
        assert_int_equal(pthread_create(&all[r].thread, NULL, sum_on_cpu, &all[r]), 0);
    }
    for (int r = 0; r < count; r++)
        pthread_join(all[r].thread, NULL);
    comm_cpu()->close(ends, count);
}

static void sums_have_the_definitions_bits(struct team *t, size_t n)
{
    float *want[COMM_RANKS_MAX];
    for (int r = 0; r < t->count; r++) {
        t->ranks[r].x = numbers(n, (uint64_t)(100 * r) + n);
        t->ranks[r].count = n;
        want[r] = numbers(n, (uint64_t)(100 * r) + n);
    }
    define(want, t->count, n);
    team_do(t, sum_twice);
    for (int r = 0; r < t->count; r++) {
        struct err e = {0};
        if (t->ranks[r].ops->sync(t->ranks[r].d, &e) < 0) fail_msg("%s", e.text);
        assert_same_bits(t->ranks[r].x, want[r], n);
        free(t->ranks[r].x);
        free(want[r]);
    }
}

static void sums_are_comm_cpus(void **state)
{
    static const int teams[] = {1, 2, 3, 4, 8};
    static const size_t counts[] = {0,   1,     7,     255,   256,    257,
                                    1000, 32767, 32768, 32769, 100001, 1000003};
    for (int i = 0; i < 5 && teams[i] <= devices_here(); i++) {
        struct team t;
        team_open(&t, teams[i]);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            sums_have_the_definitions_bits(&t, counts[c]);
        team_close(&t);
    }
}

/* Everything at once; then from the start again, the `count` elements from `from` on alone. */
static void sum_a_piece(struct rank *r)
{
    struct err e = {0};
    size_t all = 70000 * sizeof(float), bytes = r->count * sizeof(float);
    r->there = r->ops->alloc(r->d, all, &e);
    r->ops->upload(r->d, r->there, r->x, all);
    r->comm->all_reduce(r->end, r->there + r->from, r->count);
    r->ops->download(r->d, r->x + r->from, r->there + r->from, bytes);
    r->ops->release(r->d, r->there);
}

static void an_elements_sum_does_not_depend_on_its_place(void **state)
{
    static const size_t pieces[][2] = {{0, 1}, {69999, 1}, {17, 300}, {1, 65536}, {3, 32771}};
    int n = devices_here() < 3 ? devices_here() : 3;
    struct team t;
    float *whole = NULL;
    team_open(&t, n);
    for (int p = -1; p < 5; p++) {
        for (int r = 0; r < n; r++) {
            t.ranks[r].x = numbers(70000, (uint64_t)r);
            t.ranks[r].from = p < 0 ? 0 : pieces[p][0];
            t.ranks[r].count = p < 0 ? 70000 : pieces[p][1];
        }
        team_do(&t, sum_a_piece);
        if (p < 0) whole = t.ranks[0].x;
        for (int r = 0; r < n; r++) {
            assert_same_bits(t.ranks[r].x + t.ranks[r].from, whole + t.ranks[r].from,
                             t.ranks[r].count);
            if (p >= 0 || r > 0) free(t.ranks[r].x);
        }
    }
    free(whole);
    team_close(&t);
}

#ifdef CUDA_EMULATED
/* ------------------------------------------------------------------ failures */

void emulate_fail_launch(int nth, int error); /* emulate.h and nccl_calls.h are C++ */
void emulate_state(int device, int state);
int emulate_device_of(void *p);
void nccl_plain_fail(int nth);

enum { NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

static void assert_all_lost(struct team *t, const char *first, const char *others)
{
    for (int r = 0; r < t->count; r++) {
        struct err e = {0};
        const char *what = r == 1 ? first : others;
        assert_int_equal(t->ranks[r].ops->sync(t->ranks[r].d, &e), -1);
        assert_int_equal(e.kind, ERR_LOST);
        if (!strstr(e.text, what)) fail_msg("\"%s\" does not say \"%s\"", e.text, what);
    }
}

static void fill(struct rank *r)
{
    struct err e = {0};
    r->there = r->ops->alloc(r->d, r->count * sizeof(float), &e);
    assert_int_equal(emulate_device_of(r->there), r->number);
}

static void launch_fails_before(struct rank *r)
{
    if (r->number == 1) {
        emulate_fail_launch(1, ILLEGAL_ADDRESS);
        r->ops->swiglu(r->d, act_f32(r->there), act_f32(r->there), act_f32(r->there), 1);
    }
    r->comm->all_reduce(r->end, r->there, r->count);
    r->comm->all_reduce(r->end, r->there, r->count);
}

static void launch_fails_within(struct rank *r)
{
    if (r->number == 1) emulate_fail_launch(1, ILLEGAL_ADDRESS);
    r->comm->all_reduce(r->end, r->there, r->count);
    r->comm->all_reduce(r->end, r->there, r->count);
}

/* In the first group of calls, or with many elements and three ranks in the second. */
static void nccl_fails(struct rank *r)
{
    if (r->number == 1) nccl_plain_fail(1);
    r->comm->all_reduce(r->end, r->there, r->count);
    r->comm->all_reduce(r->end, r->there, r->count);
}

static void nccl_fails_late(struct rank *r)
{
    if (r->number == 1) nccl_plain_fail(r->count > 32768 ? 6 : 1);
    r->comm->all_reduce(r->end, r->there, r->count);
}

static void a_rank_that_fails_is_known_to_all(void **state)
{
    static const struct {
        void (*fn)(struct rank *r);
        const char *first;
    } cases[] = {{launch_fails_before, "swiglu"},
                 {launch_fails_within, "add_in_order"},
                 {nccl_fails, "sum over ranks: unhandled cuda error"},
                 {nccl_fails_late, "sum over ranks: unhandled cuda error"}};
    for (int i = 0; i < 8; i++) {
        struct team t;
        team_open(&t, 3);
        for (int r = 0; r < 3; r++)
            t.ranks[r].count = i % 2 ? 100 : 40000;
        team_do(&t, fill);
        team_do(&t, cases[i / 2].fn);
        assert_all_lost(&t, cases[i / 2].first, "sum over ranks");
        for (int r = 0; r < 3; r++)
            drop(&(struct side){t.ranks[r].ops, t.ranks[r].d}, t.ranks[r].there);
        team_close(&t);
    }
}

static void wait_by_sync(struct rank *r)
{
    struct err e = {0};
    assert_int_equal(r->ops->sync(r->d, &e), -1);
}

static void wait_by_download(struct rank *r)
{
    float x[4] = {1, 1, 1, 1};
    r->ops->download(r->d, x, r->there, sizeof x);
    assert_true(x[0] == 0 && x[3] == 0);
}

static void wait_by_release(struct rank *r)
{
    r->ops->release(r->d, r->ops->alloc(r->d, 64, NULL));
}

/* Device 1 is lost in a sum, for which device 0 waits, and the host waits for device 0. */
static void who_waits_notices_that_another_is_lost(void **state)
{
    static void (*const waits[])(struct rank *r) = {wait_by_sync, wait_by_download, wait_by_release};
    for (int i = 0; i < 3; i++) {
        struct team t;
        team_open(&t, 2);
        for (int r = 0; r < 2; r++)
            t.ranks[r].count = 100;
        team_do(&t, fill);
        emulate_state(0, NOT_READY);
        emulate_state(1, ILLEGAL_ADDRESS);
        waits[i](&t.ranks[0]);
        assert_all_lost(&t, "illegal memory access", "device cuda:1 of rank 1 has failed");
        emulate_state(1, 0); /* device 0 was freed by ncclCommAbort, or closing would wait for ever */
        for (int r = 0; r < 2; r++)
            drop(&(struct side){t.ranks[r].ops, t.ranks[r].d}, t.ranks[r].there);
        team_close(&t);
    }
}
#endif

int main(void)
{
    struct err e = {0};
    if (!comm_nccl(&e)) {
        print_message("%s\n", e.text);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_comm_cpus),
        cmocka_unit_test(an_elements_sum_does_not_depend_on_its_place),
#ifdef CUDA_EMULATED
        cmocka_unit_test(a_rank_that_fails_is_known_to_all),
        cmocka_unit_test(who_waits_notices_that_another_is_lost),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Sums over ranks: their order, on every element, whatever the count. */
#include <pthread.h>
#include "kernels/check.h"
#include "kernels/comm.h"

#define ROUNDS 3

struct rank {
    const struct comm_ops *comm;
    struct comm *end;
    float *x;
    size_t count;
    pthread_t thread;
};

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    for (int i = 0; i < ROUNDS; i++)
        r->comm->all_reduce(r->end, r->x, r->count);
    return NULL;
}

/* Every rank's x after ROUNDS sums, of which each begins with the sums of the one before. */
static void sum_up(float **x, int ranks, size_t count)
{
    struct device *devices[COMM_RANKS_MAX] = {NULL};
    struct comm *ends[COMM_RANKS_MAX];
    struct rank all[COMM_RANKS_MAX];
    struct err e = {0};
    assert_int_equal(comm_cpu()->open(devices, ranks, ends, &e), 0);
    for (int r = 0; r < ranks; r++) {
        all[r] = (struct rank){.comm = comm_cpu(), .end = ends[r], .x = x[r], .count = count};
        assert_int_equal(pthread_create(&all[r].thread, NULL, rank_main, &all[r]), 0);
    }
    for (int r = 0; r < ranks; r++)
        pthread_join(all[r].thread, NULL);
    comm_cpu()->close(ends, ranks);
}

static float added_in_order(float *const *x, int ranks, size_t i)
{
    float sum = x[0][i];
    for (int r = 1; r < ranks; r++)
        sum += x[r][i];
    return sum;
}

static void a_sum_is_made_in_the_order_of_the_ranks(void **state)
{
    static const size_t counts[] = {0, 1, 7, 255, 256, 257, 2000};
    for (int ranks = 1; ranks <= COMM_RANKS_MAX; ranks++)
        for (int c = 0; c < 7; c++) {
            float *x[COMM_RANKS_MAX], *want = zeros(counts[c]);
            for (int r = 0; r < ranks; r++)
                x[r] = numbers(counts[c], (uint64_t)(10 * r + c));
            for (size_t i = 0; i < counts[c]; i++) {
                want[i] = added_in_order(x, ranks, i);
                for (int round = 1; round < ROUNDS; round++) {
                    float all[COMM_RANKS_MAX], *same[COMM_RANKS_MAX];
                    for (int r = 0; r < ranks; r++)
                        all[r] = want[i], same[r] = &all[r];
                    want[i] = added_in_order(same, ranks, 0);
                }
            }
            sum_up(x, ranks, counts[c]);
            for (int r = 0; r < ranks; r++) {
                assert_same_bits(x[r], want, counts[c]);
                free(x[r]);
            }
            free(want);
        }
}

static void where_there_is_no_nccl_it_says_so(void **state)
{
    struct err e = {0};
    if (comm_nccl(&e)) return; /* a build with CUDA */
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "NCCL"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sum_is_made_in_the_order_of_the_ranks),
        cmocka_unit_test(where_there_is_no_nccl_it_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

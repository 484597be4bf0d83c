/* comm.c - sums over ranks that are threads of this process.
 *
 * Each rank lays its array on the table; when all have, each adds up one share of the elements and
 * writes the sums to everybody.  A second meeting tells that all shares are written. */
#include "kernels/comm.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

#define PIECE 256 /* elements added up before they are written */

struct table {
    pthread_barrier_t meeting;
    int ranks;
    float *x[COMM_RANKS_MAX];
};

struct comm {
    struct table *table; /* the group's; freed with the first end */
    int rank;
};

static struct table *table_create(int ranks)
{
    struct table *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->ranks = ranks;
    if (pthread_barrier_init(&t->meeting, NULL, (unsigned)ranks) == 0) return t;
    free(t);
    return NULL;
}

static void close_group(struct comm **ends, int ranks)
{
    if (ends[0]) {
        pthread_barrier_destroy(&ends[0]->table->meeting);
        free(ends[0]->table);
    }
    for (int r = 0; r < ranks; r++) {
        free(ends[r]);
        ends[r] = NULL;
    }
}

static int open_group(struct device *const *devices, int ranks, struct comm **ends, struct err *e)
{
    assert(ranks >= 1 && ranks <= COMM_RANKS_MAX);
    for (int r = 0; r < ranks; r++)
        ends[r] = NULL;
    struct table *t = table_create(ranks);
    if (!t) return err_set(e, ERR_RETRY, "out of memory for a group of %d ranks", ranks);
    for (int r = 0; r < ranks; r++) {
        ends[r] = malloc(sizeof *ends[r]);
        if (!ends[r]) {
            if (r == 0) free(t);
            close_group(ends, ranks);
            return err_set(e, ERR_RETRY, "out of memory for a group of %d ranks", ranks);
        }
        *ends[r] = (struct comm){t, r};
    }
    return 0;
}

static void add_piece(const struct table *t, size_t at, size_t n)
{
    float sum[PIECE];
    for (size_t i = 0; i < n; i++)
        sum[i] = t->x[0][at + i];
    for (int r = 1; r < t->ranks; r++)
        for (size_t i = 0; i < n; i++)
            sum[i] += t->x[r][at + i];
    for (int r = 0; r < t->ranks; r++)
        for (size_t i = 0; i < n; i++)
            t->x[r][at + i] = sum[i];
}

static void all_reduce(struct comm *c, float *x, size_t count)
{
    struct table *t = c->table;
    size_t ranks = (size_t)t->ranks, rank = (size_t)c->rank;
    size_t pieces = (count + PIECE - 1) / PIECE;
    t->x[rank] = x;
    pthread_barrier_wait(&t->meeting);
    for (size_t p = pieces * rank / ranks; p < pieces * (rank + 1) / ranks; p++)
        add_piece(t, p * PIECE, count - p * PIECE < PIECE ? count - p * PIECE : PIECE);
    pthread_barrier_wait(&t->meeting);
}

const struct comm_ops *comm_cpu(void)
{
    static const struct comm_ops table = {"threads", open_group, close_group, all_reduce};
    return &table;
}

/* head.c - log-probabilities of rows of logits, and their way back.
 *
 * A row's sum of exponentials is made in sixteen lanes over stretches of 1024 logits, and the
 * stretches are added in double: a vocabulary is long enough for fp32 to lose digits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#define STRETCH 1024

static float row_max(const float *x, int n)
{
    v16 m = v_set1(-INFINITY);
    for (int i = 0; i < n; i += 16)
        m = v_max(v_keep(v_load_n(x + i, n - i < 16 ? n - i : 16), n - i, -INFINITY), m);
    return v_max_lane(m);
}

static float stretch_sum(const float *x, int n, v16 max)
{
    v16 s = v_set1(0);
    for (int i = 0; i < n; i += 16) {
        int k = n - i < 16 ? n - i : 16;
        s = v_add(s, v_keep(v_exp(v_sub(v_load_n(x + i, k), max)), k, 0));
    }
    return v_sum(s);
}

static double row_lse(const float *logits, int vocab)
{
    float max = row_max(logits, vocab);
    double sum = 0;
    for (int i = 0; i < vocab; i += STRETCH)
        sum +=
            (double)stretch_sum(logits + i, vocab - i < STRETCH ? vocab - i : STRETCH, v_set1(max));
    return (double)max + log(sum);
}

struct head_arg {
    float *logprob, *lse, *dlogits;
    const float *logits, *g;
    const int *first;
    const int32_t *ids;
    int rows, vocab, tasks;
};

/* Where the ids of row i begin; with i = rows, where they end. */
static size_t first_of(const struct head_arg *a, size_t i)
{
    return a->first ? (size_t)a->first[i] : i;
}

static void logprob_task(const void *p, int task, float *scratch)
{
    const struct head_arg *a = p;
    size_t from, to;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++) {
        const float *x = a->logits + i * (size_t)a->vocab;
        double all = row_lse(x, a->vocab);
        a->lse[i] = (float)all;
        for (size_t c = first_of(a, i); c < first_of(a, i + 1); c++)
            a->logprob[c] = a->ids[c] < 0 ? 0 : (float)((double)x[a->ids[c]] - all);
    }
}

/* One g is itself, so that a row with one id has the bits of the plain formula. */
static float sum_of(const float *g, size_t n)
{
    double sum = n ? (double)g[0] : 0;
    for (size_t c = 1; c < n; c++)
        sum += (double)g[c];
    return (float)sum;
}

static void logprob_back_task(const void *p, int task, float *scratch)
{
    const struct head_arg *a = p;
    size_t from, to;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++) {
        float *x = a->dlogits + i * (size_t)a->vocab;
        size_t first = first_of(a, i), end = first_of(a, i + 1);
        v16 lse = v_set1(a->lse[i]), minus = v_set1(-sum_of(a->g + first, end - first));
        for (int j = 0; j < a->vocab; j += 16) {
            int n = a->vocab - j < 16 ? a->vocab - j : 16;
            v_store_n(x + j, v_mul(minus, v_exp(v_sub(v_load_n(x + j, n), lse))), n);
        }
        for (size_t c = first; c < end; c++)
            if (a->ids[c] >= 0) x[a->ids[c]] += a->g[c];
    }
}

static void head(struct device *d, struct head_arg *a, task_fn *fn)
{
    size_t steps = (size_t)a->vocab;
    a->tasks = cpu_tasks_for(d, (size_t)a->rows, steps);
    cpu_run(d, fn, a, a->tasks, (size_t)a->rows * steps);
}

void cpu_logprob(struct device *d, float *logprob, float *lse, const float *logits,
                 const int *first, const int32_t *ids, int rows, int vocab)
{
    struct head_arg a = {.logprob = logprob,
                         .lse = lse,
                         .logits = logits,
                         .first = first,
                         .ids = ids,
                         .rows = rows,
                         .vocab = vocab};
    head(d, &a, logprob_task);
}

void cpu_logprob_back(struct device *d, float *logits, const float *lse, const float *g,
                      const int *first, const int32_t *ids, int rows, int vocab)
{
    struct head_arg a = {.dlogits = logits,
                         .lse = (float *)lse,
                         .g = g,
                         .first = first,
                         .ids = ids,
                         .rows = rows,
                         .vocab = vocab};
    head(d, &a, logprob_back_task);
}

/* head.cu - log-probabilities of rows of logits, and their way back.  A row is a block's.
 *
 * A thread's share of a row's sum of exponentials is made in fp32, a hundred or two of them; the
 * shares are added in double, because a vocabulary is long enough for fp32 to lose digits. */
#include "kernels/cuda/cuda.h"

#define THREADS 1024

/* Where the ids of a row begin and end, counted from the first that is staged. */
struct asked {
    const int *first;
    const int32_t *ids;
    int base; /* the first one's place in the op's own arrays */

    bool operator==(const asked &) const = default;
};

__device__ static inline int first_of(const asked &q, int row)
{
    return q.first ? q.first[row] - q.base : row;
}

static asked stage_asked(struct device *d, const int *first, const int32_t *ids, int rows)
{
    asked q = {NULL, NULL, first ? first[0] : 0};
    int count = first ? first[rows] - first[0] : rows;
    if (first) q.first = (const int *)cuda_stage(d, first, (size_t)(rows + 1) * sizeof *first);
    q.ids = (const int32_t *)cuda_stage(d, ids + q.base, (size_t)count * sizeof *ids);
    return q;
}

__global__ static void logprob_kernel(float *logprob, float *lse, const float *logits, asked q,
                                      int vocab)
{
    int row = (int)blockIdx.x;
    const float *x = logits + (size_t)row * vocab;
    float most = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        most = fmaxf(most, x[i]);
    most = block_max(most);
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        sum += expf(x[i] - most);
    double all = (double)most + log(block_sum((double)sum));
    if (threadIdx.x == 0) lse[row] = (float)all;
    int end = first_of(q, row + 1);
    for (int c = first_of(q, row) + (int)threadIdx.x; c < end; c += THREADS)
        logprob[q.base + c] = q.ids[c] < 0 ? 0 : (float)((double)x[q.ids[c]] - all);
}

void cuda_logprob(struct device *d, float *logprob, float *lse, const float *logits,
                  const int *first, const int32_t *ids, int rows, int vocab)
{
    if (rows == 0) return;
    asked q = stage_asked(d, first, ids, rows);
    LAUNCH(d, logprob_kernel, rows, THREADS, 0, logprob, lse, logits, q, vocab);
}

/* One g is itself, so that a row with one id has the bits of the plain formula. */
__device__ static inline float sum_of(const float *g, int first, int end)
{
    double sum = first < end ? (double)g[first] : 0;
    for (int c = first + 1; c < end; c++)
        sum += (double)g[c];
    return (float)sum;
}

__global__ static void logprob_back_kernel(float *logits, const float *lse, const float *g, asked q,
                                           int vocab)
{
    int row = (int)blockIdx.x, first = first_of(q, row), end = first_of(q, row + 1);
    float *x = logits + (size_t)row * vocab, all = lse[row];
    float minus = -sum_of(g + q.base, first, end);
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        x[i] = minus * expf(x[i] - all);
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int c = first; c < end; c++)
        if (q.ids[c] >= 0) x[q.ids[c]] += g[q.base + c];
}

void cuda_logprob_back(struct device *d, float *logits, const float *lse, const float *g,
                       const int *first, const int32_t *ids, int rows, int vocab)
{
    if (rows == 0) return;
    asked q = stage_asked(d, first, ids, rows);
    LAUNCH(d, logprob_back_kernel, rows, THREADS, 0, logits, lse, g, q, vocab);
}

/* optim.cu - the norm of a gradient, and AdamW.
 *
 * Both go over all tensors of an adapter, cut into pieces, a block each and PIECES of them in a
 * launch.  How a tensor is cut depends on its count alone. */
#include "kernels/cuda/cuda.h"

#define THREADS 256
#define PIECE   ((size_t)1 << 16)
#define PIECES  256

struct piece {
    int tensor, count;
    float *w, *grad, *m, *v;
};

/* Where a walk over the pieces of all tensors has come to. */
struct walk {
    const struct adam_tensor *tensors;
    int count, tensor;
    size_t at; /* in the tensor */
};

/* The next pieces; 0 at the end. */
static int next_pieces(struct walk *w, struct piece *pieces)
{
    int n = 0;
    while (n < PIECES && w->tensor < w->count) {
        const struct adam_tensor *t = &w->tensors[w->tensor];
        if (w->at >= t->count) {
            w->tensor++;
            w->at = 0;
            continue;
        }
        size_t left = t->count - w->at;
        pieces[n++] = {w->tensor, (int)(left < PIECE ? left : PIECE), t->w + w->at,
                       t->grad + w->at, t->m + w->at, t->v + w->at};
        w->at += PIECE;
    }
    return n;
}

static const struct piece *stage_pieces(struct device *d, const struct piece *pieces, int n)
{
    return (const struct piece *)cuda_stage(d, pieces, (size_t)n * sizeof *pieces);
}

/* ------------------------------------------------------------------ the norm */

__global__ static void sum_squares_kernel(double *parts, const struct piece *pieces)
{
    const struct piece p = pieces[blockIdx.x];
    double sum = 0;
    for (int i = threadIdx.x; i < p.count; i += THREADS)
        sum += (double)p.grad[i] * (double)p.grad[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

double cuda_sum_squares(struct device *d, const struct adam_tensor *tensors, int count)
{
    struct walk w = {tensors, count, 0, 0};
    struct piece pieces[PIECES];
    double parts[PIECES], sum = 0, of_tensor = 0;
    int tensor = 0;
    double *there = (double *)cuda_scratch(d, sizeof parts);
    for (int n; (n = next_pieces(&w, pieces)) > 0;) {
        const struct piece *staged = stage_pieces(d, pieces, n);
        LAUNCH(d, sum_squares_kernel, n, THREADS, 0, there, staged);
        cuda_download(d, parts, there, (size_t)n * sizeof *parts);
        for (int i = 0; i < n; i++) {
            if (pieces[i].tensor != tensor) {
                sum += of_tensor;
                of_tensor = 0;
                tensor = pieces[i].tensor;
            }
            of_tensor += parts[i];
        }
    }
    return sum + of_tensor;
}

/* ------------------------------------------------------------------ the step */

__global__ static void adamw_kernel(const struct adamw_step s, const struct piece *pieces)
{
    const struct piece p = pieces[blockIdx.x];
    for (int i = threadIdx.x; i < p.count; i += THREADS) {
        float g = p.grad[i] * s.grad_scale;
        float w = p.w[i] * s.decay;
        float m = p.m[i] + (g - p.m[i]) * s.one_minus_beta1;
        float v = p.v[i] * s.beta2 + g * g * s.one_minus_beta2;
        p.w[i] = w - s.step_size * (m / (sqrtf(v) / s.bias2_sqrt + s.eps));
        p.m[i] = m;
        p.v[i] = v;
        p.grad[i] = 0;
    }
}

void cuda_adamw(struct device *d, const struct adamw_step *step, const struct adam_tensor *tensors,
                int count)
{
    struct walk w = {tensors, count, 0, 0};
    struct piece pieces[PIECES];
    for (int n; (n = next_pieces(&w, pieces)) > 0;) {
        const struct piece *staged = stage_pieces(d, pieces, n);
        LAUNCH(d, adamw_kernel, n, THREADS, 0, *step, staged);
    }
}

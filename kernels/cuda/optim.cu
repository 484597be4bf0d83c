/* optim.cu - the norm of a gradient, and AdamW.
 *
 * Both go over all tensors of an adapter, cut into pieces, a block each and PIECES of them in a
 * launch.  How a tensor is cut depends on its count alone.  Moments that are paged come and go in
 * pages of PAGE_PIECES pieces, for which the same kernel is launched. */
#include "kernels/cuda/paged.h"
#include "kernels/cuda/record.h"

#define THREADS     256
#define PIECE       ((size_t)1 << 16)
#define PIECES      256
#define PAGE_PIECES ((int)(PAGE_FLOATS / PIECE))

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

/* The next pieces, `most` at most; 0 at the end. */
static int next_pieces(struct walk *w, struct piece *pieces, int most)
{
    int n = 0;
    while (n < most && w->tensor < w->count) {
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
    for (int n; (n = next_pieces(&w, pieces, PIECES)) > 0;) {
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

static void launch_adamw(struct device *d, const struct adamw_step *step,
                         const struct piece *pieces, int n)
{
    const struct piece *staged = stage_pieces(d, pieces, n);
    LAUNCH(d, adamw_kernel, n, THREADS, 0, *step, staged);
}

static void adamw_resident(struct device *d, const struct adamw_step *step,
                           const struct adam_tensor *tensors, int count)
{
    struct walk w = {tensors, count, 0, 0};
    struct piece pieces[PIECES];
    for (int n; (n = next_pieces(&w, pieces, PIECES)) > 0;)
        launch_adamw(d, step, pieces, n);
}

/* ------------------------------------------------------------------ with moments that are paged */

static void wait_for(struct device *d, cudaStream_t stream, cudaEvent_t event)
{
    if (!cuda_failed(d)) cuda_keep(d, cudaStreamWaitEvent(stream, event, 0), "order of pages");
}

static void mark(struct device *d, cudaEvent_t event, cudaStream_t stream)
{
    if (!cuda_failed(d)) cuda_keep(d, cudaEventRecord(event, stream), "order of pages");
}

static void move(struct device *d, cudaStream_t stream, float *to, const float *from, size_t count)
{
    if (cuda_failed(d)) return;
    size_t bytes = count * sizeof *to;
    cuda_keep(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "a page");
}

/* Moments that lie side by side go in one copy: an adapter's do, and small copies are slow. */
static void move_moments(struct device *d, const struct piece *pieces, int n,
                         const struct page *page, bool in)
{
    cudaStream_t stream = in ? d->pager->in : d->pager->out;
    size_t at = 0, run;
    for (int i = 0, next; i < n; i = next, at += run) {
        float *m = pieces[i].m, *v = pieces[i].v;
        run = 0;
        for (next = i; next < n && pieces[next].m == m + run && pieces[next].v == v + run; next++)
            run += (size_t)pieces[next].count;
        move(d, stream, in ? page->m + at : m, in ? m : page->m + at, run);
        move(d, stream, in ? page->v + at : v, in ? v : page->v + at, run);
    }
}

static void adamw_page(struct device *d, const struct adamw_step *step, const struct piece *pieces,
                       int n, const struct page *page)
{
    const struct pager *p = d->pager;
    struct piece there[PAGE_PIECES];
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        there[i] = pieces[i];
        there[i].m = page->m + at;
        there[i].v = page->v + at;
        at += (size_t)pieces[i].count;
    }
    wait_for(d, p->in, page->gone);
    move_moments(d, pieces, n, page, true);
    mark(d, page->come, p->in);
    wait_for(d, d->stream, page->come);
    launch_adamw(d, step, there, n);
    mark(d, page->worked, d->stream);
    wait_for(d, p->out, page->worked);
    move_moments(d, pieces, n, page, false);
    mark(d, page->gone, p->out);
}

/* The host asks for all pages at once; what comes while something else is worked on is the streams'
 * doing. */
static void adamw_paged(struct device *d, const struct adamw_step *step,
                        const struct adam_tensor *tensors, int count)
{
    struct walk w = {tensors, count, 0, 0};
    struct piece pieces[PAGE_PIECES];
    const struct page *page = NULL;
    int turn = 0;
    cuda_use(d);
    cuda_record_stop(d); /* what other streams are asked for is not noted */
    mark(d, d->pager->asked, d->stream);
    wait_for(d, d->pager->in, d->pager->asked);
    for (int n; (n = next_pieces(&w, pieces, PAGE_PIECES)) > 0; turn++) {
        page = &d->pager->pages[turn % PAGES];
        adamw_page(d, step, pieces, n, page);
    }
    if (page) wait_for(d, d->stream, page->gone);
}

void cuda_adamw(struct device *d, const struct adamw_step *step, const struct adam_tensor *tensors,
                int count)
{
    for (int i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && tensors[end].paged == tensors[i].paged;)
            end++;
        if (tensors[i].paged)
            adamw_paged(d, step, tensors + i, end - i);
        else
            adamw_resident(d, step, tensors + i, end - i);
    }
}

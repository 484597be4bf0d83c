/* few_trial.cu - who does a product of few rows: ours (few.cu) or cuBLASLt.
 *
 * A row's bits must not depend on how many rows there are, and with many rows cuBLASLt does the product.
 * So ours may do it with few only if it makes the very same additions as the algorithm that cuBLASLt was
 * told to use for that kind of product, which is documented nowhere.  It is tried: the first time that
 * a kind is wanted with few rows, both do it on made-up x with the real w, and only if all bits are
 * equal is ours used for that kind from then on.  Either way the bits are cuBLASLt's: the verdict is a
 * matter of speed, and need not be the same on two devices or after a restart.
 *
 * Which additions a kernel makes does not depend on the numbers.  So one trial speaks for all weights
 * of a kind, provided that it could have seen a difference: weights of zeros would let anything pass.
 * So the chains are also made backwards, and that must show.  Where y is bf16 most of what another order
 * does to a sum is rounded away; there the same sums are subtracted again, which leaves what was cut off,
 * rounded once more: that has eight of the bits below.
 *
 * A trial allocates and waits, which may not be while a stream is captured.  It never is: a recording
 * (record.h) captures only calls that it has made before, one by one, and the first of them was
 * where the kind was tried. */
#include "kernels/cuda/blas.h"

#include <stdlib.h>

extern "C" {
#include "base/log.h"
}

#define THREADS 256
#define TELLING 32 /* outputs that a chain the other way round has to change */

typedef __nv_bfloat16 bf16;

/* ------------------------------------------------------------------ made-up numbers */

__device__ static inline unsigned mixed(unsigned h)
{
    h ^= h >> 16, h *= 0x7feb352du;
    h ^= h >> 15, h *= 0x846ca68bu;
    return h ^ h >> 16;
}

/* A number of either sign from 2^low on, below 2^(low + span). */
__device__ static inline float made(unsigned h, int low, int span)
{
    unsigned exponent = (unsigned)(low + 127) + (h >> 8 & 0xffffu) % (unsigned)span;
    return __uint_as_float(h >> 31 << 31 | exponent << 23 | (h & 127u) << 16);
}

/* Row r of x.  The sums of most rows round at nearly every step, since sizes vary widely; in some
 * products nearly cancel one another, in the output that w's row speaks for; one has results so
 * small that bits are cut off at the end of fp32, one infinities and worse, one zeros of both signs. */
__device__ static inline float number_of(int r, int i, const bf16 *w)
{
    unsigned h = mixed((unsigned)r * 0x9e3779b9u + mixed((unsigned)i + 1));
    if (r == 7) return made(h, -126, 10);
    if (r == 15) return made(h, 120, 8);
    if (r == 23) return __uint_as_float(h & 0x80000000u);
    if (r % 4 == 1) return made(h, -2, 4);
    float factor = __bfloat162float(w[i]);
    if (r % 4 == 3 && fabsf(factor) > 0x1p-30f && fabsf(factor) < 0x1p30f)
        return (i % 2 ? -1.0f : 1.0f) * (float)(1 + i / 2 % 4) / factor;
    return made(h, -12, 24);
}

/* sign: 1 or -1 */
__global__ static void made_kernel(bf16 *x, float sign, int ldx, const bf16 *w, int ldw, int n, int k)
{
    int r = blockIdx.x;
    const bf16 *row = w + (size_t)n * r / gridDim.x * ldw;
    for (int i = threadIdx.x; i < ldx; i += blockDim.x)
        x[(size_t)r * ldx + i] = __float2bfloat16_rn(i < k ? sign * number_of(r, i, row) : 0.0f);
}

/* Adds to *count in how many of a row's n numbers a and b differ. */
template <class T>
__global__ static void differ_kernel(unsigned *count, const T *a, const T *b, int ld, int n)
{
    size_t row = (size_t)blockIdx.x * ld;
    unsigned differ = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        differ += a[row + i] != b[row + i];
    if (differ) atomicAdd(count, differ);
}

/* ------------------------------------------------------------------ a trial */

typedef void run(struct device *d, const struct blas_product *p);

/* What is counted: outputs that differ between the library and ... */
enum count {
    BACK,       /* chains that go backwards */
    BACK_LESS,  /* and then, with y of bf16, take the sums away again */
    OURS,       /* ours */
    OURS_LESS,
    OURS_ADDED, /* of 16 rows and of 32, as each has a kernel of its own, with other rows' sums on top */
    COUNTS
};

struct trial {
    struct device *d;
    struct blas_product p; /* of FEW_ROWS rows of x; y is not looked at */
    bf16 *x;
    void *ours, *library; /* y */
    unsigned *count;      /* of different outputs, after each comparison */
};

/* Not LAUNCH: the product as a whole is what was asked for and noted. */
template <class... P>
static void launch_now(struct device *d, void (*kernel)(P...), int rows, std::type_identity_t<P>... args)
{
    const cuda_launch<P...> l = {kernel, "trial", (unsigned)rows, THREADS, 0, {args...}};
    if (!cuda_failed(d)) cuda_launch_run(d, &l);
}

static void *memory_of(struct device *d, size_t bytes)
{
    void *p = NULL;
    if (cuda_failed(d)) return NULL;
    cudaError_t error = cudaMalloc(&p, bytes);
    if (error == cudaErrorMemoryAllocation)
        cudaGetLastError(); /* so that the next launch is not blamed */
    else
        cuda_keep(d, error, "memory for a trial");
    return error ? NULL : p;
}

static bool trial_open(struct trial *t, struct device *d, const struct blas_product *p)
{
    size_t y = (size_t)FEW_ROWS * p->ldy * ops_size(p->y_dtype);
    *t = {d, *p, NULL, NULL, NULL, NULL};
    cuda_wait_if_member(d);
    t->x = (bf16 *)memory_of(d, (size_t)FEW_ROWS * p->ldx * sizeof(bf16));
    t->ours = t->x ? memory_of(d, y) : NULL;
    t->library = t->ours ? memory_of(d, y) : NULL;
    t->count = t->library ? (unsigned *)memory_of(d, COUNTS * sizeof *t->count) : NULL;
    return t->count;
}

static void trial_close(struct trial *t)
{
    void *all[] = {t->x, t->ours, t->library, t->count};
    for (void *p : all)
        if (p) cuda_keep(t->d, cudaFree(p), "release of a trial's memory");
}

/* All bits set, which are a NaN: what is not written is not the other's. */
static void spoil(const struct trial *t, void *y)
{
    cuda_keep(t->d,
              cudaMemsetAsync(y, 0xff, (size_t)FEW_ROWS * t->p.ldy * ops_size(t->p.y_dtype),
                              t->d->stream),
              "trial");
}

static void multiply(const struct trial *t, run *by, void *y, int first, int rows, bool add)
{
    struct blas_product p = t->p;
    p.x = t->x + (size_t)first * p.ldx;
    p.y = y;
    p.m = rows;
    p.add = add;
    if (!cuda_failed(t->d)) by(t->d, &p);
}

static void make(const struct trial *t, float sign)
{
    const struct blas_product *p = &t->p;
    launch_now(t->d, made_kernel, FEW_ROWS, t->x, sign, p->ldx, (const bf16 *)p->w, p->ldw, p->n, p->k);
}

static void compare(const struct trial *t, enum count which, int rows)
{
    const struct blas_product *p = &t->p;
    if (p->y_dtype == OPS_F32)
        launch_now(t->d, differ_kernel<unsigned>, rows, t->count + which, (const unsigned *)t->ours,
                   (const unsigned *)t->library, p->ldy, p->n);
    else
        launch_now(t->d, differ_kernel<uint16_t>, rows, t->count + which, (const uint16_t *)t->ours,
                   (const uint16_t *)t->library, p->ldy, p->n);
}

/* Counts `which` and, with y of bf16, the one after it. */
static void compare_all(const struct trial *t, run *by, enum count which)
{
    make(t, 1);
    spoil(t, t->library);
    spoil(t, t->ours);
    multiply(t, blas_library, t->library, 0, FEW_ROWS, false);
    multiply(t, by, t->ours, 0, FEW_ROWS, false);
    compare(t, which, FEW_ROWS);
    if (t->p.y_dtype == OPS_F32) return;
    make(t, -1);
    multiply(t, blas_library, t->library, 0, FEW_ROWS, true);
    multiply(t, by, t->ours, 0, FEW_ROWS, true);
    compare(t, (enum count)(which + 1), FEW_ROWS);
}

static void trial_ask(const struct trial *t)
{
    cuda_keep(t->d, cudaMemsetAsync(t->count, 0, COUNTS * sizeof *t->count, t->d->stream), "trial");
    compare_all(t, few_run_backwards, BACK);
    compare_all(t, few_run, OURS);
    for (int rows = 16; rows <= 32; rows *= 2) {
        multiply(t, blas_library, t->library, 1, rows, true);
        multiply(t, few_run, t->ours, 1, rows, true);
        compare(t, OURS_ADDED, rows);
    }
}

/* What the host waits for at the end is but the copy where the device is a member of a group. */
static bool trial_answer(const struct trial *t, unsigned count[COUNTS])
{
    struct device *d = t->d;
    cuda_wait_if_member(d);
    if (cuda_failed(d)) return false;
    cuda_keep(d,
              cudaMemcpyAsync(count, t->count, COUNTS * sizeof *count, cudaMemcpyDeviceToHost,
                              d->stream),
              "answer of a trial");
    cuda_keep(d, cudaStreamSynchronize(d->stream), "trial");
    return !cuda_failed(d);
}

/* Returns false where the device has failed meanwhile. */
static bool try_kind(struct device *d, const struct blas_product *p, struct few_kind *kind)
{
    struct trial t;
    unsigned count[COUNTS] = {};
    kind->verdict = FEW_NO_ROOM;
    if (trial_open(&t, d, p)) {
        trial_ask(&t);
        if (trial_answer(&t, count)) {
            kind->different = count[OURS] + count[OURS_LESS] + count[OURS_ADDED];
            kind->telling = max(count[BACK], count[BACK_LESS]);
            kind->verdict = kind->different            ? FEW_DIFFERENT
                            : kind->telling >= TELLING ? FEW_SAME
                                                       : FEW_UNTOLD;
        }
    }
    trial_close(&t);
    return !cuda_failed(d);
}

/* ------------------------------------------------------------------ kinds */

static const char *const verdicts[] = {"same", "different", "untold", "no room"};

static const struct few_kind *kind_of(struct device *d, const struct blas_product *p)
{
    struct few *few = blas_few(d->blas);
    for (int i = 0; i < few->kinds; i++) {
        const struct few_kind *k = &few->kind[i];
        if (k->n == p->n && k->k == p->k && k->ldx == p->ldx && k->ldw == p->ldw &&
            k->ldy == p->ldy && k->y_dtype == p->y_dtype)
            return k;
    }
    if (few->kinds == FEW_KINDS) return NULL;
    struct few_kind *k = &few->kind[few->kinds];
    *k = {p->n, p->k, p->ldx, p->ldw, p->ldy, p->y_dtype, FEW_NO_ROOM, 0, 0};
    if (!try_kind(d, p, k)) return NULL;
    few->kinds++;
    log_info("gpu.few_rows", "device=%d n=%d k=%d y=%s trial=\"%s\" different=%u telling=%u", d->index,
             k->n, k->k, k->y_dtype == OPS_F32 ? "fp32" : "bf16", verdicts[k->verdict], k->different,
             k->telling);
    return k;
}

static bool by_ours(struct device *d, const struct blas_product *p)
{
    enum few_by by = blas_few(d->blas)->by;
    if (!few_fits(p) || by == FEW_BY_LIBRARY) return false;
    if (by == FEW_BY_OURS) return true;
    const struct few_kind *kind = kind_of(d, p);
    return kind && kind->verdict == FEW_SAME;
}

void blas_run(struct device *d, const struct blas_product *p)
{
    if (cuda_failed(d) || p->m == 0) return;
    bool ours = by_ours(d, p);
    if (cuda_failed(d)) return;
    if (ours) {
        blas_few(d->blas)->done++;
        few_run(d, p);
    } else {
        blas_library(d, p);
    }
}

/* ------------------------------------------------------------------ for tests and measurements */

void cuda_few_by(struct device *d, enum few_by by)
{
    blas_few(d->blas)->by = by;
}

int cuda_few_kinds(const struct device *d, const struct few_kind **kinds)
{
    const struct few *few = blas_few(d->blas);
    *kinds = few->kind;
    return few->kinds;
}

long cuda_few_done(const struct device *d)
{
    return blas_few(d->blas)->done;
}

void cuda_few_product(struct device *d, const struct few_product *p)
{
    const struct blas_product all = {p->m, p->n, p->k, OPS_BF16, p->y_dtype, false, p->add,
                                     p->x, p->w, p->y, p->ldx,   p->ldw,     p->ldy};
    if (p->m) cuda_ask_for(d, blas_run, all);
}

/* pick.cu - the choice of a token from its logits.  Picks that go together are a block's.
 *
 * Nothing is sorted, and all that is added up is a whole number, so no order of threads shows: an
 * id is a key (its logit's place in the order, then its own), all of them different, and its mass
 * is a multiple of 1 / MASS_ONE.  What top_k or top_p leaves are the keys from a least one on,
 * which is found digit by digit (a radix select), by count or by mass.  For the draw the masses of
 * stretches of ids are added up; the stretch that a number falls into is then walked by a warp. */
#include "kernels/cuda/cuda.h"

#include <assert.h>
#include <math.h>

typedef unsigned long long wide; /* what atomicAdd takes */

#define THREADS    1024
#define WARPS      (THREADS / WARP)
#define ID_BITS    20
#define KEY_BITS   (32 + ID_BITS)
#define DIGIT_BITS 11
#define BINS       2048 /* two a thread; values of a digit, or stretches */
#define MASS_ONE   0x1p42f /* of the likeliest id: 2^20 ids weigh less than 2^63 */

static_assert(OPS_VOCAB_MAX == 1 << ID_BITS && BINS == 1 << DIGIT_BITS && BINS == 2 * THREADS);

struct row {
    const float *logits;
    int vocab;
    float max, inv_temperature;
    wide least; /* keys from it on are kept */
};

/* A sum that many threads add to: shared memory adds 32 bits at once, but 64 in a loop of compare
 * and swap (NVIDIA's Maxwell Tuning Guide, of shared memory atomics). */
struct halves {
    unsigned low, high;
};

struct room {
    halves weight[BINS];
    unsigned ids[BINS]; /* how many */
    wide upto[BINS];    /* the mass of a stretch and those before it */
    wide left;          /* of the target, for the bin that was found */
    int found;
};

__device__ static inline void add_to(halves *sum, wide v)
{
    unsigned low = (unsigned)v, before = atomicAdd(&sum->low, low);
    unsigned high = (unsigned)(v >> 32) + (before + low < low); /* what is carried */
    if (high) atomicAdd(&sum->high, high);
}

__device__ static inline wide value_of(halves sum)
{
    return (wide)sum.high << 32 | sum.low;
}

__device__ static inline wide key_of(float logit, int id)
{
    unsigned bits = __float_as_uint(logit + 0.0f); /* -0 becomes 0 */
    unsigned order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (isnan(logit)) order = 0;
    return (wide)order << ID_BITS | (wide)(OPS_VOCAB_MAX - 1 - id);
}

__device__ static inline int id_of(wide key)
{
    return OPS_VOCAB_MAX - 1 - (int)(key & (OPS_VOCAB_MAX - 1));
}

/* Of an id that is not kept: 0. */
__device__ static inline wide mass_of(const row &r, int id)
{
    float logit = r.logits[id];
    if (isnan(logit) || key_of(logit, id) < r.least) return 0;
    return (wide)(expf((logit - r.max) * r.inv_temperature) * MASS_ONE);
}

/* ------------------------------------------------------------------ whole numbers over a block */

__device__ static wide block_most(wide v)
{
    __shared__ wide part[WARPS];
    for (int with = WARP / 2; with > 0; with /= 2) {
        wide other = __shfl_xor_sync(ALL_LANES, v, with);
        if (other > v) v = other;
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        if (part[w] > v) v = part[w];
    return v;
}

/* The sum over the lanes up to this one. */
__device__ static inline wide warp_sum_to(wide v)
{
    int lane = (int)threadIdx.x % WARP;
    for (int by = 1; by < WARP; by *= 2) {
        wide before = __shfl_sync(ALL_LANES, v, lane < by ? lane : lane - by);
        if (lane >= by) v += before;
    }
    return v;
}

/* The sum over the threads before this one; *all over all of them. */
__device__ static wide block_sum_before(wide v, wide *all)
{
    __shared__ wide part[WARPS];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    wide to = warp_sum_to(v), before = to - v, sum = 0;
    __syncthreads();
    if (lane == WARP - 1) part[warp] = to;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += part[w];
        sum += part[w];
    }
    *all = sum;
    return before;
}

/* ------------------------------------------------------------------ what is kept */

__device__ static void clear_bins(room *m)
{
    __syncthreads();
    for (int b = threadIdx.x; b < BINS; b += THREADS) {
        m->weight[b] = {0, 0};
        m->ids[b] = 0;
    }
    __syncthreads();
}

/* From the highest bin down, the one in which the weights reach target, as they do. */
__device__ static void find_bin(room *m, wide target)
{
    int high = BINS - 1 - 2 * (int)threadIdx.x, low = high - 1;
    wide all, first = value_of(m->weight[high]), both = first + value_of(m->weight[low]);
    wide before = block_sum_before(both, &all);
    if (before < target && before + both >= target) {
        bool in_first = before + first >= target;
        m->found = in_first ? high : low;
        m->left = target - before - (in_first ? 0 : first);
    }
    __syncthreads();
}

/* The largest key such that the kept ids from it on weigh `target`, which all of them reach; an id
 * weighs 1 or its mass. */
__device__ static wide select_least(room *m, const row &r, wide target, bool by_mass)
{
    wide prefix = 0;
    int low = KEY_BITS;
    do {
        int bits = low < DIGIT_BITS ? low : DIGIT_BITS;
        low -= bits;
        clear_bins(m);
        for (int i = threadIdx.x; i < r.vocab; i += THREADS) {
            wide key = key_of(r.logits[i], i);
            if (key < r.least || key >> (low + bits) != prefix) continue;
            int bin = (int)(key >> low & ((1u << bits) - 1));
            add_to(&m->weight[bin], by_mass ? mass_of(r, i) : 1);
            atomicAdd(&m->ids[bin], 1u);
        }
        __syncthreads();
        find_bin(m, target);
        prefix = prefix << bits | (wide)m->found;
        target = m->left;
    } while (low > 0 && m->ids[m->found] > 1); /* one id alone: it is kept, whatever follows */
    wide least = prefix << low;
    return least > r.least ? least : r.least;
}

__device__ static wide kept_mass(const row &r)
{
    wide sum = 0;
    for (int i = threadIdx.x; i < r.vocab; i += THREADS)
        sum += mass_of(r, i);
    return block_sum(sum);
}

__device__ static void cut(room *m, row &r, const pick &how)
{
    if (how.top_k > 0 && how.top_k < r.vocab) r.least = select_least(m, r, (wide)how.top_k, false);
    if (!(how.top_p < 1)) return;
    double target = ceil((double)how.top_p * (double)kept_mass(r));
    r.least = select_least(m, r, target < 1 ? 1 : (wide)target, true);
}

/* ------------------------------------------------------------------ the draw */

/* Ids of a stretch: a warp's width, or several. */
__host__ __device__ static inline int stretch_of(int vocab)
{
    return ceil_div(vocab, BINS * WARP) * WARP;
}

/* Fills m->upto to its end: stretches behind the vocabulary weigh nothing.  The mass of all. */
__device__ static wide add_stretches(room *m, const row &r)
{
    int lane = (int)threadIdx.x % WARP, size = stretch_of(r.vocab);
    for (int s = (int)threadIdx.x / WARP; s < BINS; s += WARPS) {
        wide sum = 0;
        for (int i = s * size + lane; i < min(r.vocab, (s + 1) * size); i += WARP)
            sum += mass_of(r, i);
        if (s * size < r.vocab) sum = warp_sum(sum);
        if (lane == 0) m->upto[s] = sum;
    }
    __syncthreads();
    int first = 2 * (int)threadIdx.x;
    wide all, a = m->upto[first], b = m->upto[first + 1];
    wide before = block_sum_before(a + b, &all);
    m->upto[first] = before + a;
    m->upto[first + 1] = before + a + b;
    __syncthreads();
    return all;
}

/* The first stretch with which the mass exceeds `passed`. */
__device__ static int find_stretch(const room *m, wide passed)
{
    int from = 0, to = BINS - 1;
    while (from < to) {
        int middle = (from + to) / 2;
        if (m->upto[middle] > passed)
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

/* By one warp. */
__device__ static void draw(const room *m, const row &r, wide all, double uniform, int32_t *id)
{
    int lane = (int)threadIdx.x % WARP, size = stretch_of(r.vocab);
    wide passed = (wide)(uniform * (double)all);
    if (passed >= all) passed = all - 1; /* the product was rounded up */
    int stretch = find_stretch(m, passed);
    wide sum = stretch ? m->upto[stretch - 1] : 0;
    for (int first = stretch * size; sum <= passed; first += WARP) {
        int i = first + lane;
        wide to = sum + warp_sum_to(i < r.vocab ? mass_of(r, i) : 0);
        unsigned over = __ballot_sync(ALL_LANES, to > passed);
        if (over >> lane & 1 && !(over & ((1u << lane) - 1))) *id = i;
        sum = __shfl_sync(ALL_LANES, to, WARP - 1);
    }
}

/* ------------------------------------------------------------------ the op */

__device__ static inline bool goes_on(const pick &before, const pick &p)
{
    return p.row == before.row && p.temperature == before.temperature && p.top_k == before.top_k &&
           p.top_p == before.top_p;
}

/* Of picks that go together the first one's block has all the work. */
__global__ static void __launch_bounds__(THREADS)
    pick_kernel(int32_t *ids, const float *logits, const pick *picks, int count, int vocab)
{
    __shared__ room m;
    int from = (int)blockIdx.x, end = from + 1;
    const pick how = picks[from];
    if (from > 0 && goes_on(picks[from - 1], how)) return;
    while (end < count && goes_on(how, picks[end]))
        end++;
    row r = {logits + (size_t)how.row * vocab, vocab, 0, 1 / how.temperature, 0};
    wide most = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        wide key = key_of(r.logits[i], i);
        if (key > most) most = key;
    }
    int32_t likeliest = id_of(block_most(most));
    r.max = r.logits[likeliest];
    if (!(how.temperature > 0) || !isfinite(r.max) || !isfinite(r.inv_temperature)) {
        for (int c = from + (int)threadIdx.x; c < end; c += THREADS)
            ids[c] = likeliest;
        return;
    }
    cut(&m, r, how);
    wide all = add_stretches(&m, r);
    for (int c = from + (int)threadIdx.x / WARP; c < end; c += WARPS)
        draw(&m, r, all, picks[c].uniform, &ids[c]);
}

void cuda_pick(struct device *d, int32_t *ids, const float *logits, const struct pick *picks,
               int count, int vocab)
{
    assert(vocab >= 1 && vocab <= OPS_VOCAB_MAX);
    if (count == 0) return;
    size_t bytes = (size_t)count * sizeof *ids;
    const struct pick *staged =
        (const struct pick *)cuda_stage(d, picks, (size_t)count * sizeof *picks);
    int32_t *there = (int32_t *)cuda_scratch(d, bytes);
    LAUNCH(d, pick_kernel, count, THREADS, 0, there, logits, staged, count, vocab);
    cuda_download(d, ids, there, bytes);
}

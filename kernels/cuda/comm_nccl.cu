/* comm_nccl.cu - sums over ranks that are GPUs of this machine, in one process.
 *
 * NCCL only moves the parts; a kernel adds them up in the order of the ranks, so a sum's bits are
 * comm_cpu()'s and no version of NCCL can change them.  Few elements are gathered whole by every
 * rank, which is one step; of many, each rank is sent all parts of its share, adds them up and sends
 * the sums to everybody: two steps, but 2 (n - 1) / n of x to and fro instead of n - 1.
 *
 * Nothing waits for a device, but the ranks' threads meet on the host before a sum is asked of the
 * devices and again when all have asked.  So outside all_reduce() a step of NCCL's is asked of all
 * devices or of none, and always ends by itself.  Otherwise a call of CUDA's that waits inside
 * (cudaFree, the first launch of a kernel) could keep another rank from asking for its half of the
 * step that is waited for.
 *
 * Failures.  Where the ranks meet each says whether its device has failed.  If one has, none asks
 * for anything more, every rank's device is marked as failed, and every rank ends what NCCL has
 * under way with ncclCommAbort.  A device that is lost while others already wait for it is noticed
 * by whoever waits on the host for one of those (watch): it looks at the others' devices now and
 * then, and at ncclCommGetAsyncError, and gives up in the same way.  Not covered: a kernel that
 * never ends, without an error, keeps all ranks waiting, and so does a rank whose thread makes other
 * calls. */
#include "kernels/cuda/nccl_calls.h"
#include "kernels/cuda/record.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

extern "C" {
#include "kernels/comm.h"
}

#define THREADS    256
#define BLOCKS_MAX 256
/* Up to here the second step costs more than what it saves, on links of some 100 GB/s and with some
 * 10 us a step. */
#define FEW         ((size_t)32 * 1024)
#define SHARE_ALIGN 4    /* shares begin at multiples, 16 bytes */
#define SPINS       1000 /* before a thread that waits for another lets others run */

enum meeting { BEFORE, AFTER };

struct comm {
    struct group *group;
    int rank;
    struct device *d;
    ncclComm_t nccl;   /* NULL once it was given up */
    cudaStream_t idle; /* never has work: asked whether the device is still there */
};

struct group {
    const struct nccl_calls *calls;
    int ranks;
    struct comm ends[COMM_RANKS_MAX];
    bool failed[2][COMM_RANKS_MAX]; /* as each rank said at the meeting before, and after */
    int here;                       /* ranks that have come to the meeting */
    unsigned meetings;              /* that are over */
};

/* ------------------------------------------------------------------ when something fails */

static void give_up(struct comm *c)
{
    if (c->nccl) c->group->calls->CommAbort(c->nccl);
    c->nccl = NULL;
}

static void keep(struct comm *c, ncclResult_t error)
{
    if (error) cuda_keep_text(c->d, "sum over ranks", c->group->calls->GetErrorString(error));
}

static void keep_others(struct comm *c, int rank)
{
    char why[64];
    snprintf(why, sizeof why, "device cuda:%d of rank %d has failed",
             c->group->ends[rank].d->index, rank);
    cuda_keep_text(c->d, "sum over ranks", why);
}

/* While the host waits for d.  A stream without work has nothing to say but that its device is
 * lost. */
static void watch(struct device *d)
{
    struct comm *c = d->comm;
    struct group *g = c->group;
    ncclResult_t state = ncclSuccess;
    if (!c->nccl) return; /* given up */
    ncclResult_t error = g->calls->CommGetAsyncError(c->nccl, &state);
    keep(c, error ? error : state);
    for (int r = 0; r < g->ranks; r++) {
        struct comm *other = &g->ends[r];
        cudaError_t lost = cudaStreamQuery(other->idle);
        if (lost != cudaErrorNotReady) cuda_keep(other->d, lost, "work on the device");
        if (r != c->rank && cuda_failed(other->d)) keep_others(c, r);
    }
    if (cuda_failed(d)) give_up(c);
}

/* ------------------------------------------------------------------ meeting */

/* The threads are in step or nearly so, and a sleep takes longer than most waits. */
static void meet(struct group *g)
{
    unsigned meeting = __atomic_load_n(&g->meetings, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&g->here, 1, __ATOMIC_ACQ_REL) == g->ranks) {
        __atomic_store_n(&g->here, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&g->meetings, meeting + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&g->meetings, __ATOMIC_ACQUIRE) == meeting;)
        if (spins < SPINS)
            spins++;
        else
            sched_yield();
}

/* The same answer on every rank: whether no device has failed until here.  What a rank has said
 * stays until all have come to the next meeting of this kind. */
static bool all_well(struct comm *c, enum meeting when)
{
    struct group *g = c->group;
    int lost = -1;
    g->failed[when][c->rank] = cuda_failed(c->d);
    meet(g);
    for (int r = g->ranks - 1; r >= 0; r--)
        if (g->failed[when][r]) lost = r;
    if (lost < 0) return true;
    keep_others(c, lost);
    give_up(c);
    return false;
}

/* ------------------------------------------------------------------ sums */

struct parts {
    const float *of[COMM_RANKS_MAX];
};

/* y may be one of the parts. */
__global__ static void add_in_order(float *y, const parts p, int ranks, size_t count)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i < count; i += (size_t)gridDim.x * THREADS) {
        float sum = p.of[0][i];
        for (int r = 1; r < ranks; r++)
            sum += p.of[r][i];
        y[i] = sum;
    }
}

static void add(struct comm *c, float *y, const struct parts *p, size_t count)
{
    size_t blocks = (count + THREADS - 1) / THREADS;
    LAUNCH(c->d, add_in_order, dim3((unsigned)(blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX)),
           dim3(THREADS), 0, y, *p, c->group->ranks, count);
}

static ncclResult_t gather_and_add(struct comm *c, float *x, size_t count, float *room)
{
    const struct group *g = c->group;
    struct parts p = {};
    ncclResult_t error =
        g->calls->AllGather(x, room, count, ncclFloat, c->nccl, c->d->stream);
    if (error) return error;
    for (int r = 0; r < g->ranks; r++)
        p.of[r] = room + (size_t)r * count;
    add(c, x, &p, count);
    return ncclSuccess;
}

/* Rank r's share are the elements from this one up to that of rank r + 1. */
static size_t share(const struct group *g, size_t count, int r)
{
    if (r == g->ranks) return count;
    return count * (size_t)r / (size_t)g->ranks / SHARE_ALIGN * SHARE_ALIGN;
}

/* What two ranks send one another, from this one's sight. */
struct trade {
    const float *give;
    float *take;
    size_t give_count, take_count;
};

static ncclResult_t trade_all(struct comm *c, const struct trade *with)
{
    const struct group *g = c->group;
    const struct nccl_calls *n = g->calls;
    ncclResult_t error = n->GroupStart();
    if (error) return error;
    for (int r = 0; r < g->ranks && !error; r++) {
        const struct trade *t = &with[r];
        if (r == c->rank) continue;
        error = n->Send(t->give, t->give_count, ncclFloat, r, c->nccl, c->d->stream);
        if (!error) error = n->Recv(t->take, t->take_count, ncclFloat, r, c->nccl, c->d->stream);
    }
    ncclResult_t end = n->GroupEnd();
    return error ? error : end;
}

static ncclResult_t share_and_add(struct comm *c, float *x, size_t count, float *room)
{
    const struct group *g = c->group;
    struct trade with[COMM_RANKS_MAX];
    struct parts p = {};
    float *mine = x + share(g, count, c->rank);
    size_t length = share(g, count, c->rank + 1) - share(g, count, c->rank);
    for (int r = 0; r < g->ranks; r++) {
        float *theirs = x + share(g, count, r), *part = room + (size_t)r * length;
        with[r] = {theirs, part, share(g, count, r + 1) - share(g, count, r), length};
        p.of[r] = r == c->rank ? mine : part;
    }
    ncclResult_t error = trade_all(c, with);
    if (error) return error;
    add(c, mine, &p, length);
    for (int r = 0; r < g->ranks; r++)
        with[r] = {mine, x + share(g, count, r), length, with[r].give_count};
    return trade_all(c, with); /* also after a launch that failed: the others wait for it */
}

static void all_reduce(struct comm *c, float *x, size_t count)
{
    struct group *g = c->group;
    size_t ranks = (size_t)g->ranks, share_max = count / ranks + 2 * SHARE_ALIGN;
    if (!count) return;
    cuda_record_stop(c->d); /* the steps of NCCL are not noted */
    float *room =
        (float *)cuda_scratch(c->d, (count <= FEW ? count : share_max) * ranks * sizeof(float));
    if (!all_well(c, BEFORE)) return;
    cuda_use(c->d);
    ncclResult_t error =
        count <= FEW ? gather_and_add(c, x, count, room) : share_and_add(c, x, count, room);
    keep(c, error);
    if (error) give_up(c); /* at once: the others may wait for this rank inside NCCL */
    all_well(c, AFTER);
}

/* ------------------------------------------------------------------ opening and closing */

static void close_group(struct comm **ends, int ranks)
{
    struct group *g = ends[0] ? ends[0]->group : NULL;
    bool lost = false;
    for (int r = 0; r < ranks; r++)
        ends[r] = NULL;
    if (!g) return;
    for (int r = 0; r < g->ranks; r++)
        lost |= cuda_failed(g->ends[r].d);
    for (int r = 0; r < g->ranks; r++) {
        struct comm *c = &g->ends[r];
        if (lost) give_up(c);
        if (c->nccl) g->calls->CommDestroy(c->nccl);
        if (c->idle) cudaStreamDestroy(c->idle);
        c->d->watch = NULL;
        c->d->comm = NULL;
    }
    free(g);
}

/* The calling thread's current device stays what it was. */
static int join(struct group *g, struct err *e)
{
    ncclComm_t made[COMM_RANKS_MAX];
    int at[COMM_RANKS_MAX], current = 0;
    for (int r = 0; r < g->ranks; r++)
        at[r] = g->ends[r].d->index;
    cudaGetDevice(&current);
    ncclResult_t error = g->calls->CommInitAll(made, g->ranks, at);
    cudaSetDevice(current);
    if (error)
        return err_set(e, ERR_RETRY,
                       "NCCL could not make a group of the %d devices from cuda:%d on: %s", g->ranks,
                       at[0], g->calls->GetErrorString(error));
    for (int r = 0; r < g->ranks; r++)
        g->ends[r].nccl = made[r];
    return 0;
}

/* A first launch that adds nothing, so that none loads the kernel in the middle of a sum. */
static int prepare(struct comm *c, struct err *e)
{
    static const struct parts none = {};
    cuda_use(c->d);
    cuda_keep(c->d, cudaStreamCreateWithFlags(&c->idle, cudaStreamNonBlocking), "opening a group");
    LAUNCH(c->d, add_in_order, dim3(1), dim3(THREADS), 0, (float *)NULL, none, 1, (size_t)0);
    if (cuda_sync(c->d, e) < 0) return -1;
    c->d->comm = c;
    c->d->watch = watch;
    return 0;
}

static int open_group(struct device *const *devices, int ranks, struct comm **ends, struct err *e)
{
    assert(ranks >= 1 && ranks <= COMM_RANKS_MAX);
    for (int r = 0; r < ranks; r++)
        ends[r] = NULL;
    const struct nccl_calls *calls = nccl_load(e);
    if (!calls) return -1;
    for (int r = 0; r < ranks; r++)
        if (devices[r]->comm)
            return err_set(e, ERR_USER,
                           "device cuda:%d is in a group already: GPUs are shared by ranks or by "
                           "replicas, not by both",
                           devices[r]->index);
    struct group *g = (struct group *)calloc(1, sizeof *g);
    if (!g) return err_set(e, ERR_RETRY, "out of memory for a group of %d ranks", ranks);
    g->calls = calls;
    g->ranks = ranks;
    for (int r = 0; r < ranks; r++) {
        ends[r] = &g->ends[r];
        ends[r]->group = g;
        ends[r]->rank = r;
        ends[r]->d = devices[r];
    }
    int rc = join(g, e);
    for (int r = 0; r < ranks && rc == 0; r++)
        rc = prepare(ends[r], e);
    if (rc < 0) close_group(ends, ranks);
    return rc;
}

const struct comm_ops *comm_nccl(struct err *e)
{
    static const struct comm_ops table = {"nccl", open_group, close_group, all_reduce};
    return nccl_load(e) ? &table : NULL;
}

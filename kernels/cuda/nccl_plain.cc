/* nccl_plain.cc - NCCL between threads that share their memory, for emulation.
 *
 * A call that NCCL would put into a stream is done when its group ends: what is sent is laid into a
 * box for each pair of ranks, in order, and who receives waits for it and copies.  Stricter than
 * NCCL: a receive that is not as long as its send ends the process, and so does a stream of another
 * device. */
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "kernels/cuda/nccl_calls.h" /* last: __noinline__ is a word of these headers */

#define RANKS_MAX 8

struct parcel {
    const void *from;
    size_t bytes;
    bool taken;
};

struct world { /* of one ncclCommInitAll */
    std::mutex lock;
    std::condition_variable change;
    int ranks, ends; /* ends: not yet destroyed */
    bool aborted;
    std::deque<struct parcel *> box[RANKS_MAX][RANKS_MAX]; /* from, to */
};

struct nccl_plain {
    struct world *world;
    int rank, device;
};

struct asked { /* from NULL: to be received */
    ncclComm_t comm;
    int peer;
    const void *from;
    void *to;
    size_t bytes;
};

static thread_local int depth, fail_in; /* groups within groups; calls, 0: never */
static thread_local std::vector<struct asked> group;
static thread_local ncclResult_t group_error; /* of a call in it: then none of it is done */

/* ------------------------------------------------------------------ ends */

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int count, const int *devices)
{
    if (count < 1 || count > RANKS_MAX) return ncclInvalidUsage;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++)
            if (devices[i] == devices[k]) return ncclInvalidUsage;
    struct world *w = new struct world();
    w->ranks = w->ends = count;
    for (int i = 0; i < count; i++)
        comms[i] = new nccl_plain{w, i, devices[i]};
    return ncclSuccess;
}

static ncclResult_t leave(ncclComm_t comm, bool abort)
{
    struct world *w = comm->world;
    int left;
    {
        std::lock_guard<std::mutex> hold(w->lock);
        w->aborted |= abort;
        left = --w->ends;
        w->change.notify_all();
    }
    if (abort) emulate_unhang(comm->device);
    delete comm;
    if (left == 0) delete w;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    return leave(comm, false);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    return leave(comm, true);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error)
{
    *error = ncclSuccess;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t error)
{
    switch (error) {
    case ncclSuccess:
        return "no error";
    case ncclUnhandledCudaError:
        return "unhandled cuda error";
    case ncclInvalidUsage:
        return "invalid usage";
    default:
        return "remote process exited or there was a network error";
    }
}

/* ------------------------------------------------------------------ sending */

static ncclResult_t receive(const struct asked *a)
{
    struct world *w = a->comm->world;
    std::deque<struct parcel *> &box = w->box[a->peer][a->comm->rank];
    std::unique_lock<std::mutex> hold(w->lock);
    w->change.wait(hold, [&]() { return w->aborted || !box.empty(); });
    if (w->aborted) return ncclRemoteError;
    struct parcel *p = box.front();
    box.pop_front();
    if (p->bytes != a->bytes) {
        fprintf(stderr, "nccl_plain: rank %d receives %zu bytes from rank %d, which sends %zu\n",
                a->comm->rank, a->bytes, a->peer, p->bytes);
        abort();
    }
    emulate_device_begin();
    memcpy(a->to, p->from, p->bytes);
    emulate_device_end();
    p->taken = true;
    w->change.notify_all();
    return ncclSuccess;
}

/* All is sent before anything is waited for, so that one thread may drive several ranks. */
static ncclResult_t run(const std::vector<struct asked> &all)
{
    std::deque<struct parcel> sent;
    ncclResult_t first = ncclSuccess;
    for (const struct asked &a : all) {
        if (!a.from) continue;
        sent.push_back({a.from, a.bytes, false});
        std::lock_guard<std::mutex> hold(a.comm->world->lock);
        a.comm->world->box[a.comm->rank][a.peer].push_back(&sent.back());
        a.comm->world->change.notify_all();
    }
    for (const struct asked &a : all) {
        ncclResult_t error = a.from ? ncclSuccess : receive(&a);
        if (!first) first = error;
    }
    auto parcel = sent.begin();
    for (const struct asked &a : all) {
        if (!a.from) continue;
        struct world *w = a.comm->world;
        std::unique_lock<std::mutex> hold(w->lock);
        w->change.wait(hold, [&]() { return w->aborted || parcel->taken; });
        if (!first && !parcel->taken) first = ncclRemoteError;
        parcel++;
    }
    return first;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (--depth > 0) return ncclSuccess;
    std::vector<struct asked> all;
    ncclResult_t error = group_error;
    all.swap(group);
    group_error = ncclSuccess;
    return error ? error : run(all);
}

static ncclResult_t check(ncclComm_t comm, cudaStream_t stream)
{
    if (emulate_stream_device(stream) != comm->device) {
        fprintf(stderr, "nccl_plain: rank %d of device %d uses a stream of device %d\n", comm->rank,
                comm->device, emulate_stream_device(stream));
        abort();
    }
    if (fail_in == 0 || --fail_in > 0) return ncclSuccess;
    if (depth > 0) group_error = ncclUnhandledCudaError;
    return ncclUnhandledCudaError;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    ncclResult_t error = check(comm, stream);
    if (error) return error;
    ncclGroupStart();
    group.push_back({comm, peer, from, NULL, count * sizeof(float)});
    return ncclGroupEnd();
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    ncclResult_t error = check(comm, stream);
    if (error) return error;
    ncclGroupStart();
    group.push_back({comm, peer, NULL, to, count * sizeof(float)});
    return ncclGroupEnd();
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t,
                           ncclComm_t comm, cudaStream_t stream)
{
    ncclResult_t error = check(comm, stream);
    if (error) return error;
    ncclGroupStart();
    for (int r = 0; r < comm->world->ranks; r++) {
        size_t bytes = count * sizeof(float);
        group.push_back({comm, r, from, NULL, bytes});
        group.push_back({comm, r, NULL, (char *)to + (size_t)r * bytes, bytes});
    }
    return ncclGroupEnd();
}

void nccl_plain_fail(int nth)
{
    fail_in = nth;
}

/* ------------------------------------------------------------------ the table */

const struct nccl_calls *nccl_load(struct err *)
{
#define ADDRESS(name) nccl##name,
    static const struct nccl_calls calls = {NCCL_CALLS(ADDRESS)};
#undef ADDRESS
    return &calls;
}

/* record.cu - see record.h. */
#include "kernels/cuda/record.h"

#include <assert.h>
#include <memory>
#include <new>
#include <vector>

#define KEPT        16 /* sequences; who was not asked for longest goes */
#define BYTES_FIRST ((size_t)1 << 20) /* for a sequence's descriptors */
#define BYTES_MOST  ((size_t)8 << 20) /* with more, the kernels take longer than asking for them */
#define ALIGN       64

enum mode { PLAIN, NOTING, COMPARING };

/* A call, or, without one, descriptors. */
struct item {
    std::unique_ptr<struct cuda_call> call;
    size_t offset, bytes, room;
};

struct recording {
    uint64_t key, asked; /* asked: when, last; 0: never */
    bool whole;          /* the list goes up to the end of the sequence */
    std::vector<struct item> list;
    char *host, *dev; /* descriptors, on the host in pinned memory */
    size_t bytes, used, wanted; /* wanted: of `bytes`, the next time */
    cudaEvent_t taken;          /* the last descriptors have left the host */
    cudaGraphExec_t graph;      /* NULL: not captured yet */
};

struct recorder {
    enum mode mode;
    struct recording kept[KEPT], *now;
    size_t at; /* COMPARING: so many of the list were the same */
    uint64_t time;
    struct ops_recorded count;
};

/* ------------------------------------------------------------------ opening and closing */

cudaError_t cuda_recorder_open(struct device *d)
{
    struct recorder *k = new (std::nothrow) recorder();
    if (!k) return cudaErrorMemoryAllocation;
    cudaError_t error = cudaSuccess;
    d->recorder = k;
    for (struct recording &r : k->kept) {
        r.wanted = BYTES_FIRST;
        if (!error) error = cudaEventCreateWithFlags(&r.taken, cudaEventDisableTiming);
    }
    return error;
}

static void graph_drop(struct recording *r)
{
    if (r->graph) cudaGraphExecDestroy(r->graph); /* one that still runs is freed afterwards */
    r->graph = NULL;
}

static void memory_free(struct recording *r)
{
    if (r->dev) GUARD(r->dev, r->bytes, r->bytes);
    if (r->host) cudaFreeHost(r->host);
    cudaFree(r->dev);
    r->host = r->dev = NULL;
    r->bytes = 0;
}

void cuda_recorder_close(struct device *d)
{
    if (!d->recorder) return;
    for (struct recording &r : d->recorder->kept) {
        graph_drop(&r);
        memory_free(&r);
        if (r.taken) cudaEventDestroy(r.taken);
    }
    delete d->recorder;
}

struct ops_recorded cuda_recorded(const struct device *d)
{
    struct ops_recorded count = d->recorder->count;
    for (const struct recording &r : d->recorder->kept)
        count.kept += r.whole;
    return count;
}

/* ------------------------------------------------------------------ making calls */

/* The descriptors of the first `items` of the list go to the device. */
static void upload(struct device *d, struct recording *r, size_t items)
{
    size_t used = 0;
    for (size_t i = 0; i < items; i++)
        if (!r->list[i].call) used = r->list[i].offset + r->list[i].room;
    if (!used || cuda_failed(d)) return;
    GUARD(r->dev, used, r->bytes);
    cuda_keep(d, cudaMemcpyAsync(r->dev, r->host, used, cudaMemcpyHostToDevice, d->stream),
              "upload of descriptors");
    cuda_keep(d, cudaEventRecord(r->taken, d->stream), "event");
    for (size_t i = 0; i < items; i++)
        if (!r->list[i].call)
            GUARD(r->dev + r->list[i].offset, r->list[i].bytes, r->list[i].room);
}

static void run(struct device *d, const struct recording *r, size_t items)
{
    for (size_t i = 0; i < items && !cuda_failed(d); i++)
        if (r->list[i].call) r->list[i].call->run(d);
}

/* All that the calls need of the driver (code, permissions) was loaded when they were first made, so
 * nothing here is forbidden while a stream is being captured. */
static void capture(struct device *d, struct recording *r)
{
    cudaGraph_t graph = NULL;
    if (cuda_failed(d)) return;
    cudaError_t error = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
    cuda_keep(d, error, "capture");
    if (error) return;
    run(d, r, r->list.size()); /* nothing, once another rank's thread says that the device failed */
    cuda_keep(d, cudaStreamEndCapture(d->stream, &graph), "capture");
    if (!cuda_failed(d)) cuda_keep(d, cudaGraphInstantiate(&r->graph, graph, 0), "graph");
    if (graph) cudaGraphDestroy(graph);
    d->recorder->count.captured++;
}

static void replay(struct device *d, struct recording *r)
{
    if (!r->graph) capture(d, r);
    upload(d, r, r->list.size());
    if (!cuda_failed(d)) cuda_keep(d, cudaGraphLaunch(r->graph, d->stream), "graph");
    d->recorder->count.replayed++;
}

/* The sequence differs from here on, or ends here. */
void cuda_record_settle(struct device *d)
{
    struct recorder *k = d->recorder;
    if (k->mode != COMPARING) return;
    cuda_use(d);
    struct recording *r = k->now;
    k->mode = NOTING;
    r->whole = false;
    graph_drop(r);
    upload(d, r, k->at);
    run(d, r, k->at);
    r->list.resize(k->at);
    r->used = 0;
    for (const struct item &i : r->list)
        if (!i.call) r->used = i.offset + i.room;
}

/* Ends the noting.  What was staged since the last upload() as a whole went piece by piece. */
static void leave(struct device *d, bool whole)
{
    struct recorder *k = d->recorder;
    if (!cuda_failed(d)) cuda_keep(d, cudaEventRecord(k->now->taken, d->stream), "event");
    k->now->whole = whole;
    k->mode = PLAIN;
    k->count.plain++;
}

void cuda_record_stop(struct device *d)
{
    cuda_record_settle(d);
    if (d->recorder->mode == NOTING) leave(d, false);
}

/* ------------------------------------------------------------------ noting and comparing */

void cuda_ask(struct device *d, const struct cuda_call *call)
{
    struct recorder *k = d->recorder;
    if (cuda_failed(d)) return;
    cuda_use(d);
    if (k->mode == COMPARING) {
        const struct recording *r = k->now;
        if (k->at < r->list.size() && r->list[k->at].call && r->list[k->at].call->same(call)) {
            k->at++;
            return;
        }
        cuda_record_settle(d);
        if (cuda_failed(d)) return;
    }
    if (k->mode == NOTING)
        k->now->list.push_back({std::unique_ptr<struct cuda_call>(call->copy()), 0, 0, 0});
    call->run(d);
}

/* With room to grow: a table of blocks gets longer as sequences do. */
static size_t room_for(size_t bytes)
{
    return (bytes + bytes / 4 + ALIGN - 1) / ALIGN * ALIGN + ALIGN;
}

static const void *note_stage(struct device *d, const void *host, size_t bytes)
{
    struct recording *r = d->recorder->now;
    size_t room = room_for(bytes);
    if (r->used + room > r->bytes) {
        r->wanted = 2 * r->bytes;
        leave(d, false);
        return NULL;
    }
    r->list.push_back({NULL, r->used, bytes, room});
    char *from = r->host + r->used, *to = r->dev + r->used;
    r->used += room;
    GUARD(to, bytes, room);
    memcpy(from, host, bytes);
    cuda_keep(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream),
              "upload of descriptors");
    return to;
}

const void *cuda_record_stage(struct device *d, const void *host, size_t bytes)
{
    struct recorder *k = d->recorder;
    if (k->mode == PLAIN) return NULL;
    if (k->mode == NOTING) return note_stage(d, host, bytes);
    struct recording *r = k->now;
    struct item *i = k->at < r->list.size() ? &r->list[k->at] : NULL;
    if (!i || i->call || bytes + ALIGN > i->room) {
        cuda_record_settle(d);
        return cuda_failed(d) ? NULL : note_stage(d, host, bytes);
    }
    i->bytes = bytes;
    memcpy(r->host + i->offset, host, bytes);
    k->at++;
    return r->dev + i->offset;
}

/* ------------------------------------------------------------------ a sequence */

/* The key's recording, or else the one that was not asked for longest.  What that holds is compared
 * with what is asked now, as it would be under its own key. */
static struct recording *find(struct recorder *k, uint64_t key)
{
    struct recording *oldest = &k->kept[0];
    for (struct recording &r : k->kept) {
        if (r.asked && r.key == key) return &r;
        if (r.asked < oldest->asked) oldest = &r;
    }
    oldest->key = key;
    oldest->wanted = oldest->bytes ? oldest->bytes : BYTES_FIRST;
    return oldest;
}

static void memory_grow(struct device *d, struct recording *r)
{
    cuda_wait_if_member(d);
    memory_free(r);
    cuda_keep(d, cudaMallocHost((void **)&r->host, r->wanted), "memory for descriptors");
    if (cuda_failed(d)) return;
    cuda_keep(d, cudaMalloc((void **)&r->dev, r->wanted), "memory for descriptors");
    if (!cuda_failed(d)) r->bytes = r->wanted;
}

void cuda_record_begin(struct device *d, uint64_t key)
{
    struct recorder *k = d->recorder;
    assert(k->mode == PLAIN);
    if (cuda_failed(d)) return;
    cuda_use(d);
    struct recording *r = find(k, key);
    r->asked = ++k->time;
    if (r->wanted > BYTES_MOST) {
        k->count.plain++;
        return;
    }
    cuda_wait_for_event(d, r->taken);
    if (!cuda_failed(d) && r->wanted > r->bytes) memory_grow(d, r);
    if (cuda_failed(d)) return;
    k->now = r;
    k->at = 0;
    k->mode = r->whole ? COMPARING : NOTING;
    if (r->whole) return;
    r->list.clear();
    r->used = 0;
}

void cuda_record_end(struct device *d)
{
    struct recorder *k = d->recorder;
    cuda_use(d);
    if (k->mode == COMPARING && k->at == k->now->list.size()) {
        k->mode = PLAIN;
        replay(d, k->now);
        return;
    }
    cuda_record_settle(d);
    if (k->mode == NOTING) leave(d, true);
}

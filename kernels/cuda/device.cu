/* device.cu - a GPU as a device: its stream, its memory, descriptors on their way, and the first
 * failure. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/paged.h"
#include "kernels/cuda/record.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


#define STAGE_PART_BYTES ((size_t)4 << 20)
#define STAGE_ALIGN      64
#define STAGE_AN_OP      4 /* times that an op may stage */
#define POLLS            1000 /* of the stream, between two looks after the group */

#ifdef CUDA_EMULATED
#define BUILD "emulated"
#else
#define TEXT2(x) #x
#define TEXT(x)  TEXT2(x)
#define BUILD    "nvcc " TEXT(__CUDACC_VER_MAJOR__) "." TEXT(__CUDACC_VER_MINOR__)
#endif

/* ------------------------------------------------------------------ the first failure */

void cuda_keep_text(struct device *d, const char *what, const char *why)
{
    int none = 0;
    if (!__atomic_compare_exchange_n(&d->failed, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    snprintf(d->failure, sizeof d->failure, "%s: %s", what, why);
    __atomic_store_n(&d->failed, 2, __ATOMIC_RELEASE);
}

void cuda_keep(struct device *d, cudaError_t error, const char *what)
{
    if (error != cudaSuccess) cuda_keep_text(d, what, cudaGetErrorString(error));
}

bool cuda_failed(const struct device *d)
{
    return __atomic_load_n(&d->failed, __ATOMIC_ACQUIRE) != 0;
}

/* ------------------------------------------------------------------ choosing and waiting */

/* Nobody else chooses: NCCL leaves the choice as it was. */
static cudaError_t use(int index)
{
    static thread_local int current = -1;
    if (current == index) return cudaSuccess;
    cudaError_t error = cudaSetDevice(index);
    current = error ? -1 : index;
    return error;
}

void cuda_use(struct device *d)
{
    cuda_keep(d, use(d->index), "choice of the device");
}

/* Asks query() until what it asks for is done.  What a member waits for may itself wait for another
 * GPU, one that is lost. */
template <class Query> static void wait_until(struct device *d, Query query)
{
    cudaError_t error = cudaSuccess;
    for (unsigned polls = 1; !cuda_failed(d); polls++) {
        error = query();
        if (error != cudaErrorNotReady) break;
        cudaGetLastError(); /* so that the next launch is not blamed */
        if (polls % POLLS == 0) d->watch(d);
        sched_yield();
    }
    if (!cuda_failed(d)) cuda_keep(d, error, "work on the device");
}

static void wait_for_stream(struct device *d)
{
    if (cuda_failed(d)) return;
    if (d->watch)
        wait_until(d, [d]() { return cudaStreamQuery(d->stream); });
    else
        cuda_keep(d, cudaStreamSynchronize(d->stream), "work on the device");
}

void cuda_wait_for_event(struct device *d, cudaEvent_t event)
{
    if (cuda_failed(d)) return;
    if (d->watch)
        wait_until(d, [event]() { return cudaEventQuery(event); });
    else
        cuda_keep(d, cudaEventSynchronize(event), "work on the device");
}

void cuda_wait_if_member(struct device *d)
{
    if (d->watch) wait_for_stream(d);
}

int cuda_sync(struct device *d, struct err *e)
{
    cuda_record_stop(d);
    wait_for_stream(d);
    if (!cuda_failed(d)) return 0;
    return err_set(e, ERR_LOST, "device cuda:%d is lost: %s", d->index, d->failure);
}

/* ------------------------------------------------------------------ opening and closing */

static cudaError_t stage_open(struct cuda_stage_memory *m, size_t part_bytes)
{
    *m = {NULL, NULL, part_bytes};
    cudaError_t error = cudaMallocHost((void **)&m->host, STAGE_PARTS * part_bytes);
    return error ? error : cudaMalloc((void **)&m->dev, STAGE_PARTS * part_bytes);
}

static void stage_close(struct cuda_stage_memory *m)
{
    [[maybe_unused]] size_t bytes = STAGE_PARTS * m->part_bytes; /* only emulation has guards */
    if (m->host) GUARD(m->host, bytes, bytes);
    if (m->dev) GUARD(m->dev, bytes, bytes);
    if (m->host) cudaFreeHost(m->host);
    cudaFree(m->dev);
}

static cudaError_t open_stream(struct device *d)
{
    cudaError_t error = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    for (int i = 0; !error && i < STAGE_PARTS; i++)
        error = cudaEventCreateWithFlags(&d->stage.left[i], cudaEventDisableTiming);
    if (!error) error = cuda_recorder_open(d);
    return error ? error : stage_open(&d->stage.now, STAGE_PART_BYTES);
}

/* What may change bits: the chip, and all that was compiled for it or chooses for it. */
static cudaError_t name_numerics(struct device *d)
{
    struct cudaDeviceProp prop;
    int driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceProperties(&prop, d->index);
    if (!error) error = cudaDriverGetVersion(&driver);
    if (!error) error = cudaRuntimeGetVersion(&runtime);
    if (error) return error;
    for (int bf16 = 0; bf16 < 2; bf16++)
        snprintf(d->numerics[bf16], sizeof d->numerics[bf16],
                 "cuda/%.40s/sm_%d%d/%s/driver %d/runtime %d/%s/" BUILD, prop.name, prop.major,
                 prop.minor, bf16 ? "bf16" : "fp32", driver, runtime, blas_version(d->blas));
    return cudaSuccess;
}

struct device *cuda_open(int index, int threads, struct err *e)
{
    struct device *d = (struct device *)calloc(1, sizeof *d);
    cudaError_t error;
    if (!d) {
        err_set(e, ERR_RETRY, "out of memory for the device");
        return NULL;
    }
    d->index = index;
    error = use(index);
    if (!error) error = open_stream(d);
    if (error) goto say;
    d->blas = blas_create(e);
    if (!d->blas) goto fail;
    error = name_numerics(d);
    if (!error) return d;
say:
    err_set(e, ERR_RETRY, "could not open device cuda:%d: %s", index, cudaGetErrorString(error));
fail:
    cuda_close(d);
    return NULL;
}

/* What fails here fails because the device was lost, which sync() has said. */
void cuda_close(struct device *d)
{
    if (!d) return;
    use(d->index);
    if (d->stream) cudaStreamSynchronize(d->stream);
    blas_free(d->blas);
    pager_free(d->pager);
    cuda_recorder_close(d);
    stage_close(&d->stage.now);
    for (int i = 0; i < d->stage.growths; i++)
        stage_close(&d->stage.before[i]);
    cudaFree(d->scratch.p);
    cudaFree(d->gemm_scratch.p);
    for (int i = 0; i < STAGE_PARTS; i++)
        if (d->stage.left[i]) cudaEventDestroy(d->stage.left[i]);
    if (d->stream) cudaStreamDestroy(d->stream);
    free(d);
}

const char *cuda_numerics(const struct device *d, enum ops_dtype weights)
{
    return d->numerics[weights == OPS_BF16];
}

/* ------------------------------------------------------------------ memory */

void *cuda_alloc(struct device *d, size_t bytes, struct err *e)
{
    void *p = NULL;
    cudaError_t error = cudaSuccess;
    cuda_use(d);
    cuda_record_stop(d);
    cuda_wait_if_member(d);
    if (!cuda_failed(d)) error = cudaMalloc(&p, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* so that the next launch is not blamed */
        err_set(e, ERR_RETRY, "out of memory of device cuda:%d: could not get %zu bytes", d->index,
                bytes);
        return NULL;
    }
    cuda_keep(d, error, "allocation");
    cuda_zero(d, p, bytes);
    if (!cuda_failed(d)) return p;
    cuda_sync(d, e);
    cudaFree(p);
    return NULL;
}

/* Waits for what may still use it. */
void cuda_release(struct device *d, void *p)
{
    cuda_use(d);
    cuda_record_stop(d);
    if (p) cuda_wait_if_member(d);
    cuda_keep(d, cudaFree(p), "release of memory");
}

int cuda_memory(struct device *d, size_t *free_bytes, size_t *total_bytes, struct err *e)
{
    *free_bytes = *total_bytes = 0;
    cuda_use(d);
    if (!cuda_failed(d)) cuda_keep(d, cudaMemGetInfo(free_bytes, total_bytes), "a look at memory");
    return cuda_failed(d) ? cuda_sync(d, e) : 0;
}

/* The caller may change or unmap what it gave as soon as the call returns, and CUDA leaves open whether
 * memory that is not pinned was read by then: so it waits.  `to` may be the host's, too: paged. */
void cuda_upload(struct device *d, void *to, const void *from_host, size_t bytes)
{
    cuda_record_stop(d);
    if (!bytes || cuda_failed(d)) return;
    cuda_use(d);
    cuda_wait_if_member(d);
    if (cuda_failed(d)) return;
    cuda_keep(d, cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyDefault, d->stream), "upload");
    wait_for_stream(d);
}

/* From a device that has failed come zeros, so that nobody works with rubbish until sync() tells. */
void cuda_download(struct device *d, void *to_host, const void *from, size_t bytes)
{
    cuda_record_stop(d);
    if (!bytes) return;
    cuda_use(d);
    cuda_wait_if_member(d);
    if (!cuda_failed(d))
        cuda_keep(d, cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDefault, d->stream),
                  "download");
    wait_for_stream(d);
    if (cuda_failed(d)) memset(to_host, 0, bytes);
}

/* What copy and zero ask of the stream; from: NULL for zeros. */
struct fill {
    void *to;
    const void *from;
    size_t bytes;

    bool operator==(const fill &) const = default;
};

static void fill_run(struct device *d, const struct fill *f)
{
    if (f->from)
        cuda_keep(d, cudaMemcpyAsync(f->to, f->from, f->bytes, cudaMemcpyDeviceToDevice, d->stream),
                  "copy");
    else
        cuda_keep(d, cudaMemsetAsync(f->to, 0, f->bytes, d->stream), "zeros");
}

void cuda_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    if (bytes) cuda_ask_for(d, fill_run, fill{to, from, bytes});
}

void cuda_zero(struct device *d, void *p, size_t bytes)
{
    if (bytes) cuda_ask_for(d, fill_run, fill{p, NULL, bytes});
}

/* What was there before is in use until the stream comes to it, which cudaFree waits for. */
void *cuda_buffer_get(struct device *d, struct cuda_buffer *b, size_t bytes)
{
    if (!cuda_failed(d) && bytes > b->bytes) {
        cuda_use(d);
        cuda_record_settle(d);
        cuda_wait_if_member(d);
        cuda_keep(d, cudaFree(b->p), "release of scratch memory");
        b->p = NULL;
        b->bytes = 0;
        if (!cuda_failed(d)) cuda_keep(d, cudaMalloc(&b->p, bytes), "scratch memory");
        if (!cuda_failed(d)) b->bytes = bytes;
    }
    return cuda_failed(d) ? NULL : b->p;
}

void *cuda_scratch(struct device *d, size_t bytes)
{
    return cuda_buffer_get(d, &d->scratch, bytes);
}

/* ------------------------------------------------------------------ descriptors on their way */

/* Goes on to the next part once the kernels that were launched while it was last in use are done.
 * An op may have staged at the end of that part and launched from the next one, so the event is
 * that of the next one, which was left later. */
static void next_part(struct device *d)
{
    struct cuda_stage_ring *r = &d->stage;
    cuda_keep(d, cudaEventRecord(r->left[r->part], d->stream), "event");
    r->part = (r->part + 1) % STAGE_PARTS;
    r->used = 0;
    cuda_wait_for_event(d, r->left[(r->part + 1) % STAGE_PARTS]);
}

/* What the op has staged already stays where it is, so the smaller memory is kept; each is at most
 * half of the next. */
static void grow(struct device *d, size_t bytes)
{
    struct cuda_stage_ring *r = &d->stage;
    size_t part_bytes = r->now.part_bytes;
    while (part_bytes < bytes)
        part_bytes *= 2;
    if (r->growths == STAGE_GROWTHS) {
        cuda_keep_text(d, "memory for descriptors", "there are too many of them");
        return;
    }
    r->before[r->growths++] = r->now;
    r->part = 0;
    r->used = 0;
    cuda_wait_if_member(d);
    cuda_keep(d, stage_open(&r->now, part_bytes), "memory for descriptors");
}

const void *cuda_stage(struct device *d, const void *host, size_t bytes)
{
    struct cuda_stage_ring *r = &d->stage;
    size_t room = (bytes + 2 * STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
    if (!bytes || cuda_failed(d)) return NULL;
    cuda_use(d);
    const void *recorded = cuda_record_stage(d, host, bytes);
    if (recorded || cuda_failed(d)) return recorded;
    if (room * STAGE_AN_OP > r->now.part_bytes)
        grow(d, room * STAGE_AN_OP);
    else if (r->used + room > r->now.part_bytes)
        next_part(d);
    if (cuda_failed(d)) return NULL;
    size_t at = (size_t)r->part * r->now.part_bytes + r->used;
    char *from = r->now.host + at, *to = r->now.dev + at;
    r->used += room;
    GUARD(from, bytes, room);
    GUARD(to, bytes, room);
    memcpy(from, host, bytes);
    cuda_keep(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream),
              "upload of descriptors");
    return to;
}

/* paged.cu - see paged.h: the memory, and opening and closing what pages it. */
#include "kernels/cuda/paged.h"

#include <stdlib.h>
#include <string.h>

/* No two allocations touch, so tensors that do are of one, and a copy may span them. */
#define GAP_BYTES 64

#ifdef CUDA_EMULATED
#define LATE(stream) emulate_late(stream)
#else
#define LATE(stream) ((void)(stream))
#endif

/* ------------------------------------------------------------------ opening and closing */

static cudaError_t open_stream(cudaStream_t *stream)
{
    cudaError_t error = cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
    if (!error) LATE(*stream);
    return error;
}

static cudaError_t open_event(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDisableTiming);
}

static cudaError_t open_page(struct pager *p, int i)
{
    struct page *page = &p->pages[i];
    page->m = p->memory + 2 * PAGE_FLOATS * (size_t)i;
    page->v = page->m + PAGE_FLOATS;
    cudaError_t error = open_event(&page->come);
    if (!error) error = open_event(&page->worked);
    return error ? error : open_event(&page->gone);
}

static cudaError_t pager_open(struct pager **pager)
{
    struct pager *p = (struct pager *)calloc(1, sizeof *p);
    if (!p) return cudaErrorMemoryAllocation;
    cudaError_t error = cudaMalloc((void **)&p->memory, 2 * PAGES * PAGE_FLOATS * sizeof(float));
    if (!error) error = open_stream(&p->in);
    if (!error) error = open_stream(&p->out);
    if (!error) error = open_event(&p->asked);
    for (int i = 0; !error && i < PAGES; i++)
        error = open_page(p, i);
    if (!error)
        *pager = p;
    else
        pager_free(p);
    return error;
}

static void close_event(cudaEvent_t event)
{
    if (event) cudaEventDestroy(event);
}

static void wait_for_copies(const struct pager *p)
{
    if (p->in) cudaStreamSynchronize(p->in);
    if (p->out) cudaStreamSynchronize(p->out);
}

/* What fails here fails because the device was lost, which sync() has said. */
void pager_free(struct pager *p)
{
    if (!p) return;
    wait_for_copies(p);
    for (int i = 0; i < PAGES; i++) {
        close_event(p->pages[i].come);
        close_event(p->pages[i].worked);
        close_event(p->pages[i].gone);
    }
    close_event(p->asked);
    if (p->in) cudaStreamDestroy(p->in);
    if (p->out) cudaStreamDestroy(p->out);
    cudaFree(p->memory);
    free(p);
}

/* ------------------------------------------------------------------ memory */

void *cuda_alloc_paged(struct device *d, size_t bytes, struct err *e)
{
    void *p = NULL;
    cudaError_t error = cudaSuccess;
    cuda_use(d);
    if (cuda_sync(d, e) < 0) return NULL; /* the driver may wait when it pins memory */
    if (!d->pager) error = pager_open(&d->pager);
    if (!error) error = cudaMallocHost(&p, bytes + GAP_BYTES);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* so that the next launch is not blamed */
        err_set(e, ERR_RETRY,
                d->pager ? "out of memory: could not pin %zu bytes of the host for device cuda:%d"
                         : "out of memory for the pages of %zu paged bytes on device cuda:%d",
                bytes, d->index);
        return NULL;
    }
    cuda_keep(d, error, "allocation of pinned memory");
    if (cuda_failed(d)) {
        cuda_sync(d, e);
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

/* Where a step failed half way, copies may be left that the device's stream does not wait for. */
void cuda_release_paged(struct device *d, void *p)
{
    if (!p) return;
    cuda_use(d);
    cuda_sync(d, NULL);
    wait_for_copies(d->pager);
    cuda_keep(d, cudaFreeHost(p), "release of pinned memory");
}

/* paged.h - moments that lie in the host's pinned memory, and the pages in which a step of the
 * optimizer brings them to the device (optim.cu).
 *
 * Copies have streams of their own, one for each direction, because the bus has both at once.
 * While a page is worked on, the next one comes and the one before goes back; events keep the order.
 * The device's stream waits for the last page of a step, so whoever asks that stream for something
 * finds all of them where they belong. */
#ifndef KERNELS_CUDA_PAGED_H
#define KERNELS_CUDA_PAGED_H

#include "kernels/cuda/cuda.h"

#define PAGE_FLOATS ((size_t)1 << 20) /* of m, and as many of v */
#define PAGES       3                 /* one comes, one is worked on, one goes */

struct page {
    float *m, *v;                   /* [PAGE_FLOATS] of the device */
    cudaEvent_t come, worked, gone; /* when it was last so */
};

struct pager {
    cudaStream_t in, out;
    cudaEvent_t asked; /* what the device's stream was asked for before a step */
    float *memory;     /* of all pages */
    struct page pages[PAGES];
};

/* The device's, made with its first paged memory; until then d->pager is NULL.  NULL is fine. */
void pager_free(struct pager *p);

#endif

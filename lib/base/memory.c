/* memory.c - see memory.h. */
#include "base/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGN     64u
#define HUGE_PAGE ((size_t)2 << 20)

void *memory_alloc(size_t bytes)
{
    void *p = NULL;
    size_t align = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : ALIGN;
    if (bytes > SIZE_MAX - ALIGN) return NULL;
    bytes = bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
    if (posix_memalign(&p, align, bytes) != 0) return NULL;
    if (align == HUGE_PAGE) (void)madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return memset(p, 0, bytes);
}

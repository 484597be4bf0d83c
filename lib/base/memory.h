/* memory.h - large pieces of memory that are read from end to end. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stddef.h>

/* Zero, 64-byte aligned and filled up to that; NULL when there is no room.  free() gives it back.
 * Pieces of 4 MiB and more are asked to lie in huge pages: read at the speed of memory, a walk
 * through the page tables every 4 KiB is felt.  Without huge pages it works as well, only slower.
 */
void *memory_alloc(size_t bytes);

#endif

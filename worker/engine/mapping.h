/* mapping.h - inside the engine: a large file's bytes, mapped read-only while it is being loaded.
 *
 * What is wrong with a file's size or header should be found with mapping_read(), before anything
 * is mapped.  A file may still shrink, or its disk fail, while it is mapped: reading what is gone
 * then gives zeros instead of ending the process (a handler of SIGBUS, there while any file is
 * mapped, puts them in place), and mapping_check() says so.  A caller therefore checks after its
 * last read, and believes nothing before; it keeps no pointer into the mapping. */
#ifndef ENGINE_MAPPING_H
#define ENGINE_MAPPING_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define MAPPINGS_MAX 4096 /* at the same time: each of 8 ranks maps up to 512 files */

struct mapping;

/* NULL: ERR_USER when it is absent or no regular file, ERR_RETRY for I/O and memory. */
struct mapping *mapping_open(const char *path, struct err *e);
void mapping_close(struct mapping *m); /* NULL is fine */
size_t mapping_size(const struct mapping *m);

/* Reads without mapping; -1 with ERR_RETRY when the bytes are not all there. */
int mapping_read(struct mapping *m, void *to, size_t from, size_t size, struct err *e) WARN_UNUSED;

/* All bytes, mapped by the first call; at a page's beginning.  NULL: ERR_RETRY. */
const uint8_t *mapping_bytes(struct mapping *m, struct err *e);

/* Bytes before `end` will not be read again: their pages need not stay with us. */
void mapping_done(struct mapping *m, size_t end);

/* -1 with ERR_RETRY when bytes were lost, or the file is not what it was when it was opened. */
int mapping_check(const struct mapping *m, struct err *e) WARN_UNUSED;

#endif

/* archive.h - a few files as one tar, plain or inside gzip, made while it is read.
 *
 * Weights do not compress, so gzip's blocks are stored ones: the size is known before the first
 * byte is sent and no compressor is needed.  Formats: POSIX.1-1988 ustar; RFC 1952 and RFC 1951
 * 3.2.4. */
#ifndef API_ARCHIVE_H
#define API_ARCHIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define ARCHIVE_FILES_MAX 8
#define ARCHIVE_NAME_MAX  100 /* with its NUL */

struct archive;

struct archive *archive_create(bool gzip, struct err *e);
void archive_free(struct archive *a); /* closes the files; NULL is fine */

/* Takes fd, a regular file of that size; -1 with size 0: an empty file. */
int archive_add(struct archive *a, const char *name, int take_fd, int64_t size,
                struct err *e) WARN_UNUSED;

/* Of the whole; nothing may be added after this was asked. */
uint64_t archive_size(struct archive *a);

/* Up to max bytes, from the beginning on; 0 at the end, -1 when a file ended early or cannot be
 * read. */
long archive_read(struct archive *a, char *out, size_t max);

#endif

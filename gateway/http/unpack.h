/* unpack.h - a body that came compressed, with bounds on what it may become. */
#ifndef HTTP_UNPACK_H
#define HTTP_UNPACK_H

#include "base/buf.h"

#define UNPACK_WINDOW_LOG 23 /* 8 MiB: what a frame may make us keep */

enum unpacked { UNPACK_OK, UNPACK_TOO_LARGE, UNPACK_BAD, UNPACK_NO_MEMORY };

/* body is one zstd frame; it is replaced by what is in it, size_max bytes at most.  What the frame
 * says of its own size is believed only to refuse it. */
enum unpacked unpack_zstd(struct buf *body, size_t size_max);

#endif

/* unpack.c - see unpack.h. */
#include "http/unpack.h"

#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#define BLOCK (128u << 10)

static enum unpacked why(size_t code)
{
    switch (ZSTD_getErrorCode(code)) {
    case ZSTD_error_frameParameter_windowTooLarge:
        return UNPACK_TOO_LARGE;
    case ZSTD_error_memory_allocation:
        return UNPACK_NO_MEMORY;
    default:
        return UNPACK_BAD;
    }
}

/* One frame, which has to end where the body ends. */
static enum unpacked take_frame(ZSTD_DCtx *ctx, const struct buf *body, char *block,
                                struct buf *out)
{
    ZSTD_inBuffer in = {body->data, body->size, 0};
    struct err e = {0};
    for (;;) {
        ZSTD_outBuffer to = {block, BLOCK, 0};
        size_t left = ZSTD_decompressStream(ctx, &to, &in);
        if (ZSTD_isError(left)) return why(left);
        if (buf_append(out, block, to.pos, &e) < 0)
            return e.kind == ERR_USER ? UNPACK_TOO_LARGE : UNPACK_NO_MEMORY;
        if (left == 0) return in.pos == in.size ? UNPACK_OK : UNPACK_BAD;
        if (in.pos == in.size && to.pos < to.size) return UNPACK_BAD; /* the frame is cut */
    }
}

enum unpacked unpack_zstd(struct buf *body, size_t size_max)
{
    struct buf out;
    if (!body->size) return UNPACK_BAD;
    unsigned long long claimed = ZSTD_getFrameContentSize(body->data, body->size);
    if (claimed == ZSTD_CONTENTSIZE_ERROR) return UNPACK_BAD;
    if (claimed != ZSTD_CONTENTSIZE_UNKNOWN && claimed > size_max) return UNPACK_TOO_LARGE;
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    char *block = malloc(BLOCK);
    enum unpacked rc = UNPACK_NO_MEMORY;
    buf_init(&out, size_max);
    if (ctx && block) {
        ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, UNPACK_WINDOW_LOG);
        rc = take_frame(ctx, body, block, &out);
    }
    free(block);
    ZSTD_freeDCtx(ctx);
    if (rc == UNPACK_OK) {
        buf_clear(body);
        *body = out;
    } else {
        buf_clear(&out);
    }
    return rc;
}

/* test_gateway_unpack.c - a compressed body becomes what is in it, or nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <cmocka.h>

#include "http/unpack.h"

#define LIMIT (1u << 20)

/* size zeros as one frame; the frame does not say how many when it is not to. */
static void pack(struct buf *b, size_t size, int window_log, int says_size)
{
    struct err e = {0};
    size_t room = ZSTD_compressBound(size);
    char *zeros = calloc(1, size), *out = malloc(room);
    ZSTD_CCtx *ctx = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(ctx, ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(ctx, ZSTD_c_contentSizeFlag, says_size);
    size_t n = ZSTD_compress2(ctx, out, room, zeros, size);
    assert_false(ZSTD_isError(n));
    assert_int_equal(buf_append(b, out, n, &e), 0);
    ZSTD_freeCCtx(ctx);
    free(zeros);
    free(out);
}

static enum unpacked unpack(size_t size, int window_log, int says_size, size_t *got)
{
    struct buf b;
    buf_init(&b, LIMIT);
    pack(&b, size, window_log, says_size);
    enum unpacked rc = unpack_zstd(&b, LIMIT);
    *got = b.size;
    buf_clear(&b);
    return rc;
}

static void a_frame_becomes_what_is_in_it(void **state)
{
    static const size_t sizes[] = {0, 1, 1000, (128u << 10) - 1, 128u << 10, LIMIT - 1, LIMIT};
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        size_t got;
        assert_int_equal(unpack(sizes[i / 2], 0, i % 2, &got), UNPACK_OK);
        assert_int_equal(got, sizes[i / 2]);
    }
}

static void a_bomb_is_stopped_at_the_limit(void **state)
{
    size_t got;
    assert_int_equal(unpack(LIMIT + 1, 0, 0, &got), UNPACK_TOO_LARGE);
    assert_int_equal(unpack(LIMIT + 1, 0, 1, &got), UNPACK_TOO_LARGE);
    assert_int_equal(unpack(64u << 20, 0, 0, &got), UNPACK_TOO_LARGE);
}

/* The window is what a frame may make us keep; more than 8 MiB of it are refused at once. */
static void a_window_that_is_too_large_is_refused(void **state)
{
    struct buf b;
    buf_init(&b, 64u << 20);
    pack(&b, 32u << 20, UNPACK_WINDOW_LOG + 1, 0);
    assert_int_equal(unpack_zstd(&b, 64u << 20), UNPACK_TOO_LARGE);
    buf_clear(&b);
    pack(&b, 32u << 20, UNPACK_WINDOW_LOG, 0);
    assert_int_equal(unpack_zstd(&b, 64u << 20), UNPACK_OK);
    assert_int_equal(b.size, 32u << 20);
    buf_clear(&b);
}

static void what_is_no_whole_frame_is_refused(void **state)
{
    struct err e = {0};
    struct buf frame, b;
    buf_init(&frame, LIMIT);
    buf_init(&b, LIMIT);
    pack(&frame, 5000, 0, 1);
    for (size_t cut = 0; cut < frame.size; cut++) {
        assert_int_equal(buf_append(&b, frame.data, cut, &e), 0);
        assert_int_equal(unpack_zstd(&b, LIMIT), UNPACK_BAD);
        buf_clear(&b);
    }
    assert_int_equal(buf_append(&b, frame.data, frame.size, &e), 0); /* twice: nested, one behind */
    assert_int_equal(buf_append(&b, frame.data, frame.size, &e), 0);
    assert_int_equal(unpack_zstd(&b, LIMIT), UNPACK_BAD);
    buf_clear(&b);
    assert_int_equal(buf_append(&b, "{\"plain\": 1}", 12, &e), 0);
    assert_int_equal(unpack_zstd(&b, LIMIT), UNPACK_BAD);
    buf_clear(&b);
    buf_clear(&frame);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_becomes_what_is_in_it),
        cmocka_unit_test(a_bomb_is_stopped_at_the_limit),
        cmocka_unit_test(a_window_that_is_too_large_is_refused),
        cmocka_unit_test(what_is_no_whole_frame_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

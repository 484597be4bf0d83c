/* tile.c - see tile.h.  One inlined body, made for each number of rows and vectors, so that the
 * accumulators stay in registers. */
#include "kernels/cpu/tile.h"

#include <assert.h>

/* Accumulators are single registers here: an optimizer keeps those apart, structures not always. */
#define PARTS (TILE_VECS * V_PARTS)

V_INLINE vx load(const float *p)
{
    vx r;
    memcpy(&r, p, sizeof r);
    return r;
}

V_INLINE void body(const int rows, const int vecs, float *y, size_t ldy, bool from_y,
                   const float *a, size_t a_k, size_t a_r, const float *b, size_t ldb, int k)
{
    const int parts = vecs * V_PARTS;
    vx acc[TILE_ROWS * PARTS]; /* [rows][parts] */
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < parts; c++)
            acc[r * parts + c] = from_y ? load(y + (size_t)r * ldy + VX_LANES * c) : (vx){0};
    for (int kk = 0; kk < k; kk++) {
        vx bv[2 * PARTS];
#pragma GCC unroll 8
        for (int c = 0; c < parts; c++)
            bv[c] = load(b + VX_LANES * c);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vx av = a[(size_t)r * a_r] - (vx){0};
#pragma GCC unroll 8
            for (int c = 0; c < parts; c++)
                acc[r * parts + c] = vx_fma(av, bv[c], acc[r * parts + c]);
        }
        a += a_k;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < parts; c++)
            memcpy(y + (size_t)r * ldy + VX_LANES * c, &acc[r * parts + c], sizeof(vx));
}

/* clang-format off */
#if TILE_ROWS == 12
#define EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#elif TILE_ROWS == 6
#define EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define EACH_ROWS(X) X(1) X(2) X(3)
#endif
/* clang-format on */

/* Keeps the compiler from making a body that would not fit. */
#define WIDE_ROWS(n) ((n) <= TILE_ROWS / 2 ? (n) : 1)

void cpu_tile_cols(int rows, int vecs, float *y, size_t ldy, bool from_y, const float *a,
                   size_t a_k, const float *b, size_t ldb, int k)
{
#define COLS_CASE(n)                                                                               \
    case n:                                                                                        \
        if (vecs == TILE_WIDE && n <= TILE_ROWS / 2)                                               \
            body(WIDE_ROWS(n), TILE_WIDE, y, ldy, from_y, a, a_k, 1, b, ldb, k);                   \
        else if (vecs == TILE_VECS)                                                                \
            body(n, TILE_VECS, y, ldy, from_y, a, a_k, 1, b, ldb, k);                              \
        else                                                                                       \
            body(n, 1, y, ldy, from_y, a, a_k, 1, b, ldb, k);                                      \
        break;
    switch (rows) {
        EACH_ROWS(COLS_CASE)
    default:
        assert(!"rows of a tile");
    }
}

void cpu_tile_rows(int rows, int vecs, float *y, size_t ldy, bool from_y, const float *a,
                   size_t a_r, const float *b, size_t ldb, int k)
{
#define ROWS_CASE(n)                                                                               \
    case n:                                                                                        \
        if (vecs == TILE_WIDE && n <= TILE_ROWS / 2)                                               \
            body(WIDE_ROWS(n), TILE_WIDE, y, ldy, from_y, a, 1, a_r, b, ldb, k);                   \
        else if (vecs == TILE_VECS)                                                                \
            body(n, TILE_VECS, y, ldy, from_y, a, 1, a_r, b, ldb, k);                              \
        else                                                                                       \
            body(n, 1, y, ldy, from_y, a, 1, a_r, b, ldb, k);                                      \
        break;
    switch (rows) {
        EACH_ROWS(ROWS_CASE)
    default:
        assert(!"rows of a tile");
    }
}

V_INLINE void pieces_body(const int rows, const struct tile_ends *ends, const float *a,
                          const float *b, int k, const float *fetch, int fetch_step)
{
    vx acc[TILE_ROWS][PARTS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++)
            acc[r][c] = ends->from ? load(ends->from + r * TILE_COLS + VX_LANES * c) : (vx){0};
    for (int k0 = 0; k0 < k; k0 += TILE_PIECE, a += TILE_ROWS * TILE_PIECE) {
        int n = k - k0 < TILE_PIECE ? k - k0 : TILE_PIECE;
        for (int kk = 0; kk < n; kk++, b += TILE_COLS, fetch += fetch_step) {
            vx bv[PARTS];
#pragma GCC unroll 4
            for (int c = 0; c < PARTS; c++)
                bv[c] = load(b + VX_LANES * c);
            __builtin_prefetch(fetch, 0, 2);
            __builtin_prefetch(fetch + 16, 0, 2);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vx av = a[r * TILE_PIECE + kk] - (vx){0};
#pragma GCC unroll 4
                for (int c = 0; c < PARTS; c++)
                    acc[r][c] = vx_fma(av, bv[c], acc[r][c]);
            }
        }
    }
    float *y = ends->y;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++, y += ends->ldy)
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++) {
            vx sum = ends->add ? load(y + VX_LANES * c) + acc[r][c] : acc[r][c];
            memcpy(y + VX_LANES * c, &sum, sizeof sum);
        }
}

void cpu_tile_pieces(int rows, const struct tile_ends *ends, const float *a, const float *b, int k,
                     const float *fetch, int fetch_step)
{
#define PIECES_CASE(n)                                                                             \
    case n:                                                                                        \
        pieces_body(n, ends, a, b, k, fetch, fetch_step);                                          \
        break;
    switch (rows) {
        EACH_ROWS(PIECES_CASE)
    default:
        assert(!"rows of a tile");
    }
}

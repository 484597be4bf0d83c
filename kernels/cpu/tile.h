/* tile.h - the one product of matrices that everything is made of.
 *
 *   y[r, c] = (from_y ? y[r, c] : 0) + sum over kk = 0 .. k-1 of a(r, kk) b[kk, c]
 *
 * for r < rows <= TILE_ROWS and c < 16 vecs, each element one chain of fused multiply-adds in the
 * order of kk.  vecs is 1 or TILE_VECS, or with at most TILE_ROWS / 2 rows TILE_WIDE, so that few
 * rows have as many chains on their way.  Nothing outside these rows is read; b's rows must be
 * readable for 16 vecs floats, and y's writable.  Cutting k in two and going on with from_y changes
 * no bit. */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* As many accumulators as the registers hold. */
#if VX_LANES == 16
#define TILE_ROWS 12
#define TILE_VECS 2
#elif VX_LANES == 8
#define TILE_ROWS 6
#define TILE_VECS 1
#else
#define TILE_ROWS 3
#define TILE_VECS 1
#endif
#define TILE_COLS (16 * TILE_VECS)
#define TILE_WIDE (2 * TILE_VECS)

/* a(r, kk) = a[kk * a_k + r]: the rows of one k lie together. */
void cpu_tile_cols(int rows, int vecs, float *y, size_t ldy, bool from_y, const float *a,
                   size_t a_k, const float *b, size_t ldb, int k);
/* a(r, kk) = a[r * a_r + kk]: a lies row by row. */
void cpu_tile_rows(int rows, int vecs, float *y, size_t ldy, bool from_y, const float *a,
                   size_t a_r, const float *b, size_t ldb, int k);

/* Where a tile's chains begin and end: sums = (from ? from[r, c] : 0) + ..., from being TILE_COLS
 * wide; then y[r, c] = sums, or += sums when add. */
struct tile_ends {
    const float *from;
    float *y;
    size_t ldy;
    bool add;
};

/* a in pieces of TILE_PIECE k, and b a panel (ldb and width TILE_COLS):
 * a(r, kk) = a[kk / TILE_PIECE][r][kk % TILE_PIECE] of [..][TILE_ROWS][TILE_PIECE].  Copying x
 * into this order moves whole cache lines, and the rows of a tile cannot fall onto each other in
 * the cache as rows a power of two apart do.  Meanwhile the memory at `fetch` is brought near, two
 * cache lines from fetch + kk fetch_step for each kk; it need not be anybody's. */
#define TILE_PIECE 16
void cpu_tile_pieces(int rows, const struct tile_ends *ends, const float *a, const float *b, int k,
                     const float *fetch, int fetch_step);

#endif

/* bf16_tile.h - the product of rounded rows with pairs of bf16 weights: the order of ops.h.
 *
 * Where the machine has an instruction for a pair of products (VDPBF16PS), rows are packed as bf16
 * and it does everything.  Elsewhere rows are packed as fp32 values that have been rounded to bf16,
 * and a pair is two fused multiply-adds; that results below 2^-126 become zero is then asked of the
 * control register (x86) or written out (plain C).
 *
 * A pair's second product comes first.  So in the control register's mode a chain over pairs is the
 * chain of tile.h over widened values in the order k = 1, 0, 3, 2, ...: with AVX-512, where widening
 * takes the place of multiply-adds, a panel that serves several tiles is widened once, in that
 * order, and cpu_tile_pieces does the rest.  AVX2 widens beside its multiply-adds. */
#ifndef KERNELS_CPU_BF16_TILE_H
#define KERNELS_CPU_BF16_TILE_H

#include "kernels/cpu/packed.h"

#define BF16_STRIP 512               /* of k */
#define BF16_LD    (BF16_STRIP + 32) /* between packed rows: known, so that rows need no pointers */

#if defined(__AVX512BF16__)
typedef uint16_t bf16_row;
#else
typedef float bf16_row;
#endif

/* The mode is for the chains alone: where it is on, tiles must not add to y. */
#if defined(__AVX2__) && !defined(__AVX512BF16__)
#define BF16_MODE 1
#else
#define BF16_MODE 0
#endif

#define BF16_WIDENS (BF16_MODE && VX_LANES == 16)

#define cpu_bf16_rows  CPU_OF(cpu_bf16_rows)
#define cpu_bf16_tile  CPU_OF(cpu_bf16_tile)
#define cpu_bf16_widen CPU_OF(cpu_bf16_widen)
#define cpu_bf16_round CPU_OF(cpu_bf16_round)
#define cpu_bf16_begin CPU_OF(cpu_bf16_begin)
#define cpu_bf16_end   CPU_OF(cpu_bf16_end)

/* to[r * BF16_LD + kk] = x[r * ldx + kk] rounded, for kk < k <= BF16_STRIP, and zero at k when k is
 * odd. */
void cpu_bf16_rows(bf16_row *to, const float *x, size_t ldx, int rows, int k);

/* Where a tile's sums come from and go to. */
struct bf16_out {
    const float *from; /* [rows, TILE_COLS]: the chain so far; NULL: it begins */
    float *y;          /* [rows, ldy], all TILE_COLS columns are written */
    size_t ldy;
    bool add; /* y += sum; not in BF16_MODE */
};

/* The chain over pairs for rows <= TILE_ROWS; b [pairs][TILE_COLS][2]. */
void cpu_bf16_tile(int rows, const struct bf16_out *o, const bf16_row *a, const uint16_t *b,
                   int pairs);

/* Only where BF16_WIDENS:
 * panel [2 pairs][TILE_COLS] = b [pairs][TILE_COLS][2] widened, a pair's second values first. */
void cpu_bf16_widen(float *panel, const uint16_t *b, int pairs);
/* A row's pieces (tile.h) for such a panel: x [k] rounded, k = 1, 0, 3, 2, ...; an odd last k has
 * zero before it. */
void cpu_bf16_round(float *pieces, const float *x, int k);

/* Around a tile in BF16_MODE: results below 2^-126 become zero in between. */
unsigned cpu_bf16_begin(void);
void cpu_bf16_end(unsigned before);

#endif

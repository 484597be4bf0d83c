/* packed.h - frozen matrices: where they come from, and how they lie once they are packed.
 *
 * A panel is TILE_COLS outputs.  In fp32 it lies k by k; in bf16 two k at a time, each output's two
 * values side by side, which is what the instruction for pairs reads. */
#ifndef KERNELS_CPU_PACKED_H
#define KERNELS_CPU_PACKED_H

#include "kernels/cpu/tile.h"

struct packed {
    enum ops_dtype dtype; /* OPS_F32 or OPS_BF16 */
    bool turned;
    int out, in;          /* as gemm sees them: y [rows, out], x [rows, in] */
    float *panels;        /* OPS_F32: [out / TILE_COLS][in][TILE_COLS] */
    uint16_t *pairs;      /* OPS_BF16: [out / TILE_COLS][in / 2][TILE_COLS][2]; where out or in does
                             not fill its last panel or pair, zeros do */
};

/* What a panel of pairs holds. */
static inline size_t packed_pairs(const struct packed *p)
{
    return (size_t)(p->in + 1) / 2 * TILE_COLS;
}

#define cpu_block_f32  CPU_OF(cpu_block_f32)
#define cpu_block_bf16 CPU_OF(cpu_block_bf16)
#define cpu_bf16_pack  CPU_OF(cpu_bf16_pack)
#define cpu_bf16_part  CPU_OF(cpu_bf16_part)

/* to [rows, cols] = w[row .., col ..], widened or rounded as ops.h says. */
void cpu_block_f32(float *to, const struct ops_matrix *w, int row, int rows, int col, int cols);
void cpu_block_bf16(uint16_t *to, const struct ops_matrix *w, int row, int rows, int col, int cols);

/* Fills p->pairs from w; the caller has set the rest of p. */
int cpu_bf16_pack(struct device *d, struct packed *p, const struct ops_matrix *w, bool transpose,
                  struct err *e);

/* A task of a product: rows [row, row + rows) by columns from col in `panels` panels, at most
 * TASK_ROWS by TASK_PANELS. */
#define TASK_ROWS   (8 * TILE_ROWS)
#define TASK_PANELS (256 / TILE_COLS)
struct gemm_part {
    const struct gemm_job *job;
    int row, rows, col, panels;
    uint64_t serial; /* of the set */
};
/* Does a part of a job whose w is kept in bf16. */
void cpu_bf16_part(const struct gemm_part *part, float *scratch);

/* To bf16: to the nearest, ties to even; subnormals become zero, a NaN stays one. */
V_INLINE uint16_t bf16_of(float f)
{
    uint32_t bits, nan, tiny;
    memcpy(&bits, &f, sizeof bits);
    nan = (bits & 0x7fffffffu) > 0x7f800000u;
    tiny = (bits & 0x7f800000u) == 0;
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    rounded = nan ? bits >> 16 | 0x40u : rounded;
    return (uint16_t)(tiny ? bits >> 16 & 0x8000u : rounded);
}

V_INLINE float bf16_wide(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

#endif

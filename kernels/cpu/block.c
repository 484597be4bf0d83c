/* block.c - pieces of a matrix that lies somewhere in memory, perhaps unaligned, in one of three
 * formats: widened to fp32 or rounded to bf16 (see packed.h). */
#include "kernels/cpu/packed.h"

/* IEEE half to fp32, exact.  Subnormals are multiples of 2^-24. */
V_INLINE float half_wide(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    uint32_t bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float f = (float)fraction * 0x1p-24f;
    if (exponent == 0) memcpy(&bits, &f, sizeof bits);
    bits |= sign;
    memcpy(&f, &bits, sizeof f);
    return f;
}

V_INLINE float value(const char *from, enum ops_dtype dtype, int i)
{
    uint16_t half;
    float f;
    if (dtype == OPS_F32) {
        memcpy(&f, from + 4 * (size_t)i, sizeof f);
        return f;
    }
    memcpy(&half, from + 2 * (size_t)i, sizeof half);
    return dtype == OPS_BF16 ? bf16_wide(half) : half_wide(half);
}

static const char *at(const struct ops_matrix *w, int row, int col)
{
    size_t size = w->dtype == OPS_F32 ? 4 : 2;
    return (const char *)w->data + ((size_t)row * (size_t)w->cols + (size_t)col) * size;
}

void cpu_block_f32(float *to, const struct ops_matrix *w, int row, int rows, int col, int cols)
{
    for (int r = 0; r < rows; r++, to += cols) {
        const char *from = at(w, row + r, col);
        for (int c = 0; c < cols; c++)
            to[c] = value(from, w->dtype, c);
    }
}

void cpu_block_bf16(uint16_t *to, const struct ops_matrix *w, int row, int rows, int col, int cols)
{
    for (int r = 0; r < rows; r++, to += cols) {
        const char *from = at(w, row + r, col);
        for (int c = 0; c < cols; c++)
            to[c] = bf16_of(value(from, w->dtype, c));
    }
}

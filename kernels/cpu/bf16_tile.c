/* bf16_tile.c - see bf16_tile.h. */
#include "kernels/cpu/bf16_tile.h"

#include <assert.h>
#include <float.h>

#define PARTS (TILE_VECS * V_PARTS)

/* ------------------------------------------------------------------ rows */

static void round_row(bf16_row *to, const float *x, int k)
{
    for (int i = 0; i < k; i++) {
#if defined(__AVX512BF16__)
        to[i] = bf16_of(x[i]);
#else
        to[i] = bf16_wide(bf16_of(x[i]));
#endif
    }
}

void cpu_bf16_rows(bf16_row *to, const float *x, size_t ldx, int rows, int k)
{
    for (int r = 0; r < rows; r++, to += BF16_LD, x += ldx) {
        int i = 0;
#if defined(__AVX512BF16__)
        for (; i + 32 <= k; i += 32) {
            __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + i + 16);
            __m512bh both = _mm512_cvtne2ps_pbh(high, low);
            memcpy(to + i, &both, sizeof both);
        }
#endif
        round_row(to + i, x + i, k - i);
        if (k % 2) to[k] = 0;
    }
}

/* ------------------------------------------------------------------ widened panels */

#if BF16_WIDENS
/* bf16_of() and back, pairs swapped.  All but NaNs and tiny numbers are rounded by one addition. */
V_INLINE __m512 round_swapped(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x), near = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    __mmask16 nan = _mm512_fpclass_ps_mask(x, 0x81), tiny = _mm512_fpclass_ps_mask(x, 0x20);
    near = _mm512_mask_add_epi32(near, odd, near, _mm512_set1_epi32(1));
    if (nan | tiny) {
        near = _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x400000));
        near = _mm512_mask_and_epi32(near, tiny, bits, _mm512_set1_epi32(INT32_MIN));
    }
    near = _mm512_and_epi32(near, _mm512_set1_epi32(-0x10000));
    return _mm512_permute_ps(_mm512_castsi512_ps(near), 0xb1);
}

void cpu_bf16_round(float *pieces, const float *x, int k)
{
    int kk = 0;
    for (; kk + TILE_PIECE <= k; kk += TILE_PIECE, pieces += TILE_ROWS * TILE_PIECE)
        _mm512_storeu_ps(pieces, round_swapped(_mm512_loadu_ps(x + kk)));
    if (k % 2) pieces[k - 1 - kk] = 0;
    for (int i = 0; kk + i < k; i++)
        pieces[i ^ 1] = bf16_wide(bf16_of(x[kk + i]));
}

void cpu_bf16_widen(float *panel, const uint16_t *b, int pairs)
{
    for (int i = 0; i < pairs; i++, panel += 2 * TILE_COLS)
#pragma GCC unroll 8
        for (int c = 0; c < PARTS; c++, b += 2 * VX_LANES) {
            __m512i both = _mm512_loadu_si512(b);
            __m512i second = _mm512_and_epi32(both, _mm512_set1_epi32(-0x10000));
            __m512i first = _mm512_slli_epi32(both, 16);
            _mm512_storeu_si512(panel + VX_LANES * c, second);
            _mm512_storeu_si512(panel + TILE_COLS + VX_LANES * c, first);
        }
}
#endif

/* ------------------------------------------------------------------ a pair */

#if !defined(__AVX512BF16__)
/* Results below 2^-126 become zero; x86 has a mode for that, which begin() switches on. */
V_INLINE vx flush(vx x)
{
#if !BF16_MODE
    const vxi sign = (vxi){0} + INT32_MIN;
    vx size = (vx)((vxi)x & ~sign);
    return vx_select(size < FLT_MIN - (vx){0}, (vx)((vxi)x & sign), x);
#else
    return x;
#endif
}
#endif

V_INLINE vxi load_pairs(const uint16_t *b)
{
    vxi r;
    memcpy(&r, b, sizeof r);
    return r;
}

/* acc += a pair of row r with the pairs of b, the second product first: VDPBF16PS's order. */
V_INLINE void pair(const int rows, vx acc[TILE_ROWS][PARTS], const bf16_row *a, const uint16_t *b)
{
    vxi bv[PARTS];
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++)
        bv[c] = load_pairs(b + (size_t)c * 2 * VX_LANES);
#if defined(__AVX512BF16__)
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        int32_t both;
        memcpy(&both, a + (size_t)r * BF16_LD, sizeof both);
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++)
            acc[r][c] = (vx)_mm512_dpbf16_ps((__m512)acc[r][c], (__m512bh)bv[c],
                                             (__m512bh)_mm512_set1_epi32(both));
    }
#else
#pragma GCC unroll 2
    for (int second = 1; second >= 0; second--) {
        vx w[PARTS];
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++)
            w[c] = second ? (vx)(bv[c] & (int32_t)0xffff0000) : (vx)(bv[c] << 16);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vx av = a[(size_t)r * BF16_LD + (size_t)second] - (vx){0};
#pragma GCC unroll 4
            for (int c = 0; c < PARTS; c++)
                acc[r][c] = flush(vx_fma(av, w[c], acc[r][c]));
        }
    }
#endif
}

V_INLINE vx load(const float *p)
{
    vx r;
    memcpy(&r, p, sizeof r);
    return r;
}

V_INLINE void body(const int rows, const struct bf16_out *o, const bf16_row *a, const uint16_t *b,
                   int pairs)
{
    vx acc[TILE_ROWS][PARTS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++)
            acc[r][c] = o->from ? load(o->from + r * TILE_COLS + VX_LANES * c) : (vx){0};
    for (int i = 0; i < pairs; i++, a += 2, b += 2 * TILE_COLS)
        pair(rows, acc, a, b);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < PARTS; c++) {
            float *y = o->y + (size_t)r * o->ldy + VX_LANES * c;
            vx sum = o->add ? load(y) + acc[r][c] : acc[r][c];
            memcpy(y, &sum, sizeof sum);
        }
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

void cpu_bf16_tile(int rows, const struct bf16_out *o, const bf16_row *a, const uint16_t *b,
                   int pairs)
{
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        body(n, o, a, b, pairs);                                                                   \
        break;
    switch (rows) {
        EACH_ROWS(CASE)
    default:
        assert(!"rows of a tile");
    }
}

/* ------------------------------------------------------------------ the control register */

#if BF16_MODE
#define FLUSH_TO_ZERO 0x8000u /* MXCSR.FTZ */

unsigned cpu_bf16_begin(void)
{
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_TO_ZERO);
    return before;
}

void cpu_bf16_end(unsigned before)
{
    _mm_setcsr(before);
}
#else
unsigned cpu_bf16_begin(void)
{
    return 0;
}

void cpu_bf16_end(unsigned before)
{
}
#endif

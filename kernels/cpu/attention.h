/* attention.h - how the CPU lays out a block of keys and values.
 *
 * For each KV head: keys turned, [head_dim][64], so that one load takes sixteen keys; then values
 * [64][wide], wide being head_dim filled up to sixteen. */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/tile.h"

#define KEYS OPS_KV_BLOCK

static inline int attn_wide(const struct attn_shape *s)
{
    return (s->head_dim + 15) / 16 * 16;
}

static inline size_t attn_head_floats(const struct attn_shape *s)
{
    return (size_t)KEYS * (size_t)(s->head_dim + attn_wide(s));
}

static inline float *attn_keys(const struct kv_seg *g, const struct attn_shape *s, int block,
                               int kv_head)
{
    return g->blocks[block] + g->layer_offset + (size_t)kv_head * attn_head_floats(s);
}

static inline float *attn_values(const struct kv_seg *g, const struct attn_shape *s, int block,
                                 int kv_head)
{
    return attn_keys(g, s, block, kv_head) + (size_t)KEYS * (size_t)s->head_dim;
}

/* y [rows, ldy] (from_y or zero) + a b over `wide` columns of b, a lying by rows or by columns. */
static inline void attn_product(bool a_by_rows, int rows, int wide, float *y, size_t ldy,
                                bool from_y, const float *a, size_t lda, const float *b, size_t ldb,
                                int k)
{
    int most = rows <= TILE_ROWS / 2 ? TILE_WIDE : TILE_VECS;
    for (int c = 0, vecs; c < wide; c += 16 * vecs) {
        int left = (wide - c) / 16;
        vecs = left >= most ? most : left >= TILE_VECS ? TILE_VECS : 1;
        if (a_by_rows)
            cpu_tile_rows(rows, vecs, y + c, ldy, from_y, a, lda, b + c, ldb, k);
        else
            cpu_tile_cols(rows, vecs, y + c, ldy, from_y, a, lda, b + c, ldb, k);
    }
}

#endif

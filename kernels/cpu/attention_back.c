/* attention_back.c - the way back through causal attention.
 *
 * A task owns one KV head of one sequence, so that the sums over queries (for keys and values) and
 * over keys (for queries) have one order.  It walks key blocks, then query heads, then tiles of 64
 * positions, and works out the weights again from the scores and the stored logarithm (arXiv
 * 2205.14135, algorithm 4):
 *   P = exp(s - lse)   dV += P^T dO   dP = dO V^T   dS = P (dP - D)   dQ += dS K   dK += dS^T Q
 * with D = sum(dO O) of a row. */
#include "kernels/cpu/attention.h"

#include <assert.h>

#define QUERIES 64 /* positions a tile */

struct back_arg {
    float *dq, *dk, *dv;
    const float *dout, *o, *lse, *q;
    const struct kv_seg *segs;
    const struct attn_shape *shape;
};

struct back {
    const struct back_arg *a;
    const struct kv_seg *seg;
    int kv_head, dim, wide;
    float scale;
    float *keys, *values_turned, *dkeys, *dvalues; /* of a key block: [KEYS][wide], values turned
                                                      [wide][KEYS] */
    float *q, *dout;                               /* of a tile: [QUERIES][wide], q times scale */
    float *p, *ds;                                 /* [QUERIES][KEYS] */
    float *dq;                                     /* [QUERIES][wide] */
    float *delta;                                  /* [QUERIES] */
};

_Static_assert(7 * KEYS * OPS_HEAD_DIM_MAX + 2 * QUERIES * KEYS + QUERIES <= CPU_SCRATCH_FLOATS &&
                   QUERIES == KEYS,
               "scratch of a thread");

static void scratch_lay(struct back *t, float *scratch)
{
    float **wide[] = {&t->keys, &t->values_turned, &t->dkeys, &t->dvalues, &t->q, &t->dout, &t->dq};
    for (int i = 0; i < 7; i++, scratch += KEYS * OPS_HEAD_DIM_MAX)
        *wide[i] = scratch;
    t->p = scratch;
    t->ds = t->p + QUERIES * KEYS;
    t->delta = t->ds + QUERIES * KEYS;
}

static size_t place(const struct back *t, int pos, int head)
{
    return (size_t)(t->seg->row + pos) * (size_t)t->a->shape->heads + (size_t)head;
}

/* Copies rows of dim floats into rows of wide, times scale, zero past dim. */
static void widen(const struct back *t, float *to, const float *from, size_t stride, int rows,
                  float scale)
{
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < t->dim; i++)
            to[r * t->wide + i] = from[(size_t)r * stride + (size_t)i] * scale;
        for (int i = t->dim; i < t->wide; i++)
            to[r * t->wide + i] = 0;
    }
}

static void block_begin(struct back *t, int block, int keys)
{
    const float *k = attn_keys(t->seg, t->a->shape, block, t->kv_head);
    const float *v = attn_values(t->seg, t->a->shape, block, t->kv_head);
    for (int j = 0; j < KEYS; j++)
        for (int i = 0; i < t->wide; i++) {
            t->keys[j * t->wide + i] = j < keys && i < t->dim ? k[i * KEYS + j] : 0;
            t->values_turned[i * KEYS + j] = j < keys ? v[j * t->wide + i] : 0;
        }
    memset(t->dkeys, 0, (size_t)(KEYS * t->wide) * sizeof(float));
    memset(t->dvalues, 0, (size_t)(KEYS * t->wide) * sizeof(float));
}

static void block_end(const struct back *t, int block, int keys)
{
    for (int j = 0; j < keys; j++) {
        size_t row = (size_t)(t->seg->row + block * KEYS + j);
        size_t at = (row * (size_t)t->a->shape->kv_heads + (size_t)t->kv_head) * (size_t)t->dim;
        memcpy(t->a->dk + at, t->dkeys + j * t->wide, (size_t)t->dim * sizeof(float));
        memcpy(t->a->dv + at, t->dvalues + j * t->wide, (size_t)t->dim * sizeof(float));
    }
}

/* Queries pos .. pos + rows - 1 of one head: what the tile needs of them. */
static void queries_begin(struct back *t, int pos, int rows, int head)
{
    size_t at = place(t, pos, head), dim = (size_t)t->dim;
    size_t stride = (size_t)t->a->shape->heads * dim;
    widen(t, t->q, t->a->q + at * dim, stride, rows, t->scale);
    widen(t, t->dout, t->a->dout + at * dim, stride, rows, 1.0f);
    for (int r = 0; r < rows; r++) {
        const float *o = t->a->o + place(t, pos + r, head) * dim;
        v16 sum = v_set1(0);
        for (int i = 0; i < t->dim; i += 16) {
            int n = t->dim - i < 16 ? t->dim - i : 16;
            sum = v_fma(v_load(t->dout + r * t->wide + i), v_load_n(o + i, n), sum);
        }
        t->delta[r] = v_sum(sum);
    }
}

/* p and ds of the tile: from scores and dP, in place. */
static void weights(struct back *t, int pos, int rows, int head, int block)
{
    for (int r = 0; r < rows; r++) {
        int keys = pos + r - block * KEYS + 1; /* that this row may see */
        v16 lse = v_set1(t->a->lse[place(t, pos + r, head)]), delta = v_set1(t->delta[r]);
        for (int i = 0; i < KEYS; i += 16) {
            float *p = t->p + r * KEYS + i, *ds = t->ds + r * KEYS + i;
            v16 w = v_keep(v_exp(v_sub(v_load(p), lse)), keys - i, 0);
            v_store(p, w);
            v_store(ds, v_mul(w, v_sub(v_load(ds), delta)));
        }
    }
}

/* y [rows, wide columns] += a b, rows in tiles; a by rows (lda apart) or by columns. */
static void product(bool a_by_rows, int rows, int wide, float *y, size_t ldy, bool from_y,
                    const float *a, size_t lda, const float *b, size_t ldb, int k)
{
    for (int r = 0; r < rows; r += TILE_ROWS) {
        int n = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        attn_product(a_by_rows, n, wide, y + (size_t)r * ldy, ldy, from_y,
                     a + (size_t)r * (a_by_rows ? lda : 1), lda, b, ldb, k);
    }
}

static void add_dq(const struct back *t, int pos, int rows, int head)
{
    for (int r = 0; r < rows; r++) {
        float *dq = t->a->dq + place(t, pos + r, head) * (size_t)t->dim;
        for (int i = 0; i < t->dim; i++)
            dq[i] += t->scale * t->dq[r * t->wide + i];
    }
}

static void tile(struct back *t, int pos, int rows, int head, int block, int keys)
{
    const float *k = attn_keys(t->seg, t->a->shape, block, t->kv_head);
    size_t wide = (size_t)t->wide;
    queries_begin(t, pos, rows, head);
    product(true, rows, KEYS, t->p, KEYS, false, t->q, wide, k, KEYS, t->dim);
    product(true, rows, KEYS, t->ds, KEYS, false, t->dout, wide, t->values_turned, KEYS, t->dim);
    weights(t, pos, rows, head, block);
    product(false, keys, t->wide, t->dvalues, wide, true, t->p, KEYS, t->dout, wide, rows);
    product(false, keys, t->wide, t->dkeys, wide, true, t->ds, KEYS, t->q, wide, rows);
    product(true, rows, t->wide, t->dq, wide, false, t->ds, KEYS, t->keys, wide, keys);
    add_dq(t, pos, rows, head);
}

static void back_task(const void *p, int task, float *scratch)
{
    const struct back_arg *a = p;
    const struct attn_shape *s = a->shape;
    int group = s->heads / s->kv_heads;
    struct back t = {.a = a, .seg = &a->segs[task / s->kv_heads], .kv_head = task % s->kv_heads};
    t.dim = s->head_dim;
    t.wide = attn_wide(s);
    t.scale = 1.0f / sqrtf((float)s->head_dim);
    scratch_lay(&t, scratch);
    int rows = t.seg->rows;
    for (int r = 0; r < rows; r++)
        memset(a->dq + place(&t, r, t.kv_head * group) * (size_t)t.dim, 0,
               (size_t)(group * t.dim) * sizeof(float));
    for (int b = 0; b * KEYS < rows; b++) {
        int keys = rows - b * KEYS < KEYS ? rows - b * KEYS : KEYS;
        block_begin(&t, b, keys);
        for (int h = t.kv_head * group; h < (t.kv_head + 1) * group; h++)
            for (int pos = b * KEYS; pos < rows; pos += QUERIES)
                tile(&t, pos, rows - pos < QUERIES ? rows - pos : QUERIES, h, b, keys);
        block_end(&t, b, keys);
    }
}

void cpu_attention_back(struct device *d, struct act dq, struct act dk, struct act dv,
                        struct act dout, struct act o, const float *lse, struct act q,
                        const struct kv_seg *segs, int seg_count, const struct attn_shape *shape)
{
    struct back_arg a = {cpu_f32(dq), cpu_f32(dk), cpu_f32(dv), cpu_f32(dout), cpu_f32(o),
                         lse,         cpu_f32(q),  segs,        shape};
    size_t steps = 0;
    for (int i = 0; i < seg_count; i++) {
        assert(segs[i].start == 0);
        steps += (size_t)segs[i].rows * (size_t)segs[i].rows;
    }
    cpu_run(d, back_task, &a, seg_count * shape->kv_heads,
            steps * (size_t)(shape->heads * shape->head_dim) / 8);
}

/* attention.c - causal attention over packed sequences, prefill and decode alike.
 *
 * A tile is up to TILE_ROWS query rows of one KV head: positions by the query heads that share it.
 * It walks the key blocks from position 0.  Each row keeps its own maximum, sum and output, and
 * what a block does to them depends on that row's query and on how many keys of the block it may
 * see; keys it may not see get weight zero.  So a row does not notice who shares its tile. */
#include "kernels/cpu/attention.h"

#include <assert.h>

#define TASK_TILES 8

size_t cpu_kv_floats(const struct attn_shape *s)
{
    return (size_t)s->kv_heads * attn_head_floats(s);
}

/* ------------------------------------------------------------------ writing */

struct write_arg {
    const float *k, *v;
    const struct kv_seg *segs;
    const struct attn_shape *shape;
};

static void write_task(const void *p, int task, float *scratch)
{
    const struct write_arg *a = p;
    const struct attn_shape *s = a->shape;
    const struct kv_seg *g = &a->segs[task / s->kv_heads];
    int h = task % s->kv_heads, wide = attn_wide(s);
    for (int r = 0; r < g->rows; r++) {
        int pos = g->start + r, at = pos % KEYS;
        size_t from =
            ((size_t)(g->row + r) * (size_t)s->kv_heads + (size_t)h) * (size_t)s->head_dim;
        float *key = attn_keys(g, s, pos / KEYS, h) + at;
        float *value = attn_values(g, s, pos / KEYS, h) + (size_t)at * (size_t)wide;
        for (int i = 0; i < s->head_dim; i++)
            key[(size_t)i * KEYS] = a->k[from + (size_t)i];
        memcpy(value, a->v + from, (size_t)s->head_dim * sizeof *value);
        memset(value + s->head_dim, 0, (size_t)(wide - s->head_dim) * sizeof *value);
    }
}

static size_t rows_of(const struct kv_seg *segs, int seg_count)
{
    size_t rows = 0;
    for (int i = 0; i < seg_count; i++)
        rows += (size_t)segs[i].rows;
    return rows;
}

void cpu_kv_write(struct device *d, struct act k, struct act v, const struct kv_seg *segs,
                  int seg_count, const struct attn_shape *shape)
{
    struct write_arg a = {cpu_f32(k), cpu_f32(v), segs, shape};
    size_t count = rows_of(segs, seg_count) * (size_t)shape->kv_heads * (size_t)shape->head_dim;
    /* A number of a key has a cache line of its own, and memory may have to give it. */
    cpu_run(d, write_task, &a, seg_count * shape->kv_heads, 4 * count);
}

/* ------------------------------------------------------------------ reading */

struct attn_arg {
    float *o, *lse;
    const float *q;
    const struct kv_seg *segs;
    const struct attn_shape *shape;
};

/* A tile's rows in flight.  Row r is query `first + r` of its KV head, counted position by
 * position and within a position head by head. */
struct tile {
    const struct attn_arg *a;
    const struct kv_seg *seg;
    int kv_head, first, rows;
    float *q;      /* [head_dim][TILE_ROWS], times 1 / sqrt(head_dim) */
    float *scores; /* [TILE_ROWS][KEYS] */
    float *o;      /* [TILE_ROWS][wide] */
    float max[TILE_ROWS], sum[TILE_ROWS];
};

static int group_of(const struct attn_shape *s)
{
    return s->heads / s->kv_heads;
}

static int position(const struct tile *t, int r)
{
    return t->seg->start + (t->first + r) / group_of(t->a->shape);
}

/* Which [row, head] of q, o and lse this is. */
static size_t place(const struct tile *t, int r)
{
    const struct attn_shape *s = t->a->shape;
    int query = t->first + r, group = group_of(s);
    return (size_t)(t->seg->row + query / group) * (size_t)s->heads +
           (size_t)(t->kv_head * group + query % group);
}

static void tile_begin(struct tile *t)
{
    int dim = t->a->shape->head_dim;
    float scale = 1.0f / sqrtf((float)dim);
    for (int r = 0; r < t->rows; r++) {
        const float *q = t->a->q + place(t, r) * (size_t)dim;
        for (int i = 0; i < dim; i++)
            t->q[i * TILE_ROWS + r] = q[i] * scale;
        t->max[r] = -INFINITY;
        t->sum[r] = 0;
    }
    memset(t->o, 0, (size_t)(TILE_ROWS * attn_wide(t->a->shape)) * sizeof *t->o);
}

/* Scores of one row become weights; the row's sum and output are brought to the new maximum. */
static void row_weights(struct tile *t, int r, int keys)
{
    float *s = t->scores + r * KEYS;
    int wide = attn_wide(t->a->shape);
    if (keys <= 0) {
        memset(s, 0, KEYS * sizeof *s);
        return;
    }
    v16 w[KEYS / 16];
    for (int i = 0; i < KEYS / 16; i++)
        w[i] = v_keep(v_load(s + 16 * i), keys - 16 * i, -INFINITY);
    float m = v_max_lane(v_max(v_max(w[0], w[1]), v_max(w[2], w[3])));
    if (t->max[r] > m) m = t->max[r];
    for (int i = 0; i < KEYS / 16; i++) {
        w[i] = v_exp(v_sub(w[i], v_set1(m)));
        v_store(s + 16 * i, w[i]);
    }
    float carry[16];
    v_store(carry, v_exp(v_set1(t->max[r] - m)));
    t->max[r] = m;
    t->sum[r] = t->sum[r] * carry[0] + v_sum(v_add(v_add(w[0], w[1]), v_add(w[2], w[3])));
    for (int i = 0; i < wide; i += 16)
        v_store(t->o + r * wide + i, v_mul(v_load(t->o + r * wide + i), v_set1(carry[0])));
}

static void tile_block(struct tile *t, int block)
{
    const struct attn_shape *s = t->a->shape;
    int wide = attn_wide(s);
    int seen = position(t, t->rows - 1) - block * KEYS + 1; /* by the last row, which sees most */
    if (seen > KEYS) seen = KEYS;
    attn_product(false, t->rows, (seen + 15) / 16 * 16, t->scores, KEYS, false, t->q, TILE_ROWS,
                 attn_keys(t->seg, s, block, t->kv_head), KEYS, s->head_dim);
    for (int r = 0; r < t->rows; r++)
        row_weights(t, r, position(t, r) - block * KEYS + 1);
    attn_product(true, t->rows, wide, t->o, (size_t)wide, true, t->scores, KEYS,
                 attn_values(t->seg, s, block, t->kv_head), (size_t)wide, seen);
}

static void tile_end(struct tile *t)
{
    int dim = t->a->shape->head_dim, wide = attn_wide(t->a->shape);
    for (int r = 0; r < t->rows; r++) {
        float *o = t->a->o + place(t, r) * (size_t)dim;
        for (int i = 0; i < dim; i++)
            o[i] = t->o[r * wide + i] / t->sum[r];
        t->a->lse[place(t, r)] = (float)((double)t->max[r] + log((double)t->sum[r]));
    }
}

static int tiles_of(const struct kv_seg *g, const struct attn_shape *s)
{
    return (g->rows * group_of(s) + TILE_ROWS - 1) / TILE_ROWS;
}

static int tasks_of(const struct kv_seg *g, const struct attn_shape *s)
{
    return (tiles_of(g, s) + TASK_TILES - 1) / TASK_TILES * s->kv_heads;
}

static void attn_task(const void *p, int task, float *scratch)
{
    const struct attn_arg *a = p;
    const struct attn_shape *s = a->shape;
    const struct kv_seg *g = a->segs;
    for (int n; task >= (n = tasks_of(g, s)); g++)
        task -= n;
    struct tile t = {.a = a, .seg = g, .kv_head = task % s->kv_heads};
    t.q = scratch;
    t.scores = t.q + OPS_HEAD_DIM_MAX * TILE_ROWS;
    t.o = t.scores + TILE_ROWS * KEYS;
    int first = task / s->kv_heads * TASK_TILES * TILE_ROWS, all = g->rows * group_of(s);
    for (int i = 0; i < TASK_TILES; i++) {
        t.first = first + i * TILE_ROWS;
        if (t.first >= all) break;
        t.rows = all - t.first < TILE_ROWS ? all - t.first : TILE_ROWS;
        tile_begin(&t);
        for (int b = 0; b <= position(&t, t.rows - 1) / KEYS; b++)
            tile_block(&t, b);
        tile_end(&t);
    }
}

void cpu_attention(struct device *d, struct act o, float *lse, struct act q,
                   const struct kv_seg *segs, int seg_count, const struct attn_shape *shape)
{
    assert(shape->head_dim <= OPS_HEAD_DIM_MAX && shape->heads % shape->kv_heads == 0);
    struct attn_arg a = {cpu_f32(o), lse, cpu_f32(q), segs, shape};
    int tasks = 0;
    size_t steps = 0;
    for (int i = 0; i < seg_count; i++) {
        tasks += tasks_of(&segs[i], shape);
        steps += (size_t)segs[i].rows * (size_t)(segs[i].start + segs[i].rows);
    }
    cpu_run(d, attn_task, &a, tasks, steps * (size_t)(shape->heads * shape->head_dim) / 16);
}

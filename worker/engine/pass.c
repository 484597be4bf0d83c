/* pass.c - laying out a pass: descriptors, activations, key and value blocks. */
#include "engine/pass.h"

#include <assert.h>

#define ALIGN 64u

static void *bump_bytes(struct bump *b, size_t bytes)
{
    void *p = b->base ? b->base + b->used : NULL;
    b->used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

float *bump_floats(struct bump *b, size_t count)
{
    return bump_bytes(b, count * sizeof(float));
}

struct act bump_act(struct bump *b, size_t count, enum ops_dtype dtype)
{
    return (struct act){bump_bytes(b, count * ops_size(dtype)), dtype};
}

/* ------------------------------------------------------------------ activations */

static void lay_layer(struct bump *b, const struct engine *en, size_t rows, size_t ldu, bool keep,
                      struct layer_acts *a)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t q = (size_t)mc->heads * (size_t)mc->head_dim;
    size_t kv = (size_t)mc->kv_heads * (size_t)mc->head_dim;
    a->x = bump_floats(b, rows * (size_t)mc->hidden);
    a->q_raw = bump_act(b, rows * q, en->act_dtype);
    a->k_raw = bump_act(b, rows * kv, en->act_dtype);
    a->o = bump_act(b, rows * q, en->act_dtype);
    a->lse = bump_floats(b, rows * (size_t)mc->heads);
    a->mid = bump_floats(b, rows * (size_t)mc->hidden);
    a->gate = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
    a->up = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
    for (int s = 0; s < SITES_A_LAYER; s++) {
        bool own = s < PASS_SITES_AT_ONCE || keep;
        a->u[s] = own ? bump_floats(b, rows * ldu) : a->u[s % PASS_SITES_AT_ONCE];
    }
}

static void lay_forward(struct bump *b, const struct engine *en, size_t rows, struct pass *p)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t q = (size_t)mc->heads * (size_t)mc->head_dim;
    size_t kv = (size_t)mc->kv_heads * (size_t)mc->head_dim;
    p->hidden = bump_floats(b, rows * (size_t)mc->hidden);
    p->final = bump_act(b, rows * (size_t)mc->hidden, en->act_dtype);
    p->norm = bump_act(b, rows * (size_t)mc->hidden, en->act_dtype);
    p->q = bump_act(b, rows * q, en->act_dtype);
    p->k = bump_act(b, rows * kv, en->act_dtype);
    p->v = bump_act(b, rows * kv, en->act_dtype);
    p->act = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
}

static void lay_backward(struct bump *b, const struct engine *en, size_t rows, size_t ldu,
                         struct pass *p)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t q = (size_t)mc->heads * (size_t)mc->head_dim;
    size_t kv = (size_t)mc->kv_heads * (size_t)mc->head_dim;
    p->dfinal = bump_floats(b, rows * (size_t)mc->hidden);
    p->dx = bump_floats(b, rows * (size_t)mc->hidden);
    p->dnorm = bump_floats(b, rows * (size_t)mc->hidden);
    p->dq = bump_act(b, rows * q, en->act_dtype);
    p->dk = bump_act(b, rows * kv, en->act_dtype);
    p->dv = bump_act(b, rows * kv, en->act_dtype);
    p->dout = bump_act(b, rows * q, en->act_dtype);
    p->dgate = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
    p->dup = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
    p->dact = bump_act(b, rows * (size_t)mc->intermediate, en->act_dtype);
    p->du = bump_floats(b, rows * ldu);
}

static float *lay_kv(struct bump *b, const struct engine *en, size_t kv_blocks, bool keep)
{
    return bump_floats(b, kv_blocks * en->kv_floats * (keep ? (size_t)en->mw->conf.layers : 1));
}

size_t pass_bytes(const struct engine *en, int rows, int kv_blocks, int ldu, bool keep)
{
    const struct model_conf *mc = &en->mw->conf;
    struct bump layer = {0}, b = {0};
    struct layer_acts acts;
    struct pass p;
    lay_layer(&layer, en, (size_t)rows, (size_t)ldu, keep, &acts);
    lay_forward(&b, en, (size_t)rows, &p);
    if (keep) lay_backward(&b, en, (size_t)rows, (size_t)ldu, &p);
    lay_kv(&b, en, (size_t)kv_blocks, keep);
    return b.used + layer.used * (keep ? (size_t)mc->layers : 1);
}

/* ------------------------------------------------------------------ descriptors */

static int blocks_over(int rows)
{
    return (rows + OPS_KV_BLOCK - 1) / OPS_KV_BLOCK;
}

static void count_up(struct pass *p, int *own_blocks)
{
    *own_blocks = 0;
    for (int i = 0; i < p->seq_count; i++) {
        const struct pass_seq *s = &p->seqs[i];
        p->rows += s->rows;
        p->block_count += blocks_over(s->rows);
        if (i == 0 || p->seqs[i - 1].adapter != s->adapter) p->group_count++;
        if (s->adapter && s->adapter->conf.rank > p->ldu) p->ldu = s->adapter->conf.rank;
        if (!s->blocks) *own_blocks += blocks_over(s->start + s->rows);
    }
}

static int alloc_descriptors(struct pass *p, struct err *e)
{
    struct arena *a = p->en->host;
    int layers = p->keep ? p->en->mw->conf.layers : 1;
    p->segs = arena_zalloc(a, (size_t)p->seq_count * sizeof *p->segs, e);
    if (!p->segs) return -1;
    p->tokens = arena_alloc(a, (size_t)p->rows * sizeof *p->tokens, e);
    if (!p->tokens) return -1;
    p->groups = arena_zalloc(a, (size_t)p->group_count * sizeof *p->groups, e);
    if (!p->groups) return -1;
    size_t loras = PASS_SITES_AT_ONCE * (size_t)p->group_count;
    p->loras = arena_zalloc(a, loras * sizeof *p->loras, e);
    if (!p->loras) return -1;
    p->block_rows = arena_alloc(a, ((size_t)p->block_count + 1) * sizeof *p->block_rows, e);
    if (!p->block_rows) return -1;
    p->row_block = arena_alloc(a, (size_t)p->rows * sizeof *p->row_block, e);
    if (!p->row_block) return -1;
    p->acts = arena_zalloc(a, (size_t)layers * sizeof *p->acts, e);
    return p->acts ? 0 : -1;
}

static void fill_seq(struct pass *p, int i, int row, int *block)
{
    const struct pass_seq *s = &p->seqs[i];
    p->segs[i] = (struct kv_seg){.row = row, .rows = s->rows, .start = s->start};
    for (int r = 0; r < s->rows; r++) {
        p->tokens[row + r] = s->tokens[r];
        if (r % OPS_KV_BLOCK == 0) p->block_rows[(*block)++] = row + r;
        p->row_block[row + r] = *block - 1;
    }
}

static void fill(struct pass *p)
{
    int row = 0, block = 0, group = -1;
    for (int i = 0; i < p->seq_count; i++) {
        const struct pass_seq *s = &p->seqs[i];
        if (i == 0 || p->seqs[i - 1].adapter != s->adapter)
            p->groups[++group] =
                (struct pass_group){.adapter = s->adapter ? s->adapter->ranks[p->en->rank] : NULL,
                                    .row = row,
                                    .block = block};
        struct pass_group *g = &p->groups[group];
        fill_seq(p, i, row, &block);
        row += s->rows;
        g->rows += s->rows;
        g->block_count = block - g->block;
    }
    p->block_rows[block] = row;
}

/* Gives each sequence its block table: its own, or pieces of `memory` with one layer or all. */
static int fill_kv(struct pass *p, float *memory, int own_blocks, struct err *e)
{
    size_t size = p->en->kv_floats * (p->keep ? (size_t)p->en->mw->conf.layers : 1);
    float **table = arena_alloc(p->en->host, ((size_t)own_blocks + 1) * sizeof *table, e);
    if (!table) return -1;
    for (int i = 0; i < p->seq_count; i++) {
        const struct pass_seq *s = &p->seqs[i];
        p->segs[i].blocks = table;
        if (s->blocks) {
            p->segs[i].blocks = s->blocks + (size_t)p->en->rank * s->blocks_apart;
            continue;
        }
        for (int b = 0; b < blocks_over(s->start + s->rows); b++, memory += size)
            *table++ = memory;
    }
    return 0;
}

static struct pass *begin(struct engine *en, const struct pass_seq *seqs, int count, bool keep,
                          size_t taken, struct err *e)
{
    struct pass *p = arena_zalloc(en->host, sizeof *p, e);
    if (!p) return NULL;
    int own_blocks;
    p->en = en;
    p->keep = keep;
    p->seqs = seqs;
    p->seq_count = count;
    count_up(p, &own_blocks);
    if (alloc_descriptors(p, e) < 0) return NULL;
    fill(p);

    const struct model_conf *mc = &en->mw->conf;
    struct bump b = {.base = en->scratch, .used = taken};
    for (int l = 0; l < (keep ? mc->layers : 1); l++)
        lay_layer(&b, en, (size_t)p->rows, (size_t)p->ldu, keep, &p->acts[l]);
    lay_forward(&b, en, (size_t)p->rows, p);
    if (keep) lay_backward(&b, en, (size_t)p->rows, (size_t)p->ldu, p);
    float *kv = lay_kv(&b, en, (size_t)own_blocks, keep);
    assert(b.used <= en->scratch_bytes);
    return fill_kv(p, kv, own_blocks, e) < 0 ? NULL : p;
}

struct pass *pass_begin(struct engine *en, const struct pass_seq *seqs, int count, bool keep,
                        size_t taken, struct err *e)
{
    struct pass **all = arena_alloc(en->host, (size_t)en->rank_count * sizeof *all, e);
    if (!all) return NULL;
    for (int r = 0; r < en->rank_count; r++) {
        all[r] = begin(en->ranks[r], seqs, count, keep, taken, e);
        if (!all[r]) return NULL;
    }
    all[0]->ranks = all;
    return all[0];
}

int pass_site_groups(const struct pass *p, int layer, enum lora_site site,
                     struct lora_group groups[])
{
    int n = 0;
    for (int i = 0; i < p->group_count; i++) {
        const struct pass_group *g = &p->groups[i];
        const struct lora_tensor *t = g->adapter ? adapter_site(g->adapter, layer, site) : NULL;
        if (!t || !t->a) continue;
        groups[n++] = (struct lora_group){.row = g->row,
                                            .rows = g->rows,
                                            .rank = g->adapter->conf.rank,
                                            .scale = g->adapter->scale,
                                            .a = t->a,
                                            .b = t->b,
                                            .grad_a = t->grad_a,
                                            .grad_b = t->grad_b,
                                            .blocks = p->block_rows + g->block,
                                            .block_count = g->block_count};
    }
    return n;
}

/* head.c - see head.h. */
#include "engine/head.h"

#include <assert.h>

#define LOGITS_BYTES ((size_t)4 << 20) /* about what a chunk's logits may take */
#define ROWS_MOST    512

int head_rows_max(const struct engine *en)
{
    size_t rows = LOGITS_BYTES / ((size_t)en->mw->conf.vocab * sizeof(float));
    rows = rows / ENGINE_BLOCK_TOKENS * ENGINE_BLOCK_TOKENS;
    if (rows < ENGINE_BLOCK_TOKENS) rows = ENGINE_BLOCK_TOKENS;
    return rows > ROWS_MOST ? ROWS_MOST : (int)rows;
}

static void lay(struct bump *b, const struct engine *en, int ldu, bool back, struct head *h)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t rows = (size_t)head_rows_max(en);
    h->x = bump_floats(b, rows * (size_t)mc->hidden);
    h->logits = bump_floats(b, rows * (size_t)mc->vocab);
    h->u = bump_floats(b, rows * (size_t)ldu);
    h->lse = bump_floats(b, rows);
    h->logprob = bump_floats(b, HEAD_CELLS_MAX);
    if (!back) return;
    h->dx = bump_floats(b, rows * (size_t)mc->hidden);
    h->du = bump_floats(b, rows * (size_t)ldu);
    h->g = bump_floats(b, HEAD_CELLS_MAX);
}

size_t head_bytes(const struct engine *en, int ldu, bool back)
{
    struct bump b = {0};
    struct head h;
    lay(&b, en, ldu, back, &h);
    return b.used;
}

struct head *head_begin(struct engine *en, int ldu, bool back, struct err *e)
{
    struct head *h = arena_zalloc(en->host, sizeof *h, e);
    if (!h) return NULL;
    h->en = en;
    h->ldu = ldu;
    h->rows_max = head_rows_max(en);
    h->groups = arena_alloc(en->host, (size_t)h->rows_max * sizeof *h->groups, e);
    if (!h->groups) return NULL;
    h->block_rows = arena_alloc(en->host, ((size_t)h->rows_max + 1) * sizeof *h->block_rows, e);
    if (!h->block_rows) return NULL;
    struct bump b = {.base = en->scratch};
    lay(&b, en, ldu, back, h);
    h->bytes = b.used;
    assert(h->bytes <= en->scratch_bytes);
    return h;
}

static void group_begin(struct head *h, const struct pass_group *g, int row, const int *blocks)
{
    const struct lora_tensor *t = g->adapter ? adapter_unembed(g->adapter) : NULL;
    if (!t || !t->a) return;
    h->groups[h->group_count++] = (struct lora_group){.row = row,
                                                      .rank = g->adapter->conf.rank,
                                                      .scale = g->adapter->scale,
                                                      .a = t->a,
                                                      .b = t->b,
                                                      .grad_a = t->grad_a,
                                                      .grad_b = t->grad_b,
                                                      .blocks = blocks};
}

/* The chunk's rows by adapter, and by block of the datum law within. */
static void find_groups(struct head *h, const struct pass *p)
{
    const struct pass_group *g = p->groups, *open = NULL;
    int blocks = 0;
    h->group_count = 0;
    for (int i = 0; i < h->rows; i++) {
        int row = h->index[i];
        while (row >= g->row + g->rows)
            g++;
        if (i == 0 || p->row_block[row] != p->row_block[h->index[i - 1]])
            h->block_rows[blocks++] = i;
        if (g != open) group_begin(h, g, i, &h->block_rows[blocks - 1]);
        open = g;
        struct lora_group *last = h->group_count ? &h->groups[h->group_count - 1] : NULL;
        if (last && last->a == (g->adapter ? adapter_unembed(g->adapter)->a : NULL)) {
            last->rows = i + 1 - last->row;
            last->block_count = (int)(&h->block_rows[blocks] - last->blocks);
        }
    }
    h->block_rows[blocks] = h->rows;
}

void head_logits(struct head *h, struct pass *p, const int32_t *index, int n)
{
    struct engine *en = h->en;
    const struct model_conf *mc = &en->mw->conf;
    assert(n <= h->rows_max);
    h->rows = n;
    h->index = index;
    find_groups(h, p);
    en->ops->gather(en->dev, h->x, p->final, index, n, mc->hidden);
    const struct projection unembed = {.w = en->unembed,
                                       .in = mc->hidden,
                                       .out = mc->vocab,
                                       .y = h->logits,
                                       .u = h->u,
                                       .ldu = h->ldu,
                                       .groups = h->groups,
                                       .count = h->group_count};
    en->ops->project(en->dev, h->x, n, &unembed, 1);
}

static size_t cells_of(const struct head *h, const int *first)
{
    size_t cells = (size_t)(first ? first[h->rows] : h->rows);
    assert(cells <= HEAD_CELLS_MAX);
    return cells;
}

void head_logprobs(struct head *h, const int *first, const int32_t *ids, float *host_logprob)
{
    struct engine *en = h->en;
    size_t bytes = cells_of(h, first) * sizeof(float);
    en->ops->logprob(en->dev, h->logprob, h->lse, h->logits, first, ids, h->rows,
                     en->mw->conf.vocab);
    if (host_logprob) en->ops->download(en->dev, host_logprob, h->logprob, bytes);
}

void head_logprob(struct head *h, const int32_t *ids, float *host_logprob)
{
    head_logprobs(h, NULL, ids, host_logprob);
}

void head_back(struct head *h, struct pass *p, const int *first, const int32_t *ids,
               const float *host_g)
{
    struct engine *en = h->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    ops->upload(en->dev, h->g, host_g, cells_of(h, first) * sizeof(float));
    ops->logprob_back(en->dev, h->logits, h->lse, h->g, first, ids, h->rows, mc->vocab);
    const struct projection_back unembed = {.w = en->unembed_back,
                                            .in = mc->hidden,
                                            .out = mc->vocab,
                                            .u = h->u,
                                            .du = h->du,
                                            .ldu = h->ldu,
                                            .groups = h->groups,
                                            .count = h->group_count};
    ops->project_back(en->dev, h->dx, h->logits, h->x, h->rows, &unembed);
    ops->scatter(en->dev, p->dfinal, h->dx, h->index, h->rows, mc->hidden);
}

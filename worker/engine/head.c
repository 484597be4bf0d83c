/* head.c - see head.h. */
#include "engine/head.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define ROWS_MOST    512
#define WHOLE_ROWS   16 /* of several ranks, put together for the choice of tokens */
#define WHOLE_PICKS  256

int head_rows_max(const struct engine *en)
{
    size_t rows = en->logits_bytes / ((size_t)en->mw->conf.vocab * sizeof(float));
    rows = rows / ENGINE_BLOCK_TOKENS * ENGINE_BLOCK_TOKENS;
    if (rows < ENGINE_BLOCK_TOKENS) rows = ENGINE_BLOCK_TOKENS;
    return rows > ROWS_MOST ? ROWS_MOST : (int)rows;
}

static void lay(struct bump *b, const struct engine *en, int ldu, bool back, struct head *h)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t rows = (size_t)head_rows_max(en);
    h->x = bump_act(b, rows * (size_t)mc->hidden, en->act_dtype);
    h->logits = bump_floats(b, rows * (size_t)mc->vocab);
    h->u = bump_floats(b, rows * (size_t)ldu);
    h->lse = bump_floats(b, rows);
    h->logprob = bump_floats(b, HEAD_CELLS_MAX);
    if (!back && mc->ranks > 1)
        h->whole = bump_floats(b, WHOLE_ROWS * (size_t)mc->vocab * (size_t)mc->ranks);
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

int head_open(struct engine *en, struct err *e)
{
    size_t numbers = HEAD_CELLS_MAX + 2 * (size_t)head_rows_max(en);
    en->part_ids = malloc(HEAD_CELLS_MAX * sizeof *en->part_ids);
    en->part_numbers = malloc(numbers * sizeof *en->part_numbers);
    en->whole_row = malloc((size_t)en->mw->whole.vocab * sizeof *en->whole_row);
    if (en->part_ids && en->part_numbers && en->whole_row) return 0;
    return err_set(e, ERR_RETRY, "out of memory");
}

void head_close(struct engine *en)
{
    free(en->part_ids);
    free(en->part_numbers);
    free(en->whole_row);
}

static struct head *begin(struct engine *en, int ldu, bool back, struct err *e)
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
    if (!en->comm) return h;
    h->part_ids = en->part_ids;
    h->part_logprob = en->part_numbers;
    h->part_lse = h->part_logprob + HEAD_CELLS_MAX;
    h->whole_lse = h->part_lse + h->rows_max;
    return h;
}

struct head *head_begin(struct engine *en, int ldu, bool back, struct err *e)
{
    struct head **all = arena_alloc(en->host, (size_t)en->rank_count * sizeof *all, e);
    if (!all) return NULL;
    for (int r = 0; r < en->rank_count; r++) {
        all[r] = begin(en->ranks[r], ldu, back, e);
        if (!all[r]) return NULL;
    }
    all[0]->ranks = all;
    return all[0];
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

/* ------------------------------------------------------------------ logits */

struct logits_arg {
    struct head *h;
    struct pass *p;
    const int32_t *index;
    int n;
};

static void logits(void *arg, int rank)
{
    const struct logits_arg *a = arg;
    struct head *h = a->h->ranks[rank];
    struct engine *en = h->en;
    const struct model_conf *mc = &en->mw->conf;
    h->rows = a->n;
    h->index = a->index;
    find_groups(h, a->p->ranks[rank]);
    en->ops->gather(en->dev, h->x, a->p->ranks[rank]->final, a->index, a->n, mc->hidden);
    const struct projection unembed = {.w = en->unembed,
                                       .in = mc->hidden,
                                       .out = mc->vocab,
                                       .y = act_f32(h->logits),
                                       .u = h->u,
                                       .ldu = h->ldu,
                                       .groups = h->groups,
                                       .count = h->group_count};
    en->ops->project(en->dev, h->x, a->n, &unembed, 1);
}

void head_logits(struct head *h, struct pass *p, const int32_t *index, int n)
{
    assert(n <= h->rows_max);
    engine_on_ranks(h->en, logits, &(struct logits_arg){h, p, index, n});
}

void head_row(const struct head *h, int row, float *to)
{
    for (int r = 0; r < h->en->rank_count; r++) {
        const struct head *part = h->ranks[r];
        size_t vocab = (size_t)part->en->mw->conf.vocab;
        part->en->ops->download(part->en->dev, to, part->logits + (size_t)row * vocab,
                                vocab * sizeof *to);
        to += vocab;
    }
}

/* ------------------------------------------------------------------ tokens */

/* Takes the rows of the next picks, as far as there is room for them, to the first rank; how many
 * picks that are.  Their copies name the rows' places there. */
static int gather_rows(struct head *h, const struct pick *picks, int count, struct pick *moved)
{
    size_t vocab = (size_t)h->en->mw->whole.vocab;
    int rows = 0, n = 0;
    for (; n < count && n < WHOLE_PICKS; n++) {
        if (n == 0 || picks[n].row != picks[n - 1].row) {
            if (rows == WHOLE_ROWS) break;
            head_row(h, picks[n].row, h->en->whole_row);
            h->en->ops->upload(h->en->dev, h->whole + (size_t)rows++ * vocab, h->en->whole_row,
                               vocab * sizeof(float));
        }
        moved[n] = picks[n];
        moved[n].row = rows - 1;
    }
    return n;
}

void head_pick(struct head *h, int32_t *ids, const struct pick *picks, int count)
{
    struct engine *en = h->en;
    struct pick moved[WHOLE_PICKS];
    if (!en->comm) {
        en->ops->pick(en->dev, ids, h->logits, picks, count, en->mw->conf.vocab);
        return;
    }
    for (int at = 0, n; at < count; at += n) {
        n = gather_rows(h, picks + at, count - at, moved);
        en->ops->pick(en->dev, ids + at, h->whole, moved, n, en->mw->whole.vocab);
    }
}

/* ------------------------------------------------------------------ log-probabilities */

struct scores_arg {
    struct head *h;
    int from, rows;
    const int *first;
    const int32_t *ids;
    int cells;
};

static int cells_of(const int *first, int rows)
{
    int cells = first ? first[rows] : rows;
    assert(cells <= HEAD_CELLS_MAX);
    return cells;
}

static void scores(void *arg, int rank)
{
    const struct scores_arg *a = arg;
    struct head *h = a->h->ranks[rank];
    struct engine *en = h->en;
    int vocab = en->mw->conf.vocab;
    const int32_t *ids = a->ids;
    if (en->comm) {
        for (int c = 0; c < a->cells; c++) {
            int32_t id = a->ids[c] - rank * vocab;
            h->part_ids[c] = id >= 0 && id < vocab ? id : -1;
        }
        ids = h->part_ids;
    }
    en->ops->logprob(en->dev, h->logprob, h->lse, h->logits + (size_t)a->from * (size_t)vocab,
                     a->first, ids, a->rows, vocab);
    if (!en->comm) return;
    en->ops->download(en->dev, h->part_logprob, h->logprob, (size_t)a->cells * sizeof(float));
    en->ops->download(en->dev, h->part_lse, h->lse, (size_t)a->rows * sizeof(float));
}

/* log of the sum over ranks of exp(their log-sum-exp) */
static double whole_lse(const struct head *h, int row)
{
    double max = -INFINITY, sum = 0;
    for (int r = 0; r < h->en->rank_count; r++)
        max = fmax(max, (double)h->ranks[r]->part_lse[row]);
    for (int r = 0; r < h->en->rank_count; r++)
        sum += exp((double)h->ranks[r]->part_lse[row] - max);
    return max + log(sum);
}

static void combine(struct head *h, const struct scores_arg *a, float *host_logprob)
{
    for (int i = 0; i < a->rows; i++) {
        double lse = whole_lse(h, i);
        h->whole_lse[i] = (float)lse;
        if (!host_logprob) continue;
        for (int c = a->first ? a->first[i] : i; c < (a->first ? a->first[i + 1] : i + 1); c++) {
            const struct head *part = h->ranks[a->ids[c] / h->en->mw->conf.vocab];
            host_logprob[c] =
                (float)((double)part->part_logprob[c] + ((double)part->part_lse[i] - lse));
        }
    }
}

void head_logprobs_of(struct head *h, int from, int rows, const int *first, const int32_t *ids,
                      float *host_logprob)
{
    struct engine *en = h->en;
    struct scores_arg a = {h, from, rows, first, ids, cells_of(first, rows)};
    engine_on_ranks(en, scores, &a);
    if (en->comm)
        combine(h, &a, host_logprob);
    else if (host_logprob)
        en->ops->download(en->dev, host_logprob, h->logprob, (size_t)a.cells * sizeof(float));
}

void head_logprobs(struct head *h, const int *first, const int32_t *ids, float *host_logprob)
{
    head_logprobs_of(h, 0, h->rows, first, ids, host_logprob);
}

void head_logprob(struct head *h, const int32_t *ids, float *host_logprob)
{
    head_logprobs(h, NULL, ids, host_logprob);
}

/* ------------------------------------------------------------------ the way back */

struct back_arg {
    struct head *h;
    struct pass *p;
    const int *first;
    const int32_t *ids;
    const float *g;
};

static void back(void *arg, int rank)
{
    const struct back_arg *a = arg;
    struct head *h = a->h->ranks[rank];
    struct engine *en = h->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    size_t cells = (size_t)cells_of(a->first, h->rows);
    ops->upload(en->dev, h->g, a->g, cells * sizeof(float));
    if (en->comm)
        ops->upload(en->dev, h->lse, a->h->whole_lse, (size_t)h->rows * sizeof(float));
    ops->logprob_back(en->dev, h->logits, h->lse, h->g, a->first, en->comm ? h->part_ids : a->ids,
                      h->rows, mc->vocab);
    struct projection_back unembed = {.w = en->unembed_back,
                                      .in = mc->hidden,
                                      .out = mc->vocab,
                                      .u = h->u,
                                      .du = h->du,
                                      .ldu = h->ldu,
                                      .groups = h->groups,
                                      .count = h->group_count};
    pass_project_back(en, act_f32(h->dx), act_f32(h->logits), h->x, h->rows, &unembed, CUT_OUT);
    engine_all_reduce(en, h->dx, (size_t)h->rows * (size_t)mc->hidden);
    ops->scatter(en->dev, a->p->ranks[rank]->dfinal, h->dx, h->index, h->rows, mc->hidden);
}

void head_back(struct head *h, struct pass *p, const int *first, const int32_t *ids,
               const float *host_g)
{
    engine_on_ranks(h->en, back, &(struct back_arg){h, p, first, ids, host_g});
}

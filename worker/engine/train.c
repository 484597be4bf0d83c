/* train.c - one replica's datums in packed passes.
 *
 * They come in the order in which their gradients are to be summed, those of one adapter side by
 * side, and are cut into passes that fit the scratch.  Forward-only datums have passes of their own,
 * which keep nothing, and a turn (deal.c) ends with a pass.  All memory is found before the
 * first gradient changes; after that nothing here can fail but the device.
 *
 * Gradients go straight to the adapters, blocks in the order of their datums: neither the cut nor
 * the company shows, because a pass cuts between datums and a block's sum starts from zero.
 *
 * A loss whose slopes depend on the whole sequence (gspo) has all rows of its datums pass the head
 * once before, for their log-probabilities: a second product with the unembedding, whose rows have
 * the bits of the first.  A datum never spans passes, so nothing else has to be kept. */
#include "engine/train.h"

#include "engine/head.h"
#include "engine/loss.h"

struct ref {
    struct train_item *item;
    struct datum *datum;
    int turn;
    double sequence_ratio; /* known once all log-probabilities of the datum are */
};

/* A pass that is laid out. */
struct laid {
    struct head *head;
    struct pass *pass;
    struct ref *refs;
    int count;
    bool keep;
};

struct train_work {
    struct engine *en;
    struct ref *refs;
    struct pass_seq *seqs; /* beside refs */
    int count;
    int *cuts; /* pass i holds refs cuts[i] .. cuts[i + 1] - 1 */
    int pass_count, next; /* passes, and which is to run next */
    struct laid *laid;    /* [pass_count] */
    struct chunk *chunk;
};

/* A chunk of the head on its way: rows of the pass, and whose they are.  One serves all passes. */
struct chunk {
    struct head *head;
    struct pass *pass;
    int n;
    int32_t *rows;
    const struct ref **refs;
    int *positions;
    int *first;   /* [n + 1]: where a row's ids begin */
    int32_t *ids; /* and beside them: */
    float *logprobs, *slopes;
};

size_t train_bytes(const struct engine *en, int rows, int kv_blocks, int ldu, bool keep)
{
    return head_bytes(en, ldu, keep) + pass_bytes(en, rows, kv_blocks, ldu, keep);
}

/* ------------------------------------------------------------------ the cut */

struct train_work *train_begin(struct engine *en, int datums, struct err *e)
{
    size_t n = (size_t)datums + 1;
    struct train_work *w = arena_zalloc(en->host, sizeof *w, e);
    if (!w) return NULL;
    w->en = en;
    w->refs = arena_alloc(en->host, n * sizeof *w->refs, e);
    if (!w->refs) return NULL;
    w->seqs = arena_alloc(en->host, n * sizeof *w->seqs, e);
    if (!w->seqs) return NULL;
    w->cuts = arena_alloc(en->host, n * sizeof *w->cuts, e);
    return w->cuts ? w : NULL;
}

void train_add(struct train_work *w, struct train_item *item, struct datum *d, int turn)
{
    w->seqs[w->count] = (struct pass_seq){
        .adapter = adapter_at(w->en, item->adapter), .tokens = d->tokens, .rows = d->n};
    w->refs[w->count++] = (struct ref){.item = item, .datum = d, .turn = turn};
}

/* How a pass grows by one more datum. */
struct load {
    int rows, blocks, ldu;
};

static struct load load_with(struct load l, const struct ref *r)
{
    int rank = r->item->adapter ? r->item->adapter->conf.rank : 0;
    l.rows += r->datum->n;
    l.blocks += train_blocks(r->datum->n);
    if (rank > l.ldu) l.ldu = rank;
    return l;
}

static size_t load_bytes(const struct engine *en, struct load l, const struct ref *r)
{
    return train_bytes(en, l.rows, l.blocks, l.ldu, !r->item->forward_only);
}

/* Datums that must not share a pass. */
static bool apart(const struct ref *a, const struct ref *b)
{
    return a->item->forward_only != b->item->forward_only || a->turn != b->turn;
}

/* Cuts greedily; the largest pass's bytes. */
static size_t cut(struct train_work *w)
{
    struct load load = {0};
    size_t most = 0;
    for (int i = 0; i < w->count; i++) {
        const struct ref *r = &w->refs[i];
        struct load more = load_with(load, r);
        if (i == 0 || apart(r, r - 1) || more.rows > w->en->pass_rows ||
            load_bytes(w->en, more, r) > w->en->scratch_bytes_max) {
            w->cuts[w->pass_count++] = i;
            more = load_with((struct load){0}, r);
        }
        load = more;
        size_t bytes = load_bytes(w->en, load, r);
        if (bytes > most) most = bytes;
    }
    w->cuts[w->pass_count] = w->count;
    return most;
}

/* ------------------------------------------------------------------ the head of a pass */

static struct chunk *chunk_make(struct engine *en, struct err *e)
{
    struct chunk *c = arena_zalloc(en->host, sizeof *c, e);
    if (!c) return NULL;
    size_t n = (size_t)head_rows_max(en);
    c->rows = arena_alloc(en->host, n * sizeof *c->rows, e);
    if (!c->rows) return NULL;
    c->refs = arena_alloc(en->host, n * sizeof *c->refs, e);
    if (!c->refs) return NULL;
    c->positions = arena_alloc(en->host, n * sizeof *c->positions, e);
    if (!c->positions) return NULL;
    c->first = arena_zalloc(en->host, (n + 1) * sizeof *c->first, e);
    if (!c->first) return NULL;
    c->ids = arena_alloc(en->host, HEAD_CELLS_MAX * sizeof *c->ids, e);
    if (!c->ids) return NULL;
    c->logprobs = arena_alloc(en->host, HEAD_CELLS_MAX * sizeof *c->logprobs, e);
    if (!c->logprobs) return NULL;
    c->slopes = arena_alloc(en->host, HEAD_CELLS_MAX * sizeof *c->slopes, e);
    return c->slopes ? c : NULL;
}

/* Row i of the chunk has its log-probabilities. */
static void row_done(struct chunk *c, int i, bool back)
{
    const struct ref *r = c->refs[i];
    int at = c->positions[i] * datum_width(r->datum);
    for (int cell = c->first[i]; cell < c->first[i + 1]; cell++, at++) {
        r->datum->out_logprobs[at] = c->logprobs[cell];
        if (back)
            c->slopes[cell] = (float)loss_slope(&r->item->loss, r->datum, at,
                                                (double)c->logprobs[cell], r->sequence_ratio);
    }
}

static void chunk_flush(struct chunk *c, bool back)
{
    if (c->n == 0) return;
    head_logits(c->head, c->pass, c->rows, c->n);
    head_logprobs(c->head, c->first, c->ids, c->logprobs);
    for (int i = 0; i < c->n; i++)
        row_done(c, i, back);
    if (back) head_back(c->head, c->pass, c->first, c->ids, c->slopes);
    c->n = 0;
}

static void chunk_add(struct chunk *c, const struct ref *r, int row, int position)
{
    int width = datum_width(r->datum), cell = c->first[c->n];
    c->rows[c->n] = row;
    c->refs[c->n] = r;
    c->positions[c->n++] = position;
    c->first[c->n] = cell + width;
    for (int k = 0; k < width; k++)
        c->ids[cell + k] = (int32_t)r->datum->targets[position * width + k];
}

/* The rows of a pass go through the head in up to three stages: */
enum stage {
    STAGE_AHEAD, /* all rows of datums whose slopes depend on the whole sequence */
    STAGE_BACK,  /* rows whose gradient counts */
    STAGE_REST,  /* what has no log-probability yet; in a forward-only pass everything */
    STAGES
};

static bool in_stage(const struct ref *r, int position, enum stage stage)
{
    const struct loss_conf *loss = &r->item->loss;
    if (r->item->forward_only) return stage == STAGE_REST;
    if (stage == STAGE_AHEAD) return loss_by_sequence(loss);
    bool counts = loss_counts(loss, r->datum, position);
    return stage == STAGE_BACK ? counts : !counts && !loss_by_sequence(loss);
}

/* The stage's rows of one block, which a chunk must hold together. */
static void chunk_block(struct chunk *c, const struct ref *r, int row, int from, int to,
                        enum stage stage)
{
    int rows = to - from, cells = rows * datum_width(r->datum);
    if (c->n + rows > c->head->rows_max || c->first[c->n] + cells > HEAD_CELLS_MAX)
        chunk_flush(c, stage == STAGE_BACK);
    for (int i = from; i < to; i++)
        if (in_stage(r, i, stage)) chunk_add(c, r, row + i, i);
}

static void run_head(struct chunk *c, struct ref *refs, int count)
{
    for (int stage = 0; stage < STAGES; stage++) {
        for (int i = 0, row = 0; i < count; row += refs[i++].datum->n)
            for (int at = 0; at < refs[i].datum->n; at += ENGINE_BLOCK_TOKENS) {
                int end = at + ENGINE_BLOCK_TOKENS;
                if (end > refs[i].datum->n) end = refs[i].datum->n;
                chunk_block(c, &refs[i], row, at, end, (enum stage)stage);
            }
        chunk_flush(c, stage == STAGE_BACK);
        for (int i = 0; stage == STAGE_AHEAD && i < count; i++)
            if (!refs[i].item->forward_only)
                refs[i].sequence_ratio = loss_sequence_ratio(&refs[i].item->loss, refs[i].datum);
    }
}

/* ------------------------------------------------------------------ passes */

static int ldu_of(const struct ref *refs, int count)
{
    struct load l = {0};
    for (int i = 0; i < count; i++)
        l = load_with(l, &refs[i]);
    return l.ldu;
}

static int lay_pass(struct train_work *w, int at, struct laid *out, struct err *e)
{
    out->refs = w->refs + w->cuts[at];
    out->count = w->cuts[at + 1] - w->cuts[at];
    out->keep = !out->refs->item->forward_only;
    out->head = head_begin(w->en, ldu_of(out->refs, out->count), out->keep, e);
    if (!out->head) return -1;
    out->pass =
        pass_begin(w->en, w->seqs + w->cuts[at], out->count, out->keep, out->head->bytes, e);
    return out->pass ? 0 : -1;
}

int train_ready(struct train_work *w, struct err *e)
{
    if (engine_scratch(w->en, cut(w), e) < 0) return -1;
    w->chunk = chunk_make(w->en, e);
    if (!w->chunk) return -1;
    w->laid = arena_alloc(w->en->host, ((size_t)w->pass_count + 1) * sizeof *w->laid, e);
    if (!w->laid) return -1;
    for (int i = 0; i < w->pass_count; i++)
        if (lay_pass(w, i, &w->laid[i], e) < 0) return -1;
    return 0;
}

static void run_pass(const struct laid *l, struct chunk *c)
{
    struct pass *p = l->pass;
    c->head = l->head;
    c->pass = p;
    pass_forward(p);
    run_head(c, l->refs, l->count);
    if (l->keep) pass_backward(p);
}

int train_run(struct train_work *w, int turn, struct err *e)
{
    for (; w->next < w->pass_count && w->laid[w->next].refs->turn == turn; w->next++) {
        run_pass(&w->laid[w->next], w->chunk);
        if (engine_sync(w->en, e) < 0) return -1;
    }
    return 0;
}

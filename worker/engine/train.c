/* train.c - several jobs' datums in packed passes.
 *
 * Datums are put in the order adapter by adapter (as adapters first appear), within one by item and
 * datum, and cut into passes that fit the scratch.  Forward-only datums have passes of their own,
 * which keep nothing.  All memory is found before the first gradient changes; after that nothing
 * here can fail but the device.
 *
 * Gradients go straight to the adapters, blocks in the order of their datums: neither the cut nor
 * the company shows, because a pass cuts between datums and a block's sum starts from zero.
 *
 * A loss whose slopes depend on the whole sequence (gspo) has all rows of its datums pass the head
 * once before, for their log-probabilities: a second product with the unembedding, whose rows have
 * the bits of the first.  A datum never spans passes, so nothing else has to be kept. */
#include "engine/train.h"

#include <assert.h>
#include <string.h>
#include "engine/head.h"
#include "engine/loss.h"

struct ref {
    struct train_item *item;
    struct datum *datum;
    double sequence_ratio; /* known once all log-probabilities of the datum are */
};

struct plan {
    struct ref *refs;
    struct pass_seq *seqs; /* beside refs */
    int count;
    int *cuts; /* pass i holds refs cuts[i] .. cuts[i + 1] - 1 */
    int pass_count;
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

/* ------------------------------------------------------------------ the plan */

static void plan_item(struct plan *plan, struct train_item *item)
{
    for (int i = 0; i < item->datum_count; i++) {
        struct datum *d = &item->datums[i];
        plan->seqs[plan->count] =
            (struct pass_seq){.adapter = item->adapter, .tokens = d->tokens, .rows = d->n};
        plan->refs[plan->count++] = (struct ref){.item = item, .datum = d};
    }
}

static bool seen_before(const struct train_item *items, int i)
{
    for (int j = 0; j < i; j++)
        if (items[j].adapter == items[i].adapter && items[j].forward_only == items[i].forward_only)
            return true;
    return false;
}

static void plan_order(struct plan *plan, struct train_item *items, int count, bool forward_only)
{
    for (int i = 0; i < count; i++) {
        if (items[i].forward_only != forward_only || seen_before(items, i)) continue;
        for (int j = i; j < count; j++)
            if (items[j].adapter == items[i].adapter && items[j].forward_only == forward_only)
                plan_item(plan, &items[j]);
    }
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

/* Cuts greedily; *most gets the largest pass's bytes. */
static void plan_cut(const struct engine *en, struct plan *plan, size_t *most)
{
    struct load load = {0};
    *most = 0;
    for (int i = 0; i < plan->count; i++) {
        const struct ref *r = &plan->refs[i];
        struct load more = load_with(load, r);
        if (i == 0 || r->item->forward_only != plan->refs[i - 1].item->forward_only ||
            more.rows > ENGINE_PASS_ROWS || load_bytes(en, more, r) > en->scratch_bytes_max) {
            plan->cuts[plan->pass_count++] = i;
            more = load_with((struct load){0}, r);
        }
        load = more;
        size_t bytes = load_bytes(en, load, r);
        if (bytes > *most) *most = bytes;
    }
    plan->cuts[plan->pass_count] = plan->count;
}

static int plan_make(struct engine *en, struct plan *plan, struct train_item *items, int count,
                     size_t *most, struct err *e)
{
    size_t datums = 0;
    for (int i = 0; i < count; i++)
        datums += (size_t)items[i].datum_count;
    plan->refs = arena_alloc(en->host, (datums + 1) * sizeof *plan->refs, e);
    if (!plan->refs) return -1;
    plan->seqs = arena_alloc(en->host, (datums + 1) * sizeof *plan->seqs, e);
    if (!plan->seqs) return -1;
    plan->cuts = arena_alloc(en->host, (datums + 1) * sizeof *plan->cuts, e);
    if (!plan->cuts) return -1;
    plan_order(plan, items, count, false);
    plan_order(plan, items, count, true);
    plan_cut(en, plan, most);
    return 0;
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

struct laid {
    struct head *head;
    struct pass *pass;
    struct ref *refs;
    int count;
    bool keep;
};

static int lay_pass(struct engine *en, const struct plan *plan, int at, struct laid *out,
                    struct err *e)
{
    out->refs = plan->refs + plan->cuts[at];
    out->count = plan->cuts[at + 1] - plan->cuts[at];
    out->keep = !out->refs->item->forward_only;
    out->head = head_begin(en, ldu_of(out->refs, out->count), out->keep, e);
    if (!out->head) return -1;
    out->pass =
        pass_begin(en, plan->seqs + plan->cuts[at], out->count, out->keep, out->head->bytes, e);
    return out->pass ? 0 : -1;
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

static int run_plan(struct engine *en, const struct plan *plan, struct err *e)
{
    struct chunk *chunk = chunk_make(en, e);
    if (!chunk) return -1;
    struct laid *laid = arena_alloc(en->host, (size_t)plan->pass_count * sizeof *laid, e);
    if (!laid) return -1;
    for (int i = 0; i < plan->pass_count; i++)
        if (lay_pass(en, plan, i, &laid[i], e) < 0) return -1;
    for (int i = 0; i < plan->pass_count; i++) {
        run_pass(&laid[i], chunk);
        if (engine_sync(en, e) < 0) return -1;
    }
    return 0;
}

static void settle(struct train_item *item)
{
    item->out_loss = 0;
    for (int k = 0; k < item->datum_count; k++) {
        const struct datum *d = &item->datums[k];
        double s = loss_sequence_ratio(&item->loss, d);
        for (int i = 0; i < d->n * datum_width(d); i++)
            item->out_loss += loss_value(&item->loss, d, i, (double)d->out_logprobs[i], s);
    }
    if (!item->forward_only) item->adapter->has_gradient = true;
}

int engine_train(struct engine *en, struct train_item *items, int count, struct err *e)
{
    struct plan plan = {0};
    size_t most;
    int rc = -1;
    if (count < 1) return 0;
    if (plan_make(en, &plan, items, count, &most, e) < 0) goto out;
    if (engine_scratch(en, most, e) < 0) goto out;
    if (run_plan(en, &plan, e) < 0) goto out;
    for (int i = 0; i < count; i++)
        settle(&items[i]);
    rc = 0;
out:
    arena_reset(en->host);
    return rc;
}

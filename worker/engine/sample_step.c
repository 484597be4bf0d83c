/* sample_step.c - moves every request one step on.
 *
 * First one row for each sequence that is under way, then up to one full pass of the prompts that
 * wait, a piece of each in order of arrival: the oldest always goes on, and a short prompt behind a
 * long one does not wait for all of it.  A prompt ends in its samples' first tokens.  All of it is
 * the same pass as training's, so a log-probability here is the one that a later forward finds.
 *
 * A block that a pass fills is named while the pass is put together, so requests that begin alike
 * share it from the same pass on. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "engine/sample.h"

#define PIECES 4 /* prompts that a step goes on with, if they are long */

/* A row whose logits somebody wants. */
struct want {
    struct sample *sample;
    int sequence; /* -1: the row is the prompt's */
    int position; /* of a prompt's row */
};

/* One pass being put together. */
struct batch {
    struct engine *en;
    int rows_max, rows, count, want_count;
    struct pass_seq *seqs; /* [rows_max] */
    struct want *wants;    /* [rows_max], by ascending row */
    int32_t *want_rows;
    int32_t *tokens; /* [rows_max] the rows of sequences under way */
    float *logits;   /* [vocab], one row on the host */
    struct choices choices;
    struct asks asks;
};

/* ------------------------------------------------------------------ choosing a token */

static bool is_stop_token(const struct sample *s, const struct engine *en, int32_t id)
{
    for (int i = 0; i < s->conf.stop_token_count; i++)
        if (s->conf.stop_tokens[i] == id) return true;
    for (int i = 0; s->conf.stop_at_eos && i < en->info.eos_count; i++)
        if (en->info.eos[i] == id) return true;
    return false;
}

/* Adds the token's bytes to what was said, of which only as much is kept as a stop string could
 * begin in. */
static int says_stop_string(struct engine *en, const struct sample *s, struct sequence *q,
                            int32_t id, bool *hit, struct err *e)
{
    size_t size = 0, keep = s->stop_longest;
    *hit = false;
    if (s->conf.stop_string_count == 0) return 0;
    const char *bytes = engine_token_bytes(en, id, &size);
    if (!bytes || size == 0) return 0;
    if (q->text.size > keep) {
        memmove(q->text.data, q->text.data + q->text.size - keep, keep);
        q->text.size = keep;
    }
    if (buf_append(&q->text, bytes, size, e) < 0) return -1;
    *hit = stop_string_hit(q->text.data, q->text.size, size, s->conf.stop_strings,
                           s->conf.stop_string_count);
    return 0;
}

/* The next token of a sample's sequence, which depends on nothing else. */
static void choose_next(struct choices *c, const struct sample *s, int index, int row)
{
    const struct sequence *q = &s->sequences[index];
    const struct pick p = {row, s->conf.temperature, s->conf.top_k, s->conf.top_p,
                           sample_uniform(s->conf.seed, (uint32_t)index, (uint32_t)q->n)};
    choices_add(c, &p, &q->tokens[q->n]);
}

/* The sequence says the token that was chosen.  logits: its row on the host, where top tokens are
 * asked for. */
static int say(struct batch *b, struct sample *s, int index, int row, const float *logits,
               struct err *e)
{
    struct sequence *q = &s->sequences[index];
    int32_t id = q->tokens[q->n];
    bool hit;
    if (asks_add(&b->asks, row, id, &q->logprobs[q->n], e) < 0 ||
        top_ask(&q->top, q->n, &b->asks, row, logits, e) < 0)
        return -1;
    q->n++;
    if (says_stop_string(b->en, s, q, id, &hit, e) < 0) return -1;
    if (hit || is_stop_token(s, b->en, id)) {
        q->done = true;
        q->reason = STOP_REASON_STOP;
    } else if (q->n == s->max_new) {
        q->done = true;
        q->reason = STOP_REASON_LENGTH;
    }
    if (!q->done) return 0;
    s->running--;
    sequence_end(b->en, q);
    return 0;
}

/* Gives the sequence the prompt's blocks, and unless it is the first a copy of the one that the
 * prompt did not fill. */
static void share_prompt(struct engine *en, struct sample *s, int index)
{
    struct kv_line *l = &s->sequences[index].line;
    int full = s->prompt_count / OPS_KV_BLOCK;
    kv_line_borrow(l, &s->line, index == 0 ? s->line.count : full);
    if (l->count == s->line.count) return;
    kv_line_take(en->kv, l);
    kv_copy(en->kv, l->blocks[full], s->line.blocks[full]);
}

/* The prompt is through: every sample has drawn its first token. */
static int begin_sequences(struct batch *b, struct sample *s, int row, struct err *e)
{
    for (int i = 0; i < s->conf.num_samples; i++) {
        if (say(b, s, i, row, b->logits, e) < 0) return -1;
        if (!s->sequences[i].done) share_prompt(b->en, s, i);
    }
    return 0;
}

/* ------------------------------------------------------------------ running a pass */

static bool is_last_of_prompt(const struct want *w)
{
    return w->sequence < 0 && w->position == w->sample->prompt_count - 1;
}

static void choose_want(struct choices *c, const struct want *w, int row)
{
    if (w->sequence >= 0)
        choose_next(c, w->sample, w->sequence, row);
    else if (!is_last_of_prompt(w))
        score_choose(w->sample, w->position, c, row);
    else
        for (int i = 0; i < w->sample->conf.num_samples; i++)
            choose_next(c, w->sample, i, row);
}

/* Does somebody look at the row's logits?  Tokens have been chosen by now. */
static bool reads_logits(const struct want *w)
{
    if (w->sequence >= 0 || is_last_of_prompt(w)) return w->sample->conf.topk_sampled > 0;
    return score_reads_logits(w->sample, w->position);
}

static int settle_want(struct batch *b, const struct head *h, int want, int row, struct err *e)
{
    const struct want *w = &b->wants[want];
    struct sample *s = w->sample;
    if (reads_logits(w)) head_row(h, row, b->logits);
    if (w->sequence >= 0) return say(b, s, w->sequence, row, b->logits, e);
    if (is_last_of_prompt(w)) return begin_sequences(b, s, row, e);
    return score_ask(s, w->position, &b->asks, row, b->logits, e);
}

static int settle_chunk(struct batch *b, struct head *h, struct pass *p, int from, int n,
                        struct err *e)
{
    head_logits(h, p, b->want_rows + from, n);
    b->choices.head = b->asks.head = h;
    for (int i = 0; i < n; i++)
        choose_want(&b->choices, &b->wants[from + i], i);
    choices_settle(&b->choices);
    if (engine_sync(b->en, e) < 0) return -1;
    for (int i = 0; i < n; i++)
        if (settle_want(b, h, from + i, i, e) < 0) return -1;
    return asks_settle(&b->asks, e);
}

static int batch_run(struct batch *b, struct err *e)
{
    struct engine *en = b->en;
    if (b->rows == 0) return 0;
    struct head *h = head_begin(en, OPS_RANK_MAX, false, e);
    if (!h) return -1;
    struct pass *p = pass_begin(en, b->seqs, b->count, false, h->bytes, e);
    if (!p) return -1;
    pass_forward(p);
    for (int from = 0; from < b->want_count; from += h->rows_max) {
        int n = b->want_count - from < h->rows_max ? b->want_count - from : h->rows_max;
        if (settle_chunk(b, h, p, from, n, e) < 0) return -1;
    }
    b->rows = b->count = b->want_count = 0;
    return engine_sync(en, e);
}

static void batch_want(struct batch *b, int row, struct want w)
{
    b->want_rows[b->want_count] = row;
    b->wants[b->want_count++] = w;
}

/* ------------------------------------------------------------------ prompts */

/* How many rows of the prompt come next: up to the end of a block where that can be, because only
 * whole blocks are of use to others. */
static int rows_next(const struct sample *s, int room)
{
    int end = s->prompt_count - s->fed < room ? s->prompt_count : s->fed + room;
    int whole = end / OPS_KV_BLOCK * OPS_KV_BLOCK;
    return (end < s->prompt_count && whole > s->fed ? whole : end) - s->fed;
}

static int add_prompt(struct batch *b, struct sample *s, int rows_most)
{
    int room = b->rows_max - b->rows;
    int rows = rows_next(s, room < rows_most ? room : rows_most), last = s->prompt_count - 1;
    while (s->line.count * OPS_KV_BLOCK < s->fed + rows)
        kv_line_take(b->en->kv, &s->line);
    b->seqs[b->count++] = (struct pass_seq){.adapter = s->adapter,
                                            .tokens = s->prompt + s->fed,
                                            .rows = rows,
                                            .start = s->fed,
                                            .blocks = s->line.memory,
                                            .blocks_apart = s->line.apart};
    for (int r = 0; r < rows; r++) {
        int pos = s->fed + r;
        if (pos == last ? s->conf.num_samples > 0 : score_wanted(s, pos))
            batch_want(b, b->rows + r, (struct want){s, -1, pos});
    }
    for (int k = s->fed / OPS_KV_BLOCK; (k + 1) * OPS_KV_BLOCK <= s->fed + rows; k++)
        kv_line_name(b->en->kv, &s->line, k, s->owner, s->prompt + k * OPS_KV_BLOCK);
    s->fed += rows;
    b->rows += rows;
    return rows;
}

static int by_arrival(const void *a, const void *b)
{
    uint64_t x = (*(struct sample *const *)a)->arrival, y = (*(struct sample *const *)b)->arrival;
    return (x > y) - (x < y);
}

/* The requests whose prompts are not through, first come first; *count of them. */
static struct sample **waiting(struct batch *b, int *count, struct err *e)
{
    size_t n = 0;
    for (struct sample *s = b->en->samples; s; s = s->next)
        n += s->fed < s->prompt_count;
    struct sample **list = arena_alloc(b->en->host, (n + 1) * sizeof *list, e);
    if (!list) return NULL;
    n = 0;
    for (struct sample *s = b->en->samples; s; s = s->next)
        if (s->fed < s->prompt_count) list[n++] = s;
    qsort(list, n, sizeof *list, by_arrival);
    *count = (int)n;
    return list;
}

/* Up to `rows` rows of a prompt; how many there were, or -1. */
static int feed(struct batch *b, struct sample *s, int rows, struct err *e)
{
    int left = rows;
    while (left > 0 && s->fed < s->prompt_count) {
        if (b->rows == b->rows_max && batch_run(b, e) < 0) return -1;
        int fed = s->fed;
        sample_adopt(b->en, s);
        b->en->stats.prompt_tokens_cached += s->fed - fed;
        left -= add_prompt(b, s, left);
    }
    return rows - left;
}

static int step_prefill(struct batch *b, struct err *e)
{
    int budget = b->rows_max, fed = 1, count;
    int piece = budget / PIECES > OPS_KV_BLOCK ? budget / PIECES : OPS_KV_BLOCK;
    struct sample **list = waiting(b, &count, e);
    if (!list) return -1;
    while (budget > 0 && fed > 0) {
        fed = 0;
        for (int i = 0; i < count && budget > 0; i++) {
            int rows = feed(b, list[i], budget < piece ? budget : piece, e);
            if (rows < 0) return -1;
            budget -= rows;
            fed += rows;
        }
    }
    return batch_run(b, e);
}

/* ------------------------------------------------------------------ sequences under way */

/* The tokens at positions 64 index .. 64 index + 63. */
static void block_tokens(const struct sample *s, const struct sequence *q, int index,
                         int32_t out[OPS_KV_BLOCK])
{
    for (int i = 0; i < OPS_KV_BLOCK; i++) {
        int pos = index * OPS_KV_BLOCK + i;
        out[i] = pos < s->prompt_count ? s->prompt[pos] : q->tokens[pos - s->prompt_count];
    }
}

static void add_sequence(struct batch *b, struct sample *s, int index)
{
    struct sequence *q = &s->sequences[index];
    int pos = s->prompt_count + q->n - 1, block = pos / OPS_KV_BLOCK;
    if (block == q->line.count) kv_line_take(b->en->kv, &q->line);
    b->tokens[b->rows] = q->tokens[q->n - 1];
    b->seqs[b->count++] = (struct pass_seq){.adapter = s->adapter,
                                            .tokens = &b->tokens[b->rows],
                                            .rows = 1,
                                            .start = pos,
                                            .blocks = q->line.memory,
                                            .blocks_apart = q->line.apart};
    batch_want(b, b->rows, (struct want){s, index, 0});
    b->rows++;
    if (pos % OPS_KV_BLOCK < OPS_KV_BLOCK - 1) return;
    int32_t tokens[OPS_KV_BLOCK];
    block_tokens(s, q, block, tokens);
    kv_line_name(b->en->kv, &q->line, block, s->owner, tokens);
}

static int step_decode(struct batch *b, struct err *e)
{
    for (struct sample *s = b->en->samples; s; s = s->next) {
        if (s->fed < s->prompt_count) continue;
        for (int i = 0; i < s->conf.num_samples; i++) {
            if (s->sequences[i].done) continue;
            if (b->rows == b->rows_max && batch_run(b, e) < 0) return -1;
            add_sequence(b, s, i);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ the step */

static int batch_init(struct batch *b, struct engine *en, struct err *e)
{
    struct arena *a = en->host;
    *b = (struct batch){.en = en, .rows_max = sample_rows_max(en)};
    size_t n = (size_t)b->rows_max;
    b->seqs = arena_alloc(a, n * sizeof *b->seqs, e);
    if (!b->seqs) return -1;
    b->wants = arena_alloc(a, n * sizeof *b->wants, e);
    if (!b->wants) return -1;
    b->want_rows = arena_alloc(a, n * sizeof *b->want_rows, e);
    if (!b->want_rows) return -1;
    b->tokens = arena_alloc(a, n * sizeof *b->tokens, e);
    if (!b->tokens) return -1;
    b->logits = arena_alloc(a, (size_t)en->info.vocab * sizeof *b->logits, e);
    if (!b->logits) return -1;
    return choices_init(&b->choices, en, e) < 0 ? -1 : asks_init(&b->asks, en, e);
}

int sampler_step(struct engine *en, struct err *e)
{
    struct batch b;
    struct err why = {0};
    int left = 0;
    if (!en->samples) return 0;
    if (batch_init(&b, en, &why) < 0 || step_decode(&b, &why) < 0 || step_prefill(&b, &why) < 0) {
        arena_reset(en->host);
        return err_set(e, ERR_LOST, "could not sample: %s", why.text);
    }
    arena_reset(en->host);
    for (struct sample *s = en->samples; s; s = s->next) {
        if (!s->done && s->fed == s->prompt_count && s->running == 0) {
            s->done = true;
            sample_end(en, s);
        }
        left += !s->done;
    }
    return left;
}

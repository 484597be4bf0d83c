/* sample_score.c - log-probabilities beside those of the sampled tokens: which rows of a prompt
 * they need, and how they are read off the logits.
 *
 * Drawn ids come from ops->pick, the likeliest are found on the host in a row's logits; what they
 * weigh always comes from ops->logprob, the op that training asks for its targets, so it has a
 * forward pass's bits. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include "engine/sample.h"

/* ------------------------------------------------------------------ asking the head */

int asks_init(struct asks *a, struct engine *en, struct err *e)
{
    struct arena *host = en->host;
    size_t n = HEAD_CELLS_MAX;
    *a = (struct asks){0};
    a->rows = arena_alloc(host, n * sizeof *a->rows, e);
    if (!a->rows) return -1;
    a->ids = arena_alloc(host, n * sizeof *a->ids, e);
    if (!a->ids) return -1;
    a->out = arena_alloc(host, n * sizeof(float *), e);
    if (!a->out) return -1;
    a->logprobs = arena_alloc(host, n * sizeof *a->logprobs, e);
    if (!a->logprobs) return -1;
    a->first = arena_alloc(host, ((size_t)head_rows_max(en) + 1) * sizeof *a->first, e);
    return a->first ? 0 : -1;
}

/* Only the rows between the first and the last that ask: a row that asks for very much is settled
 * many times. */
int asks_settle(struct asks *a, struct err *e)
{
    struct engine *en = a->head->en;
    if (a->count == 0) return 0;
    int row = a->rows[0], at = 0;
    int rows = a->rows[a->count - 1] + 1 - row;
    for (int i = 0; i < rows; i++) {
        a->first[i] = at;
        while (at < a->count && a->rows[at] == row + i)
            at++;
    }
    a->first[rows] = at;
    assert(at == a->count);
    head_logprobs_of(a->head, row, rows, a->first, a->ids, a->logprobs);
    if (engine_sync(en, e) < 0) return -1;
    for (int i = 0; i < a->count; i++)
        *a->out[i] = a->logprobs[i];
    a->count = 0;
    return 0;
}

int asks_add(struct asks *a, int row, int32_t id, float *out, struct err *e)
{
    if (a->count == HEAD_CELLS_MAX && asks_settle(a, e) < 0) return -1;
    a->rows[a->count] = row;
    a->ids[a->count] = id;
    a->out[a->count++] = out;
    return 0;
}

/* ------------------------------------------------------------------ choosing tokens */

int choices_init(struct choices *c, struct engine *en, struct err *e)
{
    *c = (struct choices){0};
    c->picks = arena_alloc(en->host, CHOICES_MAX * sizeof *c->picks, e);
    if (!c->picks) return -1;
    c->ids = arena_alloc(en->host, CHOICES_MAX * sizeof *c->ids, e);
    if (!c->ids) return -1;
    c->out = arena_alloc(en->host, CHOICES_MAX * sizeof(int32_t *), e);
    return c->out ? 0 : -1;
}

void choices_settle(struct choices *c)
{
    head_pick(c->head, c->ids, c->picks, c->count);
    for (int i = 0; i < c->count; i++)
        *c->out[i] = c->ids[i];
    c->count = 0;
}

void choices_add(struct choices *c, const struct pick *p, int32_t *out)
{
    if (c->count == CHOICES_MAX) choices_settle(c);
    c->picks[c->count] = *p;
    c->out[c->count++] = out;
}

/* ------------------------------------------------------------------ top k */

/* Of logits: NaN, which only a diverged run has, comes last. */
static bool likelier(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

/* Insertion into a short sorted list: almost every logit is turned away by its end. */
void sample_top(const float *logits, int vocab, int k, int32_t *ids)
{
    float found[ENGINE_TOPK_MAX];
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        if (n == k && !likelier(logits[i], found[n - 1])) continue;
        int at = n < k ? n++ : n - 1;
        for (; at > 0 && likelier(logits[i], found[at - 1]); at--) {
            found[at] = found[at - 1];
            ids[at] = ids[at - 1];
        }
        found[at] = logits[i];
        ids[at] = i;
    }
    for (int j = n; j < k; j++)
        ids[j] = -1;
}

int top_init(struct top *t, int k, size_t n)
{
    *t = (struct top){.k = k};
    if (k == 0) return 0;
    size_t count = n * (size_t)k;
    t->ids = calloc(count + 1, sizeof *t->ids);
    t->logprobs = malloc((count + 1) * sizeof *t->logprobs);
    if (!t->ids || !t->logprobs) return -1;
    for (size_t i = 0; i < count; i++)
        t->logprobs[i] = ENGINE_NO_LOGPROB;
    return 0;
}

void top_clear(struct top *t)
{
    free(t->ids);
    free(t->logprobs);
    *t = (struct top){0};
}

/* They come by descending logit; two logits that differ may round to one log-probability. */
void top_sort(struct top *t, int n)
{
    for (int row = 0; row < n && t->k; row++) {
        int32_t *ids = t->ids + (size_t)row * (size_t)t->k;
        float *lp = t->logprobs + (size_t)row * (size_t)t->k;
        for (int i = 1; i < t->k && lp[i] != ENGINE_NO_LOGPROB; i++)
            for (int j = i; j > 0 && lp[j] == lp[j - 1] && ids[j] < ids[j - 1]; j--) {
                int32_t id = ids[j];
                ids[j] = ids[j - 1];
                ids[j - 1] = id;
            }
    }
}

int top_ask(struct top *t, int at, struct asks *a, int row, const float *logits, struct err *e)
{
    int32_t found[ENGINE_TOPK_MAX];
    if (t->k == 0) return 0;
    int32_t *ids = t->ids + (size_t)at * (size_t)t->k;
    float *lp = t->logprobs + (size_t)at * (size_t)t->k;
    sample_top(logits, a->head->en->info.vocab, t->k, found);
    for (int j = 0; j < t->k && found[j] >= 0; j++) {
        ids[j] = found[j];
        if (asks_add(a, row, found[j], &lp[j], e) < 0) return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------ a prompt's rows */

/* prompt_last concerns the prompt's own tokens and their top k. */
static bool in_last(const struct sample *s, int pos)
{
    return !s->conf.prompt_last || pos + 1 >= s->prompt_count - s->conf.prompt_last;
}

static bool has_target(const struct sample *s, int pos)
{
    const int *first = s->conf.target_first;
    for (int j = first ? first[pos] : 0; first && j < first[pos + 1]; j++)
        if (s->conf.target_ids[j] >= 0) return true;
    return false;
}

bool score_wanted(const struct sample *s, int pos)
{
    if (pos >= s->prompt_count - 1) return false;
    if (s->alt.k || has_target(s, pos)) return true;
    return (s->prompt_logprobs || s->prompt_top.k) && in_last(s, pos);
}

int score_first(const struct sample *s)
{
    int pos = 0;
    while (pos < s->prompt_count && !score_wanted(s, pos))
        pos++;
    return pos;
}

bool score_reads_logits(const struct sample *s, int pos)
{
    return s->prompt_top.k && in_last(s, pos);
}

void score_choose(const struct sample *s, int pos, struct choices *c, int row)
{
    struct pick p = {.row = row, .temperature = s->conf.temperature, .top_k = -1, .top_p = 1};
    for (int j = 0; j < s->alt.k; j++) {
        p.uniform = alt_uniform(s->conf.seed, (uint32_t)j, (uint32_t)pos + 1);
        choices_add(c, &p, &s->alt.ids[(size_t)pos * (size_t)s->alt.k + (size_t)j]);
    }
}

static int alt_ask(struct sample *s, int pos, struct asks *a, int row, struct err *e)
{
    size_t at = (size_t)pos * (size_t)s->alt.k;
    for (int j = 0; j < s->alt.k; j++)
        if (asks_add(a, row, s->alt.ids[at + (size_t)j], &s->alt.logprobs[at + (size_t)j], e) < 0)
            return -1;
    return 0;
}

static int targets_ask(struct sample *s, int pos, struct asks *a, int row, struct err *e)
{
    const int *first = s->conf.target_first;
    for (int j = first ? first[pos] : 0; first && j < first[pos + 1]; j++)
        if (s->conf.target_ids[j] >= 0 &&
            asks_add(a, row, s->conf.target_ids[j], &s->target_logprobs[j], e) < 0)
            return -1;
    return 0;
}

int score_ask(struct sample *s, int pos, struct asks *a, int row, const float *logits,
              struct err *e)
{
    bool last = in_last(s, pos);
    if (s->prompt_logprobs && last &&
        asks_add(a, row, s->prompt[pos + 1], &s->prompt_logprobs[pos + 1], e) < 0)
        return -1;
    if (last && top_ask(&s->prompt_top, pos + 1, a, row, logits, e) < 0) return -1;
    if (alt_ask(s, pos, a, row, e) < 0) return -1;
    return targets_ask(s, pos, a, row, e);
}

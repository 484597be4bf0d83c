/* sample.c - requests for samples: given their memory, listed; taken and freed.
 *
 * All samples of a request share the prompt's blocks.  Blocks that the prompt fills are shared for
 * good, with other requests too; the last, half-filled one goes to the first sample, and the others
 * copy it. */
#include "engine/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX    ((size_t)1 << 24)

/* ------------------------------------------------------------------ the engine's part */

size_t sample_bytes(const struct engine *en)
{
    return head_bytes(en, OPS_RANK_MAX, false) +
           pass_bytes(en, sample_rows_max(en), 0, OPS_RANK_MAX, false);
}

int sample_rows_max(const struct engine *en)
{
    size_t head = head_bytes(en, OPS_RANK_MAX, false);
    int rows = SAMPLE_ROWS_MOST;
    while (rows > 16 && head + pass_bytes(en, rows, 0, OPS_RANK_MAX, false) > en->scratch_bytes_max)
        rows /= 2;
    return rows;
}

int engine_sampling_open(struct engine *en, size_t kv_bytes_max, struct err *e)
{
    en->kv = kv_create(en, kv_bytes_max, e);
    return en->kv ? 0 : -1;
}

void engine_sampling_close(struct engine *en)
{
    assert(!en->samples);
    kv_free(en->kv);
}

bool engine_sampling_uses(const struct engine *en, const struct adapter *ad)
{
    for (const struct sample *s = en->samples; s; s = s->next)
        if (s->adapter == ad && !s->done) return true;
    return false;
}

struct sample_stats sampler_stats(const struct engine *en)
{
    struct sample_stats stats = en->stats;
    stats.evictions = kv_evictions(en->kv);
    struct ops_recorded passes = en->ops->recorded(en->dev);
    stats.passes_replayed = passes.replayed;
    stats.passes_plain = passes.plain;
    return stats;
}

/* ------------------------------------------------------------------ copies */

static int copy_stops(struct sample *s, const struct sample_conf *c)
{
    size_t strings = (size_t)c->stop_string_count, tokens = (size_t)c->stop_token_count;
    int32_t *ids = calloc(tokens + 1, sizeof *ids);
    char **texts = calloc(strings + 1, sizeof *texts);
    s->conf.stop_tokens = ids;
    s->conf.stop_strings = (const char *const *)texts;
    if (!ids || !texts) return -1;
    if (tokens) memcpy(ids, c->stop_tokens, tokens * sizeof *ids);
    for (size_t i = 0; i < strings; i++) {
        size_t size = strlen(c->stop_strings[i]);
        texts[i] = strdup(c->stop_strings[i]);
        if (!texts[i]) return -1;
        if (size > s->stop_longest) s->stop_longest = size;
    }
    return 0;
}

static int copy_targets(struct sample *s, const struct sample_conf *c)
{
    if (!c->target_first) return 0;
    size_t rows = (size_t)s->prompt_count, count = (size_t)c->target_first[rows - 1];
    int *first = malloc(rows * sizeof *first);
    int32_t *ids = malloc((count + 1) * sizeof *ids);
    s->conf.target_first = first;
    s->conf.target_ids = ids;
    s->target_logprobs = calloc(count + 1, sizeof *s->target_logprobs);
    if (!first || !ids || !s->target_logprobs) return -1;
    memcpy(first, c->target_first, rows * sizeof *first);
    if (count) memcpy(ids, c->target_ids, count * sizeof *ids);
    return 0;
}

static int make_scores(struct sample *s)
{
    size_t n = (size_t)s->prompt_count;
    if (s->conf.prompt_logprobs) {
        s->prompt_logprobs = malloc(n * sizeof *s->prompt_logprobs);
        if (!s->prompt_logprobs) return -1;
        for (size_t i = 0; i < n; i++)
            s->prompt_logprobs[i] = NAN;
    }
    if (top_init(&s->prompt_top, s->conf.topk_prompt, n) < 0) return -1;
    return top_init(&s->alt, s->conf.alt_tokens, n - 1);
}

static int make_sequences(const struct engine *en, struct sample *s)
{
    size_t count = (size_t)s->conf.num_samples, room = (size_t)s->max_new;
    s->sequences = calloc(count + 1, sizeof *s->sequences);
    if (!s->sequences) return -1;
    for (size_t i = 0; i < count; i++) {
        struct sequence *q = &s->sequences[i];
        buf_init(&q->text, TEXT_MAX);
        q->tokens = calloc(room, sizeof *q->tokens);
        q->logprobs = calloc(room, sizeof *q->logprobs);
        if (!q->tokens || !q->logprobs || top_init(&q->top, s->conf.topk_sampled, room) < 0 ||
            kv_line_init(&q->line, s->line_max, en->rank_count) < 0)
            return -1;
    }
    return 0;
}

static int blocks_over(int positions)
{
    return (positions + OPS_KV_BLOCK - 1) / OPS_KV_BLOCK;
}

static int copy_all(const struct engine *en, struct sample *s, const int32_t *prompt, int count,
                    const struct sample_conf *c)
{
    int room = en->info.context_max - count;
    s->conf = *c;
    s->conf.stop_tokens = NULL;
    s->conf.stop_strings = NULL;
    s->conf.target_first = NULL;
    s->conf.target_ids = NULL;
    s->prompt_count = count;
    s->max_new = c->max_tokens == -1 || c->max_tokens > room ? room : c->max_tokens;
    s->running = c->num_samples;
    /* The last token that is sampled is never fed; a single one needs no block of its own. */
    s->line_max = s->max_new > 1 ? blocks_over(count + s->max_new - 1) : 0;
    s->prompt = malloc((size_t)count * sizeof *s->prompt);
    if (!s->prompt) return -1;
    memcpy(s->prompt, prompt, (size_t)count * sizeof *prompt);
    if (copy_stops(s, c) < 0 || copy_targets(s, c) < 0 || make_scores(s) < 0) return -1;
    int first = score_first(s), last = count - 1;
    s->cached_max = (first < last ? first : last) / OPS_KV_BLOCK;
    if (kv_line_init(&s->line, blocks_over(count), en->rank_count) < 0) return -1;
    return make_sequences(en, s);
}

/* ------------------------------------------------------------------ KV blocks */

/* Blocks that a sequence does not share with the prompt.  The first sequence goes on in the block
 * that the prompt does not fill. */
static int own_blocks(const struct sample *s, int index)
{
    int shared = index == 0 ? s->line.max : s->prompt_count / OPS_KV_BLOCK;
    return s->line_max > shared ? s->line_max - shared : 0;
}

void sample_adopt(struct engine *en, struct sample *s)
{
    while (s->fed % OPS_KV_BLOCK == 0 && s->fed / OPS_KV_BLOCK < s->cached_max) {
        struct kv_block *b = kv_find(en->kv, s->owner, s->line.name, s->prompt + s->fed);
        if (!b) return;
        kv_line_adopt(en->kv, &s->line, b);
        s->fed += OPS_KV_BLOCK;
    }
}

/* Gets the promise of every block that the request can ever need.  What the cache has of the
 * prompt's beginning is held from now on, so that it is still there at the prompt's turn. */
static int promise_blocks(struct engine *en, struct sample *s, struct err *e)
{
    int64_t all = s->line.max;
    for (int i = 0; i < s->conf.num_samples; i++)
        all += own_blocks(s, i);
    if (all > kv_blocks_max(en->kv))
        return err_set(e, ERR_USER,
                       "the request needs %lld KV blocks of %d tokens, this server has %d; ask for "
                       "fewer samples or a smaller max_tokens",
                       (long long)all, OPS_KV_BLOCK, kv_blocks_max(en->kv));
    sample_adopt(en, s);
    if (kv_promise(en->kv, (int)all - s->line.count, e) < 0) {
        kv_line_end(en->kv, &s->line);
        return -1;
    }
    s->line.promised = s->line.max - s->line.count;
    for (int i = 0; i < s->conf.num_samples; i++)
        s->sequences[i].line.promised = own_blocks(s, i);
    return 0;
}

void sequence_end(struct engine *en, struct sequence *q)
{
    kv_line_end(en->kv, &q->line);
}

/* The prompt's blocks last, so that they are kept longest. */
void sample_end(struct engine *en, struct sample *s)
{
    for (int i = 0; i < s->conf.num_samples; i++)
        sequence_end(en, &s->sequences[i]);
    kv_line_end(en->kv, &s->line);
}

/* ------------------------------------------------------------------ birth and death */

static void sequence_clear(struct sequence *q)
{
    free(q->tokens);
    free(q->logprobs);
    top_clear(&q->top);
    buf_clear(&q->text);
    kv_line_clear(&q->line);
}

static void sample_release(struct sample *s)
{
    for (int i = 0; s->sequences && i < s->conf.num_samples; i++)
        sequence_clear(&s->sequences[i]);
    for (int i = 0; s->conf.stop_strings && i < s->conf.stop_string_count; i++)
        free((char *)s->conf.stop_strings[i]);
    free((void *)s->conf.stop_strings);
    free((void *)s->conf.stop_tokens);
    free((void *)s->conf.target_first);
    free((void *)s->conf.target_ids);
    free(s->sequences);
    kv_line_clear(&s->line);
    free(s->prompt);
    free(s->prompt_logprobs);
    free(s->target_logprobs);
    top_clear(&s->prompt_top);
    top_clear(&s->alt);
    free(s);
}

/* Weights are named when they are first sampled from: a new adapter, or one that has changed, gets
 * a number that no other ever had. */
static uint64_t owner_of(struct engine *en, struct adapter *ad)
{
    if (!ad) return 0;
    if (!ad->serial) ad->serial = ++en->serials;
    return ad->serial;
}

/* Behind the last one of its adapter, so that a pass finds them side by side. */
static void list_add(struct engine *en, struct sample *s)
{
    struct sample **at = &en->samples, **end = NULL;
    for (; *at; at = &(*at)->next)
        if ((*at)->adapter == s->adapter) end = &(*at)->next;
    if (!end) end = at;
    s->next = *end;
    *end = s;
}

struct sample *sampler_add(struct engine *en, struct adapter *adapter, const int32_t *prompt,
                           int prompt_count, const struct sample_conf *conf, struct err *e)
{
    if (sample_check(en, prompt, prompt_count, conf, e) < 0 ||
        engine_scratch(en, sample_bytes(en), e) < 0)
        return NULL;
    struct sample *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    s->replica = en->replica;
    s->adapter = adapter;
    s->owner = owner_of(en, adapter);
    s->arrival = ++en->arrivals;
    if (copy_all(en, s, prompt, prompt_count, conf) < 0) {
        err_set(e, ERR_RETRY, "out of memory for a request of %d samples", conf->num_samples);
        goto fail;
    }
    if (promise_blocks(en, s, e) < 0) goto fail;
    en->stats.prompt_tokens += prompt_count;
    en->stats.prompt_tokens_cached += s->fed;
    list_add(en, s);
    return s;
fail:
    sample_release(s);
    return NULL;
}

void sampler_remove(struct engine *en, struct sample *s)
{
    struct sample **at = &en->samples;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    sample_end(en, s);
    sample_release(s);
}

bool sample_done(const struct sample *s)
{
    return s->done;
}

void sample_take(struct sample *s, struct sample_result *out)
{
    assert(s->done);
    *out = (struct sample_result){.prompt_count = s->prompt_count,
                                  .prompt_logprobs = s->prompt_logprobs,
                                  .prompt_top = s->prompt_top,
                                  .alt = s->alt,
                                  .target_logprobs = s->target_logprobs};
    top_sort(&out->prompt_top, s->prompt_count);
    s->prompt_logprobs = s->target_logprobs = NULL;
    s->prompt_top = s->alt = (struct top){0};
    if (s->conf.num_samples == 0) return;
    out->sequences = calloc((size_t)s->conf.num_samples, sizeof *out->sequences);
    assert(out->sequences);
    out->sequence_count = s->conf.num_samples;
    for (int i = 0; i < s->conf.num_samples; i++) {
        struct sequence *q = &s->sequences[i];
        out->sequences[i] = (struct sampled){q->n, q->tokens, q->logprobs, q->top, q->reason};
        top_sort(&q->top, q->n);
        q->tokens = NULL;
        q->logprobs = NULL;
        q->top = (struct top){0};
    }
}

void sample_result_clear(struct sample_result *r)
{
    for (int i = 0; i < r->sequence_count; i++) {
        free(r->sequences[i].tokens);
        free(r->sequences[i].logprobs);
        top_clear(&r->sequences[i].top);
    }
    free(r->sequences);
    free(r->prompt_logprobs);
    free(r->target_logprobs);
    top_clear(&r->prompt_top);
    top_clear(&r->alt);
    *r = (struct sample_result){0};
}

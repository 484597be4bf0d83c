/* sampler.h - for tests of sampling: prompts, requests run to their end, and results compared to
 * the bit. */
#ifndef TESTS_ENGINE_SAMPLER_H
#define TESTS_ENGINE_SAMPLER_H

#include "world.h"

/* n tokens; those of one seed begin alike. */
static inline void make_prompt(int32_t *out, int n, uint64_t seed, int vocab)
{
    uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (int i = 0; i < n; i++)
        out[i] = (int32_t)(next_word(&state) % (uint32_t)vocab);
}

static inline struct sample_conf asks_for(int samples, int max_tokens)
{
    return (struct sample_conf){.num_samples = samples,
                                .max_tokens = max_tokens,
                                .temperature = 1,
                                .top_k = -1,
                                .top_p = 1,
                                .seed = 11};
}

/* An adapter that has taken a step, so that B is not zero. */
static inline struct adapter *stepped_adapter(struct engine *en, int which)
{
    static const int lengths[] = {12, 3, 0};
    struct adapter *ad = new_adapter(en, which);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 99);
    train(en, &item, 1);
    optim(en, ad, 0);
    item_clear(&item);
    return ad;
}

static inline struct sample *add(struct engine *en, struct adapter *ad, const int32_t *prompt,
                                 int n, const struct sample_conf *conf)
{
    struct err e = {0};
    struct sample *s = engine_sample_add(en, ad, prompt, n, conf, &e);
    if (!s) fail_msg("%s", e.text);
    return s;
}

static inline int step(struct engine *en)
{
    struct err e = {0};
    int left = engine_sample_step(en, &e);
    if (left < 0) fail_msg("%s", e.text);
    return left;
}

static inline void finish(struct engine *en, struct sample *s, struct sample_result *out)
{
    for (int i = 0; i < 5000 && !sample_done(s); i++)
        step(en);
    assert_true(sample_done(s));
    sample_take(s, out);
    engine_sample_free(en, s);
}

static inline void run(struct engine *en, struct adapter *ad, const int32_t *prompt, int n,
                       const struct sample_conf *conf, struct sample_result *out)
{
    finish(en, add(en, ad, prompt, n, conf), out);
}

static inline void assert_same_floats(const float *a, const float *b, size_t n)
{
    assert_true(!a == !b);
    if (a) assert_memory_equal(a, b, n * sizeof *a);
}

static inline void assert_same_top(const struct top *a, const struct top *b, int n)
{
    size_t count = (size_t)n * (size_t)a->k;
    assert_int_equal(a->k, b->k);
    if (!a->k) return;
    assert_memory_equal(a->ids, b->ids, count * sizeof *a->ids);
    assert_same_floats(a->logprobs, b->logprobs, count);
}

static inline void assert_same_result(const struct sample_result *a, const struct sample_result *b,
                                      int targets)
{
    assert_int_equal(a->prompt_count, b->prompt_count);
    assert_same_floats(a->prompt_logprobs, b->prompt_logprobs, (size_t)a->prompt_count);
    assert_same_top(&a->prompt_top, &b->prompt_top, a->prompt_count);
    assert_same_top(&a->alt, &b->alt, a->prompt_count - 1);
    assert_same_floats(a->target_logprobs, b->target_logprobs, (size_t)targets);
    assert_int_equal(a->sequence_count, b->sequence_count);
    for (int i = 0; i < a->sequence_count; i++) {
        const struct sampled *p = &a->sequences[i], *q = &b->sequences[i];
        assert_int_equal(p->n, q->n);
        assert_int_equal(p->reason, q->reason);
        assert_memory_equal(p->tokens, q->tokens, (size_t)p->n * sizeof *p->tokens);
        assert_same_floats(p->logprobs, q->logprobs, (size_t)p->n);
        assert_same_top(&p->top, &q->top, p->n);
    }
}

/* Log-probabilities of targets [n - 1 of them] over tokens [n], by a forward pass of training. */
static inline void forward(struct engine *en, struct adapter *ad, const int32_t *tokens,
                           const int64_t *targets, int n, float *out)
{
    struct datum d = make_datum(en, n, LOSS_CROSS_ENTROPY, 1);
    memcpy((int32_t *)d.tokens, tokens, (size_t)n * sizeof *tokens);
    memcpy((int64_t *)d.targets, targets, (size_t)n * sizeof *targets);
    struct train_item item = {.adapter = ad,
                              .loss = {.kind = LOSS_CROSS_ENTROPY},
                              .forward_only = true,
                              .datums = &d,
                              .datum_count = 1};
    train(en, &item, 1);
    memcpy(out, d.out_logprobs, (size_t)n * sizeof *out);
    datum_clear(&d);
}

/* Every sampled token's log-probability is the one that training's forward pass gives it. */
static inline void assert_on_policy(struct engine *en, struct adapter *ad, const int32_t *prompt,
                                    int prompt_count, const struct sample_result *r)
{
    for (int i = 0; i < r->sequence_count; i++) {
        const struct sampled *q = &r->sequences[i];
        int n = prompt_count + q->n - 1;
        int32_t *tokens = malloc(((size_t)n + 1) * sizeof *tokens);
        int64_t *targets = malloc((size_t)n * sizeof *targets);
        float *logprobs = malloc((size_t)n * sizeof *logprobs);
        assert_true(tokens && targets && logprobs);
        memcpy(tokens, prompt, (size_t)prompt_count * sizeof *tokens);
        memcpy(tokens + prompt_count, q->tokens, (size_t)q->n * sizeof *tokens);
        for (int t = 0; t < n; t++)
            targets[t] = tokens[t + 1];
        forward(en, ad, tokens, targets, n, logprobs);
        assert_same_floats(logprobs + prompt_count - 1, q->logprobs, (size_t)q->n);
        free(tokens), free(targets), free(logprobs);
    }
}

#endif

/* world.h - a small random model, adapters and data for tests of the whole engine. */
#ifndef TESTS_ENGINE_WORLD_H
#define TESTS_ENGINE_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/engine.h"
#include "engine/model.h"
#include "folder.h"

/* Sizes that fill no tile: they find what round ones hide. */
#define ODD_MODEL                                                                                  \
    "--vocab 1100 --hidden 44 --layers 3 --heads 6 --kv-heads 2 --head-dim 10 "                    \
    "--intermediate 90 --context 400 --tied false"
#define TINY_MODEL "--preset tiny --context 300"

/* Makes a model in the folder "model" of a directory of its own; folder_remove() takes it away. */
static inline struct folder world_make(const char *options)
{
    struct folder f = folder_create();
    char command[1024];
    snprintf(command, sizeof command,
             "%s make %s --tokenizer %s --out %s/model --seed 7 2>/dev/null", MODEL_TOOL, options,
             TOKENIZER, f.path);
    assert_int_equal(system(command), 0);
    return f;
}

/* The tests of laws hold on any device: tests/cuda runs some of them on an emulated GPU. */
static inline const char *test_device(void)
{
    const char *device = getenv("TINWORKS_TEST_DEVICE");
    return device ? device : "cpu";
}

/* A GPU keeps keys and values in bf16 whatever the weights are in, so there a loss does not follow
 * small steps of the weights, and sums that are equal on paper agree by fewer digits. */
static inline bool on_cpu(void)
{
    return !strcmp(test_device(), "cpu");
}

static inline struct engine *open_conf(const struct engine_conf *conf)
{
    struct err e = {0};
    struct engine *en = engine_open(conf, &e);
    if (!en) fail_msg("%s", e.text);
    return en;
}

static inline struct engine *open_engine(const struct folder *folder, int threads, size_t scratch,
                                         size_t kv)
{
    char model[300];
    snprintf(model, sizeof model, "%s/model", folder->path);
    struct engine_conf conf = {.model_dir = model,
                               .device = test_device(),
                               .threads = threads,
                               .scratch_bytes_max = scratch,
                               .kv_bytes_max = kv};
    return open_conf(&conf);
}

/* Adapters differ in rank and in what they train. */
static const struct lora_conf confs[] = {{8, true, true, true},
                                         {3, true, false, false},
                                         {17, false, true, true},
                                         {32, false, false, true}};

static inline struct adapter *new_adapter(struct engine *en, int which)
{
    struct err e = {0};
    struct adapter *ad = adapter_create(en, &confs[which], (uint64_t)which + 1, &e);
    if (!ad) fail_msg("%s", e.text);
    return ad;
}

static inline void digest_of(const struct adapter *ad, char out[65])
{
    struct err e = {0};
    if (adapter_digest(ad, out, &e) < 0) fail_msg("%s", e.text);
}

static inline float *part_at(const struct adapter *ad, enum part part)
{
    if (part < PART_M) return ad->memory + (size_t)part * ad->part_count;
    return ad->moments + (size_t)(part - PART_M) * ad->part_count;
}

/* A part of the state of an adapter on one rank, as its device has it: part_count floats, padding
 * included.  The caller frees the copy. */
static inline float *part_get(const struct adapter *ad, enum part part)
{
    float *copy = malloc(ad->part_count * sizeof *copy);
    assert_non_null(copy);
    ad->ops->download(ad->dev, copy, part_at(ad, part), ad->part_count * sizeof *copy);
    return copy;
}

static inline void part_put(struct adapter *ad, enum part part, const float *from)
{
    ad->ops->upload(ad->dev, part_at(ad, part), from, ad->part_count * sizeof *from);
}

static inline uint32_t next_word(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static inline float next_float(uint64_t *state)
{
    return (float)next_word(state) / 1073741824.0f - 1.0f;
}

/* A datum of n tokens for a loss; some weights and advantages are zero.  datum_clear() frees. */
static inline struct datum make_datum(const struct engine *en, int n, enum loss_kind kind,
                                      uint64_t seed)
{
    uint64_t state = seed;
    int vocab = engine_info(en)->vocab;
    size_t count = (size_t)n;
    int32_t *tokens = malloc(count * sizeof *tokens);
    int64_t *targets = malloc(count * sizeof *targets);
    float *numbers[4];
    for (int k = 0; k < 4; k++) {
        numbers[k] = malloc(count * sizeof(float));
        assert_non_null(numbers[k]);
    }
    assert_true(tokens && targets);
    for (int i = 0; i < n; i++) {
        bool zero = next_word(&state) % 3 == 0;
        tokens[i] = (int32_t)(next_word(&state) % (uint32_t)vocab);
        targets[i] = (int64_t)(next_word(&state) % (uint32_t)vocab);
        numbers[0][i] = zero ? 0 : next_float(&state);
        numbers[1][i] = -7 + next_float(&state);
        numbers[2][i] = zero ? 0 : next_float(&state);
        numbers[3][i] = NAN;
    }
    bool ce = kind == LOSS_CROSS_ENTROPY;
    struct datum d = {.n = n, .tokens = tokens, .targets = targets, .out_logprobs = numbers[3]};
    d.weights = numbers[0];
    d.logprobs = ce ? NULL : numbers[1];
    d.advantages = ce ? NULL : numbers[2];
    if (ce) free(numbers[1]), free(numbers[2]);
    return d;
}

static inline void datum_clear(struct datum *d)
{
    free((void *)d->tokens);
    free((void *)d->targets);
    free((void *)d->weights);
    free((void *)d->logprobs);
    free((void *)d->advantages);
    free(d->out_logprobs);
}

/* An item of the given lengths (0 ends them), seeded. */
static inline struct train_item make_item(const struct engine *en, struct adapter *ad,
                                          enum loss_kind kind, const int *lengths, uint64_t seed)
{
    struct train_item item = {.adapter = ad, .loss = loss_defaults(kind)};
    while (lengths[item.datum_count])
        item.datum_count++;
    item.datums = calloc((size_t)item.datum_count, sizeof *item.datums);
    assert_non_null(item.datums);
    for (int i = 0; i < item.datum_count; i++)
        item.datums[i] = make_datum(en, lengths[i], kind, seed * 1000 + (uint64_t)i);
    return item;
}

static inline void item_clear(struct train_item *item)
{
    for (int i = 0; i < item->datum_count; i++)
        datum_clear(&item->datums[i]);
    free(item->datums);
}

static inline void train(struct engine *en, struct train_item *items, int count)
{
    struct err e = {0};
    for (int i = 0; i < count; i++)
        if (engine_train_check(en, &items[i], &e) < 0) fail_msg("%s", e.text);
    if (engine_train(en, items, count, &e) < 0) fail_msg("%s", e.text);
}

static inline double optim(struct engine *en, struct adapter *ad, double clip)
{
    struct adam_params p = {.learning_rate = 1e-2,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-12,
                            .weight_decay = 0.01,
                            .grad_clip_norm = clip};
    struct err e = {0};
    double norm;
    if (adapter_optim_step(en, ad, &p, &norm, &e) < 0) fail_msg("%s", e.text);
    return norm;
}

#endif

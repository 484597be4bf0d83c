/* story.h - a training run as numbers, and how far two of them may be apart that sum in other
 * orders (test_ranks.c says why so far). */
#ifndef TESTS_ENGINE_STORY_H
#define TESTS_ENGINE_STORY_H

#include "engine/inside.h"
#include "sampler.h"

/* Sizes that fill no tile once they are cut: 2 or 4 parts of each. */
#define CUT_MODEL                                                                                  \
    "--vocab 1100 --hidden 44 --layers 2 --heads 8 --kv-heads 4 --head-dim 10 "                    \
    "--intermediate 92 --context 400 --tied "

#define LOGPROB_LIMIT  2e-5
#define GRADIENT_LIMIT 1e-4

#define STEPS 10
#define ITEMS 3
static const int lengths[ITEMS][4] = {{70, 3, 0}, {1, 129, 0}, {40, 64, 2, 0}};
static const enum loss_kind losses[ITEMS] = {LOSS_CROSS_ENTROPY, LOSS_PPO, LOSS_GSPO};

/* All numbers of a part of an adapter's state, tensors one after another; the caller frees. */
static inline float *numbers_of(const struct adapter *ad, enum part part, size_t *count)
{
    float *out = malloc(ad->part_count * (size_t)ad->rank_count * sizeof *out);
    assert_non_null(out);
    *count = 0;
    for (int i = 0; i < ad->site_count; i++)
        for (int b = 0; b < 2 && ad->sites[i].a; b++) {
            int64_t rows, cols;
            adapter_tensor_size(ad, i, b, &rows, &cols);
            adapter_tensor_get(ad, i, part, b, 0, out + *count, (size_t)(rows * cols));
            *count += (size_t)(rows * cols);
        }
    return out;
}

struct story {
    float *logprobs;            /* of all steps */
    size_t logprob_count, count;
    float *gradient, *weights;  /* [count] before the second step; after the last */
    float *begin;               /* [count] the weights at first */
    double norms[STEPS];
    char digest[65];
};

static inline void train_items(struct engine *en, struct adapter *ad, int seed, float *logprobs,
                               size_t *count)
{
    struct train_item items[ITEMS];
    for (int i = 0; i < ITEMS; i++)
        items[i] = make_item(en, ad, losses[i], lengths[i], (uint64_t)(10 * seed + i));
    train(en, items, ITEMS);
    for (int i = 0; i < ITEMS; i++) {
        for (int d = 0; logprobs && d < items[i].datum_count; d++) {
            const struct datum *datum = &items[i].datums[d];
            memcpy(logprobs + *count, datum->out_logprobs, (size_t)datum->n * sizeof *logprobs);
            *count += (size_t)datum->n;
        }
        item_clear(&items[i]);
    }
}

/* eps is that of torch: the smallest gradients, which are nothing but noise, must not be blown up
 * to whole steps. */
static inline double gentle_step(struct engine *en, struct adapter *ad)
{
    struct adam_params p = {.learning_rate = 2e-3,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.01,
                            .grad_clip_norm = 0.5};
    struct err e = {0};
    double norm;
    if (adapter_optim_step(en, ad, &p, &norm, &e) < 0) fail_msg("%s", e.text);
    return norm;
}

static inline struct story story_of(struct engine *en, int which)
{
    struct story s = {0};
    struct adapter *ad = new_adapter(en, which);
    size_t n;
    s.logprobs = malloc(STEPS * 1000 * sizeof *s.logprobs);
    assert_non_null(s.logprobs);
    s.begin = numbers_of(ad, PART_WEIGHTS, &n);
    for (int i = 0; i < STEPS; i++) {
        train_items(en, ad, i, s.logprobs, &s.logprob_count);
        if (i == 1) s.gradient = numbers_of(ad, PART_GRADIENT, &s.count);
        s.norms[i] = gentle_step(en, ad);
    }
    s.weights = numbers_of(ad, PART_WEIGHTS, &n);
    assert_int_equal(n, s.count);
    digest_of(ad, s.digest);
    adapter_free(ad);
    return s;
}

static inline void story_clear(struct story *s)
{
    free(s->logprobs), free(s->gradient), free(s->weights), free(s->begin);
}

/* sqrt(sum (a - b)^2 / sum (b - c)^2) */
static inline double distance(const float *a, const float *b, const float *c, size_t n)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        all += ((double)b[i] - (double)c[i]) * ((double)b[i] - (double)c[i]);
    }
    assert_true(all > 0);
    return sqrt(off / all);
}

static inline void assert_same_story(const struct story *s, const struct story *one,
                                     const char *name)
{
    double logprob[2] = {0}, gradient = 0, largest = 0, norm = 0;
    size_t first = s->logprob_count / STEPS; /* all steps have as many */
    assert_int_equal(s->logprob_count, one->logprob_count);
    assert_int_equal(s->count, one->count);
    for (size_t i = 0; i < s->logprob_count; i++)
        logprob[i >= first] =
            fmax(logprob[i >= first], fabs((double)s->logprobs[i] - (double)one->logprobs[i]));
    for (size_t i = 0; i < s->count; i++) {
        largest = fmax(largest, fabs((double)one->gradient[i]));
        gradient = fmax(gradient, fabs((double)s->gradient[i] - (double)one->gradient[i]));
    }
    for (int i = 0; i < STEPS; i++)
        norm = fmax(norm, fabs(s->norms[i] / one->norms[i] - 1));
    double way = distance(s->weights, one->weights, one->begin, s->count);
    printf("    %s and 1: logprobs %.2e, after steps %.2e; gradient %.2e, norm %.2e, "
           "way of weights %.2e\n",
           name, logprob[0], logprob[1], gradient / largest, norm, way);
    assert_true(logprob[0] <= LOGPROB_LIMIT);
    assert_true(logprob[1] <= 10 * LOGPROB_LIMIT);
    assert_true(gradient <= GRADIENT_LIMIT * largest);
    assert_true(norm <= 10 * GRADIENT_LIMIT);
    assert_true(way <= 10 * GRADIENT_LIMIT);
    assert_true(memcmp(s->weights, one->begin, s->count * sizeof(float)) != 0);
}

/* ------------------------------------------------------------------ files */

static inline struct adapter *load(struct engine *en, const char *dir, const char *sha256)
{
    struct err e = {0};
    struct adapter *ad = adapter_load(en, dir, sha256, true, true, &e);
    if (!ad) fail_msg("%s", e.text);
    return ad;
}

static inline void save(const struct adapter *ad, const char *dir, char sha256[65])
{
    struct err e = {0};
    int64_t size;
    if (adapter_save(ad, dir, true, &size, sha256, &e) < 0) fail_msg("%s", e.text);
}

/* Leaves an adapter with a gradient pending in the folder `dir`. */
static inline void save_pending(struct engine *en, const char *dir, char digest[65],
                                char sha256[65])
{
    struct adapter *ad = stepped_adapter(en, 0);
    train_items(en, ad, 3, NULL, NULL);
    digest_of(ad, digest);
    save(ad, dir, sha256);
    adapter_free(ad);
}

/* What save_pending() left is the same state here, and the same files when it is saved again. */
static inline void assert_loads_alike(struct engine *en, const struct folder *f, const char *saved,
                                      const char *again, const char *digest, const char *sha256)
{
    char loaded[65], hash[65];
    struct adapter *ad = load(en, folder_at(f, saved), sha256);
    assert_true(adapter_has_gradient(ad));
    digest_of(ad, loaded);
    assert_string_equal(loaded, digest);
    save(ad, folder_at(f, again), hash);
    assert_string_equal(hash, sha256);
    adapter_free(ad);
}

#endif

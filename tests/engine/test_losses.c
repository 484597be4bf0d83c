/* The losses: values and slopes worked out here from the returned log-probabilities, [n, K]
 * targets, the laws for both, and what is refused. */
#include "world.h"

#include "engine/train.h"

static struct folder folder;
static struct engine *en;

static int setup(void **state)
{
    folder = world_make(ODD_MODEL);
    en = open_engine(&folder, 2, 0, 0);
    return 0;
}

static int teardown(void **state)
{
    engine_close(en);
    folder_remove(&folder);
    return 0;
}

static const int lengths[] = {9, 70, 130, 0};
#define POSITIONS 209

/* Adapter 0 after a step, so that B is not zero. */
static struct adapter *warm_adapter(struct engine *engine, int which)
{
    struct adapter *ad = new_adapter(engine, which);
    static const int some[] = {40, 0};
    struct train_item item = make_item(engine, ad, LOSS_CROSS_ENTROPY, some, 99);
    train(engine, &item, 1);
    optim(engine, ad, 0);
    item_clear(&item);
    return ad;
}

/* ------------------------------------------------------------------ more data than world.h's */

/* Makes targets and weights [n, columns]; rows of both are drawn anew. */
static void widen(struct train_item *item, int columns, uint64_t seed)
{
    uint64_t state = seed;
    for (int k = 0; k < item->datum_count; k++) {
        struct datum *d = &item->datums[k];
        size_t cells = (size_t)d->n * (size_t)columns;
        int64_t *targets = malloc(cells * sizeof *targets);
        float *weights = malloc(cells * sizeof *weights);
        free((void *)d->targets), free((void *)d->weights), free(d->out_logprobs);
        d->out_logprobs = malloc(cells * sizeof(float));
        assert_true(targets && weights && d->out_logprobs);
        for (size_t i = 0; i < cells; i++) {
            targets[i] = (int64_t)(next_word(&state) % 1100);
            weights[i] = next_word(&state) % 3 == 0 ? 0 : next_float(&state) / (float)columns;
        }
        d->columns = columns;
        d->targets = targets;
        d->weights = weights;
    }
}

/* Bounds for each token, and a mask, in arrays that clear_all() frees. */
static void add_extras(struct train_item *item, bool clips, bool mask, uint64_t seed)
{
    uint64_t state = seed;
    for (int k = 0; k < item->datum_count; k++) {
        struct datum *d = &item->datums[k];
        size_t size = (size_t)d->n * sizeof(float);
        float *low = malloc(size), *high = malloc(size), *counts = malloc(size);
        assert_true(low && high && counts);
        for (int i = 0; i < d->n; i++) {
            low[i] = 0.7f + 0.2f * next_float(&state);
            high[i] = 1.3f + 0.2f * next_float(&state);
            counts[i] = (float)(next_word(&state) % 3) - 1; /* -1, 0, 1 */
        }
        counts[0] = 0.5f;
        d->clip_low = clips ? low : NULL;
        d->clip_high = clips ? high : NULL;
        d->sequence_ratio_mask = mask ? counts : NULL;
        if (!clips) free(low), free(high);
        if (!mask) free(counts);
    }
}

static void clear_all(struct train_item *item)
{
    for (int k = 0; k < item->datum_count; k++) {
        free((void *)item->datums[k].clip_low);
        free((void *)item->datums[k].clip_high);
        free((void *)item->datums[k].sequence_ratio_mask);
    }
    item_clear(item);
}

/* The ratios of world.h's data are anywhere; these are near 1, some on either side of it. */
static void near_policy(struct adapter *ad, struct train_item *item)
{
    item->forward_only = true;
    train(en, item, 1);
    item->forward_only = false;
    uint64_t state = 77;
    for (int k = 0; k < item->datum_count; k++)
        for (int i = 0; i < item->datums[k].n; i++)
            ((float *)item->datums[k].logprobs)[i] =
                item->datums[k].out_logprobs[i] + 0.4f * next_float(&state);
}

/* ------------------------------------------------------------------ the formulas, once more */

struct said {
    double value, slope;
};

static double sequence_ratio(const struct datum *d)
{
    double sum = 0, count = 0;
    for (int i = 0; i < d->n; i++)
        if (!d->sequence_ratio_mask || d->sequence_ratio_mask[i] != 0) {
            sum += (double)d->out_logprobs[i] - (double)d->logprobs[i];
            count += 1;
        }
    return exp(sum / count);
}

static struct said formula(const struct loss_conf *c, const struct datum *d, int i)
{
    double p = (double)d->out_logprobs[i], q = (double)d->logprobs[i], a = (double)d->advantages[i];
    double low = d->clip_low ? (double)d->clip_low[i] : c->clip_low;
    double high = d->clip_high ? (double)d->clip_high[i] : c->clip_high;
    double r = c->kind == LOSS_GSPO ? sequence_ratio(d) : exp(p - q);
    double inside = r < low ? low : r > high ? high : r;
    switch (c->kind) {
    case LOSS_IMPORTANCE_SAMPLING:
        return (struct said){-r * a, -r * a};
    case LOSS_CISPO:
        return (struct said){-inside * p * a, -inside * a};
    case LOSS_DRO:
        return (struct said){-(p * a - c->beta / 2 * (p - q) * (p - q)), -a + c->beta * (p - q)};
    default: /* ppo, gspo */
        if (inside * a < r * a) return (struct said){-inside * a, 0};
        return (struct said){-r * a, -r * a};
    }
}

static int clipped(const struct train_item *item)
{
    int count = 0;
    for (int k = 0; k < item->datum_count; k++)
        for (int i = 0; i < item->datums[k].n; i++) {
            struct said s = formula(&item->loss, &item->datums[k], i);
            count += item->datums[k].advantages[i] != 0 && s.slope == 0;
        }
    return count;
}

static void assert_value(const struct train_item *item)
{
    double want = 0;
    for (int k = 0; k < item->datum_count; k++)
        for (int i = 0; i < item->datums[k].n; i++)
            want += formula(&item->loss, &item->datums[k], i).value;
    if (!(fabs(item->out_loss - want) <= 1e-9 * fmax(1, fabs(want))))
        fail_msg("loss %d is %.12g, expected %.12g", item->loss.kind, item->out_loss, want);
}

static float *gradient_of(struct adapter *ad)
{
    return part_get(ad, PART_GRADIENT);
}

static double norm_of(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* A cross entropy whose weights are minus the slopes has the gradient of the loss.  What stands
 * still in a loss (sg) stands still there too, and bits are the same, because a slope is all that a
 * loss gives to the way back. */
static void assert_gradient(int which, struct train_item *item)
{
    struct adapter *ad = warm_adapter(en, which), *twin = warm_adapter(en, which);
    item->adapter = ad;
    for (int k = 0; k < item->datum_count; k++) /* nothing may be left from a pass before */
        for (int i = 0; i < item->datums[k].n; i++)
            item->datums[k].out_logprobs[i] = NAN;
    train(en, item, 1);
    float *got = gradient_of(ad);
    struct train_item frozen = *item;
    frozen.adapter = twin;
    frozen.loss = loss_defaults(LOSS_CROSS_ENTROPY);
    frozen.datums = calloc((size_t)item->datum_count, sizeof *frozen.datums);
    for (int k = 0; k < item->datum_count; k++) {
        struct datum *d = &frozen.datums[k];
        *d = item->datums[k];
        float *weights = malloc((size_t)d->n * sizeof *weights);
        for (int i = 0; i < d->n; i++)
            weights[i] = -(float)formula(&item->loss, &item->datums[k], i).slope;
        d->weights = weights;
        d->out_logprobs = malloc((size_t)d->n * sizeof(float));
    }
    train(en, &frozen, 1);
    float *want = gradient_of(twin);
    assert_true(norm_of(want, ad->part_count) > 0.1);
    assert_memory_equal(got, want, ad->part_count * sizeof *got);
    for (int k = 0; k < item->datum_count; k++) {
        assert_memory_equal(frozen.datums[k].out_logprobs, item->datums[k].out_logprobs,
                            (size_t)item->datums[k].n * sizeof(float));
        free((void *)frozen.datums[k].weights), free(frozen.datums[k].out_logprobs);
    }
    free(frozen.datums), free(got), free(want);
    adapter_free(ad), adapter_free(twin);
}

static void each_loss_has_its_value_and_its_gradient(void **state)
{
    static const struct {
        struct loss_conf conf;
        bool clips, mask;
    } cases[] = {
        {{LOSS_IMPORTANCE_SAMPLING, 0, 0, 0}, false, false},
        {{LOSS_PPO, 0.8, 1.2, 0}, false, false},
        {{LOSS_PPO, 0, 0, 0}, true, false},
        {{LOSS_CISPO, 0, 4, 0}, false, false},
        {{LOSS_CISPO, 0.9, 1.1, 0}, false, false},
        {{LOSS_CISPO, 0, 0, 0}, true, false},
        {{LOSS_DRO, 0, 0, 0.05}, false, false},
        {{LOSS_DRO, 0, 0, 0}, false, false},
        {{LOSS_GSPO, 1 - 3e-4, 1 + 4e-4, 0}, false, false},
        {{LOSS_GSPO, 0.99, 1.01, 0}, false, true},
        {{LOSS_GSPO, 0, 0, 0}, true, true},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int which = 0; which < 4; which += 2) {
            struct adapter *ad = warm_adapter(en, which);
            struct train_item item = make_item(en, ad, cases[c].conf.kind, lengths, 3);
            add_extras(&item, cases[c].clips, cases[c].mask, 5);
            item.loss = cases[c].conf;
            near_policy(ad, &item);
            assert_gradient(which, &item);
            assert_value(&item);
            if (item.loss.kind == LOSS_PPO) assert_in_range(clipped(&item), 20, POSITIONS - 60);
            clear_all(&item);
            adapter_free(ad);
        }
}

/* Only what is clipped on the side where it would gain is left out. */
static void gspo_keeps_or_drops_a_sequence_as_a_whole(void **state)
{
    struct adapter *ad = warm_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_GSPO, lengths, 3);
    near_policy(ad, &item);
    item.forward_only = true;
    for (int by = -1; by <= 1; by++) {
        for (int k = 0; k < item.datum_count; k++)
            for (int i = 0; i < item.datums[k].n; i++) {
                ((float *)item.datums[k].logprobs)[i] =
                    item.datums[k].out_logprobs[i] - 0.01f * (float)by;
                ((float *)item.datums[k].advantages)[i] = i % 2 ? 1 : -1;
            }
        train(en, &item, 1);
        assert_value(&item);
        /* Above the bounds the praised half is out, below them the blamed half. */
        int half = POSITIONS / 2, out = clipped(&item);
        assert_true(by == 0 ? out == 0 : out == (by > 0 ? half : POSITIONS - half));
    }
    clear_all(&item);
    adapter_free(ad);
}

static double loss_with(struct adapter *ad, struct train_item *item)
{
    item->adapter = ad;
    item->forward_only = true;
    train(en, item, 1);
    item->forward_only = false;
    return item->out_loss;
}

/* Along the gradient itself the loss must change by the gradient's norm; within 1 %, which the
 * loss's own rounding allows (see test_laws.c). */
static void assert_slope(struct train_item *item, int which)
{
    struct adapter *ad = warm_adapter(en, which);
    item->adapter = ad;
    train(en, item, 1);
    size_t n = ad->part_count;
    float *gradient = gradient_of(ad), *start = part_get(ad, PART_WEIGHTS);
    float *moved = part_get(ad, PART_WEIGHTS);
    double norm = norm_of(gradient, n), h = 2e-3 / norm, at[2];
    assert_true(norm > 0.1);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n; i++)
            moved[i] = (float)((double)start[i] + (side ? h : -h) * (double)gradient[i]);
        part_put(ad, PART_WEIGHTS, moved);
        at[side] = loss_with(ad, item);
    }
    double slope = (at[1] - at[0]) / (2 * h * norm);
    if (!(fabs(slope - norm) <= 0.01 * norm))
        fail_msg("loss %d adapter %d: slope %g, gradient norm %g", item->loss.kind, which, slope,
                 norm);
    free(start), free(gradient), free(moved);
    adapter_free(ad);
}

static void gradients_agree_with_finite_differences(void **state)
{
    static const int some[] = {70, 3, 0};
    if (!on_cpu()) return;
    for (int which = 0; which < 4; which++) {
        struct train_item dro = make_item(en, NULL, LOSS_DRO, some, 4);
        dro.loss.beta = 0.5;
        assert_slope(&dro, which);
        clear_all(&dro);
        for (int columns = 1; columns <= 20; columns += 19) {
            struct train_item wide = make_item(en, NULL, LOSS_CROSS_ENTROPY, some, 4);
            widen(&wide, columns, 8);
            assert_slope(&wide, which);
            clear_all(&wide);
        }
    }
}

/* ------------------------------------------------------------------ [n, K] */

static void one_column_has_the_bits_of_no_columns(void **state)
{
    struct adapter *flat = warm_adapter(en, 0), *wide = warm_adapter(en, 0);
    struct train_item one = make_item(en, flat, LOSS_CROSS_ENTROPY, lengths, 3), two = one;
    two.adapter = wide;
    two.datums = calloc(3, sizeof *two.datums);
    memcpy(two.datums, one.datums, 3 * sizeof *two.datums);
    for (int k = 0; k < 3; k++) {
        two.datums[k].columns = 1;
        two.datums[k].out_logprobs = malloc((size_t)lengths[k] * sizeof(float));
    }
    train(en, &one, 1);
    train(en, &two, 1);
    assert_true(one.out_loss == two.out_loss);
    char a[65], b[65];
    digest_of(flat, a), digest_of(wide, b);
    assert_string_equal(a, b);
    for (int k = 0; k < 3; k++) {
        assert_memory_equal(one.datums[k].out_logprobs, two.datums[k].out_logprobs,
                            (size_t)lengths[k] * sizeof(float));
        free(two.datums[k].out_logprobs);
    }
    free(two.datums);
    clear_all(&one);
    adapter_free(flat), adapter_free(wide);
}

/* Column by column: the log-probabilities are the same bits, the gradients add up. */
static void k_columns_are_k_calls(void **state)
{
    enum { K = 7 };
    static const int some[] = {65, 2, 0};
    struct adapter *ad = warm_adapter(en, 0), *sum = warm_adapter(en, 0);
    struct train_item wide = make_item(en, ad, LOSS_CROSS_ENTROPY, some, 4);
    widen(&wide, K, 8);
    for (int i = 0; i < 65 * K; i += K) /* an id may stand in a row twice */
        ((int64_t *)wide.datums[0].targets)[i + 1] = wide.datums[0].targets[i];
    train(en, &wide, 1);
    double loss = 0;
    for (int c = 0; c < K; c++) {
        struct train_item one = make_item(en, sum, LOSS_CROSS_ENTROPY, some, 4);
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < some[k]; i++) {
                ((int64_t *)one.datums[k].targets)[i] = wide.datums[k].targets[i * K + c];
                ((float *)one.datums[k].weights)[i] = wide.datums[k].weights[i * K + c];
            }
        train(en, &one, 1);
        loss += one.out_loss;
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < some[k]; i++)
                assert_memory_equal(&one.datums[k].out_logprobs[i],
                                    &wide.datums[k].out_logprobs[i * K + c], sizeof(float));
        clear_all(&one);
    }
    assert_true(fabs(loss - wide.out_loss) < 1e-9 * fmax(1, fabs(loss)));
    float *got = gradient_of(ad), *want = gradient_of(sum);
    double off = 0, norm = norm_of(want, ad->part_count);
    for (size_t i = 0; i < ad->part_count; i++)
        off += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
    if (!(sqrt(off) <= (on_cpu() ? 1e-5 : 1e-2) * norm)) fail_msg("off by %g of %g", sqrt(off), norm);
    free(got), free(want);
    clear_all(&wide);
    adapter_free(ad), adapter_free(sum);
}

/* What a loss worked out by the client asks for: all log-probabilities, no gradient. */
static void weights_of_zero_give_logprobs_and_no_gradient(void **state)
{
    struct adapter *ad = warm_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    widen(&item, 3, 8);
    for (int k = 0; k < 3; k++) {
        memset((void *)item.datums[k].weights, 0, (size_t)lengths[k] * 3 * sizeof(float));
        for (int i = 0; i < lengths[k] * 3; i++)
            item.datums[k].out_logprobs[i] = NAN;
    }
    train(en, &item, 1);
    assert_true(item.out_loss == 0);
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < lengths[k] * 3; i++)
            assert_true(isfinite(item.datums[k].out_logprobs[i]) &&
                        item.datums[k].out_logprobs[i] < 0);
    assert_true(optim(en, ad, 0) == 0);
    clear_all(&item);
    adapter_free(ad);
}

/* ------------------------------------------------------------------ the laws */

static const int long_ones[] = {1, 64, 200, 5, 65, 0};
static const int short_ones[] = {130, 3, 0};
#define LAW_ITEMS 5

/* Adapter 0's work: sequence losses, wide targets of several widths, and plain ones between. */
static void make_work(struct engine *engine, struct adapter *ad, struct train_item *out)
{
    out[0] = make_item(engine, ad, LOSS_GSPO, long_ones, 1);
    add_extras(&out[0], true, true, 2);
    out[1] = make_item(engine, ad, LOSS_CROSS_ENTROPY, long_ones, 3);
    widen(&out[1], 100, 4); /* three blocks of them pass what a chunk of the head holds */
    out[2] = make_item(engine, ad, LOSS_CISPO, short_ones, 5);
    out[3] = make_item(engine, ad, LOSS_CROSS_ENTROPY, short_ones, 6);
    widen(&out[3], ENGINE_TARGETS_MAX, 7);
    out[4] = make_item(engine, ad, LOSS_DRO, short_ones, 8);
}

struct outcome {
    char gradient[65];
    double loss[LAW_ITEMS];
    uint64_t logprobs; /* a sum of all bits; order within it counts */
};

static void note(struct adapter *ad, const struct train_item *items, struct outcome *out)
{
    out->logprobs = 0;
    float *gradient = gradient_of(ad);
    assert_true(isfinite(norm_of(gradient, ad->part_count)));
    free(gradient);
    digest_of(ad, out->gradient);
    for (int i = 0; i < LAW_ITEMS; i++) {
        out->loss[i] = items[i].out_loss;
        for (int k = 0; k < items[i].datum_count; k++) {
            const struct datum *d = &items[i].datums[k];
            for (int c = 0; c < d->n * (d->columns ? d->columns : 1); c++) {
                uint32_t bits;
                assert_true(isfinite(d->out_logprobs[c]));
                memcpy(&bits, &d->out_logprobs[c], sizeof bits);
                out->logprobs = out->logprobs * UINT64_C(6364136223846793005) + bits + 1;
            }
        }
    }
}

static void assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_string_equal(a->gradient, b->gradient);
    assert_true(a->logprobs == b->logprobs);
    for (int i = 0; i < LAW_ITEMS; i++)
        assert_true(isfinite(a->loss[i]) && a->loss[i] == b->loss[i]);
}

static void run_alone(int threads, size_t scratch, struct outcome *out)
{
    struct engine *engine = open_engine(&folder, threads, scratch, 0);
    struct adapter *ad = warm_adapter(engine, 0);
    struct train_item items[LAW_ITEMS];
    make_work(engine, ad, items);
    for (int i = 0; i < LAW_ITEMS; i++)
        train(engine, &items[i], 1);
    note(ad, items, out);
    for (int i = 0; i < LAW_ITEMS; i++)
        clear_all(&items[i]);
    adapter_free(ad);
    engine_close(engine);
}

/* The same items in one call with others' before, between and after them. */
static void run_in_company(int threads, size_t scratch, struct outcome *out)
{
    struct engine *engine = open_engine(&folder, threads, scratch, 0);
    struct adapter *ads[3];
    for (int i = 0; i < 3; i++)
        ads[i] = warm_adapter(engine, i);
    struct train_item items[LAW_ITEMS], all[2 * LAW_ITEMS + 1];
    make_work(engine, ads[0], items);
    static const enum loss_kind others[] = {LOSS_PPO, LOSS_GSPO, LOSS_CROSS_ENTROPY, LOSS_GSPO,
                                            LOSS_CROSS_ENTROPY, LOSS_DRO};
    for (int i = 0; i <= LAW_ITEMS; i++) {
        struct train_item *other = &all[2 * i];
        *other = make_item(engine, ads[i == 3 ? 0 : 1 + i % 2], others[i],
                           i % 2 ? short_ones : long_ones, 20 + (uint64_t)i);
        other->forward_only = i == 3; /* adapter 0 too, without a gradient */
        if (others[i] == LOSS_CROSS_ENTROPY) widen(other, 3 * i, 9);
        if (i < LAW_ITEMS) all[2 * i + 1] = items[i];
    }
    train(engine, all, 2 * LAW_ITEMS + 1);
    for (int i = 0; i < LAW_ITEMS; i++)
        items[i] = all[2 * i + 1];
    note(ads[0], items, out);
    for (int i = 0; i < 2 * LAW_ITEMS + 1; i++)
        clear_all(&all[i]);
    for (int i = 0; i < 3; i++)
        adapter_free(ads[i]);
    engine_close(engine);
}

static void new_losses_and_wide_targets_keep_the_laws(void **state)
{
    struct outcome alone, other;
    size_t tight = train_bytes(en, 200, train_blocks(200), 32, true);
    run_alone(1, 0, &alone);
    for (int threads = 1; threads <= 3; threads++) {
        run_alone(threads, tight, &other);
        assert_same(&alone, &other);
        run_in_company(threads, 0, &other);
        assert_same(&alone, &other);
        run_in_company(threads, tight, &other);
        assert_same(&alone, &other);
    }
}

/* ------------------------------------------------------------------ settings and refusals */

static void each_loss_takes_its_own_settings(void **state)
{
    static const struct {
        const char *loss, *key, *says; /* says NULL: taken */
    } cases[] = {
        {"ppo", "clip_low_threshold", NULL},
        {"ppo", "clip_high_threshold", NULL},
        {"cispo", "clip_low_threshold", NULL},
        {"gspo", "clip_high_threshold", NULL},
        {"dro", "beta", NULL},
        {"ppo", "beta", "\"beta\", expected clip_low_threshold or clip_high_threshold"},
        {"gspo", "epsilon", "\"epsilon\", expected clip_low_threshold or clip_high_threshold"},
        {"dro", "clip_low_threshold", "expected beta for loss \"dro\""},
        {"cross_entropy", "beta", "expected nothing for loss \"cross_entropy\""},
        {"importance_sampling", "clip_low_threshold", "expected nothing for loss"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct loss_conf c = loss_defaults(loss_kind_of(cases[i].loss)), before = c;
        struct err e = {0};
        int rc = loss_set(&c, cases[i].key, 0.25, &e);
        assert_int_equal(rc, cases[i].says ? -1 : 0);
        assert_true(!memcmp(&before, &c, sizeof c) == !!cases[i].says);
        if (!cases[i].says) continue;
        assert_int_equal(e.kind, ERR_USER);
        if (!strstr(e.text, cases[i].says))
            fail_msg("\"%s\" does not say \"%s\"", e.text, cases[i].says);
    }
    struct loss_conf c = loss_defaults(LOSS_DRO);
    struct err e = {0};
    assert_int_equal(loss_set(&c, "beta", NAN, &e), -1);
    assert_non_null(strstr(e.text, "beta is nan, expected a finite number"));
    assert_true(c.beta == 0.05);
}

static void defaults_are_those_of_the_manual(void **state)
{
    struct loss_conf ppo = loss_defaults(LOSS_PPO), cispo = loss_defaults(LOSS_CISPO);
    struct loss_conf gspo = loss_defaults(LOSS_GSPO);
    assert_true(ppo.clip_low == 0.8 && ppo.clip_high == 1.2);
    assert_true(cispo.clip_low == 0 && cispo.clip_high == 4);
    assert_true(gspo.clip_low == 1 - 3e-4 && gspo.clip_high == 1 + 4e-4);
    assert_true(loss_defaults(LOSS_DRO).beta == 0.05);
    for (int k = 0; k < LOSS_UNKNOWN; k++)
        assert_int_equal(loss_defaults((enum loss_kind)k).kind, k);
    static const char *const names[] = {"cross_entropy", "importance_sampling", "ppo",
                                        "cispo",         "dro",                 "gspo"};
    for (int k = 0; k < 6; k++) {
        assert_int_equal(loss_kind_of(names[k]), k);
        assert_non_null(strstr(loss_names(), names[k]));
    }
}

static void refused(const struct train_item *item, const char *says)
{
    struct err e = {0};
    assert_int_equal(engine_train_check(en, item, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void missing_and_senseless_inputs_are_refused_by_datum_tensor_and_loss(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_GSPO, lengths, 3), bad;
    add_extras(&item, true, true, 4);
    struct datum *d = &item.datums[1], keep = *d;
    d->logprobs = NULL, refused(&item, "datum 1 has no \"logprobs\", which loss \"gspo\" needs");
    *d = keep, d->advantages = NULL, refused(&item, "datum 1 has no \"advantages\"");
    *d = keep, d->columns = 2;
    refused(&item, "datum 1 has target_tokens of shape [70, 2], loss \"gspo\" takes [70]");
    *d = keep;
    float *low = (float *)d->clip_low, *mask = (float *)d->sequence_ratio_mask, at = low[7];
    low[7] = 2, refused(&item, "datum 1 has clip thresholds 2 and");
    low[7] = -0.1f, refused(&item, "at position 7, expected 0 <= low <= high");
    low[7] = NAN, refused(&item, "datum 1 has clip_low_threshold[7] = nan");
    low[7] = at;
    d->clip_low = NULL, item.loss.clip_low = 1.9, refused(&item, "clip thresholds are 1.9 and 1.0");
    item.loss.clip_high = 2, refused(&item, "datum 1 has clip thresholds 1.9 and"); /* mixed */
    *d = keep, item.loss = loss_defaults(LOSS_GSPO);
    mask[3] = INFINITY, refused(&item, "datum 1 has sequence_ratio_mask[3] = inf");
    memset(mask, 0, 70 * sizeof *mask);
    refused(&item, "datum 1 has a sequence_ratio_mask of 0 everywhere");
    memset((void *)d->advantages, 0, 70 * sizeof(float)); /* then nothing needs the ratio */
    train(en, &item, 1);
    assert_true(isfinite(item.out_loss));
    bad = item, bad.loss = loss_defaults(LOSS_DRO), bad.loss.beta = -1;
    refused(&bad, "beta is -1, expected a finite number >= 0");
    /* What a loss does not read is not looked at. */
    low[7] = NAN;
    bad.loss = loss_defaults(LOSS_DRO);
    train(en, &bad, 1);
    clear_all(&item);
    adapter_free(ad);
}

static void wide_targets_are_checked_cell_by_cell(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    widen(&item, 3, 8);
    struct datum *d = &item.datums[2];
    int64_t *target = (int64_t *)&d->targets[130 * 3 - 1], keep = *target;
    *target = 1100;
    refused(&item, "datum 2 has target token id 1100 at position 129, column 2, expected 0 to");
    *target = keep;
    ((float *)d->weights)[130 * 3 - 2] = NAN;
    refused(&item, "datum 2 has weights[388] = nan");
    d->columns = ENGINE_TARGETS_MAX + 1;
    refused(&item, "datum 2 has 257 target_tokens a position, expected 1 to 256");
    d->columns = -1, refused(&item, "-1 target_tokens");
    d->columns = 3;
    clear_all(&item);
    adapter_free(ad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_loss_has_its_value_and_its_gradient),
        cmocka_unit_test(gspo_keeps_or_drops_a_sequence_as_a_whole),
        cmocka_unit_test(gradients_agree_with_finite_differences),
        cmocka_unit_test(one_column_has_the_bits_of_no_columns),
        cmocka_unit_test(k_columns_are_k_calls),
        cmocka_unit_test(weights_of_zero_give_logprobs_and_no_gradient),
        cmocka_unit_test(new_losses_and_wide_targets_keep_the_laws),
        cmocka_unit_test(each_loss_takes_its_own_settings),
        cmocka_unit_test(defaults_are_those_of_the_manual),
        cmocka_unit_test(missing_and_senseless_inputs_are_refused_by_datum_tensor_and_loss),
        cmocka_unit_test(wide_targets_are_checked_cell_by_cell),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* test_bf16.c - a base kept in bf16 beside the same base kept in fp32: how far apart they may be.
 *
 * Both hold the same weights, so what differs is that the rows that enter a product of the base are
 * rounded to bf16: each number by at most u = 2^-9 of itself, evenly spread, so by u / sqrt(3) rms,
 * and a product's sum of many such errors, of either sign, is as far off as that.  On its way a row
 * passes four products in sequence in each layer (to q, k, v; o; gate and up; down) and the
 * unembedding.  Logits of these models have a spread of about 1, so
 *   rms error of a logit = u sqrt((4 layers + 1) / 3)
 * when every product's error counts in full.  The limits below are multiples of this number. */
#include "world.h"

#define U 0x1p-9

struct pair {
    struct folder folder;
    struct engine *full, *half; /* fp32 and bf16 */
};

static struct engine *open_kept(const struct folder *f, const char *weights)
{
    char model[300];
    snprintf(model, sizeof model, "%s/model", f->path);
    struct engine_conf conf = {
        .model_dir = model, .device = "cpu", .threads = 2, .weights = weights};
    struct err e = {0};
    struct engine *en = engine_open(&conf, &e);
    if (!en) fail_msg("%s", e.text);
    return en;
}

static struct pair open_pair(const char *options)
{
    struct pair p = {.folder = world_make(options)};
    p.full = open_kept(&p.folder, "fp32");
    p.half = open_kept(&p.folder, "auto");
    assert_string_equal(engine_info(p.full)->weights, "fp32");
    assert_string_equal(engine_info(p.half)->weights, "bf16");
    return p;
}

static void close_pair(struct pair *p)
{
    engine_close(p->full);
    engine_close(p->half);
    folder_remove(&p->folder);
}

static double logit_error(const struct engine *en)
{
    return U * sqrt((4.0 * engine_info(en)->layers + 1) / 3);
}

static void the_kinds_share_a_hash_and_differ_in_their_numerics_class(void **state)
{
    struct pair p = open_pair(ODD_MODEL " --dtype bf16");
    assert_string_equal(engine_info(p.full)->weights_sha256, engine_info(p.half)->weights_sha256);
    assert_non_null(strstr(engine_info(p.full)->numerics, "/fp32/"));
    assert_non_null(strstr(engine_info(p.half)->numerics, "/bf16/"));
    close_pair(&p);
}

/* ------------------------------------------------------------------ forward and backward */

static const int lengths[] = {1, 64, 200, 5, 65, 0};

/* One training pass of an adapter that took a step before; the gradient is left in it. */
static struct adapter *pass_of(struct engine *en, struct train_item *item)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item before = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 99);
    train(en, &before, 1);
    optim(en, ad, 0);
    item_clear(&before);
    *item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 1);
    train(en, item, 1);
    return ad;
}

/* A log-probability is a logit less the logarithm of a sum over all, whose errors average out.
 * AdamW's first step moves every weight by the learning rate whatever its gradient's size, so that
 * the adapters themselves differ where a gradient is near zero; they add about as much again.  Of
 * 335 numbers none should be beyond 5 times twice the rms. */
static void logprobs_are_as_near_as_rounding_allows(void **state)
{
    struct pair p = open_pair(ODD_MODEL " --dtype bf16");
    struct train_item full, half;
    struct adapter *a = pass_of(p.full, &full), *b = pass_of(p.half, &half);
    double most = 0, sum = 0;
    int n = 0;
    for (int i = 0; i < full.datum_count; i++)
        for (int k = 0; k < full.datums[i].n; k++, n++) {
            double error = fabs((double)full.datums[i].out_logprobs[k] -
                                (double)half.datums[i].out_logprobs[k]);
            most = fmax(most, error);
            sum += error * error;
        }
    double rms = sqrt(sum / n), want = 2 * logit_error(p.full);
    printf("    logprobs: rms error %.2e of %d, largest %.2e\n", rms, n, most);
    assert_true(rms > 0 && rms <= want && most <= 5 * want);
    item_clear(&full), item_clear(&half);
    adapter_free(a), adapter_free(b);
    close_pair(&p);
}

/* The way back passes as many products again, each with rounded rows. */
static void the_gradient_is_as_near_as_rounding_allows(void **state)
{
    struct pair p = open_pair(ODD_MODEL " --dtype bf16");
    struct train_item full, half;
    struct adapter *a = pass_of(p.full, &full), *b = pass_of(p.half, &half);
    double off = 0, all = 0;
    for (size_t i = a->part_count; i < 2 * a->part_count; i++) {
        double g = (double)a->memory[i], d = (double)b->memory[i] - g;
        off += d * d;
        all += g * g;
    }
    double error = sqrt(off / all);
    printf("    gradient: relative error %.2e\n", error);
    assert_true(error > 0 && error <= 4 * logit_error(p.full));
    item_clear(&full), item_clear(&half);
    adapter_free(a), adapter_free(b);
    close_pair(&p);
}

/* ------------------------------------------------------------------ a training run */

#define STEPS 30

/* Mean loss of a token, step by step: always the same four sequences, which it learns. */
static void run(struct engine *en, double losses[STEPS])
{
    static const int four[] = {40, 64, 100, 17, 0};
    const struct adam_params adam = {
        .learning_rate = 2e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, four, 3);
    struct err e = {0};
    double norm;
    for (int i = 0; i < item.datum_count; i++) {
        float *weights = (float *)item.datums[i].weights;
        for (int k = 0; k < item.datums[i].n; k++)
            weights[k] = 1;
    }
    for (int s = 0; s < STEPS; s++) {
        train(en, &item, 1);
        losses[s] = item.out_loss / (40 + 64 + 100 + 17);
        if (adapter_optim_step(en, ad, &adam, &norm, &e) < 0) fail_msg("%s", e.text);
    }
    item_clear(&item);
    adapter_free(ad);
}

/* The errors of 221 tokens average out; what the steps add up is held to twice a logit's error. */
static void a_training_run_follows_the_same_curve(void **state)
{
    struct pair p = open_pair(TINY_MODEL " --dtype bf16");
    double full[STEPS], half[STEPS], most = 0;
    run(p.full, full);
    run(p.half, half);
    for (int s = 0; s < STEPS; s++)
        most = fmax(most, fabs(full[s] - half[s]));
    printf("    loss: %.4f to %.4f in fp32, to %.4f in bf16; largest difference %.2e\n", full[0],
           full[STEPS - 1], half[STEPS - 1], most);
    assert_true(full[STEPS - 1] < 0.2 * full[0]);
    assert_true(most > 0 && most <= 2 * logit_error(p.full));
    close_pair(&p);
}

/* ------------------------------------------------------------------ adapters */

static void an_adapter_trained_on_bf16_is_fp32_and_loads_on_either(void **state)
{
    struct pair p = open_pair(ODD_MODEL " --dtype bf16");
    struct train_item item;
    struct adapter *ad = pass_of(p.half, &item);
    char dir[300], before[65], after[65], sha256[65];
    int64_t size;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/adapter", p.folder.path);
    if (adapter_save(ad, dir, true, &size, sha256, &e) < 0) fail_msg("%s", e.text);
    digest_of(ad, before);
    struct engine *const engines[] = {p.half, p.full};
    for (int i = 0; i < 2; i++) {
        struct adapter *again = adapter_load(engines[i], dir, sha256, true, true, &e);
        if (!again) fail_msg("%s", e.text);
        digest_of(again, after);
        assert_string_equal(before, after);
        adapter_free(again);
    }
    item_clear(&item);
    adapter_free(ad);
    close_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_kinds_share_a_hash_and_differ_in_their_numerics_class),
        cmocka_unit_test(logprobs_are_as_near_as_rounding_allows),
        cmocka_unit_test(the_gradient_is_as_near_as_rounding_allows),
        cmocka_unit_test(a_training_run_follows_the_same_curve),
        cmocka_unit_test(an_adapter_trained_on_bf16_is_fp32_and_loads_on_either),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

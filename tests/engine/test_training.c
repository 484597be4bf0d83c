/* Training's edges: the losses by hand, the optimizer's step, and what is refused. */
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

static const int lengths[] = {9, 70, 0};

static void losses_are_sums_of_the_formulas(void **state)
{
    for (int kind = 0; kind <= LOSS_PPO; kind++) { /* the others: test_losses.c */
        struct adapter *ad = new_adapter(en, 0);
        struct train_item item = make_item(en, ad, (enum loss_kind)kind, lengths, 3);
        item.loss.clip_low = 0.5;
        train(en, &item, 1);
        double want = 0;
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < item.datums[k].n; i++) {
                const struct datum *d = &item.datums[k];
                double p = (double)d->out_logprobs[i];
                assert_true(isfinite(p) && p < 0);
                if (kind == LOSS_CROSS_ENTROPY) {
                    want -= (double)d->weights[i] * p;
                    continue;
                }
                double r = exp(p - (double)d->logprobs[i]), a = (double)d->advantages[i];
                double c = r < 0.5 ? 0.5 : r > 1.2 ? 1.2 : r;
                want -= kind == LOSS_PPO && c * a < r * a ? c * a : r * a;
            }
        assert_true(fabs(item.out_loss - want) < 1e-9 * fmax(1, fabs(want)));
        item_clear(&item);
        adapter_free(ad);
    }
}

static void losses_go_by_their_names(void **state)
{
    assert_int_equal(loss_kind_of("cross_entropy"), LOSS_CROSS_ENTROPY);
    assert_int_equal(loss_kind_of("importance_sampling"), LOSS_IMPORTANCE_SAMPLING);
    assert_int_equal(loss_kind_of("ppo"), LOSS_PPO);
    assert_int_equal(loss_kind_of("stable_reinforce"), LOSS_UNKNOWN);
    assert_int_equal(loss_kind_of(NULL), LOSS_UNKNOWN);
    assert_non_null(strstr(loss_names(), "importance_sampling"));
}

static void a_clipped_ppo_token_has_no_gradient(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_PPO, lengths, 3);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < item.datums[k].n; i++) {
            ((float *)item.datums[k].logprobs)[i] = -100; /* the ratio is huge */
            ((float *)item.datums[k].advantages)[i] = 1;
        }
    train(en, &item, 1);
    assert_true(fabs(item.out_loss + 1.2 * 79) < 1e-9 * 79);
    assert_true(optim(en, ad, 0) == 0);
    item_clear(&item);
    adapter_free(ad);
}

static void a_long_run_of_steps_lowers_the_loss(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < item.datums[k].n; i++)
            ((float *)item.datums[k].weights)[i] = 1;
    double first = 0;
    for (int s = 0; s < 30; s++) {
        train(en, &item, 1);
        if (s == 0) first = item.out_loss;
        optim(en, ad, 0);
    }
    assert_true(fabs(first / 79 - log(1100)) < 1);
    assert_true(item.out_loss < first / 4);
    assert_int_equal(adapter_step(ad), 30);
    item_clear(&item);
    adapter_free(ad);
}

/* ------------------------------------------------------------------ the optimizer */

static void a_step_without_gradient_counts_and_only_decays(void **state)
{
    struct adapter *ad = new_adapter(en, 1);
    float before, after;
    adapter_tensor_get(ad, SITE_Q, PART_WEIGHTS, 0, 0, &before, 1);
    assert_false(adapter_has_gradient(ad));
    assert_true(optim(en, ad, 0) == 0);
    assert_int_equal(adapter_step(ad), 1);
    adapter_tensor_get(ad, SITE_Q, PART_WEIGHTS, 0, 0, &after, 1);
    assert_true(after == before * (float)(1 - 1e-2 * 0.01));
    adapter_free(ad);
}

static void clipping_scales_the_gradient_to_the_norm(void **state)
{
    struct adapter *ad = new_adapter(en, 1);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    train(en, &item, 1);
    double norm = optim(en, ad, 1e-3);
    assert_true(norm > 0.1);
    double square = 0; /* the first m is (1 - beta1) times the clipped gradient */
    float *m = part_get(ad, PART_M);
    for (size_t i = 0; i < ad->part_count; i++)
        square += (double)m[i] * (double)m[i] / 0.01;
    free(m);
    assert_true(fabs(sqrt(square) / 1e-3 - 1) < 1e-4);
    assert_false(adapter_has_gradient(ad));
    item_clear(&item);
    adapter_free(ad);
}

static void a_gradient_that_is_not_finite_is_dropped_and_said(void **state)
{
    struct adapter *ad = new_adapter(en, 1);
    struct train_item item = make_item(en, ad, LOSS_IMPORTANCE_SAMPLING, lengths, 3);
    char before[65], after[65];
    digest_of(ad, before);
    for (int i = 0; i < 9; i++) {
        ((float *)item.datums[0].logprobs)[i] = -1e30f; /* the ratio overflows */
        ((float *)item.datums[0].advantages)[i] = 1;
    }
    train(en, &item, 1);
    struct adam_params p = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    struct err e = {0};
    double norm;
    assert_int_equal(adapter_optim_step(en, ad, &p, &norm, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    digest_of(ad, after);
    assert_string_equal(before, after);
    item_clear(&item);
    adapter_free(ad);
}

static void adam_refused(struct adam_params p, const char *says)
{
    struct err e = {0};
    assert_int_equal(adam_params_check(&p, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void adam_parameters_out_of_range_are_refused_by_name(void **state)
{
    struct adam_params ok = {1e-4, 0.9, 0.95, 1e-12, 0, 0}, p;
    struct err e = {0};
    assert_int_equal(adam_params_check(&ok, &e), 0);
    p = ok, p.learning_rate = NAN, adam_refused(p, "learning_rate");
    p = ok, p.learning_rate = -1, adam_refused(p, "learning_rate is -1");
    p = ok, p.beta1 = 1, adam_refused(p, "beta1 is 1");
    p = ok, p.beta2 = 1.5, adam_refused(p, "beta2 is 1.5");
    p = ok, p.eps = -1e-9, adam_refused(p, "eps");
    p = ok, p.weight_decay = INFINITY, adam_refused(p, "weight_decay");
    p = ok, p.grad_clip_norm = -1, adam_refused(p, "grad_clip_norm");
}

/* ------------------------------------------------------------------ refusals */

static void refused(const struct train_item *item, const char *says)
{
    struct err e = {0};
    assert_int_equal(engine_train_check(en, item, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void bad_ids_are_refused_with_datum_and_value(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    int32_t *token = (int32_t *)&item.datums[1].tokens[69];
    int64_t *target = (int64_t *)&item.datums[0].targets[8];
    int32_t keep = *token;
    *token = 1100, refused(&item, "datum 1 has token id 1100 at position 69, expected 0 to 1099");
    *token = -1, refused(&item, "token id -1");
    *token = keep;
    *target = 5000000000, refused(&item, "datum 0 has target token id 5000000000 at position 8");
    *target = -7, refused(&item, "-7");
    item_clear(&item);
    adapter_free(ad);
}

static void missing_and_senseless_arrays_are_refused(void **state)
{
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_PPO, lengths, 3), bad = item;
    struct datum datums[2];
    bad.datums = datums;
    memcpy(datums, item.datums, sizeof datums);
    datums[1].logprobs = NULL, refused(&bad, "datum 1 has no \"logprobs\"");
    memcpy(datums, item.datums, sizeof datums);
    datums[0].advantages = NULL, refused(&bad, "datum 0 has no \"advantages\"");
    memcpy(datums, item.datums, sizeof datums);
    datums[0].targets = NULL, refused(&bad, "target_tokens");
    memcpy(datums, item.datums, sizeof datums);
    datums[0].n = 0, refused(&bad, "datum 0 is empty");
    datums[0].n = 401, refused(&bad, "401 tokens, expected at most 400");
    memcpy(datums, item.datums, sizeof datums);
    bad.loss.kind = LOSS_CROSS_ENTROPY, datums[0].weights = NULL;
    refused(&bad, "datum 0 has no \"weights\"");
    bad = item, bad.loss.clip_low = 2, refused(&bad, "clip thresholds are 2 and 1.2");
    bad = item, bad.loss.kind = LOSS_UNKNOWN, refused(&bad, "cross_entropy");
    bad = item, bad.datum_count = 0, refused(&bad, "no datum");
    bad = item, bad.adapter = NULL, refused(&bad, "sampling");
    ((float *)item.datums[0].advantages)[4] = NAN;
    refused(&item, "datum 0 has advantages[4] = nan");
    ((float *)item.datums[0].advantages)[4] = 0;
    ((float *)item.datums[1].logprobs)[1] = -INFINITY;
    refused(&item, "datum 1 has logprobs[1] = -inf");
    item_clear(&item);
    adapter_free(ad);
}

static void a_datum_that_memory_cannot_hold_is_refused_before_anything_changes(void **state)
{
    struct engine *roomy = en;
    size_t bytes = train_bytes(en, 70, train_blocks(70), 8, true);
    en = open_engine(&folder, 1, bytes - 1, 0);
    struct adapter *ad = new_adapter(en, 0);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 3);
    refused(&item, "datum 1 has 70 tokens");
    item.datum_count = 1;
    train(en, &item, 1);
    item.datum_count = 2;
    item_clear(&item);
    adapter_free(ad);
    engine_close(en);
    en = roomy;
}

static void an_unknown_device_is_refused(void **state)
{
    static const char *const names[] = {"gpu", "cuda:", "cuda:1x", "cuda:99", ""};
    char model[300];
    snprintf(model, sizeof model, "%s/model", folder.path);
    for (int i = 0; i < 5; i++) {
        struct err e = {0};
        struct engine_conf conf = {.model_dir = model, .device = names[i], .threads = 1};
        assert_null(engine_open(&conf, &e));
        assert_int_equal(e.kind, ERR_USER);
        assert_non_null(strstr(e.text, names[i]));
    }
    struct engine_conf conf = {.model_dir = model, .device = "cpu", .threads = 0};
    struct err e = {0};
    assert_null(engine_open(&conf, &e));
    assert_non_null(strstr(e.text, "threads"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_sums_of_the_formulas),
        cmocka_unit_test(losses_go_by_their_names),
        cmocka_unit_test(a_clipped_ppo_token_has_no_gradient),
        cmocka_unit_test(a_long_run_of_steps_lowers_the_loss),
        cmocka_unit_test(a_step_without_gradient_counts_and_only_decays),
        cmocka_unit_test(clipping_scales_the_gradient_to_the_norm),
        cmocka_unit_test(a_gradient_that_is_not_finite_is_dropped_and_said),
        cmocka_unit_test(adam_parameters_out_of_range_are_refused_by_name),
        cmocka_unit_test(bad_ids_are_refused_with_datum_and_value),
        cmocka_unit_test(missing_and_senseless_arrays_are_refused),
        cmocka_unit_test(a_datum_that_memory_cannot_hold_is_refused_before_anything_changes),
        cmocka_unit_test(an_unknown_device_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

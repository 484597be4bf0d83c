/* The engine's laws, held with ==: company, memory and threads do not show in training, and what a
 * sample reports is what a forward pass finds.  All of it on a base in fp32 and on one in bf16. */
#include "world.h"

#include "engine/train.h"

static struct folder folder;

static int setup_fp32(void **state)
{
    folder = world_make(ODD_MODEL);
    return 0;
}

static int setup_bf16(void **state)
{
    folder = world_make(ODD_MODEL " --dtype bf16");
    struct engine *en = open_engine(&folder, 1, 0, 0);
    bool kept = !strcmp(engine_info(en)->weights, "bf16");
    engine_close(en);
    return kept ? 0 : -1;
}

static int teardown(void **state)
{
    folder_remove(&folder);
    return 0;
}

/* ------------------------------------------------------------------ training */

static const int long_ones[] = {1, 64, 200, 5, 65, 0};
static const int short_ones[] = {130, 3, 0};

struct outcome {
    char gradient[65], trained[65];
    double loss[2];
    float logprobs[335];
};

/* Two calls' worth of data on adapter 0, then an optimizer step; what came of it. */
static void note(struct engine *en, struct adapter *ad, struct train_item *one,
                 struct train_item *two, struct outcome *out)
{
    digest_of(ad, out->gradient);
    optim(en, ad, 1.0);
    digest_of(ad, out->trained);
    out->loss[0] = one->out_loss;
    out->loss[1] = two->out_loss;
    int n = 0;
    for (int i = 0; i < one->datum_count; i++)
        for (int k = 0; k < one->datums[i].n; k++)
            out->logprobs[n++] = one->datums[i].out_logprobs[k];
    assert_int_equal(n, 335);
}

static void assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_string_equal(a->gradient, b->gradient);
    assert_string_equal(a->trained, b->trained);
    assert_true(a->loss[0] == b->loss[0] && a->loss[1] == b->loss[1]);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
}

/* Adapter 0 steps once before, so that B is not zero and A's gradient is not. */
static struct adapter *warm_adapter(struct engine *en, int which)
{
    struct adapter *ad = new_adapter(en, which);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, short_ones, 99);
    train(en, &item, 1);
    optim(en, ad, 0);
    item_clear(&item);
    return ad;
}

static void run_alone(int threads, size_t scratch, struct outcome *out)
{
    struct engine *en = open_engine(&folder, threads, scratch, 0);
    struct adapter *ad = warm_adapter(en, 0);
    struct train_item one = make_item(en, ad, LOSS_CROSS_ENTROPY, long_ones, 1);
    struct train_item two = make_item(en, ad, LOSS_PPO, short_ones, 2);
    train(en, &one, 1);
    train(en, &two, 1);
    note(en, ad, &one, &two, out);
    item_clear(&one), item_clear(&two);
    adapter_free(ad);
    engine_close(en);
}

static void run_in_company(int threads, size_t scratch, struct outcome *out)
{
    struct engine *en = open_engine(&folder, threads, scratch, 0);
    struct adapter *ads[4];
    for (int i = 0; i < 4; i++)
        ads[i] = warm_adapter(en, i);
    struct train_item items[] = {
        make_item(en, ads[3], LOSS_IMPORTANCE_SAMPLING, long_ones, 5),
        make_item(en, ads[0], LOSS_CROSS_ENTROPY, long_ones, 1),
        make_item(en, ads[1], LOSS_CROSS_ENTROPY, short_ones, 6),
        make_item(en, ads[0], LOSS_CROSS_ENTROPY, short_ones, 7),
        make_item(en, ads[0], LOSS_PPO, short_ones, 2),
        make_item(en, ads[2], LOSS_PPO, long_ones, 8),
    };
    items[3].forward_only = true;
    train(en, items, 6);
    note(en, ads[0], &items[1], &items[4], out);
    for (int i = 0; i < 6; i++)
        item_clear(&items[i]);
    for (int i = 0; i < 4; i++)
        adapter_free(ads[i]);
    engine_close(en);
}

/* Just enough for the longest datum of the widest adapter: every pass then holds few datums. */
static size_t tight_scratch(void)
{
    struct engine *en = open_engine(&folder, 1, 0, 0);
    size_t bytes = train_bytes(en, 200, train_blocks(200), 32, true);
    engine_close(en);
    return bytes;
}

static void training_has_the_same_bits_alone_in_company_in_pieces_and_on_any_threads(void **state)
{
    struct outcome alone, other;
    size_t tight = tight_scratch();
    run_alone(1, 0, &alone);
    assert_true(isfinite(alone.loss[0]) && isfinite(alone.loss[1]));
    for (int threads = 1; threads <= 3; threads++) {
        run_alone(threads, tight, &other);
        assert_same(&alone, &other);
        run_in_company(threads, 0, &other);
        assert_same(&alone, &other);
        run_in_company(threads, tight, &other);
        assert_same(&alone, &other);
    }
}

static void a_forward_pass_gives_the_same_logprobs_and_changes_nothing(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct adapter *ad = warm_adapter(en, 2);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, long_ones, 1);
    char before[65], after[65];
    item.forward_only = true;
    digest_of(ad, before);
    train(en, &item, 1);
    digest_of(ad, after);
    assert_string_equal(before, after);
    assert_false(adapter_has_gradient(ad));
    double loss = item.out_loss;
    float first[200];
    memcpy(first, item.datums[2].out_logprobs, sizeof first);
    item.forward_only = false;
    train(en, &item, 1);
    assert_true(adapter_has_gradient(ad));
    assert_true(loss == item.out_loss);
    assert_memory_equal(first, item.datums[2].out_logprobs, sizeof first);
    item_clear(&item);
    adapter_free(ad);
    engine_close(en);
}

static void the_bare_model_can_be_asked_for_logprobs(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct adapter *fresh = new_adapter(en, 0); /* B is zero: it changes nothing yet */
    struct train_item bare = make_item(en, NULL, LOSS_CROSS_ENTROPY, short_ones, 1);
    struct train_item with = make_item(en, fresh, LOSS_CROSS_ENTROPY, short_ones, 1);
    bare.forward_only = with.forward_only = true;
    train(en, &bare, 1);
    train(en, &with, 1);
    assert_memory_equal(bare.datums[0].out_logprobs, with.datums[0].out_logprobs,
                        130 * sizeof(float));
    item_clear(&bare), item_clear(&with);
    adapter_free(fresh);
    engine_close(en);
}

/* ------------------------------------------------------------------ gradients as a whole */

static double loss_at(struct engine *en, struct adapter *ad, enum loss_kind kind)
{
    struct train_item item = make_item(en, ad, kind, short_ones, 4);
    item.forward_only = true;
    train(en, &item, 1);
    double loss = item.out_loss;
    item_clear(&item);
    return loss;
}

static void step_along(struct adapter *ad, const float *start, const float *direction, double by)
{
    float *weights = part_get(ad, PART_WEIGHTS);
    for (size_t i = 0; i < ad->part_count; i++)
        weights[i] = (float)((double)start[i] + by * (double)direction[i]);
    part_put(ad, PART_WEIGHTS, weights);
    free(weights);
}

/* Along the gradient itself the loss must change by the gradient's norm.  The loss is a sum of some
 * dozens of terms of size 1 to 10, whose logits are good to 1e-6, so it carries an error near 1e-5;
 * at a step that moves it by some 1e-2 of its slope's length, 1 % says that the slope is right.
 * (In fp32 only: activations rounded to bf16 move in steps.  test_bf16.c compares its gradient.) */
static void the_gradient_is_the_slope_of_each_loss(void **state)
{
    if (!on_cpu()) return;
    struct engine *en = open_engine(&folder, 2, 0, 0);
    for (int kind = 0; kind <= LOSS_PPO; kind++) /* the others: test_losses.c */
        for (int which = 0; which < 4; which++) {
            struct adapter *ad = warm_adapter(en, which);
            struct train_item item = make_item(en, ad, (enum loss_kind)kind, short_ones, 4);
            train(en, &item, 1);
            size_t n = ad->part_count;
            float *start = part_get(ad, PART_WEIGHTS), *gradient = part_get(ad, PART_GRADIENT);
            double square = 0;
            for (size_t i = 0; i < n; i++)
                square += (double)gradient[i] * (double)gradient[i];
            double norm = sqrt(square), h = 2e-3 / norm;
            assert_true(norm > 0.1);
            step_along(ad, start, gradient, h);
            double above = loss_at(en, ad, (enum loss_kind)kind);
            step_along(ad, start, gradient, -h);
            double below = loss_at(en, ad, (enum loss_kind)kind);
            double slope = (above - below) / (2 * h * norm);
            if (fabs(slope - norm) > 0.01 * norm)
                fail_msg("loss %d adapter %d: slope %g, gradient norm %g", kind, which, slope,
                         norm);
            free(start), free(gradient);
            item_clear(&item);
            adapter_free(ad);
        }
    engine_close(en);
}

/* ------------------------------------------------------------------ samples */

struct request {
    int adapter; /* -1: none */
    int prompt;  /* tokens */
    struct sample_conf conf;
};

static struct sample *add(struct engine *en, struct adapter **ads, const struct request *r)
{
    int32_t prompt[400];
    uint64_t state = (uint64_t)r->prompt;
    for (int i = 0; i < r->prompt; i++)
        prompt[i] = (int32_t)(next_word(&state) % 1100);
    struct err e = {0};
    struct sample *s = engine_sample_add(en, r->adapter < 0 ? NULL : ads[r->adapter], prompt,
                                         r->prompt, &r->conf, &e);
    if (!s) fail_msg("%s", e.text);
    return s;
}

static void step(struct engine *en)
{
    struct err e = {0};
    if (engine_sample_step(en, &e) < 0) fail_msg("%s", e.text);
}

static void finish(struct engine *en, struct sample *s, struct sample_result *out)
{
    for (int i = 0; i < 1000 && !sample_done(s); i++)
        step(en);
    assert_true(sample_done(s));
    sample_take(s, out);
    engine_sample_free(en, s);
}

/* Feeds prompt and sample to a forward pass and compares what each position says. */
static void check_against_forward(struct engine *en, struct adapter **ads, const struct request *r,
                                  const struct sample_result *got, int index)
{
    const struct sampled *q = &got->sequences[index];
    int n = r->prompt + q->n - 1;
    struct datum d = make_datum(en, n, LOSS_CROSS_ENTROPY, 1);
    int32_t *tokens = (int32_t *)d.tokens;
    int64_t *targets = (int64_t *)d.targets;
    uint64_t state = (uint64_t)r->prompt;
    for (int i = 0; i < n; i++)
        tokens[i] = i < r->prompt ? (int32_t)(next_word(&state) % 1100) : q->tokens[i - r->prompt];
    for (int i = 0; i < n; i++)
        targets[i] = i < r->prompt - 1 ? tokens[i + 1] : q->tokens[i - r->prompt + 1];
    struct train_item item = {.adapter = r->adapter < 0 ? NULL : ads[r->adapter],
                              .loss = {.kind = LOSS_CROSS_ENTROPY},
                              .forward_only = true,
                              .datums = &d,
                              .datum_count = 1};
    train(en, &item, 1);
    assert_memory_equal(d.out_logprobs + r->prompt - 1, q->logprobs, (size_t)q->n * sizeof(float));
    if (r->conf.prompt_logprobs && r->prompt > 1)
        assert_memory_equal(d.out_logprobs, got->prompt_logprobs + 1,
                            (size_t)(r->prompt - 1) * sizeof(float));
    datum_clear(&d);
}

#define REQUESTS 6
static const struct request requests[REQUESTS] = {
    {0,
     1,
     {.num_samples = 3, .max_tokens = 70, .temperature = 1, .top_k = -1, .top_p = 1, .seed = 1}},
    {1, 63, {.num_samples = 2, .max_tokens = 5, .temperature = 0, .top_k = -1, .top_p = 1}},
    {2,
     64,
     {.num_samples = 2,
      .max_tokens = 66,
      .temperature = 0.7f,
      .top_k = 50,
      .top_p = 0.9f,
      .seed = 3,
      .prompt_logprobs = true}},
    {-1,
     65,
     {.num_samples = 4, .max_tokens = 3, .temperature = 1, .top_k = -1, .top_p = 1, .seed = 4}},
    {0,
     300,
     {.num_samples = 1,
      .max_tokens = -1,
      .temperature = 1,
      .top_k = -1,
      .top_p = 1,
      .seed = 5,
      .prompt_logprobs = true}},
    {3,
     150,
     {.num_samples = 2, .max_tokens = 1, .temperature = 1, .top_k = -1, .top_p = 1, .seed = 6}},
};

static void open_samplers(struct engine **en, struct adapter *ads[4], int threads, size_t scratch)
{
    *en = open_engine(&folder, threads, scratch, 0);
    for (int i = 0; i < 4; i++)
        ads[i] = warm_adapter(*en, i);
}

static void close_samplers(struct engine *en, struct adapter *ads[4])
{
    for (int i = 0; i < 4; i++)
        adapter_free(ads[i]);
    engine_close(en);
}

static void a_samples_logprobs_are_those_of_a_forward_pass(void **state)
{
    struct engine *en;
    struct adapter *ads[4];
    struct sample *s[REQUESTS];
    open_samplers(&en, ads, 2, 0);
    for (int i = 0; i < REQUESTS; i++)
        s[i] = add(en, ads, &requests[i]);
    for (int i = 0; i < REQUESTS; i++) {
        struct sample_result r;
        finish(en, s[i], &r);
        assert_int_equal(r.sequence_count, requests[i].conf.num_samples);
        for (int k = 0; k < r.sequence_count; k++)
            check_against_forward(en, ads, &requests[i], &r, k);
        sample_result_clear(&r);
    }
    close_samplers(en, ads);
}

static void assert_same_result(const struct sample_result *a, const struct sample_result *b)
{
    assert_int_equal(a->sequence_count, b->sequence_count);
    for (int i = 0; i < a->sequence_count; i++) {
        const struct sampled *p = &a->sequences[i], *q = &b->sequences[i];
        assert_int_equal(p->n, q->n);
        assert_int_equal(p->reason, q->reason);
        assert_memory_equal(p->tokens, q->tokens, (size_t)p->n * sizeof *p->tokens);
        assert_memory_equal(p->logprobs, q->logprobs, (size_t)p->n * sizeof *p->logprobs);
    }
    assert_true(!a->prompt_logprobs == !b->prompt_logprobs);
    if (a->prompt_logprobs)
        assert_memory_equal(a->prompt_logprobs + 1, b->prompt_logprobs + 1,
                            (size_t)(a->prompt_count - 1) * sizeof(float));
}

/* Alone on one thread and little memory; together, joining at different times, on two. */
static void a_request_samples_the_same_alone_and_in_company(void **state)
{
    struct engine *en, *crowd;
    struct adapter *ads[4], *crowd_ads[4];
    struct sample *s[REQUESTS];
    struct sample_result alone, together;
    open_samplers(&en, ads, 1, tight_scratch());
    open_samplers(&crowd, crowd_ads, 2, 0);
    for (int i = REQUESTS - 1; i >= 0; i--) {
        s[i] = add(crowd, crowd_ads, &requests[i]);
        step(crowd);
        if (i % 2) step(crowd);
    }
    for (int i = 0; i < REQUESTS; i++) {
        finish(en, add(en, ads, &requests[i]), &alone);
        finish(crowd, s[i], &together);
        assert_same_result(&alone, &together);
        sample_result_clear(&alone);
        sample_result_clear(&together);
    }
    close_samplers(en, ads);
    close_samplers(crowd, crowd_ads);
}

/* clang-format off */
#define LAWS                                                                                       \
    cmocka_unit_test(training_has_the_same_bits_alone_in_company_in_pieces_and_on_any_threads),    \
    cmocka_unit_test(a_forward_pass_gives_the_same_logprobs_and_changes_nothing),                  \
    cmocka_unit_test(the_bare_model_can_be_asked_for_logprobs),                                    \
    cmocka_unit_test(a_samples_logprobs_are_those_of_a_forward_pass),                              \
    cmocka_unit_test(a_request_samples_the_same_alone_and_in_company)
/* clang-format on */

int main(void)
{
    const struct CMUnitTest fp32[] = {
        LAWS, cmocka_unit_test(the_gradient_is_the_slope_of_each_loss)};
    const struct CMUnitTest bf16[] = {LAWS};
    int failed = cmocka_run_group_tests(fp32, setup_fp32, teardown);
    return failed + cmocka_run_group_tests(bf16, setup_bf16, teardown);
}

/* engine_device.c - the whole engine on a device and on the CPU: the device agrees with the CPU within
 * tolerances, and keeps by itself, on bits, what the engine promises.  Models of a few thousand
 * parameters, so that the emulation can run it too; on a real GPU tests/gpu runs it, and the larger
 * tests of tests/engine beside it. */
#include "engine/head.h"
#include "engine/kv.h"
#include "engine/plan.h"
#include "engine/sampler.h"

#define DEVICE "cuda:0"

/* Key heads shared by two query heads; and a model of sizes that fill nothing. */
#define SMALL_MODEL                                                                                \
    "\"vocab_size\": 96, \"hidden_size\": 16, \"num_attention_heads\": 4, "                        \
    "\"num_key_value_heads\": 2, \"intermediate_size\": 32, \"tie_word_embeddings\": true"
#define ODD_SMALL_MODEL                                                                            \
    "\"vocab_size\": 77, \"hidden_size\": 22, \"num_attention_heads\": 3, "                        \
    "\"num_key_value_heads\": 1, \"intermediate_size\": 37, \"tie_word_embeddings\": false"
#define EVERY_MODEL                                                                                \
    "\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"head_dim\": 8, "      \
    "\"num_hidden_layers\": 2, \"max_position_embeddings\": 200, \"rms_norm_eps\": 1e-6, "         \
    "\"rope_theta\": 10000"

static const struct world {
    const char *name, *config, *weights;
} worlds[] = {
    {"fp32", "{" EVERY_MODEL ", " SMALL_MODEL "}", "fp32"},
    {"odd fp32", "{" EVERY_MODEL ", " ODD_SMALL_MODEL "}", "fp32"},
    {"bf16", "{" EVERY_MODEL ", " SMALL_MODEL "}", "bf16"},
    {"odd bf16", "{" EVERY_MODEL ", " ODD_SMALL_MODEL "}", "bf16"},
};
enum { WORLDS = sizeof worlds / sizeof *worlds };

/* The laws that a kind of weights keeps do not change with the sizes: unless TINWORKS_TEST_ALL is
 * set, which tests/gpu does, they are tried on the odd model in fp32 and the other in bf16. */
static bool skips(int world)
{
    return !getenv("TINWORKS_TEST_ALL") && world != 1 && world != 2;
}

static const struct lora_conf small_conf = {5, true, true, true};
static const struct lora_conf thin_conf = {2, true, false, false};
static const int one_of[] = {9, 65, 0}, two_of[] = {70, 1, 0}, other_of[] = {30, 3, 0};

static struct folder folders[WORLDS];

static int setup(void **state)
{
    for (int i = 0; i < WORLDS; i++) {
        folders[i] = folder_create();
        folder_put_text(&folders[i], "config.json", worlds[i].config);
    }
    return 0;
}

static int teardown(void **state)
{
    for (int i = 0; i < WORLDS; i++)
        folder_remove(&folders[i]);
    return 0;
}

static struct engine *open_on(const char *device, int world, int threads, size_t scratch)
{
    struct engine_conf conf = {.model_dir = folders[world].path,
                               .device = device,
                               .threads = threads,
                               .weights = worlds[world].weights,
                               .scratch_bytes_max = scratch,
                               .kv_bytes_max = 1 << 20};
    struct err e = {0};
    struct engine *en = engine_open_random(&conf, &e);
    if (!en) fail_msg("%s", e.text);
    return en;
}

static struct adapter *adapter_with(struct engine *en, const struct lora_conf *conf, uint64_t seed)
{
    struct err e = {0};
    struct adapter *ad = adapter_create(en, conf, seed, &e);
    if (!ad) fail_msg("%s", e.text);
    return ad;
}

/* ------------------------------------------------------------------ what was planned */

/* The plan is made without a device; what a worker checks at its start follows from it. */
static void an_engine_takes_what_was_planned(void **state)
{
    for (int w = 0; w < WORLDS; w++) {
        const struct memory_plan_conf conf = {.model_dir = folders[w].path,
                                              .weights = worlds[w].weights,
                                              .lora = small_conf,
                                              .gpu = true};
        struct memory_plan p;
        struct err e = {0};
        if (memory_plan_make(&conf, &p, &e) < 0) fail_msg("%s", e.text);
        struct engine *en = open_on(DEVICE, w, 2, 0);
        size_t tokens = ENGINE_BLOCK_TOKENS;
        assert_int_equal(p.token_training,
                         pass_bytes(en, ENGINE_BLOCK_TOKENS, 1, small_conf.rank, true) / tokens);
        assert_int_equal(p.token_forward,
                         pass_bytes(en, ENGINE_BLOCK_TOKENS, 1, small_conf.rank, false) / tokens);
        assert_int_equal(p.logits_chunk, head_bytes(en, small_conf.rank, true));
        assert_int_equal(p.logits_rows, head_rows_max(en));
        assert_int_equal(p.kv_block, kv_block_bytes(en));
        engine_close(en);
    }
}

/* ------------------------------------------------------------------ beside the CPU */

/* What came of some calls.  Parts hold the gradient before the last step, and the weights after
 * it. */
struct outcome {
    double loss[2];
    float logprobs[145];
    float *parts[2];
    size_t count;
};

static int collect(const struct train_item *item, float *out)
{
    int n = 0;
    for (int i = 0; i < item->datum_count; i++)
        for (int k = 0; k < item->datums[i].n; k++)
            out[n++] = item->datums[i].out_logprobs[k];
    return n;
}

/* AdamW's first steps have the gradient's sign alone where eps is small, and the sign of a gradient
 * of zero is that of its rounding: an eps above the rounding keeps two sides together. */
static void step_gently(struct engine *en, struct adapter *ad)
{
    const struct adam_params p = {.learning_rate = 1e-2,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-3,
                                  .weight_decay = 0.01,
                                  .grad_clip_norm = 1};
    struct err e = {0};
    double norm;
    if (adapter_optim_step(en, ad, &p, &norm, &e) < 0) fail_msg("%s", e.text);
}

static void learn(struct engine *en, struct outcome *out)
{
    struct adapter *ad = adapter_with(en, &small_conf, 3);
    struct train_item items[] = {make_item(en, ad, LOSS_CROSS_ENTROPY, one_of, 1),
                                 make_item(en, ad, LOSS_DRO, two_of, 2)};
    for (int step = 0; step < 2; step++) {
        if (step) step_gently(en, ad);
        train(en, items, 2);
    }
    int n = collect(&items[0], out->logprobs);
    n += collect(&items[1], out->logprobs + n);
    assert_int_equal(n, 145);
    out->loss[0] = items[0].out_loss;
    out->loss[1] = items[1].out_loss;
    out->count = ad->part_count;
    out->parts[0] = part_get(ad, PART_GRADIENT);
    step_gently(en, ad);
    out->parts[1] = part_get(ad, PART_WEIGHTS);
    item_clear(&items[0]);
    item_clear(&items[1]);
    adapter_free(ad);
}

static double largest(const float *x, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

/* The worst difference, as a share of the largest entry. */
static double apart(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)a[i] - (double)b[i]);
        most = isnan(off) ? INFINITY : fmax(most, off);
    }
    return most / largest(b, n);
}

static void assert_within(double seen, double limit, int world, const char *what)
{
    fprintf(stderr, "  %s: %s %.2e, limit %.0e\n", worlds[world].name, what, seen, limit);
    if (!(seen <= limit)) fail_msg("%s: %s differ by %g", worlds[world].name, what, seen);
}

/* A device keeps keys and values in bf16 whatever the weights are in, and sums in other orders;
 * where activations are rounded to bf16 too, one that a last bit pushes to the other neighbour
 * moves by 2^-8 of itself.  Four times what the emulation shows after a step of a model whose
 * weights are all random. */
static void assert_close(const struct outcome *got, const struct outcome *want, int world)
{
    bool bf16 = !strcmp(worlds[world].weights, "bf16");
    double loss = 0;
    for (int i = 0; i < 2; i++)
        loss = fmax(loss, fabs(got->loss[i] - want->loss[i]) / fmax(1, fabs(want->loss[i])));
    assert_within(loss, 2e-2, world, "losses");
    assert_within(apart(got->logprobs, want->logprobs, 145), 4e-2, world,
                  "log-probabilities");
    assert_int_equal(got->count, want->count);
    assert_within(apart(got->parts[0], want->parts[0], got->count), bf16 ? 2e-1 : 1e-1, world,
                  "gradients");
    assert_within(apart(got->parts[1], want->parts[1], got->count), 8e-2, world, "weights");
}

static void training_agrees_with_the_cpu(void **state)
{
    for (int w = 0; w < WORLDS; w++) {
        struct outcome of[2];
        for (int side = 0; side < 2; side++) {
            struct engine *en = open_on(side ? "cpu" : DEVICE, w, 2, 0);
            learn(en, &of[side]);
            engine_close(en);
        }
        assert_close(&of[0], &of[1], w);
        for (int side = 0; side < 2; side++)
            free(of[side].parts[0]), free(of[side].parts[1]);
    }
}

/* ------------------------------------------------------------------ the datum law */

/* After a step, so that B is not zero and A's gradient is not. */
static struct adapter *trained(struct engine *en)
{
    struct adapter *ad = adapter_with(en, &small_conf, 3);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, other_of, 7);
    train(en, &item, 1);
    optim(en, ad, 0);
    item_clear(&item);
    return ad;
}

struct trace {
    char gradient[65], trained[65];
    double loss[2];
    float logprobs[145];
};

/* The run, one or two calls and a step; other: who shares its passes, or NULL. */
static void trace_run(struct engine *en, const struct train_item *other, bool one_call,
                      struct trace *out)
{
    struct adapter *ad = trained(en);
    struct train_item items[3] = {make_item(en, ad, LOSS_CROSS_ENTROPY, one_of, 1),
                                  make_item(en, ad, LOSS_PPO, two_of, 2)};
    if (one_call) {
        if (other) items[2] = *other;
        train(en, items, other ? 3 : 2);
    } else {
        train(en, &items[0], 1);
        train(en, &items[1], 1);
    }
    digest_of(ad, out->gradient);
    optim(en, ad, 1.0);
    digest_of(ad, out->trained);
    int n = collect(&items[0], out->logprobs);
    assert_int_equal(n + collect(&items[1], out->logprobs + n), 145);
    out->loss[0] = items[0].out_loss;
    out->loss[1] = items[1].out_loss;
    item_clear(&items[0]);
    item_clear(&items[1]);
    adapter_free(ad);
}

static void assert_same_trace(const struct trace *a, const struct trace *b)
{
    assert_string_equal(a->gradient, b->gradient);
    assert_string_equal(a->trained, b->trained);
    assert_memory_equal(a->loss, b->loss, sizeof a->loss);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
}

static void company_passes_and_threads_do_not_show_in_training(void **state)
{
    for (int w = 0; w < WORLDS; w++) {
        if (skips(w)) continue;
        struct trace alone, again;
        struct engine *en = open_on(DEVICE, w, 1, 0);
        trace_run(en, NULL, false, &alone);
        trace_run(en, NULL, true, &again); /* one pass instead of two */
        assert_same_trace(&alone, &again);
        struct adapter *guest = adapter_with(en, &thin_conf, 9);
        struct train_item other = make_item(en, guest, LOSS_CROSS_ENTROPY, other_of, 5);
        trace_run(en, &other, true, &again);
        assert_same_trace(&alone, &again);
        size_t all = en->scratch_bytes;
        adapter_free(guest);
        engine_close(en);
        en = open_on(DEVICE, w, 2, all * 2 / 3); /* not all sequences fit one pass */
        trace_run(en, NULL, true, &again);
        assert_same_trace(&alone, &again);
        item_clear(&other);
        engine_close(en);
    }
}

/* ------------------------------------------------------------------ one path */

static void samples_are_on_policy_and_the_cache_does_not_show(void **state)
{
    static const int lengths[] = {1, 63, 64, 65};
    for (int w = 0; w < WORLDS; w++) {
        if (skips(w)) continue;
        struct engine *en = open_on(DEVICE, w, 2, 0);
        struct adapter *ad = trained(en);
        int vocab = engine_info(en)->vocab;
        for (int i = 0; i < 8; i++) {
            int n = lengths[i / 2];
            int32_t prompt[65];
            struct sample_conf conf = asks_for(2, 3);
            struct sample_result first, again;
            conf.temperature = (float)(i % 2);
            conf.num_samples = i % 2 ? 2 : 1;
            make_prompt(prompt, n, (uint64_t)i + 1, vocab); /* its own: nothing is cached */
            run(en, ad, prompt, n, &conf, &first);
            assert_on_policy(en, ad, prompt, n, &first);
            run(en, ad, prompt, n, &conf, &again); /* and now its whole block is */
            assert_same_result(&first, &again, 0);
            sample_result_clear(&first);
            sample_result_clear(&again);
        }
        assert_true(engine_sample_stats(en).prompt_tokens_cached >= 64);
        adapter_free(ad);
        engine_close(en);
    }
}

static void a_batch_does_not_show_in_samples(void **state)
{
    enum { COUNT = 5 };
    static const int lengths[COUNT] = {65, 1, 64, 20, 63};
    for (int w = 0; w < WORLDS; w++) {
        if (skips(w)) continue;
        struct engine *en = open_on(DEVICE, w, 2, 0);
        struct adapter *ads[2] = {trained(en), NULL};
        int32_t prompts[COUNT][65];
        struct sample_result alone[COUNT], together;
        struct sample *samples[COUNT];
        struct sample_conf conf = asks_for(1, 3);
        conf.prompt_logprobs = true;
        for (int i = 0; i < COUNT; i++) {
            make_prompt(prompts[i], lengths[i], (uint64_t)i + 21, engine_info(en)->vocab);
            run(en, ads[i % 2], prompts[i], lengths[i], &conf, &alone[i]);
        }
        for (int i = 0; i < COUNT; i++)
            samples[i] = add(en, ads[i % 2], prompts[i], lengths[i], &conf);
        for (int i = 0; i < COUNT; i++) {
            finish(en, samples[i], &together);
            assert_same_result(&alone[i], &together, 0);
            sample_result_clear(&together);
            sample_result_clear(&alone[i]);
        }
        adapter_free(ads[0]);
        engine_close(en);
    }
}

/* ------------------------------------------------------------------ files */

static void save(const struct adapter *ad, const char *dir)
{
    int64_t size;
    char sha[65];
    struct err e = {0};
    if (adapter_save(ad, dir, true, &size, sha, &e) < 0) fail_msg("%s", e.text);
}

static void assert_loads(struct engine *en, const char *dir, const char *digest)
{
    char loaded[65];
    struct err e = {0};
    struct adapter *ad = adapter_load(en, dir, NULL, true, true, &e);
    if (!ad) fail_msg("%s", e.text);
    digest_of(ad, loaded);
    assert_string_equal(loaded, digest);
    adapter_free(ad);
}

/* From the device to the CPU, and from the CPU to the device; with a gradient pending. */
static void checkpoints_go_both_ways(void **state)
{
    struct engine *on[2] = {open_on(DEVICE, 1, 2, 0), open_on("cpu", 1, 2, 0)};
    for (int side = 0; side < 2; side++) {
        char digest[65], name[16];
        struct adapter *ad = trained(on[side]);
        struct train_item item = make_item(on[side], ad, LOSS_CROSS_ENTROPY, other_of, 8);
        train(on[side], &item, 1);
        digest_of(ad, digest);
        snprintf(name, sizeof name, "saved%d", side);
        const char *dir = folder_at(&folders[1], name);
        save(ad, dir);
        assert_loads(on[!side], dir, digest);
        assert_loads(on[side], dir, digest);
        item_clear(&item);
        adapter_free(ad);
    }
    engine_close(on[0]);
    engine_close(on[1]);
}

static void fresh_adapters_are_the_cpus(void **state)
{
    struct engine *on[2] = {open_on(DEVICE, 2, 2, 0), open_on("cpu", 2, 2, 0)};
    const struct lora_conf *confs_of[] = {&small_conf, &thin_conf};
    for (int i = 0; i < 2; i++) {
        char digests[2][65];
        for (int side = 0; side < 2; side++) {
            struct adapter *ad = adapter_with(on[side], confs_of[i], 40);
            digest_of(ad, digests[side]);
            adapter_free(ad);
        }
        assert_string_equal(digests[0], digests[1]);
    }
    engine_close(on[0]);
    engine_close(on[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_takes_what_was_planned),
        cmocka_unit_test(fresh_adapters_are_the_cpus),
        cmocka_unit_test(training_agrees_with_the_cpu),
        cmocka_unit_test(company_passes_and_threads_do_not_show_in_training),
        cmocka_unit_test(samples_are_on_policy_and_the_cache_does_not_show),
        cmocka_unit_test(a_batch_does_not_show_in_samples),
        cmocka_unit_test(checkpoints_go_both_ways),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

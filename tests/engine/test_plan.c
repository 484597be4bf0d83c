/* test_plan.c - the memory plan against what is really allocated, and against known models.
 *
 * Every allocation of weights, adapters and device memory goes through aligned_alloc() or
 * posix_memalign(); the linker puts a counter around them here. */
#include "world.h"

#include "engine/plan.h"
#include "engine/train.h"
#include "kernels/cpu/cpu.h"

#define ROUND 64 /* what an allocation may have more than was asked for */

void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

static _Atomic size_t counted_bytes, counted; /* ranks allocate at once */

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    counted_bytes += size;
    counted++;
    return __real_aligned_alloc(align, size);
}

int __real_posix_memalign(void **p, size_t align, size_t size);
int __wrap_posix_memalign(void **p, size_t align, size_t size);

int __wrap_posix_memalign(void **p, size_t align, size_t size)
{
    counted_bytes += size;
    counted++;
    return __real_posix_memalign(p, align, size);
}

static void count_from_here(void)
{
    counted_bytes = counted = 0;
}

static void assert_counted(size_t planned)
{
    if (counted_bytes < planned || counted_bytes > planned + counted * ROUND)
        fail_msg("%zu bytes were planned, %zu allocated in %zu pieces", planned,
                 (size_t)counted_bytes, (size_t)counted);
}

static struct memory_plan plan_of(const struct folder *f, const struct lora_conf *lora,
                                  size_t scratch, size_t kv)
{
    char dir[300];
    struct memory_plan p;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/model", f->path);
    const struct memory_plan_conf conf = {
        .model_dir = dir, .lora = *lora, .scratch_bytes_max = scratch, .kv_bytes_max = kv};
    if (memory_plan_make(&conf, &p, &e) < 0) fail_msg("%s", e.text);
    return p;
}

/* ------------------------------------------------------------------ against allocations */

static void check_weights(const struct folder *f)
{
    struct memory_plan p = plan_of(f, &confs[0], 0, 0);
    count_from_here();
    struct engine *en = open_engine(f, 2, 0, 0);
    assert_counted(p.weights + p.packed + p.rope + 2 * CPU_SCRATCH_FLOATS * sizeof(float));
    assert_int_equal(p.kv, (size_t)1 << 30);
    engine_close(en);
}

static void check_adapters(const struct folder *f)
{
    struct engine *en = open_engine(f, 1, 0, 0);
    for (int i = 0; i < 4; i++) {
        struct memory_plan p = plan_of(f, &confs[i], 0, 0);
        count_from_here();
        struct adapter *ad = new_adapter(en, i);
        assert_int_equal(counted_bytes, p.adapter + p.gradient + p.optimizer);
        assert_int_equal(ad->part_count * sizeof(float), p.gradient);
        adapter_free(ad);
    }
    engine_close(en);
}

static const struct ops *uncounted;
static size_t on_device, paged; /* bytes asked for */

static void *device_alloc(struct device *d, size_t bytes, struct err *e)
{
    on_device += bytes;
    return uncounted->alloc(d, bytes, e);
}

static void *paged_alloc(struct device *d, size_t bytes, struct err *e)
{
    paged += bytes;
    return uncounted->alloc_paged(d, bytes, e);
}

/* A tenant whose moments are paged: the two sizes by which the plan for GPUs counts them. */
static void check_paged(const struct folder *f)
{
    struct engine *en = open_engine(f, 1, 0, 0);
    struct ops counting = *en->ops;
    counting.alloc = device_alloc;
    counting.alloc_paged = paged_alloc;
    uncounted = en->ops;
    en->ops = &counting;
    for (int i = 0; i < 4; i++) {
        struct memory_plan p = plan_of(f, &confs[i], 0, 0);
        for (int to = 0; to < 2; to++) {
            en->paged_moments = to;
            on_device = paged = 0;
            struct adapter *ad = new_adapter(en, i);
            assert_int_equal(on_device, p.adapter + p.gradient + (to ? 0 : p.optimizer));
            assert_int_equal(paged, to ? p.optimizer : 0);
            adapter_free(ad);
        }
    }
    en->ops = uncounted;
    engine_close(en);
}

static struct train_item one_of_length(struct engine *en, struct adapter *ad, int n)
{
    const int lengths[] = {n, 0};
    return make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 1);
}

/* A pass takes what the plan says for its tokens; the longest sequence fits, one token more does
 * not. */
static void check_scratch(const struct folder *f)
{
    struct memory_plan p = plan_of(f, &confs[0], 0, 0);
    size_t scratch = p.logits_chunk + 200 * p.token_training;
    p = plan_of(f, &confs[0], scratch, 0);
    struct engine *en = open_engine(f, 1, scratch, 0);
    struct adapter *ad = new_adapter(en, 0);
    struct err e = {0};
    struct train_item item = one_of_length(en, ad, 2 * ENGINE_BLOCK_TOKENS);
    train(en, &item, 1);
    assert_int_equal(en->scratch_bytes,
                     p.logits_chunk + 2 * ENGINE_BLOCK_TOKENS * p.token_training);
    item_clear(&item);

    assert_in_range(p.longest_training, 192, 200);
    assert_int_equal(p.scratch, scratch);
    item = one_of_length(en, ad, p.longest_training);
    assert_int_equal(engine_train_check(en, &item, &e), 0);
    train(en, &item, 1);
    item_clear(&item);
    item = one_of_length(en, ad, p.longest_training + 1);
    assert_int_equal(engine_train_check(en, &item, &e), -1);
    assert_non_null(strstr(e.text, "bytes of memory"));
    item_clear(&item);
    adapter_free(ad);
    engine_close(en);
}

static size_t watched_bytes, watched; /* what was asked of the device in pieces of that size */

static void *counting_alloc(struct device *d, size_t bytes, struct err *e)
{
    watched += bytes == watched_bytes;
    return uncounted->alloc(d, bytes, e);
}

static struct sample *ask(struct engine *en, int tokens, struct err *e)
{
    const int32_t prompt[256] = {0};
    const struct sample_conf conf = {
        .max_tokens = 1, .top_k = -1, .top_p = 1, .prompt_logprobs = true};
    return engine_sample_add(en, NULL, prompt, tokens, &conf, e);
}

/* A prompt takes as many blocks as it fills, each as large as the plan says; the budget holds as
 * many as it says, too. */
static void check_kv(const struct folder *f)
{
    struct memory_plan p = plan_of(f, &confs[0], 0, 0);
    struct engine *en = open_engine(f, 1, 0, 3 * p.kv_block + 1);
    struct ops counting = *en->ops;
    struct err e = {0};
    counting.alloc = counting_alloc;
    uncounted = en->ops;
    en->ops = &counting;
    assert_int_equal(p.kv_token * ENGINE_BLOCK_TOKENS, p.kv_block);
    watched_bytes = p.kv_block;
    watched = 0;
    struct sample *s = ask(en, 3 * ENGINE_BLOCK_TOKENS, &e);
    if (!s) fail_msg("%s", e.text);
    assert_int_equal(engine_sample_step(en, &e), 0);
    assert_int_equal(watched, 3);
    engine_sample_free(en, s);
    assert_null(ask(en, 3 * ENGINE_BLOCK_TOKENS + 1, &e));
    assert_int_equal(e.kind, ERR_USER);
    en->ops = uncounted;
    engine_close(en);
}

static void on_both(void (*check)(const struct folder *f))
{
    static const char *const models[] = {ODD_MODEL, TINY_MODEL};
    for (int m = 0; m < 2; m++) {
        struct folder f = world_make(models[m]);
        check(&f);
        folder_remove(&f);
    }
}

static void weights_take_what_was_planned(void **state)
{
    on_both(check_weights);
}

static void an_adapter_takes_what_was_planned(void **state)
{
    on_both(check_adapters);
}

static void paged_moments_are_what_the_device_is_spared(void **state)
{
    on_both(check_paged);
}

static void a_pass_takes_what_was_planned(void **state)
{
    on_both(check_scratch);
}

#define MOST_ROWS 512

/* A full pass of the widest adapter's shortest sequences takes the most that a pass can. */
static void check_most(const struct folder *f)
{
    int lengths[MOST_ROWS + 2] = {0};
    const struct lora_conf widest = {ENGINE_RANK_MAX, true, true, true};
    struct memory_plan p = plan_of(f, &widest, 0, 0);
    struct engine *en = open_engine(f, 2, 0, 0);
    struct err e = {0};
    assert_true(en->pass_rows <= MOST_ROWS);
    for (int i = 0; i <= en->pass_rows; i++)
        lengths[i] = 1;
    struct adapter *ad = adapter_create(en, &widest, 1, &e);
    struct train_item item = make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, 1);
    train(en, &item, 1);
    assert_int_equal(en->scratch_bytes, p.scratch);
    item_clear(&item);
    adapter_free(ad);
    engine_close(en);
}

static void the_fullest_pass_takes_what_was_planned(void **state)
{
    on_both(check_most);
}

static void keys_and_values_take_what_was_planned(void **state)
{
    on_both(check_kv);
}

/* Each rank takes what is planned for one. */
static void ranks_take_what_was_planned(void **state)
{
    struct folder f = world_make("--vocab 1100 --hidden 44 --layers 3 --heads 8 --kv-heads 4 "
                                 "--head-dim 10 --intermediate 92 --context 400 --tied false");
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        struct err e = {0};
        struct memory_plan p, one;
        struct memory_plan_conf pc = {.model_dir = folder_at(&f, "model"), .lora = confs[0]};
        assert_int_equal(memory_plan_make(&pc, &one, &e), 0);
        pc.ranks = ranks;
        assert_int_equal(memory_plan_make(&pc, &p, &e), 0);
        const struct engine_conf conf = {
            .model_dir = folder_at(&f, "model"), .threads = 1, .ranks = ranks};
        count_from_here();
        struct engine *en = engine_open(&conf, &e);
        if (!en) fail_msg("%s", e.text);
        size_t rank = p.weights + p.packed + p.rope + CPU_SCRATCH_FLOATS * sizeof(float);
        assert_counted((size_t)ranks * rank);
        count_from_here();
        struct adapter *ad = new_adapter(en, 0);
        size_t tenant = (size_t)ranks * (p.adapter + p.gradient + p.optimizer);
        assert_int_equal(counted_bytes, tenant);
        assert_int_equal(adapter_bytes(en, &confs[0], true), tenant);
        struct train_item item = one_of_length(en, ad, 2 * ENGINE_BLOCK_TOKENS);
        train(en, &item, 1);
        for (int r = 0; r < ranks; r++)
            assert_int_equal(en->ranks[r]->scratch_bytes,
                             p.logits_chunk + 2 * ENGINE_BLOCK_TOKENS * p.token_training);
        item_clear(&item);
        assert_int_equal(p.kv_token * (size_t)ranks, one.kv_token);
        assert_int_equal(p.parameters, one.parameters);
        assert_int_equal(memory_plan_total(&p, 2),
                         2 * tenant + (size_t)ranks * (p.weights + p.packed + p.rope + p.scratch +
                                                       p.kv));
        adapter_free(ad);
        engine_close(en);
    }
    folder_remove(&f);
}

/* And each replica as much as the first. */
static void replicas_take_what_was_planned(void **state)
{
    struct folder f = world_make(ODD_MODEL);
    for (int replicas = 1; replicas <= 3; replicas++) {
        struct err e = {0};
        struct memory_plan p;
        const struct memory_plan_conf pc = {.model_dir = folder_at(&f, "model"),
                                            .lora = confs[0],
                                            .ranks = 2,
                                            .replicas = replicas};
        assert_int_equal(memory_plan_make(&pc, &p, &e), 0);
        const struct engine_conf conf = {
            .model_dir = pc.model_dir, .threads = 1, .ranks = 2, .replicas = replicas};
        count_from_here();
        struct engine *en = engine_open(&conf, &e);
        if (!en) fail_msg("%s", e.text);
        size_t devices = 2 * (size_t)replicas, base = p.weights + p.packed + p.rope;
        assert_counted(devices * (base + CPU_SCRATCH_FLOATS * sizeof(float)));
        count_from_here();
        struct adapter *ad = new_adapter(en, 0);
        size_t tenant = devices * (p.adapter + p.gradient + p.optimizer);
        assert_int_equal(counted_bytes, tenant);
        assert_int_equal(adapter_bytes(en, &confs[0], true), tenant);
        assert_int_equal(memory_plan_total(&p, 1), tenant + devices * (base + p.scratch + p.kv));
        adapter_free(ad);
        engine_close(en);
    }
    folder_remove(&f);
}

/* ------------------------------------------------------------------ known models */

/* Qwen3's dense models as their configurations give them (arXiv 2505.09388, table 1). */
struct known {
    const char *name;
    int hidden, layers, heads, intermediate;
    bool tied;
    double billions;
};

static const struct known known[] = {
    {"0.6B", 1024, 28, 16, 3072, true, 0.596},   {"4B", 2560, 36, 32, 9728, true, 4.022},
    {"8B", 4096, 36, 32, 12288, false, 8.191},   {"14B", 5120, 40, 40, 17408, false, 14.768},
    {"32B", 5120, 64, 64, 25600, false, 32.762},
};

static struct folder make_known(const struct known *k)
{
    struct folder f = folder_create();
    char text[1024];
    snprintf(text, sizeof text,
             "{\"model_type\": \"qwen3\", \"vocab_size\": 151936, \"hidden_size\": %d,"
             " \"num_hidden_layers\": %d, \"num_attention_heads\": %d,"
             " \"num_key_value_heads\": 8, \"head_dim\": 128, \"intermediate_size\": %d,"
             " \"max_position_embeddings\": 40960, \"rms_norm_eps\": 1e-6,"
             " \"rope_theta\": 1000000, \"tie_word_embeddings\": %s}",
             k->hidden, k->layers, k->heads, k->intermediate, k->tied ? "true" : "false");
    if (mkdir(folder_at(&f, "model"), 0700) < 0) abort();
    folder_put_text(&f, "model/config.json", text);
    return f;
}

/* A layer worked out by hand: two norms, four projections and two norms of heads, three of the MLP.
 */
static size_t parameters_by_hand(const struct known *k)
{
    size_t h = (size_t)k->hidden, q = (size_t)k->heads * 128, kv = 8 * 128;
    size_t layer = 2 * h + 2 * h * q + 2 * h * kv + 2 * 128 + 3 * h * (size_t)k->intermediate;
    return layer * (size_t)k->layers + h + 151936 * h * (k->tied ? 1 : 2);
}

static void check_known(const struct known *k)
{
    const struct lora_conf lora = {32, true, true, true};
    struct folder f = make_known(k);
    struct memory_plan p = plan_of(&f, &lora, 0, 0);
    size_t h = (size_t)k->hidden, q = (size_t)k->heads * 128, kv = 8 * 128;
    size_t mlp = (size_t)k->intermediate;
    assert_int_equal(p.parameters, parameters_by_hand(k));
    assert_true(fabs((double)p.parameters / 1e9 - k->billions) < 0.001);
    /* an A and a B of rank 32 for each projection and for the unembedding */
    size_t sums = (h + q) + 2 * (h + kv) + (q + h) + 3 * (h + mlp);
    assert_int_equal(p.adapter, 32 * 4 * (sums * (size_t)k->layers + h + 151936));
    assert_int_equal(p.gradient, p.adapter);
    assert_int_equal(p.optimizer, 2 * p.adapter);
    assert_int_equal(p.kv_token, 2 * kv * 4 * (size_t)k->layers);
    assert_true(p.weights + p.packed >= 6 * p.parameters);
    assert_int_equal(memory_plan_total(&p, 3),
                     p.weights + p.packed + p.rope + 12 * p.adapter + ((size_t)5 << 30));
    print_message("  %s: %zu parameters, %.1f GB of weights, %.2f GB a tenant, %zu KB a KV token\n",
                  k->name, p.parameters, (double)(p.weights + p.packed) / 1e9,
                  (double)(4 * p.adapter) / 1e9, p.kv_token / 1024);
    folder_remove(&f);
}

static void known_models_come_out_as_known(void **state)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        check_known(&known[i]);
}

/* ------------------------------------------------------------------ what GPUs have room for */

#define MODEL_SHAPES FIXTURES "/../../models/shapes/"

/* Of one rank, worked out from the model's sizes alone: bytes. */
struct by_hand {
    size_t base, kv_token, adapter, token, chunk;
};

static struct by_hand hand_of(const struct known *k, size_t ranks)
{
    size_t h = (size_t)k->hidden, q = (size_t)k->heads * 128 / ranks, kv = 8 * 128 / ranks;
    size_t mlp = (size_t)k->intermediate / ranks, layers = (size_t)k->layers, r = 32;
    size_t vocab = 151936 / ranks;
    struct by_hand b;
    /* bf16: projections and unembedding once, and the whole table; fp32: gains and angles */
    b.base = 2 * (layers * (2 * h * q + 2 * h * kv + 3 * h * mlp) + h * vocab + h * 151936) +
             4 * (layers * (2 * h + 2 * 128) + h) + 4 * 2 * 64 * 40960;
    b.kv_token = 2 * layers * 2 * kv;
    /* A of q, k, v, gate and up and B of o and down are whole, their partners cut */
    b.adapter = 4 * r * (layers * (5 * h + q + 2 * kv + 2 * mlp + (q + h) + (mlp + h)) + h + vocab);
    /* what a layer keeps; then what forward and backward work in; and keys and values.  Sums over
     * layers, lse and what adapters go through are fp32, everything else bf16 */
    b.token = layers * (4 * (2 * h + (size_t)k->heads / ranks + 7 * r) + 2 * (2 * q + kv + 2 * mlp));
    b.token += 4 * h + 2 * (2 * h + q + 2 * kv + mlp);
    b.token += 4 * (3 * h + r) + 2 * (2 * q + 2 * kv + 3 * mlp);
    b.token += b.kv_token;
    /* rows of logits: 320 MiB of them in whole blocks, 512 at most; x in bf16; dx, u and du, lse; and
     * two arrays of 64 times 256 cells */
    size_t rows = ((size_t)320 << 20) / (4 * vocab) / 64 * 64;
    if (rows > 512) rows = 512;
    b.chunk = 2 * rows * h + 4 * (rows * (h + vocab + 2 * r + 1) + 2 * 64 * 256);
    return b;
}

/* docs/engine.md has the line of this plan. */
static void assert_documented(const struct device_plan *p, const char *name, size_t gb)
{
    const struct memory_plan *m = &p->memory;
    size_t size;
    char line[200], *text = folder_get(FIXTURES "/../../docs/engine.md", &size);
    snprintf(line, sizeof line, "\n| %s | %zu GB | %d | %.1f GB | %zu | %zu | %zu | %zu |\n", name,
             gb, m->ranks, (double)(m->weights + m->packed + m->rope) / 1e9, p->pass_tokens,
             p->kv_tokens, p->tenants_resident, p->tenants_paged);
    if (!strstr(text, line)) fail_msg("docs/engine.md does not say%s", line);
    free(text);
}

static void check_device(const struct known *k, const char *dir, size_t gb, int ranks)
{
    struct err e = {0};
    struct device_plan p;
    const struct device_plan_conf conf = {.memory = {.model_dir = dir,
                                                     .lora = {32, true, true, true},
                                                     .ranks = ranks},
                                          .device_bytes = gb * 1000000000,
                                          .host_bytes = 1000000000000,
                                          .scratch_percent = 50,
                                          .kv_percent = 25};
    struct by_hand b = hand_of(k, (size_t)ranks);
    if (device_plan_make(&conf, &p, &e) < 0) fail_msg("%s", e.text);
    const struct memory_plan *m = &p.memory;
    assert_true(m->bf16);
    assert_int_equal(m->parameters, parameters_by_hand(k));
    assert_int_equal(m->weights + m->packed + m->rope, b.base);
    assert_int_equal(m->kv_token, b.kv_token);
    assert_int_equal(m->adapter, b.adapter);
    assert_int_equal(m->optimizer, 2 * b.adapter);
    assert_int_equal(m->token_training, b.token);
    assert_int_equal(m->logits_chunk, b.chunk);
    assert_true(p.fits);
    size_t left = gb * 1000000000 - b.base - 2000000000, quarter = left / 100 * 25;
    assert_int_equal(p.left, left);
    assert_int_equal(p.pass_tokens, (left / 100 * 50 - b.chunk) / b.token);
    assert_int_equal(p.kv_tokens, quarter / (64 * b.kv_token) * 64);
    assert_int_equal(p.tenants_resident, quarter / (4 * b.adapter));
    assert_int_equal(p.tenants_on_host, 1000000000000 / (4 * b.adapter * (size_t)ranks));
    size_t here = quarter / (2 * b.adapter);
    size_t there = 1000000000000 / (2 * b.adapter * (size_t)ranks);
    assert_int_equal(p.tenants_paged, here < there ? here : there);
    assert_documented(&p, k->name, gb);
}

static void gpus_have_room_for_what_is_worked_out_by_hand(void **state)
{
    static const char *const dirs[] = {MODEL_SHAPES "qwen3-4b", MODEL_SHAPES "qwen3-8b",
                                       MODEL_SHAPES "qwen3-14b", MODEL_SHAPES "qwen3-32b"};
    for (int k = 0; k < 4; k++)
        for (int ranks = 1; ranks <= 8; ranks *= 2) {
            check_device(&known[k + 1], dirs[k], 80, ranks);
            check_device(&known[k + 1], dirs[k], 141, ranks);
        }
    /* two that are known from elsewhere: keys and values of 8B are 144 KiB a token in bf16, and its
     * file of weights is 16.38 GB */
    struct by_hand b = hand_of(&known[2], 1);
    assert_int_equal(b.kv_token, 144 << 10);
    assert_true(fabs((double)b.base - 4.0 * 2 * 64 * 40960 - 16.38e9) < 0.01e9);
}

static void a_gpu_that_is_too_small_is_told(void **state)
{
    struct err e = {0};
    struct device_plan p;
    struct device_plan_conf conf = {.memory = {.model_dir = MODEL_SHAPES "qwen3-32b",
                                               .lora = {32, true, true, true}},
                                    .device_bytes = (size_t)48000000000,
                                    .scratch_percent = 50,
                                    .kv_percent = 25};
    assert_int_equal(device_plan_make(&conf, &p, &e), 0);
    assert_false(p.fits);
    assert_int_equal(p.pass_tokens + p.kv_tokens + p.tenants_resident + p.tenants_paged, 0);
    conf.memory.ranks = 2;
    assert_int_equal(device_plan_make(&conf, &p, &e), 0);
    assert_true(p.fits);
    assert_int_equal(p.tenants_paged, 0); /* the host has no room */
    conf.memory.ranks = 3;
    assert_int_equal(device_plan_make(&conf, &p, &e), -1);
    assert_string_equal(e.text, "ranks is 3, expected a divisor of the model's 8 key heads");
    conf.memory.ranks = 4;
    conf.memory.replicas = 3;
    assert_int_equal(device_plan_make(&conf, &p, &e), -1);
    assert_string_equal(e.text, "replicas is 3, expected 1 to 2 with ranks 4");
    conf.memory.replicas = 0;
    conf.memory.ranks = 1;
    conf.kv_percent = 50;
    assert_int_equal(device_plan_make(&conf, &p, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "a pass gets 50 and KV 50 of 100 parts"));
}

/* ------------------------------------------------------------------ what cannot be planned */

static void a_bad_configuration_is_named(void **state)
{
    struct known odd = known[0];
    struct memory_plan p;
    struct err e = {0};
    odd.heads = 15;
    struct folder f = make_known(&odd);
    char dir[300];
    snprintf(dir, sizeof dir, "%s/model", f.path);
    struct memory_plan_conf conf = {.model_dir = dir, .lora = {8, true, true, true}};
    assert_int_equal(memory_plan_make(&conf, &p, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "15 attention heads"));
    conf.model_dir = "/nowhere";
    assert_int_equal(memory_plan_make(&conf, &p, &e), -1);
    assert_non_null(strstr(e.text, "could not read the configuration of model \"/nowhere\""));
    conf.lora.rank = 129;
    assert_int_equal(memory_plan_make(&conf, &p, &e), -1);
    assert_string_equal(e.text, "rank is 129, expected 1 to 128");
    folder_remove(&f);
}

int main(void)
{
    ops_cpu(); /* which table is faster is tried once, with memory that is given back */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_take_what_was_planned),
        cmocka_unit_test(an_adapter_takes_what_was_planned),
        cmocka_unit_test(paged_moments_are_what_the_device_is_spared),
        cmocka_unit_test(a_pass_takes_what_was_planned),
        cmocka_unit_test(the_fullest_pass_takes_what_was_planned),
        cmocka_unit_test(keys_and_values_take_what_was_planned),
        cmocka_unit_test(ranks_take_what_was_planned),
        cmocka_unit_test(replicas_take_what_was_planned),
        cmocka_unit_test(known_models_come_out_as_known),
        cmocka_unit_test(gpus_have_room_for_what_is_worked_out_by_hand),
        cmocka_unit_test(a_gpu_that_is_too_small_is_told),
        cmocka_unit_test(a_bad_configuration_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

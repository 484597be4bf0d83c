/* test_model_file.c - a model folder is believed only as far as it is consistent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include "engine/model.h"
#include "folder.h"
#include "seal/seal.h"
#include "tensors.h"

#define TIED   FIXTURES "/torch/tied"
#define UNTIED FIXTURES "/torch/untied"

/* ------------------------------------------------------------------ folders with one thing changed
 */

/* Sets config.json's key to a JSON text; NULL removes it. */
static void set_config(const struct folder *f, const char *file, const char *key, const char *value)
{
    json_error_t at;
    char *path = strdup(folder_at(f, file));
    json_t *root = json_load_file(path, 0, &at);
    if (!root) root = json_object();
    json_object_del(root, key);
    if (value) json_object_set_new(root, key, json_loads(value, JSON_DECODE_ANY, &at));
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    free(path);
}

static const struct ops *ops;
static struct device *dev;

static void load_as_refused(const struct folder *f, const char *weights, const char *because)
{
    struct err e = {0};
    struct model_weights *mw = model_weights_load(f->path, weights, 0, 1, ops, dev, &e);
    if (mw) fail_msg("loaded, but should say \"%s\"", because);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void load_refused(const struct folder *f, const char *because)
{
    load_as_refused(f, NULL, because);
}

static void config_refused(const char *key, const char *value, const char *because)
{
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    set_config(&f, "config.json", key, value);
    load_refused(&f, because);
    folder_remove(&f);
}

static struct model_weights *load_as(const char *dir, const char *weights)
{
    struct err e = {0};
    struct model_weights *mw = model_weights_load(dir, weights, 0, 1, ops, dev, &e);
    if (!mw) fail_msg("%s", e.text);
    return mw;
}

static struct model_weights *load(const char *dir)
{
    return load_as(dir, NULL);
}

/* What a packed matrix holds: multiplied by ones in one place each.  w [rows, cols] as the file has
 * it, for y = x w^T, or transposed for y = x w. */
static float *unpack(const struct packed *p, int rows, int cols, bool transposed)
{
    int in = transposed ? rows : cols, out = transposed ? cols : rows;
    float *x = calloc((size_t)in * in, sizeof *x), *y = calloc((size_t)in * out, sizeof *y);
    float *w = calloc((size_t)in * out, sizeof *w);
    assert_true(x && y && w);
    for (int k = 0; k < in; k++)
        x[k * in + k] = 1;
    ops->gemm(dev, act_f32(y), act_f32(x), in, p, false);
    for (int k = 0; k < in; k++)
        for (int o = 0; o < out; o++)
            w[transposed ? k * out + o : o * in + k] = y[k * out + o];
    free(x), free(y);
    return w;
}

static void assert_holds(const struct packed *ahead, const struct packed *back,
                         const struct safetensors_tensor *t)
{
    int rows = (int)t->shape[0], cols = (int)t->shape[1];
    float *a = unpack(ahead, rows, cols, false), *b = unpack(back, rows, cols, true);
    assert_memory_equal(a, t->data, t->size);
    assert_memory_equal(b, t->data, t->size);
    free(a), free(b);
}

static int setup(void **state)
{
    struct err e = {0};
    ops = ops_cpu();
    dev = ops->open(0, 2, &e);
    return dev ? 0 : -1;
}

static int teardown(void **state)
{
    ops->close(dev);
    return 0;
}

/* ------------------------------------------------------------------ tests */

static void reads_the_configuration_of_a_tied_model(void **state)
{
    (void)state;
    struct model_weights *mw = load(TIED);
    const struct model_conf *c = &mw->conf;
    assert_int_equal(c->vocab, 96);
    assert_int_equal(c->hidden, 32);
    assert_int_equal(c->layers, 2);
    assert_int_equal(c->heads, 4);
    assert_int_equal(c->kv_heads, 2);
    assert_int_equal(c->head_dim, 16);
    assert_int_equal(c->intermediate, 48);
    assert_int_equal(c->context_max, 160);
    assert_true(c->tied && mw->unembed && mw->unembed_back);
    assert_true(c->rms_eps == 1e-6f && c->rope_theta == 1e4f);
    assert_int_equal(c->eos_count, 1);
    assert_int_equal(c->eos[0], 2);
    model_weights_free(mw);
}

static void reads_shards_and_hashes_all_of_them(void **state)
{
    (void)state;
    struct model_weights *mw = load(UNTIED);
    assert_false(mw->conf.tied);
    assert_int_equal(mw->conf.eos_count, 2);
    assert_int_equal(mw->conf.eos[0], 1);
    assert_int_equal(mw->conf.eos[1], 3);
    struct err e = {0};
    uint8_t digest[SEAL_SHA256_SIZE];
    char hex[SEAL_SHA256_HEX_SIZE];
    struct seal_hash *h = seal_hash_begin(&e);
    for (int i = 1; i <= 3; i++) {
        char path[512];
        size_t size;
        snprintf(path, sizeof path, "%s/model-%05d-of-00003.safetensors", UNTIED, i);
        char *bytes = folder_get(path, &size);
        seal_hash_add(h, bytes, size);
        free(bytes);
    }
    seal_hash_end(h, digest);
    seal_hex(digest, sizeof digest, hex);
    assert_string_equal(mw->sha256, hex);
    model_weights_free(mw);
}

static void every_tensor_lands_where_its_name_says(void **state)
{
    (void)state;
    struct err e = {0};
    struct model_weights *mw = load(TIED);
    struct safetensors *st = safetensors_open(TIED "/model.safetensors", &e);
    const struct layer_weights *l = &mw->layers[1];
    const struct layer_packed *p = &mw->packed[1];
    const struct {
        const char *name;
        const float *at;
    } plain[] = {
        {"model.embed_tokens.weight", mw->embed},
        {"model.norm.weight", mw->final_norm},
        {"model.layers.1.input_layernorm.weight", l->input_norm},
        {"model.layers.1.post_attention_layernorm.weight", l->post_norm},
        {"model.layers.1.self_attn.q_norm.weight", l->q_norm},
        {"model.layers.1.self_attn.k_norm.weight", l->k_norm},
    };
    static const char *const sites[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                        "mlp.down_proj"};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        const struct safetensors_tensor *t = safetensors_find(st, plain[i].name);
        assert_non_null(t);
        assert_memory_equal(plain[i].at, t->data, t->size);
        assert_int_equal((uintptr_t)plain[i].at % 64, 0);
    }
    for (int s = 0; s < SITES_A_LAYER; s++) {
        char name[80];
        snprintf(name, sizeof name, "model.layers.1.%s.weight", sites[s]);
        assert_holds(p->ahead[s], p->back[s], safetensors_find(st, name));
    }
    assert_holds(mw->unembed, mw->unembed_back,
                 safetensors_find(st, "model.embed_tokens.weight"));
    safetensors_close(st);
    model_weights_free(mw);
}

static void eos_tokens_of_both_files_are_joined(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    set_config(&f, "config.json", "eos_token_id", "[5, 2]");
    set_config(&f, "generation_config.json", "eos_token_id", "[2, 7]");
    struct model_weights *mw = load(f.path);
    assert_int_equal(mw->conf.eos_count, 3);
    assert_int_equal(mw->conf.eos[2], 7);
    model_weights_free(mw);
    unlink(folder_at(&f, "generation_config.json"));
    set_config(&f, "config.json", "eos_token_id", "null");
    mw = load(f.path);
    assert_int_equal(mw->conf.eos_count, 0);
    model_weights_free(mw);
    set_config(&f, "config.json", "eos_token_id", "96");
    load_refused(&f, "no token id below 96");
    set_config(&f, "config.json", "eos_token_id", "[1,2,3,4,5,6,7,8,9]");
    load_refused(&f, "more than 8");
    folder_remove(&f);
}

static void rope_theta_may_stand_at_the_top(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    set_config(&f, "config.json", "rope_parameters", NULL);
    load_refused(&f, "no rope_theta");
    set_config(&f, "config.json", "rope_theta", "1000000");
    set_config(&f, "config.json", "rope_scaling", "null");
    struct model_weights *mw = load(f.path);
    assert_true(mw->conf.rope_theta == 1e6f);
    model_weights_free(mw);
    set_config(&f, "config.json", "rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":4.0}");
    load_refused(&f, "rope_scaling of type \"yarn\"");
    folder_remove(&f);
}

static void a_configuration_that_we_do_not_compute_is_refused(void **state)
{
    (void)state;
    config_refused("model_type", "\"llama\"", "model_type \"llama\"");
    config_refused("model_type", NULL, "expected \"qwen3\"");
    config_refused("architectures", "[\"Qwen3MoeForCausalLM\"]",
                   "architecture \"Qwen3MoeForCausalLM\"");
    config_refused("attention_bias", "true", "attention_bias");
    config_refused("use_sliding_window", "true", "use_sliding_window");
    config_refused("quantization_config", "{\"bits\":4}", "quantization_config");
    config_refused("hidden_act", "\"gelu\"", "hidden_act");
    config_refused("layer_types", "[\"sliding_attention\"]", "layer type");
    config_refused("rope_parameters", "{\"rope_type\":\"linear\",\"rope_theta\":1e4}",
                   "\"linear\"");
    config_refused("head_dim", "15", "even");
    config_refused("num_key_value_heads", "3", "multiple");
    config_refused("hidden_size", "0", "hidden_size");
    config_refused("hidden_size", "-32", "hidden_size");
    config_refused("hidden_size", "\"32\"", "hidden_size");
    config_refused("hidden_size", "4294967328", "hidden_size");
    config_refused("vocab_size", NULL, "no vocab_size");
    config_refused("num_hidden_layers", "257", "num_hidden_layers");
    config_refused("rms_norm_eps", "-1", "rms_norm_eps");
    config_refused("tie_word_embeddings", NULL, "tie_word_embeddings");
}

static void shapes_that_differ_from_the_configuration_are_named(void **state)
{
    (void)state;
    config_refused("vocab_size", "97",
                   "\"model.embed_tokens.weight\" has shape [96, 32], expected [97, 32]");
    config_refused("intermediate_size", "50", "has shape");
    config_refused("head_dim", "8", "has shape");
    config_refused("num_hidden_layers", "3",
                   "has no tensor \"model.layers.2.input_layernorm.weight\"");
    config_refused("num_hidden_layers", "1", "unknown tensor \"model.layers.1.");
    config_refused("tie_word_embeddings", "false", "has no tensor \"lm_head.weight\"");
}

static void broken_files_are_refused(void **state)
{
    (void)state;
    struct folder f = folder_create();
    load_refused(&f, "config.json");
    folder_copy(&f, TIED);
    folder_put(&f, "model.safetensors", "\377\377\377\377\377\377\377\177{}", 10);
    load_refused(&f, "header claims");
    unlink(folder_at(&f, "model.safetensors"));
    load_refused(&f, "could not open");
    folder_put_text(&f, "config.json", "{\"model_type\": ");
    load_refused(&f, "not JSON");
    folder_put_text(&f, "config.json", "{\"a\":1,\"a\":2}");
    load_refused(&f, "duplicate");
    folder_remove(&f);
}

static void an_index_that_lies_is_refused(void **state)
{
    (void)state;
    static const char *const lies[][2] = {
        {"{\"weight_map\":{\"a\":\"../model.safetensors\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\"/model.safetensors\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":7}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", "could not open"},
        {"{\"weight_map\":{\"a\":\"model-00001-of-00003.safetensors\"}}",
         "not where the index says"},
        {"{\"weight_map\":{\"a\":\"..\\\\x.safetensors\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\"b/model.safetensors\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\"model.bin\"}}", "the index names file"},
        {"{\"weight_map\":{\"a\":\"x\",\"a\":\"x\"}}", "duplicate"},
        {"{\"weight_map\":[]}", "no weight_map"},
        {"{\"weight_map\":{}}", "has no tensor"},
        {"{}", "no weight_map"},
    };
    struct folder f = folder_create();
    folder_copy(&f, UNTIED);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        folder_put_text(&f, "model.safetensors.index.json", lies[i][0]);
        load_refused(&f, lies[i][1]);
    }
    folder_remove(&f);
}

/* Changes the true index of the untied fixture: sets one tensor's file, NULL removes it. */
static void index_refused(const char *tensor, const char *file, const char *because)
{
    struct folder f = folder_create();
    json_error_t at;
    folder_copy(&f, UNTIED);
    char *path = strdup(folder_at(&f, "model.safetensors.index.json"));
    json_t *root = json_load_file(path, 0, &at), *map = json_object_get(root, "weight_map");
    assert_non_null(map);
    if (file)
        json_object_set_new(map, tensor, json_string(file));
    else
        json_object_del(map, tensor);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    load_refused(&f, because);
    json_decref(root);
    free(path);
    folder_remove(&f);
}

static void an_index_that_is_nearly_right_is_refused(void **state)
{
    (void)state;
    index_refused("model.norm.weight", NULL, "not where the index says");
    index_refused("model.norm.weight", "model-00001-of-00003.safetensors",
                  "not where the index says (\"model-00001");
    index_refused("ghost", "model-00001-of-00003.safetensors",
                  "\"model-00001-of-00003.safetensors\" has no tensor \"ghost\", which the index");
}

static void an_index_of_too_many_files_is_refused(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, UNTIED);
    json_t *map = json_object();
    for (int i = 0; i <= 512; i++) {
        char tensor[32], file[64];
        snprintf(tensor, sizeof tensor, "t%d", i);
        snprintf(file, sizeof file, "m%d.safetensors", i);
        json_object_set_new(map, tensor, json_string(file));
    }
    json_t *root = json_pack("{s:o}", "weight_map", map);
    char *text = json_dumps(root, 0);
    folder_put_text(&f, "model.safetensors.index.json", text);
    load_refused(&f, "more than 512 files");
    free(text);
    json_decref(root);
    folder_remove(&f);
}

/* Rewrites the tied fixture's weights: as BF16 (all, all but the gains, all but one matrix), with
 * one value changed, with a second copy of the embedding. */
struct rewrite {
    bool bf16, gains_stay, one_stays;
    uint32_t value; /* bits for one value of the fourth tensor; 0: none */
    bool copy, other_copy;
};

static void to_bf16(struct safetensors_tensor *t)
{
    char *x = (char *)t->data;
    for (size_t k = 0; k < t->count; k++)
        memmove(x + 2 * k, x + 4 * k + 2, 2); /* the upper half of each */
    t->dtype = DTYPE_BF16;
}

static void rewrite(const struct folder *f, struct rewrite how)
{
    struct err e = {0};
    struct safetensors *st = safetensors_open(TIED "/model.safetensors", &e);
    int n = safetensors_count(st);
    struct safetensors_tensor *list = calloc((size_t)n + 1, sizeof *list);
    for (int i = 0; i < n; i++) {
        list[i] = *safetensors_at(st, i);
        char *x = malloc(list[i].size);
        memcpy(x, list[i].data, list[i].size);
        list[i].data = x;
        if (how.value && i == 3) memcpy(x + 4, &how.value, 4);
        bool stays = (how.gains_stay && list[i].rank == 1) ||
                     (how.one_stays && strstr(list[i].name, "layers.1.mlp.down_proj"));
        if (how.bf16 && !stays) to_bf16(&list[i]);
    }
    if (how.copy || how.other_copy) {
        const struct safetensors_tensor *embed = safetensors_find(st, "model.embed_tokens.weight");
        list[n] = *embed;
        snprintf(list[n].name, sizeof list[n].name, "lm_head.weight");
        float *x = malloc(embed->size);
        memcpy(x, embed->data, embed->size);
        if (how.other_copy) x[0] += 1;
        list[n++].data = x;
    }
    assert_int_equal(tensors_write(folder_at(f, "model.safetensors"), list, n, &e), 0);
    for (int i = 0; i < n; i++)
        free((void *)list[i].data);
    free(list);
    safetensors_close(st);
}

static enum ops_dtype dtype_chosen(const struct folder *f, struct rewrite how, const char *weights)
{
    rewrite(f, how);
    struct model_weights *mw = load_as(f->path, weights);
    enum ops_dtype dtype = mw->dtype;
    assert_true((mw->embed != NULL) == (dtype == OPS_F32));
    assert_true((mw->embed_bf16 != NULL) == (dtype == OPS_BF16));
    model_weights_free(mw);
    return dtype;
}

static void weights_are_kept_as_the_files_or_the_setting_say(void **state)
{
    (void)state;
    const struct rewrite f32 = {0}, bf16 = {.bf16 = true};
    const struct rewrite gains = {.bf16 = true, .gains_stay = true};
    const struct rewrite mixed = {.bf16 = true, .one_stays = true};
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    assert_int_equal(dtype_chosen(&f, f32, NULL), OPS_F32);
    assert_int_equal(dtype_chosen(&f, f32, "bf16"), OPS_BF16);
    assert_int_equal(dtype_chosen(&f, bf16, NULL), OPS_BF16);
    assert_int_equal(dtype_chosen(&f, bf16, "auto"), OPS_BF16);
    assert_int_equal(dtype_chosen(&f, bf16, "fp32"), OPS_F32);
    assert_int_equal(dtype_chosen(&f, gains, "auto"), OPS_BF16);
    assert_int_equal(dtype_chosen(&f, mixed, "auto"), OPS_F32);
    assert_int_equal(dtype_chosen(&f, mixed, "bf16"), OPS_BF16);
    load_as_refused(&f, "fp16", "weights is \"fp16\", expected auto, fp32 or bf16");
    folder_remove(&f);
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void bf16_weights_are_widened_exactly_where_fp32_is_asked_for(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    rewrite(&f, (struct rewrite){.bf16 = true});
    struct model_weights *full = load(TIED), *wide = load_as(f.path, "fp32");
    float *a = unpack(full->unembed, 96, 32, false), *b = unpack(wide->unembed, 96, 32, false);
    for (int i = 0; i < 96 * 32; i++) {
        assert_int_equal(bits_of(full->embed[i]) & 0xffff0000u, bits_of(wide->embed[i]));
        assert_int_equal(bits_of(a[i]) & 0xffff0000u, bits_of(b[i]));
    }
    free(a), free(b);
    assert_string_not_equal(full->sha256, wide->sha256);
    model_weights_free(full);
    model_weights_free(wide);
    folder_remove(&f);
}

/* One file, kept in bf16: the table and the matrices hold the same numbers, gains all of theirs. */
static void fp32_weights_are_rounded_to_the_nearest_where_bf16_is_asked_for(void **state)
{
    (void)state;
    struct model_weights *full = load(TIED), *half = load_as(TIED, "bf16");
    float *m = unpack(half->unembed, 96, 32, false);
    int up = 0;
    for (int i = 0; i < 96 * 32; i++) {
        uint32_t bits = bits_of(full->embed[i]), low = bits & 0xffffu;
        uint32_t want = (bits >> 16) + (low > 0x8000 || (low == 0x8000 && (bits >> 16) % 2));
        assert_int_equal(half->embed_bf16[i], want);
        assert_int_equal(bits_of(m[i]), want << 16);
        up += want != bits >> 16;
    }
    assert_in_range(up, 96 * 32 / 3, 96 * 32 * 2 / 3); /* about half are rounded up */
    assert_memory_equal(full->final_norm, half->final_norm, 32 * sizeof(float));
    assert_string_equal(full->sha256, half->sha256);
    free(m);
    model_weights_free(full);
    model_weights_free(half);
}

static void a_number_that_bf16_cannot_hold_is_refused_where_bf16_is_asked_for(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    rewrite(&f, (struct rewrite){.value = 0xff7f8000}); /* rounds to infinity */
    load_as_refused(&f, "bf16", "1 values that bf16 cannot hold");
    model_weights_free(load_as(f.path, "fp32"));
    rewrite(&f, (struct rewrite){.value = 0xff7f7fff}); /* rounds to bf16's largest */
    model_weights_free(load_as(f.path, "bf16"));
    folder_remove(&f);
}

static void a_tied_folder_may_repeat_its_embedding_but_not_change_it(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    rewrite(&f, (struct rewrite){.copy = true});
    model_weights_free(load(f.path));
    rewrite(&f, (struct rewrite){.other_copy = true});
    load_refused(&f, "differs from the embedding");
    folder_remove(&f);
}

static void weights_must_be_finite(void **state)
{
    (void)state;
    struct folder f = folder_create();
    folder_copy(&f, TIED);
    rewrite(&f, (struct rewrite){.value = 0x7fc00000});
    load_refused(&f, "1 values that are not finite");
    load_as_refused(&f, "bf16", "1 values that are not finite");
    rewrite(&f, (struct rewrite){.bf16 = true, .value = 0xff800000});
    load_refused(&f, "1 values that are not finite");
    folder_remove(&f);
}

/* ------------------------------------------------------------------ what lies in wait */

/* Sizes that no memory could hold are met as shapes that differ, before anything is sized. */
static void sizes_far_beyond_the_file_are_refused_as_shapes(void **state)
{
    (void)state;
    config_refused("vocab_size", "1048576", "has shape [96, 32], expected [1048576, 32]");
    config_refused("hidden_size", "32768", "has shape");
    config_refused("intermediate_size", "262144", "has shape");
    config_refused("head_dim", "512", "head_dim that is no whole number from 1 to 256");
}

static void files_that_were_cut_or_have_more_are_refused(void **state)
{
    (void)state;
    struct folder f = folder_create();
    size_t size;
    folder_copy(&f, TIED);
    char *bytes = folder_get(TIED "/model.safetensors", &size);
    bytes = realloc(bytes, size + 2);
    bytes[size] = 0;
    for (size_t cut = 0; cut < size; cut = cut * 2 + 7) {
        folder_put(&f, "model.safetensors", bytes, cut);
        load_refused(&f, "no good safetensors file");
    }
    folder_put(&f, "model.safetensors", bytes, size - 1);
    load_refused(&f, "expected 0 to");
    folder_put(&f, "model.safetensors", bytes, size + 1);
    load_refused(&f, "its tensors end at byte");
    free(bytes);
    folder_remove(&f);
}

static void pipes_and_folders_are_no_files(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "config.json"};
    for (int i = 0; i < 2; i++) {
        struct folder f = folder_create();
        folder_copy(&f, TIED);
        unlink(folder_at(&f, names[i]));
        assert_int_equal(mkfifo(folder_at(&f, names[i]), 0600), 0);
        load_refused(&f, "not a regular file");
        unlink(folder_at(&f, names[i]));
        assert_int_equal(mkdir(folder_at(&f, names[i]), 0700), 0);
        load_refused(&f, "not a regular file");
        folder_remove(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_configuration_of_a_tied_model),
        cmocka_unit_test(reads_shards_and_hashes_all_of_them),
        cmocka_unit_test(every_tensor_lands_where_its_name_says),
        cmocka_unit_test(eos_tokens_of_both_files_are_joined),
        cmocka_unit_test(rope_theta_may_stand_at_the_top),
        cmocka_unit_test(a_configuration_that_we_do_not_compute_is_refused),
        cmocka_unit_test(shapes_that_differ_from_the_configuration_are_named),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(an_index_that_lies_is_refused),
        cmocka_unit_test(an_index_that_is_nearly_right_is_refused),
        cmocka_unit_test(an_index_of_too_many_files_is_refused),
        cmocka_unit_test(weights_are_kept_as_the_files_or_the_setting_say),
        cmocka_unit_test(bf16_weights_are_widened_exactly_where_fp32_is_asked_for),
        cmocka_unit_test(fp32_weights_are_rounded_to_the_nearest_where_bf16_is_asked_for),
        cmocka_unit_test(a_number_that_bf16_cannot_hold_is_refused_where_bf16_is_asked_for),
        cmocka_unit_test(a_tied_folder_may_repeat_its_embedding_but_not_change_it),
        cmocka_unit_test(weights_must_be_finite),
        cmocka_unit_test(sizes_far_beyond_the_file_are_refused_as_shapes),
        cmocka_unit_test(files_that_were_cut_or_have_more_are_refused),
        cmocka_unit_test(pipes_and_folders_are_no_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

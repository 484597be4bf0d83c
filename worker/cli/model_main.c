/* model_main.c - tinworks-model: makes a Qwen3 folder with random weights, for tests and demos.
 *
 *   tinworks-model make --preset tiny --out DIR [--tokenizer DIR] [--seed N] [--dtype bf16] ...
 *
 * Weights are uniform, not normal: then they need no logarithm or cosine, and a seed gives the same
 * bytes on every machine.  Their spread keeps activations healthy: projections have variance 1 /
 * in, what a block adds to the residual stream is about half as large as an embedding, and logits
 * start near 1, so that the first loss is close to log(vocab) and LoRA on all projections can
 * learn. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/conf.h"
#include "base/log.h"
#include "engine/files.h"
#include "engine/model.h"
#include "engine/safetensors.h"

#define PATH_SIZE    4096
#define PIECE_FLOATS 65536 /* a multiple of philox_fill's 4 */
#define TENSORS_MAX  (256 * 11 + 3)

struct preset {
    const char *name;
    struct model_conf conf;
};

static const struct preset presets[] = {
    {"tiny",
     {.vocab = 1024,
      .hidden = 64,
      .layers = 4,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 16,
      .intermediate = 192,
      .context_max = 2048,
      .tied = true}},
    {"mini",
     {.vocab = 8192,
      .hidden = 512,
      .layers = 8,
      .heads = 8,
      .kv_heads = 4,
      .head_dim = 64,
      .intermediate = 1536,
      .context_max = 4096,
      .tied = false}},
};

struct settings {
    const char *preset, *out, *tokenizer, *dtype, *tied;
    int64_t seed;
    int64_t vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, context, rope_theta;
};

struct plan {
    struct model_conf conf;
    enum safetensors_dtype dtype;
    uint64_t seed;
    struct safetensors_tensor *tensors;
    float *bounds; /* of the uniform distribution; negative: all ones */
    int count;
};

/* ------------------------------------------------------------------ what to make */

static int settings_read(struct settings *s, int argc, char **argv, struct err *e)
{
    const struct conf_item items[] = {
        {"preset", CONF_STR, &s->preset, "tiny", 0, 0, "tiny or mini"},
        {"out", CONF_STR, &s->out, NULL, 0, 0, "the folder to make"},
        {"tokenizer", CONF_STR, &s->tokenizer, "models/tokenizer", 0, 0,
         "folder with tokenizer.json and tokenizer_config.json, copied beside the weights"},
        {"seed", CONF_INT, &s->seed, "1", 0, INT64_MAX, "seed of the weights"},
        {"dtype", CONF_STR, &s->dtype, "f32", 0, 0, "f32 or bf16"},
        {"vocab", CONF_INT, &s->vocab, "0", 0, 1 << 20,
         "entries of the vocabulary; 0: the preset's"},
        {"hidden", CONF_INT, &s->hidden, "0", 0, 1 << 15, "width; 0: the preset's"},
        {"layers", CONF_INT, &s->layers, "0", 0, 256, "0: the preset's"},
        {"heads", CONF_INT, &s->heads, "0", 0, 256, "query heads; 0: the preset's"},
        {"kv_heads", CONF_INT, &s->kv_heads, "0", 0, 256, "key and value heads; 0: the preset's"},
        {"head_dim", CONF_INT, &s->head_dim, "0", 0, 512, "0: the preset's"},
        {"intermediate", CONF_INT, &s->intermediate, "0", 0, 1 << 18, "0: the preset's"},
        {"context", CONF_INT, &s->context, "0", 0, 1 << 20, "longest sequence; 0: the preset's"},
        {"rope_theta", CONF_INT, &s->rope_theta, "10000", 1, 1 << 30,
         "base of the rotary positions' wavelengths"},
        {"tied", CONF_STR, &s->tied, "preset", 0, 0, "true, false or preset"},
        {NULL, 0, NULL, NULL, 0, 0, NULL},
    };
    return conf_read_flags(items, "makes a random Qwen3 folder", argc, argv, NULL, e);
}

static void override(int *value, int64_t given)
{
    if (given) *value = (int)given;
}

static int conf_of_settings(struct plan *p, const struct settings *s, struct err *e)
{
    const struct preset *preset = NULL;
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (!strcmp(s->preset, presets[i].name)) preset = &presets[i];
    if (!preset) return err_set(e, ERR_USER, "preset is \"%s\", expected tiny or mini", s->preset);
    struct model_conf *mc = &p->conf;
    *mc = preset->conf;
    mc->rms_eps = 1e-6f;
    mc->rope_theta = (float)s->rope_theta;
    override(&mc->vocab, s->vocab);
    override(&mc->hidden, s->hidden);
    override(&mc->layers, s->layers);
    override(&mc->heads, s->heads);
    override(&mc->kv_heads, s->kv_heads);
    override(&mc->head_dim, s->head_dim);
    override(&mc->intermediate, s->intermediate);
    override(&mc->context_max, s->context);
    if (!strcmp(s->tied, "true") || !strcmp(s->tied, "false"))
        mc->tied = !strcmp(s->tied, "true");
    else if (strcmp(s->tied, "preset"))
        return err_set(e, ERR_USER, "tied is \"%s\", expected true, false or preset", s->tied);
    if (mc->heads % mc->kv_heads || mc->head_dim % 2)
        return err_set(
            e, ERR_USER,
            "%d heads, %d key heads and head_dim %d do not fit: heads must be a multiple of "
            "key heads, head_dim even",
            mc->heads, mc->kv_heads, mc->head_dim);
    if (strcmp(s->dtype, "f32") && strcmp(s->dtype, "bf16"))
        return err_set(e, ERR_USER, "dtype is \"%s\", expected f32 or bf16", s->dtype);
    p->dtype = strcmp(s->dtype, "f32") ? DTYPE_BF16 : DTYPE_F32;
    p->seed = (uint64_t)s->seed;
    return 0;
}

/* ------------------------------------------------------------------ weights */

/* std < 0: all ones. */
static void add(struct plan *p, int layer, const char *name, int rows, int cols, float std)
{
    struct safetensors_tensor *t = &p->tensors[p->count];
    *t =
        (struct safetensors_tensor){.dtype = p->dtype, .rank = cols ? 2 : 1, .shape = {rows, cols}};
    t->count = (size_t)rows * (size_t)(cols ? cols : 1);
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s.weight", name);
    else
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s.weight", layer, name);
    p->bounds[p->count++] =
        std < 0 ? -1 : std * sqrtf(3); /* a uniform in +-b has variance b^2 / 3 */
}

static void add_layer(struct plan *p, int i, float residual)
{
    const struct model_conf *mc = &p->conf;
    int h = mc->hidden, q = mc->heads * mc->head_dim, kv = mc->kv_heads * mc->head_dim;
    float in_hidden = 1 / sqrtf((float)h);
    add(p, i, "input_layernorm", h, 0, -1);
    add(p, i, "mlp.down_proj", h, mc->intermediate, residual / sqrtf((float)mc->intermediate));
    add(p, i, "mlp.gate_proj", mc->intermediate, h, in_hidden);
    add(p, i, "mlp.up_proj", mc->intermediate, h, in_hidden);
    add(p, i, "post_attention_layernorm", h, 0, -1);
    add(p, i, "self_attn.k_norm", mc->head_dim, 0, -1);
    add(p, i, "self_attn.k_proj", kv, h, in_hidden);
    add(p, i, "self_attn.o_proj", h, q, residual / sqrtf((float)q));
    add(p, i, "self_attn.q_norm", mc->head_dim, 0, -1);
    add(p, i, "self_attn.q_proj", q, h, in_hidden);
    add(p, i, "self_attn.v_proj", kv, h, in_hidden);
}

static int plan_tensors(struct plan *p, struct err *e)
{
    const struct model_conf *mc = &p->conf;
    p->tensors = calloc(TENSORS_MAX, sizeof *p->tensors);
    p->bounds = calloc(TENSORS_MAX, sizeof *p->bounds);
    if (!p->tensors || !p->bounds) return err_set(e, ERR_RETRY, "out of memory");
    /* Tied, the embedding is also what logits are made with, and those should start near 1. */
    float embed = mc->tied ? 1 / sqrtf((float)mc->hidden) : 1;
    add(p, -1, "model.embed_tokens", mc->vocab, mc->hidden, embed);
    for (int i = 0; i < mc->layers; i++)
        add_layer(p, i, embed / 2);
    add(p, -1, "model.norm", mc->hidden, 0, -1);
    if (!mc->tied) add(p, -1, "lm_head", mc->vocab, mc->hidden, 0.5f / sqrtf((float)mc->hidden));
    return 0;
}

/* To nearest, ties to even; the weights are finite. */
static uint16_t bf16_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static int put_tensor(struct safetensors_writer *w, const struct plan *p, int index, float *piece,
                      struct err *e)
{
    const struct safetensors_tensor *t = &p->tensors[index];
    uint16_t half[PIECE_FLOATS];
    for (size_t at = 0, n; at < t->count; at += n) {
        n = t->count - at < PIECE_FLOATS ? t->count - at : PIECE_FLOATS;
        if (p->bounds[index] >= 0) philox_fill(piece, n, at, p->bounds[index], p->seed, t->name);
        for (size_t i = 0; p->bounds[index] < 0 && i < n; i++)
            piece[i] = 1;
        const void *bytes = piece;
        for (size_t i = 0; p->dtype == DTYPE_BF16 && i < n; i++)
            half[i] = bf16_of(piece[i]);
        if (p->dtype == DTYPE_BF16) bytes = half;
        if (safetensors_writer_put(w, bytes, n * safetensors_dtype_size(p->dtype), e) < 0)
            return -1;
    }
    return 0;
}

static int write_weights(const struct plan *p, const char *dir, struct err *e)
{
    char path[PATH_SIZE];
    if (file_path(path, sizeof path, dir, "model.safetensors", e) < 0) return -1;
    float *piece = malloc(PIECE_FLOATS * sizeof *piece);
    if (!piece) return err_set(e, ERR_RETRY, "out of memory");
    struct safetensors_writer *w = safetensors_writer_begin(path, p->tensors, p->count, e);
    int rc = w ? 0 : -1;
    for (int i = 0; i < p->count && rc == 0; i++)
        rc = put_tensor(w, p, i, piece, e);
    free(piece);
    if (rc == 0) return safetensors_writer_finish(w, e);
    safetensors_writer_abort(w);
    return -1;
}

/* ------------------------------------------------------------------ the small files */

static int copy_file(const char *from_dir, const char *to_dir, const char *name, struct err *e)
{
    char from[PATH_SIZE], to[PATH_SIZE];
    size_t size;
    if (file_path(from, sizeof from, from_dir, name, e) < 0 ||
        file_path(to, sizeof to, to_dir, name, e) < 0)
        return -1;
    void *bytes = file_read(from, (size_t)64 << 20, &size, e);
    if (!bytes) return -1;
    int rc = file_write(to, bytes, size, e);
    free(bytes);
    return rc;
}

static int token_id(const struct vocab *v, const char *text, int vocab)
{
    for (int32_t id = 0; id < vocab; id++) {
        size_t size;
        const char *bytes = vocab_bytes(v, id, &size);
        if (bytes && size == strlen(text) && !memcmp(bytes, text, size)) return id;
    }
    return -1;
}

/* The tokenizer must fit the vocabulary and know Qwen's two ends: of a turn and of a text. */
static int read_tokenizer(struct plan *p, const char *dir, struct err *e)
{
    size_t size;
    int rc = -1;
    struct vocab *v = vocab_load(dir, e);
    if (!v)
        return e->kind ? -1
                       : err_set(e, ERR_USER, "\"%s\" has no tokenizer.json (--tokenizer)", dir);
    int turn = token_id(v, "<|im_end|>", p->conf.vocab);
    int text = token_id(v, "<|endoftext|>", p->conf.vocab);
    if (turn < 0 || text < 0) {
        err_set(e, ERR_USER, "the tokenizer in \"%s\" has no <|im_end|> and <|endoftext|> below %d",
                dir, p->conf.vocab);
        goto out;
    }
    for (int32_t id = p->conf.vocab; id < 1 << 20; id++) {
        if (!vocab_bytes(v, id, &size)) continue;
        err_set(e, ERR_USER, "the tokenizer in \"%s\" has token %d, expected ids below %d", dir, id,
                p->conf.vocab);
        goto out;
    }
    p->conf.eos[0] = turn;
    p->conf.eos[1] = text;
    p->conf.eos_count = 2;
    rc = 0;
out:
    vocab_free(v);
    return rc;
}

static int write_json(const char *dir, const char *name, json_t *take, struct err *e)
{
    char path[PATH_SIZE];
    /* 7 digits: what fp32 holds, so that 1e-6 reads as 1e-6 */
    char *text = take ? json_dumps(take, JSON_INDENT(2) | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(take);
    if (!text) return err_set(e, ERR_RETRY, "out of memory");
    int rc = file_path(path, sizeof path, dir, name, e) < 0
                 ? -1
                 : file_write(path, text, strlen(text), e);
    free(text);
    return rc;
}

static int write_configs(const struct plan *p, const char *dir, struct err *e)
{
    const struct model_conf *mc = &p->conf;
    json_t *generation = json_pack("{s:[i,i], s:i}", "eos_token_id", mc->eos[0], mc->eos[1],
                                   "pad_token_id", mc->eos[1]);
    json_t *config = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:i, s:s, s:b, s:s}",
        "architectures", "Qwen3ForCausalLM", "model_type", "qwen3", "vocab_size", mc->vocab,
        "hidden_size", mc->hidden, "num_hidden_layers", mc->layers, "num_attention_heads",
        mc->heads, "num_key_value_heads", mc->kv_heads, "head_dim", mc->head_dim,
        "intermediate_size", mc->intermediate, "max_position_embeddings", mc->context_max,
        "rms_norm_eps", (double)mc->rms_eps, "rope_theta", (double)mc->rope_theta,
        "tie_word_embeddings", mc->tied, "eos_token_id", mc->eos[0], "hidden_act", "silu",
        "attention_bias", 0, "torch_dtype", p->dtype == DTYPE_BF16 ? "bfloat16" : "float32");
    if (write_json(dir, "generation_config.json", generation, e) < 0) {
        json_decref(config);
        return -1;
    }
    return write_json(dir, "config.json", config, e);
}

static int make_dir(const char *dir, struct err *e)
{
    char path[PATH_SIZE];
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_set(e, ERR_USER, "could not make folder \"%s\": %s", dir, strerror(errno));
    if (file_path(path, sizeof path, dir, "config.json", e) < 0) return -1;
    if (file_exists(path)) return err_set(e, ERR_USER, "there is a model in \"%s\" already", dir);
    return 0;
}

/* config.json comes last: a folder that has one is whole. */
static int make(const struct settings *s, struct plan *p, struct err *e)
{
    if (conf_of_settings(p, s, e) < 0 || read_tokenizer(p, s->tokenizer, e) < 0) return -1;
    if (plan_tensors(p, e) < 0 || make_dir(s->out, e) < 0) return -1;
    if (write_weights(p, s->out, e) < 0 ||
        copy_file(s->tokenizer, s->out, "tokenizer.json", e) < 0 ||
        copy_file(s->tokenizer, s->out, "tokenizer_config.json", e) < 0)
        return -1;
    return write_configs(p, s->out, e);
}

int main(int argc, char **argv)
{
    struct settings s = {0};
    struct plan p = {0};
    struct err e = {0};

    if (argc < 2 || strcmp(argv[1], "make")) {
        fprintf(stderr,
                "usage: tinworks-model make --preset tiny|mini --out DIR (make --help: all)\n");
        return 2;
    }
    if (settings_read(&s, argc - 1, argv + 1, &e) < 0 || make(&s, &p, &e) < 0) goto out;
    printf("made %s: %d layers, hidden %d, vocabulary %d, %s\n", s.out, p.conf.layers,
           p.conf.hidden, p.conf.vocab, s.dtype);
out:
    log_err("model.end", &e);
    free(p.tensors);
    free(p.bounds);
    return e.kind ? EXIT_FAILURE : EXIT_SUCCESS;
}

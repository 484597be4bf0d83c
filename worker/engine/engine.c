/* engine.c - opening and closing, and what others ask: the device, the model on it, room to work. */
#include "engine/inside.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_DEFAULT ((size_t)4 << 30)
#define KV_DEFAULT      ((size_t)1 << 30)
#define HOST_MAX        ((size_t)256 << 20)

void site_size(const struct model_conf *mc, enum lora_site site, int *in, int *out)
{
    int q = mc->heads * mc->head_dim, kv = mc->kv_heads * mc->head_dim;
    *in = site == SITE_O ? q : site == SITE_DOWN ? mc->intermediate : mc->hidden;
    switch (site) {
    case SITE_Q:
        *out = q;
        break;
    case SITE_K:
    case SITE_V:
        *out = kv;
        break;
    case SITE_GATE:
    case SITE_UP:
        *out = mc->intermediate;
        break;
    default:
        *out = mc->hidden;
    }
}

/* ------------------------------------------------------------------ the device */

static int open_device(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    const char *name = conf->device ? conf->device : "cpu";
    int index = 0, end = 0;
    if (strcmp(name, "cpu") == 0) {
        en->ops = ops_cpu();
    } else if (sscanf(name, "cuda:%d%n", &index, &end) == 1 && index >= 0 && !name[end]) {
        en->ops = ops_cuda(index, e);
    } else {
        return err_set(e, ERR_USER, "device is \"%s\", expected \"cpu\" or \"cuda:N\"", name);
    }
    if (!en->ops) return -1;
    en->threads = conf->threads;
    en->dev = en->ops->open(index, conf->threads, e);
    return en->dev ? 0 : -1;
}

size_t rope_bytes(const struct model_conf *mc)
{
    return (size_t)mc->head_dim / 2 * (size_t)mc->context_max * sizeof(float);
}

/* Angles as the reference makes them: frequency and product in fp32, only then cosine and sine. */
static int make_rope(struct engine *en, struct err *e)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t half = (size_t)mc->head_dim / 2;
    en->cosine = en->ops->alloc(en->dev, rope_bytes(mc), e);
    if (!en->cosine) return -1;
    en->sine = en->ops->alloc(en->dev, rope_bytes(mc), e);
    if (!en->sine) return -1;
    float row[2][OPS_HEAD_DIM_MAX / 2];
    for (int pos = 0; pos < mc->context_max; pos++) {
        for (size_t i = 0; i < half; i++) {
            float power = (float)(2 * i) / (float)mc->head_dim;
            float frequency = 1.0f / (float)pow((double)mc->rope_theta, (double)power);
            float angle = (float)pos * frequency;
            row[0][i] = (float)cos((double)angle);
            row[1][i] = (float)sin((double)angle);
        }
        size_t at = (size_t)pos * half;
        en->ops->upload(en->dev, en->cosine + at, row[0], half * sizeof(float));
        en->ops->upload(en->dev, en->sine + at, row[1], half * sizeof(float));
    }
    return 0;
}

/* ------------------------------------------------------------------ opening and closing */

static int open_vocab(struct engine *en, const char *dir, struct err *e)
{
    struct err why = {0};
    en->vocab = vocab_load(dir, &why);
    if (en->vocab || why.kind == ERR_NONE) return 0;
    if (e) *e = why;
    return -1;
}

static int fill_info(struct engine *en, const char *dir, struct err *e)
{
    const struct model_conf *mc = &en->mw->conf;
    char *copy = strdup(dir);
    if (!copy) return err_set(e, ERR_RETRY, "out of memory");
    en->info = (struct engine_info){.model_dir = copy,
                                    .arch = "qwen3",
                                    .vocab = mc->vocab,
                                    .hidden = mc->hidden,
                                    .layers = mc->layers,
                                    .heads = mc->heads,
                                    .kv_heads = mc->kv_heads,
                                    .head_dim = mc->head_dim,
                                    .intermediate = mc->intermediate,
                                    .context_max = mc->context_max,
                                    .tied = mc->tied,
                                    .eos = mc->eos,
                                    .eos_count = mc->eos_count,
                                    .weights = en->mw->dtype == OPS_BF16 ? "bf16" : "fp32",
                                    .numerics = en->ops->numerics(en->dev, en->mw->dtype)};
    memcpy(en->info.weights_sha256, en->mw->sha256, sizeof en->info.weights_sha256);
    return 0;
}

void engine_limits(struct engine *en, size_t scratch_max, size_t kv_max, size_t *kv_bytes)
{
    en->scratch_bytes_max = scratch_max ? scratch_max : SCRATCH_DEFAULT;
    *kv_bytes = kv_max ? kv_max : KV_DEFAULT;
}

void engine_shape(struct engine *en)
{
    const struct model_conf *mc = &en->mw->conf;
    en->shape = (struct attn_shape){mc->heads, mc->kv_heads, mc->head_dim};
    en->kv_floats = en->ops->kv_floats(&en->shape);
}

static int open_all(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    if (open_device(en, conf, e) < 0 || open_vocab(en, conf->model_dir, e) < 0) return -1;
    en->mw = model_weights_load(conf->model_dir, conf->weights, en->ops, en->dev, e);
    if (!en->mw) return -1;
    en->layers = en->mw->packed;
    en->unembed = en->mw->unembed;
    en->unembed_back = en->mw->unembed_back;
    if (fill_info(en, conf->model_dir, e) < 0) return -1;
    if (make_rope(en, e) < 0) return -1;
    size_t kv_bytes;
    engine_shape(en);
    engine_limits(en, conf->scratch_bytes_max, conf->kv_bytes_max, &kv_bytes);
    en->host = arena_create(HOST_MAX + sample_rooms_bytes(en), e);
    if (!en->host) return -1;
    return engine_sampling_open(en, kv_bytes, e);
}

struct engine *engine_open(const struct engine_conf *conf, struct err *e)
{
    struct engine *en = calloc(1, sizeof *en);
    if (!en) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    if (open_all(en, conf, e) < 0) {
        err_prefix(e, "could not open model \"%s\"", conf->model_dir);
        engine_close(en);
        return NULL;
    }
    return en;
}

void engine_close(struct engine *en)
{
    if (!en) return;
    if (en->dev) {
        engine_sampling_close(en);
        en->ops->release(en->dev, en->cosine);
        en->ops->release(en->dev, en->sine);
        en->ops->release(en->dev, en->scratch);
        model_weights_free(en->mw);
        en->ops->close(en->dev);
    }
    arena_free(en->host);
    vocab_free(en->vocab);
    free((char *)en->info.model_dir);
    free(en);
}

int engine_scratch(struct engine *en, size_t bytes, struct err *e)
{
    if (bytes > en->scratch_bytes_max)
        return err_set(e, ERR_USER, "a pass needs %zu bytes of activations, the limit is %zu",
                       bytes, en->scratch_bytes_max);
    if (bytes <= en->scratch_bytes) return 0;
    en->ops->release(en->dev, en->scratch);
    en->scratch_bytes = 0;
    en->scratch = en->ops->alloc(en->dev, bytes, e);
    if (!en->scratch) return -1;
    en->scratch_bytes = bytes;
    return 0;
}

/* ------------------------------------------------------------------ what others ask */

const struct engine_info *engine_info(const struct engine *en)
{
    return &en->info;
}

const struct model_conf *engine_model_conf(const struct engine *en)
{
    return &en->mw->conf;
}

const char *engine_token_bytes(const struct engine *en, int32_t id, size_t *size)
{
    return en->vocab ? vocab_bytes(en->vocab, id, size) : NULL;
}

bool engine_has_tokenizer(const struct engine *en)
{
    return en->vocab != NULL;
}

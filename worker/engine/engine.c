/* engine.c - opening and closing, and what others ask: the device, the model on it, room to work. */
#include "engine/head.h"
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

enum cut site_cut(enum lora_site site)
{
    return site == SITE_O || site == SITE_DOWN ? CUT_IN : CUT_OUT;
}

/* ------------------------------------------------------------------ the device */

static int open_device(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    const char *name = conf->device ? conf->device : "cpu";
    int index = 0, end = 0;
    bool several = en->rank_count > 1 || conf->replicas > 1;
    if (strcmp(name, "cpu") == 0) {
        en->ops = ops_cpu();
        en->comm_ops = several ? comm_cpu() : NULL;
    } else if (sscanf(name, "cuda:%d%n", &index, &end) == 1 && index >= 0 && !name[end]) {
        index += en->replica * en->rank_count + en->rank;
        en->ops = ops_cuda(index, e);
        en->comm_ops = en->ops && several ? comm_nccl(e) : NULL;
    } else {
        return err_set(e, ERR_USER, "device is \"%s\", expected \"cpu\" or \"cuda:N\"", name);
    }
    if (!en->ops || (several && !en->comm_ops)) return -1;
    en->dev = en->ops->open(index, conf->threads, e);
    return en->dev ? 0 : -1;
}

/* ------------------------------------------------------------------ ranks */

void engine_on_ranks(struct engine *en, team_fn *fn, void *arg)
{
    team_run(en->team, fn, arg);
}

int engine_sync(struct engine *en, struct err *e)
{
    for (int r = 0; r < en->rank_count; r++)
        if (en->ranks[r]->ops->sync(en->ranks[r]->dev, e) < 0) return -1;
    return 0;
}

/* The devices of all ranks of a replica, their threads, and what sums over them. */
static int open_ranks(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    struct device *devices[ENGINE_RANKS_MAX];
    struct comm *ends[ENGINE_RANKS_MAX];
    int n = conf->ranks > 1 ? conf->ranks : 1;
    for (int r = 0; r < n; r++) {
        struct engine *one = en->ranks[r] = r ? calloc(1, sizeof *one) : en;
        if (!one) return err_set(e, ERR_RETRY, "out of memory");
        en->rank_count = r + 1; /* so many are there to be closed */
        one->rank = r;
        one->replica = en->replica;
        one->paged_moments = conf->paged_moments;
    }
    for (int r = 0; r < n; r++) {
        en->ranks[r]->rank_count = n;
        if (open_device(en->ranks[r], conf, e) < 0) return -1;
        devices[r] = en->ranks[r]->dev;
    }
    if (n == 1) return 0;
    if (en->comm_ops->open(devices, n, ends, e) < 0) return -1;
    for (int r = 0; r < n; r++)
        en->ranks[r]->comm = ends[r];
    en->team = team_create(n, e);
    return en->team ? 0 : -1;
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

/* How many devices add up what is part of the numerics class. */
static void name_degrees(struct engine *en)
{
    char ranks[16] = "", replicas[16] = "";
    if (en->rank_count > 1) snprintf(ranks, sizeof ranks, "/tp %d", en->rank_count);
    if (en->replica_count > 1) snprintf(replicas, sizeof replicas, "/dp %d", en->replica_count);
    if (!*ranks && !*replicas) return;
    snprintf(en->numerics, sizeof en->numerics, "%s%s%s", en->info.numerics, ranks, replicas);
    en->info.numerics = en->numerics;
}

static int fill_info(struct engine *en, const char *dir, struct err *e)
{
    const struct model_conf *mc = &en->mw->whole;
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
                                    .ranks = en->rank_count,
                                    .replicas = en->replica_count,
                                    .numerics = en->ops->numerics(en->dev, en->mw->dtype)};
    memcpy(en->info.weights_sha256, en->mw->sha256, sizeof en->info.weights_sha256);
    name_degrees(en);
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
    en->act_dtype = en->ops->act_dtype(en->mw->dtype);
    en->pass_rows = en->ops->pass_rows;
    en->logits_bytes = en->ops->logits_bytes;
}

/* model_weights_load() or model_weights_random() */
typedef struct model_weights *weights_fn(const char *dir, const char *weights, int rank, int ranks,
                                         const struct ops *ops, struct device *dev, struct err *e);

/* Of all ranks of a replica, or of all replicas. */
struct loading {
    struct engine *en;
    const struct engine_conf *conf;
    weights_fn *weights;
    struct err errors[ENGINE_RANKS_MAX];
    int rc[ENGINE_RANKS_MAX];
};

static int loaded(const struct loading *l, int count, struct err *e)
{
    for (int i = 0; i < count; i++) {
        if (l->rc[i] == 0) continue;
        if (e) *e = l->errors[i];
        return -1;
    }
    return 0;
}

static int same_files(const struct engine *en, const struct engine *first, struct err *e)
{
    if (strcmp(en->mw->sha256, first->mw->sha256) == 0) return 0;
    return err_set(e, ERR_RETRY, "the weight files changed while they were read");
}

static int load_part(struct engine *en, const struct loading *l, struct err *e)
{
    en->mw = l->weights(l->conf->model_dir, l->conf->weights, en->rank, en->rank_count, en->ops,
                        en->dev, e);
    if (!en->mw) return -1;
    en->layers = en->mw->packed;
    en->unembed = en->mw->unembed;
    en->unembed_back = en->mw->unembed_back;
    engine_shape(en);
    if (en->comm && head_open(en, e) < 0) return -1;
    return make_rope(en, e);
}

static void load_rank(void *arg, int rank)
{
    struct loading *l = arg;
    l->rc[rank] = load_part(l->en->ranks[rank], l, &l->errors[rank]);
}

/* Each rank reads all files and keeps its part; so they must have read the same. */
static int load_ranks(struct engine *en, const struct engine_conf *conf, weights_fn *weights,
                      struct err *e)
{
    struct loading l = {.en = en, .conf = conf, .weights = weights};
    engine_on_ranks(en, load_rank, &l);
    if (loaded(&l, en->rank_count, e) < 0) return -1;
    for (int r = 1; r < en->rank_count; r++)
        if (same_files(en->ranks[r], en, e) < 0) return -1;
    return 0;
}

static void load_replica(void *arg, int replica)
{
    struct loading *l = arg;
    l->rc[replica] = load_ranks(l->en->replicas[replica], l->conf, l->weights, &l->errors[replica]);
}

static int load_replicas(struct engine *en, const struct engine_conf *conf, weights_fn *weights,
                         struct err *e)
{
    struct loading l = {.en = en, .conf = conf, .weights = weights};
    engine_on_replicas(en, load_replica, &l);
    if (loaded(&l, en->replica_count, e) < 0) return -1;
    for (int d = 1; d < en->replica_count; d++)
        if (same_files(en->replicas[d], en, e) < 0) return -1;
    return 0;
}

/* The room in which a replica works. */
static int open_rooms(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    size_t kv_bytes;
    engine_limits(en, conf->scratch_bytes_max, conf->kv_bytes_max, &kv_bytes);
    en->host = arena_create(HOST_MAX, e);
    if (!en->host) return -1;
    for (int r = 1; r < en->rank_count; r++)
        en->ranks[r]->host = en->host;
    return engine_sampling_open(en, kv_bytes, e);
}

static int open_all(struct engine *en, const struct engine_conf *conf, weights_fn *weights,
                    struct err *e)
{
    if (replicas_make(en, conf, e) < 0) return -1;
    for (int d = 0; d < en->replica_count; d++)
        if (open_ranks(en->replicas[d], conf, e) < 0) return -1;
    if (replicas_join(en, e) < 0 || open_vocab(en, conf->model_dir, e) < 0) return -1;
    if (load_replicas(en, conf, weights, e) < 0 || fill_info(en, conf->model_dir, e) < 0) return -1;
    for (int d = 0; d < en->replica_count; d++) {
        struct engine *one = en->replicas[d];
        one->info = en->info;
        one->vocab = en->vocab;
        if (open_rooms(one, conf, e) < 0) return -1;
    }
    return 0;
}

static struct engine *open_with(const struct engine_conf *conf, weights_fn *weights, struct err *e)
{
    struct engine *en = calloc(1, sizeof *en);
    if (!en) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    if (open_all(en, conf, weights, e) < 0) {
        err_prefix(e, "could not open model \"%s\"", conf->model_dir);
        engine_close(en);
        return NULL;
    }
    return en;
}

struct engine *engine_open(const struct engine_conf *conf, struct err *e)
{
    return open_with(conf, model_weights_load, e);
}

struct engine *engine_open_random(const struct engine_conf *conf, struct err *e)
{
    return open_with(conf, model_weights_random, e);
}

static void close_ranks(struct engine *en)
{
    struct comm *ends[ENGINE_RANKS_MAX];
    for (int r = 0; r < en->rank_count; r++)
        ends[r] = en->ranks[r]->comm;
    team_free(en->team);
    if (en->comm_ops) en->comm_ops->close(ends, en->rank_count);
    for (int r = 0; r < en->rank_count; r++) {
        struct engine *one = en->ranks[r];
        if (one->dev) {
            one->ops->release(one->dev, one->cosine);
            one->ops->release(one->dev, one->sine);
            one->ops->release(one->dev, one->scratch);
            model_weights_free(one->mw);
            one->ops->close(one->dev);
        }
        head_close(one);
        if (one != en) free(one);
    }
}

static void close_replica(struct engine *en)
{
    if (en->dev) engine_sampling_close(en);
    close_ranks(en);
    arena_free(en->host);
}

void engine_close(struct engine *en)
{
    if (!en) return;
    replicas_part(en);
    for (int d = 1; d < en->replica_count; d++) {
        close_replica(en->replicas[d]);
        free(en->replicas[d]);
    }
    close_replica(en);
    vocab_free(en->vocab);
    free((char *)en->info.model_dir);
    free(en);
}

int engine_scratch(struct engine *en, size_t bytes, struct err *e)
{
    if (bytes > en->scratch_bytes_max)
        return err_set(e, ERR_USER, "a pass needs %zu bytes of activations, the limit is %zu",
                       bytes, en->scratch_bytes_max);
    for (int r = 0; r < en->rank_count; r++) {
        struct engine *one = en->ranks[r];
        if (bytes <= one->scratch_bytes) continue;
        one->ops->release(one->dev, one->scratch);
        one->scratch_bytes = 0;
        one->scratch = one->ops->alloc(one->dev, bytes, e);
        if (!one->scratch) return -1;
        one->scratch_bytes = bytes;
    }
    return 0;
}

/* ------------------------------------------------------------------ what others ask */

const struct engine_info *engine_info(const struct engine *en)
{
    return &en->info;
}

int engine_device_memory(const struct engine *en, size_t *free_bytes, size_t *total_bytes,
                         struct err *e)
{
    for (int i = 0; i < en->replica_count * en->rank_count; i++) {
        const struct engine *one = en->replicas[i / en->rank_count]->ranks[i % en->rank_count];
        size_t left, total;
        if (one->ops->memory(one->dev, &left, &total, e) < 0) return -1;
        if (i && left >= *free_bytes) continue;
        *free_bytes = left;
        *total_bytes = total;
    }
    return 0;
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

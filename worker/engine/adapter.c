/* adapter.c - a LoRA adapter's memory: which projections it sits on, where each tensor lies, how it
 * begins, and the digest of its whole state. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "engine/model.h"
#include "seal/seal.h"

#define ALIGN_FLOATS 16 /* 64 bytes */
#define PARTS        4  /* weights, gradient, m, v */

static const char *const site_names[SITES_A_LAYER] = {
    [SITE_Q] = "self_attn.q_proj", [SITE_K] = "self_attn.k_proj", [SITE_V] = "self_attn.v_proj",
    [SITE_O] = "self_attn.o_proj", [SITE_GATE] = "mlp.gate_proj", [SITE_UP] = "mlp.up_proj",
    [SITE_DOWN] = "mlp.down_proj",
};

void lora_site_name(const struct adapter *ad, int index, char *out, size_t size)
{
    if (index == ad->layers * SITES_A_LAYER)
        snprintf(out, size, "lm_head");
    else
        snprintf(out, size, "model.layers.%d.%s", index / SITES_A_LAYER,
                 site_names[index % SITES_A_LAYER]);
}

/* ------------------------------------------------------------------ shapes and memory */

static void site_shape(const struct model_conf *mc, int site, int *in, int *out)
{
    int q = mc->heads * mc->head_dim, kv = mc->kv_heads * mc->head_dim;
    const int shapes[SITES_A_LAYER][2] = {
        [SITE_Q] = {mc->hidden, q},
        [SITE_K] = {mc->hidden, kv},
        [SITE_V] = {mc->hidden, kv},
        [SITE_O] = {q, mc->hidden},
        [SITE_GATE] = {mc->hidden, mc->intermediate},
        [SITE_UP] = {mc->hidden, mc->intermediate},
        [SITE_DOWN] = {mc->intermediate, mc->hidden},
    };
    *in = shapes[site][0];
    *out = shapes[site][1];
}

static bool site_trained(const struct lora_conf *conf, int site)
{
    return site <= SITE_O ? conf->train_attn : conf->train_mlp;
}

static size_t aligned_count(int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)cols;
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

/* Floats of one part: all A and B, each padded to 64 bytes.  Bounds on the configuration and the
 * rank keep the sum far from overflow. */
static size_t part_floats(const struct model_conf *mc, const struct lora_conf *conf)
{
    size_t layer = 0, unembed = 0;
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_shape(mc, s, &in, &out);
        if (site_trained(conf, s))
            layer += aligned_count(conf->rank, in) + aligned_count(out, conf->rank);
    }
    if (conf->train_unembed)
        unembed = aligned_count(conf->rank, mc->hidden) + aligned_count(mc->vocab, conf->rank);
    return layer * (size_t)mc->layers + unembed;
}

static void place_site(struct lora_tensor *t, int rank, bool trainable, size_t part, float **at)
{
    size_t a = aligned_count(rank, t->in), b = aligned_count(t->out, rank);
    t->a = *at;
    t->b = *at + a;
    *at += a + b;
    if (!trainable) return;
    t->grad_a = t->a + part;
    t->grad_b = t->b + part;
    t->m_a = t->grad_a + part;
    t->m_b = t->grad_b + part;
    t->v_a = t->m_a + part;
    t->v_b = t->m_b + part;
}

static void place_sites(struct adapter *ad, const struct model_conf *mc)
{
    float *at = ad->memory;
    for (int i = 0; i < ad->site_count; i++) {
        struct lora_tensor *t = &ad->sites[i];
        bool last = i == ad->site_count - 1;
        if (last)
            *t = (struct lora_tensor){.in = mc->hidden, .out = mc->vocab};
        else
            site_shape(mc, i % SITES_A_LAYER, &t->in, &t->out);
        if (last ? ad->conf.train_unembed : site_trained(&ad->conf, i % SITES_A_LAYER))
            place_site(t, ad->conf.rank, ad->trainable, ad->part_count, &at);
    }
}

int lora_conf_check(const struct lora_conf *conf, struct err *e)
{
    if (conf->rank < 1 || conf->rank > ENGINE_RANK_MAX)
        return err_set(e, ERR_USER, "rank is %d, expected 1 to %d", conf->rank, ENGINE_RANK_MAX);
    if (!conf->train_attn && !conf->train_mlp && !conf->train_unembed)
        return err_set(e, ERR_USER,
                       "an adapter needs one of train_attn, train_mlp and train_unembed");
    return 0;
}

struct adapter *adapter_alloc(const struct model_conf *mc, const struct lora_conf *conf,
                              bool trainable, struct err *e)
{
    if (lora_conf_check(conf, e) < 0) return NULL;
    struct adapter *ad = calloc(1, sizeof *ad);
    if (!ad) goto fail;
    ad->conf = *conf;
    ad->scale = ENGINE_LORA_ALPHA / (float)conf->rank;
    ad->layers = mc->layers;
    ad->site_count = mc->layers * SITES_A_LAYER + 1;
    ad->trainable = trainable;
    ad->part_count = part_floats(mc, conf);
    ad->memory_count = ad->part_count * (trainable ? PARTS : 1);
    ad->sites = calloc((size_t)ad->site_count, sizeof *ad->sites);
    ad->memory = memory_alloc(ad->memory_count * sizeof(float));
    if (!ad->sites || !ad->memory) goto fail;
    place_sites(ad, mc);
    return ad;
fail:
    err_set(e, ERR_RETRY, "out of memory for an adapter of rank %d", conf->rank);
    adapter_free(ad);
    return NULL;
}

void adapter_free(struct adapter *ad)
{
    if (!ad) return;
    free(ad->memory);
    free(ad->sites);
    free(ad);
}

size_t adapter_bytes(const struct engine *en, const struct lora_conf *conf, bool optimizer)
{
    return part_floats(engine_model_conf(en), conf) * (optimizer ? PARTS : 1) * sizeof(float);
}

/* ------------------------------------------------------------------ a fresh one */

void adapter_name_base(struct adapter *ad, const char *model_dir)
{
    size_t end = strlen(model_dir), begin;
    while (end > 1 && model_dir[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && model_dir[begin - 1] != '/';)
        begin--;
    snprintf(ad->base_model, sizeof ad->base_model, "%.*s", (int)(end - begin), model_dir + begin);
}

struct adapter *adapter_create(struct engine *en, const struct lora_conf *conf, uint64_t seed,
                               struct err *e)
{
    struct adapter *ad = adapter_alloc(engine_model_conf(en), conf, true, e);
    if (!ad) return NULL;
    adapter_name_base(ad, engine_info(en)->model_dir);
    for (int i = 0; i < ad->site_count; i++) {
        const struct lora_tensor *t = &ad->sites[i];
        char name[64];
        if (!t->a) continue;
        lora_site_name(ad, i, name, sizeof name);
        philox_fill(t->a, (size_t)conf->rank * (size_t)t->in, 0, 1.0f / sqrtf((float)t->in), seed,
                    name);
    }
    return ad;
}

/* ------------------------------------------------------------------ looking at it */

const struct lora_conf *adapter_conf(const struct adapter *ad)
{
    return &ad->conf;
}

int64_t adapter_step(const struct adapter *ad)
{
    return ad->step;
}

bool adapter_has_gradient(const struct adapter *ad)
{
    return ad->has_gradient;
}

static void hash_pair(struct seal_hash *h, const struct lora_tensor *t, int rank, const float *a,
                      const float *b)
{
    seal_hash_add(h, a, (size_t)rank * (size_t)t->in * sizeof *a);
    seal_hash_add(h, b, (size_t)rank * (size_t)t->out * sizeof *b);
}

static void hash_site(struct seal_hash *h, const struct adapter *ad, const struct lora_tensor *t)
{
    const int32_t shape[3] = {t->a ? ad->conf.rank : 0, t->in, t->out};
    seal_hash_add(h, shape, sizeof shape);
    if (!t->a) return;
    hash_pair(h, t, ad->conf.rank, t->a, t->b);
    if (!ad->trainable) return;
    hash_pair(h, t, ad->conf.rank, t->m_a, t->m_b);
    hash_pair(h, t, ad->conf.rank, t->v_a, t->v_b);
    if (ad->has_gradient) hash_pair(h, t, ad->conf.rank, t->grad_a, t->grad_b);
}

void adapter_digest(const struct adapter *ad, char out[65])
{
    struct err e = {0};
    uint8_t digest[SEAL_SHA256_SIZE];
    struct seal_hash *h = seal_hash_begin(&e);
    if (!h) abort(); /* libcrypto without SHA-256, or no memory for a few hundred bytes */
    const int64_t head[] = {
        ad->conf.rank, ad->conf.train_attn, ad->conf.train_mlp, ad->conf.train_unembed,
        ad->layers,    ad->trainable,       ad->has_gradient,   ad->step};
    seal_hash_add(h, head, sizeof head);
    for (int i = 0; i < ad->site_count; i++)
        hash_site(h, ad, &ad->sites[i]);
    seal_hash_end(h, digest);
    seal_hex(digest, sizeof digest, out);
}

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
        site_size(mc, (enum lora_site)s, &in, &out);
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
        t->in = mc->hidden;
        t->out = mc->vocab;
        t->cut = last ? CUT_OUT : site_cut((enum lora_site)(i % SITES_A_LAYER));
        if (!last) site_size(mc, (enum lora_site)(i % SITES_A_LAYER), &t->in, &t->out);
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

static struct adapter *alloc_rank(const struct model_conf *mc, const struct lora_conf *conf,
                                  bool trainable)
{
    struct adapter *ad = calloc(1, sizeof *ad);
    if (!ad) return NULL;
    ad->rank_count = 1;
    ad->ranks[0] = ad;
    ad->conf = *conf;
    ad->scale = ENGINE_LORA_ALPHA / (float)conf->rank;
    ad->layers = mc->layers;
    ad->site_count = mc->layers * SITES_A_LAYER + 1;
    ad->trainable = trainable;
    ad->part_count = part_floats(mc, conf);
    ad->memory_count = ad->part_count * (trainable ? PARTS : 1);
    ad->sites = calloc((size_t)ad->site_count, sizeof *ad->sites);
    ad->memory = memory_alloc(ad->memory_count * sizeof(float));
    if (ad->sites && ad->memory) {
        place_sites(ad, mc);
        return ad;
    }
    adapter_free(ad);
    return NULL;
}

struct adapter *adapter_alloc(const struct model_conf *mc, const struct lora_conf *conf,
                              bool trainable, struct err *e)
{
    if (lora_conf_check(conf, e) < 0) return NULL;
    struct adapter *ad = alloc_rank(mc, conf, trainable);
    for (int r = 1; ad && r < mc->ranks; r++) {
        ad->ranks[r] = alloc_rank(mc, conf, trainable);
        if (!ad->ranks[r]) break;
        ad->rank_count = r + 1;
    }
    if (ad && ad->rank_count == mc->ranks) return ad;
    err_set(e, ERR_RETRY, "out of memory for an adapter of rank %d", conf->rank);
    adapter_free(ad);
    return NULL;
}

void adapter_free(struct adapter *ad)
{
    if (!ad) return;
    for (int r = 1; r < ad->rank_count; r++)
        adapter_free(ad->ranks[r]);
    free(ad->memory);
    free(ad->sites);
    free(ad);
}

size_t adapter_bytes(const struct engine *en, const struct lora_conf *conf, bool optimizer)
{
    const struct model_conf *mc = engine_model_conf(en);
    return part_floats(mc, conf) * (size_t)mc->ranks * (optimizer ? PARTS : 1) * sizeof(float);
}

/* ------------------------------------------------------------------ tensors over ranks */

static bool is_cut(const struct adapter *ad, const struct lora_tensor *t, int b)
{
    return ad->rank_count > 1 && t->cut == (b ? CUT_OUT : CUT_IN);
}

void adapter_tensor_size(const struct adapter *ad, int site, int b, int64_t *rows, int64_t *cols)
{
    const struct lora_tensor *t = &ad->sites[site];
    int times = is_cut(ad, t, b) ? ad->rank_count : 1;
    *rows = b ? (int64_t)t->out * times : ad->conf.rank;
    *cols = b ? ad->conf.rank : (int64_t)t->in * times;
}

static float *part_of(const struct lora_tensor *t, enum part part, int b)
{
    switch (part) {
    case PART_WEIGHTS:
        return b ? t->b : t->a;
    case PART_GRADIENT:
        return b ? t->grad_b : t->grad_a;
    case PART_M:
        return b ? t->m_b : t->m_a;
    default:
        return b ? t->v_b : t->v_a;
    }
}

/* B is cut by rows, so a rank's part is one piece; A by columns, so each row of a part is. */
float *adapter_tensor_piece(const struct adapter *ad, int site, enum part part, int b, size_t at,
                            size_t *count)
{
    const struct lora_tensor *t = &ad->sites[site];
    size_t rank = (size_t)ad->conf.rank, piece = b ? (size_t)t->out * rank : (size_t)t->in;
    if (!is_cut(ad, t, b)) {
        *count = rank * (size_t)(b ? t->out : t->in) - at;
        return part_of(t, part, b) + at;
    }
    size_t nth = at / piece, ranks = (size_t)ad->rank_count, inside = at % piece;
    const struct adapter *owner = ad->ranks[nth % ranks];
    *count = piece - inside;
    return part_of(&owner->sites[site], part, b) + nth / ranks * piece + inside;
}

void adapter_tensor_spread(const struct adapter *ad, int site, enum part part, int b)
{
    const struct lora_tensor *t = &ad->sites[site];
    size_t count = (size_t)ad->conf.rank * (size_t)(b ? t->out : t->in);
    if (is_cut(ad, t, b)) return;
    for (int r = 1; r < ad->rank_count; r++)
        memcpy(part_of(&ad->ranks[r]->sites[site], part, b), part_of(t, part, b),
               count * sizeof(float));
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

/* A's numbers depend on their places in the whole tensor, which is drawn first if it is cut. */
static int draw_a(struct adapter *ad, int site, uint64_t seed, struct err *e)
{
    const struct lora_tensor *t = &ad->sites[site];
    int64_t rows, cols;
    char name[64];
    adapter_tensor_size(ad, site, 0, &rows, &cols);
    size_t count = (size_t)(rows * cols);
    float *whole = is_cut(ad, t, 0) ? malloc(count * sizeof *whole) : t->a;
    if (!whole) return err_set(e, ERR_RETRY, "out of memory for an adapter");
    lora_site_name(ad, site, name, sizeof name);
    philox_fill(whole, count, 0, 1.0f / sqrtf((float)cols), seed, name);
    for (size_t at = 0, n; whole != t->a && at < count; at += n) {
        float *piece = adapter_tensor_piece(ad, site, PART_WEIGHTS, 0, at, &n);
        memcpy(piece, whole + at, n * sizeof *piece);
    }
    if (whole != t->a) free(whole);
    adapter_tensor_spread(ad, site, PART_WEIGHTS, 0);
    return 0;
}

struct adapter *adapter_create(struct engine *en, const struct lora_conf *conf, uint64_t seed,
                               struct err *e)
{
    if (engine_adapters_check(en, e) < 0) return NULL;
    struct adapter *ad = adapter_alloc(engine_model_conf(en), conf, true, e);
    if (!ad) return NULL;
    adapter_name_base(ad, engine_info(en)->model_dir);
    for (int i = 0; i < ad->site_count; i++) {
        if (!ad->sites[i].a || draw_a(ad, i, seed, e) == 0) continue;
        adapter_free(ad);
        return NULL;
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

static void hash_pair(struct seal_hash *h, const struct adapter *ad, int site, enum part part)
{
    for (int b = 0; b < 2; b++) {
        int64_t rows, cols;
        adapter_tensor_size(ad, site, b, &rows, &cols);
        for (size_t at = 0, n; at < (size_t)(rows * cols); at += n) {
            const float *piece = adapter_tensor_piece(ad, site, part, b, at, &n);
            seal_hash_add(h, piece, n * sizeof *piece);
        }
    }
}

static void hash_site(struct seal_hash *h, const struct adapter *ad, int site)
{
    bool there = ad->sites[site].a != NULL;
    int64_t rank, in, out;
    adapter_tensor_size(ad, site, 0, &rank, &in);
    adapter_tensor_size(ad, site, 1, &out, &rank);
    const int32_t shape[3] = {there ? ad->conf.rank : 0, (int32_t)in, (int32_t)out};
    seal_hash_add(h, shape, sizeof shape);
    if (!there) return;
    hash_pair(h, ad, site, PART_WEIGHTS);
    if (!ad->trainable) return;
    hash_pair(h, ad, site, PART_M);
    hash_pair(h, ad, site, PART_V);
    if (ad->has_gradient) hash_pair(h, ad, site, PART_GRADIENT);
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
        hash_site(h, ad, i);
    seal_hash_end(h, digest);
    seal_hex(digest, sizeof digest, out);
}

/* adapter.c - a LoRA adapter's memory on its devices: which projections it sits on, where each tensor
 * lies, how the host reads and writes it, how it begins, and the digest of its whole state. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/inside.h"
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

/* *at: floats from the beginning of a part. */
static void place_site(const struct adapter *ad, struct lora_tensor *t, size_t *at)
{
    size_t a = aligned_count(ad->conf.rank, t->in), b = aligned_count(t->out, ad->conf.rank);
    t->a = ad->memory + *at;
    t->b = t->a + a;
    if (ad->trainable) {
        t->grad_a = t->a + ad->part_count;
        t->grad_b = t->b + ad->part_count;
        t->m_a = ad->moments + *at;
        t->m_b = t->m_a + a;
        t->v_a = t->m_a + ad->part_count;
        t->v_b = t->m_b + ad->part_count;
    }
    *at += a + b;
}

static void place_sites(struct adapter *ad, const struct model_conf *mc)
{
    size_t at = 0;
    for (int i = 0; i < ad->site_count; i++) {
        struct lora_tensor *t = &ad->sites[i];
        bool last = i == ad->site_count - 1;
        t->in = mc->hidden;
        t->out = mc->vocab;
        t->cut = last ? CUT_OUT : site_cut((enum lora_site)(i % SITES_A_LAYER));
        if (!last) site_size(mc, (enum lora_site)(i % SITES_A_LAYER), &t->in, &t->out);
        if (last ? ad->conf.train_unembed : site_trained(&ad->conf, i % SITES_A_LAYER))
            place_site(ad, t, &at);
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

static float *alloc_moments(struct engine *en, size_t bytes, struct err *e)
{
    return en->paged_moments ? en->ops->alloc_paged(en->dev, bytes, e)
                             : en->ops->alloc(en->dev, bytes, e);
}

static struct adapter *alloc_rank(struct engine *en, const struct lora_conf *conf, bool trainable,
                                  struct err *e)
{
    const struct model_conf *mc = engine_model_conf(en);
    struct adapter *ad = calloc(1, sizeof *ad);
    struct lora_tensor *sites = calloc((size_t)mc->layers * SITES_A_LAYER + 1, sizeof *sites);
    if (!ad || !sites) {
        free(ad);
        free(sites);
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    *ad = (struct adapter){.ops = en->ops,
                           .dev = en->dev,
                           .conf = *conf,
                           .scale = ENGINE_LORA_ALPHA / (float)conf->rank,
                           .layers = mc->layers,
                           .rank_count = 1,
                           .replica_count = 1,
                           .sites = sites,
                           .site_count = mc->layers * SITES_A_LAYER + 1,
                           .trainable = trainable,
                           .paged = en->paged_moments,
                           .part_count = part_floats(mc, conf)};
    size_t part = ad->part_count * sizeof(float);
    ad->ranks[0] = ad->replicas[0] = ad;
    ad->memory = en->ops->alloc(en->dev, trainable ? 2 * part : part, e);
    if (ad->memory && trainable) ad->moments = alloc_moments(en, 2 * part, e);
    if (ad->memory && (ad->moments || !trainable)) {
        place_sites(ad, mc);
        return ad;
    }
    adapter_free(ad);
    return NULL;
}

/* The last part of the model's folder, for adapter_config.json. */
static void name_base(struct adapter *ad, const char *model_dir)
{
    size_t end = strlen(model_dir), begin;
    while (end > 1 && model_dir[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && model_dir[begin - 1] != '/';)
        begin--;
    snprintf(ad->base_model, sizeof ad->base_model, "%.*s", (int)(end - begin), model_dir + begin);
}

static struct adapter *alloc_replica(struct engine *en, const struct lora_conf *conf,
                                     bool trainable, struct err *e)
{
    struct adapter *ad = alloc_rank(en, conf, trainable, e);
    for (int r = 1; ad && r < en->rank_count; r++) {
        ad->ranks[r] = alloc_rank(en->ranks[r], conf, trainable, e);
        if (!ad->ranks[r]) break;
        ad->rank_count = r + 1;
    }
    if (ad && ad->rank_count == en->rank_count) return ad;
    adapter_free(ad);
    return NULL;
}

struct adapter *adapter_alloc(struct engine *en, const struct lora_conf *conf, bool trainable,
                              struct err *e)
{
    if (lora_conf_check(conf, e) < 0) return NULL;
    struct adapter *ad = alloc_replica(en, conf, trainable, e);
    for (int d = 1; ad && d < en->replica_count; d++) {
        ad->replicas[d] = alloc_replica(en->replicas[d], conf, trainable, e);
        if (!ad->replicas[d]) break;
        ad->replica_count = d + 1;
    }
    if (ad && ad->replica_count == en->replica_count) {
        name_base(ad, engine_info(en)->model_dir);
        return ad;
    }
    err_prefix(e, "an adapter of rank %d", conf->rank);
    adapter_free(ad);
    return NULL;
}

void adapter_free(struct adapter *ad)
{
    if (!ad) return;
    for (int d = 1; d < ad->replica_count; d++)
        adapter_free(ad->replicas[d]);
    for (int r = 1; r < ad->rank_count; r++)
        adapter_free(ad->ranks[r]);
    ad->ops->release(ad->dev, ad->memory);
    if (ad->paged)
        ad->ops->release_paged(ad->dev, ad->moments);
    else
        ad->ops->release(ad->dev, ad->moments);
    free(ad->sites);
    free(ad);
}

size_t adapter_bytes(const struct engine *en, const struct lora_conf *conf, bool optimizer)
{
    const struct model_conf *mc = engine_model_conf(en);
    size_t devices = (size_t)mc->ranks * (size_t)en->replica_count;
    return part_floats(mc, conf) * devices * (optimizer ? PARTS : 1) * sizeof(float);
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

float *adapter_room(struct err *e)
{
    float *room = malloc(ADAPTER_PIECE * sizeof *room);
    if (!room) err_set(e, ERR_RETRY, "out of memory");
    return room;
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

/* Numbers of a whole tensor that lie together, on one rank or, if it is not cut, on each. */
struct piece {
    int first, ranks; /* on these */
    size_t at, count; /* of a rank's part */
};

/* The longest one from at on.  B is cut by rows, so a rank's part is one piece; A by columns, so each
 * row of a part is. */
static struct piece piece_at(const struct adapter *ad, int site, int b, size_t at)
{
    const struct lora_tensor *t = &ad->sites[site];
    size_t rank = (size_t)ad->conf.rank, length = b ? (size_t)t->out * rank : (size_t)t->in;
    if (!is_cut(ad, t, b))
        return (struct piece){0, ad->rank_count, at, rank * (size_t)(b ? t->out : t->in) - at};
    size_t nth = at / length, ranks = (size_t)ad->rank_count, inside = at % length;
    return (struct piece){(int)(nth % ranks), 1, nth / ranks * length + inside, length - inside};
}

void adapter_tensor_get(const struct adapter *ad, int site, enum part part, int b, size_t at,
                        float *to, size_t count)
{
    for (size_t n; count > 0; at += n, to += n, count -= n) {
        struct piece p = piece_at(ad, site, b, at);
        const struct adapter *owner = ad->ranks[p.first];
        n = p.count < count ? p.count : count;
        owner->ops->download(owner->dev, to, part_of(&owner->sites[site], part, b) + p.at,
                             n * sizeof *to);
    }
}

static void put_piece(struct adapter *ad, const struct piece *p, int site, enum part part, int b,
                      const float *from, size_t count)
{
    for (int r = p->first; r < p->first + p->ranks; r++) {
        struct adapter *owner = ad->ranks[r];
        owner->ops->upload(owner->dev, part_of(&owner->sites[site], part, b) + p->at, from,
                           count * sizeof *from);
    }
}

void adapter_tensor_put(struct adapter *ad, int site, enum part part, int b, size_t at,
                        const float *from, size_t count)
{
    for (size_t n; count > 0; at += n, from += n, count -= n) {
        struct piece p = piece_at(ad, site, b, at);
        n = p.count < count ? p.count : count;
        for (int d = 0; d < ad->replica_count; d++)
            put_piece(ad->replicas[d], &p, site, part, b, from, n);
    }
}

int adapter_sync(const struct adapter *ad, struct err *e)
{
    for (int d = 0; d < ad->replica_count; d++)
        for (int r = 0; r < ad->rank_count; r++) {
            const struct adapter *one = ad->replicas[d]->ranks[r];
            if (one->ops->sync(one->dev, e) < 0) return -1;
        }
    return 0;
}

float *adapter_gradient(const struct adapter *ad)
{
    return ad->memory + ad->part_count;
}

/* ------------------------------------------------------------------ a fresh one */

/* A's numbers depend on their places in the whole tensor. */
static void draw_a(struct adapter *ad, int site, uint64_t seed, float *room)
{
    int64_t rows, cols;
    char name[64];
    adapter_tensor_size(ad, site, 0, &rows, &cols);
    size_t count = (size_t)(rows * cols);
    float bound = 1.0f / sqrtf((float)cols);
    lora_site_name(ad, site, name, sizeof name);
    for (size_t at = 0, n; at < count; at += n) {
        n = adapter_piece(count, at);
        philox_fill(room, n, at, bound, seed, name);
        adapter_tensor_put(ad, site, PART_WEIGHTS, 0, at, room, n);
    }
}

struct adapter *adapter_create(struct engine *en, const struct lora_conf *conf, uint64_t seed,
                               struct err *e)
{
    struct adapter *ad = adapter_alloc(en, conf, true, e);
    if (!ad) return NULL;
    float *room = adapter_room(e);
    for (int i = 0; room && i < ad->site_count; i++)
        if (ad->sites[i].a) draw_a(ad, i, seed, room);
    bool drawn = room && adapter_sync(ad, e) == 0;
    free(room);
    if (drawn) return ad;
    adapter_free(ad);
    return NULL;
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

static void hash_pair(struct seal_hash *h, const struct adapter *ad, int site, enum part part,
                      float *room)
{
    for (int b = 0; b < 2; b++) {
        int64_t rows, cols;
        adapter_tensor_size(ad, site, b, &rows, &cols);
        size_t count = (size_t)(rows * cols);
        for (size_t at = 0, n; at < count; at += n) {
            n = adapter_piece(count, at);
            adapter_tensor_get(ad, site, part, b, at, room, n);
            seal_hash_add(h, room, n * sizeof *room);
        }
    }
}

static void hash_site(struct seal_hash *h, const struct adapter *ad, int site, float *room)
{
    bool there = ad->sites[site].a != NULL;
    int64_t rank, in, out;
    adapter_tensor_size(ad, site, 0, &rank, &in);
    adapter_tensor_size(ad, site, 1, &out, &rank);
    const int32_t shape[3] = {there ? ad->conf.rank : 0, (int32_t)in, (int32_t)out};
    seal_hash_add(h, shape, sizeof shape);
    if (!there) return;
    hash_pair(h, ad, site, PART_WEIGHTS, room);
    if (!ad->trainable) return;
    hash_pair(h, ad, site, PART_M, room);
    hash_pair(h, ad, site, PART_V, room);
    if (ad->has_gradient) hash_pair(h, ad, site, PART_GRADIENT, room);
}

int adapter_digest(const struct adapter *ad, char out[65], struct err *e)
{
    uint8_t digest[SEAL_SHA256_SIZE];
    float *room = adapter_room(e);
    if (!room) return -1;
    struct seal_hash *h = seal_hash_begin(e);
    if (!h) {
        free(room);
        return -1;
    }
    const int64_t head[] = {
        ad->conf.rank, ad->conf.train_attn, ad->conf.train_mlp, ad->conf.train_unembed,
        ad->layers,    ad->trainable,       ad->has_gradient,   ad->step};
    seal_hash_add(h, head, sizeof head);
    for (int i = 0; i < ad->site_count; i++)
        hash_site(h, ad, i, room);
    seal_hash_end(h, digest);
    seal_hex(digest, sizeof digest, out);
    free(room);
    return adapter_sync(ad, e);
}

/* forward.c - a pass through Qwen3 (arXiv 2505.09388): the same for training, prefill and decode.
 *
 * What differs is only where keys and values lie (the segments know) and how many layers'
 * activations are kept.
 *
 * With several ranks q, k, v, gate and up give each rank its own outputs from inputs that all have,
 * and o and down go back: every rank's inputs give a part of all outputs, and the parts are summed.
 * So ranks meet twice a layer. */
#include "engine/pass.h"

#include <assert.h>

/* A site and where its rows go. */
struct target {
    enum lora_site site;
    struct act y;
};

/* y (+)= W x + scale B A x for sites of a layer that read the same x */
static void project(struct pass *p, int layer, struct act x, bool add,
                    const struct target *targets, int count)
{
    struct engine *en = p->en;
    struct projection list[PASS_SITES_AT_ONCE];
    assert(count <= PASS_SITES_AT_ONCE);
    for (int i = 0; i < count; i++) {
        enum lora_site site = targets[i].site;
        struct lora_group *groups = p->loras + i * p->group_count;
        list[i] = (struct projection){.w = en->layers[layer].ahead[site],
                                      .y = targets[i].y,
                                      .add = add,
                                      .u = pass_acts(p, layer)->u[site],
                                      .ldu = p->ldu,
                                      .groups = groups,
                                      .count = pass_site_groups(p, layer, site, groups)};
        site_size(&en->mw->conf, site, &list[i].in, &list[i].out);
    }
    en->ops->project(en->dev, x, p->rows, list, count);
}

/* y = before + W x + scale B A x for a site whose inputs are cut: the first rank's part of the sum
 * begins with what was before, the others' with zero. */
static void project_onto(struct pass *p, int layer, struct act x, const float *before,
                         enum lora_site site, float *y)
{
    struct engine *en = p->en;
    size_t count = (size_t)p->rows * (size_t)en->mw->conf.hidden;
    if (en->rank == 0)
        en->ops->copy(en->dev, y, before, count * sizeof(float));
    else
        en->ops->zero(en->dev, y, count * sizeof(float));
    project(p, layer, x, true, &(struct target){site, act_f32(y)}, 1);
    engine_all_reduce(en, y, count);
    /* B's gradient, which every rank makes for itself, wants the whole of A x. */
    if (p->keep && pass_site_groups(p, layer, site, p->loras) > 0)
        engine_all_reduce(en, pass_acts(p, layer)->u[site], (size_t)p->rows * (size_t)p->ldu);
}

/* The segments' view of this layer's keys and values. */
static void point_at_layer(struct pass *p, int layer)
{
    for (int i = 0; i < p->seq_count; i++) {
        bool one_layer = !p->seqs[i].blocks && !p->keep;
        p->segs[i].layer_offset = one_layer ? 0 : (size_t)layer * p->en->kv_floats;
    }
}

static void attend(struct pass *p, int layer)
{
    struct engine *en = p->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    const struct layer_weights *w = &en->mw->layers[layer];
    struct layer_acts *a = pass_acts(p, layer);
    const struct target qkv[] = {{SITE_Q, a->q_raw}, {SITE_K, a->k_raw}, {SITE_V, p->v}};
    project(p, layer, p->norm, false, qkv, 3);
    ops->rms_norm(en->dev, p->q, a->q_raw, w->q_norm, p->rows * mc->heads, mc->head_dim,
                  mc->rms_eps);
    ops->rms_norm(en->dev, p->k, a->k_raw, w->k_norm, p->rows * mc->kv_heads, mc->head_dim,
                  mc->rms_eps);
    ops->rope(en->dev, p->q, en->cosine, en->sine, p->segs, p->seq_count, mc->heads, mc->head_dim);
    ops->rope(en->dev, p->k, en->cosine, en->sine, p->segs, p->seq_count, mc->kv_heads,
              mc->head_dim);
    point_at_layer(p, layer);
    ops->kv_write(en->dev, p->k, p->v, p->segs, p->seq_count, &en->shape);
    ops->attention(en->dev, a->o, a->lse, p->q, p->segs, p->seq_count, &en->shape);
}

static void layer_forward(struct pass *p, int layer, float *next)
{
    struct engine *en = p->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    const struct layer_weights *w = &en->mw->layers[layer];
    struct layer_acts *a = pass_acts(p, layer);

    ops->rms_norm(en->dev, p->norm, act_f32(a->x), w->input_norm, p->rows, mc->hidden, mc->rms_eps);
    attend(p, layer);
    project_onto(p, layer, a->o, a->x, SITE_O, a->mid);

    ops->rms_norm(en->dev, p->norm, act_f32(a->mid), w->post_norm, p->rows, mc->hidden, mc->rms_eps);
    const struct target mlp[] = {{SITE_GATE, a->gate}, {SITE_UP, a->up}};
    project(p, layer, p->norm, false, mlp, 2);
    ops->swiglu(en->dev, p->act, a->gate, a->up, (size_t)p->rows * (size_t)mc->intermediate);
    project_onto(p, layer, p->act, a->mid, SITE_DOWN, next);
}

static void all_layers(struct pass *p)
{
    struct engine *en = p->en;
    const struct model_conf *mc = &en->mw->conf;
    struct act table = act_f32(en->mw->embed);
    if (en->mw->embed_bf16) table = (struct act){en->mw->embed_bf16, OPS_BF16};
    en->ops->gather(en->dev, act_f32(pass_acts(p, 0)->x), table, p->tokens, p->rows, mc->hidden);
    for (int l = 0; l < mc->layers; l++)
        layer_forward(p, l, l + 1 < mc->layers ? pass_acts(p, l + 1)->x : p->hidden);
    en->ops->rms_norm(en->dev, p->final, act_f32(p->hidden), en->mw->final_norm, p->rows, mc->hidden,
                      mc->rms_eps);
}

/* The pass of one token for each sequence, as decoding has it, step after step.  Ranks meet in sums
 * that are not asked of the device's table, so theirs are not recorded. */
static bool comes_again(const struct pass *p)
{
    return !p->keep && !p->en->comm && p->rows == p->seq_count;
}

/* What decides which shapes a pass asks for: how many rows, how many groups of them with adapters, and
 * the widest of these.  Which adapters, sequences and positions they are stands in descriptors. */
static uint64_t key_of(const struct pass *p)
{
    uint64_t adapters = 0;
    for (int i = 0; i < p->group_count; i++)
        adapters += p->groups[i].adapter != NULL;
    return (uint64_t)p->rows << 32 | adapters << 8 | (uint64_t)p->ldu; /* ldu <= OPS_RANK_MAX */
}

static void forward(void *arg, int rank)
{
    struct pass *p = ((struct pass *)arg)->ranks[rank];
    struct engine *en = p->en;
    bool recorded = comes_again(p);
    if (recorded) en->ops->record_begin(en->dev, key_of(p));
    all_layers(p);
    if (recorded) en->ops->record_end(en->dev);
    size_t bytes = (size_t)p->rows * (size_t)en->mw->conf.hidden * sizeof(float);
    if (p->keep) en->ops->zero(en->dev, p->dfinal, bytes);
}

void pass_forward(struct pass *p)
{
    engine_on_ranks(p->en, forward, p);
}

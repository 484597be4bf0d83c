/* backward.c - from the gradient of the normed last rows to the adapters' gradients.
 *
 * The base is frozen: activations' gradients go through W, and only A and B collect any.  Norms,
 * rotation and the SwiGLU product are worked out again instead of being kept.
 *
 * With several ranks dx of what stands between layers is whole on each.  What goes back through o
 * and down needs no sum; through q, k and v, or gate and up, every rank has a part of dx and of du,
 * which are summed.  A gradient of an A or B that is whole on all ranks is made by each of them,
 * from the same numbers in the same order, so it never has to be sent. */
#include "engine/pass.h"

void pass_project_back(struct engine *en, struct act dx, struct act dy, struct act x, int rows,
                       struct projection_back *back, enum cut cut)
{
    bool sums = en->comm && cut == CUT_OUT && back->count > 0;
    back->part = sums ? BACK_DX : BACK_WHOLE;
    en->ops->project_back(en->dev, dx, dy, x, rows, back);
    if (!sums) return;
    engine_all_reduce(en, back->du, (size_t)rows * (size_t)back->ldu);
    back->part = BACK_GRADS;
    en->ops->project_back(en->dev, dx, dy, x, rows, back);
}

/* dx (+)= dy W + (scale dy B) A, and the site's gradients.  dx.p NULL: nobody below needs it.  Where
 * ranks have different outputs, dx is this rank's part of it. */
static void project_back(struct pass *p, int layer, enum lora_site site, struct act dx,
                         struct act dy, struct act x, bool add)
{
    struct engine *en = p->en;
    struct projection_back back = {.w = en->layers[layer].back[site],
                                   .add = add,
                                   .u = pass_acts(p, layer)->u[site],
                                   .du = p->du,
                                   .ldu = p->ldu,
                                   .groups = p->loras,
                                   .count = pass_site_groups(p, layer, site, p->loras)};
    site_size(&en->mw->conf, site, &back.in, &back.out);
    pass_project_back(en, dx, dy, x, p->rows, &back, site_cut(site));
}

/* A sum over ranks of what the sites that read the same rows left in dx. */
static void sum_parts(struct pass *p, float *dx)
{
    engine_all_reduce(p->en, dx, (size_t)p->rows * (size_t)p->en->mw->conf.hidden);
}

static void mlp_back(struct pass *p, int layer)
{
    struct engine *en = p->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    const struct layer_weights *w = &en->mw->layers[layer];
    const struct layer_acts *a = pass_acts(p, layer);
    size_t count = (size_t)p->rows * (size_t)mc->intermediate;

    ops->swiglu(en->dev, p->act, a->gate, a->up, count);
    project_back(p, layer, SITE_DOWN, p->dact, act_f32(p->dx), p->act, false);
    ops->swiglu_back(en->dev, p->dgate, p->dup, p->dact, a->gate, a->up, count);
    ops->rms_norm(en->dev, p->norm, act_f32(a->mid), w->post_norm, p->rows, mc->hidden, mc->rms_eps);
    project_back(p, layer, SITE_GATE, act_f32(p->dnorm), p->dgate, p->norm, false);
    project_back(p, layer, SITE_UP, act_f32(p->dnorm), p->dup, p->norm, true);
    sum_parts(p, p->dnorm);
    ops->rms_norm_back(en->dev, act_f32(p->dx), act_f32(p->dnorm), act_f32(a->mid), w->post_norm,
                       p->rows, mc->hidden, mc->rms_eps, true);
}

/* Through the attention itself: from dout to the gradients of q, k before norm, and of v. */
static void attend_back(struct pass *p, int layer)
{
    struct engine *en = p->en;
    const struct ops *ops = en->ops;
    const struct model_conf *mc = &en->mw->conf;
    const struct layer_weights *w = &en->mw->layers[layer];
    const struct layer_acts *a = pass_acts(p, layer);

    ops->rms_norm(en->dev, p->q, a->q_raw, w->q_norm, p->rows * mc->heads, mc->head_dim,
                  mc->rms_eps);
    ops->rope(en->dev, p->q, en->cosine, en->sine, p->segs, p->seq_count, mc->heads, mc->head_dim);
    for (int i = 0; i < p->seq_count; i++)
        p->segs[i].layer_offset = (size_t)layer * en->kv_floats;
    ops->attention_back(en->dev, p->dq, p->dk, p->dv, p->dout, a->o, a->lse, p->q, p->segs,
                        p->seq_count, &en->shape);
    ops->rope_back(en->dev, p->dq, en->cosine, en->sine, p->segs, p->seq_count, mc->heads,
                   mc->head_dim);
    ops->rope_back(en->dev, p->dk, en->cosine, en->sine, p->segs, p->seq_count, mc->kv_heads,
                   mc->head_dim);
    ops->rms_norm_back(en->dev, p->dq, p->dq, a->q_raw, w->q_norm, p->rows * mc->heads,
                       mc->head_dim, mc->rms_eps, false);
    ops->rms_norm_back(en->dev, p->dk, p->dk, a->k_raw, w->k_norm, p->rows * mc->kv_heads,
                       mc->head_dim, mc->rms_eps, false);
}

static void attention_layer_back(struct pass *p, int layer)
{
    struct engine *en = p->en;
    const struct model_conf *mc = &en->mw->conf;
    const struct layer_weights *w = &en->mw->layers[layer];
    const struct layer_acts *a = pass_acts(p, layer);
    struct act dnorm = act_f32(layer > 0 ? p->dnorm : NULL); /* the embedding is frozen */

    project_back(p, layer, SITE_O, p->dout, act_f32(p->dx), a->o, false);
    attend_back(p, layer);
    en->ops->rms_norm(en->dev, p->norm, act_f32(a->x), w->input_norm, p->rows, mc->hidden,
                      mc->rms_eps);
    project_back(p, layer, SITE_Q, dnorm, p->dq, p->norm, false);
    project_back(p, layer, SITE_K, dnorm, p->dk, p->norm, true);
    project_back(p, layer, SITE_V, dnorm, p->dv, p->norm, true);
    if (!dnorm.p) return;
    sum_parts(p, p->dnorm);
    en->ops->rms_norm_back(en->dev, act_f32(p->dx), dnorm, act_f32(a->x), w->input_norm, p->rows,
                           mc->hidden, mc->rms_eps, true);
}

static bool trains_layers(const struct pass *p)
{
    for (int i = 0; i < p->group_count; i++) {
        const struct adapter *ad = p->groups[i].adapter;
        if (ad && (ad->conf.train_attn || ad->conf.train_mlp)) return true;
    }
    return false;
}

static void backward(void *arg, int rank)
{
    struct pass *p = ((struct pass *)arg)->ranks[rank];
    struct engine *en = p->en;
    const struct model_conf *mc = &en->mw->conf;
    en->ops->rms_norm_back(en->dev, act_f32(p->dx), act_f32(p->dfinal), act_f32(p->hidden),
                           en->mw->final_norm, p->rows, mc->hidden, mc->rms_eps, false);
    for (int l = mc->layers - 1; l >= 0; l--) {
        mlp_back(p, l);
        attention_layer_back(p, l);
    }
}

void pass_backward(struct pass *p)
{
    if (trains_layers(p)) engine_on_ranks(p->en, backward, p);
}

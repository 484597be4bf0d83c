/* optim.c - one AdamW step of an adapter, as torch.optim.AdamW and clip_grad_norm_ do it: scalars
 * in double, tensors in fp32. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include "engine/inside.h"

/* What torch adds to the norm before it divides by it. */
#define CLIP_EPS 1e-6

/* The adapter's tensors, over sites in their order, A before B. */
struct tensors {
    struct adam_tensor *list;
    int count;
};

static int list_tensors(struct engine *en, const struct adapter *ad, struct tensors *out,
                        struct err *e)
{
    size_t rank = (size_t)ad->conf.rank;
    out->count = 0;
    out->list = arena_alloc(en->host, 2 * (size_t)ad->site_count * sizeof *out->list, e);
    if (!out->list) return -1;
    for (int i = 0; i < ad->site_count; i++) {
        const struct lora_tensor *t = &ad->sites[i];
        if (!t->a) continue;
        out->list[out->count++] =
            (struct adam_tensor){t->a, t->grad_a, t->m_a, t->v_a, rank * (size_t)t->in};
        out->list[out->count++] =
            (struct adam_tensor){t->b, t->grad_b, t->m_b, t->v_b, rank * (size_t)t->out};
    }
    return 0;
}

static void drop_gradient(struct engine *en, struct adapter *ad, const struct tensors *t)
{
    for (int i = 0; i < t->count; i++)
        en->ops->zero(en->dev, t->list[i].grad, t->list[i].count * sizeof(float));
    ad->has_gradient = false;
}

static struct adamw_step step_of(const struct adam_params *p, int64_t step, double norm)
{
    double bias1 = 1 - pow(p->beta1, (double)step), bias2 = 1 - pow(p->beta2, (double)step);
    double clip = p->grad_clip_norm > 0 ? p->grad_clip_norm / (norm + CLIP_EPS) : 1;
    return (struct adamw_step){
        .grad_scale = (float)(clip < 1 ? clip : 1),
        .decay = (float)(1 - p->learning_rate * p->weight_decay),
        .one_minus_beta1 = (float)(1 - p->beta1),
        .beta2 = (float)p->beta2,
        .one_minus_beta2 = (float)(1 - p->beta2),
        .step_size = (float)(p->learning_rate / bias1),
        .bias2_sqrt = (float)sqrt(bias2),
        .eps = (float)p->eps,
    };
}

static int take_step(struct engine *en, struct adapter *ad, const struct adam_params *p,
                     double *grad_norm, struct err *e)
{
    struct tensors t;
    if (list_tensors(en, ad, &t, e) < 0) return -1;
    double norm = sqrt(en->ops->sum_squares(en->dev, t.list, t.count));
    if (!isfinite(norm)) {
        drop_gradient(en, ad, &t);
        return err_set(e, ERR_USER,
                       "the gradient's norm is %g, expected a finite number; the gradient was "
                       "dropped and no step was taken",
                       norm);
    }
    assert(!engine_sampling_uses(en, ad));
    ad->serial = 0; /* other weights from here on */
    struct adamw_step s = step_of(p, ad->step + 1, norm);
    en->ops->adamw(en->dev, &s, t.list, t.count);
    ad->step++;
    ad->has_gradient = false;
    *grad_norm = norm;
    return en->ops->sync(en->dev, e);
}

int adapter_optim_step(struct engine *en, struct adapter *ad, const struct adam_params *p,
                       double *grad_norm, struct err *e)
{
    if (adam_params_check(p, e) < 0) return -1;
    if (!ad->trainable)
        return err_set(e, ERR_USER, "these weights were loaded for sampling and cannot be trained");
    int rc = take_step(en, ad, p, grad_norm, e);
    arena_reset(en->host);
    return rc;
}

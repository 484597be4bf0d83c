/* optim.c - one AdamW step of an adapter, as torch.optim.AdamW and clip_grad_norm_ do it: scalars
 * in double, tensors in fp32. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include "engine/inside.h"

/* What torch adds to the norm before it divides by it. */
#define CLIP_EPS 1e-6

/* A rank's tensors of the adapter, over sites in their order, A before B. */
struct tensors {
    struct adam_tensor *list;
    int count;
    double squares; /* of their gradients, but of those that are whole on every rank only the first
                       rank's */
};

/* How many; cut_only: without those that are whole on every rank. */
static int list_tensors(const struct adapter *ad, bool cut_only, struct adam_tensor *list)
{
    size_t rank = (size_t)ad->conf.rank;
    int n = 0;
    for (int i = 0; i < ad->site_count; i++) {
        const struct lora_tensor *t = &ad->sites[i];
        if (!t->a) continue;
        if (!cut_only || t->cut == CUT_IN)
            list[n++] = (struct adam_tensor){t->a, t->grad_a, t->m_a, t->v_a, rank * (size_t)t->in,
                                             ad->paged};
        if (!cut_only || t->cut == CUT_OUT)
            list[n++] =
                (struct adam_tensor){t->b, t->grad_b, t->m_b, t->v_b, rank * (size_t)t->out,
                                     ad->paged};
    }
    return n;
}

/* On one replica. */
struct step_arg {
    struct engine *en;
    struct adapter *ad;
    struct tensors *ranks; /* [rank_count] */
    struct adamw_step step;
};

static void add_squares(void *arg, int rank)
{
    const struct step_arg *a = arg;
    const struct engine *en = a->en->ranks[rank];
    struct tensors *t = &a->ranks[rank];
    t->count = list_tensors(a->ad->ranks[rank], rank > 0, t->list);
    t->squares = en->ops->sum_squares(en->dev, t->list, t->count);
}

static void drop_gradient(void *arg, int rank)
{
    const struct step_arg *a = arg;
    const struct engine *en = a->en->ranks[rank];
    struct tensors *t = &a->ranks[rank];
    t->count = list_tensors(a->ad->ranks[rank], false, t->list);
    for (int i = 0; i < t->count; i++)
        en->ops->zero(en->dev, t->list[i].grad, t->list[i].count * sizeof(float));
}

static void step(void *arg, int rank)
{
    const struct step_arg *a = arg;
    const struct engine *en = a->en->ranks[rank];
    struct tensors *t = &a->ranks[rank];
    t->count = list_tensors(a->ad->ranks[rank], false, t->list);
    en->ops->adamw(en->dev, &a->step, t->list, t->count);
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

/* Replicas have equal state, so each takes the step for itself. */
struct stepping {
    struct engine *en;
    team_fn *fn; /* of a replica's ranks */
    struct step_arg replicas[ENGINE_RANKS_MAX];
};

static void on_replica(void *arg, int replica)
{
    struct stepping *s = arg;
    engine_on_ranks(s->replicas[replica].en, s->fn, &s->replicas[replica]);
}

static void on_all(struct stepping *s, team_fn *fn)
{
    s->fn = fn;
    engine_on_replicas(s->en, on_replica, s);
}

static struct tensors *room_for_tensors(struct engine *en, const struct adapter *ad, struct err *e)
{
    struct tensors *ranks = arena_zalloc(en->host, (size_t)en->rank_count * sizeof *ranks, e);
    for (int r = 0; ranks && r < en->rank_count; r++) {
        ranks[r].list =
            arena_alloc(en->host, 2 * (size_t)ad->site_count * sizeof *ranks[r].list, e);
        if (!ranks[r].list) return NULL;
    }
    return ranks;
}

static int begin(struct stepping *s, struct engine *en, struct adapter *ad, struct err *e)
{
    s->en = en;
    for (int d = 0; d < en->replica_count; d++) {
        struct step_arg *a = &s->replicas[d];
        *a = (struct step_arg){.en = en->replicas[d], .ad = ad->replicas[d]};
        a->ranks = room_for_tensors(a->en, a->ad, e);
        if (!a->ranks) return -1;
    }
    return 0;
}

static double norm_of(struct step_arg *a)
{
    engine_on_ranks(a->en, add_squares, a);
    double squares = a->ranks[0].squares;
    for (int r = 1; r < a->en->rank_count; r++)
        squares += a->ranks[r].squares;
    return sqrt(squares);
}

static int take_step(struct engine *en, struct adapter *ad, const struct adam_params *p,
                     double *grad_norm, struct err *e)
{
    struct stepping s;
    if (begin(&s, en, ad, e) < 0) return -1;
    double norm = norm_of(&s.replicas[0]);
    if (!isfinite(norm)) {
        on_all(&s, drop_gradient);
        ad->has_gradient = false;
        return err_set(e, ERR_USER,
                       "the gradient's norm is %g, expected a finite number; the gradient was "
                       "dropped and no step was taken",
                       norm);
    }
    for (int d = 0; d < en->replica_count; d++) {
        assert(!engine_sampling_uses(en->replicas[d], ad->replicas[d]));
        ad->replicas[d]->serial = 0; /* other weights from here on */
        s.replicas[d].step = step_of(p, ad->step + 1, norm);
    }
    on_all(&s, step);
    ad->step++;
    ad->has_gradient = false;
    *grad_norm = norm;
    return adapter_sync(ad, e);
}

int adapter_optim_step(struct engine *en, struct adapter *ad, const struct adam_params *p,
                       double *grad_norm, struct err *e)
{
    if (adam_params_check(p, e) < 0) return -1;
    if (!ad->trainable)
        return err_set(e, ERR_USER, "these weights were loaded for sampling and cannot be trained");
    int rc = take_step(en, ad, p, grad_norm, e);
    for (int d = 0; d < en->replica_count; d++)
        arena_reset(en->replicas[d]->host);
    return rc;
}

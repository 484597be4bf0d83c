/* compare.c - tinworks-engine compare: the engine against numbers that PyTorch computed.
 *
 * All adapters of a case share every pass, while PyTorch ran each sequence by itself.  Logits are
 * compared by their largest difference; a loss by |x - w| / max(1, |w|); a gradient by its norm,
 * and its entries by their difference over the tensor's largest entry; ten steps by losses and
 * norms. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "case.h"
#include "commands.h"
#include "engine/head.h"
#include "engine/train.h"
#include "session.h"

struct comparison {
    struct compare_case c;
    struct engine *en;
    struct adapter *adapters[CASE_ADAPTERS_MAX];
    struct datum datums[CASE_ADAPTERS_MAX][CASE_DATUMS_MAX]; /* with what the loss at hand reads */
    char over[64]; /* what was beyond its limit: "logits, steps"; empty: nothing */
};

/* The worst of many differences; one that is no number is worse than any. */
struct worst {
    double error;
    size_t count;
};

static void worst_add(struct worst *w, double got, double want, double scale)
{
    double error = fabs(got - want) / scale;
    if (!(error <= w->error)) w->error = isnan(error) ? INFINITY : error;
    w->count++;
}

static double at_least_one(double x)
{
    return fmax(1, fabs(x));
}

static void report(struct comparison *m, const char *what, const struct worst *w, double limit)
{
    bool over = !(w->error <= limit);
    printf("%-24s %10.2e   limit %.0e   %6zu numbers   %s\n", what, w->error, limit, w->count,
           over ? "BEYOND" : "ok");
    size_t at = strlen(m->over);
    if (over) snprintf(m->over + at, sizeof m->over - at, "%s%s", at ? ", " : "", what);
}

/* ------------------------------------------------------------------ adapters */

static struct adapter *draw_adapter(struct engine *en, const struct case_adapter *a, double b_bound,
                                    struct err *e)
{
    struct adapter *ad = adapter_create(en, &a->lora, a->seed, e);
    for (int i = 0; ad && i < ad->site_count; i++) {
        struct lora_tensor *t = &ad->sites[i];
        char site[64], name[80];
        if (!t->b) continue;
        lora_site_name(ad, i, site, sizeof site);
        snprintf(name, sizeof name, "%s.lora_B", site);
        philox_fill(t->b, (size_t)t->out * (size_t)a->lora.rank, 0, (float)b_bound, a->seed, name);
    }
    return ad;
}

static void free_adapters(struct comparison *m)
{
    for (int i = 0; i < m->c.adapter_count; i++) {
        adapter_free(m->adapters[i]);
        m->adapters[i] = NULL;
    }
}

static int draw_adapters(struct comparison *m, struct err *e)
{
    free_adapters(m);
    for (int i = 0; i < m->c.adapter_count; i++) {
        m->adapters[i] = draw_adapter(m->en, &m->c.adapters[i], m->c.b_bound, e);
        if (!m->adapters[i]) return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------ logits */

/* A chunk of one adapter's positions. */
static void compare_rows(struct comparison *m, struct head *h, const struct case_logits *l,
                         int from, int n, struct worst *w, float *row)
{
    const struct ops *ops = m->en->ops;
    size_t vocab = (size_t)m->en->info.vocab;
    float lse;
    for (int i = 0; i < n; i++) {
        ops->download(m->en->dev, row, h->logits + (size_t)i * vocab, vocab * sizeof *row);
        ops->download(m->en->dev, &lse, h->lse + i, sizeof lse);
        worst_add(w, (double)lse, l->lse[from + i], 1);
        for (int k = 0; k < l->ids; k++)
            worst_add(w, (double)row[l->id[k]], l->values[(from + i) * l->ids + k], 1);
    }
}

static int compare_adapter_logits(struct comparison *m, struct head *h, struct pass *p,
                                  const struct case_logits *l, int first_row, struct worst *w,
                                  struct err *e)
{
    struct arena *a = m->en->host;
    size_t positions = (size_t)l->positions;
    int32_t *index = arena_alloc(a, (positions + 1) * sizeof *index, e);
    if (!index) return -1;
    int32_t *any = arena_zalloc(a, (positions + 1) * sizeof *any, e);
    if (!any) return -1;
    float *row = arena_alloc(a, (size_t)m->en->info.vocab * sizeof *row, e);
    if (!row) return -1;
    for (int i = 0; i < l->positions; i++)
        index[i] = first_row + l->position[i];
    for (int at = 0, n; at < l->positions; at += n) {
        n = l->positions - at < h->rows_max ? l->positions - at : h->rows_max;
        head_logits(h, p, index + at, n);
        head_logprob(h, any, NULL);
        compare_rows(m, h, l, at, n, w, row);
    }
    return m->en->ops->sync(m->en->dev, e);
}

static int check_ids(const struct comparison *m, const struct case_adapter *a, struct err *e)
{
    for (int k = 0; k < a->logits.ids; k++)
        if (a->logits.id[k] >= m->en->info.vocab)
            return err_set(e, ERR_USER, "the case has token id %d, expected ids below %d",
                           a->logits.id[k], m->en->info.vocab);
    return 0;
}

/* One packed pass with a sequence of each adapter. */
static int compare_logits(struct comparison *m, struct err *e)
{
    struct engine *en = m->en;
    struct pass_seq seqs[CASE_ADAPTERS_MAX];
    int n = m->c.adapter_count, rows = 0, blocks = 0, ldu = 0, first = 0, rc = -1;
    struct worst w = {0};
    for (int i = 0; i < n; i++) {
        const struct case_adapter *a = &m->c.adapters[i];
        const struct datum *d = &a->datums[a->logits.datum];
        if (check_ids(m, a, e) < 0) return -1;
        seqs[i] = (struct pass_seq){.adapter = m->adapters[i], .tokens = d->tokens, .rows = d->n};
        rows += d->n;
        blocks += train_blocks(d->n);
        if (a->lora.rank > ldu) ldu = a->lora.rank;
    }
    if (engine_scratch(en, train_bytes(en, rows, blocks, ldu, false), e) < 0) goto out;
    struct head *h = head_begin(en, ldu, false, e);
    struct pass *p = h ? pass_begin(en, seqs, n, false, h->bytes, e) : NULL;
    if (!p) goto out;
    pass_forward(p);
    for (int i = 0; i < n; first += seqs[i++].rows)
        if (compare_adapter_logits(m, h, p, &m->c.adapters[i].logits, first, &w, e) < 0) goto out;
    report(m, "logits", &w, m->c.limits.logits);
    rc = 0;
out:
    arena_reset(en->host);
    return rc;
}

/* ------------------------------------------------------------------ losses and gradients */

/* An item of adapter i with the arrays that its loss reads, and only them. */
static struct train_item item_of(struct comparison *m, int i, enum loss_kind kind)
{
    struct case_adapter *a = &m->c.adapters[i];
    for (int k = 0; k < a->datum_count; k++) {
        struct datum *d = &m->datums[i][k];
        *d = a->datums[k];
        if (kind == LOSS_CROSS_ENTROPY)
            d->logprobs = d->advantages = NULL;
        else
            d->weights = NULL;
    }
    return (struct train_item){
        .adapter = m->adapters[i],
        .loss = {.kind = kind, .clip_low = m->c.clip_low, .clip_high = m->c.clip_high},
        .datums = m->datums[i],
        .datum_count = a->datum_count};
}

static int train(struct comparison *m, struct train_item *items, struct err *e)
{
    for (int i = 0; i < m->c.adapter_count; i++)
        if (engine_train_check(m->en, &items[i], e) < 0) return err_prefix(e, "adapter %d", i);
    return engine_train(m->en, items, m->c.adapter_count, e);
}

/* Of every loss that the first adapter has a value for; all adapters have the same ones. */
static int compare_losses(struct comparison *m, struct err *e)
{
    const char *name;
    json_t *unused;
    struct worst w = {0};
    json_object_foreach((json_t *)m->c.adapters[0].losses, name, unused)
    {
        struct train_item items[CASE_ADAPTERS_MAX];
        enum loss_kind kind = loss_kind_of(name);
        if (kind == LOSS_UNKNOWN)
            return err_set(e, ERR_USER, "loss is \"%.40s\", expected one of %s", name,
                           loss_names());
        for (int i = 0; i < m->c.adapter_count; i++) {
            items[i] = item_of(m, i, kind);
            items[i].forward_only = true;
        }
        if (train(m, items, e) < 0) return -1;
        for (int i = 0; i < m->c.adapter_count; i++) {
            double want;
            if (case_number(m->c.adapters[i].losses, name, &want, e) < 0) return -1;
            worst_add(&w, items[i].out_loss, want, at_least_one(want));
        }
    }
    report(m, "losses", &w, m->c.limits.losses);
    return 0;
}

static int compare_tensor(struct comparison *m, const json_t *gradients, const char *site,
                          const char *which, const float *x, size_t count, struct worst *w,
                          struct err *e)
{
    char name[80];
    const double *at, *values;
    double norm, most, square = 0;
    int n;
    snprintf(name, sizeof name, "%s.lora_%s", site, which);
    const json_t *o = json_object_get(gradients, name);
    if (!o) return err_set(e, ERR_USER, "the case has no gradient of \"%s\"", name);
    if (case_number(o, "norm", &norm, e) < 0 || case_number(o, "most", &most, e) < 0 ||
        case_list(&m->c, o, "at", -1, &at, &n, e) < 0 ||
        case_list(&m->c, o, "values", n, &values, NULL, e) < 0)
        return err_prefix(e, "gradient of \"%s\"", name);
    if (!(norm > 0 && most > 0))
        return err_set(e, ERR_USER, "the gradient of \"%s\" says nothing: it is zero", name);
    for (size_t i = 0; i < count; i++)
        square += (double)x[i] * (double)x[i];
    worst_add(w, sqrt(square), norm, norm);
    for (int i = 0; i < n; i++) {
        if (!(at[i] >= 0 && at[i] < (double)count))
            return err_set(e, ERR_USER, "\"%s\" has no entry %g", name, at[i]);
        worst_add(w, (double)x[(size_t)at[i]], values[i], most);
    }
    return 0;
}

/* The gradients of A and B of a site. */
static int compare_site(struct comparison *m, const struct adapter *ad, int index,
                        const json_t *gradients, struct worst *w, struct err *e)
{
    char site[64];
    lora_site_name(ad, index, site, sizeof site);
    for (int b = 0; b < 2; b++) {
        int64_t rows, cols;
        adapter_tensor_size(ad, index, b, &rows, &cols);
        size_t count = (size_t)(rows * cols);
        float *x = malloc(count * sizeof *x);
        if (!x) return err_set(e, ERR_RETRY, "out of memory");
        adapter_tensor_get(ad, index, PART_GRADIENT, b, 0, x, count);
        int rc = compare_tensor(m, gradients, site, b ? "B" : "A", x, count, w, e);
        free(x);
        if (rc < 0) return -1;
    }
    return 0;
}

static int compare_adapter_gradients(struct comparison *m, int i, struct worst *w, struct err *e)
{
    const struct adapter *ad = m->adapters[i];
    const json_t *gradients = m->c.adapters[i].gradients;
    size_t seen = 0;
    for (int s = 0; s < ad->site_count; s++) {
        if (!ad->sites[s].a) continue;
        if (compare_site(m, ad, s, gradients, w, e) < 0) return -1;
        seen += 2;
    }
    if (seen != json_object_size(gradients))
        return err_set(e, ERR_USER, "the case has %zu gradients, the adapter %zu",
                       json_object_size(gradients), seen);
    return adapter_sync(ad, e);
}

static int compare_gradients(struct comparison *m, struct err *e)
{
    struct train_item items[CASE_ADAPTERS_MAX];
    struct worst w = {0};
    for (int i = 0; i < m->c.adapter_count; i++)
        items[i] = item_of(m, i, m->c.adapters[i].loss);
    if (train(m, items, e) < 0) return -1;
    for (int i = 0; i < m->c.adapter_count; i++)
        if (compare_adapter_gradients(m, i, &w, e) < 0) return err_prefix(e, "adapter %d", i);
    report(m, "gradients", &w, m->c.limits.gradients);
    return 0;
}

/* ------------------------------------------------------------------ steps */

struct run {
    enum loss_kind loss;
    struct adam_params adam;
    const double *losses, *norms;
    int steps;
};

static int read_run(struct comparison *m, const json_t *o, struct run *r, struct err *e)
{
    const char *loss = json_string_value(json_object_get(o, "loss"));
    r->loss = loss_kind_of(loss);
    if (r->loss == LOSS_UNKNOWN)
        return err_set(e, ERR_USER, "the loss of the steps is none of %s", loss_names());
    if (case_number(o, "learning_rate", &r->adam.learning_rate, e) < 0 ||
        case_number(o, "beta1", &r->adam.beta1, e) < 0 ||
        case_number(o, "beta2", &r->adam.beta2, e) < 0 ||
        case_number(o, "eps", &r->adam.eps, e) < 0 ||
        case_number(o, "weight_decay", &r->adam.weight_decay, e) < 0 ||
        case_number(o, "grad_clip_norm", &r->adam.grad_clip_norm, e) < 0 ||
        case_list(&m->c, o, "losses", -1, &r->losses, &r->steps, e) < 0 ||
        case_list(&m->c, o, "grad_norms", r->steps, &r->norms, NULL, e) < 0)
        return -1;
    return adam_params_check(&r->adam, e);
}

static int one_step(struct comparison *m, const struct run *runs, int step, struct worst *w,
                    struct err *e)
{
    struct train_item items[CASE_ADAPTERS_MAX];
    int n = m->c.adapter_count;
    for (int i = 0; i < n; i++)
        items[i] = item_of(m, i, runs[i].loss);
    if (train(m, items, e) < 0) return -1;
    for (int i = 0; i < n; i++) {
        double norm, loss = runs[i].losses[step];
        if (adapter_optim_step(m->en, m->adapters[i], &runs[i].adam, &norm, e) < 0) return -1;
        worst_add(w, items[i].out_loss, loss, at_least_one(loss));
        worst_add(w, norm, runs[i].norms[step], runs[i].norms[step]);
    }
    return 0;
}

static int compare_steps(struct comparison *m, struct err *e)
{
    struct run runs[CASE_ADAPTERS_MAX] = {0};
    struct worst w = {0};
    if (!m->c.adapters[0].steps) return 0; /* a case for shapes only */
    if (draw_adapters(m, e) < 0) return -1;
    for (int i = 0; i < m->c.adapter_count; i++) {
        if (read_run(m, m->c.adapters[i].steps, &runs[i], e) < 0)
            return err_prefix(e, "steps of adapter %d", i);
        if (runs[i].steps != runs[0].steps)
            return err_set(e, ERR_USER, "adapters 0 and %d have different numbers of steps", i);
    }
    for (int step = 0; step < runs[0].steps; step++)
        if (one_step(m, runs, step, &w, e) < 0) return -1;
    report(m, "steps", &w, m->c.limits.steps);
    return 0;
}

/* ------------------------------------------------------------------ the whole */

static int check_model(const struct comparison *m, struct err *e)
{
    if (!strcmp(m->en->info.weights_sha256, m->c.weights_sha256)) return 0;
    return err_set(e, ERR_USER,
                   "the folder's weights are %.12s..., the case was recorded with %.12s...; that "
                   "model is made by: tinworks-model make %s --out DIR",
                   m->en->info.weights_sha256, m->c.weights_sha256, m->c.make);
}

static int compare_all(struct comparison *m, struct err *e)
{
    if (check_model(m, e) < 0 || draw_adapters(m, e) < 0) return -1;
    printf("case %s\n", m->c.name);
    if (compare_logits(m, e) < 0 || compare_losses(m, e) < 0 || compare_gradients(m, e) < 0 ||
        compare_steps(m, e) < 0)
        return -1;
    if (*m->over) return err_set(e, ERR_USER, "beyond the limit: %s", m->over);
    return 0;
}

int command_compare(int argc, char **argv, struct err *e)
{
    struct session s = {0};
    const char *path;
    const struct conf_item items[] = {
        SESSION_SETTINGS(&s),
        {"case", CONF_STR, &path, NULL, 0, 0, "file that tools/record_shapes.py wrote"},
        {.name = NULL},
    };
    int rc = -1;
    if (flags_read(items, "the engine against numbers recorded from PyTorch", argc, argv, e) < 0)
        return -1;
    struct comparison *m = calloc(1, sizeof *m);
    if (!m) return err_set(e, ERR_RETRY, "out of memory");
    if (case_read(&m->c, path, e) < 0) goto out;
    m->en = session_engine(&s, e);
    if (m->en) rc = compare_all(m, e);
out:
    free_adapters(m);
    engine_close(m->en);
    case_clear(&m->c);
    free(m);
    return rc;
}

/* loss.c - the losses: names, settings, values and slopes.  All in double: they cost nothing beside
 * a row of logits. */
#include "engine/loss.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ names and settings */

static const struct {
    const char *name;
    bool clips, beta; /* what loss_fn_config may set */
    struct loss_conf defaults;
} losses[] = {
    [LOSS_CROSS_ENTROPY] = {"cross_entropy", false, false, {LOSS_CROSS_ENTROPY, 0, 0, 0}},
    [LOSS_IMPORTANCE_SAMPLING] =
        {"importance_sampling", false, false, {LOSS_IMPORTANCE_SAMPLING, 0, 0, 0}},
    [LOSS_PPO] = {"ppo", true, false, {LOSS_PPO, 0.8, 1.2, 0}},
    [LOSS_CISPO] = {"cispo", true, false, {LOSS_CISPO, 0, 4, 0}},
    [LOSS_DRO] = {"dro", false, true, {LOSS_DRO, 0, 0, 0.05}},
    [LOSS_GSPO] = {"gspo", true, false, {LOSS_GSPO, 1 - 3e-4, 1 + 4e-4, 0}},
};

enum loss_kind loss_kind_of(const char *name)
{
    for (int k = 0; k < LOSS_UNKNOWN; k++)
        if (name && strcmp(name, losses[k].name) == 0) return (enum loss_kind)k;
    return LOSS_UNKNOWN;
}

const char *loss_names(void)
{
    return "cross_entropy, importance_sampling, ppo, cispo, dro, gspo";
}

const char *loss_name(enum loss_kind kind)
{
    return losses[kind].name;
}

bool loss_takes_clip(enum loss_kind kind)
{
    return losses[kind].clips;
}

struct loss_conf loss_defaults(enum loss_kind kind)
{
    return losses[kind].defaults;
}

static double *setting(struct loss_conf *c, const char *key)
{
    if (losses[c->kind].clips && !strcmp(key, "clip_low_threshold")) return &c->clip_low;
    if (losses[c->kind].clips && !strcmp(key, "clip_high_threshold")) return &c->clip_high;
    if (losses[c->kind].beta && !strcmp(key, "beta")) return &c->beta;
    return NULL;
}

static const char *settings_of(enum loss_kind kind)
{
    if (losses[kind].clips) return "clip_low_threshold or clip_high_threshold";
    return losses[kind].beta ? "beta" : "nothing";
}

int loss_set(struct loss_conf *c, const char *key, double value, struct err *e)
{
    double *place = setting(c, key);
    if (!place)
        return err_set(e, ERR_USER, "loss_fn_config has \"%.60s\", expected %s for loss \"%s\"",
                       key, settings_of(c->kind), loss_name(c->kind));
    if (!isfinite(value))
        return err_set(e, ERR_USER, "loss_fn_config %s is %f, expected a finite number", key,
                       value);
    *place = value;
    return 0;
}

/* ------------------------------------------------------------------ values and slopes */

bool loss_counts(const struct loss_conf *c, const struct datum *d, int position)
{
    int width = datum_width(d);
    if (c->kind == LOSS_DRO) return c->beta != 0 || d->advantages[position] != 0;
    if (c->kind != LOSS_CROSS_ENTROPY) return d->advantages[position] != 0;
    for (int k = 0; k < width; k++)
        if (d->weights[position * width + k] != 0) return true;
    return false;
}

bool loss_by_sequence(const struct loss_conf *c)
{
    return c->kind == LOSS_GSPO;
}

double loss_sequence_ratio(const struct loss_conf *c, const struct datum *d)
{
    double sum = 0;
    int count = 0;
    if (!loss_by_sequence(c)) return 0;
    for (int i = 0; i < d->n; i++) {
        if (d->sequence_ratio_mask && d->sequence_ratio_mask[i] == 0) continue;
        sum += (double)d->out_logprobs[i] - (double)d->logprobs[i];
        count++;
    }
    return count ? exp(sum / count) : 1; /* with none, no advantage uses it: see the checks */
}

static double clamp(const struct loss_conf *c, const struct datum *d, int at, double r)
{
    double low = d->clip_low ? (double)d->clip_low[at] : c->clip_low;
    double high = d->clip_high ? (double)d->clip_high[at] : c->clip_high;
    return fmin(fmax(r, low), high);
}

/* The ratio of a position: its own, or the sequence's. */
static double ratio(const struct loss_conf *c, const struct datum *d, int at, double p, double s)
{
    return loss_by_sequence(c) ? s : exp(p - (double)d->logprobs[at]);
}

double loss_value(const struct loss_conf *c, const struct datum *d, int at, double p, double s)
{
    if (c->kind == LOSS_CROSS_ENTROPY) return d->weights[at] != 0 ? -(double)d->weights[at] * p : 0;
    double a = (double)d->advantages[at], off = p - (double)d->logprobs[at];
    if (c->kind == LOSS_DRO) return -(p * a - c->beta / 2 * off * off);
    if (a == 0) return 0; /* also where the ratio is infinite */
    double r = ratio(c, d, at, p, s);
    if (c->kind == LOSS_IMPORTANCE_SAMPLING) return -r * a;
    if (c->kind == LOSS_CISPO) return -clamp(c, d, at, r) * p * a;
    return -fmin(r * a, clamp(c, d, at, r) * a);
}

double loss_slope(const struct loss_conf *c, const struct datum *d, int at, double p, double s)
{
    if (c->kind == LOSS_CROSS_ENTROPY) return -(double)d->weights[at];
    double a = (double)d->advantages[at];
    if (c->kind == LOSS_DRO) return -a + c->beta * (p - (double)d->logprobs[at]);
    if (a == 0) return 0;
    double r = ratio(c, d, at, p, s);
    if (c->kind == LOSS_IMPORTANCE_SAMPLING) return -r * a; /* dr / dp = r */
    double clamped = clamp(c, d, at, r);
    if (c->kind == LOSS_CISPO) return -clamped * a;
    return r * a > clamped * a ? 0 : -r * a;
}

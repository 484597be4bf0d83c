/* train_check.c - everything a caller can get wrong about a training item or an optimizer step. */
#include "engine/train.h"

#include <math.h>
#include <stdio.h>
#include "engine/loss.h"

static int check_loss(const struct loss_conf *c, struct err *e)
{
    if (c->kind < 0 || c->kind >= LOSS_UNKNOWN)
        return err_set(e, ERR_USER, "loss is unknown, expected one of %s", loss_names());
    if (!isfinite(c->beta) || c->beta < 0)
        return err_set(e, ERR_USER, "beta is %g, expected a finite number >= 0", c->beta);
    if (!loss_takes_clip(c->kind)) return 0;
    if (!isfinite(c->clip_low) || !isfinite(c->clip_high) || c->clip_low < 0 ||
        c->clip_low > c->clip_high)
        return err_set(e, ERR_USER,
                       "clip thresholds are %g and %g, expected 0 <= low <= high, both finite",
                       c->clip_low, c->clip_high);
    return 0;
}

/* A tensor of the datum that may be absent. */
static int check_finite(const float *x, int n, int datum, const char *name, struct err *e)
{
    for (int i = 0; x && i < n; i++)
        if (!isfinite(x[i]))
            return err_set(e, ERR_USER, "datum %d has %s[%d] = %g, expected a finite number", datum,
                           name, i, (double)x[i]);
    return 0;
}

static int check_needed(const float *x, int n, const struct loss_conf *c, int datum,
                        const char *name, struct err *e)
{
    if (!x)
        return err_set(e, ERR_USER, "datum %d has no \"%s\", which loss \"%s\" needs", datum, name,
                       loss_name(c->kind));
    return check_finite(x, n, datum, name, e);
}

/* Bounds for each token: with the other side's, or the loss's own. */
static int check_clips(const struct datum *d, const struct loss_conf *c, int at, struct err *e)
{
    if (!d->clip_low && !d->clip_high) return 0;
    if (check_finite(d->clip_low, d->n, at, "clip_low_threshold", e) < 0 ||
        check_finite(d->clip_high, d->n, at, "clip_high_threshold", e) < 0)
        return -1;
    for (int i = 0; i < d->n; i++) {
        double low = d->clip_low ? (double)d->clip_low[i] : c->clip_low;
        double high = d->clip_high ? (double)d->clip_high[i] : c->clip_high;
        if (low < 0 || low > high)
            return err_set(e, ERR_USER,
                           "datum %d has clip thresholds %g and %g at position %d, expected 0 <= "
                           "low <= high",
                           at, low, high, i);
    }
    return 0;
}

/* A mask that counts nothing has no mean; harmless only where nothing uses it. */
static int check_mask(const struct datum *d, int at, struct err *e)
{
    bool counts = !d->sequence_ratio_mask, used = false;
    if (check_finite(d->sequence_ratio_mask, d->n, at, "sequence_ratio_mask", e) < 0) return -1;
    for (int i = 0; i < d->n; i++) {
        counts |= d->sequence_ratio_mask && d->sequence_ratio_mask[i] != 0;
        used |= d->advantages[i] != 0;
    }
    if (!counts && used)
        return err_set(e, ERR_USER,
                       "datum %d has a sequence_ratio_mask of 0 everywhere, expected another "
                       "number where tokens were sampled",
                       at);
    return 0;
}

static int check_target(const struct engine *en, const struct datum *d, int at, int i,
                        struct err *e)
{
    char column[32] = "";
    if (d->targets[i] >= 0 && d->targets[i] < en->info.vocab) return 0;
    if (d->columns) snprintf(column, sizeof column, ", column %d", i % d->columns);
    return err_set(e, ERR_USER,
                   "datum %d has target token id %lld at position %d%s, expected 0 to %d", at,
                   (long long)d->targets[i], i / datum_width(d), column, en->info.vocab - 1);
}

static int check_ids(const struct engine *en, const struct datum *d, int at, struct err *e)
{
    int vocab = en->info.vocab;
    if (!d->tokens) return err_set(e, ERR_USER, "datum %d has no tokens", at);
    if (!d->targets) return err_set(e, ERR_USER, "datum %d has no \"target_tokens\"", at);
    for (int i = 0; i < d->n; i++)
        if (d->tokens[i] < 0 || d->tokens[i] >= vocab)
            return err_set(e, ERR_USER, "datum %d has token id %d at position %d, expected 0 to %d",
                           at, d->tokens[i], i, vocab - 1);
    for (int i = 0; i < d->n * datum_width(d); i++)
        if (check_target(en, d, at, i, e) < 0) return -1;
    return 0;
}

static int check_columns(const struct datum *d, const struct loss_conf *c, int at, struct err *e)
{
    if (d->columns < 0 || d->columns > ENGINE_TARGETS_MAX)
        return err_set(e, ERR_USER, "datum %d has %d target_tokens a position, expected 1 to %d",
                       at, d->columns, ENGINE_TARGETS_MAX);
    if (d->columns && c->kind != LOSS_CROSS_ENTROPY)
        return err_set(e, ERR_USER,
                       "datum %d has target_tokens of shape [%d, %d], loss \"%s\" takes [%d]", at,
                       d->n, d->columns, loss_name(c->kind), d->n);
    return 0;
}

static int check_length(const struct engine *en, const struct train_item *item, int at,
                        struct err *e)
{
    int n = item->datums[at].n, rank = item->adapter ? item->adapter->conf.rank : 0;
    if (n < 1) return err_set(e, ERR_USER, "datum %d is empty, expected at least one token", at);
    if (n > en->info.context_max)
        return err_set(e, ERR_USER, "datum %d has %d tokens, expected at most %d: the model's context",
                       at, n, en->info.context_max);
    size_t bytes = train_bytes(en, n, train_blocks(n), rank, !item->forward_only);
    if (bytes > en->scratch_bytes_max)
        return err_set(
            e, ERR_USER,
            "datum %d has %d tokens, which need %zu bytes of memory; this server has %zu", at, n,
            bytes, en->scratch_bytes_max);
    return 0;
}

static int check_inputs(const struct datum *d, const struct loss_conf *c, int at, struct err *e)
{
    if (c->kind == LOSS_CROSS_ENTROPY)
        return check_needed(d->weights, d->n * datum_width(d), c, at, "weights", e);
    if (check_needed(d->logprobs, d->n, c, at, "logprobs", e) < 0 ||
        check_needed(d->advantages, d->n, c, at, "advantages", e) < 0)
        return -1;
    if (loss_takes_clip(c->kind) && check_clips(d, c, at, e) < 0) return -1;
    return loss_by_sequence(c) ? check_mask(d, at, e) : 0;
}

static int check_datum(const struct engine *en, const struct train_item *item, int at,
                       struct err *e)
{
    const struct datum *d = &item->datums[at];
    if (check_length(en, item, at, e) < 0 || check_columns(d, &item->loss, at, e) < 0 ||
        check_ids(en, d, at, e) < 0)
        return -1;
    return check_inputs(d, &item->loss, at, e);
}

int engine_train_check(const struct engine *en, const struct train_item *item, struct err *e)
{
    if (!item->forward_only && (!item->adapter || !item->adapter->trainable))
        return err_set(e, ERR_USER, "these weights were loaded for sampling and cannot be trained");
    if (item->datum_count < 1)
        return err_set(e, ERR_USER, "there is no datum, expected at least one");
    if (check_loss(&item->loss, e) < 0) return -1;
    for (int i = 0; i < item->datum_count; i++)
        if (check_datum(en, item, i, e) < 0) return -1;
    return 0;
}

int adam_params_check(const struct adam_params *p, struct err *e)
{
    const struct {
        const char *name;
        double value, below; /* below: exclusive upper bound */
    } fields[] = {
        {"learning_rate", p->learning_rate, INFINITY},
        {"beta1", p->beta1, 1},
        {"beta2", p->beta2, 1},
        {"eps", p->eps, INFINITY},
        {"weight_decay", p->weight_decay, INFINITY},
        {"grad_clip_norm", p->grad_clip_norm, INFINITY},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!isfinite(fields[i].value) || fields[i].value < 0 || fields[i].value >= fields[i].below)
            return err_set(e, ERR_USER, "%s is %g, expected %s", fields[i].name, fields[i].value,
                           fields[i].below == 1 ? "0 <= value < 1" : "a finite number >= 0");
    return 0;
}

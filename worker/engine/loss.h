/* loss.h - one token's loss and its slope, by the formulas of engine.h.
 *
 * at: the place in the datum's arrays, position * K + column where targets are [n, K]. */
#ifndef ENGINE_LOSS_H
#define ENGINE_LOSS_H

#include "engine/engine.h"

const char *loss_name(enum loss_kind kind);
bool loss_takes_clip(enum loss_kind kind);

/* Targets of one position. */
static inline int datum_width(const struct datum *d)
{
    return d->columns ? d->columns : 1;
}

/* gspo: no slope is known before the whole datum's out_logprobs are. */
bool loss_by_sequence(const struct loss_conf *c);
/* The sequence's ratio s, from out_logprobs.  0 for the other losses, which have none. */
double loss_sequence_ratio(const struct loss_conf *c, const struct datum *d);

/* The value where the target has log-probability p; s: the sequence's ratio. */
double loss_value(const struct loss_conf *c, const struct datum *d, int at, double p, double s);
/* dL / dp there. */
double loss_slope(const struct loss_conf *c, const struct datum *d, int at, double p, double s);
/* Whether any slope of this position can be anything but zero: known before p is. */
bool loss_counts(const struct loss_conf *c, const struct datum *d, int position);

#endif

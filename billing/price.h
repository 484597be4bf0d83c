/* price.h - what a token costs, and when.
 *
 * A price is valid in [from, to).  Of those valid at a time, a row of the model itself goes before
 * one of
 * "*"; of several the one that began last counts.  The time is that of the result record in the
 * log, so a bill folded late costs what it would have cost at once. */
#ifndef BILLING_PRICE_H
#define BILLING_PRICE_H

#include <stdint.h>
#include "base/err.h"

enum usage_kind { USAGE_PREFILL, USAGE_SAMPLE, USAGE_TRAIN, USAGE_KINDS };
const char *usage_kind_name(enum usage_kind k); /* "prefill", "sample", "train" */
/* USAGE_KINDS when there is none of that name. */
enum usage_kind usage_kind_of(const char *name);

struct price {
    char model[128]; /* "*": every model without a row of its own */
    enum usage_kind kind;
    int64_t pico;     /* pico-dollars a token */
    int64_t from, to; /* microseconds since 1970; TIME_BEGIN, TIME_END */
};

/* NULL when there is none. */
const struct price *price_at(const struct price *prices, int count, const char *model,
                             enum usage_kind kind, int64_t at_us);

/* Amounts of the three kinds.  No price is needed for a kind without tokens.  ERR_RETRY when a
 * price is missing: an operator has to set it, nothing is billed without. */
int price_charge(const struct price *prices, int count, const char *model, int64_t at_us,
                 const int64_t tokens[USAGE_KINDS], int64_t amounts[USAGE_KINDS], int64_t *total,
                 struct err *e) WARN_UNUSED;

#endif

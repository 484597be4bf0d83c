/* price.c - see price.h. */
#include "price.h"

#include <stddef.h>
#include <stdbool.h>
#include <string.h>
#include "money.h"
#include "period.h"

static const char *const kind_names[] = {"prefill", "sample", "train"};

const char *usage_kind_name(enum usage_kind k)
{
    return kind_names[k];
}

enum usage_kind usage_kind_of(const char *name)
{
    int k = 0;
    while (k < USAGE_KINDS && strcmp(name, kind_names[k]))
        k++;
    return (enum usage_kind)k;
}

const struct price *price_at(const struct price *prices, int count, const char *model,
                             enum usage_kind kind, int64_t at_us)
{
    const struct price *best = NULL;
    bool best_own = false;
    for (const struct price *p = prices; p < prices + count; p++) {
        bool own = !strcmp(p->model, model);
        if (p->kind != kind || (!own && strcmp(p->model, "*"))) continue;
        if (at_us < p->from || at_us >= p->to) continue;
        if (best && (best_own > own || (best_own == own && best->from >= p->from))) continue;
        best = p;
        best_own = own;
    }
    return best;
}

int price_charge(const struct price *prices, int count, const char *model, int64_t at_us,
                 const int64_t tokens[USAGE_KINDS], int64_t amounts[USAGE_KINDS], int64_t *total,
                 struct err *e)
{
    char when[TIME_TEXT_SIZE];
    *total = 0;
    for (int k = 0; k < USAGE_KINDS; k++) {
        amounts[k] = 0;
        if (!tokens[k]) continue;
        const struct price *p = price_at(prices, count, model, (enum usage_kind)k, at_us);
        if (!p)
            return err_set(e, ERR_RETRY, "there is no price for %s tokens of \"%s\" at %s",
                           kind_names[k], model, time_text(at_us, when));
        if (money_charge(tokens[k], p->pico, &amounts[k], e) < 0 ||
            money_add(total, amounts[k], e) < 0)
            return -1;
    }
    return 0;
}

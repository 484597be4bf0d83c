/* money.c - see money.h. */
#include "money.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

int money_charge(int64_t tokens, int64_t pico_per_token, int64_t *amount, struct err *e)
{
    if (tokens < 0 || pico_per_token < 0 || __builtin_mul_overflow(tokens, pico_per_token, amount))
        return err_set(e, ERR_BUG,
                       "%" PRId64 " tokens at %" PRId64 " pico-dollars cannot be billed", tokens,
                       pico_per_token);
    return 0;
}

int money_add(int64_t *sum, int64_t amount, struct err *e)
{
    if (__builtin_add_overflow(*sum, amount, sum))
        return err_set(e, ERR_BUG, "a sum of amounts is too large");
    return 0;
}

static int refuse(const char *what, const char *text, int decimals, struct err *e)
{
    return err_set(e, ERR_USER,
                   "%s is \"%.60s\", expected a decimal number with at most %d decimals", what,
                   text, decimals);
}

int money_parse(const char *what, const char *text, int decimals, int64_t *out, struct err *e)
{
    bool negative = *text == '-', point = false;
    int after = 0, digits = 0;
    int64_t value = 0;
    for (const char *c = text + negative; *c; c++) {
        if (*c == '.' && !point && digits) {
            point = true;
            continue;
        }
        if (!isdigit((unsigned char)*c) || (point && ++after > decimals))
            return refuse(what, text, decimals, e);
        digits++;
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, *c - '0', &value))
            return err_set(e, ERR_USER, "%s is \"%.60s\", which is too large", what, text);
    }
    if (!digits || (point && !after)) return refuse(what, text, decimals, e);
    for (; after < decimals; after++)
        if (__builtin_mul_overflow(value, 10, &value))
            return err_set(e, ERR_USER, "%s is \"%.60s\", which is too large", what, text);
    *out = negative ? -value : value;
    return 0;
}

char *money_text(const char *digits, int decimals, int shown_min, char *out)
{
    bool negative = *digits == '-';
    if (negative) digits++;
    int n = (int)strlen(digits);
    int whole = n > decimals ? n - decimals : 0;
    int shown = decimals; /* without the zeros at the end */
    while (shown > shown_min &&
           (n - (decimals - shown) <= 0 || digits[n - 1 - (decimals - shown)] == '0'))
        shown--;
    assert(n + decimals + 4 < MONEY_TEXT_SIZE);
    char *at = out;
    if (negative) *at++ = '-';
    if (whole)
        at = mempcpy(at, digits, (size_t)whole);
    else
        *at++ = '0';
    if (shown) *at++ = '.';
    for (int i = 0; i < shown; i++) { /* the i-th decimal */
        int from = n - decimals + i;
        *at++ = from < 0 ? '0' : digits[from];
    }
    *at = '\0';
    return out;
}

char *money_text_of(int64_t amount, int decimals, int shown_min, char *out)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, amount);
    return money_text(digits, decimals, shown_min, out);
}

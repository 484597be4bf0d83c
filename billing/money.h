/* money.h - amounts in integer pico-dollars (1 USD = 10^12), and their texts.
 *
 * 1 USD for a million tokens = 10^12 / 10^6 = 1,000,000 pico-dollars a token, so a price in USD per
 * million tokens has at most 6 decimals.  Nothing here rounds and nothing is a float. */
#ifndef BILLING_MONEY_H
#define BILLING_MONEY_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define USD_DECIMALS   12 /* pico-dollars in a dollar, as a power of ten */
#define PRICE_DECIMALS 6  /* pico-dollars a token in a dollar per million tokens */

/* With both of these kept no job's amount can leave an int64: 3 * 2^31 * 10^9 < 2^63. */
#define PRICE_PICO_MAX 1000000000 /* a token; 1,000 USD per million */
#define JOB_TOKENS_MAX 2147483647 /* of one kind in one job */

#define MONEY_TEXT_SIZE 64

/* tokens * price.  ERR_BUG when it does not fit or either is negative. */
int money_charge(int64_t tokens, int64_t pico_per_token, int64_t *amount,
                 struct err *e) WARN_UNUSED;
/* *sum += amount, checked. */
int money_add(int64_t *sum, int64_t amount, struct err *e) WARN_UNUSED;

/* "12", "-0.5", "3.000001" as units of 10^-decimals.  ERR_USER names `what` and the text when it is
 * no such number, has more decimals than that, or does not fit. */
int money_parse(const char *what, const char *text, int decimals, int64_t *out,
                struct err *e) WARN_UNUSED;

/* Digits of an integer (as Postgres prints a numeric; "-" allowed) in units of 10^-decimals, as a
 * decimal with at least shown_min decimals and no zeros after them: ("2200000", 12, 2) is
 * "0.0000022". out has MONEY_TEXT_SIZE bytes; returns out. */
char *money_text(const char *digits, int decimals, int shown_min, char *out);
char *money_text_of(int64_t amount, int decimals, int shown_min, char *out);

#endif

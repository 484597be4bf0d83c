/* prices.h - the price list out of the database.
 *
 * Whoever reads it inside a transaction holds the table until that ends, and whoever changes it
 * waits for all of those: so no result is ever billed by a list that was being replaced. */
#ifndef BILLING_PRICES_H
#define BILLING_PRICES_H

#include "base/err.h"
#include "db/db.h"
#include "price.h"

/* *out is the caller's to free().  Returns the count. */
int prices_load(struct db *db, struct price **out, struct err *e) WARN_UNUSED;

#endif

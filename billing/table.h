/* table.h - rows for people (aligned), for spreadsheets (CSV) and for programs (JSON). */
#ifndef BILLING_TABLE_H
#define BILLING_TABLE_H

#include <stdbool.h>
#include <stdio.h>
#include "base/err.h"

enum table_format { FORMAT_TABLE, FORMAT_CSV, FORMAT_JSON };
/* NULL gives FORMAT_TABLE; ERR_USER names an unknown one. */
int table_format_of(const char *name, enum table_format *out, struct err *e) WARN_UNUSED;

enum cell {
    CELL_TEXT,  /* as it is; a JSON string */
    CELL_COUNT, /* whole number; a JSON number */
    CELL_USD, /* exact decimal; one number of decimals per column for people; a JSON string, so that
                 no reader makes a float of it */
};

struct column {
    const char *title; /* for people; NULL: only in CSV and JSON */
    const char *name;  /* in CSV and JSON; NULL: only for people */
    enum cell cell;
};

struct table;

/* columns must live as long as the table. */
struct table *table_create(const struct column *columns, int count, struct err *e);
void table_free(struct table *t); /* NULL is fine */

/* Copies one text a column. */
int table_add(struct table *t, const char *const *cells, struct err *e) WARN_UNUSED;
/* The same for the sum below the line: a last row for people; programs add up by themselves. */
int table_total(struct table *t, const char *const *cells, struct err *e) WARN_UNUSED;
int table_rows(const struct table *t); /* without the total */

void table_print(const struct table *t, enum table_format format, FILE *out);

#endif

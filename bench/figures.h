/* figures.h - times in, figures out: a table, or one JSON object a line. */
#ifndef BENCH_FIGURES_H
#define BENCH_FIGURES_H

#include <stdbool.h>
#include <stdint.h>

/* The times of one case, in microseconds. */
struct times {
    int64_t *us; /* owned by the caller */
    int count;
};

void figures_begin(bool json);
void figure_print(const char *bench, const char *name, const char *figure, double value, const char *unit);
/* Sorts t and prints p50_ms and p99_ms. */
void figures_times(const char *bench, const char *name, struct times *t);
/* t must be sorted; the smallest value that at least share of them do not exceed. */
double figure_quantile_ms(const struct times *t, double share);

#endif

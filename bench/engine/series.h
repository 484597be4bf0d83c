/* series.h - repeated measurements and their middles. */
#ifndef BENCH_ENGINE_SERIES_H
#define BENCH_ENGINE_SERIES_H

#define SERIES_MAX 64

/* One number a repetition. */
struct series {
    double x[SERIES_MAX];
    int n;
};

void series_add(struct series *s, double x);
double series_median(const struct series *s);
/* The median of a[i] / b[i]: both came from the same repetition. */
double series_ratio(const struct series *a, const struct series *b);
double series_max(const struct series *s);

#endif

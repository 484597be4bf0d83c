/* series.c - see series.h. */
#include "series.h"

#include <assert.h>
#include <stdlib.h>

void series_add(struct series *s, double x)
{
    assert(s->n < SERIES_MAX);
    s->x[s->n++] = x;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double series_median(const struct series *s)
{
    struct series sorted = *s;
    if (s->n == 0) return 0;
    qsort(sorted.x, (size_t)s->n, sizeof *sorted.x, by_size);
    return (sorted.x[(s->n - 1) / 2] + sorted.x[s->n / 2]) / 2;
}

double series_ratio(const struct series *a, const struct series *b)
{
    struct series ratios = {.n = a->n};
    assert(a->n == b->n);
    for (int i = 0; i < a->n; i++)
        ratios.x[i] = a->x[i] / b->x[i];
    return series_median(&ratios);
}

double series_max(const struct series *s)
{
    double most = 0;
    for (int i = 0; i < s->n; i++)
        if (s->x[i] > most) most = s->x[i];
    return most;
}

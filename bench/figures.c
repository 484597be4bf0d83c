/* figures.c - see figures.h. */
#include "figures.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static bool as_json;

void figures_begin(bool json)
{
    as_json = json;
    if (!json) printf("%-8s %-34s %-12s %12s %s\n", "bench", "case", "figure", "value", "unit");
}

void figure_print(const char *bench, const char *name, const char *figure, double value,
                  const char *unit)
{
    if (as_json)
        printf("{\"bench\": \"%s\", \"case\": \"%s\", \"figure\": \"%s\", \"value\": %.4f, "
               "\"unit\": \"%s\"}\n",
               bench, name, figure, value, unit);
    else
        printf("%-8s %-34s %-12s %12.3f %s\n", bench, name, figure, value, unit);
    fflush(stdout);
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

double figure_quantile_ms(const struct times *t, double share)
{
    int rank = (int)ceil(share * t->count) - 1;
    if (rank < 0) rank = 0;
    return t->count ? (double)t->us[rank] / 1000.0 : 0;
}

void figures_times(const char *bench, const char *name, struct times *t)
{
    qsort(t->us, (size_t)t->count, sizeof *t->us, by_time);
    figure_print(bench, name, "p50_ms", figure_quantile_ms(t, 0.50), "ms");
    figure_print(bench, name, "p99_ms", figure_quantile_ms(t, 0.99), "ms");
}

/* products.c - the row law of the products that cuBLASLt does, at the shapes of Qwen3-8B: for every
 * number of rows M from 1 to the most, the first, middle and last row of x [M, in] have the bits
 * that they have among the most.  Then how long products take.  A line of JSON for each shape; the
 * exit status says whether the law held.
 *
 *   gpu-products [N]   N: sizes and rows are an Nth, for the emulation */
#include <stdlib.h>
#include <time.h>
#include "kernels/check.h"

struct shape {
    const char *name;
    int out, in, rows; /* rows: the most */
    enum ops_dtype keep;
    bool turned;
};

static const struct shape shapes[] = {
    {"q", 4096, 4096, 8192, OPS_BF16, false},     {"q back", 4096, 4096, 8192, OPS_BF16, true},
    {"k", 1024, 4096, 8192, OPS_BF16, false},     {"k back", 1024, 4096, 8192, OPS_BF16, true},
    {"up", 12288, 4096, 8192, OPS_BF16, false},   {"up back", 12288, 4096, 8192, OPS_BF16, true},
    {"down", 4096, 12288, 8192, OPS_BF16, false}, {"down back", 4096, 12288, 8192, OPS_BF16, true},
    {"head", 151936, 4096, 512, OPS_BF16, false}, {"head back", 151936, 4096, 512, OPS_BF16, true},
    {"odd", 1001, 333, 1024, OPS_BF16, false},    {"q fp32", 4096, 4096, 512, OPS_F32, false},
};

struct product {
    const struct ops *ops;
    struct device *d;
    struct packed *w;
    float *x, *y;  /* the device's */
    float *all;    /* y for the most rows, here */
    size_t in, out;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void wait_for(const struct product *p)
{
    struct err e = {0};
    if (p->ops->sync(p->d, &e) < 0) fail_msg("%s", e.text);
}

static int rows_that_differ(const struct product *p, int m, float *row)
{
    const int rows[] = {0, m / 2, m - 1};
    int differ = 0;
    p->ops->gemm(p->d, p->y, p->x, m, p->w, false);
    for (int i = 0; i < 3; i++) {
        size_t at = (size_t)rows[i] * p->out;
        p->ops->download(p->d, row, p->y + at, p->out * sizeof *row);
        differ += memcmp(row, p->all + at, p->out * sizeof *row) != 0;
    }
    return differ;
}

/* Milliseconds of a product. */
static double time_of(const struct product *p, int m)
{
    enum { TIMES = 20 };
    p->ops->gemm(p->d, p->y, p->x, m, p->w, false);
    wait_for(p);
    double began = now();
    for (int i = 0; i < TIMES; i++)
        p->ops->gemm(p->d, p->y, p->x, m, p->w, false);
    wait_for(p);
    return (now() - began) / TIMES * 1e3;
}

static void product_open(struct product *p, const struct shape *s)
{
    size_t n = (size_t)s->out * (size_t)s->in;
    float *w = numbers(n, 1);
    const struct ops_matrix m = {w, OPS_F32, s->out, s->in};
    struct err e = {0};
    p->in = (size_t)(s->turned ? s->out : s->in);
    p->out = (size_t)(s->turned ? s->in : s->out);
    size_t xs = (size_t)s->rows * p->in, ys = (size_t)s->rows * p->out;
    float *x = numbers(xs, 2);
    p->w = p->ops->pack(p->d, &m, s->keep, s->turned, &e);
    p->x = p->ops->alloc(p->d, xs * sizeof *x, &e);
    p->y = p->ops->alloc(p->d, ys * sizeof *x, &e);
    if (!p->w || !p->x || !p->y) fail_msg("%s", e.text);
    p->ops->upload(p->d, p->x, x, xs * sizeof *x);
    p->ops->gemm(p->d, p->y, p->x, s->rows, p->w, false);
    p->all = zeros(ys);
    p->ops->download(p->d, p->all, p->y, ys * sizeof *x);
    wait_for(p);
    free(w), free(x);
}

static void product_close(struct product *p)
{
    p->ops->packed_free(p->d, p->w);
    p->ops->release(p->d, p->x);
    p->ops->release(p->d, p->y);
    free(p->all);
}

static int check(struct product *p, const struct shape *s)
{
    static const int timed[] = {1, 64, 512, 2048, 8192};
    int differ = 0;
    product_open(p, s);
    float *row = zeros(p->out);
    for (int m = 1; m <= s->rows; m++)
        differ += rows_that_differ(p, m, row);
    printf("{\"product\": \"%s\", \"out\": %d, \"in\": %d, \"weights\": \"%s\", \"rows_most\": %d, "
           "\"rows_compared\": %d, \"rows_different\": %d, \"ms\": {",
           s->name, s->out, s->in, s->keep == OPS_BF16 ? "bf16" : "fp32", s->rows,
           3 * s->rows, differ);
    for (int i = 0; i < 5 && timed[i] <= s->rows; i++)
        printf("%s\"%d\": %.4f", i ? ", " : "", timed[i], time_of(p, timed[i]));
    printf("}, \"status\": \"%s\"}\n", differ ? "failed: rows differ" : "passed");
    fflush(stdout);
    free(row);
    product_close(p);
    return differ;
}

static int part_of(int size, int parts)
{
    return size / parts > 1 ? size / parts : 2;
}

int main(int argc, char **argv)
{
    int count = (int)(sizeof shapes / sizeof *shapes), differ = 0;
    struct err e = {0};
    struct product p = {.ops = ops_cuda(0, &e)};
    if (!p.ops) fail_msg("%s", e.text);
    p.d = device_with(p.ops, 8);
    int parts = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < count; i++) {
        struct shape s = shapes[i];
        s.out = part_of(s.out, parts), s.in = part_of(s.in, parts), s.rows = part_of(s.rows, parts);
        differ += check(&p, &s);
    }
    p.ops->close(p.d);
    return differ ? EXIT_FAILURE : EXIT_SUCCESS;
}

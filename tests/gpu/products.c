/* products.c - the row law of the products that cuBLASLt does, at the shapes of Qwen3-8B: for every
 * number of rows M from 1 to the most, the first, middle and last row of x [M, in] have the bits
 * that they have among the most.  x and y are of the types that the engine gives them, y is added to
 * where it does so, and x of bf16 is there a second time where it has to be copied: the same bits.
 * Then how long products take, those of few rows by cuBLASLt and by our own kernel, and what the trial
 * says of it (kernels/cuda/few.h).  A line of JSON for each shape; the exit status says whether the law
 * held.
 *
 *   gpu-products [N]   N: sizes and rows are an Nth, for the emulation */
#include <stdlib.h>
#include <time.h>
#include "cuda/rounded.h"
#include "kernels/cuda/few.h"

struct shape {
    const char *name;
    int out, in, rows; /* rows: the most */
    enum ops_dtype keep;
    bool turned;
    enum ops_dtype x, y;
    bool add;
};

#define N OPS_BF16 /* narrow */
#define W OPS_F32
static const struct shape shapes[] = {
    {"q", 4096, 4096, 8192, N, false, N, N, false},
    {"q back", 4096, 4096, 8192, N, true, N, W, false},
    {"k", 1024, 4096, 8192, N, false, N, N, false},
    {"k back", 1024, 4096, 8192, N, true, N, W, true},
    {"o", 4096, 4096, 8192, N, false, N, W, true},
    {"o back", 4096, 4096, 8192, N, true, W, N, false},
    {"up", 12288, 4096, 8192, N, false, N, N, false},
    {"up back", 12288, 4096, 8192, N, true, N, W, true},
    {"down", 4096, 12288, 8192, N, false, N, W, true},
    {"down back", 4096, 12288, 8192, N, true, W, N, false},
    {"head", 151936, 4096, 512, N, false, N, W, false},
    {"head back", 151936, 4096, 512, N, true, W, W, false},
    {"odd", 1001, 333, 1024, N, false, N, N, true},
    {"q fp32", 4096, 4096, 512, W, false, W, W, false},
};
#undef N
#undef W

struct product {
    struct side s;
    struct packed *w;
    struct act x, y, before; /* the device's; before: y as it is added to, the first row of it */
    char *all;               /* y for the most rows, here */
    size_t in, out, row_bytes; /* row_bytes: of y */
    bool add;
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
    if (p->s.ops->sync(p->s.d, &e) < 0) fail_msg("%s", e.text);
}

/* y as it is before a product, in these rows: they are looked at, also for whether they are written. */
static void prepare(const struct product *p, const int *rows, int count)
{
    for (int i = 0; i < count; i++)
        p->s.ops->copy(p->s.d, act_at(p->y, rows[i] * (long)p->out).p, p->before.p, p->row_bytes);
}

static int rows_that_differ(const struct product *p, struct act x, int m, char *row)
{
    const int rows[] = {0, m / 2, m - 1};
    int differ = 0;
    prepare(p, rows, 3);
    p->s.ops->gemm(p->s.d, p->y, x, m, p->w, p->add);
    for (int i = 0; i < 3; i++) {
        p->s.ops->download(p->s.d, row, act_at(p->y, rows[i] * (long)p->out).p, p->row_bytes);
        differ += memcmp(row, p->all + (size_t)rows[i] * p->row_bytes, p->row_bytes) != 0;
    }
    return differ;
}

/* The same x, not aligned: how many of some rows differ. */
static int copied_rows_that_differ(const struct product *p, int m, char *row)
{
    size_t n = (size_t)m * p->in;
    struct act room = room_act(&p->s, n + 1, p->x.dtype), x = act_at(room, 1);
    p->s.ops->copy(p->s.d, x.p, p->x.p, n * ops_size(x.dtype));
    int differ = rows_that_differ(p, x, m, row);
    wait_for(p);
    drop_act(&p->s, room);
    return differ;
}

/* Milliseconds of a product. */
static double time_of(const struct product *p, int m)
{
    enum { TIMES = 20 };
    p->s.ops->gemm(p->s.d, p->y, p->x, m, p->w, p->add);
    wait_for(p);
    double began = now();
    for (int i = 0; i < TIMES; i++)
        p->s.ops->gemm(p->s.d, p->y, p->x, m, p->w, p->add);
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
    float *x = numbers(xs, 2), *before = numbers(p->out, 3);
    p->add = s->add;
    p->row_bytes = p->out * ops_size(s->y);
    p->w = p->s.ops->pack(p->s.d, &m, s->keep, s->turned, &e);
    if (!p->w) fail_msg("%s", e.text);
    p->x = up_act(&p->s, x, xs, s->x);
    p->y = room_act(&p->s, ys, s->y);
    p->before = up_act(&p->s, before, p->out, s->y);
    for (int i = 0; i < s->rows; i++)
        prepare(p, &i, 1);
    p->s.ops->gemm(p->s.d, p->y, p->x, s->rows, p->w, p->add);
    p->all = malloc(ys * ops_size(s->y));
    assert_non_null(p->all);
    p->s.ops->download(p->s.d, p->all, p->y.p, ys * ops_size(s->y));
    wait_for(p);
    free(w), free(x), free(before);
}

static void product_close(struct product *p)
{
    p->s.ops->packed_free(p->s.d, p->w);
    drop_act(&p->s, p->x), drop_act(&p->s, p->y), drop_act(&p->s, p->before);
    free(p->all);
}

static const char *name_of(enum ops_dtype dtype)
{
    return dtype == OPS_BF16 ? "bf16" : "fp32";
}

/* ------------------------------------------------------------------ few rows */

static const struct few_kind *kind_of(const struct product *p, const struct shape *s)
{
    const struct few_kind *kinds;
    int count = cuda_few_kinds(p->s.d, &kinds);
    for (int i = 0; i < count; i++)
        if (kinds[i].n == s->out && kinds[i].k == (s->in + 7) / 8 * 8 && kinds[i].y_dtype == s->y)
            return &kinds[i];
    fail_msg("there was no trial of \"%s\"", s->name);
    return NULL;
}

static void few_times_print(const struct product *p, int most, const char *name, enum few_by by)
{
    static const int rows[] = {1, 16, 64};
    cuda_few_by(p->s.d, by);
    printf("\"%s\": {", name);
    for (int i = 0; i < 3 && rows[i] <= most; i++)
        printf("%s\"%d\": %.4f", i ? ", " : "", rows[i], time_of(p, rows[i]));
    printf("}");
    cuda_few_by(p->s.d, FEW_BY_TRIAL);
}

/* What the trial, which was made in passing, says, and times of both kernels whatever it says. */
static void few_print(const struct product *p, const struct shape *s)
{
    static const char *const verdicts[] = {"same", "different", "untold", "no room"};
    const struct few_kind *kind = kind_of(p, s);
    printf("\"few\": {\"trial\": \"%s\", \"different\": %u, \"telling\": %u, \"ms\": {",
           verdicts[kind->verdict], kind->different, kind->telling);
    few_times_print(p, s->rows, "library", FEW_BY_LIBRARY);
    printf(", ");
    few_times_print(p, s->rows, "ours", FEW_BY_OURS);
    printf("}}, ");
}

static int check(struct product *p, const struct shape *s)
{
    static const int timed[] = {1, 64, 512, 2048, 8192};
    int differ = 0;
    product_open(p, s);
    char *row = malloc(p->row_bytes);
    assert_non_null(row);
    for (int m = 1; m <= s->rows; m++)
        differ += rows_that_differ(p, p->x, m, row);
    differ += copied_rows_that_differ(p, s->rows, row);
    printf("{\"product\": \"%s\", \"out\": %d, \"in\": %d, \"weights\": \"%s\", \"x\": \"%s\", "
           "\"y\": \"%s\", \"add\": %s, \"rows_most\": %d, \"rows_compared\": %d, "
           "\"rows_different\": %d, \"ms\": {",
           s->name, s->out, s->in, name_of(s->keep), name_of(s->x), name_of(s->y),
           s->add ? "true" : "false", s->rows, 3 * s->rows + 3, differ);
    for (int i = 0; i < 5 && timed[i] <= s->rows; i++)
        printf("%s\"%d\": %.4f", i ? ", " : "", timed[i], time_of(p, timed[i]));
    printf("}, ");
    if (s->keep == OPS_BF16 && !s->turned) few_print(p, s);
    printf("\"status\": \"%s\"}\n", differ ? "failed: rows differ" : "passed");
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
    const struct ops *ops = ops_cuda(0, &e);
    if (!ops) fail_msg("%s", e.text);
    struct product p = {.s = {ops, device_with(ops, 8)}};
    int parts = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < count; i++) {
        struct shape s = shapes[i];
        s.out = part_of(s.out, parts), s.in = part_of(s.in, parts), s.rows = part_of(s.rows, parts);
        differ += check(&p, &s);
    }
    ops->close(p.s.d);
    return differ ? EXIT_FAILURE : EXIT_SUCCESS;
}

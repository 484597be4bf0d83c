/* Products with frozen weights: against the CPU's, and that a row's bits are its own.
 *
 * With both factors rounded to bf16 the products are exact in fp32, so the two sides differ by the
 * order of a sum of k terms alone: at most about k 2^-24 of the sum of their sizes, typically the
 * root of k; the sizes are below k.  k^1.5 2^-24 leaves room for both.  y in bf16 is rounded once more. */
#include "cuda/rounded.h"

static uint16_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Formats of the file: numbers, their upper halves, and halves that are subnormal every third time. */
static void *weights(enum ops_dtype dtype, size_t n)
{
    float *x = numbers(n, 1);
    uint16_t *half = malloc(n * sizeof *half + 1);
    assert_non_null(half);
    if (dtype == OPS_F32) {
        free(half);
        return x;
    }
    for (size_t i = 0; i < n; i++)
        half[i] = dtype == OPS_BF16 ? bits_of(x[i]) : (uint16_t)(i % 3 ? 0x3000 + i % 0x800 : i % 0x400);
    free(x);
    return half;
}

static float *filled(size_t n, float f)
{
    float *x = zeros(n);
    for (size_t i = 0; i < n; i++)
        x[i] = f;
    return x;
}

struct gemm_case {
    int out, in, rows;
    enum ops_dtype file, keep;
    bool turned;
    enum ops_dtype x, y;
    long skip; /* numbers that x begins behind: where it is not 16-byte aligned it is copied */
};

/* y for rows from .. rows - 1; behind them x is NaN.  other: w is what stands beside the same matrix
 * for the other way. */
static float *product(const struct side *s, const struct gemm_case *c, const void *w, const float *x,
                      int from, bool add, bool other)
{
    const struct ops_matrix m = {w, c->file, c->out, c->in};
    struct err e = {0};
    struct packed *first = s->ops->pack(s->d, &m, c->keep, c->turned != other, &e);
    assert_non_null(first);
    struct packed *p = other ? s->ops->pack_other_way(s->d, first, &m, &e) : first;
    assert_non_null(p);
    size_t in = (size_t)(c->turned ? c->out : c->in), out = (size_t)(c->turned ? c->in : c->out);
    size_t rows = (size_t)(c->rows - from);
    struct act all = room_act(s, (rows + 1) * in + (size_t)c->skip, c->x), xs = act_at(all, c->skip);
    float *fill = filled(in, NAN);
    fill_act(s, act_at(xs, (long)(rows * in)), fill, in);
    fill_act(s, xs, x + (size_t)from * in, rows * in);
    free(fill);
    fill = filled(rows * out, 0.5f);
    struct act y = up_act(s, fill, rows * out, c->y);
    s->ops->gemm(s->d, y, xs, (int)rows, p, add);
    s->ops->gemm(s->d, y, xs, 0, p, add);
    s->ops->packed_free(s->d, p);
    if (other) s->ops->packed_free(s->d, first);
    drop_act(s, all);
    free(fill);
    return down_act(s, y, rows * out);
}

static void check_case(struct side s[2], const struct gemm_case *c)
{
    size_t in = (size_t)(c->turned ? c->out : c->in), out = (size_t)(c->turned ? c->in : c->out);
    size_t last = (size_t)(c->rows - 1) * out, n = (size_t)c->rows * out;
    void *w = weights(c->file, (size_t)c->out * (size_t)c->in);
    float *x = numbers_as(c->x, (size_t)c->rows * in, 2);
    if (c->x == OPS_F32) x[0] = 1e-39f; /* taken as zero in bf16 */
    double tolerance = pow((double)in, 1.5) * 0x1p-24 + 1e-6;
    for (int add = 0; add < 2; add++) {
        float *want = product(&s[0], c, w, x, 0, add, false);
        float *got = product(&s[1], c, w, x, 0, add, false);
        for (size_t i = 0; i < n; i++)
            assert_near((double)got[i], (double)want[i], tolerance + kept(c->y, want[i]), "product", i);
        for (int i = 0; i < 2; i++) {
            float *alone = product(&s[i], c, w, x, c->rows - 1, add, true);
            assert_same_bits(alone, (i ? got : want) + last, out);
            free(alone);
        }
        free(want), free(got);
    }
    free(w), free(x);
}

static void products_agree_and_a_row_is_its_own(void **state)
{
    static const int shapes[][3] = {{1, 1, 1}, {33, 19, 7}, {64, 48, 33}, {20, 257, 3}};
    static const enum ops_dtype formats[] = {OPS_F32, OPS_BF16, OPS_F16};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 4; k++)
        for (int f = 0; f < 3; f++)
            for (int keep = 0; keep < 2; keep++)
                for (int turned = 0; turned < 2; turned++) {
                    struct gemm_case c = {shapes[k][0], shapes[k][1], shapes[k][2], formats[f],
                                          keep ? OPS_BF16 : OPS_F32, turned, OPS_F32, OPS_F32, 0};
                    check_case(s, &c);
                }
    sides_close(s);
}

static void products_agree_with_x_and_y_of_either_type(void **state)
{
    static const int shapes[][3] = {{1, 1, 1}, {33, 19, 7}, {64, 48, 33}, {20, 257, 3}, {9, 24, 5}};
    static const enum ops_dtype types[][2] = {
        {OPS_BF16, OPS_BF16}, {OPS_F32, OPS_BF16}, {OPS_BF16, OPS_F32}};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 5; k++)
        for (int t = 0; t < 3; t++)
            for (int turned = 0; turned < 2; turned++) {
                struct gemm_case c = {shapes[k][0], shapes[k][1], shapes[k][2], OPS_BF16,
                                      OPS_BF16, turned, types[t][0], types[t][1], 0};
                check_case(s, &c);
            }
    sides_close(s);
}

/* The same numbers in bf16 where they can be read as they lie, in bf16 where they cannot, and in
 * fp32; y in fp32, and in bf16. */
static void a_product_does_not_depend_on_how_x_is_kept(void **state)
{
    static const int shapes[][3] = {{33, 19, 7}, {64, 48, 33}, {7, 264, 3}};
    struct side s = side_open(twin());
    for (int k = 0; k < 3; k++)
        for (int add = 0; add < 2; add++) {
            int out = shapes[k][0], in = shapes[k][1], rows = shapes[k][2];
            size_t n = (size_t)rows * (size_t)out;
            void *w = weights(OPS_BF16, (size_t)out * (size_t)in);
            float *x = numbers_bf16((size_t)rows * (size_t)in, 2), *got[5];
            struct gemm_case c = {out, in, rows, OPS_BF16, OPS_BF16, false, OPS_F32, OPS_F32, 0};
            got[0] = product(&s, &c, w, x, 0, add, false);
            c.x = OPS_BF16;
            got[1] = product(&s, &c, w, x, 0, add, false);
            c.skip = 1;
            got[2] = product(&s, &c, w, x, 0, add, false);
            c.y = OPS_BF16;
            got[3] = product(&s, &c, w, x, 0, add, false);
            c.skip = 0;
            got[4] = product(&s, &c, w, x, 0, add, false);
            assert_same_bits(got[1], got[0], n);
            assert_same_bits(got[2], got[0], n);
            assert_same_bits(got[3], got[4], n);
            for (size_t i = 0; i < n; i++) /* perhaps by another algorithm */
                assert_near((double)got[3][i], (double)got[0][i],
                            pow(in, 1.5) * 0x1p-24 + kept(OPS_BF16, got[0][i]), "product", i);
            for (int i = 0; i < 5; i++)
                free(got[i]);
            free(w), free(x);
        }
    side_close(&s);
}

/* A mapped file aligns nothing, and a large matrix comes in several chunks. */
static void a_matrix_may_be_long_and_unaligned(void **state)
{
    enum { OUT = 2100, IN = 4100 };
    struct side s[2];
    size_t n = (size_t)OUT * IN;
    float *numbers_ = numbers(n, 1), *x = numbers(2 * IN, 2);
    char *shifted = malloc(n * sizeof(float) + 1);
    sides_open(s);
    memcpy(shifted + 1, numbers_, n * sizeof(float));
    struct gemm_case c = {OUT, IN, 2, OPS_F32, OPS_BF16, false, OPS_F32, OPS_F32, 0};
    float *want = product(&s[0], &c, shifted + 1, x, 0, false, false);
    float *got = product(&s[1], &c, shifted + 1, x, 0, false, false);
    assert_all_near(got, want, 2 * OUT, pow(IN, 1.5) * 0x1p-24, "product");
    free(numbers_), free(x), free(shifted), free(want), free(got);
    sides_close(s);
}

static void the_room_for_weights_is_what_is_said(void **state)
{
    struct side s[2];
    sides_open(s);
    assert_int_equal(s[1].ops->packed_bytes(4096, 1024, OPS_BF16, false), 4096 * 1024 * 2);
    assert_int_equal(s[1].ops->packed_bytes(4096, 1024, OPS_F32, true), 4096 * 1024 * 4);
    assert_int_equal(s[1].ops->packed_bytes(9, 1, OPS_BF16, false), 16 * 8 * 2);
    sides_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree_and_a_row_is_its_own),
        cmocka_unit_test(products_agree_with_x_and_y_of_either_type),
        cmocka_unit_test(a_product_does_not_depend_on_how_x_is_kept),
        cmocka_unit_test(a_matrix_may_be_long_and_unaligned),
        cmocka_unit_test(the_room_for_weights_is_what_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

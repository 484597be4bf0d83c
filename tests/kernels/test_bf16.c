/* Products with weights kept in bf16: the order that ops.h writes down, the row law, and what
 * becomes of weights of each format on their way in. */
#include "kernels/check.h"

#include <float.h>

static const char *const isas[] = {"avx512bf16", "avx512", "avx2", "plain"};
#define ISAS 4

/* rows, in, out: ones, odd ones, edges of tiles (12, 6, 3 rows; 32, 16 columns), of tasks (96, 48,
 * 24 rows) and of strips (512), whose rows share a task's memory (96 / rows strips at once). */
static const int shapes[][3] = {
    {1, 1, 1},      {1, 2, 5},     {3, 16, 16},    {12, 33, 31}, {13, 32, 33},  {7, 101, 47},
    {97, 64, 65},   {64, 513, 40}, {2, 1030, 9},   {25, 48, 300}, {193, 21, 257}, {5, 3, 1000},
    {30, 1031, 70}, {1, 5000, 40}, {33, 1537, 33}, {41, 174, 70},
};
#define SHAPES (int)(sizeof shapes / sizeof *shapes)

/* ------------------------------------------------------------------ the definition, once more */

static float of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float flush(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

/* To 8 bits of significand by way of double arithmetic: adding and taking away 1.5 * 2^44 times a
 * number's last place rounds it to the nearest, ties to even. */
static float rounded(float x)
{
    int exponent;
    if (!isfinite(x)) return x;
    if (fabsf(x) < FLT_MIN) return copysignf(0, x);
    frexp((double)x, &exponent);
    double big = ldexp(1.5, exponent - 8 + 52);
    volatile double sum = (double)x + big;
    return (float)(sum - big);
}

static void naive(float *y, const float *x, const float *w, int rows, int in, int out, bool add)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++) {
            float sum = 0;
            for (int k = 0; k < in; k += 2) {
                float x1 = k + 1 < in ? rounded(x[r * in + k + 1]) : 0;
                float w1 = k + 1 < in ? rounded(w[o * in + k + 1]) : 0;
                sum = flush(fmaf(x1, w1, sum));
                sum = flush(fmaf(rounded(x[r * in + k]), rounded(w[o * in + k]), sum));
            }
            y[r * out + o] = add ? y[r * out + o] + sum : sum;
        }
}

static struct packed *pack(const struct ops *ops, struct device *d, const float *w, int out, int in,
                           bool transpose)
{
    return ops->pack(d, &(struct ops_matrix){w, OPS_F32, out, in}, OPS_BF16, transpose, NULL);
}

/* ------------------------------------------------------------------ tests */

/* scale: of x and of w; with 2^-66 most products and sums lie around 2^-126. */
static void check_products(float scale)
{
    for (int s = 0; s < SHAPES; s++)
        for (int add = 0; add < 2; add++) {
            int rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
            size_t nx = (size_t)rows * in, nw = (size_t)out * in, ny = (size_t)rows * out;
            float *x = numbers(nx, 1), *w = numbers(nw, 2), *want = numbers(ny, 3);
            for (size_t i = 0; i < nx; i++)
                x[i] *= scale;
            for (size_t i = 0; i < nw; i++)
                w[i] *= scale;
            for (size_t i = 0; i < ny; i++)
                want[i] *= scale * scale;
            float *start = malloc(ny * sizeof *start), *y = malloc(ny * sizeof *y);
            memcpy(start, want, ny * sizeof *start);
            naive(want, x, w, rows, in, out, add);
            for (int i = 0; i < ISAS; i++) {
                const struct ops *ops = ops_cpu_isa(isas[i]);
                if (!ops) continue;
                struct device *d = device_with(ops, 2);
                struct packed *p = pack(ops, d, w, out, in, false);
                memcpy(y, start, ny * sizeof *y);
                ops->gemm(d, act_f32(y), act_f32(x), rows, p, add);
                assert_same_bits(y, want, ny);
                ops->packed_free(d, p);
                ops->close(d);
            }
            free(x), free(w), free(y), free(want), free(start);
        }
}

static void each_product_is_one_chain_over_pairs_on_every_instruction_set(void **state)
{
    check_products(1);
}

static void results_below_the_normal_numbers_are_zero_on_every_instruction_set(void **state)
{
    check_products(0x1p-63f);
    check_products(0x1p-66f);
}

static void a_transposed_packing_multiplies_by_w_itself(void **state)
{
    for (int i = 0; i < ISAS; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        struct device *d = device_with(ops, 2);
        for (int s = 0; s < SHAPES; s++) {
            int rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
            float *dy = numbers((size_t)rows * out, 4), *w = numbers((size_t)out * in, 5);
            float *turned = zeros((size_t)out * in);
            for (int o = 0; o < out; o++)
                for (int k = 0; k < in; k++)
                    turned[k * out + o] = w[o * in + k];
            float *dx = zeros((size_t)rows * in), *want = zeros((size_t)rows * in);
            struct packed *p = pack(ops, d, w, out, in, true);
            ops->gemm(d, act_f32(dx), act_f32(dy), rows, p, false);
            naive(want, dy, turned, rows, out, in, false);
            assert_same_bits(dx, want, (size_t)rows * in);
            ops->packed_free(d, p);
            free(dy), free(w), free(turned), free(dx), free(want);
        }
        ops->close(d);
    }
}

/* Row `at` alone, and among 1, 7, 63 and 199 others, on 1, 2 and 3 threads. */
static void check_company(const struct ops *ops)
{
    enum { IN = 701, OUT = 600, ROWS = 200 };
    static const int company[] = {2, 8, 64, ROWS};
    float *x = numbers((size_t)ROWS * IN, 6), *w = numbers((size_t)OUT * IN, 7);
    float *alone = zeros(OUT), *y = zeros((size_t)ROWS * OUT);
    for (int threads = 1; threads <= 3; threads++) {
        struct device *d = device_with(ops, threads);
        struct packed *p = pack(ops, d, w, OUT, IN, false);
        for (int at = 0; at < ROWS; at += 66) {
            ops->gemm(d, act_f32(alone), act_f32(x + at * IN), 1, p, false);
            for (int c = 0; c < 4; c++) {
                int first = at < company[c] ? 0 : at - company[c] + 1;
                ops->gemm(d, act_f32(y), act_f32(x + first * IN), company[c], p, false);
                assert_same_bits(alone, y + (at - first) * OUT, OUT);
            }
        }
        ops->packed_free(d, p);
        ops->close(d);
    }
    free(x), free(w), free(alone), free(y);
}

static void a_row_does_not_notice_its_company_nor_the_threads(void **state)
{
    for (int i = 0; i < ISAS; i++)
        if (ops_cpu_isa(isas[i])) check_company(ops_cpu_isa(isas[i]));
}

/* ------------------------------------------------------------------ formats */

/* What a packing holds, read back by multiplying with ones in one place: w [out, in]. */
static void read_back(const struct ops *ops, const struct ops_matrix *w, enum ops_dtype keep,
                      bool transpose, float *out)
{
    struct device *d = device_with(ops, 1);
    struct packed *p = ops->pack(d, w, keep, transpose, NULL);
    int in = transpose ? w->rows : w->cols, width = transpose ? w->cols : w->rows;
    float *x = zeros((size_t)in * in), *y = zeros((size_t)in * width);
    for (int k = 0; k < in; k++)
        x[k * in + k] = 1;
    ops->gemm(d, act_f32(y), act_f32(x), in, p, false);
    for (int k = 0; k < in; k++)
        for (int o = 0; o < width; o++)
            out[transpose ? k * w->cols + o : o * w->cols + k] = y[k * width + o];
    ops->packed_free(d, p);
    ops->close(d);
    free(x), free(y);
}

static void weights_of_each_format_are_kept_in_either(void **state)
{
    enum { OUT = 35, IN = 19, N = OUT * IN };
    float *w = numbers(N, 8), got[N];
    /* from odd addresses: a mapped file may begin there */
    unsigned char *half = malloc(2 * N + 1), *full = malloc(4 * N + 1);
    float as_half[N], as_bf16[N];
    for (int i = 0; i < N; i++) {
        as_bf16[i] = rounded(w[i]);
        as_half[i] = (float)(int)(w[i] * 1024) / 1024; /* eleven bits: exact in fp16 */
    }
    memcpy(full + 1, w, sizeof got);
    for (int i = 0; i < ISAS; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        for (int transpose = 0; transpose < 2; transpose++) {
            struct ops_matrix m = {full + 1, OPS_F32, OUT, IN};
            read_back(ops, &m, OPS_F32, transpose, got);
            assert_same_bits(got, w, N);
            read_back(ops, &m, OPS_BF16, transpose, got);
            assert_same_bits(got, as_bf16, N);

            m = (struct ops_matrix){half + 1, OPS_BF16, OUT, IN};
            for (int k = 0; k < N; k++)
                memcpy(half + 1 + 2 * k, (char *)&as_bf16[k] + 2, 2);
            read_back(ops, &m, OPS_F32, transpose, got);
            assert_same_bits(got, as_bf16, N);
            read_back(ops, &m, OPS_BF16, transpose, got);
            assert_same_bits(got, as_bf16, N);

            m.dtype = OPS_F16;
            for (int k = 0; k < N; k++) {
                _Float16 h = (_Float16)as_half[k];
                memcpy(half + 1 + 2 * k, &h, 2);
            }
            read_back(ops, &m, OPS_F32, transpose, got);
            assert_same_bits(got, as_half, N);
            read_back(ops, &m, OPS_BF16, transpose, got);
            for (int k = 0; k < N; k++)
                assert_true(got[k] == rounded(as_half[k]));
        }
    }
    free(w), free(half), free(full);
}

/* bits of fp32 and of the bf16 that they become, where it is not a matter of plain rounding */
static const uint32_t edges[][2] = {
    {0x3f808000, 0x3f80},               /* a tie goes to the even one, below */
    {0x3f818000, 0x3f82},               /* and above */
    {0x3f808001, 0x3f81},               /* just past a tie */
    {0x3f7fffff, 0x3f80},               /* the carry reaches the exponent */
    {0x7f7fffff, 0x7f80},               /* and infinity */
    {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x007fffff, 0x0000}, {0x80000001, 0x8000},
    {0x00800000, 0x0080}, {0x80000000, 0x8000},
};

/* x passes through the rows' rounding when it meets weights of one; w through the packing's.  One
 * row and many are rounded in different places, as are a number alone and 16 or 32 of them. */
enum { ROUNDED = 49, ROUNDED_ROWS = 14 };

static void check_rounding(const struct ops *ops, struct device *d, float value, float want, int at)
{
    static float x[ROUNDED_ROWS * ROUNDED], ones[ROUNDED_ROWS * ROUNDED];
    float y[ROUNDED_ROWS];
    memset(x, 0, sizeof x);
    memset(ones, 0, sizeof ones);
    for (int r = 0; r < ROUNDED_ROWS; r++) {
        x[r * ROUNDED + at] = value;
        ones[r * ROUNDED + at] = 1;
    }
    for (int side = 0; side < 2; side++) {
        struct packed *p = pack(ops, d, side ? x : ones, 1, ROUNDED, false);
        for (int rows = 1; rows <= ROUNDED_ROWS; rows += ROUNDED_ROWS - 1) {
            ops->gemm(d, act_f32(y), act_f32(side ? ones : x), rows, p, false);
            for (int r = 0; r < rows; r++)
                assert_true(y[r] == want);
        }
        ops->packed_free(d, p);
    }
}

static void rounding_goes_to_the_nearest_and_to_even_on_both_sides(void **state)
{
    for (int i = 0; i < ISAS; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        struct device *d = device_with(ops, 1);
        for (size_t k = 0; k < sizeof edges / sizeof *edges; k++) {
            float value = of_bits(edges[k][0]), want = of_bits(edges[k][1] << 16);
            for (int at = 0; at < ROUNDED; at += 16)
                check_rounding(ops, d, value, want, at);
        }
        ops->close(d);
    }
}

static void what_is_not_a_number_stays_none(void **state)
{
    static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0xffffffff, 0x7fffffff};
    for (int i = 0; i < ISAS; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        struct device *d = device_with(ops, 1);
        for (int k = 0; k < 4; k++) {
            enum { WIDE = 34, ROWS = 13 }; /* the last row has company of another tile */
            float x[ROWS * WIDE] = {0}, ones[WIDE], y[ROWS];
            for (int c = 0; c < WIDE; c++)
                ones[c] = 1;
            x[k * 11] = x[(ROWS - 1) * WIDE + k * 11] = of_bits(nans[k]);
            struct packed *p = pack(ops, d, ones, 1, WIDE, false);
            ops->gemm(d, act_f32(y), act_f32(x), 1, p, false);
            assert_true(isnan(y[0]));
            ops->gemm(d, act_f32(y), act_f32(x), ROWS, p, false);
            assert_true(isnan(y[0]) && y[1] == 0 && isnan(y[ROWS - 1]));
            ops->packed_free(d, p);
        }
        ops->close(d);
    }
}

static void rows_of_a_bf16_table_are_widened_exactly(void **state)
{
    enum { ROWS = 5, WIDTH = 37, IDS = 300 };
    uint16_t table[ROWS * WIDTH];
    int32_t ids[IDS];
    uint64_t seed = 9;
    for (int i = 0; i < ROWS * WIDTH; i++)
        table[i] = (uint16_t)(bits_of(next_number(&seed)) >> 16);
    table[3] = 0x0001; /* subnormals stay: this is no product */
    for (int i = 0; i < IDS; i++)
        ids[i] = i * 7 % ROWS;
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    float *y = zeros((size_t)IDS * WIDTH);
    ops->gather(d, act_f32(y), (struct act){table, OPS_BF16}, ids, IDS, WIDTH);
    for (int i = 0; i < IDS; i++)
        for (int c = 0; c < WIDTH; c++)
            assert_int_equal(bits_of(y[i * WIDTH + c]),
                             (uint32_t)table[ids[i] * WIDTH + c] << 16);
    free(y);
    ops->close(d);
}

static void the_numerics_class_tells_the_formats_apart(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 1);
    assert_non_null(strstr(ops->numerics(d, OPS_F32), "/fp32/"));
    assert_non_null(strstr(ops->numerics(d, OPS_BF16), "/bf16/"));
    ops->close(d);
}

/* Which table is the faster one may differ between machines of one class, and from start to start. */
static void the_numerics_class_is_the_same_whichever_table_was_chosen(void **state)
{
    struct device *chosen = device_with(ops_cpu(), 1);
    for (int i = 0; i < 2; i++) { /* avx512bf16 and avx512 */
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        struct device *d = device_with(ops, 1);
        for (int k = 0; k < 2; k++) {
            enum ops_dtype dtype = k ? OPS_BF16 : OPS_F32;
            assert_string_equal(ops->numerics(d, dtype), ops_cpu()->numerics(chosen, dtype));
        }
        ops->close(d);
    }
    ops_cpu()->close(chosen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_product_is_one_chain_over_pairs_on_every_instruction_set),
        cmocka_unit_test(results_below_the_normal_numbers_are_zero_on_every_instruction_set),
        cmocka_unit_test(a_transposed_packing_multiplies_by_w_itself),
        cmocka_unit_test(a_row_does_not_notice_its_company_nor_the_threads),
        cmocka_unit_test(weights_of_each_format_are_kept_in_either),
        cmocka_unit_test(rounding_goes_to_the_nearest_and_to_even_on_both_sides),
        cmocka_unit_test(what_is_not_a_number_stays_none),
        cmocka_unit_test(rows_of_a_bf16_table_are_widened_exactly),
        cmocka_unit_test(the_numerics_class_tells_the_formats_apart),
        cmocka_unit_test(the_numerics_class_is_the_same_whichever_table_was_chosen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

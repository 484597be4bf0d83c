/* The product with packed weights: its value, its order of summation, and the row law. */
#include "kernels/check.h"

static const char *const isas[] = {"avx512bf16", "avx512", "avx2", "plain"};

/* rows, in, out: ones, odd ones, edges of tiles (12, 6, 3 rows; 32, 16 columns) and of strips. */
static const int shapes[][3] = {
    {1, 1, 1},      {1, 7, 5},    {3, 16, 16},     {12, 33, 31}, {13, 32, 33},
    {7, 100, 47},   {97, 64, 65}, {64, 513, 40},   {2, 1030, 9}, {25, 48, 300},
    {193, 20, 257}, {5, 3, 1000}, {30, 1030, 600}, {1, 5000, 40}, {12, 5000, 40},
};
#define SHAPES (int)(sizeof shapes / sizeof *shapes)

static struct packed *pack_f32(const struct ops *ops, struct device *d, const float *w, int out,
                               int in, bool transpose)
{
    return ops->pack(d, &(struct ops_matrix){w, OPS_F32, out, in}, OPS_F32, transpose, NULL);
}

/* The definition: one chain of fused multiply-adds over k. */
static void naive(float *y, const float *x, const float *w, int rows, int in, int out, bool add)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++) {
            float sum = 0;
            for (int k = 0; k < in; k++)
                sum = fmaf(x[r * in + k], w[o * in + k], sum);
            y[r * out + o] = add ? y[r * out + o] + sum : sum;
        }
}

static void each_product_is_one_chain_over_k_on_every_instruction_set(void **state)
{
    for (int i = 0; i < 4; i++) {
        const struct ops *ops = ops_cpu_isa(isas[i]);
        if (!ops) continue;
        struct device *d = device_with(ops, 2);
        for (int s = 0; s < SHAPES; s++)
            for (int add = 0; add < 2; add++) {
                int rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
                float *x = numbers((size_t)rows * in, 1), *w = numbers((size_t)out * in, 2);
                float *y = numbers((size_t)rows * out, 3), *want = numbers((size_t)rows * out, 3);
                struct packed *p = pack_f32(ops, d, w, out, in, false);
                ops->gemm(d, act_f32(y), act_f32(x), rows, p, add);
                naive(want, x, w, rows, in, out, add);
                assert_same_bits(y, want, (size_t)rows * out);
                ops->packed_free(d, p);
                free(x), free(w), free(y), free(want);
            }
        ops->close(d);
    }
}

static void a_transposed_packing_multiplies_by_w_itself(void **state)
{
    const struct ops *ops = ops_cpu();
    struct device *d = device_with(ops, 2);
    for (int s = 0; s < SHAPES; s++) {
        int rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
        float *dy = numbers((size_t)rows * out, 4), *w = numbers((size_t)out * in, 5);
        float *turned = zeros((size_t)out * in);
        for (int o = 0; o < out; o++)
            for (int k = 0; k < in; k++)
                turned[k * out + o] = w[o * in + k];
        float *dx = zeros((size_t)rows * in), *want = zeros((size_t)rows * in);
        struct packed *p = pack_f32(ops, d, w, out, in, true);
        ops->gemm(d, act_f32(dx), act_f32(dy), rows, p, false);
        naive(want, dy, turned, rows, out, in, false);
        assert_same_bits(dx, want, (size_t)rows * in);
        ops->packed_free(d, p);
        free(dy), free(w), free(turned), free(dx), free(want);
    }
    ops->close(d);
}

/* Row `at` alone, and among 1, 7 and 63 others, on 1, 2 and 3 threads. */
static void a_row_does_not_notice_its_company_nor_the_threads(void **state)
{
    enum { IN = 700, OUT = 1100 };
    static const int company[] = {2, 8, 64};
    const struct ops *ops = ops_cpu();
    float *x = numbers(64 * IN, 6), *w = numbers((size_t)OUT * IN, 7);
    float *alone = zeros(OUT), *y = zeros(64 * OUT);
    for (int threads = 1; threads <= 3; threads++) {
        struct device *d = device_with(ops, threads);
        struct packed *p = pack_f32(ops, d, w, OUT, IN, false);
        for (int at = 0; at < 64; at += 21) {
            ops->gemm(d, act_f32(alone), act_f32(x + at * IN), 1, p, false);
            for (int c = 0; c < 3; c++) {
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_product_is_one_chain_over_k_on_every_instruction_set),
        cmocka_unit_test(a_transposed_packing_multiplies_by_w_itself),
        cmocka_unit_test(a_row_does_not_notice_its_company_nor_the_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

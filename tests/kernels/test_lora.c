/* The low-rank products: values, gradients, and that groups do not notice each other. */
#include "kernels/check.h"

#define IN     37
#define OUT    51
#define ROWS   150
#define LDU    20
#define GROUPS 3

/* Three adapters of different ranks; rows 70 to 79 belong to none. */
struct world {
    const struct ops *ops;
    struct device *d;
    struct lora_group groups[GROUPS];
    int blocks[8];
    float *x, *weight; /* [ROWS, IN], [ROWS, OUT]: dL / dy */
    float *a[GROUPS], *b[GROUPS], *ga[GROUPS], *gb[GROUPS];
};

static const int group_rows[GROUPS][2] = {{0, 70}, {80, 1}, {81, 69}};
static const int ranks[GROUPS] = {1, 8, 19};

static void world_init(struct world *w, int threads)
{
    *w = (struct world){.ops = ops_cpu()};
    w->d = device_with(w->ops, threads);
    w->x = numbers(ROWS * IN, 1);
    w->weight = numbers(ROWS * OUT, 2);
    memcpy(w->blocks, (int[8]){0, 64, 70, 80, 81, 81 + 5, 81 + 69, 0}, sizeof w->blocks);
    static const int first_block[GROUPS] = {0, 3, 4}, block_count[GROUPS] = {2, 1, 2};
    for (int g = 0; g < GROUPS; g++) {
        w->a[g] = numbers((size_t)(ranks[g] * IN), 10 + (uint64_t)g);
        w->b[g] = numbers((size_t)(ranks[g] * OUT), 20 + (uint64_t)g);
        w->ga[g] = zeros((size_t)(ranks[g] * IN));
        w->gb[g] = zeros((size_t)(ranks[g] * OUT));
        w->groups[g] = (struct lora_group){.row = group_rows[g][0],
                                           .rows = group_rows[g][1],
                                           .rank = ranks[g],
                                           .scale = 32.0f / (float)ranks[g] / 16,
                                           .a = w->a[g],
                                           .b = w->b[g],
                                           .grad_a = w->ga[g],
                                           .grad_b = w->gb[g],
                                           .blocks = w->blocks + first_block[g],
                                           .block_count = block_count[g]};
    }
}

/* The second group ends at row 81 where the third begins, and the third has blocks of 5 and 64. */

static void world_clear(struct world *w)
{
    for (int g = 0; g < GROUPS; g++)
        free(w->a[g]), free(w->b[g]), free(w->ga[g]), free(w->gb[g]);
    free(w->x), free(w->weight);
    w->ops->close(w->d);
}

static void low_rank(const struct world *w, float *y, float *u, int group, int count)
{
    const struct projection p = {.in = IN,
                                 .out = OUT,
                                 .y = act_f32(y),
                                 .u = u,
                                 .ldu = LDU,
                                 .groups = w->groups + group,
                                 .count = count};
    w->ops->project(w->d, act_f32(w->x), ROWS, &p, 1);
}

static void low_rank_back(const struct world *w, float *dx, float *du, const float *u, int group,
                          int count)
{
    const struct projection_back p = {.in = IN,
                                      .out = OUT,
                                      .u = u,
                                      .du = du,
                                      .ldu = LDU,
                                      .groups = w->groups + group,
                                      .count = count};
    w->ops->project_back(w->d, act_f32(dx), act_f32(w->weight), act_f32(w->x), ROWS, &p);
}

static void forward(const struct world *w, float *y, float *u)
{
    low_rank(w, y, u, 0, GROUPS);
}

static void each_group_gets_its_own_matrices_and_other_rows_none(void **state)
{
    struct world w;
    world_init(&w, 2);
    float *y = numbers(ROWS * OUT, 3), *before = numbers(ROWS * OUT, 3), *u = zeros(ROWS * LDU);
    forward(&w, y, u);
    assert_same_bits(y + 70 * OUT, before + 70 * OUT, 10 * OUT);
    for (int g = 0; g < GROUPS; g++)
        for (int r = group_rows[g][0]; r < group_rows[g][0] + group_rows[g][1]; r++)
            for (int o = 0; o < OUT; o++) {
                double sum = 0;
                for (int j = 0; j < ranks[g]; j++)
                    for (int k = 0; k < IN; k++)
                        sum += (double)w.b[g][o * ranks[g] + j] * (double)w.a[g][j * IN + k] *
                               (double)w.x[r * IN + k];
                sum = (double)before[r * OUT + o] + (double)w.groups[g].scale * sum;
                assert_near((double)y[r * OUT + o], sum, 5e-5, "y", (size_t)(r * OUT + o));
            }
    free(y), free(before), free(u);
    world_clear(&w);
}

static double loss(void *arg)
{
    const struct world *w = arg;
    float *y = zeros(ROWS * OUT), *u = zeros(ROWS * LDU);
    forward(w, y, u);
    double sum = weighed(y, w->weight, ROWS * OUT);
    free(y), free(u);
    return sum;
}

static void back(const struct world *w, float *dx)
{
    float *y = zeros(ROWS * OUT), *u = zeros(ROWS * LDU), *du = zeros(ROWS * LDU);
    forward(w, y, u);
    low_rank_back(w, dx, du, u, 0, GROUPS);
    free(y), free(u), free(du);
}

static void gradients_agree_with_finite_differences(void **state)
{
    struct world w;
    world_init(&w, 2);
    float *dx = zeros(ROWS * IN);
    back(&w, dx);
    for (int g = 0; g < GROUPS; g++) {
        assert_slopes(w.a[g], (size_t)(ranks[g] * IN), w.ga[g], loss, &w, "grad_a");
        assert_slopes(w.b[g], (size_t)(ranks[g] * OUT), w.gb[g], loss, &w, "grad_b");
    }
    for (int r = 60; r < 90; r += 5) /* both sides of the rows without an adapter, and these */
        assert_slopes(w.x + r * IN, IN, dx + r * IN, loss, &w, "dx");
    free(dx);
    world_clear(&w);
}

/* grad += the sum of a block, which is a chain from zero over its rows; block after block. */
static void a_gradient_is_summed_block_by_block(void **state)
{
    struct world w;
    world_init(&w, 2);
    float *u = zeros(ROWS * LDU), *du = zeros(ROWS * LDU), *y = zeros(ROWS * OUT);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < ranks[g] * IN; i++)
            w.ga[g][i] = 0.125f; /* something is pending already */
    forward(&w, y, u);
    low_rank_back(&w, NULL, du, u, 0, GROUPS);
    for (int g = 0; g < GROUPS; g++)
        for (int j = 0; j < ranks[g]; j++)
            for (int k = 0; k < IN; k++) {
                float want = 0.125f;
                for (int b = 0; b < w.groups[g].block_count; b++) {
                    float sum = 0;
                    for (int r = w.groups[g].blocks[b]; r < w.groups[g].blocks[b + 1]; r++)
                        sum = fmaf(du[r * LDU + j], w.x[r * IN + k], sum);
                    want += sum;
                }
                assert_same_bits(&w.ga[g][j * IN + k], &want, 1);
            }
    free(u), free(du), free(y);
    world_clear(&w);
}

static void a_group_alone_has_the_bits_it_has_in_company(void **state)
{
    struct world all, one;
    world_init(&all, 1);
    world_init(&one, 2);
    float *dx = zeros(ROWS * IN), *dx1 = zeros(ROWS * IN);
    float *y = zeros(ROWS * OUT), *y1 = zeros(ROWS * OUT), *u = zeros(ROWS * LDU);
    float *du = zeros(ROWS * LDU);
    forward(&all, y, u);
    back(&all, dx);
    for (int g = 0; g < GROUPS; g++) {
        low_rank(&one, y1, u, g, 1);
        low_rank_back(&one, dx1, du, u, g, 1);
        assert_same_bits(one.ga[g], all.ga[g], (size_t)(ranks[g] * IN));
        assert_same_bits(one.gb[g], all.gb[g], (size_t)(ranks[g] * OUT));
    }
    assert_same_bits(y, y1, ROWS * OUT);
    assert_same_bits(dx, dx1, ROWS * IN);
    free(dx), free(dx1), free(y), free(y1), free(u), free(du);
    world_clear(&all);
    world_clear(&one);
}

/* dx first, gradients later, as who sums du over ranks in between must ask for them. */
static void the_halves_of_the_way_back_have_the_bits_of_the_whole(void **state)
{
    struct world whole, halves;
    world_init(&whole, 2);
    world_init(&halves, 2);
    float *dx = zeros(ROWS * IN), *dx2 = zeros(ROWS * IN), *y = zeros(ROWS * OUT);
    float *u = zeros(ROWS * LDU), *du = zeros(ROWS * LDU);
    back(&whole, dx);
    forward(&halves, y, u);
    struct projection_back p = {.in = IN,
                                .out = OUT,
                                .u = u,
                                .du = du,
                                .ldu = LDU,
                                .groups = halves.groups,
                                .count = GROUPS,
                                .part = BACK_DX};
    halves.ops->project_back(halves.d, act_f32(dx2), act_f32(halves.weight), act_f32(halves.x),
                             ROWS, &p);
    assert_same_bits(dx2, dx, ROWS * IN);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < ranks[g] * IN; i++)
            assert_true(halves.ga[g][i] == 0);
    p.part = BACK_GRADS;
    halves.ops->project_back(halves.d, act_f32(dx2), act_f32(halves.weight), act_f32(halves.x),
                             ROWS, &p);
    assert_same_bits(dx2, dx, ROWS * IN);
    for (int g = 0; g < GROUPS; g++) {
        assert_same_bits(halves.ga[g], whole.ga[g], (size_t)(ranks[g] * IN));
        assert_same_bits(halves.gb[g], whole.gb[g], (size_t)(ranks[g] * OUT));
    }
    for (int i = 0; i < ROWS * LDU; i++)
        du[i] *= 2; /* gradients are made of the du that is there */
    halves.ops->project_back(halves.d, act_f32(NULL), act_f32(halves.weight), act_f32(halves.x),
                             ROWS, &p);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < ranks[g] * IN; i++) {
            double want = 3 * (double)whole.ga[g][i];
            assert_near((double)halves.ga[g][i], want, 1e-4 * fmax(1, fabs(want)), "grad_a",
                        (size_t)i);
        }
    free(dx), free(dx2), free(y), free(u), free(du);
    world_clear(&whole);
    world_clear(&halves);
}

/* Two projections of the same rows, frozen weights in fp32 or bf16, and their way back: as the
 * frozen products and then the low-rank ones by themselves. */
static void projections_together_are_the_sum_of_their_parts(void **state)
{
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct world w;
        struct err e = {0};
        world_init(&w, 3);
        float *frozen = numbers(OUT * IN, 4), *dx = numbers(ROWS * IN, 5);
        float *want_dx = numbers(ROWS * IN, 5), *du = zeros(ROWS * LDU);
        float *y[2], *u[2], *want[2], *want_u[2];
        const struct ops_matrix m = {frozen, OPS_F32, OUT, IN};
        enum ops_dtype keep = bf16 ? OPS_BF16 : OPS_F32;
        struct packed *ahead = w.ops->pack(w.d, &m, keep, false, &e);
        struct packed *back = w.ops->pack(w.d, &m, keep, true, &e);
        assert_true(ahead && back);
        struct projection p[2];
        for (int i = 0; i < 2; i++) {
            y[i] = numbers(ROWS * OUT, 6), want[i] = numbers(ROWS * OUT, 6);
            u[i] = zeros(ROWS * LDU), want_u[i] = zeros(ROWS * LDU);
            p[i] = (struct projection){ahead, IN, OUT, act_f32(y[i]), i == 1, u[i], LDU, w.groups, GROUPS};
            w.ops->gemm(w.d, act_f32(want[i]), act_f32(w.x), ROWS, ahead, i == 1);
            forward(&w, want[i], want_u[i]);
        }
        w.ops->project(w.d, act_f32(w.x), ROWS, p, 2);
        w.ops->gemm(w.d, act_f32(want_dx), act_f32(w.weight), ROWS, back, true);
        low_rank_back(&w, want_dx, du, u[0], 0, GROUPS);
        const struct projection_back b = {back, IN,       OUT,    true,      u[0], du,
                                          LDU,  w.groups, GROUPS, BACK_WHOLE};
        w.ops->project_back(w.d, act_f32(dx), act_f32(w.weight), act_f32(w.x), ROWS, &b);
        assert_same_bits(dx, want_dx, ROWS * IN);
        for (int i = 0; i < 2; i++) {
            assert_same_bits(y[i], want[i], ROWS * OUT);
            assert_same_bits(u[i], want_u[i], ROWS * LDU);
            free(y[i]), free(u[i]), free(want[i]), free(want_u[i]);
        }
        free(frozen), free(dx), free(want_dx), free(du);
        w.ops->packed_free(w.d, ahead), w.ops->packed_free(w.d, back);
        world_clear(&w);
    }
}

/* Products of the same rows share their copy within a call.  Two projections by a group of all rows
 * must be what each is alone, and a second call must see that x has changed where it lies. */
static void check_shared_rows(const struct ops *ops, enum ops_dtype keep, int rows, int threads)
{
    enum { WIDE = 45, RANK = 5, CALLS = 2, MOST = 97 };
    struct device *d = device_with(ops, threads);
    float *frozen = numbers(OUT * WIDE, 30), *a = numbers(RANK * WIDE, 31);
    float *b = numbers(OUT * RANK, 32), *x = zeros(MOST * WIDE), *u[3], *y[3];
    for (int i = 0; i < 3; i++)
        u[i] = zeros(MOST * RANK), y[i] = zeros(MOST * OUT);
    struct packed *w = ops->pack(d, &(struct ops_matrix){frozen, OPS_F32, OUT, WIDE}, keep, false,
                                 NULL);
    const struct lora_group g = {.rows = rows, .rank = RANK, .scale = 2, .a = a, .b = b};
    for (int call = 0; call < CALLS; call++) {
        float *fresh = numbers((size_t)(rows * WIDE), 33 + (uint64_t)call);
        memcpy(x, fresh, (size_t)(rows * WIDE) * sizeof *x);
        const struct projection both[] = {{w, WIDE, OUT, act_f32(y[0]), false, u[0], RANK, &g, 1},
                                          {w, WIDE, OUT, act_f32(y[1]), false, u[1], RANK, &g, 1}};
        const struct projection low = {NULL, WIDE, OUT, act_f32(y[2]), true, u[2], RANK, &g, 1};
        ops->project(d, act_f32(x), rows, both, 2);
        ops->gemm(d, act_f32(y[2]), act_f32(x), rows, w, false);
        ops->project(d, act_f32(x), rows, &low, 1);
        for (int i = 0; i < 2; i++) {
            assert_same_bits(y[i], y[2], (size_t)(rows * OUT));
            assert_same_bits(u[i], u[2], (size_t)(rows * RANK));
        }
        free(fresh);
    }
    for (int i = 0; i < 3; i++)
        free(u[i]), free(y[i]);
    free(frozen), free(a), free(b), free(x);
    ops->packed_free(d, w);
    ops->close(d);
}

static void rows_that_products_share_are_those_of_the_call(void **state)
{
    static const char *const isas[] = {"avx512bf16", "avx512", "avx2", "plain"};
    static const int rows[] = {1, 12, 13, 64, 97};
    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 5; r++)
            for (int threads = 1; threads < 4 && ops_cpu_isa(isas[i]); threads++) {
                check_shared_rows(ops_cpu_isa(isas[i]), OPS_F32, rows[r], threads);
                check_shared_rows(ops_cpu_isa(isas[i]), OPS_BF16, rows[r], threads);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_group_gets_its_own_matrices_and_other_rows_none),
        cmocka_unit_test(gradients_agree_with_finite_differences),
        cmocka_unit_test(a_gradient_is_summed_block_by_block),
        cmocka_unit_test(a_group_alone_has_the_bits_it_has_in_company),
        cmocka_unit_test(the_halves_of_the_way_back_have_the_bits_of_the_whole),
        cmocka_unit_test(projections_together_are_the_sum_of_their_parts),
        cmocka_unit_test(rows_that_products_share_are_those_of_the_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

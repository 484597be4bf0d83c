/* What is done to rows by themselves: against the CPU's, and that a row's bits are its own.
 *
 * Tolerances: numbers are below 1 in size (heads' norms bring them to some units), sums have a few
 * thousand terms, and the two sides differ by the order of a sum and the last bits of an
 * exponential: a few 2^-23 of values of some units.  What is written in bf16 is rounded once more. */
#include "cuda/rounded.h"

#define NEAR 4e-6

static float *gathered(const struct side *s, struct act table, enum ops_dtype type, int width)
{
    const int32_t ids[] = {36, 0, 3, 17, 36};
    size_t n = 5 * (size_t)width;
    struct act y = room_act(s, n, type);
    s->ops->gather(s->d, y, table, ids, 5, width);
    s->ops->gather(s->d, y, table, ids, 0, width);
    return down_act(s, y, n);
}

static void rows_move_without_a_change(void **state)
{
    static const int widths[] = {1, 33, 300};
    struct side s[2];
    sides_open(s);
    for (int w = 0; w < 3; w++) {
        int width = widths[w];
        size_t n = (size_t)width;
        const int32_t places[] = {4, 0, 1, 2, 3};
        float *table = numbers(37 * n, 1), *got[2], *back[2], *wide[2];
        for (int i = 0; i < 2; i++) {
            float *there = up(&s[i], table, 37 * n), *z = room(&s[i], 5 * n);
            got[i] = gathered(&s[i], act_f32(there), OPS_F32, width);
            float *y = up(&s[i], got[i], 5 * n);
            s[i].ops->scatter(s[i].d, z, y, places, 5, width);
            back[i] = down(&s[i], z, 5 * n);
            drop(&s[i], y);
            struct act halves = {there, OPS_BF16}; /* the same bytes as 74 rows of bf16 */
            wide[i] = gathered(&s[i], halves, OPS_F32, width);
            if (i == 1) {
                float *narrow = gathered(&s[i], halves, OPS_BF16, width);
                assert_same_bits(narrow, wide[i], 5 * n);
                free(narrow);
            }
            drop(&s[i], there);
        }
        assert_same_bits(got[1], table + 36 * n, n);
        assert_same_bits(got[1], got[0], 5 * n);
        assert_same_bits(back[1], back[0], 5 * n);
        assert_same_bits(wide[1], wide[0], 5 * n);
        for (int i = 0; i < 2; i++)
            free(got[i]), free(back[i]), free(wide[i]);
        free(table);
    }
    sides_close(s);
}

/* ------------------------------------------------------------------ RMSNorm */

struct norm_case {
    int rows, width;
    enum ops_dtype y, x; /* of the way back all are x */
    long skip;           /* numbers that the arrays begin behind, so that rows are not aligned */
};

struct norm_result {
    float *y, *dx, *sum, *same; /* sum: added to x; same: dx in dy's place */
};

static struct act put_at(const struct side *s, const float *x, size_t n, enum ops_dtype type, long skip)
{
    struct act a = act_at(room_act(s, n + (size_t)skip, type), skip);
    fill_act(s, a, x, n);
    return a;
}

static float *take_at(const struct side *s, struct act a, size_t n, long skip)
{
    float *x = zeros(n);
    take_act(s, x, a, n);
    drop_act(s, act_at(a, -skip));
    return x;
}

static struct norm_result norm(const struct side *s, const float *x, const float *dy,
                               const float *gain, const struct norm_case *c)
{
    const struct ops *ops = s->ops;
    int rows = c->rows, width = c->width;
    size_t n = (size_t)rows * (size_t)width;
    float *g = up(s, gain, (size_t)width);
    struct act xs = put_at(s, x, n, c->x, c->skip), dys = put_at(s, dy, n, c->x, c->skip);
    struct act y = put_at(s, x, n, c->y, c->skip), dx = put_at(s, x, n, c->x, c->skip);
    struct act sum = put_at(s, x, n, c->x, c->skip);
    ops->rms_norm(s->d, y, xs, g, rows, width, 1e-6f);
    ops->rms_norm_back(s->d, dx, dys, xs, g, rows, width, 1e-6f, false);
    ops->rms_norm_back(s->d, sum, dys, xs, g, rows, width, 1e-6f, true);
    ops->rms_norm_back(s->d, dys, dys, xs, g, rows, width, 1e-6f, false);
    drop(s, g), drop_act(s, act_at(xs, -c->skip));
    return (struct norm_result){take_at(s, y, n, c->skip), take_at(s, dx, n, c->skip),
                                take_at(s, sum, n, c->skip), take_at(s, dys, n, c->skip)};
}

static void norm_free(struct norm_result *r)
{
    free(r->y), free(r->dx), free(r->sum), free(r->same);
}

static void assert_kept_near(const float *got, const float *want, size_t n, double tolerance,
                             enum ops_dtype type, const char *what)
{
    for (size_t i = 0; i < n; i++)
        assert_near((double)got[i], (double)want[i], tolerance + kept(type, want[i]), what, i);
}

static void check_norm(struct side s[2], const struct norm_case *c)
{
    int width = c->width, last = c->rows - 1;
    size_t n = (size_t)c->rows * (size_t)width, at = (size_t)last * (size_t)width;
    float *x = numbers_as(c->x, n, 1), *dy = numbers_as(c->x, n, 2);
    float *gain = numbers((size_t)width, 3);
    const struct norm_case one = {1, width, c->y, c->x, 1};
    struct norm_result r[2], alone = norm(&s[1], x + at, dy + at, gain, &one);
    for (int i = 0; i < 2; i++)
        r[i] = norm(&s[i], x, dy, gain, c);
    assert_kept_near(r[1].y, r[0].y, n, NEAR, c->y, "norm");
    if (width > 1) { /* of one element it is a difference of equals, times 1 / x */
        assert_kept_near(r[1].dx, r[0].dx, n, NEAR * 10, c->x, "norm's way back");
        assert_kept_near(r[1].sum, r[0].sum, n, NEAR * 10, c->x, "norm's way back, added");
    }
    assert_same_bits(r[1].same, r[1].dx, n);
    assert_same_bits(alone.y, r[1].y + at, (size_t)width);
    assert_same_bits(alone.dx, r[1].dx + at, (size_t)width);
    assert_same_bits(alone.sum, r[1].sum + at, (size_t)width);
    norm_free(&r[0]), norm_free(&r[1]), norm_free(&alone);
    free(x), free(dy), free(gain);
}

/* A row alone lies where it is not aligned. */
static void norms_agree_and_a_row_is_its_own(void **state)
{
    static const int shapes[][2] = {{1, 1},    {1, 33},   {33, 64},  {9, 128},
                                    {17, 100}, {3, 1024}, {3, 1025}, {2, 2560}};
    static const enum ops_dtype types[] = {OPS_F32, OPS_BF16};
    struct side s[2];
    sides_open(s);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int y = 0; y < 2; y++)
            for (int x = 0; x < 2; x++)
                check_norm(s, &(struct norm_case){shapes[k][0], shapes[k][1], types[y], types[x], 0});
    sides_close(s);
}

/* ------------------------------------------------------------------ rotation */

enum { CONTEXT = 70, HEADS = 3, ROTATED = 20 };

/* x there and x back, by one of the tables. */
static void rotate(const struct side *s, float *got[2], const float *x, const float *cosine,
                   const float *sine, int dim, enum ops_dtype type)
{
    const struct kv_seg segs[] = {{.row = 2, .rows = 9},
                                  {.row = 0, .rows = 1, .start = 69},
                                  {.row = 11, .rows = 0},
                                  {.row = 12, .rows = 5, .start = 33}};
    size_t n = (size_t)(ROTATED * HEADS * dim), half = (size_t)dim / 2;
    struct act y = up_act(s, x, n, type), z = up_act(s, x, n, type);
    float *c = up(s, cosine, CONTEXT * half), *si = up(s, sine, CONTEXT * half);
    s->ops->rope(s->d, y, c, si, segs, 4, HEADS, dim);
    s->ops->rope(s->d, y, c, si, segs, 0, HEADS, dim);
    s->ops->rope_back(s->d, z, c, si, segs, 4, HEADS, dim);
    got[0] = down_act(s, y, n), got[1] = down_act(s, z, n);
    drop(s, c), drop(s, si);
}

/* No sum in it, so the bits are the CPU's, rounded where they are kept in bf16. */
static void rotation_has_the_bits_of_the_definition(void **state)
{
    static const int dims[] = {2, 6, 32, 64};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 4; k++) {
        size_t n = (size_t)(ROTATED * HEADS * dims[k]), half = (size_t)dims[k] / 2;
        float *cosine = numbers(CONTEXT * half, 2), *sine = numbers(CONTEXT * half, 3);
        for (int type = OPS_F32; type <= OPS_BF16; type++) {
            float *x = numbers_as(type, n, 1), *want[2], *got[2];
            rotate(&s[0], want, x, cosine, sine, dims[k], type);
            rotate(&s[1], got, x, cosine, sine, dims[k], type);
            assert_memory_not_equal(want[0], want[1], n * sizeof *x);
            for (int i = 0; i < 2; i++) {
                for (size_t j = 0; type == OPS_BF16 && j < n; j++)
                    want[i][j] = as_bf16(want[i][j]);
                assert_same_bits(got[i], want[i], n);
                free(got[i]), free(want[i]);
            }
            free(x);
        }
        free(cosine), free(sine);
    }
    sides_close(s);
}

/* ------------------------------------------------------------------ SwiGLU */

static void check_swiglu(struct side s[2], size_t n, enum ops_dtype type)
{
    float *gate = numbers_as(type, n, 1), *upward = numbers_as(type, n, 2), *r[2][3];
    float *dy = numbers_as(type, n, 3);
    for (size_t i = 0; i < n; i++)
        gate[i] = as_bf16(gate[i] * (i % 7 == 3 ? 100 : 8)); /* into the flat ends */
    for (int i = 0; i < 2; i++) {
        struct act g = up_act(&s[i], gate, n, type), u = up_act(&s[i], upward, n, type);
        struct act from = up_act(&s[i], dy, n, type), y = room_act(&s[i], n, type);
        struct act dg = room_act(&s[i], n, type), du = room_act(&s[i], n, type);
        s[i].ops->swiglu(s[i].d, y, g, u, n);
        s[i].ops->swiglu_back(s[i].d, dg, du, from, g, u, n);
        drop_act(&s[i], g), drop_act(&s[i], u), drop_act(&s[i], from);
        r[i][0] = down_act(&s[i], y, n), r[i][1] = down_act(&s[i], dg, n);
        r[i][2] = down_act(&s[i], du, n);
    }
    for (int j = 0; j < 3; j++) { /* up to 100 in size */
        for (size_t i = 0; i < n; i++)
            assert_near((double)r[1][j][i], (double)r[0][j][i],
                        NEAR / 4 * fmax(1, fabs((double)r[0][j][i])) + kept(type, r[0][j][i]),
                        "swiglu", i);
        free(r[0][j]), free(r[1][j]);
    }
    free(gate), free(upward), free(dy);
}

static void swiglu_agrees(void **state)
{
    static const size_t counts[] = {0, 1, 33, 1000, 2050};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 5; k++) {
        check_swiglu(s, counts[k], OPS_F32);
        check_swiglu(s, counts[k], OPS_BF16);
    }
    sides_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_move_without_a_change),
        cmocka_unit_test(norms_agree_and_a_row_is_its_own),
        cmocka_unit_test(rotation_has_the_bits_of_the_definition),
        cmocka_unit_test(swiglu_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

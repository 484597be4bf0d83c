/* What is done to rows by themselves: against the CPU's, and that a row's bits are its own.
 *
 * Tolerances: numbers are below 1 in size (heads' norms bring them to some units), sums have a few
 * thousand terms, and the two sides differ by the order of a sum and the last bits of an
 * exponential: a few 2^-23 of values of some units. */
#include "cuda/sides.h"

#define NEAR 4e-6

static void rows_move_without_a_change(void **state)
{
    static const int widths[] = {1, 33, 300};
    struct side s[2];
    sides_open(s);
    for (int w = 0; w < 3; w++) {
        int width = widths[w];
        size_t n = (size_t)width;
        const int32_t ids[] = {36, 0, 3, 17, 36}, places[] = {4, 0, 1, 2, 3};
        float *table = numbers(37 * n, 1), *got[2], *back[2], *wide[2];
        for (int i = 0; i < 2; i++) {
            float *there = up(&s[i], table, 37 * n), *y = room(&s[i], 5 * n), *z = room(&s[i], 5 * n);
            s[i].ops->gather(s[i].d, y, there, ids, 5, width);
            s[i].ops->gather(s[i].d, y, there, ids, 0, width);
            s[i].ops->scatter(s[i].d, z, y, places, 5, width);
            got[i] = down(&s[i], y, 5 * n);
            back[i] = down(&s[i], z, 5 * n);
            y = room(&s[i], 5 * n); /* the same bytes as 74 rows of bf16 */
            s[i].ops->gather_bf16(s[i].d, y, (const uint16_t *)there, ids, 5, width);
            wide[i] = down(&s[i], y, 5 * n);
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

struct norm_result {
    float *y, *dx, *sum;
};

static struct norm_result norm(const struct side *s, const float *x, const float *dy,
                               const float *gain, int rows, int width)
{
    size_t n = (size_t)rows * (size_t)width;
    float *xs = up(s, x, n), *dys = up(s, dy, n), *g = up(s, gain, (size_t)width);
    float *y = room(s, n), *dx = room(s, n), *sum = up(s, x, n);
    s->ops->rms_norm(s->d, y, xs, g, rows, width, 1e-6f);
    s->ops->rms_norm_back(s->d, dx, dys, xs, g, rows, width, 1e-6f, false);
    s->ops->rms_norm_back(s->d, sum, dys, xs, g, rows, width, 1e-6f, true);
    drop(s, xs), drop(s, dys), drop(s, g);
    return (struct norm_result){down(s, y, n), down(s, dx, n), down(s, sum, n)};
}

static void norm_free(struct norm_result *r)
{
    free(r->y), free(r->dx), free(r->sum);
}

static void norms_agree_and_a_row_is_its_own(void **state)
{
    static const int shapes[][2] = {{1, 1}, {1, 33}, {33, 64}, {9, 128}, {17, 100}, {3, 1024}, {3, 1025}, {2, 2560}};
    struct side s[2];
    sides_open(s);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        int rows = shapes[k][0], width = shapes[k][1], last = rows - 1;
        size_t n = (size_t)rows * (size_t)width, at = (size_t)last * (size_t)width;
        float *x = numbers(n, 1), *dy = numbers(n, 2), *gain = numbers((size_t)width, 3);
        struct norm_result r[2], alone = norm(&s[1], x + at, dy + at, gain, 1, width);
        for (int i = 0; i < 2; i++)
            r[i] = norm(&s[i], x, dy, gain, rows, width);
        assert_all_near(r[1].y, r[0].y, n, NEAR, "norm");
        if (width > 1) { /* of one element it is a difference of equals, times 1 / x */
            assert_all_near(r[1].dx, r[0].dx, n, NEAR * 10, "norm's way back");
            assert_all_near(r[1].sum, r[0].sum, n, NEAR * 10, "norm's way back, added");
        }
        assert_same_bits(alone.y, r[1].y + at, (size_t)width);
        assert_same_bits(alone.dx, r[1].dx + at, (size_t)width);
        assert_same_bits(alone.sum, r[1].sum + at, (size_t)width);
        norm_free(&r[0]), norm_free(&r[1]), norm_free(&alone);
        free(x), free(dy), free(gain);
    }
    sides_close(s);
}

/* ------------------------------------------------------------------ rotation */

/* No sum in it, so the bits are the CPU's. */
static void rotation_has_the_bits_of_the_definition(void **state)
{
    enum { CONTEXT = 70, HEADS = 3 };
    static const int dims[] = {2, 6, 64};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 3; k++) {
        size_t row = (size_t)(HEADS * dims[k]), half = (size_t)dims[k] / 2;
        const struct kv_seg segs[] = {{.row = 2, .rows = 9}, {.row = 0, .rows = 1, .start = 69}, {.row = 11, .rows = 0},
                                      {.row = 12, .rows = 5, .start = 33}};
        float *x = numbers(20 * row, 1), *got[2], *back[2];
        float *cosine = numbers(CONTEXT * half, 2), *sine = numbers(CONTEXT * half, 3);
        for (int i = 0; i < 2; i++) {
            float *y = up(&s[i], x, 20 * row), *z = up(&s[i], x, 20 * row);
            float *c = up(&s[i], cosine, CONTEXT * half), *si = up(&s[i], sine, CONTEXT * half);
            s[i].ops->rope(s[i].d, y, c, si, segs, 4, HEADS, dims[k]);
            s[i].ops->rope(s[i].d, y, c, si, segs, 0, HEADS, dims[k]);
            s[i].ops->rope_back(s[i].d, z, c, si, segs, 4, HEADS, dims[k]);
            got[i] = down(&s[i], y, 20 * row);
            back[i] = down(&s[i], z, 20 * row);
            drop(&s[i], c), drop(&s[i], si);
        }
        assert_same_bits(got[1], got[0], 20 * row);
        assert_same_bits(back[1], back[0], 20 * row);
        assert_memory_not_equal(got[1], back[1], 20 * row * sizeof *x);
        for (int i = 0; i < 2; i++)
            free(got[i]), free(back[i]);
        free(x), free(cosine), free(sine);
    }
    sides_close(s);
}

/* ------------------------------------------------------------------ SwiGLU */

static void swiglu_agrees(void **state)
{
    static const size_t counts[] = {0, 1, 33, 1000};
    struct side s[2];
    sides_open(s);
    for (int k = 0; k < 4; k++) {
        size_t n = counts[k];
        float *gate = numbers(n, 1), *upward = numbers(n, 2), *dy = numbers(n, 3), *r[2][3];
        for (size_t i = 0; i < n; i++)
            gate[i] *= i % 7 == 3 ? 100 : 8; /* into the flat ends */
        for (int i = 0; i < 2; i++) {
            float *g = up(&s[i], gate, n), *u = up(&s[i], upward, n), *from = up(&s[i], dy, n);
            float *y = room(&s[i], n), *dg = room(&s[i], n), *du = room(&s[i], n);
            s[i].ops->swiglu(s[i].d, y, g, u, n);
            s[i].ops->swiglu_back(s[i].d, dg, du, from, g, u, n);
            drop(&s[i], g), drop(&s[i], u), drop(&s[i], from);
            r[i][0] = down(&s[i], y, n), r[i][1] = down(&s[i], dg, n), r[i][2] = down(&s[i], du, n);
        }
        for (int j = 0; j < 3; j++) { /* up to 100 in size */
            for (size_t i = 0; i < n; i++)
                assert_near((double)r[1][j][i], (double)r[0][j][i],
                            NEAR / 4 * fmax(1, fabs((double)r[0][j][i])), "swiglu", i);
            free(r[0][j]), free(r[1][j]);
        }
        free(gate), free(upward), free(dy);
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

/* The norm of gradients, and AdamW.  The step has no sum in it: its bits are the CPU's. */
#include "cuda/sides.h"

#define TENSORS 5

static const size_t counts[TENSORS] = {1, 0, 33, 65536 + 1, 3 * 65536};

struct moments {
    struct adam_tensor t[TENSORS];
};

static struct moments take(const struct side *s, float *const x[4])
{
    struct moments m;
    for (int i = 0; i < TENSORS; i++)
        m.t[i] = (struct adam_tensor){up(s, x[0], counts[i]), up(s, x[1], counts[i]),
                                      up(s, x[2], counts[i]), up(s, x[3], counts[i]), counts[i],
                                      false};
    return m;
}

static void give_back(const struct side *s, struct moments *m, int tensor, float *out[4])
{
    struct adam_tensor *t = &m->t[tensor];
    out[0] = down(s, t->w, t->count), out[1] = down(s, t->grad, t->count);
    out[2] = down(s, t->m, t->count), out[3] = down(s, t->v, t->count);
}

static const struct adamw_step step = {.grad_scale = 0.37f,
                                       .decay = 0.9999f,
                                       .one_minus_beta1 = 0.1f,
                                       .beta2 = 0.95f,
                                       .one_minus_beta2 = 0.05f,
                                       .step_size = 1e-3f,
                                       .bias2_sqrt = 0.21f,
                                       .eps = 1e-8f};

static void a_step_has_the_bits_of_the_definition(void **state)
{
    size_t n = counts[TENSORS - 1];
    float *x[4] = {numbers(n, 1), numbers(n, 2), numbers(n, 3), numbers(n, 4)};
    struct side s[2];
    struct moments m[2];
    sides_open(s);
    for (size_t i = 0; i < n; i++)
        x[3][i] = fabsf(x[3][i]);
    for (int i = 0; i < 2; i++) {
        m[i] = take(&s[i], x);
        s[i].ops->adamw(s[i].d, &step, m[i].t, TENSORS);
        s[i].ops->adamw(s[i].d, &step, m[i].t, 0);
    }
    for (int i = 0; i < TENSORS; i++) {
        float *a[4], *b[4];
        give_back(&s[0], &m[0], i, a), give_back(&s[1], &m[1], i, b);
        for (int j = 0; j < 4; j++) {
            assert_same_bits(b[j], a[j], counts[i]);
            free(a[j]), free(b[j]);
        }
    }
    for (int j = 0; j < 4; j++)
        free(x[j]);
    sides_close(s);
}

/* Sums of 200,000 squares in double: 1e-12 of the sum is room for any order. */
static void the_norm_agrees_and_tensors_are_summed_one_by_one(void **state)
{
    size_t n = counts[TENSORS - 1];
    float *x[4] = {numbers(n, 1), numbers(n, 2), numbers(n, 3), numbers(n, 4)};
    double sum[2], one_by_one = 0;
    struct side s[2];
    struct moments m[2];
    sides_open(s);
    for (int i = 0; i < 2; i++) {
        m[i] = take(&s[i], x);
        sum[i] = s[i].ops->sum_squares(s[i].d, m[i].t, TENSORS);
    }
    assert_true(sum[0] > 1000);
    assert_near(sum[1], sum[0], 1e-12 * sum[0], "sum of squares", 0);
    for (int i = 0; i < TENSORS; i++)
        one_by_one += s[1].ops->sum_squares(s[1].d, &m[1].t[i], 1);
    assert_true(one_by_one == sum[1]);
    for (int i = 0; i < 2; i++)
        for (int t = 0; t < TENSORS; t++) {
            float *out[4];
            give_back(&s[i], &m[i], t, out);
            free(out[0]), free(out[1]), free(out[2]), free(out[3]);
        }
    for (int j = 0; j < 4; j++)
        free(x[j]);
    sides_close(s);
}

/* ------------------------------------------------------------------ moments that are paged */

#define PIECE  ((size_t)1 << 16) /* as optim.cu cuts tensors, */
#define PAGE   ((size_t)1 << 20) /* and as paged.h cuts moments */
#define MANY   40 /* tensors */
#define RESULT 4 /* w, grad, m, v */

/* An adapter: its tensors lie side by side, m of all of them before v. */
struct trained {
    const size_t *counts;
    int count;
    unsigned paged; /* of tensor i: bit i % 32 */
    size_t total;
    float *weights, *grad, *moments[2]; /* resident ones and paged ones; each [2, total] */
    struct adam_tensor t[MANY];
};

static struct trained trained_make(const struct side *s, const size_t *sizes, int count,
                                   unsigned paged)
{
    struct trained x = {.counts = sizes, .count = count, .paged = paged};
    struct err e = {0};
    for (int i = 0; i < count; i++)
        x.total += sizes[i];
    float *w = numbers(x.total, 1);
    x.weights = up(s, w, x.total);
    x.grad = room(s, x.total);
    x.moments[0] = room(s, 2 * x.total);
    x.moments[1] = s->ops->alloc_paged(s->d, 2 * x.total * sizeof(float), &e);
    if (!x.moments[1]) fail_msg("%s", e.text);
    size_t at = 0;
    for (int i = 0; i < count; at += sizes[i++]) {
        bool out = paged >> i % 32 & 1;
        float *m = x.moments[out] + at;
        x.t[i] = (struct adam_tensor){x.weights + at, x.grad + at, m, m + x.total, sizes[i], out};
    }
    free(w);
    return x;
}

static void take_a_step(const struct side *s, const struct trained *x, uint64_t seed)
{
    float *g = numbers(x->total, seed);
    s->ops->upload(s->d, x->grad, g, x->total * sizeof *g);
    s->ops->adamw(s->d, &step, x->t, x->count);
    free(g);
}

/* As a checkpoint brings them. */
static void set_moments(const struct side *s, const struct trained *x)
{
    float *m = numbers(x->total, 8), *v = numbers(x->total, 9);
    for (size_t i = 0; i < x->total; i++)
        v[i] = fabsf(v[i]);
    size_t at = 0;
    for (int i = 0; i < x->count; at += x->counts[i++]) {
        s->ops->upload(s->d, x->t[i].m, m + at, x->counts[i] * sizeof *m);
        s->ops->upload(s->d, x->t[i].v, v + at, x->counts[i] * sizeof *v);
    }
    free(m), free(v);
}

/* Two steps from nothing, and two from moments that were put there right after; [RESULT, total]. */
static float *story(const struct side *s, const size_t *sizes, int count, unsigned paged)
{
    struct trained x = trained_make(s, sizes, count, paged);
    float *out = zeros(RESULT * x.total);
    take_a_step(s, &x, 2), take_a_step(s, &x, 3);
    set_moments(s, &x);
    take_a_step(s, &x, 4), take_a_step(s, &x, 5);
    size_t at = 0;
    for (int i = 0; i < count; at += sizes[i++]) {
        const float *from[RESULT] = {x.t[i].w, x.t[i].grad, x.t[i].m, x.t[i].v};
        for (int k = 0; k < RESULT; k++)
            s->ops->download(s->d, out + (size_t)k * x.total + at, from[k], sizes[i] * sizeof *out);
    }
    drop(s, x.weights), drop(s, x.grad), drop(s, x.moments[0]);
    s->ops->release_paged(s->d, x.moments[1]);
    return out;
}

static void check_paged(const struct side s[2], const size_t *sizes, int count, unsigned paged)
{
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += sizes[i];
    float *want = story(&s[0], sizes, count, 0);
    for (int i = 0; i < 3; i++) {
        float *got = story(&s[i > 0], sizes, count, i == 1 ? 0 : paged);
        assert_same_bits(got, want, RESULT * total);
        free(got);
    }
    free(want);
}

static void paged_moments_have_the_bits_of_resident_ones(void **state)
{
    static const size_t sizes[] = {0,        1,    PIECE - 1, PIECE,       PIECE + 1,
                                   PAGE - 1, PAGE, PAGE + 1,  3 * PAGE + 3};
    struct side s[2];
    sides_open(s);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_paged(s, &sizes[i], 1, 1);
    sides_close(s);
}

static void many_tensors_share_pages(void **state)
{
    size_t sizes[MANY];
    struct side s[2];
    sides_open(s);
    for (size_t i = 0; i < MANY; i++)
        sizes[i] = i % 9 == 8 ? 3 * PIECE + i : i % 4 ? 100 * i : 0;
    check_paged(s, sizes, MANY, ~0u);
    check_paged(s, sizes, MANY, 0x7ff1e4d2); /* some of them are resident */
    sides_close(s);
}

static void paged_memory_is_zero_aligned_and_may_run_out(void **state)
{
    struct side s[2];
    struct err e = {0};
    sides_open(s);
    for (int i = 0; i < 2; i++) {
        float *p = s[i].ops->alloc_paged(s[i].d, 1000 * sizeof *p, &e);
        float *got = numbers(1000, 1), *none = zeros(1000);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        s[i].ops->download(s[i].d, got, p, 1000 * sizeof *p);
        assert_same_bits(got, none, 1000);
        s[i].ops->release_paged(s[i].d, p);
        s[i].ops->release_paged(s[i].d, NULL);
        free(got), free(none);
    }
    assert_null(s[1].ops->alloc_paged(s[1].d, (size_t)1 << 60, &e));
    assert_int_equal(e.kind, ERR_RETRY);
    assert_non_null(strstr(e.text, "out of memory"));
    sides_close(s);
}

#ifdef CUDA_EMULATED
void emulate_fail_launch(int nth, int error); /* emulate.h is C++ */

/* What had been asked for is done before its memory goes. */
static void a_step_that_fails_half_way_loses_the_device(void **state)
{
    static const size_t sizes[] = {PAGE, PAGE};
    struct side s[2];
    struct err e = {0};
    sides_open(s);
    struct trained x = trained_make(&s[1], sizes, 2, 3);
    emulate_fail_launch(2, 700);
    take_a_step(&s[1], &x, 2);
    assert_int_equal(s[1].ops->sync(s[1].d, &e), -1);
    assert_int_equal(e.kind, ERR_LOST);
    assert_non_null(strstr(e.text, "adamw"));
    assert_null(s[1].ops->alloc_paged(s[1].d, 64, &e));
    assert_int_equal(e.kind, ERR_LOST);
    s[1].ops->release_paged(s[1].d, x.moments[1]);
    drop(&s[1], x.weights), drop(&s[1], x.grad), drop(&s[1], x.moments[0]);
    s[1].ops->close(s[1].d);
    side_close(&s[0]);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_has_the_bits_of_the_definition),
        cmocka_unit_test(the_norm_agrees_and_tensors_are_summed_one_by_one),
        cmocka_unit_test(paged_moments_have_the_bits_of_resident_ones),
        cmocka_unit_test(many_tensors_share_pages),
        cmocka_unit_test(paged_memory_is_zero_aligned_and_may_run_out),
#ifdef CUDA_EMULATED
        cmocka_unit_test(a_step_that_fails_half_way_loses_the_device),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Products of few rows: a row's bits are its own on both sides of the border between our kernel and the
 * library, whichever of the two the trial says; and it says what it should. */
#include "cuda/rounded.h"
#include "kernels/cuda/few.h"

#ifdef CUDA_EMULATED
void emulate_blas_apart(int yes); /* emulate.h is C++ */
void emulate_fail_launch(int nth, int error);
#endif

enum { MOST = FEW_ROWS + 6 };

/* A product's shape; what is between a row's end and the next one is not to be touched. */
struct form {
    int n, k, ldx, ldw, ldy;
    enum ops_dtype y;
    bool add;
};

struct arrays {
    void *x, *w, *y;
    size_t y_bytes;
};

static struct side open_twin(void)
{
    return side_open(twin());
}

/* Rows of bf16 with NaN between them; nothing behind the last. */
static void *rows_of(const struct side *s, int rows, int width, int ld, uint64_t seed)
{
    size_t count = (size_t)(rows - 1) * (size_t)ld + (size_t)width;
    float *x = numbers(count, seed);
    uint16_t *half = malloc(count * sizeof *half);
    struct err e = {0};
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        float scaled = ldexpf(x[i], (int)(i % 7) - 3);
        memcpy(&bits, &scaled, sizeof bits);
        half[i] = i % (size_t)ld < (size_t)width ? (uint16_t)(bits >> 16) : 0x7fff;
    }
    void *there = s->ops->alloc(s->d, count * sizeof *half, &e);
    assert_non_null(there);
    s->ops->upload(s->d, there, half, count * sizeof *half);
    free(x), free(half);
    return there;
}

static struct arrays arrays_open(const struct side *s, const struct form *f, int rows)
{
    struct err e = {0};
    struct arrays a = {.x = rows_of(s, rows, f->k, f->ldx, 1), .w = rows_of(s, f->n, f->k, f->ldw, 2)};
    a.y_bytes = (size_t)rows * (size_t)f->ldy * ops_size(f->y);
    a.y = s->ops->alloc(s->d, a.y_bytes, &e);
    assert_non_null(a.y);
    return a;
}

static void arrays_close(const struct side *s, struct arrays *a)
{
    s->ops->release(s->d, a->x), s->ops->release(s->d, a->w), s->ops->release(s->d, a->y);
}

/* y of `rows` rows from x's row `first` on, begun from rows of 0.5 in which 3 stands between them; the
 * caller frees.  Only `rows` rows of y may be written. */
static unsigned char *product(const struct side *s, const struct form *f, struct arrays *a, int first,
                              int rows)
{
    size_t ld = (size_t)f->ldy, size = ops_size(f->y), all = a->y_bytes / size;
    unsigned char *y = malloc(a->y_bytes);
    for (size_t i = 0; i < all; i++) {
        float v = i % ld < (size_t)f->n && i / ld < (size_t)rows ? 0.5f : 3.0f;
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        bits = f->y == OPS_F32 ? bits : bits >> 16; /* little-endian, here and there */
        memcpy(y + i * size, &bits, size);
    }
    s->ops->upload(s->d, a->y, y, a->y_bytes);
    const char *x = (const char *)a->x + (size_t)first * (size_t)f->ldx * 2;
    cuda_few_product(s->d, &(struct few_product){.m = rows, .n = f->n, .k = f->k, .add = f->add,
                                                 .y_dtype = f->y, .x = x, .w = a->w, .y = a->y,
                                                 .ldx = f->ldx, .ldw = f->ldw, .ldy = f->ldy});
    unsigned char *got = malloc(a->y_bytes);
    s->ops->download(s->d, got, a->y, a->y_bytes);
    for (size_t i = 0; i < all; i++)
        if (i % ld >= (size_t)f->n || i / ld >= (size_t)rows)
            assert_memory_equal(got + i * size, y + i * size, size);
    free(y);
    return got;
}

static const struct few_kind *last_kind(const struct side *s)
{
    const struct few_kind *kinds;
    int count = cuda_few_kinds(s->d, &kinds);
    assert_true(count > 0);
    return &kinds[count - 1];
}

static const struct form forms[] = {
    {33, 72, 72, 72, 33, OPS_F32, false},  {33, 72, 88, 80, 35, OPS_F32, true},
    {40, 200, 200, 200, 40, OPS_BF16, true}, {19, 136, 144, 136, 21, OPS_BF16, false},
    {9, 1704, 1704, 1712, 9, OPS_F32, true}, /* more chunks than stages, the last one not whole */
};
enum { FORMS = sizeof forms / sizeof *forms };

/* All rows of 1 .. MOST, at the beginning of x and, alone, at its end. */
static void check_rows(const struct side *s, const struct form *f)
{
    struct arrays a = arrays_open(s, f, MOST);
    size_t row = (size_t)f->ldy * ops_size(f->y);
    unsigned char *all = product(s, f, &a, 0, MOST);
    for (int m = 1; m <= MOST; m++) {
        unsigned char *some = product(s, f, &a, 0, m);
        for (int i = 0; i < m; i++)
            assert_memory_equal(some + (size_t)i * row, all + (size_t)i * row,
                                (size_t)f->n * ops_size(f->y));
        free(some);
    }
    for (int first = 1; first < MOST; first += 17) {
        unsigned char *some = product(s, f, &a, first, MOST - first);
        assert_memory_equal(some, all + (size_t)first * row, (size_t)f->n * ops_size(f->y));
        free(some);
    }
    free(all);
    arrays_close(s, &a);
}

static void a_row_is_its_own_whoever_does_it(void **state)
{
    struct side s = open_twin();
    for (int i = 0; i < FORMS; i++) {
        long before = cuda_few_done(s.d);
        check_rows(&s, &forms[i]);
        const struct few_kind *kind = last_kind(&s);
        assert_int_equal(kind->n, forms[i].n);
        assert_true((cuda_few_done(s.d) > before) == (kind->verdict == FEW_SAME));
#ifdef CUDA_EMULATED
        assert_int_equal(kind->verdict, FEW_SAME);
#endif
    }
    side_close(&s);
}

/* Several blocks, of one warp up to four, with more chunks of k than stages, and rows that are not there. */
static void blocks_of_all_sizes_agree_with_the_library(void **state)
{
    static const int ns[] = {1, 1030, 2050, 4100, 8200}, ks[] = {24, 24, 552, 200, 200};
    static const int ms[] = {1, 17, 64};
    struct side s = open_twin();
    for (int i = 0; i < 5; i++) {
        struct form f = {ns[i], ks[i], ks[i], ks[i], ns[i], OPS_F32, false};
        double near = 64 * pow(ks[i], 1.5) * 0x1p-24; /* see test_gemm.c; numbers are below 8 */
        struct arrays a = arrays_open(&s, &f, FEW_ROWS);
        free(product(&s, &f, &a, 0, 1)); /* the trial */
        bool same = last_kind(&s)->verdict == FEW_SAME;
        for (int m = 0; m < 3; m++) {
            long before = cuda_few_done(s.d);
            cuda_few_by(s.d, FEW_BY_OURS);
            unsigned char *ours = product(&s, &f, &a, 0, ms[m]);
            assert_int_equal(cuda_few_done(s.d), before + 1);
            cuda_few_by(s.d, FEW_BY_LIBRARY);
            unsigned char *library = product(&s, &f, &a, 0, ms[m]);
            assert_int_equal(cuda_few_done(s.d), before + 1);
            for (int at = 0; at < ms[m] * ns[i]; at++) {
                float got, want;
                memcpy(&got, ours + 4 * at, 4), memcpy(&want, library + 4 * at, 4);
                assert_near((double)got, (double)want, near, "product", (size_t)at);
                if (same) assert_memory_equal(&got, &want, 4);
            }
            free(ours), free(library);
        }
        cuda_few_by(s.d, FEW_BY_TRIAL);
        arrays_close(&s, &a);
    }
    side_close(&s);
}

/* With such weights any order of sums gives the same bits, so that a trial proves nothing. */
static void weights_that_tell_nothing_are_not_believed(void **state)
{
    struct side s = open_twin();
    struct form f = {24, 64, 64, 64, 24, OPS_F32, false};
    struct arrays a = arrays_open(&s, &f, 4);
    s.ops->zero(s.d, a.w, 24 * 64 * 2);
    free(product(&s, &f, &a, 0, 4));
    assert_int_equal(last_kind(&s)->verdict, FEW_UNTOLD);
    assert_int_equal(last_kind(&s)->different, 0);
    assert_int_equal(cuda_few_done(s.d), 0);
    arrays_close(&s, &a);
    side_close(&s);
}

/* What is recorded is a product, whoever does it: the trial is made by the way, in the first pass, and
 * the third is replayed as the second was captured. */
static void a_trial_in_a_recording_changes_nothing(void **state)
{
    struct side s = open_twin();
    struct form f = forms[0];
    struct arrays a = arrays_open(&s, &f, 5);
    const struct few_product p = {.m = 5, .n = f.n, .k = f.k, .y_dtype = f.y, .x = a.x, .w = a.w,
                                  .y = a.y, .ldx = f.ldx, .ldw = f.ldw, .ldy = f.ldy};
    float *first = zeros((size_t)(5 * f.n)), *again = zeros((size_t)(5 * f.n));
    for (int pass = 0; pass < 3; pass++) {
        s.ops->zero(s.d, a.y, a.y_bytes);
        s.ops->record_begin(s.d, 1);
        cuda_few_product(s.d, &p);
        cuda_few_product(s.d, &p);
        s.ops->record_end(s.d);
        s.ops->download(s.d, pass ? again : first, a.y, a.y_bytes);
        if (pass) assert_same_bits(again, first, (size_t)(5 * f.n));
    }
    struct ops_recorded count = s.ops->recorded(s.d);
    assert_int_equal(count.captured, 1);
    assert_int_equal(count.replayed, 2);
    assert_int_equal(count.plain, 1);
    assert_int_equal(last_kind(&s)->n, f.n);
    free(first), free(again);
    arrays_close(&s, &a);
    side_close(&s);
}

#ifdef CUDA_EMULATED
static void another_order_of_sums_is_noticed(void **state)
{
    struct side s = open_twin();
    emulate_blas_apart(1);
    for (int i = 0; i < FORMS; i++) {
        check_rows(&s, &forms[i]);
        assert_int_equal(last_kind(&s)->verdict, FEW_DIFFERENT);
        assert_true(last_kind(&s)->different > 0);
    }
    assert_int_equal(cuda_few_done(s.d), 0);
    emulate_blas_apart(0);
    side_close(&s);
}

static void a_kind_is_tried_once(void **state)
{
    struct side s = open_twin();
    struct arrays a = arrays_open(&s, &forms[0], 5);
    free(product(&s, &forms[0], &a, 0, 5));
    emulate_blas_apart(1); /* nobody looks any more */
    free(product(&s, &forms[0], &a, 0, 5));
    const struct few_kind *kinds;
    assert_int_equal(cuda_few_kinds(s.d, &kinds), 1);
    assert_int_equal(cuda_few_done(s.d), 2);
    emulate_blas_apart(0);
    arrays_close(&s, &a);
    side_close(&s);
}

/* 256 GiB for what the trial writes. */
static void without_room_for_a_trial_the_library_does_it(void **state)
{
    struct side s = open_twin();
    struct form f = {8, 72, 72, 72, 8, OPS_F32, false};
    struct arrays a = arrays_open(&s, &f, 1);
    struct few_product p = {.m = 1, .n = 8, .k = 72, .y_dtype = OPS_F32, .x = a.x, .w = a.w, .y = a.y,
                            .ldx = 72, .ldw = 72, .ldy = 1 << 30};
    float got[8], want[8];
    cuda_few_product(s.d, &p);
    s.ops->download(s.d, got, a.y, sizeof got);
    assert_int_equal(last_kind(&s)->verdict, FEW_NO_ROOM);
    assert_int_equal(cuda_few_done(s.d), 0);
    p.ldy = 8;
    cuda_few_product(s.d, &p);
    s.ops->download(s.d, want, a.y, sizeof want);
    assert_same_bits(got, want, 8);
    assert_int_equal(cuda_few_done(s.d), 1);
    arrays_close(&s, &a);
    side_close(&s);
}

static void a_trial_that_fails_loses_the_device(void **state)
{
    struct side s = open_twin();
    struct arrays a = arrays_open(&s, &forms[0], 5);
    const struct few_kind *kinds;
    struct err e = {0};
    emulate_fail_launch(2, 700); /* an illegal address */
    free(product(&s, &forms[0], &a, 0, 5));
    assert_int_equal(s.ops->sync(s.d, &e), -1);
    assert_int_equal(e.kind, ERR_LOST);
    assert_int_equal(cuda_few_kinds(s.d, &kinds), 0);
    arrays_close(&s, &a);
    s.ops->close(s.d);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_is_its_own_whoever_does_it),
        cmocka_unit_test(blocks_of_all_sizes_agree_with_the_library),
        cmocka_unit_test(weights_that_tell_nothing_are_not_believed),
        cmocka_unit_test(a_trial_in_a_recording_changes_nothing),
#ifdef CUDA_EMULATED
        cmocka_unit_test(another_order_of_sums_is_noticed),
        cmocka_unit_test(a_kind_is_tried_once),
        cmocka_unit_test(without_room_for_a_trial_the_library_does_it),
        cmocka_unit_test(a_trial_that_fails_loses_the_device),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The device itself: memory, descriptors on their way, the host's threads, and the first failure. */
#include "cuda/sides.h"

static void memory_is_zero_and_keeps_what_it_is_given(void **state)
{
    struct side s[2];
    sides_open(s);
    for (int i = 0; i < 2; i++) {
        float *x = numbers(1000, 3), *p = room(&s[i], 1000), *q = up(&s[i], x, 1000);
        assert_int_equal((uintptr_t)p % 64, 0);
        float *none = zeros(1000), *got = zeros(1000);
        s[i].ops->download(s[i].d, got, p, 1000 * sizeof *got);
        assert_same_bits(got, none, 1000);
        s[i].ops->copy(s[i].d, p + 1, q, 999 * sizeof *p);
        s[i].ops->zero(s[i].d, q, 0);
        s[i].ops->zero(s[i].d, q, 4 * sizeof *q);
        s[i].ops->download(s[i].d, got, p, 1000 * sizeof *got);
        assert_true(got[0] == 0);
        assert_same_bits(got + 1, x, 999);
        free(got);
        got = down(&s[i], q, 1000);
        assert_same_bits(got, none, 4);
        assert_same_bits(got + 4, x + 4, 996);
        drop(&s[i], p);
        free(x), free(none), free(got);
    }
    sides_close(s);
}

static void memory_that_is_not_there_is_an_error_that_passes(void **state)
{
    struct side s[2];
    struct err e = {0};
    sides_open(s);
    assert_null(s[1].ops->alloc(s[1].d, (size_t)1 << 60, &e));
    assert_int_equal(e.kind, ERR_RETRY);
    assert_non_null(strstr(e.text, "out of memory"));
    sides_close(s); /* sync() has nothing to say */
}

enum { VOCAB = 1000, LONG = 600 * 1000 };

/* Asks for the logprobs of `count` ids in one row, which are `count` descriptors. */
static void ask(const struct side *s, float *there, float *logits, int32_t *ids, int count, int turn)
{
    const int first[] = {0, count};
    for (int i = 0; i < count; i++)
        ids[i] = (i * 7 + turn) % VOCAB;
    s->ops->logprob(s->d, there, there + LONG, logits, first, ids, 1, VOCAB);
    memset(ids, 0xff, (size_t)count * sizeof *ids); /* the caller's again */
}

/* Many more than the ring has room for, and some that are longer than a part of it. */
static void a_device_with_memory_of_its_own_says_how_much(void **state)
{
    struct side s[2];
    struct err e = {0};
    size_t left, total, then;
    sides_open(s);
    assert_int_equal(s[0].ops->memory(s[0].d, &left, &total, &e), 0);
    assert_true(left == 0 && total == 0);
    assert_int_equal(s[1].ops->memory(s[1].d, &left, &total, &e), 0);
    float *p = room(&s[1], (size_t)4 << 20);
    assert_int_equal(s[1].ops->memory(s[1].d, &then, &total, &e), 0);
    assert_true(then > 0 && left <= total);
#ifdef CUDA_EMULATED /* a GPU may have others, who give theirs back */
    assert_true(then + ((size_t)16 << 20) <= left);
#endif
    drop(&s[1], p);
    sides_close(s);
}

static void descriptors_arrive_however_many_there_are(void **state)
{
    struct side s[2];
    sides_open(s);
    const struct side *gpu = &s[1];
    int32_t *ids = malloc(LONG * sizeof *ids);
    float *x = numbers(VOCAB, 1), *logits = up(gpu, x, VOCAB), *there = room(gpu, LONG + 1);
    float *got = zeros(LONG + 1);
    for (int round = 0; round < 40; round++) {
        int count = round % 16 == 15 ? LONG : 200000 + round;
        ask(gpu, there, logits, ids, count, round);
        gpu->ops->download(gpu->d, got, there, (LONG + 1) * sizeof *got);
        for (int i = 0; i < count; i++)
            assert_near((double)got[i], (double)(x[(i * 7 + round) % VOCAB] - got[LONG]), 1e-6,
                        "logprob", (size_t)i);
    }
    drop(gpu, logits), drop(gpu, there);
    free(ids), free(x), free(got);
    sides_close(s);
}

static void a_class_of_numerics_has_a_name(void **state)
{
    struct side s[2];
    sides_open(s);
    const char *fp32 = s[1].ops->numerics(s[1].d, OPS_F32);
    const char *bf16 = s[1].ops->numerics(s[1].d, OPS_BF16);
    assert_ptr_equal(strstr(fp32, "cuda/"), fp32);
    assert_non_null(strstr(fp32, "/fp32/"));
    assert_non_null(strstr(bf16, "/bf16/"));
    assert_true(strlen(bf16) < 127); /* not cut off */
    sides_close(s);
}

static void a_device_that_is_not_there_is_the_users_error(void **state)
{
    struct err e = {0};
    assert_null(ops_cuda(99, &e));
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "cuda:99"));
}

#ifdef CUDA_EMULATED
void emulate_fail_launch(int nth, int error); /* emulate.h is C++ */

static void assert_lost(const struct side *s, const char *what)
{
    struct err e = {0};
    assert_int_equal(s->ops->sync(s->d, &e), -1);
    assert_int_equal(e.kind, ERR_LOST);
    if (!strstr(e.text, what)) fail_msg("\"%s\" does not say \"%s\"", e.text, what);
}

static void the_first_failure_is_kept_for_good(void **state)
{
    struct side s[2];
    sides_open(s);
    const struct side *gpu = &s[1];
    float *x = numbers(600, 1), *there = up(gpu, x, 600), *y = room(gpu, 600), *got = zeros(600);
    const struct adam_tensor tensor = {.w = y, .grad = there, .m = y, .v = y, .count = 600};
    struct err e = {0};
    emulate_fail_launch(2, 700); /* an illegal address */
    gpu->ops->swiglu(gpu->d, act_f32(y), act_f32(there), act_f32(there), 600);
    assert_int_equal(gpu->ops->sync(gpu->d, &e), 0);
    gpu->ops->swiglu(gpu->d, act_f32(y), act_f32(there), act_f32(there), 600);
    assert_lost(gpu, "swiglu");
    gpu->ops->rms_norm(gpu->d, act_f32(y), act_f32(there), there, 1, 600, 1e-6f);
    gpu->ops->upload(gpu->d, y, x, 600 * sizeof *y);
    gpu->ops->copy(gpu->d, y, there, 600 * sizeof *y);
    gpu->ops->zero(gpu->d, y, 600 * sizeof *y);
    assert_true(gpu->ops->sum_squares(gpu->d, &tensor, 1) == 0);
    assert_null(gpu->ops->alloc(gpu->d, 64, &e));
    assert_int_equal(e.kind, ERR_LOST);
    memcpy(got, x, 600 * sizeof *got);
    gpu->ops->download(gpu->d, got, y, 600 * sizeof *got);
    for (int i = 0; i < 600; i++)
        assert_true(got[i] == 0); /* no rubbish from a lost device */
    assert_lost(gpu, "swiglu");
    drop(gpu, there), drop(gpu, y);
    gpu->ops->close(gpu->d);
    side_close(&s[0]);
    free(x), free(got);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zero_and_keeps_what_it_is_given),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_that_passes),
        cmocka_unit_test(a_device_with_memory_of_its_own_says_how_much),
        cmocka_unit_test(descriptors_arrive_however_many_there_are),
        cmocka_unit_test(a_class_of_numerics_has_a_name),
        cmocka_unit_test(a_device_that_is_not_there_is_the_users_error),
#ifdef CUDA_EMULATED
        cmocka_unit_test(the_first_failure_is_kept_for_good),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* cmocka.h - what tests/cuda and tests/engine use of cmocka, for machines with a GPU and without
 * that library.  A failed check ends the program. */
#ifndef TESTS_GPU_CMOCKA_H
#define TESTS_GPU_CMOCKA_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*test)(void **state);
};

#define cmocka_unit_test(f) {#f, f}
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    run_tests(tests, sizeof(tests) / sizeof *(tests), setup, teardown)

#define fail_msg(...)                                                                              \
    (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__),                 \
     fputc('\n', stderr), exit(EXIT_FAILURE))
#define assert_true(c)                                                                             \
    do {                                                                                           \
        if (!(c)) fail_msg("not so: %s", #c);                                                      \
    } while (0)
#define assert_false(c)                   assert_true(!(c))
#define assert_null(p)                    assert_true((p) == NULL)
#define assert_non_null(p)                assert_true((p) != NULL)
#define assert_int_equal(a, b)            assert_true((long long)(a) == (long long)(b))
#define assert_ptr_equal(a, b)            assert_true((a) == (b))
#define assert_in_range(x, low, high)                                                              \
    assert_true((long long)(x) >= (long long)(low) && (long long)(x) <= (long long)(high))
#define assert_string_equal(a, b)         assert_true(strcmp(a, b) == 0)
#define assert_memory_equal(a, b, n)      assert_true((n) == 0 || memcmp(a, b, n) == 0)
#define assert_memory_not_equal(a, b, n)  assert_true(memcmp(a, b, n) != 0)

__attribute__((format(printf, 1, 2))) static inline void print_message(const char *fmt, ...)
{
    va_list va;
    va_start(va, fmt);
    vfprintf(stderr, fmt, va);
    va_end(va);
}

static inline int run_tests(const struct CMUnitTest *tests, size_t count,
                            int (*setup)(void **), int (*teardown)(void **))
{
    void *state = NULL;
    if (setup && setup(&state)) {
        fprintf(stderr, "setup failed\n");
        exit(EXIT_FAILURE);
    }
    for (size_t i = 0; i < count; i++) {
        fprintf(stderr, "%s\n", tests[i].name);
        tests[i].test(&state);
    }
    if (teardown) teardown(&state);
    return EXIT_SUCCESS;
}

#endif

/* test_shape_large.c - the engine against PyTorch at Qwen3-0.6B's shape, with random weights.
 *
 * It wants 1.2 GB of disk for the model, and memory; half a minute of processor time.  Sanitizers
 * would make that many minutes, and have the same code in test_shapes.c: under them, and where
 * memory is short, it says why it is skipped. */
#include "tool.h"

#define NAME        "qwen3-0.6b"
#define NEED_KB     (8L << 20)
#define MEMORY_LINE "MemAvailable:"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static long available_kb(void)
{
    char line[128];
    long kb = -1;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && kb < 0 && fgets(line, sizeof line, f))
        if (!strncmp(line, MEMORY_LINE, strlen(MEMORY_LINE)))
            kb = strtol(line + strlen(MEMORY_LINE), NULL, 10);
    if (f) fclose(f);
    return kb;
}

static void the_engine_is_pytorch_at_the_shape_of_a_real_model(void **state)
{
    struct folder f = folder_create();
    char path[512];
    case_path(path, sizeof path, NAME);
    case_make_model(&f, NAME);
    struct ran r = run_tool(&f, "%s compare --model %s/model --case %s --weights fp32 "
                            "--scratch-mb 512 --kv-mb 64",
                            ENGINE_TOOL, f.path, path);
    folder_remove(&f);
    print_message("%s", r.out);
    if (r.code) fail_msg("%s", r.err);
    assert_non_null(strstr(r.out, "\ngradients "));
    assert_null(strstr(r.out, "BEYOND"));
    ran_clear(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_engine_is_pytorch_at_the_shape_of_a_real_model),
    };
    long kb = available_kb();
    if (SANITIZED) {
        printf("skipped: too slow under a sanitizer\n");
        return SKIPPED;
    }
    if (kb >= 0 && kb < NEED_KB) {
        printf("skipped: it needs %ld MB of free memory, there are %ld\n", NEED_KB >> 10, kb >> 10);
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

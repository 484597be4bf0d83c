/* The worker's look at memory: what there is, what it may need, and what it says when that is more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine/folder.h"
#include "memory.h"

#define GIB (INT64_C(1) << 30)

/* ---------------------------------------------------------------- what there is */

/* A file and the folders it lies in. */
static void put(const struct folder *m, const char *path, const char *text)
{
    char command[1024];
    snprintf(command, sizeof command, "mkdir -p $(dirname '%s/%s')", m->path, path);
    assert_int_equal(system(command), 0);
    folder_put_text(m, path, text);
}

static struct folder machine_of(const char *groups)
{
    struct folder m = folder_create();
    put(&m, "proc/meminfo", "MemFree: 12 kB\nMemTotal:       8388608 kB\nSwapTotal: 99 kB\n");
    put(&m, "proc/self/cgroup", groups);
    return m;
}

static void assert_limit(struct folder *m, int64_t want)
{
    assert_int_equal(memory_limit(m->path), want);
}

static void without_groups_the_machines_memory_is_the_limit(void **state)
{
    struct folder m = machine_of("0::/\n");
    assert_limit(&m, 8 * GIB);
    put(&m, "sys/fs/cgroup/memory.max", "max\n");
    assert_limit(&m, 8 * GIB);
    folder_remove(&m);
}

static void the_tightest_group_of_version_2_is_the_limit(void **state)
{
    struct folder m = machine_of("0::/system.slice/worker.service\n");
    put(&m, "sys/fs/cgroup/system.slice/worker.service/memory.max", "max\n");
    assert_limit(&m, 8 * GIB);
    put(&m, "sys/fs/cgroup/system.slice/memory.max", "3221225472\n");
    assert_limit(&m, 3 * GIB);
    put(&m, "sys/fs/cgroup/system.slice/worker.service/memory.max", "2147483648\n");
    assert_limit(&m, 2 * GIB);
    put(&m, "sys/fs/cgroup/memory.max", "1073741824\n"); /* as a container sees its own */
    assert_limit(&m, 1 * GIB);
    folder_remove(&m);
}

static void the_tightest_group_of_version_1_is_the_limit(void **state)
{
    struct folder m = machine_of("9:cpu:/a\n4:memory:/docker/abc\n0::/\n");
    put(&m, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_limit(&m, 8 * GIB);
    put(&m, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4294967296\n");
    assert_limit(&m, 4 * GIB);
    put(&m, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "17179869184\n");
    assert_limit(&m, 8 * GIB); /* more than there is */
    folder_remove(&m);
}

static void a_system_that_says_nothing_has_no_limit(void **state)
{
    struct folder m = folder_create();
    assert_limit(&m, 0);
    folder_remove(&m);
}

static void this_machine_has_memory(void **state)
{
    assert_true(memory_limit("") > 0);
}

/* ---------------------------------------------------------------- whether it is enough */

static const struct memory_part parts[] = {
    {"weights", 3 * GIB, false},    {"scratch_mb", GIB / 2, true}, {"kv_mb", GIB, true},
    {"adapters_mb", 4 * GIB, true}, {"held_mb", GIB, true},
};

static void what_fits_is_accepted_to_the_last_byte(void **state)
{
    struct err e = {0};
    assert_int_equal(memory_sum(parts, 5), 19 * (GIB / 2));
    assert_int_equal(memory_check(parts, 5, 19 * (GIB / 2), &e), 0);
    assert_int_equal(memory_check(parts, 5, 0, &e), 0);
    assert_int_equal(memory_check(parts, 5, 19 * (GIB / 2) - 1, &e), -1);
}

static void what_does_not_fit_is_named_with_the_setting_to_lower(void **state)
{
    struct err e = {0};
    assert_int_equal(memory_check(parts, 5, 8 * GIB, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_string_equal(e.text,
                        "the worker may need 9.50 GiB of memory, and 8.00 GiB are there: weights "
                        "3.00, scratch_mb 0.50, kv_mb 1.00, adapters_mb 4.00, held_mb 1.00; lower "
                        "adapters_mb");
}

static void weights_that_cannot_fit_want_a_larger_machine(void **state)
{
    struct err e = {0};
    assert_int_equal(memory_check(parts, 5, 3 * GIB, &e), -1);
    assert_non_null(strstr(e.text, "held_mb 1.00; this model needs a larger machine"));
}

/* ---------------------------------------------------------------- where it lies */

/* A model of two ranks; numbers of which every sum is another. */
static const struct memory_bounds bounds = {.weights = 8 * GIB,
                                            .scratch = 2 * GIB,
                                            .kv = GIB,
                                            .adapters = 32 * GIB,
                                            .sampler_cache = 4 * GIB,
                                            .held = GIB / 2,
                                            .devices = 2};

static void assert_part(const struct memory_part *p, const char *name, int64_t bytes, bool setting)
{
    assert_string_equal(p->name, name);
    assert_int_equal(p->bytes, bytes);
    assert_int_equal(p->setting, setting);
}

static void on_a_cpu_all_of_it_is_the_hosts(void **state)
{
    struct memory_bounds b = bounds;
    struct memory_part p[MEMORY_PARTS_MAX];
    for (int paged = 0; paged < 2; paged++) {
        b.paged = paged;
        assert_int_equal(memory_of_host(&b, p), 6);
        assert_part(&p[0], "weights", 16 * GIB, false);
        assert_part(&p[1], "scratch_mb", 4 * GIB, true);
        assert_part(&p[2], "kv_mb", 2 * GIB, true);
        assert_part(&p[3], "adapters_mb", 32 * GIB, true);
        assert_part(&p[4], "sampler_cache_mb", 4 * GIB, true);
        assert_part(&p[5], "held_mb", GIB / 2, true);
    }
}

static void a_gpu_holds_a_ranks_share(void **state)
{
    struct memory_bounds b = bounds;
    struct memory_part p[MEMORY_PARTS_MAX];
    b.gpu = true;
    assert_int_equal(memory_of_host(&b, p), 1);
    assert_part(&p[0], "held_mb", GIB / 2, true);
    assert_int_equal(memory_of_gpu(&b, 9 * GIB, 2 * GIB, p), 5);
    assert_part(&p[0], "weights and libraries", 10 * GIB, false);
    assert_part(&p[1], "scratch_mb", 2 * GIB, true);
    assert_part(&p[2], "kv_mb", GIB, true);
    assert_part(&p[3], "adapters_mb", 16 * GIB, true);
    assert_part(&p[4], "sampler_cache_mb", 2 * GIB, true);
}

static void paged_moments_move_half_of_the_adapters_to_the_host(void **state)
{
    struct memory_bounds b = bounds;
    struct memory_part p[MEMORY_PARTS_MAX];
    b.gpu = b.paged = true;
    assert_int_equal(memory_of_host(&b, p), 2);
    assert_part(&p[0], "adapters_mb", 16 * GIB, true);
    assert_part(&p[1], "held_mb", GIB / 2, true);
    assert_int_equal(memory_of_gpu(&b, 9 * GIB, 2 * GIB, p), 5);
    assert_part(&p[3], "adapters_mb", 8 * GIB, true);
}

static void what_others_use_of_a_gpu_counts(void **state)
{
    struct memory_bounds b = bounds;
    struct memory_part p[MEMORY_PARTS_MAX];
    struct err e = {0};
    b.gpu = true;
    int n = memory_of_gpu(&b, 9 * GIB, 2 * GIB, p);
    assert_int_equal(memory_check(p, n, 31 * GIB, &e), 0);
    n = memory_of_gpu(&b, 20 * GIB, 2 * GIB, p);
    assert_int_equal(memory_check(p, n, 31 * GIB, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_string_equal(e.text,
                        "the worker may need 41.00 GiB of memory, and 31.00 GiB are there: weights "
                        "and libraries 20.00, scratch_mb 2.00, kv_mb 1.00, adapters_mb 16.00, "
                        "sampler_cache_mb 2.00; lower adapters_mb");
}

/* ---------------------------------------------------------------- the worker itself */

/* Starts the real worker on a tiny model with nobody to talk to: memory comes first. */
static void the_worker_refuses_to_start_with_more_than_there_is(void **state)
{
    struct folder f = folder_create();
    char command[2048];
    size_t size;
    snprintf(command, sizeof command, "%s make --preset tiny --tokenizer %s --out %s/model >%s/out",
             MODEL_TOOL, TOKENIZER, f.path, f.path);
    assert_int_equal(system(command), 0);
    snprintf(
        command, sizeof command,
        "%s --kafka-brokers 127.0.0.1:1 --postgres host=127.0.0.1 --redis redis://127.0.0.1:1/0 "
        "--data %s/data --model tiny --model-dir %s/model --adapters-mb 16777216 2>%s/err",
        WORKER_TOOL, f.path, f.path, f.path);
    int status = system(command);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    char *said = folder_get(folder_at(&f, "err"), &size);
    assert_non_null(strstr(said, "error worker.end kind=user error=\"the worker may need 16"));
    assert_non_null(strstr(said, "adapters_mb 16384.00"));
    assert_non_null(strstr(said, "; lower adapters_mb\""));
    free(said);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_groups_the_machines_memory_is_the_limit),
        cmocka_unit_test(the_tightest_group_of_version_2_is_the_limit),
        cmocka_unit_test(the_tightest_group_of_version_1_is_the_limit),
        cmocka_unit_test(a_system_that_says_nothing_has_no_limit),
        cmocka_unit_test(this_machine_has_memory),
        cmocka_unit_test(what_fits_is_accepted_to_the_last_byte),
        cmocka_unit_test(what_does_not_fit_is_named_with_the_setting_to_lower),
        cmocka_unit_test(weights_that_cannot_fit_want_a_larger_machine),
        cmocka_unit_test(on_a_cpu_all_of_it_is_the_hosts),
        cmocka_unit_test(a_gpu_holds_a_ranks_share),
        cmocka_unit_test(paged_moments_move_half_of_the_adapters_to_the_host),
        cmocka_unit_test(what_others_use_of_a_gpu_counts),
        cmocka_unit_test(the_worker_refuses_to_start_with_more_than_there_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

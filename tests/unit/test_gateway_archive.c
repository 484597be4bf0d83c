/* test_gateway_archive.c - archives that the system's own tar and gzip read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "api/archive.h"

static char root[64];

static int setup(void **state)
{
    snprintf(root, sizeof root, "/tmp/tinworks-archive-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

static FILE *open_in_root(const char *name, const char *mode)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    FILE *f = fopen(path, mode);
    assert_non_null(f);
    return f;
}

static int make_file(const char *name, size_t size)
{
    FILE *f = open_in_root(name, "w+");
    for (size_t i = 0; i < size; i++)
        fputc((int)(i * 7 % 251), f);
    assert_int_equal(fflush(f), 0);
    int fd = dup(fileno(f));
    assert_int_equal(fclose(f), 0);
    return fd;
}

/* An archive of three files, read in pieces of that size, unpacked by tar and compared with cmp. */
static void check_round_trip(bool gzip, size_t size, size_t piece)
{
    struct err e = {0};
    char *bytes = malloc(piece), command[1024];
    uint64_t total = 0;
    long n;
    struct archive *a = archive_create(gzip, &e);
    assert_non_null(a);
    assert_non_null(bytes);
    assert_int_equal(archive_add(a, "config.json", make_file("config.json", 512), 512, &e), 0);
    int weights = make_file("weights", size);
    assert_int_equal(archive_add(a, "weights", weights, (int64_t)size, &e), 0);
    assert_int_equal(archive_add(a, "complete", -1, 0, &e), 0);
    FILE *out = open_in_root("archive", "w");
    while ((n = archive_read(a, bytes, piece)) > 0) {
        assert_int_equal(fwrite(bytes, 1, (size_t)n, out), n);
        total += (uint64_t)n;
    }
    assert_int_equal(n, 0);
    assert_int_equal(fclose(out), 0);
    assert_int_equal(total, archive_size(a));
    snprintf(command, sizeof command,
             "cd '%s' && mkdir out && tar -x%sf archive -C out && cmp out/weights weights && "
             "cmp out/config.json config.json && test -f out/complete && ! test -s out/complete && "
             "test \"$(ls out | wc -l)\" = 3 && rm -r out",
             root, gzip ? "z" : "");
    assert_int_equal(system(command), 0);
    archive_free(a);
    free(bytes);
}

static void tar_reads_it_back(void **state)
{
    check_round_trip(false, 100000, 4096);
    check_round_trip(false, 1, 7);
    check_round_trip(false, 1024, 65536);
}

static void gzip_reads_it_back_across_its_blocks(void **state)
{
    check_round_trip(true, 100000, 4096);
    check_round_trip(true, 300000, 1);
    check_round_trip(true, 62464, 100); /* a tar of 65,536: one byte in the second block */
    check_round_trip(true, 3, 65536);
}

static void a_file_that_shrank_is_an_error(void **state)
{
    struct err e = {0};
    char bytes[4096];
    struct archive *a = archive_create(false, &e);
    assert_non_null(a);
    assert_int_equal(archive_add(a, "weights", make_file("weights", 100), 5000, &e), 0);
    long n = archive_read(a, bytes, sizeof bytes);
    assert_int_equal(n, -1);
    archive_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(tar_reads_it_back, setup, teardown),
        cmocka_unit_test_setup_teardown(gzip_reads_it_back_across_its_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_that_shrank_is_an_error, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_base_blobs.c - deleting a checkpoint's files, and nothing else. */
#include <errno.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/blobs.h"

static char root[64];

static const char *in_root(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

static void make_folder(const char *name)
{
    assert_int_equal(mkdir(in_root(name), 0700), 0);
}

static void make_file(const char *name)
{
    FILE *f = fopen(in_root(name), "w");
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
}

static bool there(const char *name)
{
    struct stat st;
    return lstat(in_root(name), &st) == 0;
}

static int setup(void **state)
{
    snprintf(root, sizeof root, "/tmp/tinworks-blobs-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

static void the_folder_goes_and_its_neighbour_stays(void **state)
{
    struct err e = {0};
    make_folder("checkpoints");
    make_folder("checkpoints/a");
    make_folder("checkpoints/a/sub");
    make_folder("checkpoints/b");
    make_file("checkpoints/a/weights");
    make_file("checkpoints/a/sub/more");
    make_file("checkpoints/b/weights");
    assert_int_equal(blobs_remove(root, "checkpoints/a", &e), 0);
    assert_false(there("checkpoints/a"));
    assert_true(there("checkpoints/b/weights"));
    assert_int_equal(blobs_remove(root, "checkpoints/a", &e), 0); /* again is fine */
    assert_int_equal(blobs_remove(root, "nothing/here", &e), 0);
}

static void a_way_out_of_the_folder_is_refused(void **state)
{
    static const char *const bad[] = {"", "..", "/etc", "a/../../b", "./a", "a//b", "a/", "a/."};
    make_folder("a");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        assert_int_equal(blobs_remove(root, bad[i], &e), -1);
        assert_int_equal(e.kind, ERR_BUG);
    }
    assert_true(there("a"));
}

static void a_planted_link_leads_nowhere(void **state)
{
    struct err e = {0};
    char outside[] = "/tmp/tinworks-outside-XXXXXX", file[64];
    assert_non_null(mkdtemp(outside));
    snprintf(file, sizeof file, "%s/precious", outside);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);

    assert_int_equal(symlink(outside, in_root("link")), 0);
    assert_int_equal(blobs_remove(root, "link/precious", &e), -1); /* through the link: no */
    make_folder("holder");
    assert_int_equal(symlink(outside, in_root("holder/link")), 0);
    assert_int_equal(blobs_remove(root, "holder", &e), 0); /* the link itself goes */
    assert_false(there("holder"));
    assert_int_equal(access(file, F_OK), 0);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(outside), 0);
}

static void a_file_opens_with_its_size_and_nothing_else_does(void **state)
{
    struct err e = {0};
    int64_t size = 0;
    make_folder("a");
    FILE *f = fopen(in_root("a/weights"), "w");
    assert_non_null(f);
    assert_int_equal(fwrite("12345", 1, 5, f), 5);
    assert_int_equal(fclose(f), 0);
    int fd = blobs_open(root, "a", "weights", &size, &e);
    assert_true(fd >= 0);
    assert_int_equal(size, 5);
    assert_int_equal(close(fd), 0);

    make_folder("a/folder");
    assert_int_equal(symlink("weights", in_root("a/link")), 0);
    static const char *const bad[] = {"missing", "folder", "link", "..", "", "../a/weights"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err why = {0};
        assert_int_equal(blobs_open(root, "a", bad[i], &size, &why), -1);
        assert_int_equal(why.kind, ERR_USER);
    }
    assert_int_equal(blobs_open(root, "gone", "weights", &size, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
}

static void a_linked_folder_outlives_the_first(void **state)
{
    struct err e = {0};
    int64_t size = 0;
    make_folder("from");
    make_file("from/weights");
    make_file("from/config");
    assert_int_equal(blobs_link(root, "from", "other/account/to", &e), 0);
    assert_int_equal(blobs_link(root, "from", "other/account/to", &e), 0); /* again is fine */
    assert_int_equal(blobs_remove(root, "from", &e), 0);
    assert_false(there("from"));
    assert_true(there("other/account/to/config"));
    int fd = blobs_open(root, "other/account/to", "weights", &size, &e);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(blobs_link(root, "from", "third", &e), -1); /* what is gone */
    assert_int_equal(e.kind, ERR_USER);
    assert_false(there("third"));
    e = (struct err){0};
    assert_int_equal(blobs_link(root, "other/account/to", "../out", &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
}

static void where_no_link_can_be_had_files_are_copied(void **state)
{
    struct err e = {0};
    struct stat st;
    char path[600], first[600];
    make_folder("from");
    make_folder("many");
    FILE *f = fopen(in_root("from/weights"), "w");
    assert_non_null(f);
    assert_true(fputs("some", f) >= 0 && fclose(f) == 0);
    snprintf(first, sizeof first, "%s", in_root("from/weights"));
    int n = 0, rc = 0;
    for (; n < 70000 && rc == 0; n++) {
        snprintf(path, sizeof path, "%s/%d", in_root("many"), n);
        rc = link(first, path);
    }
    if (rc == 0) skip(); /* a file system with more of them */
    assert_int_equal(errno, EMLINK);
    for (int again = 0; again < 2; again++)
        if (blobs_link(root, "from", "to", &e) < 0) fail_msg("%s", e.text);
    assert_int_equal(stat(in_root("to/weights"), &st), 0);
    assert_int_equal(st.st_nlink, 1);
    assert_int_equal(st.st_size, 4);
    assert_false(there("to/.copying"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_folder_goes_and_its_neighbour_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(a_way_out_of_the_folder_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_opens_with_its_size_and_nothing_else_does, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_linked_folder_outlives_the_first, setup, teardown),
        cmocka_unit_test_setup_teardown(where_no_link_can_be_had_files_are_copied, setup, teardown),
        cmocka_unit_test_setup_teardown(a_planted_link_leads_nowhere, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

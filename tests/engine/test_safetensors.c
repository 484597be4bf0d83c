/* test_safetensors.c - the reader believes nothing; the writer writes what the reader accepts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "base/buf.h"
#include "folder.h"
#include "tensors.h"

/* A file with the given header text and data_size zero bytes, its length field as claimed (-1:
 * true). */
static struct safetensors *parse_claimed(const char *header, uint64_t claimed, size_t data_size,
                                         struct err *e)
{
    static struct buf file;
    uint64_t size = claimed == UINT64_MAX ? strlen(header) : claimed;
    buf_init(&file, (size_t)64 << 20);
    char *zeros = calloc(1, data_size + 1);
    assert_int_equal(buf_append(&file, &size, 8, e), 0);
    assert_int_equal(buf_append(&file, header, strlen(header), e), 0);
    assert_int_equal(buf_append(&file, zeros, data_size, e), 0);
    free(zeros);
    /* an exact copy on the heap, so that the sanitizer sees a read past the end */
    char *bytes = malloc(file.size);
    memcpy(bytes, file.data, file.size);
    struct safetensors *st = safetensors_parse(bytes, file.size, "test", e);
    safetensors_close(st);
    free(bytes);
    buf_clear(&file);
    return st; /* closed: only whether it is NULL may be looked at */
}

static void refused(const char *header, size_t data_size, const char *because)
{
    struct err e = {0};
    if (parse_claimed(header, UINT64_MAX, data_size, &e)) fail_msg("accepted: %s", header);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void accepted(const char *header, size_t data_size)
{
    struct err e = {0};
    if (!parse_claimed(header, UINT64_MAX, data_size, &e)) fail_msg("refused: %s", e.text);
}

#define T(name, dtype, shape, from, to)                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to   \
    "]}"

static void accepts_good_files(void **state)
{
    (void)state;
    accepted("{}", 0);
    accepted("{\"__metadata__\":{\"format\":\"pt\"}}", 0);
    accepted("{" T("a", "F32", "[2,3]", 0, 24) "}", 24);
    accepted("{" T("a", "F32", "[2,3]", 0, 24) "," T("b", "BF16", "[]", 24, 26) "}   ", 26);
    accepted("{" T("a", "F32", "[0,3]", 0, 0) "," T("b", "I8", "[5]", 0, 5) "}", 5);
}

static void refuses_a_header_that_is_longer_than_the_file(void **state)
{
    (void)state;
    static const uint64_t claims[] = {
        3, 100, (uint64_t)1 << 31, (uint64_t)1 << 63, UINT64_MAX - 1, (uint64_t)9 << 20};
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        struct err e = {0};
        assert_null(parse_claimed("{}", claims[i], 0, &e));
        assert_int_equal(e.kind, ERR_USER);
        assert_non_null(strstr(e.text, "header claims"));
    }
    struct err e = {0};
    for (size_t size = 0; size < 8; size++)
        assert_null(safetensors_parse("\2\0\0\0\0\0\0\0", size, "test", &e));
}

static void refuses_a_header_over_the_limit_although_it_is_there(void **state)
{
    (void)state;
    struct err e = {0};
    size_t size = SAFETENSORS_HEADER_MAX + 1;
    char *header = malloc(size + 1);
    memset(header, ' ', size);
    memcpy(header, "{}", 2);
    header[size] = '\0';
    assert_null(parse_claimed(header, UINT64_MAX, 0, &e));
    assert_non_null(strstr(e.text, "header claims"));
    free(header);
}

static void refuses_holes_overlaps_and_disorder(void **state)
{
    (void)state;
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 12, 20) "}", 20, "no hole");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, "no overlap");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 0, 8) "}", 8, "no overlap");
    refused("{" T("a", "F32", "[2]", 8, 16) "," T("b", "F32", "[2]", 0, 8) "}", 16, "begins at 8");
    refused("{" T("a", "F32", "[2]", 4, 12) "}", 12, "begins at 4");
    refused("{" T("a", "F32", "[2]", 0, 8) "}", 9, "end at byte 8 of 9");
    refused("{" T("a", "F32", "[2]", 0, 8) "}", 7, "expected 0 to 7");
    refused("{}", 1, "end at byte 0 of 1");
    refused("{" T("a", "F32", "[2]", 8, 0) "}", 8, "offsets 8 to 0");
    refused("{" T("a", "F32", "[2]", -8, 0) "}", 8, "offsets -8 to 0");
    refused("{" T("a", "F32", "[2]", 0, 9223372036854775807) "}", 8, "expected 0 to 8");
    refused("{" T("a", "F32", "[2]", 0, 18446744073709551616) "}", 8, "not JSON");
}

static void refuses_sizes_that_do_not_fit_shape_and_dtype(void **state)
{
    (void)state;
    refused("{" T("a", "F32", "[2]", 0, 4) "}", 4, "expected 8 for its shape and F32");
    refused("{" T("a", "BF16", "[2]", 0, 8) "}", 8, "expected 4 for its shape and BF16");
    refused("{" T("a", "F32", "[0]", 0, 4) "}", 4, "expected 0 for");
    refused("{" T("a", "F32", "[4294967296,4294967296]", 0, 8) "}", 8, "overflows");
    refused("{" T("a", "F32", "[4611686018427387904]", 0, 8) "}", 8, "overflows");
    refused("{" T("a", "F32", "[-1]", 0, 8) "}", 8, "not of whole numbers");
    refused("{" T("a", "F32", "[1.5]", 0, 8) "}", 8, "not of whole numbers");
    refused("{" T("a", "F32", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8, "at most 8");
    refused("{" T("a", "F32", "2", 0, 8) "}", 8, "no shape");
    refused("{" T("a", "Q4_0", "[2]", 0, 8) "}", 8, "unrecognized dtype \"Q4_0\"");
}

static void refuses_entries_that_are_no_tensors(void **state)
{
    (void)state;
    refused("{\"a\":1}", 0, "no dtype");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "no data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
            "no data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4,
            "no data_offsets");
    refused("{" T("", "F32", "[1]", 0, 4) "}", 4, "name has 0 bytes");
    refused("[]", 0, "not a JSON object");
    refused("{} x", 0, "not JSON");
    refused("", 0, "not JSON");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 8, 16) "}", 16, "duplicate");
    refused("{\"a\":[[[[[[1]]]]]]}", 0, "deeper than");
    refused("{\"a\xff\":1}", 0, "not JSON");
}

static void refuses_more_tensors_than_the_limit(void **state)
{
    (void)state;
    struct err e = {0};
    struct buf header;
    buf_init(&header, SAFETENSORS_HEADER_MAX);
    for (int extra = 0; extra < 2; extra++) {
        assert_int_equal(buf_append(&header, "{", 1, &e), 0);
        for (int i = 0; i < SAFETENSORS_COUNT_MAX + extra; i++)
            assert_int_equal(buf_printf(&header, &e,
                                        "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],"
                                        "\"data_offsets\":[0,0]}",
                                        i ? "," : "", i),
                             0);
        assert_int_equal(buf_append(&header, "}", 1, &e), 0);
        if (extra)
            refused(header.data, 0, "expected at most 16384");
        else
            accepted(header.data, 0);
        buf_clear(&header);
    }
}

static void survives_every_truncation_and_flipped_byte(void **state)
{
    (void)state;
    static const char header[] =
        "{" T("a", "F32", "[2,1]", 0, 8) "," T("b.c", "F16", "[3]", 8, 14) "}";
    char file[8 + sizeof header - 1 + 14] = {0};
    uint64_t size = sizeof header - 1;
    memcpy(file, &size, 8);
    memcpy(file + 8, header, size);
    for (size_t cut = 0; cut <= sizeof file; cut++) {
        struct err e = {0};
        char *exact = malloc(cut + 1);
        memcpy(exact, file, cut);
        struct safetensors *st = safetensors_parse(exact, cut, "test", &e);
        assert_int_equal(st != NULL, cut == sizeof file);
        safetensors_close(st);
        free(exact);
    }
    for (size_t at = 0; at < 8 + size; at++)
        for (int bit = 0; bit < 8; bit++) {
            struct err e = {0};
            file[at] ^= (char)(1 << bit);
            struct safetensors *st = safetensors_parse(file, sizeof file, "test", &e);
            if (st) /* e.g. another name: then what it says must still lie inside the file */
                for (int i = 0; i < safetensors_count(st); i++) {
                    const struct safetensors_tensor *t = safetensors_at(st, i);
                    const char *data = t->data;
                    assert_true(data >= file && data + t->size <= file + sizeof file);
                }
            safetensors_close(st);
            file[at] ^= (char)(1 << bit);
        }
}

static void reads_back_what_it_wrote(void **state)
{
    (void)state;
    struct err e = {0};
    struct folder f = folder_create();
    const float a[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
    const int64_t step = 123456789012345;
    const struct safetensors_tensor list[] = {
        {.name = "step", .dtype = DTYPE_I64, .rank = 1, .shape = {1}, .data = &step},
        {.name = "a", .dtype = DTYPE_F32, .rank = 2, .shape = {2, 3}, .data = a},
    };
    const char *path = folder_at(&f, "x.safetensors");
    assert_int_equal(tensors_write(path, list, 2, &e), 0);
    struct safetensors *st = safetensors_open(path, &e);
    assert_non_null(st);
    assert_int_equal(safetensors_count(st), 2);
    assert_memory_equal(safetensors_find(st, "step")->data, &step, sizeof step);
    const struct safetensors_tensor *t = safetensors_find(st, "a");
    float back[6];
    assert_int_equal(tensor_widen(t, 2, 3, back, &e), 0);
    assert_memory_equal(back, a, sizeof a);
    assert_int_equal(tensor_widen(t, 3, 2, back, &e), -1);
    assert_non_null(strstr(e.text, "\"a\" has shape [2, 3], expected [3, 2]"));
    assert_int_equal(tensor_widen(safetensors_find(st, "step"), 1, 0, back, &e), -1);
    assert_non_null(strstr(e.text, "is I64, expected F32"));
    assert_null(safetensors_find(st, "b"));
    safetensors_close(st);
    folder_remove(&f);
}

/* A file of one tensor of eight pages, all ones. */
static struct safetensors *open_pages(const struct folder *f)
{
    struct err e = {0};
    enum { COUNT = 8 * 4096 };
    char *ones = malloc(COUNT);
    memset(ones, 1, COUNT);
    const struct safetensors_tensor t = {
        .name = "a", .dtype = DTYPE_U8, .rank = 1, .shape = {COUNT}, .data = ones};
    const char *path = folder_at(f, "x.safetensors");
    assert_int_equal(tensors_write(path, &t, 1, &e), 0);
    free(ones);
    struct safetensors *st = safetensors_open(path, &e);
    if (!st) fail_msg("%s", e.text);
    return st;
}

static int sum_of(const struct safetensors_tensor *t)
{
    const volatile uint8_t *x = t->data;
    int sum = 0;
    for (size_t i = 0; i < t->count; i++)
        sum += x[i];
    return sum;
}

static void check_says(const struct safetensors *st, const char *because)
{
    struct err e = {0};
    assert_int_equal(safetensors_check(st, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void a_file_that_shrinks_while_it_is_mapped_gives_zeros_and_says_so(void **state)
{
    (void)state;
    struct err e = {0};
    struct folder f = folder_create();
    struct safetensors *st = open_pages(&f), *other = open_pages(&f); /* another file, same name */
    const struct safetensors_tensor *t = safetensors_find(other, "a");
    assert_int_equal(sum_of(t), 8 * 4096);
    assert_int_equal(safetensors_check(other, &e), 0);
    safetensors_done(other, (const char *)t->data + 5000); /* what was given back is read again */
    assert_int_equal(truncate(folder_at(&f, "x.safetensors"), 2 * 4096), 0);
    assert_in_range(sum_of(t), 4096, 2 * 4096);
    check_says(other, "lost bytes");
    safetensors_close(other);
    assert_int_equal(sum_of(safetensors_find(st, "a")), 8 * 4096); /* replaced, not changed */
    assert_int_equal(safetensors_check(st, &e), 0);
    safetensors_close(st);
    folder_remove(&f);
}

static void a_file_that_is_written_to_while_it_is_mapped_is_noticed(void **state)
{
    (void)state;
    struct folder f = folder_create();
    struct safetensors *st = open_pages(&f);
    FILE *file = fopen(folder_at(&f, "x.safetensors"), "ab");
    assert_true(file && fputc(0, file) == 0 && fclose(file) == 0);
    check_says(st, "changed");
    safetensors_close(st);
    folder_remove(&f);
}

/* In a child, as it ends there.  A page of its own that is gone is no business of ours. */
static void other_bus_errors_still_end_the_process(void **state)
{
    (void)state;
    struct folder f = folder_create();
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL); /* not the test library's */
        open_pages(&f);
        int fd = open(folder_at(&f, "y"), O_RDWR | O_CREAT, 0600);
        const volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
        _exit(page == MAP_FAILED ? 0 : page[0]);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    folder_remove(&f);
}

static void a_writer_that_was_not_fed_leaves_no_file(void **state)
{
    (void)state;
    struct err e = {0};
    struct folder f = folder_create();
    const struct safetensors_tensor t = {.name = "a", .dtype = DTYPE_F32, .rank = 1, .shape = {2}};
    const char *path = folder_at(&f, "x.safetensors"), *tmp = folder_at(&f, "x.safetensors.tmp");
    struct safetensors_writer *w = safetensors_writer_begin(path, &t, 1, &e);
    assert_non_null(w);
    assert_int_equal(safetensors_writer_put(w, "1234", 4, &e), 0);
    assert_int_equal(safetensors_writer_put(w, "12345", 5, &e), -1);
    assert_int_equal(safetensors_writer_finish(w, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(tmp, F_OK), -1);
    folder_remove(&f);
}

/* One value of a 16-bit dtype, through a file. */
static float widened(enum safetensors_dtype dtype, uint16_t bits, int *rc)
{
    struct err e = {0};
    float out = 0;
    struct safetensors_tensor t = {
        .name = "h", .dtype = dtype, .rank = 1, .shape = {1}, .data = &bits, .size = 2, .count = 1};
    *rc = tensor_widen(&t, 1, 0, &out, &e);
    return out;
}

static void widens_halves_exactly(void **state)
{
    (void)state;
    static const struct {
        enum safetensors_dtype dtype;
        uint16_t bits;
        float value;
    } cases[] = {
        {DTYPE_BF16, 0x3f80, 1},         {DTYPE_BF16, 0xc040, -3},
        {DTYPE_BF16, 0x0001, 0x1p-133f}, {DTYPE_F16, 0x3c00, 1},
        {DTYPE_F16, 0xc200, -3},         {DTYPE_F16, 0x7bff, 65504},
        {DTYPE_F16, 0x0001, 0x1p-24f},   {DTYPE_F16, 0x83ff, -1023 * 0x1p-24f},
        {DTYPE_F16, 0x0400, 0x1p-14f},   {DTYPE_F16, 0x0000, 0},
    };
    int rc;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_true(widened(cases[i].dtype, cases[i].bits, &rc) == cases[i].value);
        assert_int_equal(rc, 0);
    }
    assert_true(signbit(widened(DTYPE_F16, 0x8000, &rc)));
    widened(DTYPE_F16, 0x7c00, &rc);
    assert_int_equal(rc, -1);
    widened(DTYPE_BF16, 0x7fc0, &rc);
    assert_int_equal(rc, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_good_files),
        cmocka_unit_test(refuses_a_header_that_is_longer_than_the_file),
        cmocka_unit_test(refuses_a_header_over_the_limit_although_it_is_there),
        cmocka_unit_test(refuses_holes_overlaps_and_disorder),
        cmocka_unit_test(refuses_sizes_that_do_not_fit_shape_and_dtype),
        cmocka_unit_test(refuses_entries_that_are_no_tensors),
        cmocka_unit_test(refuses_more_tensors_than_the_limit),
        cmocka_unit_test(survives_every_truncation_and_flipped_byte),
        cmocka_unit_test(reads_back_what_it_wrote),
        cmocka_unit_test(a_file_that_shrinks_while_it_is_mapped_gives_zeros_and_says_so),
        cmocka_unit_test(a_file_that_is_written_to_while_it_is_mapped_is_noticed),
        cmocka_unit_test(other_bus_errors_still_end_the_process),
        cmocka_unit_test(a_writer_that_was_not_fed_leaves_no_file),
        cmocka_unit_test(widens_halves_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

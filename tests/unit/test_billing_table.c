/* test_billing_table.c - the same rows for people, spreadsheets and programs; and a command's
 * words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "args.h"
#include "table.h"

static const struct column columns[] = {
    {"who", "account", CELL_TEXT},
    {NULL, "account_id", CELL_TEXT},
    {"tokens", "tokens", CELL_COUNT},
    {"USD", "amount_usd", CELL_USD},
};

static struct table *make(const char *const rows[][4], int count)
{
    struct err e = {0};
    struct table *t = table_create(columns, 4, &e);
    assert_non_null(t);
    for (int i = 0; i < count; i++)
        assert_int_equal(table_add(t, rows[i], &e), 0);
    return t;
}

static void check(const struct table *t, enum table_format format, const char *wanted)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    table_print(t, format, out);
    fclose(out);
    assert_string_equal(text, wanted);
    free(text);
}

static void test_people_see_aligned_columns_and_points(void **state)
{
    static const char *const rows[][4] = {{"Zo\xc3\xab", "a1", "12", "0.50"},
                                          {"ben", "a2", "12345", "10.000007"}};
    static const char *const total[] = {"total", "", "12357", "10.500007"};
    struct err e = {0};
    struct table *t = make(rows, 2);
    assert_int_equal(table_total(t, total, &e), 0);
    assert_int_equal(table_rows(t), 2);
    check(t, FORMAT_TABLE,
          "who    tokens        USD\n"
          "-----  ------  ---------\n"
          "Zo\xc3\xab        12   0.500000\n"
          "ben     12345  10.000007\n"
          "-----  ------  ---------\n"
          "total   12357  10.500007\n");
    table_free(t);
}

static void test_csv_has_all_columns_exact_numbers_and_no_total(void **state)
{
    static const char *const rows[][4] = {{"a \"b\", c", "a1", "12", "0.50"},
                                          {"=1+1", "a2", "7", "-10.000007"}};
    static const char *const total[] = {"total", "", "19", "1"};
    struct err e = {0};
    struct table *t = make(rows, 2);
    assert_int_equal(table_total(t, total, &e), 0);
    check(t, FORMAT_CSV,
          "account,account_id,tokens,amount_usd\r\n"
          "\"a \"\"b\"\", c\",a1,12,0.50\r\n"
          "\"'=1+1\",a2,7,-10.000007\r\n"); /* a spreadsheet must not compute a name */
    table_free(t);
}

static void test_json_keeps_amounts_as_text_and_empty_as_null(void **state)
{
    static const char *const rows[][4] = {{"a\"\\\n", "", "12", "0.50"}};
    struct table *t = make(rows, 1);
    check(t, FORMAT_JSON,
          "[\n {\"account\": \"a\\\"\\\\\\u000a\", \"account_id\": null, \"tokens\": 12, "
          "\"amount_usd\": \"0.50\"}\n]\n");
    table_free(t);
    t = make(rows, 0);
    check(t, FORMAT_JSON, "[]\n");
    table_free(t);
}

static void test_an_unknown_format_is_named(void **state)
{
    struct err e = {0};
    enum table_format format;
    assert_int_equal(table_format_of(NULL, &format, &e), 0);
    assert_int_equal(format, FORMAT_TABLE);
    assert_int_equal(table_format_of("json", &format, &e), 0);
    assert_int_equal(format, FORMAT_JSON);
    assert_int_equal(table_format_of("xml", &format, &e), -1);
    assert_non_null(strstr(e.text, "\"xml\""));
}

static const struct arg_spec specs[] = {
    {"model", "M", ""}, {"usd", "X", ""}, {"log", NULL, ""}, {NULL, NULL, NULL}};

static int read_words(struct args *a, char **argv, int argc, char **rest, int *rest_count,
                      struct err *e)
{
    return args_read(a, specs, 1, argc, argv, rest, rest_count, e);
}

static void test_flags_and_words_come_in_any_order_and_settings_pass_through(void **state)
{
    char *argv[] = {"--postgres",          "host=x",     "name", "--usd", "-5", "--log",
                    "--kafka-brokers=y:1", "--model=a=b"};
    char *rest[9];
    int rest_count;
    struct args a;
    struct err e = {0};
    assert_int_equal(read_words(&a, argv, 8, rest, &rest_count, &e), 0);
    assert_string_equal(a.words[0], "name");
    assert_string_equal(arg(&a, "usd"), "-5");
    assert_string_equal(arg(&a, "model"), "a=b");
    assert_non_null(arg(&a, "log"));
    assert_int_equal(rest_count, 3);
    assert_string_equal(rest[0], "--postgres");
    assert_string_equal(rest[1], "host=x");
    assert_string_equal(rest[2], "--kafka-brokers=y:1");
}

static void test_arguments_never_come_from_the_environment(void **state)
{
    char *rest[1];
    int rest_count;
    struct args a;
    struct err e = {0};
    setenv("TINWORKS_MODEL", "something", 1);
    assert_int_equal(read_words(&a, NULL, 0, rest, &rest_count, &e), 0);
    assert_null(arg(&a, "model"));
}

static void test_a_flag_without_its_value_and_a_word_too_many_are_named(void **state)
{
    char *no_value[] = {"--usd"}, *two_words[] = {"one", "two"}, *value[] = {"--log=1"};
    char *rest[4];
    int rest_count;
    struct args a;
    struct err e = {0};
    const char *out;
    assert_int_equal(read_words(&a, no_value, 1, rest, &rest_count, &e), -1);
    assert_non_null(strstr(e.text, "--usd"));
    assert_int_equal(read_words(&a, two_words, 2, rest, &rest_count, &e), -1);
    assert_non_null(strstr(e.text, "\"two\""));
    assert_int_equal(read_words(&a, value, 1, rest, &rest_count, &e), -1);
    assert_int_equal(read_words(&a, two_words, 1, rest, &rest_count, &e), 0);
    assert_int_equal(arg_must(&a, "model", &out, &e), -1);
    assert_non_null(strstr(e.text, "--model"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_people_see_aligned_columns_and_points),
        cmocka_unit_test(test_csv_has_all_columns_exact_numbers_and_no_total),
        cmocka_unit_test(test_json_keeps_amounts_as_text_and_empty_as_null),
        cmocka_unit_test(test_an_unknown_format_is_named),
        cmocka_unit_test(test_flags_and_words_come_in_any_order_and_settings_pass_through),
        cmocka_unit_test(test_arguments_never_come_from_the_environment),
        cmocka_unit_test(test_a_flag_without_its_value_and_a_word_too_many_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_wire_scope.c - what a key may be used for, as text and as a set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "wire/scope.h"

static void a_list_is_read_in_any_order_and_written_in_ours(void **state)
{
    struct err e = {0};
    unsigned scopes = 0;
    char text[SCOPES_TEXT_SIZE];
    assert_int_equal(scopes_parse("read,train,read", &scopes, &e), 0);
    assert_int_equal(scopes, SCOPE_TRAIN | SCOPE_READ);
    scopes_text(scopes, ",", text);
    assert_string_equal(text, "train,read");
    scopes_text(31, " or ", text);
    assert_string_equal(text, "train or sample or read or finance or admin");
    scopes_text(0, ",", text);
    assert_string_equal(text, "");
}

static void what_is_no_scope_is_named(void **state)
{
    static const char *const wrong[] = {"",      "trains", "tra",       "train,",
                                        ",read", "Train",  "train read"};
    unsigned scopes = 77;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct err e = {0};
        assert_int_equal(scopes_parse(wrong[i], &scopes, &e), -1);
        assert_int_equal(e.kind, ERR_USER);
        assert_non_null(strstr(e.text, "expected some of train, sample"));
        assert_int_equal(scopes, 77);
    }
    struct err e = {0};
    assert_int_equal(scopes_parse("read,owner,train", &scopes, &e), -1);
    assert_non_null(strstr(e.text, "\"owner\""));
}

static void one_of_those_asked_for_suffices_and_admin_always_does(void **state)
{
    assert_true(scopes_suffice(SCOPE_SAMPLE, SCOPE_TRAIN | SCOPE_SAMPLE));
    assert_false(scopes_suffice(SCOPE_SAMPLE | SCOPE_READ, SCOPE_TRAIN));
    assert_true(scopes_suffice(SCOPE_ADMIN, SCOPE_FINANCE));
    assert_true(scopes_suffice(0, 0));
    assert_false(scopes_suffice(0, SCOPE_READ));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_is_read_in_any_order_and_written_in_ours),
        cmocka_unit_test(what_is_no_scope_is_named),
        cmocka_unit_test(one_of_those_asked_for_suffices_and_admin_always_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* base and seal: what every room leans on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/conf.h"
#include "seal/seal.h"

static void an_error_keeps_its_kind_when_it_is_prefixed(void **state)
{
    struct err e = {0};
    assert_int_equal(err_set(&e, ERR_USER, "rank is %d", 7), -1);
    assert_int_equal(err_prefix(&e, "run \"%s\"", "a"), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_string_equal(e.text, "run \"a\": rank is 7");
    assert_string_equal(err_kind_name(e.kind), "user");
}

static void an_error_may_quote_itself_and_never_overflows(void **state)
{
    struct err e = {0};
    char longer[3 * ERR_TEXT_MAX];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    err_set(&e, ERR_BUG, "%s", longer);
    assert_int_equal(strlen(e.text), ERR_TEXT_MAX - 1);
    err_prefix(&e, "%s", longer);
    assert_int_equal(strlen(e.text), ERR_TEXT_MAX - 1);
    err_set(&e, ERR_RETRY, "short");
    err_set(&e, ERR_RETRY, "again: %s", e.text);
    assert_string_equal(e.text, "again: short");
}

static void a_buffer_refuses_to_pass_its_maximum(void **state)
{
    struct buf b;
    struct err e = {0};
    buf_init(&b, 10);
    assert_int_equal(buf_append(&b, "12345", 5, &e), 0);
    assert_int_equal(buf_append(&b, "123456", 6, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_string_equal(e.text, "more than 10 bytes");
    assert_int_equal(buf_printf(&b, &e, "%s", "abcde"), 0);
    assert_string_equal(b.data, "12345abcde");
    size_t size;
    char *taken = buf_take(&b, &size);
    assert_int_equal(size, 10);
    assert_null(b.data);
    free(taken);
    buf_clear(&b);
}

static void an_arena_gives_aligned_memory_and_keeps_its_blocks(void **state)
{
    struct err e = {0};
    struct arena *a = arena_create(1 << 20, &e);
    for (int round = 0; round < 3; round++) {
        for (int i = 1; i < 100; i++) {
            char *p = arena_alloc(a, (size_t)i * 7, &e);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            memset(p, i, (size_t)i * 7);
        }
        size_t used = arena_used(a);
        assert_int_equal(used, arena_peak(a));
        arena_reset(a);
        assert_int_equal(arena_used(a), 0);
    }
    assert_null(arena_alloc(a, 2 << 20, &e));
    assert_int_equal(e.kind, ERR_RETRY);
    arena_free(a);
}

static int read_settings(int argc, char **argv, int64_t *n, const char **s, bool *b, struct err *e)
{
    const struct conf_item items[] = {
        {"test_number", CONF_INT, n, "5", 1, 9, "a number"},
        {"test_text", CONF_STR, s, NULL, 0, 0, "a text"},
        {"test_flag", CONF_BOOL, b, "false", 0, 0, "a flag"},
        {0},
    };
    return conf_read(items, "a test", argc, argv, NULL, e);
}

static void a_flag_wins_over_the_environment_and_that_over_the_default(void **state)
{
    struct err e = {0};
    int64_t n;
    const char *s;
    bool b;
    char *none[] = {"t", "--test-text", "x", NULL}, *flag[] = {"t", "--test-text=y", "--test-number", "7",
                                                                 "--test-flag", NULL};
    assert_int_equal(read_settings(3, none, &n, &s, &b, &e), 0);
    assert_int_equal(n, 5);
    assert_false(b);
    setenv("TINWORKS_TEST_NUMBER", "6", 1);
    assert_int_equal(read_settings(3, none, &n, &s, &b, &e), 0);
    assert_int_equal(n, 6);
    assert_int_equal(read_settings(5, flag, &n, &s, &b, &e), 0);
    assert_int_equal(n, 7);
    assert_string_equal(s, "y");
    assert_true(b);
    unsetenv("TINWORKS_TEST_NUMBER");
}

static void a_bad_setting_is_named_with_its_value(void **state)
{
    struct err e = {0};
    int64_t n;
    const char *s;
    bool b;
    char *big[] = {"t", "--test-text", "x", "--test-number", "70", NULL};
    char *word[] = {"t", "--test-text", "x", "--test-number", "7x", NULL};
    char *nothing[] = {"t", NULL};
    assert_int_equal(read_settings(5, big, &n, &s, &b, &e), -1);
    assert_string_equal(e.text, "setting test_number is 70, expected 1 to 9");
    assert_int_equal(read_settings(5, word, &n, &s, &b, &e), -1);
    assert_string_equal(e.text, "setting test_number is \"7x\", expected a whole number");
    assert_int_equal(read_settings(1, nothing, &n, &s, &b, &e), -1);
    assert_string_equal(e.text, "setting test_text must be given (--test-text)");
}

static void hashes_agree_with_the_published_vectors(void **state)
{
    char hex[SEAL_SHA256_HEX_SIZE];
    seal_sha256_hex("abc", 3, hex); /* FIPS 180-2, appendix B.1 */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    uint8_t mac[SEAL_SHA256_SIZE];
    seal_hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, mac); /* RFC 4231, case 2 */
    seal_hex(mac, sizeof mac, hex);
    assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    char text[16];
    seal_base32("foobar", 6, text); /* RFC 4648, section 10 */
    assert_string_equal(text, "mzxw6ytboi");
    assert_true(seal_equal("abc", "abc", 3));
    assert_false(seal_equal("abc", "abd", 3));
}

static void a_time_is_written_as_rfc3339(void **state)
{
    char text[32];
    assert_string_equal(clock_rfc3339(1700000000123, text), "2023-11-14T22:13:20.123Z");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_keeps_its_kind_when_it_is_prefixed),
        cmocka_unit_test(an_error_may_quote_itself_and_never_overflows),
        cmocka_unit_test(a_buffer_refuses_to_pass_its_maximum),
        cmocka_unit_test(an_arena_gives_aligned_memory_and_keeps_its_blocks),
        cmocka_unit_test(a_flag_wins_over_the_environment_and_that_over_the_default),
        cmocka_unit_test(a_bad_setting_is_named_with_its_value),
        cmocka_unit_test(hashes_agree_with_the_published_vectors),
        cmocka_unit_test(a_time_is_written_as_rfc3339),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

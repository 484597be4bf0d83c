/* test_gateway_token.c - tokens against one that another program made, and forged ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "api/token.h"

/* Made with Python's hmac, json and base64 from the secret 00 01 .. 1f. */
static const char known[] =
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    "eyJzdWIiOiJhY2N0XzEiLCJvcmdfaWQiOiJhY2N0XzEiLCJlbWFpbCI6ImFAYi5leGFtcGxlIiwia2lkIjoiazEiLCJp"
    "YXQiOjEwMDAsImV4cCI6MTkwMH0.hPoWHMHzramq57oRQYUqe1r_Ihv5tpHVZoYBrwFTe_0";

static const struct claims claims = {.account = "acct_1",
                                     .key = "k1",
                                     .email = "a@b.example",
                                     .issued_s = 1000,
                                     .expires_s = 1900};

static struct secret secret(void)
{
    struct secret s;
    for (int i = 0; i < SECRET_SIZE; i++)
        s.key[i] = (uint8_t)i;
    return s;
}

static void a_token_is_the_one_that_was_made_elsewhere(void **state)
{
    struct secret s = secret();
    struct err e = {0};
    char token[TOKEN_SIZE];
    assert_int_equal(token_make(token, &s, &claims, &e), 0);
    assert_string_equal(token, known);
}

static void a_token_is_read_until_it_expires(void **state)
{
    struct secret s = secret();
    struct claims read;
    assert_int_equal(token_read(known, &s, 1899, &read), TOKEN_GOOD);
    assert_string_equal(read.account, "acct_1");
    assert_string_equal(read.key, "k1");
    assert_int_equal(read.expires_s, 1900);
    assert_int_equal(token_read(known, &s, 1900, &read), TOKEN_EXPIRED);
}

static void any_other_byte_makes_it_bad(void **state)
{
    struct secret s = secret();
    struct claims read;
    char token[sizeof known];
    for (size_t i = 0; i < sizeof known - 1; i++) {
        memcpy(token, known, sizeof known);
        token[i] = token[i] == 'A' ? 'B' : 'A';
        if (token_read(token, &s, 1500, &read) != TOKEN_BAD) fail_msg("byte %zu", i);
        memcpy(token, known, sizeof known);
        token[i] = '\0'; /* cut short */
        if (token_read(token, &s, 1500, &read) != TOKEN_BAD) fail_msg("cut at %zu", i);
    }
    s.key[0] ^= 1;
    assert_int_equal(token_read(known, &s, 1500, &read), TOKEN_BAD);
}

static void another_header_is_never_read(void **state)
{
    struct secret s = secret();
    struct claims read;
    /* {"alg":"none"} with the same claims and no signature */
    assert_int_equal(token_read("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhY2N0XzEifQ.", &s, 1500, &read),
                     TOKEN_BAD);
    assert_int_equal(token_read("eyJ", &s, 1500, &read), TOKEN_BAD);
    assert_int_equal(token_read("", &s, 1500, &read), TOKEN_BAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_is_the_one_that_was_made_elsewhere),
        cmocka_unit_test(a_token_is_read_until_it_expires),
        cmocka_unit_test(any_other_byte_makes_it_bad),
        cmocka_unit_test(another_header_is_never_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

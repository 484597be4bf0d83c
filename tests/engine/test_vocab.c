/* test_vocab.c - token ids back to bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/model.h"
#include "folder.h"

#define BYTE_LEVEL "\"decoder\":{\"type\":\"ByteLevel\"}"

static struct vocab *load_text(const char *json, struct err *e)
{
    struct folder f = folder_create();
    folder_put_text(&f, "tokenizer.json", json);
    struct vocab *v = vocab_load(f.path, e);
    folder_remove(&f);
    return v;
}

static void check_bytes(const struct vocab *v, int32_t id, const char *want, size_t want_size)
{
    size_t size;
    const char *bytes = vocab_bytes(v, id, &size);
    assert_non_null(bytes);
    assert_int_equal(size, want_size);
    assert_memory_equal(bytes, want, size);
}

static void the_small_tokenizer_has_every_byte_and_its_specials(void **state)
{
    (void)state;
    struct err e = {0};
    bool seen[256] = {false};
    struct vocab *v = vocab_load(FIXTURES "/../../models/tokenizer", &e);
    assert_non_null(v);
    check_bytes(v, 0, "<|endoftext|>", 13);
    check_bytes(v, 1, "<|im_start|>", 12);
    check_bytes(v, 2, "<|im_end|>", 10);
    for (int32_t id = 0; id < 1024; id++) {
        size_t size;
        const char *bytes = vocab_bytes(v, id, &size);
        assert_non_null(bytes);
        assert_true(size > 0);
        if (size == 1) seen[(unsigned char)*bytes] = true;
        for (size_t i = 0; size > 1 && i < size; i++) /* a digit is a token of its own */
            assert_true(bytes[i] < '0' || bytes[i] > '9');
    }
    for (int b = 0; b < 256; b++)
        assert_true(seen[b]);
    size_t size;
    assert_null(vocab_bytes(v, 1024, &size));
    assert_null(vocab_bytes(v, -1, &size));
    assert_null(vocab_bytes(v, INT32_MAX, &size));
    vocab_free(v);
}

/* U+0120 spells the blank, U+010A the line feed, U+00C3 U+00A9 the two bytes of e acute, U+0100
 * zero. */
static void spelled_bytes_are_read_by_gpt2s_rule(void **state)
{
    (void)state;
    struct err e = {0};
    struct vocab *v = load_text("{" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",\"vocab\":{"
                                "\"\\u0120the\":0,\"\\u010a\":1,\"\\u00c3\\u00a9\":2,\"\\u0100\":3,"
                                "\"\\u0143\":4,\"\\u00a1\":9}},"
                                "\"added_tokens\":[{\"id\":12,\"content\":\"\\u0120x\"}]}",
                                &e);
    if (!v) fail_msg("%s", e.text);
    check_bytes(v, 0, " the", 4);
    check_bytes(v, 1, "\n", 1);
    check_bytes(v, 2, "\xc3\xa9", 2);
    check_bytes(v, 3, "\0", 1);
    check_bytes(v, 4, "\xad", 1);
    check_bytes(v, 9, "\xa1", 1);
    check_bytes(v, 12, "\xc4\xa0x", 3); /* added tokens are not spelled */
    size_t size;
    assert_null(vocab_bytes(v, 5, &size));
    assert_null(vocab_bytes(v, 13, &size));
    vocab_free(v);
}

static void refused(const char *json, const char *because)
{
    struct err e = {0};
    assert_null(load_text(json, &e));
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void what_is_no_byte_level_bpe_is_refused(void **state)
{
    (void)state;
    refused("{", "not JSON");
    refused("{}", "no byte-level BPE");
    refused("{" BYTE_LEVEL ",\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}",
            "no byte-level BPE");
    refused("{\"decoder\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"BPE\",\"vocab\":{}}}",
            "no byte-level BPE");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"\\u4f60\":7}}}", "spells token 7");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"\\u0144\":7}}}", "spells token 7");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\" \":7}}}", "spells token 7");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":-1}}}", "token id");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":1048576}}}", "token id");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":\"1\"}}}", "token id");
    refused("{" BYTE_LEVEL ",\"model\":{\"vocab\":{}},\"added_tokens\":[{\"id\":1}]}",
            "without content");
}

static void a_folder_without_tokenizer_is_no_error(void **state)
{
    (void)state;
    struct err e = {0};
    struct folder f = folder_create();
    assert_null(vocab_load(f.path, &e));
    assert_int_equal(e.kind, ERR_NONE);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_small_tokenizer_has_every_byte_and_its_specials),
        cmocka_unit_test(spelled_bytes_are_read_by_gpt2s_rule),
        cmocka_unit_test(what_is_no_byte_level_bpe_is_refused),
        cmocka_unit_test(a_folder_without_tokenizer_is_no_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

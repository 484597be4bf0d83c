/* test_wire_train.c - train requests from protobuf and JSON, train results to both. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include "wire/payload.h"
#include "pb_write.h"

enum { FLOAT32 = 1, INT64 = 2, INT32 = 3, BFLOAT16 = 4 };

/* ---------------------------------------------------------------- what a client would send */

struct tensor {
    const char *name;
    int dtype;
    const void *data;
    size_t size;
    int shape[3], dims; /* dims 0: none sent */
};

static void add_tensor(struct pb *datum, const struct tensor *t)
{
    static struct pb shape, tensor, entry;
    shape.size = tensor.size = entry.size = 0;
    pb_bytes(&tensor, 1, t->data, t->size);
    pb_varint(&tensor, 3, (uint64_t)t->dtype);
    for (int i = 0; i < t->dims; i++)
        pb_number(&shape, (uint64_t)t->shape[i]);
    if (t->dims) pb_message(&tensor, 4, &shape);
    pb_text(&entry, 1, t->name);
    pb_message(&entry, 2, &tensor);
    pb_message(datum, 2, &entry);
}

static void add_text_chunk(struct pb *datum, const void *bytes, size_t size)
{
    static struct pb text, chunk;
    text.size = chunk.size = 0;
    pb_bytes(&text, 1, bytes, size);
    pb_message(&chunk, 1, &text);
    pb_message(datum, 1, &chunk);
}

static void begin(struct pb *p)
{
    p->size = 0;
    pb_text(p, 1, "s1:train:0");
    pb_varint(p, 2, 5);
    pb_text(p, 4, "cross_entropy");
}

static const int32_t tokens[] = {11, 12, 13};
static const int64_t targets[] = {12, 13, 1LL << 40};
static const float weights[] = {0, 1, -0.5f};

static void assert_setting(const struct train_request *r, int i, const char *key, double number)
{
    assert_true(i < r->setting_count);
    assert_string_equal(r->settings[i].key, key);
    assert_false(r->settings[i].text);
    assert_true(r->settings[i].number == number);
}

static struct train_request *decode(const struct pb *p, bool *malformed, struct err *e)
{
    /* An odd address, and memory that ends where the message does. */
    char *copy = malloc(p->size + 1);
    memcpy(copy + 1, p->bytes, p->size);
    struct train_request *r =
        train_request_decode(CONTENT_PROTOBUF, copy + 1, p->size, malformed, e);
    free(copy);
    return r;
}

/* One datum with the three arrays; extra (may be NULL) comes last. */
static void request_with(struct pb *p, const struct tensor *extra)
{
    static struct pb datum;
    datum.size = 0;
    begin(p);
    add_text_chunk(&datum, tokens, 8); /* in two chunks */
    add_text_chunk(&datum, tokens + 2, 4);
    add_tensor(&datum, &(struct tensor){"target_tokens", INT64, targets, 24, {3}, 1});
    add_tensor(&datum, &(struct tensor){"weights", FLOAT32, weights, 12, {3}, 0});
    if (extra) add_tensor(&datum, extra);
    pb_message(p, 3, &datum);
}

/* ---------------------------------------------------------------- protobuf */

static void the_documented_request_is_read(void **state)
{
    static const char hex[] =
        "0a0a73313a747261696e3a3010011a540a0c0a0a0a080b0000000c00000012280a0d7461726765745f746f6b65"
        "6e7312170a100c000000000000000d0000000000000018022201"
        "02121a0a0777656967687473120f0a08000000000000803f1801220102220370706f"
        "2a1d0a12636c69705f6c6f775f7468726573686f6c64119a9999999999e93f"
        "3a1f0a12636c69705f6c6f775f7468726573686f6c64120909"
        "9a9999999999e93f";
    unsigned char bytes[256];
    size_t size = (sizeof hex - 1) / 2;
    for (size_t i = 0; i < size; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        bytes[i] = (unsigned char)byte;
    }
    struct err e = {0};
    bool malformed;
    assert_int_equal(size, 169);
    struct train_request *r = train_request_decode(CONTENT_PROTOBUF, bytes, size, &malformed, &e);
    if (!r) fail_msg("%s", e.text);
    assert_string_equal(r->run, "s1:train:0");
    assert_int_equal(r->seq, 1);
    assert_false(r->forward_only);
    assert_string_equal(r->loss, "ppo");
    assert_int_equal(r->setting_count, 1);
    assert_setting(r, 0, "clip_low_threshold", 0.8);
    assert_int_equal(r->count, 1);
    assert_int_equal(r->tokens, 2);
    assert_int_equal(r->datums[0].tokens[1], 12);
    assert_true(r->datums[0].targets[1] == 13);
    assert_true(r->datums[0].weights[0] == 0 && r->datums[0].weights[1] == 1);
    assert_null(r->datums[0].logprobs);
    train_request_free(r);
}

static void arrays_arrive_as_they_were_sent(void **state)
{
    static struct pb p;
    struct err e = {0};
    bool malformed;
    static const float logprobs[] = {-1, -2, -3}, mask[] = {1, 2, 3, 4, 5};
    request_with(&p, &(struct tensor){"logprobs", FLOAT32, logprobs, 12, {3}, 1});
    struct train_request *r = decode(&p, &malformed, &e);
    if (!r) fail_msg("%s", e.text);
    assert_int_equal(r->seq, 5);
    assert_int_equal(r->datums[0].n, 3);
    assert_memory_equal(r->datums[0].tokens, tokens, sizeof tokens);
    assert_memory_equal(r->datums[0].targets, targets, sizeof targets);
    assert_memory_equal(r->datums[0].weights, weights, sizeof weights);
    assert_memory_equal(r->datums[0].logprobs, logprobs, sizeof logprobs);
    assert_null(r->datums[0].advantages);
    train_request_free(r);
    /* A name that we do not know is not looked at, whatever its length. */
    request_with(&p, &(struct tensor){"mask", FLOAT32, mask, sizeof mask, {5}, 1});
    r = decode(&p, &malformed, &e);
    assert_non_null(r);
    train_request_free(r);
    /* int32 targets are widened, whole weights become floats. */
    static const int32_t narrow[] = {-1, 7, 8};
    request_with(&p, &(struct tensor){"target_tokens", INT32, narrow, 12, {3}, 1});
    r = decode(&p, &malformed, &e);
    assert_true(r->datums[0].targets[0] == -1 && r->datums[0].targets[2] == 8);
    train_request_free(r);
    request_with(&p, &(struct tensor){"weights", INT64, targets, 24, {3}, 1});
    r = decode(&p, &malformed, &e);
    assert_true(r->datums[0].weights[0] == 12);
    train_request_free(r);
}

/* A well-formed request with a wrong content, and what is said of it. */
static void wrong(const struct pb *p, const char *text)
{
    struct err e = {0};
    bool malformed = true;
    assert_null(decode(p, &malformed, &e));
    assert_false(malformed);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, text)) fail_msg("\"%s\" says nothing of \"%s\"", e.text, text);
}

static void a_wrong_tensor_is_named(void **state)
{
    static struct pb p;
    static const float nan_at_1[] = {0, NAN, 0}, inf_at_2[] = {0, 0, INFINITY};
    const struct {
        struct tensor t;
        const char *text;
    } cases[] = {
        {{"weights", FLOAT32, weights, 8, {2}, 1}, "datum 0: weights has 2 values"},
        {{"weights", FLOAT32, weights, 12, {2}, 1}, "shape [2], expected [3]"},
        {{"weights", FLOAT32, weights, 11, {3}, 1}, "11 bytes"},
        {{"weights", FLOAT32, weights, 0, {0}, 0}, "weights has 0 values"},
        {{"weights", BFLOAT16, weights, 6, {3}, 1}, "weights has dtype 4"},
        {{"weights", 0, weights, 12, {3}, 1}, "weights has dtype 0"},
        {{"target_tokens", FLOAT32, weights, 12, {3}, 1}, "target_tokens has dtype 1"},
        {{"target_tokens", INT64, targets, 24, {3, 1}, 2},
         "weights has shape [3], expected [3, 1], as target_tokens"},
        {{"logprobs", FLOAT32, weights, 12, {3, 1}, 2}, "shape [3, 1], expected [3]"},
        {{"logprobs", FLOAT32, weights, 12, {1, 1, 3}, 3}, "3 dimensions"},
        {{"logprobs", FLOAT32, nan_at_1, 12, {3}, 1}, "logprobs[1] is nan"},
        {{"advantages", FLOAT32, inf_at_2, 12, {3}, 1}, "advantages[2] is inf"},
        {{"clip_low_threshold", FLOAT32, weights, 8, {2}, 1}, "clip_low_threshold has 2 values"},
        {{"clip_high_threshold", FLOAT32, nan_at_1, 12, {3}, 1}, "clip_high_threshold[1] is nan"},
        {{"sequence_ratio_mask", FLOAT32, inf_at_2, 12, {3}, 1}, "sequence_ratio_mask[2] is inf"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        request_with(&p, &cases[i].t);
        wrong(&p, cases[i].text);
    }
}

static void wrong_inputs_are_named(void **state)
{
    static struct pb p, datum, chunk, empty;
    begin(&p);
    wrong(&p, "data has 0 datums");
    for (int i = 0; i < DATUMS_MAX + 1; i++)
        pb_message(&p, 3, &empty);
    wrong(&p, "data has 1025 datums");
    begin(&p);
    pb_message(&p, 3, &empty);
    wrong(&p, "datum 0: model_input has 0 tokens");
    datum.size = 0;
    add_text_chunk(&datum, tokens, 7);
    begin(&p);
    pb_message(&p, 3, &datum);
    wrong(&p, "chunk 0 has 7 bytes");
    datum.size = chunk.size = 0;
    pb_message(&chunk, 2, &empty);
    pb_message(&datum, 1, &chunk);
    begin(&p);
    pb_message(&p, 3, &datum);
    wrong(&p, "chunk 0 is an image");
    p.size = 0;
    pb_text(&p, 1, "s1:train:0");
    wrong(&p, "loss_fn");
}

static void the_number_of_tokens_is_bounded(void **state)
{
    struct err e = {0};
    bool malformed;
    size_t big = (DATUM_TOKENS_MAX + 1) * 4;
    char *zeros = calloc(1, big), *bytes = malloc(big + 64);
    unsigned char *at = (unsigned char *)bytes;
    static const char head[] = "\x0a\x01r\x22\x01x";
    memcpy(at, head, sizeof head - 1);
    at += sizeof head - 1;
    /* data, model_input, encoded_text, tokens: each with a length of three bytes */
    const unsigned char tags[] = {0x1a, 0x0a, 0x0a, 0x0a};
    for (size_t i = 0; i < sizeof tags; i++) {
        size_t inside = big + (sizeof tags - 1 - i) * 4;
        *at++ = tags[i];
        *at++ = (unsigned char)((inside & 0x7f) | 0x80);
        *at++ = (unsigned char)((inside >> 7 & 0x7f) | 0x80);
        *at++ = (unsigned char)(inside >> 14);
    }
    memcpy(at, zeros, big);
    size_t size = (size_t)((char *)at - bytes) + big;
    assert_null(train_request_decode(CONTENT_PROTOBUF, bytes, size, &malformed, &e));
    assert_false(malformed);
    assert_non_null(strstr(e.text, "32769 tokens"));
    struct train_request peeked;
    assert_int_equal(train_request_peek(CONTENT_PROTOBUF, bytes, size, &peeked, &e), 0);
    assert_int_equal(peeked.tokens, DATUM_TOKENS_MAX + 1);
    free(bytes);
    free(zeros);
}

static void add_v2(struct pb *p, const char *key, const double *number, const char *text)
{
    static struct pb value, entry;
    value.size = entry.size = 0;
    if (number) pb_double(&value, 1, *number);
    if (text) pb_text(&value, 2, text);
    pb_text(&entry, 1, key);
    pb_message(&entry, 2, &value);
    pb_message(p, 7, &entry);
}

static void the_newer_loss_config_wins(void **state)
{
    static struct pb p, old;
    struct err e = {0};
    bool malformed;
    const double low = 0.5, high = 4;
    old.size = 0;
    pb_text(&old, 1, "clip_high_threshold");
    pb_double(&old, 2, 9);
    request_with(&p, NULL);
    pb_message(&p, 5, &old);
    struct train_request *r = decode(&p, &malformed, &e);
    assert_int_equal(r->setting_count, 1);
    assert_setting(r, 0, "clip_high_threshold", 9);
    train_request_free(r);
    add_v2(&p, "clip_low_threshold", &low, NULL);
    r = decode(&p, &malformed, &e);
    assert_int_equal(r->setting_count, 1); /* the older map is not read then */
    assert_setting(r, 0, "clip_low_threshold", 0.5);
    train_request_free(r);
    add_v2(&p, "clip_high_threshold", &high, NULL);
    r = decode(&p, &malformed, &e);
    assert_int_equal(r->setting_count, 2);
    assert_setting(r, 1, "clip_high_threshold", 4);
    train_request_free(r);
}

/* Whether a loss takes them is said by whoever knows the loss. */
static void settings_are_kept_as_they_came_within_bounds(void **state)
{
    static struct pb p;
    struct err e = {0};
    bool malformed;
    const double one = 1;
    char key[65];
    request_with(&p, NULL);
    add_v2(&p, "loss_id", NULL, "s:loss:0");
    struct train_request *r = decode(&p, &malformed, &e);
    assert_string_equal(r->settings[0].key, "loss_id");
    assert_true(r->settings[0].text);
    train_request_free(r);
    memset(key, 'k', 64), key[64] = '\0';
    add_v2(&p, key, &one, NULL);
    wrong(&p, "a key of 64 bytes, expected at most 63");
    request_with(&p, NULL);
    for (int i = 0; i < LOSS_SETTINGS_MAX; i++)
        add_v2(&p, "beta", &one, NULL);
    r = decode(&p, &malformed, &e);
    assert_int_equal(r->setting_count, LOSS_SETTINGS_MAX);
    train_request_free(r);
    add_v2(&p, "beta", &one, NULL);
    wrong(&p, "more than 16 entries");
}

static void a_loss_that_we_do_not_know_is_kept_by_name(void **state)
{
    static struct pb p;
    struct err e = {0};
    bool malformed;
    request_with(&p, NULL);
    pb_text(&p, 4, "stable_reinforce"); /* the last one counts */
    struct train_request *r = decode(&p, &malformed, &e);
    assert_string_equal(r->loss, "stable_reinforce");
    train_request_free(r);
}

static void malformed_pb(const void *bytes, size_t size)
{
    struct err e = {0};
    struct train_request peeked;
    bool malformed = false;
    assert_null(train_request_decode(CONTENT_PROTOBUF, bytes, size, &malformed, &e));
    assert_true(malformed);
    assert_int_equal(e.kind, ERR_USER);
    e = (struct err){0};
    assert_int_equal(train_request_peek(CONTENT_PROTOBUF, bytes, size, &peeked, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
}

static void bytes_that_are_no_request_are_told_apart(void **state)
{
    static struct pb p;
    malformed_pb("", 0); /* no run */
    malformed_pb("{\"a\":1}", 7);
    malformed_pb("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11);
    request_with(&p, NULL);
    malformed_pb(p.bytes, p.size - 1);
    p.size = 0;
    pb_text(&p, 1, "a run with spaces");
    malformed_pb(p.bytes, p.size);
    p.size = 0;
    pb_text(&p, 1, "r");
    pb_varint(&p, 2, (uint64_t)-1);
    malformed_pb(p.bytes, p.size);
}

/* What protobuf-c would read in a way of its own, so that admission and worker could differ. */
static void fields_of_wrong_types_and_parts_given_twice_are_no_request(void **state)
{
    static struct pb p, datum, chunk, text;
    request_with(&p, NULL);
    pb_bytes(&p, 6, "\x01", 1); /* forward_only as bytes: protobuf-c says true */
    malformed_pb(p.bytes, p.size);
    request_with(&p, NULL);
    pb_bytes(&p, 2, "\x07", 1);
    malformed_pb(p.bytes, p.size);
    begin(&p);
    datum.size = chunk.size = text.size = 0;
    pb_bytes(&text, 1, tokens, 4);
    pb_message(&chunk, 1, &text);
    pb_message(&chunk, 1, &text); /* a chunk of two texts: protobuf-c takes the last */
    pb_message(&datum, 1, &chunk);
    pb_message(&p, 3, &datum);
    malformed_pb(p.bytes, p.size);
}

static void too_many_parts_are_refused_without_the_memory(void **state)
{
    struct err e = {0};
    bool malformed = false;
    size_t size = JOB_PAYLOAD_MAX;
    char *bytes = malloc(size);
    memcpy(bytes, "\x0a\x02rr", 4);
    for (size_t i = 4; i + 1 < size; i += 2)
        memcpy(bytes + i, "\x1a", 2); /* an empty datum: 8 million of them */
    assert_null(train_request_decode(CONTENT_PROTOBUF, bytes, size, &malformed, &e));
    assert_true(malformed);
    assert_non_null(strstr(e.text, "too many parts"));
    assert_null(train_request_decode(CONTENT_PROTOBUF, bytes, size + 1, &malformed, &e));
    assert_true(malformed);
    free(bytes);
}

static void a_peek_agrees_with_the_whole_reading(void **state)
{
    static struct pb p;
    struct err e = {0};
    struct train_request peeked;
    bool malformed;
    request_with(&p, NULL);
    pb_varint(&p, 6, 1);
    struct train_request *r = decode(&p, &malformed, &e);
    assert_int_equal(train_request_peek(CONTENT_PROTOBUF, p.bytes, p.size, &peeked, &e), 0);
    assert_string_equal(peeked.run, r->run);
    assert_int_equal(peeked.seq, r->seq);
    assert_true(peeked.forward_only && r->forward_only);
    assert_int_equal(peeked.tokens, r->tokens);
    assert_null(peeked.datums);
    assert_int_equal(peeked.count, 0);
    train_request_free(r);
}

/* Whatever one flips or cuts, the decoder answers with a request or with a reason. */
static void damaged_requests_are_answered(void **state)
{
    static struct pb p, q;
    uint32_t random = 12345;
    int good = 0, bad = 0;
    request_with(&p, NULL);
    for (int round = 0; round < 20000; round++) {
        q = p;
        for (int k = 0; k < 1 + round % 3; k++) {
            random = random * 1664525u + 1013904223u;
            q.bytes[(random >> 8) % q.size] = (char)(random >> 24);
        }
        if (round % 5 == 0) q.size = (random >> 8) % p.size;
        struct err e = {0};
        struct train_request peeked;
        bool malformed;
        struct train_request *r = decode(&q, &malformed, &e);
        if (!r && !e.text[0]) fail_msg("no reason in round %d", round);
        if (r) {
            assert_int_equal(train_request_peek(CONTENT_PROTOBUF, q.bytes, q.size, &peeked, &e), 0);
            assert_int_equal(peeked.tokens, r->tokens);
            assert_int_equal(peeked.seq, r->seq);
        }
        *(r ? &good : &bad) += 1;
        train_request_free(r);
    }
    assert_true(good > 1000 && bad > 1000);
}

/* ---------------------------------------------------------------- JSON */

#define DATUM                                                                                      \
    "{\"loss_fn_inputs\":{\"target_tokens\":{\"data\":[12,13],\"dtype\":\"int64\",\"shape\":[2]}," \
    "\"weights\":{\"data\":[1.0,0],\"dtype\":\"float32\",\"shape\":[2]},\"mine\":{}},"             \
    "\"model_input\":{\"chunks\":[{\"tokens\":[11],\"type\":\"encoded_text\"},"                    \
    "{\"tokens\":[12],\"type\":\"encoded_text\"}]}}"

static struct train_request *decode_json(const char *text, bool *malformed, struct err *e)
{
    return train_request_decode(CONTENT_JSON, text, strlen(text), malformed, e);
}

static void json_says_the_same_as_protobuf(void **state)
{
    static const char text[] =
        "{\"forward_backward_input\":{\"data\":[" DATUM "," DATUM "],\"loss_fn\":\"cispo\","
        "\"loss_fn_config\":{\"clip_high_threshold\":4}},\"model_id\":\"run1\",\"seq_id\":3}";
    struct err e = {0};
    struct train_request peeked;
    bool malformed;
    struct train_request *r = decode_json(text, &malformed, &e);
    if (!r) fail_msg("%s", e.text);
    assert_string_equal(r->run, "run1");
    assert_int_equal(r->seq, 3);
    assert_false(r->forward_only);
    assert_string_equal(r->loss, "cispo");
    assert_setting(r, 0, "clip_high_threshold", 4);
    assert_int_equal(r->count, 2);
    assert_int_equal(r->tokens, 4);
    assert_int_equal(r->datums[1].tokens[1], 12);
    assert_true(r->datums[1].targets[1] == 13);
    assert_true(r->datums[1].weights[0] == 1);
    assert_int_equal(train_request_peek(CONTENT_JSON, text, strlen(text), &peeked, &e), 0);
    assert_int_equal(peeked.tokens, 4);
    assert_int_equal(peeked.seq, 3);
    assert_string_equal(peeked.run, "run1");
    train_request_free(r);
    r = decode_json("{\"forward_input\":{\"data\":[" DATUM "],\"loss_fn\":\"cross_entropy\","
                    "\"loss_fn_config\":null},\"model_id\":\"run1\"}",
                    &malformed, &e);
    assert_non_null(r);
    assert_true(r->forward_only);
    assert_int_equal(r->seq, 0);
    train_request_free(r);
}

static void json_that_is_no_request_is_told_apart(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "null",
        "{}",
        "{\"model_id\":\"r\"}",
        "{\"forward_input\":[],\"model_id\":\"r\"}",
        "{\"forward_input\":{},\"model_id\":\"r\"}",
        "{\"forward_input\":{\"data\":[]}}",
        "{\"forward_input\":{\"data\":[]},\"forward_backward_input\":{\"data\":[]},\"model_id\":"
        "\"r\"}",
        "{\"forward_input\":{\"data\":[]},\"model_id\":7}",
        "{\"forward_input\":{\"data\":[]},\"model_id\":\"r\",\"seq_id\":-1}",
        "{\"forward_input\":{\"data\":[]},\"model_id\":\"r\",\"model_id\":\"s\"}",
        "{\"forward_input\":{\"data\":[NaN]},\"model_id\":\"r\"}",
        "{\"forward_input\":{\"data\":[1e999]},\"model_id\":\"r\"}",
        "{\"forward_input\":{\"data\":[]},\"model_id\":\"r\"} x",
        "{\"forward_input\":{\"data\":[]},\"model_id\":\"\xff\"}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        struct train_request peeked;
        bool malformed = false;
        assert_null(decode_json(bad[i], &malformed, &e));
        if (!malformed) fail_msg("%s: %s", bad[i], e.text);
        assert_int_equal(e.kind, ERR_USER);
        assert_int_equal(train_request_peek(CONTENT_JSON, bad[i], strlen(bad[i]), &peeked, &e), -1);
    }
}

static void json_is_not_followed_into_the_depth(void **state)
{
    struct err e = {0};
    bool malformed = false;
    size_t deep = 1 << 20;
    char *text = malloc(deep + 1);
    memset(text, '[', deep);
    text[deep] = '\0';
    assert_null(decode_json(text, &malformed, &e));
    assert_true(malformed);
    assert_non_null(strstr(e.text, "32 levels"));
    free(text);
    /* Brackets inside a string are text. */
    assert_null(decode_json("{\"a\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"}",
                            &malformed, &e));
    assert_null(strstr(e.text, "levels"));
}

static void wrong_json_contents_are_named(void **state)
{
#define REQUEST(datum, rest)                                                                       \
    "{\"forward_backward_input\":{\"data\":[" datum "],\"loss_fn\":\"x\"" rest "},\"model_id\":"   \
    "\"r\"}"
#define INPUTS(inputs)                                                                             \
    REQUEST("{\"model_input\":{\"chunks\":[{\"tokens\":[1,2]}]},\"loss_fn_inputs\":" inputs "}", "")
    static const char *const cases[][2] = {
        {REQUEST("", ""), "data has 0 datums"},
        {REQUEST("7", ""), "datum 0: model_input: chunks is absent"},
        {REQUEST("{\"model_input\":{\"chunks\":[{\"type\":\"image\"}]}}", ""), "\"image\""},
        {REQUEST("{\"model_input\":{\"chunks\":[{\"tokens\":7}]}}", ""),
         "tokens is a whole number"},
        {REQUEST("{\"model_input\":{\"chunks\":[{\"tokens\":[1.5]}]}}", ""), "token 0 is a number"},
        {REQUEST("{\"model_input\":{\"chunks\":[{\"tokens\":[4294967296]}]}}", ""), "out of range"},
        {REQUEST(DATUM, ",\"loss_fn_config\":[]"), "loss_fn_config is a list"},
        {REQUEST(DATUM, ",\"loss_fn_config\":{\"clip_low_threshold\":[]}"), "is a list"},
        {INPUTS("[]"), "loss_fn_inputs is a list"},
        {INPUTS("{\"weights\":{}}"), "weights: data is absent"},
        {INPUTS("{\"weights\":{\"data\":[1]}}"), "weights has 1 values"},
        {INPUTS("{\"weights\":{\"data\":[1,\"a\"]}}"), "weights[1] is a string"},
        {INPUTS("{\"weights\":{\"data\":[1,1e300]}}"), "weights[1] is inf"},
        {INPUTS("{\"weights\":{\"data\":[1,2],\"dtype\":\"bfloat16\"}}"), "\"bfloat16\""},
        {INPUTS("{\"target_tokens\":{\"data\":[1,2],\"dtype\":\"float32\"}}"), "expected int64"},
        {INPUTS("{\"weights\":{\"data\":[1,2],\"shape\":[1,2]}}"), "shape [1, 2], expected [2]"},
        {INPUTS("{\"weights\":{\"data\":[1,2],\"shape\":[\"a\"]}}"), "shape holds a string"},
        {INPUTS("{\"weights\":{\"data\":[1,2],\"shape\":7}}"), "shape is a whole number"},
        {INPUTS("{\"weights\":{\"data\":[1,2],\"sparse_crow_indices\":[0]}}"), "expected both"},
        {INPUTS("{\"target_tokens\":{\"data\":[1,2.5]}}"), "target_tokens[1] is a number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        bool malformed = true;
        assert_null(decode_json(cases[i][0], &malformed, &e));
        if (malformed || e.kind != ERR_USER || !strstr(e.text, cases[i][1]))
            fail_msg("%s: \"%s\" says nothing of \"%s\"", cases[i][0], e.text, cases[i][1]);
    }
}

/* ---------------------------------------------------------------- results */

static void the_documented_result_is_written(void **state)
{
    static const unsigned char head[] = {0x0a, 0x0f, 'T',  'o',  'r',  'c',  'h',  'L', 'o',
                                         's',  's',  'R',  'e',  't',  'u',  'r',  'n', 0x12,
                                         0x3a, 0x12, 0x36, 0x0a, 0x08, 'l',  'o',  'g', 'p',
                                         'r',  'o',  'b',  's',  0x12, 0x2a, 0x0a, 0x0c};
    const float a[] = {-1.5f, -0.25f}, b[] = {-2.0f};
    const struct train_output outputs[] = {{2, 0, a}, {1, 0, b}};
    const struct metric metrics[] = {{"loss:sum", 2.25}};
    struct err e = {0};
    size_t size;
    char *bytes = train_output_encode(2, outputs, metrics, 1, &size, &e);
    assert_non_null(bytes);
    assert_int_equal(size, 17 + 60 + 21);
    assert_memory_equal(bytes, head, sizeof head);
    assert_memory_equal(bytes + sizeof head, a, sizeof a);
    free(bytes);
}

static void a_result_in_json_reads_back_to_the_same_bits(void **state)
{
    float a[] = {-1e-7f, -0.1f, -123.456789f, -3.4028235e38f, 0}, b[1] = {-1.0f / 3};
    const struct train_output outputs[] = {{5, 0, a}, {1, 0, b}};
    const struct metric metrics[] = {{"loss:sum", 0.1}, {"odd:mean", NAN}};
    struct err e = {0};
    size_t size, json_size;
    char *bytes = train_output_encode(2, outputs, metrics, 2, &size, &e);
    char *text = train_output_to_json(bytes, size, &json_size, &e);
    if (!text) fail_msg("%s", e.text);
    json_t *j = json_loadb(text, json_size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(j);
    assert_string_equal(json_string_value(json_object_get(j, "loss_fn_output_type")),
                        "TorchLossReturn");
    const json_t *list = json_object_get(j, "loss_fn_outputs");
    assert_int_equal(json_array_size(list), 2);
    for (size_t k = 0; k < 2; k++) {
        const json_t *t = json_object_get(json_array_get(list, k), "logprobs");
        assert_int_equal(json_object_size(t), 3); /* a client refuses any other key */
        assert_string_equal(json_string_value(json_object_get(t, "dtype")), "float32");
        assert_int_equal(json_integer_value(json_array_get(json_object_get(t, "shape"), 0)),
                         outputs[k].n);
        for (int i = 0; i < outputs[k].n; i++) {
            float back =
                (float)json_number_value(json_array_get(json_object_get(t, "data"), (size_t)i));
            assert_memory_equal(&back, &outputs[k].logprobs[i], sizeof back);
        }
    }
    const json_t *m = json_object_get(j, "metrics");
    assert_true(json_real_value(json_object_get(m, "loss:sum")) == 0.1);
    assert_true(json_is_null(json_object_get(m, "odd:mean")));
    json_decref(j);
    free(text);
    free(bytes);
}

static void a_result_that_clients_would_choke_on_is_not_written(void **state)
{
    const float a[] = {1};
    const struct train_output good_one = {1, 0, a}, negative = {-1, 0, a};
    const struct train_output wide = {1, TARGETS_MAX + 1, a};
    const struct metric good = {"loss:sum", 1}, no_colon = {"loss", 1};
    const struct metric with_bad[] = {good, {"a:b:c", 1}};
    struct err e = {0};
    size_t size;
    assert_null(train_output_encode(1, &good_one, &no_colon, 1, &size, &e));
    assert_int_equal(e.kind, ERR_BUG);
    assert_null(train_output_encode(1, &good_one, &good, 0, &size, &e));
    assert_null(train_output_encode(1, &good_one, with_bad, 2, &size, &e));
    assert_null(train_output_encode(0, &good_one, &good, 1, &size, &e));
    assert_null(train_output_encode(1, &negative, &good, 1, &size, &e));
    assert_null(train_output_encode(1, &wide, &good, 1, &size, &e));
}

static void damaged_results_are_answered(void **state)
{
    const float a[] = {-1, -2, -3}, b[] = {-4};
    const struct train_output outputs[] = {{3, 0, a}, {1, 0, b}};
    const struct metric metrics[] = {{"loss:sum", 2.25}};
    struct err e = {0};
    size_t size, json_size;
    uint32_t random = 777;
    int good = 0, bad = 0;
    char *bytes = train_output_encode(2, outputs, metrics, 1, &size, &e);
    char *copy = malloc(size);
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, bytes, size);
        random = random * 1664525u + 1013904223u;
        copy[(random >> 8) % size] = (char)(random >> 24);
        e = (struct err){0};
        char *text = train_output_to_json(copy, size, &json_size, &e);
        assert_true(text || e.text[0]);
        *(text ? &good : &bad) += 1;
        free(text);
    }
    assert_true(good > 1000 && bad > 1000);
    free(copy);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_documented_request_is_read),
        cmocka_unit_test(arrays_arrive_as_they_were_sent),
        cmocka_unit_test(a_wrong_tensor_is_named),
        cmocka_unit_test(wrong_inputs_are_named),
        cmocka_unit_test(the_number_of_tokens_is_bounded),
        cmocka_unit_test(the_newer_loss_config_wins),
        cmocka_unit_test(settings_are_kept_as_they_came_within_bounds),
        cmocka_unit_test(a_loss_that_we_do_not_know_is_kept_by_name),
        cmocka_unit_test(bytes_that_are_no_request_are_told_apart),
        cmocka_unit_test(fields_of_wrong_types_and_parts_given_twice_are_no_request),
        cmocka_unit_test(too_many_parts_are_refused_without_the_memory),
        cmocka_unit_test(a_peek_agrees_with_the_whole_reading),
        cmocka_unit_test(damaged_requests_are_answered),
        cmocka_unit_test(json_says_the_same_as_protobuf),
        cmocka_unit_test(json_that_is_no_request_is_told_apart),
        cmocka_unit_test(json_is_not_followed_into_the_depth),
        cmocka_unit_test(wrong_json_contents_are_named),
        cmocka_unit_test(the_documented_result_is_written),
        cmocka_unit_test(a_result_in_json_reads_back_to_the_same_bits),
        cmocka_unit_test(a_result_that_clients_would_choke_on_is_not_written),
        cmocka_unit_test(damaged_results_are_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_wire_sample.c - sample requests from JSON, sample results to protobuf and JSON. */
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

static struct sample_request *decode(const char *text, enum job_kind kind, bool *malformed,
                                     struct err *e)
{
    return sample_request_decode(text, strlen(text), kind, malformed, e);
}

static struct sample_request *good(const char *text)
{
    struct err e = {0};
    bool malformed;
    struct sample_request *r = decode(text, JOB_SAMPLE, &malformed, &e);
    if (!r) fail_msg("%s", e.text);
    return r;
}

#define PROMPT "\"prompt\":{\"chunks\":[{\"tokens\":[1,2,3],\"type\":\"encoded_text\"}]}"

static void a_request_of_tinker_is_read(void **state)
{
    struct sample_request *r = good(
        "{\"num_samples\":4," PROMPT ",\"sampling_params\":{\"max_tokens\":5,\"seed\":1,\"stop\":["
        "\"\\n\"],\"temperature\":0.7,\"top_k\":-1,\"top_p\":1.0},\"sampling_session_id\":"
        "\"s:sample:0\",\"seq_id\":0,\"prompt_logprobs\":false,\"topk_prompt_logprobs\":0,"
        "\"topk_sample_logprobs\":0,\"prompt_alt_tokens_k\":0,\"record_stability_info\":false,"
        "\"type\":\"sample\",\"checkpoint\":{\"run\":\"s:train:0\",\"seq\":4}}");
    assert_int_equal(r->prompt_count, 3);
    assert_int_equal(r->prompt[2], 3);
    assert_int_equal(r->num_samples, 4);
    assert_int_equal(r->max_tokens, 5);
    assert_true(r->has_seed && r->seed == 1);
    assert_true(r->temperature == 0.7 && r->top_p == 1.0);
    assert_int_equal(r->top_k, -1);
    assert_true(r->stop_given);
    assert_int_equal(r->stop_string_count, 1);
    assert_string_equal(r->stop_strings[0], "\n");
    assert_int_equal(r->stop_token_count, 0);
    assert_false(r->prompt_logprobs);
    assert_string_equal(r->checkpoint_run, "s:train:0");
    assert_int_equal(r->checkpoint_seq, 4);
    sample_request_free(r);
}

static void what_is_absent_or_null_has_the_documented_defaults(void **state)
{
    static const char *const texts[] = {
        "{" PROMPT "}",
        "{" PROMPT ",\"sampling_params\":{\"seed\":null,\"max_tokens\":null,\"stop\":null},"
        "\"prompt_logprobs\":null,\"num_samples\":null,\"checkpoint\":null,"
        "\"prompt_logprobs_last_n\":null,\"target_prompt_logprobs\":null}",
    };
    for (size_t i = 0; i < 2; i++) {
        struct sample_request *r = good(texts[i]);
        assert_int_equal(r->num_samples, 1);
        assert_int_equal(r->max_tokens, -1);
        assert_false(r->has_seed);
        assert_true(r->temperature == 1 && r->top_p == 1);
        assert_int_equal(r->top_k, -1);
        assert_false(r->stop_given);
        assert_string_equal(r->checkpoint_run, "");
        sample_request_free(r);
    }
}

static void stops_come_in_four_forms(void **state)
{
    struct sample_request *r = good("{" PROMPT ",\"sampling_params\":{\"stop\":\"END\"}}");
    assert_int_equal(r->stop_string_count, 1);
    assert_string_equal(r->stop_strings[0], "END");
    sample_request_free(r);
    r = good("{" PROMPT ",\"sampling_params\":{\"stop\":[\"a\",\"b\"]}}");
    assert_int_equal(r->stop_string_count, 2);
    sample_request_free(r);
    r = good("{" PROMPT ",\"sampling_params\":{\"stop\":[7,8,9]}}");
    assert_int_equal(r->stop_token_count, 3);
    assert_int_equal(r->stop_tokens[2], 9);
    assert_int_equal(r->stop_string_count, 0);
    sample_request_free(r);
    r = good("{" PROMPT ",\"sampling_params\":{\"stop\":[]}}"); /* never, not: as usual */
    assert_true(r->stop_given);
    assert_int_equal(r->stop_token_count + r->stop_string_count, 0);
    sample_request_free(r);
}

static void compute_logprobs_samples_nothing(void **state)
{
    struct err e = {0};
    bool malformed;
    struct sample_request *r =
        decode("{\"num_samples\":1," PROMPT ",\"sampling_params\":{\"max_tokens\":1}}",
               JOB_COMPUTE_LOGPROBS, &malformed, &e);
    assert_non_null(r);
    assert_int_equal(r->num_samples, 0);
    assert_true(r->prompt_logprobs);
    sample_request_free(r);
}

static void a_seed_may_be_any_whole_number(void **state)
{
    struct sample_request *r = good("{" PROMPT ",\"sampling_params\":{\"seed\":-1}}");
    assert_true(r->has_seed && r->seed == UINT64_MAX);
    sample_request_free(r);
}

static void scores_are_read(void **state)
{
    struct sample_request *r = good("{" PROMPT ",\"prompt_logprobs\":true,"
                                    "\"prompt_logprobs_last_n\":2,\"topk_prompt_logprobs\":20,"
                                    "\"topk_sample_logprobs\":3,\"prompt_alt_tokens_k\":64,"
                                    "\"record_stability_info\":true}");
    assert_true(r->prompt_logprobs);
    assert_int_equal(r->prompt_last, 2);
    assert_int_equal(r->topk_prompt, 20);
    assert_int_equal(r->topk_sample, 3);
    assert_int_equal(r->alt_tokens, 64);
    assert_null(r->targets.first);
    sample_request_free(r);
}

static void targets_come_dense_and_sparse(void **state)
{
    struct sample_request *r =
        good("{" PROMPT ",\"target_prompt_logprobs\":{\"data\":[4,-1,5,6],\"dtype\":\"int64\","
             "\"shape\":[2,2],\"sparse_crow_indices\":null,\"sparse_col_indices\":null}}");
    const int dense[] = {0, 2, 4}, sparse[] = {0, 0, 2};
    const int32_t ids[] = {4, -1, 5, 6}, few[] = {8, 9};
    const int64_t columns[] = {0, 150000};
    assert_int_equal(r->targets.columns, 2);
    assert_null(r->targets.column_of);
    assert_memory_equal(r->targets.first, dense, sizeof dense);
    assert_memory_equal(r->targets.ids, ids, sizeof ids);
    sample_request_free(r);
    r = good("{" PROMPT ",\"target_prompt_logprobs\":{\"data\":[8,9],\"dtype\":\"int64\","
             "\"shape\":[2,150001],\"sparse_crow_indices\":[0,0,2],"
             "\"sparse_col_indices\":[0,150000]}}");
    assert_int_equal(r->targets.columns, 150001);
    assert_memory_equal(r->targets.first, sparse, sizeof sparse);
    assert_memory_equal(r->targets.ids, few, sizeof few);
    assert_memory_equal(r->targets.column_of, columns, sizeof columns);
    sample_request_free(r);
}

/* 12 MiB is the most: what could be more is refused before anything is made for it. */
static void an_answer_that_could_be_too_large_is_refused(void **state)
{
    static const struct {
        const char *request;
        int context;
        bool fits;
    } cases[] = {
        {"{" PROMPT ",\"num_samples\":128}", 4096, true},
        {"{" PROMPT ",\"num_samples\":128}", 40960, false}, /* max_tokens: to the context */
        {"{" PROMPT ",\"num_samples\":128,\"sampling_params\":{\"max_tokens\":4096}}", 40960, true},
        {"{" PROMPT ",\"num_samples\":128,\"sampling_params\":{\"max_tokens\":2147483647}}", 300,
         true}, /* the context is less */
        {"{" PROMPT ",\"num_samples\":16,\"topk_sample_logprobs\":20,\"sampling_params\":"
         "{\"max_tokens\":4096}}", 40960, true},
        {"{" PROMPT ",\"num_samples\":32,\"topk_sample_logprobs\":20,\"sampling_params\":"
         "{\"max_tokens\":4096}}", 40960, false},
        {"{" PROMPT ",\"topk_prompt_logprobs\":20}", 4, true},
        {"{" PROMPT "}", 2, true}, /* the engine says that the prompt does not fit */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct sample_request *r = good(cases[i].request);
        int rc = sample_request_fits(r, cases[i].context, &e);
        if ((rc == 0) != cases[i].fits) fail_msg("%s: %s", cases[i].request, e.text);
        if (rc < 0) {
            assert_int_equal(e.kind, ERR_USER);
            assert_non_null(strstr(e.text, "expected at most 12582912"));
        }
        sample_request_free(r);
    }
}

static void what_is_asked_of_a_long_prompt_counts_too(void **state)
{
    size_t room = 1 << 20, at;
    char *text = malloc(room);
    assert_non_null(text);
    at = (size_t)snprintf(text, room,
                          "{\"prompt_alt_tokens_k\":64,\"prompt\":{\"chunks\":[{\"tokens\":[0");
    for (int i = 1; i < 20000; i++)
        at += (size_t)snprintf(text + at, room - at, ",1");
    snprintf(text + at, room - at, "]}]},\"sampling_params\":{\"max_tokens\":1}}");
    struct err e = {0};
    struct sample_request *r = good(text);
    assert_int_equal(sample_request_fits(r, 40960, &e), -1);
    assert_non_null(strstr(e.text, "15359232 for what is asked of the prompt"));
    r->alt_tokens = 50;
    assert_int_equal(sample_request_fits(r, 40960, &e), 0);
    sample_request_free(r);
    free(text);
}

static void wrong_contents_are_named(void **state)
{
#define PARAMS(text) "{" PROMPT ",\"sampling_params\":{" text "}}"
#define REST(text)   "{" PROMPT "," text "}"
#define LAST(n)      REST("\"prompt_logprobs\":true,\"prompt_logprobs_last_n\":" n)
#define TENSOR(data, dtype, shape)                                                                 \
    "\"target_prompt_logprobs\":{\"data\":[" data "],\"dtype\":\"" dtype "\",\"shape\":[" shape "]"
#define TARGETS(data, dtype, shape) REST(TENSOR(data, dtype, shape) "}")
#define SPARSE(data, crow, col)                                                                    \
    REST(TENSOR(data, "int64", "2,9") ",\"sparse_crow_indices\":[" crow                            \
                                      "],\"sparse_col_indices\":[" col "]}")
    static const char *const cases[][2] = {
        {"{\"prompt\":{}}", "prompt: chunks is absent"},
        {"{\"prompt\":{\"chunks\":[]}}", "prompt has 0 tokens"},
        {"{\"prompt\":{\"chunks\":[{\"type\":\"image\",\"data\":\"\"}]}}", "\"image\""},
        {"{\"prompt\":{\"chunks\":[{\"tokens\":[\"a\"]}]}}", "token 0 is a string"},
        {REST("\"num_samples\":0"), "num_samples is 0"},
        {REST("\"num_samples\":129"), "num_samples is 129, expected 1 to 128"},
        {REST("\"num_samples\":1.5"), "num_samples is a number"},
        {REST("\"prompt_logprobs\":1"), "prompt_logprobs is a whole number"},
        {REST("\"sampling_params\":[]"), "sampling_params is a list"},
        {PARAMS("\"max_tokens\":0"), "sampling_params.max_tokens is 0"},
        {PARAMS("\"temperature\":-1"), "sampling_params.temperature is -1"},
        {PARAMS("\"temperature\":\"hot\""), "temperature is a string"},
        {PARAMS("\"top_p\":0"), "sampling_params.top_p is 0"},
        {PARAMS("\"top_p\":1.01"), "sampling_params.top_p is 1.01"},
        {PARAMS("\"top_k\":0"), "sampling_params.top_k is 0"},
        {PARAMS("\"top_k\":-2"), "sampling_params.top_k is -2"},
        {PARAMS("\"seed\":1.5"), "sampling_params.seed is a number"},
        {PARAMS("\"stop\":7"), "stop is a whole number"},
        {PARAMS("\"stop\":\"\""), "0 bytes"},
        {PARAMS("\"stop\":[\"a\",1]"), "stop holds a whole number"},
        {PARAMS("\"stop\":[1,\"a\"]"), "stop holds a string"},
        {PARAMS("\"stop\":[-1]"), "stop holds -1"},
        {PARAMS("\"stop\":[[]]"), "stop holds a list"},
        {REST("\"topk_prompt_logprobs\":21"), "topk_prompt_logprobs is 21, expected 0 to 20"},
        {REST("\"topk_sample_logprobs\":-1"), "topk_sample_logprobs is -1, expected 0 to 20"},
        {REST("\"topk_sample_logprobs\":true"), "topk_sample_logprobs is a boolean"},
        {REST("\"prompt_alt_tokens_k\":65"), "prompt_alt_tokens_k is 65, expected 0 to 64"},
        {REST("\"prompt_logprobs_last_n\":1"), "prompt_logprobs_last_n is given without"},
        {LAST("0"), "prompt_logprobs_last_n is 0, expected 1 to 2"},
        {LAST("3"), "prompt_logprobs_last_n is 3, expected 1 to 2"},
        {LAST("\"1\""), "prompt_logprobs_last_n is a string"},
        {REST("\"record_stability_info\":1"), "record_stability_info is a whole number"},
        {REST("\"target_prompt_logprobs\":[]"), "target_prompt_logprobs is a list"},
        {REST("\"target_prompt_logprobs\":{}"), "target_prompt_logprobs.dtype is missing"},
        {TARGETS("1,2", "float32", "2,1"), "dtype is \"float32\", expected \"int64\""},
        {TARGETS("1,2", "int64", "2"), "shape has 1 dimensions"},
        {TARGETS("1,2", "int64", "2,1,1"), "shape has 3 dimensions"},
        {TARGETS("1,2", "int64", "2,-1"), "shape[1] is -1"},
        {TARGETS("1,2", "int64", "2,0"), "expected [2, K]"},
        {TARGETS("1,2,3", "int64", "3,1"), "begins with 3, expected [2, K]"},
        {TARGETS("1,2,3", "int64", "2,2"), "data has 3 ids, expected 4: 2 rows of 2"},
        {TARGETS("1,2", "int64", "2,2147483647"), "expected 4294967294"},
        {TARGETS("1,2.5", "int64", "2,1"), "data[1] is a number"},
        {TARGETS("1,-2", "int64", "2,1"), "data[1] is -2, expected -1 to"},
        {TARGETS("1,2147483648", "int64", "2,1"), "data[1] is 2147483648"},
        {TARGETS("-1,-1", "int64", "2,1"), "names no token id"},
        {TARGETS("", "int64", "2,1"), "names no token id"},
        {SPARSE("7", "0,0", "5"), "sparse_crow_indices are 2 numbers, expected 3"},
        {SPARSE("7", "1,1,1", "5"), "that rise from 0 to 1"},
        {SPARSE("7", "0,0,0", "5"), "that rise from 0 to 1"},
        {SPARSE("7,8", "0,2,1", "5,6"), "that rise from 0 to 2"},
        {SPARSE("7,8", "0,3,2", "5,6"), "sparse_crow_indices[1] is 3, expected 0 to 2"},
        {SPARSE("7", "0,1,1", "9"), "sparse_col_indices[0] is 9, expected 0 to 8"},
        {SPARSE("7", "0,1,1", "1,2"), "sparse_col_indices are 2, data are 1"},
        {SPARSE("7", "0,1,1", "null"), "sparse_col_indices[0] is null"},
        {REST("\"checkpoint\":7"), "checkpoint is a whole number"},
        {REST("\"checkpoint\":{\"run\":\"r\"}"), "checkpoint.seq is missing"},
        {REST("\"checkpoint\":{\"run\":\"a b\",\"seq\":1}"), "\"a b\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        bool malformed = true;
        assert_null(decode(cases[i][0], JOB_SAMPLE, &malformed, &e));
        if (malformed || e.kind != ERR_USER || !strstr(e.text, cases[i][1]))
            fail_msg("%s: \"%s\" says nothing of \"%s\"", cases[i][0], e.text, cases[i][1]);
    }
}

static void too_many_stops_and_tokens_are_refused(void **state)
{
    struct err e = {0};
    bool malformed;
    size_t room = 1 << 20;
    char *text = malloc(room);
    size_t at = (size_t)snprintf(text, room, "{" PROMPT ",\"sampling_params\":{\"stop\":[0");
    for (int i = 0; i < STOPS_MAX; i++)
        at += (size_t)snprintf(text + at, room - at, ",1");
    snprintf(text + at, room - at, "]}}");
    assert_null(decode(text, JOB_SAMPLE, &malformed, &e));
    assert_non_null(strstr(e.text, "65 entries, expected at most 64"));
    at = (size_t)snprintf(text, room, "{" PROMPT ",\"sampling_params\":{\"stop\":\"");
    memset(text + at, 'x', STOP_BYTES_MAX + 1);
    snprintf(text + at + STOP_BYTES_MAX + 1, 8, "\"}}");
    assert_null(decode(text, JOB_SAMPLE, &malformed, &e));
    assert_non_null(strstr(e.text, "257 bytes"));
    at = (size_t)snprintf(text, room, "{\"prompt\":{\"chunks\":[{\"tokens\":[0");
    for (int i = 0; i < DATUM_TOKENS_MAX; i++)
        at += (size_t)snprintf(text + at, room - at, ",1");
    snprintf(text + at, room - at, "]}]}}");
    assert_null(decode(text, JOB_SAMPLE, &malformed, &e));
    assert_false(malformed);
    assert_non_null(strstr(e.text, "32769 tokens"));
    free(text);
}

static void what_is_no_request_is_told_apart(void **state)
{
    static const char *const bad[] = {
        "", "[]", "{}", "{\"prompt\":7}", "{" PROMPT, "{\"prompt\":{},}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        bool malformed = false;
        assert_null(decode(bad[i], JOB_SAMPLE, &malformed, &e));
        assert_true(malformed);
        assert_int_equal(e.kind, ERR_USER);
    }
}

static void an_error_does_not_quote_the_prompt(void **state)
{
    struct err e = {0};
    bool malformed;
    assert_null(
        decode("{\"prompt\":{\"chunks\":[{\"tokens\":[424242,oops", JOB_SAMPLE, &malformed, &e));
    assert_null(strstr(e.text, "424242"));
    assert_null(strstr(e.text, "oops"));
}

/* ---------------------------------------------------------------- results */

static void the_documented_result_is_written(void **state)
{
    static const unsigned char expected[] = {
        0x0a, 0x16, 0x08, 0x01, 0x12, 0x08, 5,    0,    0,    0,    6,    0,    0, 0, 0x1a, 0x08,
        0,    0,    0,    0xbf, 0,    0,    0x80, 0xbf, 0x0a, 0x0c, 0x12, 0x04, 7, 0, 0,    0,
        0x1a, 0x04, 0,    0,    0,    0xbe, 0x12, 0x08, 0,    0,    0xc0, 0x7f, 0, 0, 0,    0xc0};
    const int32_t t1[] = {5, 6}, t2[] = {7};
    const float l1[] = {-0.5f, -1}, l2[] = {-0.125f}, prompt[] = {NAN, -2};
    const struct sample_sequence sequences[] = {{2, t1, l1, {0}, false}, {1, t2, l2, {0}, true}};
    struct err e = {0};
    size_t size;
    char *bytes = sample_output_encode(&(struct sample_output){.count = 2,
                                                               .sequences = sequences,
                                                               .prompt_logprobs = prompt,
                                                               .prompt_count = 2},
                                       &size, &e);
    assert_non_null(bytes);
    assert_int_equal(size, sizeof expected);
    assert_memory_equal(bytes, expected, sizeof expected);
    free(bytes);
}

static void the_same_in_json_has_null_for_what_was_not_computed(void **state)
{
    const int32_t t1[] = {5, -6};
    const float l1[] = {-0.5f, -1e-8f}, prompt[] = {NAN, -2};
    const struct sample_sequence sequences[] = {{2, t1, l1, {0}, false},
                                                {0, NULL, NULL, {0}, true}};
    struct sample_output out = {.count = 2,
                                .sequences = sequences,
                                .prompt_logprobs = prompt,
                                .prompt_count = 2};
    struct err e = {0};
    size_t size, json_size;
    char *bytes = sample_output_encode(&out, &size, &e);
    char *text = sample_output_to_json(bytes, size, &json_size, &e);
    if (!text) fail_msg("%s", e.text);
    assert_string_equal(
        text, "{\"sequences\":[{\"stop_reason\":\"length\",\"tokens\":[5,-6],\"logprobs\":[-0.5,"
              "-9.99999994e-09]},{\"stop_reason\":\"stop\",\"tokens\":[],\"logprobs\":null}],"
              "\"prompt_logprobs\":[null,-2]}");
    assert_int_equal(json_size, strlen(text));
    free(text);
    free(bytes);
    out.count = 1, out.prompt_logprobs = NULL;
    bytes = sample_output_encode(&out, &size, &e);
    text = sample_output_to_json(bytes, size, &json_size, &e);
    assert_non_null(strstr(text, "\"prompt_logprobs\":null"));
    free(text);
    free(bytes);
    out.count = NUM_SAMPLES_MAX + 1;
    assert_null(sample_output_encode(&out, &size, &e));
    assert_int_equal(e.kind, ERR_BUG);
    assert_null(sample_output_to_json("\x0a\xff", 2, &json_size, &e));
    assert_int_equal(e.kind, ERR_USER);
}

/* A result with everything in it: a prompt of three tokens, one sequence of two. */
static char *full_result(bool sparse, size_t *size)
{
    static const int32_t tokens[] = {5, 6}, top_ids[] = {9, 7, 6, 0};
    static const float logprobs[] = {-0.5f, -1}, top_logprobs[] = {-0.25f, -2, -1, -99999};
    static const int32_t prompt_ids[] = {0, 0, 3, 0, 4, 8}, alt_ids[] = {7, 7, 1, 0};
    static const float prompt_logprobs[] = {-99999, -99999, -0.5f, -99999, -0.125f, -4};
    static const float alt_logprobs[] = {-3, -3, NAN, -2}, target_logprobs[] = {-1, 0, -2, -4};
    static int first[2][3] = {{0, 2, 4}, {0, 1, 4}};
    static int64_t column_of[] = {6, 0, 1, 2};
    const struct sample_sequence sequence = {2, tokens, logprobs, {2, top_ids, top_logprobs}, true};
    const struct sample_targets targets = {.columns = sparse ? 9 : 2,
                                           .first = first[sparse],
                                           .column_of = sparse ? column_of : NULL};
    const struct sample_output out = {.count = 1,
                                      .sequences = &sequence,
                                      .prompt_count = 3,
                                      .prompt_top = {2, prompt_ids, prompt_logprobs},
                                      .alt = {2, alt_ids, alt_logprobs},
                                      .targets = &targets,
                                      .target_logprobs = target_logprobs};
    struct err e = {0};
    char *bytes = sample_output_encode(&out, size, &e);
    if (!bytes) fail_msg("%s", e.text);
    return bytes;
}

#define SCORES                                                                                     \
    "{\"sequences\":[{\"stop_reason\":\"stop\",\"tokens\":[5,6],\"logprobs\":[-0.5,-1],"              \
    "\"topk_logprobs\":[[[9,-0.25],[7,-2]],[[6,-1]]]}],\"prompt_logprobs\":null,"                  \
    "\"topk_prompt_logprobs\":[null,[[3,-0.5]],[[4,-0.125],[8,-4]]],"
#define ALTERNATIVES                                                                               \
    "\"prompt_alt_tokens\":{\"tokens\":{\"data\":[7,7,1,0],\"dtype\":\"int64\",\"shape\":[2,2]},"     \
    "\"logprobs\":{\"data\":[-3,-3,null,-2],\"dtype\":\"float32\",\"shape\":[2,2]}}}"

static void scores_are_written_with_the_layout_that_was_asked_for(void **state)
{
    static const char *const expected[2] = {
        SCORES "\"target_prompt_logprobs\":{\"data\":[-1,0,-2,-4],\"dtype\":\"float32\",\"shape\":"
               "[2,2]}," ALTERNATIVES,
        SCORES "\"target_prompt_logprobs\":{\"data\":[-1,0,-2,-4],\"dtype\":\"float32\",\"shape\":"
               "[2,9],\"sparse_crow_indices\":[0,1,4],\"sparse_col_indices\":[6,0,1,2]}," ALTERNATIVES};
    for (int sparse = 0; sparse < 2; sparse++) {
        struct err e = {0};
        size_t size, json_size;
        char *bytes = full_result(sparse, &size);
        char *text = sample_output_to_json(bytes, size, &json_size, &e);
        if (!text) fail_msg("%s", e.text);
        assert_string_equal(text, expected[sparse]);
        free(text);
        free(bytes);
    }
}

/* The top of one position of k 2, by hand: token_ids, logprobs, k, length. */
static void the_top_of_a_position_is_laid_out_as_documented(void **state)
{
    static const unsigned char expected[] = {0x22, 0x18, 0x0a, 0x08, 9, 0, 0,    0,    0,
                                             0,    0,    0,    0x12, 8, 0, 0,    0x80, 0xbe,
                                             0x80, 0x4f, 0xc3, 0xc7, 0x18, 2, 0x20, 1};
    static const int32_t token = 9, ids[] = {9, 0};
    static const float logprob = -0.25f, logprobs[] = {-0.25f, -99999};
    const struct sample_sequence sequence = {1, &token, &logprob, {2, ids, logprobs}, true};
    const struct sample_output out = {.count = 1, .sequences = &sequence, .prompt_count = 1};
    struct err e = {0};
    size_t size;
    char *bytes = sample_output_encode(&out, &size, &e);
    assert_int_equal(size, 2 + 6 + 6 + sizeof expected);
    assert_memory_equal(bytes + 14, expected, sizeof expected);
    free(bytes);
}

static void damaged_results_are_answered(void **state)
{
    struct err e = {0};
    size_t size, json_size;
    uint32_t random = 99;
    int fine = 0, bad = 0;
    for (int round = 0; round < 60000; round++) {
        char *bytes = full_result(round % 2, &size);
        random = random * 1664525u + 1013904223u;
        bytes[(random >> 8) % size] = (char)(random >> 24);
        size_t cut = round % 5 ? size : (random >> 4) % size;
        e = (struct err){0};
        char *text = sample_output_to_json(bytes, cut, &json_size, &e);
        assert_true(text || e.text[0]);
        if (text) {
            json_t *j = json_loadb(text, json_size, 0, NULL);
            assert_non_null(j);
            json_decref(j);
        }
        *(text ? &fine : &bad) += 1;
        free(text);
        free(bytes);
    }
    assert_true(fine > 1000 && bad > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_of_tinker_is_read),
        cmocka_unit_test(what_is_absent_or_null_has_the_documented_defaults),
        cmocka_unit_test(stops_come_in_four_forms),
        cmocka_unit_test(compute_logprobs_samples_nothing),
        cmocka_unit_test(a_seed_may_be_any_whole_number),
        cmocka_unit_test(scores_are_read),
        cmocka_unit_test(targets_come_dense_and_sparse),
        cmocka_unit_test(an_answer_that_could_be_too_large_is_refused),
        cmocka_unit_test(what_is_asked_of_a_long_prompt_counts_too),
        cmocka_unit_test(wrong_contents_are_named),
        cmocka_unit_test(too_many_stops_and_tokens_are_refused),
        cmocka_unit_test(what_is_no_request_is_told_apart),
        cmocka_unit_test(an_error_does_not_quote_the_prompt),
        cmocka_unit_test(the_documented_result_is_written),
        cmocka_unit_test(the_same_in_json_has_null_for_what_was_not_computed),
        cmocka_unit_test(scores_are_written_with_the_layout_that_was_asked_for),
        cmocka_unit_test(the_top_of_a_position_is_laid_out_as_documented),
        cmocka_unit_test(damaged_results_are_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

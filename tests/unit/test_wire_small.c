/* test_wire_small.c - create, optim_step, save, load, reject; names and URIs of checkpoints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "wire/payload.h"

/* e must be a user's error that holds text. */
static void said(const struct err *e, const char *text)
{
    assert_int_equal(e->kind, ERR_USER);
    if (!strstr(e->text, text)) fail_msg("\"%s\" says nothing of \"%s\"", e->text, text);
}

/* ---------------------------------------------------------------- create */

static void a_creation_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    struct create_request r = {.rank = 8, .train_mlp = true, .has_seed = true, .seed = UINT64_MAX};
    char *text = create_request_encode(&r, &size, &e);
    struct create_request *d = create_request_decode(text, size, &e);
    if (!d) fail_msg("%s", e.text);
    assert_int_equal(d->rank, 8);
    assert_true(d->train_mlp && !d->train_attn && !d->train_unembed);
    assert_true(d->has_seed && d->seed == UINT64_MAX);
    assert_false(d->from_checkpoint);
    free(text);
    free(d);
    r = (struct create_request){.rank = 1,
                                .train_attn = true,
                                .from_checkpoint = true,
                                .with_optimizer = true,
                                .checkpoint = {"s:train:0", 5, "training", "ck1"},
                                .path = "tinker://s:train:0/weights/ck1"};
    text = create_request_encode(&r, &size, &e);
    d = create_request_decode(text, size, &e);
    if (!d) fail_msg("%s", e.text);
    assert_false(d->has_seed);
    assert_true(d->from_checkpoint && d->with_optimizer);
    assert_string_equal(d->checkpoint.run, "s:train:0");
    assert_int_equal(d->checkpoint.seq, 5);
    assert_string_equal(d->checkpoint.kind, "training");
    assert_string_equal(d->checkpoint.name, "ck1");
    assert_string_equal(d->path, r.path);
    free(text);
    free(d);
}

static void a_wrong_creation_is_named(void **state)
{
#define TRAIN "\"train_attn\":true,\"train_mlp\":true,\"train_unembed\":true"
    static const char *const cases[][2] = {
        {"", "not a JSON object"},
        {"{" TRAIN "}", "rank is missing"},
        {"{\"rank\":0," TRAIN "}", "rank is 0, expected 1 to 128"},
        {"{\"rank\":129," TRAIN "}", "rank is 129"},
        {"{\"rank\":\"8\"," TRAIN "}", "rank is a string"},
        {"{\"rank\":8}", "train_attn is missing"},
        {"{\"rank\":8,\"train_attn\":0}", "train_attn is a whole number"},
        {"{\"rank\":8,\"train_attn\":false,\"train_mlp\":false,\"train_unembed\":false}",
         "all false"},
        {"{\"rank\":8," TRAIN ",\"checkpoint\":7}", "checkpoint is a whole number"},
        {"{\"rank\":8," TRAIN ",\"checkpoint\":{\"run\":\"r\",\"seq\":1,\"kind\":\"x\"}}", "\"x\""},
        {"{\"rank\":8," TRAIN ",\"checkpoint\":{\"run\":\"r\",\"seq\":-1,\"kind\":\"training\"}}",
         "checkpoint.name is missing"},
        {"{\"rank\":8," TRAIN
         ",\"checkpoint\":{\"run\":\"r\",\"seq\":1,\"kind\":\"training\",\"name\":\"../x\"}}",
         "../x"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        assert_null(create_request_decode(cases[i][0], strlen(cases[i][0]), &e));
        said(&e, cases[i][1]);
    }
}

/* ---------------------------------------------------------------- optim_step */

static int optim(const char *text, struct optim_request *out, struct err *e)
{
    return optim_request_decode(text, strlen(text), out, e);
}

static void adam_has_the_documented_defaults(void **state)
{
    struct err e = {0};
    struct optim_request r;
    assert_int_equal(optim("{\"adam_params\":{}}", &r, &e), 0);
    assert_true(r.learning_rate == 1e-4 && r.beta1 == 0.9 && r.beta2 == 0.95 && r.eps == 1e-12);
    assert_true(r.weight_decay == 0 && r.grad_clip_norm == 0);
    assert_int_equal(optim("{\"adam_params\":{\"learning_rate\":1,\"beta1\":0,\"beta2\":0.5,"
                           "\"eps\":0.25,\"weight_decay\":0.1,\"grad_clip_norm\":2},\"seq_id\":2}",
                           &r, &e),
                     0);
    assert_true(r.learning_rate == 1 && r.beta1 == 0 && r.beta2 == 0.5 && r.eps == 0.25);
    assert_true(r.weight_decay == 0.1 && r.grad_clip_norm == 2);
}

static void a_wrong_step_is_named(void **state)
{
    static const char *const cases[][2] = {
        {"{}", "adam_params is absent"},
        {"{\"adam_params\":null}", "adam_params is null"},
        {"{\"optimizer_params\":{\"type\":\"dimuon\"}}", "\"dimuon\" is not offered"},
        {"{\"adam_params\":{\"learning_rate\":-1}}", "learning_rate is -1"},
        {"{\"adam_params\":{\"learning_rate\":\"x\"}}", "learning_rate is a string"},
        {"{\"adam_params\":{\"beta1\":1}}", "beta1 is 1, expected from 0 up to below 1"},
        {"{\"adam_params\":{\"beta2\":1.5}}", "beta2 is 1.5"},
        {"{\"adam_params\":{\"eps\":-1e-9}}", "eps is -1e-09"},
        {"{\"adam_params\":{\"weight_decay\":-0.1}}", "weight_decay is -0.1"},
        {"{\"adam_params\":{\"grad_clip_norm\":-1}}", "grad_clip_norm is -1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct optim_request r;
        assert_int_equal(optim(cases[i][0], &r, &e), -1);
        said(&e, cases[i][1]);
    }
}

/* ---------------------------------------------------------------- save and load */

static void a_save_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    char metadata[] = "{\"who\":\"me\"}";
    struct save_request d, r = {.name = "ck-1",
                                .overwrite = true,
                                .ttl_seconds = 3600,
                                .path = "tinker://r/weights/ck-1",
                                .metadata = metadata};
    char *text = save_request_encode(&r, &size, &e);
    assert_int_equal(save_request_decode(text, size, &d, &e), 0);
    assert_string_equal(d.name, "ck-1");
    assert_string_equal(d.sampler, "");
    assert_true(d.overwrite);
    assert_int_equal(d.ttl_seconds, 3600);
    assert_string_equal(d.path, r.path);
    assert_string_equal(d.metadata, metadata);
    save_request_clear(&d);
    assert_null(d.metadata);
    free(text);
    r = (struct save_request){.name = "ck-1", .external = true};
    text = save_request_encode(&r, &size, &e);
    assert_int_equal(save_request_decode(text, size, &d, &e), 0);
    assert_true(d.external);
    save_request_clear(&d);
    free(text);
    r = (struct save_request){.sampler = "s:sample:3"};
    text = save_request_encode(&r, &size, &e);
    assert_int_equal(save_request_decode(text, size, &d, &e), 0);
    assert_string_equal(d.sampler, "s:sample:3");
    assert_string_equal(d.name, "");
    assert_false(d.overwrite);
    assert_null(d.metadata);
    free(text);
    r.metadata = (char *)"not json";
    assert_null(save_request_encode(&r, &size, &e));
    said(&e, "user_metadata");
}

static void a_wrong_save_is_named(void **state)
{
    static const char *const cases[][2] = {
        {"{}", "either a name or a sampler"},
        {"{\"name\":\"a\",\"sampler\":\"b\"}", "either a name or a sampler"},
        {"{\"name\":\"-a\"}", "\"-a\""},
        {"{\"name\":7}", "name is a whole number"},
        {"{\"sampler\":\"a b\"}", "\"a b\""},
        {"{\"name\":\"a\",\"ttl_seconds\":-1}", "ttl_seconds is -1"},
        {"{\"name\":\"a\",\"user_metadata\":[]}", "user_metadata is a list"},
        {"{\"name\":\"a\",\"overwrite\":\"yes\"}", "overwrite is a string"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct save_request r;
        assert_int_equal(save_request_decode(cases[i][0], strlen(cases[i][0]), &r, &e), -1);
        said(&e, cases[i][1]);
        save_request_clear(&r);
    }
}

static void a_load_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    struct load_request d, r = {.checkpoint = {"s:train:0", -1, "training", "ck1"},
                                .with_optimizer = true,
                                .path = "tinker://s:train:0/weights/ck1"};
    char *text = load_request_encode(&r, &size, &e);
    assert_int_equal(load_request_decode(text, size, &d, &e), 0);
    assert_string_equal(d.checkpoint.run, "s:train:0");
    assert_int_equal(d.checkpoint.seq, -1);
    assert_string_equal(d.checkpoint.name, "ck1");
    assert_true(d.with_optimizer);
    assert_string_equal(d.path, r.path);
    free(text);
    static const char no_optimizer[] =
        "{\"checkpoint\":{\"run\":\"r\",\"seq\":2,\"kind\":\"training\"}}";
    assert_int_equal(load_request_decode(no_optimizer, strlen(no_optimizer), &d, &e), -1);
    said(&e, "optimizer is missing");
    assert_int_equal(load_request_decode("{}", 2, &d, &e), -1);
    said(&e, "checkpoint is absent");
}

static void a_rejection_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    char *text, *json = reject_encode("rank is \"9\"", &size, &e);
    assert_int_equal(reject_decode(json, size, &text, &e), 0);
    assert_string_equal(text, "rank is \"9\"");
    free(text);
    free(json);
    json = reject_encode("\xff", &size, &e); /* not UTF-8: still an answer */
    assert_int_equal(reject_decode(json, size, &text, &e), 0);
    free(text);
    free(json);
    assert_int_equal(reject_decode("{}", 2, &text, &e), -1);
    said(&e, "error is absent");
    assert_null(text);
}

/* ---------------------------------------------------------------- names and URIs */

static void names_hold_only_what_a_file_name_may(void **state)
{
    static const char *const good[] = {"a", "ck1", "A.b_c-9", "0", "_"};
    static const char *const bad[] = {"",    ".",   "..", ".a",  "-a",   "a/b",
                                      "a b", "a\\", "\n", "a:b", "\xc3", "a%2e"};
    char longest[130];
    struct err e = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(checkpoint_name_check(good[i], &e), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(checkpoint_name_check(bad[i], &e), -1);
        said(&e, "checkpoint name");
    }
    memset(longest, 'x', sizeof longest);
    longest[128] = '\0';
    assert_int_equal(checkpoint_name_check(longest, &e), 0);
    longest[128] = 'x';
    longest[129] = '\0';
    assert_int_equal(checkpoint_name_check(longest, &e), -1);
}

static void a_uri_comes_back(void **state)
{
    static const struct {
        enum uri_scheme scheme;
        const char *uri, *kind;
    } uris[] = {{URI_TINKER, "tinker://s:train:0/weights/ck1", "training"},
                {URI_TINKER, "tinker://s:train:0/sampler_weights/x.y", "sampler"},
                {URI_TINKER, "tinker://s:train:0/external_weights/e", "external"},
                {URI_HPCAI, "hpcai://s:train:0/training/weights/ck1", "training"},
                {URI_HPCAI, "hpcai://s:train:0/sampler/sampler_weights/s1", "sampler"}};
    struct err e = {0};
    struct checkpoint_ref ref;
    char text[ID_SIZE + 200];
    for (size_t i = 0; i < sizeof uris / sizeof *uris; i++) {
        assert_int_equal(checkpoint_uri_parse(uris[i].uri, &ref, &e), 0);
        assert_string_equal(ref.run, "s:train:0");
        assert_int_equal(ref.seq, -1);
        assert_string_equal(ref.kind, uris[i].kind);
        assert_int_equal(checkpoint_uri_make(text, sizeof text, uris[i].scheme, &ref, &e), 0);
        assert_string_equal(text, uris[i].uri);
        assert_int_equal(checkpoint_uri_make(text, 20, uris[i].scheme, &ref, &e), -1);
    }
}

static void the_plain_form_of_hpcai_is_read_too(void **state)
{
    struct err e = {0};
    struct checkpoint_ref ref;
    assert_int_equal(checkpoint_uri_parse("hpcai://run1/training/ck1", &ref, &e), 0);
    assert_string_equal(ref.kind, "training");
    assert_string_equal(ref.run, "run1");
    assert_int_equal(checkpoint_uri_parse("hpcai://run1/sampler/s1", &ref, &e), 0);
    assert_string_equal(ref.kind, "sampler");
    assert_string_equal(ref.name, "s1");
    assert_int_equal(checkpoint_uri_parse("hpcai://run1/training/weights", &ref, &e), 0);
    assert_string_equal(ref.name, "weights"); /* a name like any other */
    ref = (struct checkpoint_ref){.run = "r", .kind = "external", .name = "n"};
    char text[ID_SIZE + 200];
    assert_int_equal(checkpoint_uri_make(text, sizeof text, URI_HPCAI, &ref, &e), -1);
}

static void what_is_no_uri_is_named(void **state)
{
    static const char *const bad[] = {"",
                                      "ck1",
                                      "file:///etc/passwd",
                                      "tinker://",
                                      "tinker://r",
                                      "tinker://r/weights",
                                      "tinker://r/weights/",
                                      "tinker:///weights/a",
                                      "tinker://r/training/a",
                                      "hpcai://r/weights/a",
                                      "hpcai://r/training/sampler_weights/a",
                                      "hpcai://r/external/external_weights/a",
                                      "tinker://r/weights/../a",
                                      "tinker://r/weights/a/b",
                                      "tinker://a b/weights/a",
                                      "TINKER://r/weights/a"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        struct checkpoint_ref ref;
        assert_int_equal(checkpoint_uri_parse(bad[i], &ref, &e), -1);
        said(&e, "checkpoint");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_creation_comes_back),
        cmocka_unit_test(a_wrong_creation_is_named),
        cmocka_unit_test(adam_has_the_documented_defaults),
        cmocka_unit_test(a_wrong_step_is_named),
        cmocka_unit_test(a_save_comes_back),
        cmocka_unit_test(a_wrong_save_is_named),
        cmocka_unit_test(a_load_comes_back),
        cmocka_unit_test(a_rejection_comes_back),
        cmocka_unit_test(names_hold_only_what_a_file_name_may),
        cmocka_unit_test(a_uri_comes_back),
        cmocka_unit_test(the_plain_form_of_hpcai_is_read_too),
        cmocka_unit_test(what_is_no_uri_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

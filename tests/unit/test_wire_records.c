/* test_wire_records.c - jobs, results, barriers and plans: as headers and value, and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "wire/batch.h"
#include "wire/result.h"

#define MODEL "Qwen/Qwen3-4B"
#define RUN "sabc:train:0"
#define ID  RUN ":forward_backward:4:0123456789abcdef"

static struct job *make_job(void)
{
    struct err e = {0};
    struct job *j =
        job_create(ID, JOB_FORWARD_BACKWARD, "acc1", RUN, 4, CONTENT_PROTOBUF, "a\0b", 3, &e);
    assert_non_null(j);
    j->tokens = 99;
    return j;
}

static void a_job_comes_back_from_its_record(void **state)
{
    struct err e = {0};
    struct job_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    struct job *j = make_job();
    int n = job_headers(j, &scratch, h);
    struct job *d = job_decode(h, n, j->payload, j->size, STREAM_TRAIN, &e);
    assert_non_null(d);
    assert_string_equal(d->id, ID);
    assert_int_equal(d->kind, JOB_FORWARD_BACKWARD);
    assert_string_equal(d->tenant, "acc1");
    assert_string_equal(d->parent, RUN);
    assert_int_equal(d->seq, 4);
    assert_int_equal(d->tokens, 99);
    assert_string_equal(d->source, "gateway");
    assert_int_equal(d->content, CONTENT_PROTOBUF);
    assert_int_equal(d->size, 3);
    assert_memory_equal(d->payload, "a\0b", 4);
    assert_int_equal(d->partition, -1);
    assert_int_equal(d->offset, -1);
    job_free(d);
    job_free(j);
}

/* Replaces (or with value NULL removes) one header, decodes, and expects an error that names all of
 * `texts`. */
/* What a later version wrote must not be skipped. */
static bool is_newer(const char *name, const char *value)
{
    return value && !strcmp(name, "ce_specversion");
}

static void job_fails_with(const char *name, const char *value, enum stream stream,
                           const char *text)
{
    struct err e = {0};
    struct job_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    struct job *j = make_job();
    int n = job_headers(j, &scratch, h), kept = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(h[i].name, name))
            h[kept++] = h[i];
        else if (value)
            h[kept++] = (struct header){name, value};
    }
    assert_null(job_decode(h, kept, j->payload, j->size, stream, &e));
    assert_int_equal(e.kind, is_newer(name, value) ? ERR_LOST : ERR_USER);
    if (!strstr(e.text, text)) fail_msg("\"%s\" says nothing of \"%s\"", e.text, text);
    job_free(j);
}

static void a_job_without_one_of_its_headers_is_named(void **state)
{
    static const char *const names[] = {"ce_specversion", "ce_id",     "ce_type", "ce_source",
                                        "content-type",   "tw_tenant", "tw_run",  "tw_seq",
                                        "tw_tokens",      "tw_digest"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        job_fails_with(names[i], NULL, STREAM_TRAIN, names[i]);
}

static void a_job_with_a_bad_header_is_named_with_its_value(void **state)
{
    job_fails_with("ce_specversion", "2.0", STREAM_TRAIN, "\"2.0\"");
    job_fails_with("ce_type", "tinworks.job.dance", STREAM_TRAIN, "tinworks.job.dance");
    job_fails_with("ce_type", "tinworks.result.sample", STREAM_TRAIN, "tinworks.result.sample");
    job_fails_with("ce_type", "tinworks.job.sample", STREAM_TRAIN, "train topic");
    job_fails_with("ce_type", "tinworks.job.create", STREAM_SAMPLE, "sample topic");
    job_fails_with("ce_type", "tinworks.job.save", STREAM_TRAIN, "content-type"); /* JSON only */
    job_fails_with("content-type", "text/html", STREAM_TRAIN, "text/html");
    job_fails_with("tw_seq", "-1", STREAM_TRAIN, "\"-1\"");
    job_fails_with("tw_seq", "4x", STREAM_TRAIN, "\"4x\"");
    job_fails_with("tw_seq", "04", STREAM_TRAIN, "\"04\"");
    job_fails_with("tw_seq", "", STREAM_TRAIN, "tw_seq");
    job_fails_with("tw_tokens", "9223372036854775808", STREAM_TRAIN, "9223372036854775808");
    job_fails_with("tw_tenant", "a b", STREAM_TRAIN, "\"a b\"");
    job_fails_with("tw_run", "a|b", STREAM_TRAIN, "\"a|b\"");
    job_fails_with("ce_id", "", STREAM_TRAIN, "ce_id");
    job_fails_with("tw_digest", "00", STREAM_TRAIN, "\"00\"");
    char longest[ID_SIZE + 1];
    memset(longest, 'x', ID_SIZE);
    longest[ID_SIZE] = '\0';
    job_fails_with("ce_id", longest, STREAM_TRAIN, "ce_id");
    job_fails_with("ce_source", longest, STREAM_TRAIN, "ce_source");
}

static void a_job_whose_value_was_changed_or_whose_header_is_double_is_refused(void **state)
{
    struct err e = {0};
    struct job_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    struct job *j = make_job();
    int n = job_headers(j, &scratch, h);
    assert_null(job_decode(h, n, "a\0c", 3, STREAM_TRAIN, &e));
    assert_non_null(strstr(e.text, "tw_digest"));
    assert_null(job_decode(h, n, "", 0, STREAM_TRAIN, &e));
    h[n] = h[1];
    assert_null(job_decode(h, n + 1, j->payload, j->size, STREAM_TRAIN, &e));
    assert_non_null(strstr(e.text, "twice"));
    job_free(j);
}

static void a_job_out_of_bounds_is_not_made(void **state)
{
    struct err e = {0};
    assert_null(job_create(ID, JOB_SAVE, "acc", RUN, -1, CONTENT_JSON, "", 0, &e));
    assert_null(job_create("", JOB_SAVE, "acc", RUN, 1, CONTENT_JSON, "", 0, &e));
    assert_null(job_create(ID, JOB_SAVE, "", RUN, 1, CONTENT_JSON, "", 0, &e));
    assert_null(job_create(ID, JOB_KIND_UNKNOWN, "acc", RUN, 1, CONTENT_JSON, "", 0, &e));
    assert_null(job_create(ID, JOB_SAVE, "acc", RUN, 1, CONTENT_JSON, "", JOB_PAYLOAD_MAX + 1, &e));
    assert_int_equal(e.kind, ERR_USER);
}

/* ---------------------------------------------------------------- results */

static struct result *make_result(void)
{
    struct err e = {0};
    struct job *j = make_job();
    struct result *r = result_create(j, MODEL, 7, &e);
    assert_non_null(r);
    job_free(j);
    return r;
}

static struct result *through(const struct result *r)
{
    struct err e = {0};
    struct result_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    int n = result_headers(r, &scratch, h);
    struct result *d = result_decode(h, n, r->payload, r->size, MODEL, STREAM_TRAIN, &e);
    if (!d) fail_msg("%s", e.text);
    assert_string_equal(d->digest, r->digest);
    assert_int_equal(d->epoch, r->epoch);
    return d;
}

static void a_good_result_comes_back_with_its_usage(void **state)
{
    struct result *r = make_result();
    result_set_ok(r, CONTENT_PROTOBUF, strdup("bytes"), 5, (struct usage){1, 2, 3});
    struct result *d = through(r);
    assert_false(d->barrier);
    assert_string_equal(d->job_id, ID);
    assert_int_equal(d->kind, JOB_FORWARD_BACKWARD);
    assert_string_equal(d->tenant, "acc1");
    assert_string_equal(d->parent, RUN);
    assert_string_equal(d->model, MODEL);
    assert_int_equal(d->seq, 4);
    assert_int_equal(d->status, RESULT_OK);
    assert_int_equal(d->usage.prefill, 1);
    assert_int_equal(d->usage.sample, 2);
    assert_int_equal(d->usage.train, 3);
    assert_int_equal(d->content, CONTENT_PROTOBUF);
    assert_string_equal(d->payload, "bytes");
    result_free(d);
    result_free(r);
}

static void a_failed_result_bills_nothing_and_says_why(void **state)
{
    struct err e = {0};
    struct result *r = make_result();
    result_set_ok(r, CONTENT_PROTOBUF, strdup("bytes"), 5, (struct usage){1, 2, 3});
    assert_int_equal(result_set_failed(r, "user", "rank \"5\" \xc3\xa4", &e), 0);
    struct result *d = through(r);
    assert_int_equal(d->status, RESULT_FAILED);
    assert_int_equal(d->content, CONTENT_JSON);
    assert_int_equal(d->usage.prefill + d->usage.sample + d->usage.train, 0);
    assert_non_null(strstr(d->payload, "rank \\\"5\\\""));
    assert_non_null(strstr(d->payload, "\"category\":\"user\""));
    assert_false(result_gave_up(d));
    result_free(d);
    assert_int_equal(result_set_failed(r, "server", "\xff\xfe", &e), 0); /* not UTF-8 */
    d = through(r);
    assert_non_null(strstr(d->payload, "not UTF-8"));
    assert_true(result_gave_up(d));
    result_free(d);
    assert_int_equal(result_set_cancelled(r, "cancelled by its client", &e), 0);
    d = through(r);
    assert_int_equal(d->status, RESULT_CANCELLED);
    result_free(d);
    result_free(r);
}

static void a_barrier_carries_its_owner_and_an_epoch(void **state)
{
    struct err e = {0};
    struct result *r = result_create_barrier(9, "w-1", "build-2", "cpu-avx2", &e);
    assert_non_null(r);
    struct result *d = through(r);
    assert_true(d->barrier);
    assert_int_equal(d->epoch, 9);
    assert_string_equal(d->owner, "w-1");
    assert_string_equal(d->build, "build-2");
    assert_string_equal(d->numerics, "cpu-avx2");
    result_free(d);
    result_free(r);
    assert_null(result_create_barrier(9, "", "b", "n", &e));
}

static void result_fails_with(const char *name, const char *value, const char *text)
{
    struct err e = {0};
    struct result_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    struct result *r = make_result();
    result_set_ok(r, CONTENT_PROTOBUF, strdup("bytes"), 5, (struct usage){1, 2, 3});
    int n = result_headers(r, &scratch, h), kept = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(h[i].name, name))
            h[kept++] = h[i];
        else if (value)
            h[kept++] = (struct header){name, value};
    }
    assert_null(result_decode(h, kept, r->payload, r->size, MODEL, STREAM_TRAIN, &e));
    assert_int_equal(e.kind, is_newer(name, value) ? ERR_LOST : ERR_USER);
    if (!strstr(e.text, text)) fail_msg("\"%s\" says nothing of \"%s\"", e.text, text);
    result_free(r);
}

static void a_result_with_a_bad_header_is_refused(void **state)
{
    static const char *const names[] = {"ce_specversion", "ce_id",       "ce_type",   "tw_tenant",
                                        "tw_run",         "tw_seq",      "tw_epoch",  "tw_status",
                                        "tw_model",       "tw_prefill",  "tw_sample", "tw_train",
                                        "tw_digest",      "content-type"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        result_fails_with(names[i], NULL, names[i]);
    result_fails_with("ce_specversion", "2.0", "\"2.0\"");
    result_fails_with("tw_model", "other/model", "\"other/model\"");
    result_fails_with("ce_type", "tinworks.result.sample", "train stream");
    result_fails_with("ce_type", "tinworks.result.expire", "train stream");
    result_fails_with("tw_train", "2147483648", "2147483647");
    result_fails_with("tw_status", "fine", "\"fine\"");
    result_fails_with("tw_epoch", "x", "\"x\"");
    result_fails_with("tw_train", "-5", "\"-5\"");
    result_fails_with("ce_type", "tinworks.job.sample", "tinworks.job.sample");
    result_fails_with("tw_digest", "abc", "abc");
    result_fails_with("tw_status", "failed", "content-type");    /* a failure is JSON */
    result_fails_with("ce_type", "tinworks.barrier", "barrier"); /* with a value */
}

static void a_failed_result_that_bills_is_refused(void **state)
{
    struct err e = {0};
    struct result_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    struct result *r = make_result();
    assert_int_equal(result_set_failed(r, "user", "no", &e), 0);
    r->usage.sample = 1;
    int n = result_headers(r, &scratch, h);
    assert_null(result_decode(h, n, r->payload, r->size, MODEL, STREAM_TRAIN, &e));
    assert_non_null(strstr(e.text, "bills"));
    result_free(r);
}

static void reading_skips_what_is_below_the_highest_epoch(void **state)
{
    static const struct {
        int64_t epoch;
        bool counts;
    } steps[] = {{3, true}, {3, true}, {2, false}, {5, true}, {3, false}, {4, false}, {5, true}};
    struct reading rd = {.max_epoch = 1};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct result r = {.epoch = steps[i].epoch};
        assert_int_equal(reading_accepts(&rd, &r), steps[i].counts);
    }
    assert_int_equal(rd.max_epoch, 5);
    assert_int_equal(rd.fenced, 3);
}

/* ---------------------------------------------------------------- plans */

static void a_plan_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    struct batch *b = batch_create(42, 2, &e);
    b->entries[0] = (struct batch_entry){STREAM_TRAIN, 3, 17, 96, "job-1", RUN};
    b->entries[1] = (struct batch_entry){STREAM_SAMPLE, 0, INT64_MAX, 0, "job-2", "s:sample:0"};
    char *text = batch_encode(b, &size, &e);
    assert_non_null(text);
    assert_int_equal(size, strlen(text));
    struct batch *d = batch_decode(text, size, &e);
    assert_non_null(d);
    assert_int_equal(d->plan, 42);
    assert_int_equal(d->count, 2);
    assert_int_equal(d->entries[0].stream, STREAM_TRAIN);
    assert_int_equal(d->entries[0].partition, 3);
    assert_int_equal(d->entries[0].offset, 17);
    assert_int_equal(d->entries[0].tokens, 96);
    assert_string_equal(d->entries[0].run, RUN);
    assert_int_equal(d->entries[1].stream, STREAM_SAMPLE);
    assert_true(d->entries[1].offset == INT64_MAX);
    assert_string_equal(d->entries[1].job_id, "job-2");
    free(text);
    batch_free(d);
    batch_free(b);
}

static void the_biggest_plan_comes_back(void **state)
{
    struct err e = {0};
    size_t size;
    struct batch *b = batch_create(1, BATCH_JOBS_MAX, &e);
    for (int i = 0; i < b->count; i++) {
        memset(b->entries[i].job_id, 'j', ID_SIZE - 1);
        memset(b->entries[i].run, 'r', ID_SIZE - 1);
        b->entries[i].offset = b->entries[i].tokens = INT64_MAX;
        b->entries[i].partition = INT32_MAX;
    }
    char *text = batch_encode(b, &size, &e);
    struct batch *d = batch_decode(text, size, &e);
    if (!d) fail_msg("%s", e.text);
    assert_int_equal(d->count, BATCH_JOBS_MAX);
    free(text);
    batch_free(d);
    batch_free(b);
    assert_null(batch_create(1, BATCH_JOBS_MAX + 1, &e));
}

static void a_plan_that_is_none_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"plan\":1}",
        "{\"plan\":-1,\"jobs\":[]}",
        "{\"plan\":1,\"jobs\":{}}",
        "{\"plan\":1,\"jobs\":[1]}",
        "{\"plan\":1,\"jobs\":[{\"stream\":\"x\",\"partition\":0,\"offset\":1,\"tokens\":1,"
        "\"job_id\":\"a\",\"run\":\"b\"}]}",
        "{\"plan\":1,\"jobs\":[{\"stream\":\"train\",\"partition\":-1,\"offset\":1,\"tokens\":1,"
        "\"job_id\":\"a\",\"run\":\"b\"}]}",
        "{\"plan\":1,\"plan\":2,\"jobs\":[]}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        assert_null(batch_decode(bad[i], strlen(bad[i]), &e));
        assert_int_equal(e.kind, ERR_USER);
        assert_true(e.text[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_comes_back_from_its_record),
        cmocka_unit_test(a_job_without_one_of_its_headers_is_named),
        cmocka_unit_test(a_job_with_a_bad_header_is_named_with_its_value),
        cmocka_unit_test(a_job_whose_value_was_changed_or_whose_header_is_double_is_refused),
        cmocka_unit_test(a_job_out_of_bounds_is_not_made),
        cmocka_unit_test(a_good_result_comes_back_with_its_usage),
        cmocka_unit_test(a_failed_result_bills_nothing_and_says_why),
        cmocka_unit_test(a_barrier_carries_its_owner_and_an_epoch),
        cmocka_unit_test(a_result_with_a_bad_header_is_refused),
        cmocka_unit_test(a_failed_result_that_bills_is_refused),
        cmocka_unit_test(reading_skips_what_is_below_the_highest_epoch),
        cmocka_unit_test(a_plan_comes_back),
        cmocka_unit_test(the_biggest_plan_comes_back),
        cmocka_unit_test(a_plan_that_is_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_wire_ids.c - names of runs, jobs, topics; kinds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <unistd.h>
#include "wire/ids.h"

static const struct secret secret = {{1, 2, 3, 4, 5}};
static const struct secret other_secret = {{9}};
#define RUN "sabc:train:0"

static void every_kind_has_a_name_and_a_stream(void **state)
{
    for (int i = 0; i < JOB_KIND_COUNT; i++)
        assert_int_equal(job_kind_of(job_kind_name((enum job_kind)i)), i);
    assert_int_equal(job_kind_of("nonsense"), JOB_KIND_UNKNOWN);
    assert_int_equal(job_kind_of(""), JOB_KIND_UNKNOWN);
    assert_true(job_kind_is_train(JOB_CREATE));
    assert_true(job_kind_is_train(JOB_EXPIRE));
    assert_false(job_kind_is_train(JOB_SAMPLE));
    assert_false(job_kind_is_train(JOB_CANCEL));
}

static void sessions_are_27_characters_and_differ(void **state)
{
    char a[ID_SIZE], b[ID_SIZE];
    session_id_make(a);
    session_id_make(b);
    assert_int_equal(strlen(a), 27);
    assert_int_equal(a[0], 's');
    assert_string_not_equal(a, b);
    assert_null(strchr(a, ':'));
}

static void runs_and_samplers_are_named_after_their_session(void **state)
{
    struct err e = {0};
    char id[ID_SIZE], longest[ID_SIZE];
    assert_int_equal(run_id_make(id, "sabc", 7, &e), 0);
    assert_string_equal(id, "sabc:train:7");
    assert_int_equal(sampler_id_make(id, "sabc", 0, &e), 0);
    assert_string_equal(id, "sabc:sample:0");
    assert_int_equal(run_id_make(id, "sabc", -1, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    static const char *const bad[] = {"", "a:b", "a b", "a|b", "a/b", "a\nb"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(run_id_make(id, bad[i], 0, &e), -1);
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(run_id_make(id, longest, 0, &e), -1);
}

static void a_job_id_comes_back_in_its_parts(void **state)
{
    struct err e = {0};
    struct job_id_parts parts;
    char id[ID_SIZE];
    for (int k = 0; k < JOB_KIND_COUNT; k++) {
        assert_int_equal(job_id_make(id, &secret, "acc1", RUN, (enum job_kind)k, 12, &e), 0);
        assert_int_equal(job_id_check(id, &secret, "acc1", &parts, &e), 0);
        assert_string_equal(parts.parent, RUN);
        assert_int_equal(parts.kind, k);
        assert_int_equal(parts.seq, 12);
    }
    assert_int_equal(strncmp(id, RUN ":cancel:12:", strlen(RUN ":cancel:12:")), 0);
    assert_int_equal(strlen(strrchr(id, ':') + 1), 16);
}

static void unknown(const char *id, const struct secret *s, const char *tenant)
{
    struct err e = {0};
    struct job_id_parts parts;
    assert_int_equal(job_id_check(id, s, tenant, &parts, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_string_equal(e.text, "unknown request id"); /* no reason: one answer for all */
}

static void a_job_id_of_somebody_else_is_as_wrong_as_an_invented_one(void **state)
{
    struct err e = {0};
    char id[ID_SIZE], changed[2 * ID_SIZE];
    assert_int_equal(job_id_make(id, &secret, "acc1", RUN, JOB_SAMPLE, 3, &e), 0);
    unknown(id, &secret, "acc2");
    unknown(id, &other_secret, "acc1");
    unknown(id, &secret, "");
    for (size_t i = 0; id[i]; i++) { /* no character is free */
        strcpy(changed, id);
        changed[i] ^= 1;
        unknown(changed, &secret, "acc1");
    }
    static const char *const bad[] = {
        "", ":", ":::", "a:b:c:d", RUN ":sample:3:", RUN ":sample:03:0123456789abcdef"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        unknown(bad[i], &secret, "acc1");
    memset(changed, 'a', sizeof changed - 1);
    changed[sizeof changed - 1] = '\0';
    unknown(changed, &secret, "acc1");
}

static void a_tenant_with_a_bar_cannot_share_a_tag(void **state)
{
    struct err e = {0};
    char id[ID_SIZE];
    assert_int_equal(job_id_make(id, &secret, "a|b", RUN, JOB_SAMPLE, 3, &e), -1);
    assert_int_equal(job_id_make(id, &secret, "a", "b|" RUN, JOB_SAMPLE, 3, &e), -1);
    assert_int_equal(job_id_make(id, &secret, "a", RUN, JOB_SAMPLE, -3, &e), -1);
    assert_int_equal(job_id_make(id, &secret, "a", RUN, JOB_KIND_UNKNOWN, 3, &e), -1);
}

static void every_job_of_the_longest_run_fits(void **state)
{
    struct err e = {0};
    struct job_id_parts parts;
    char session[ID_SIZE], run[ID_SIZE], id[ID_SIZE];
    int n = 1;
    for (; n < ID_SIZE; n++) {
        memset(session, 's', (size_t)n);
        session[n] = '\0';
        if (run_id_make(run, session, INT64_MAX, &e) < 0) break;
        assert_int_equal(job_id_make(id, &secret, "acc", run, JOB_COMPUTE_LOGPROBS, INT64_MAX, &e),
                         0);
        assert_int_equal(job_id_check(id, &secret, "acc", &parts, &e), 0);
        assert_true(parts.seq == INT64_MAX);
    }
    assert_true(n > 27 && n < ID_SIZE);
}

static void partitions_and_seeds_are_stable(void **state)
{
    /* First 8 bytes of SHA-256("abc"): ba7816bf8f01cfea. */
    assert_true(seed_of("abc") == 0xba7816bf8f01cfeaULL);
    assert_int_equal(partition_of("abc", 1), 0);
    assert_int_equal(partition_of("abc", 1000), (int)(0xba7816bf8f01cfeaULL % 1000));
}

static void topics_are_named_after_model_and_stream(void **state)
{
    struct err e = {0};
    char topic[TOPIC_SIZE], small[4], model[400];
    assert_int_equal(topic_jobs(topic, "tw.", "Qwen/Qwen3-4B", STREAM_TRAIN, &e), 0);
    assert_string_equal(topic, "tw.Qwen--Qwen3-4B.train.jobs");
    assert_int_equal(topic_results(topic, "tw.", "m", STREAM_SAMPLE, &e), 0);
    assert_string_equal(topic, "tw.m.sample.results");
    assert_int_equal(topic_batches(topic, "tw.", "m", &e), 0);
    assert_string_equal(topic, "tw.m.batches");
    assert_int_equal(topic_dlq(topic, "tw.", &e), 0);
    assert_string_equal(topic, "tw.dlq");
    assert_int_equal(topic_jobs(topic, "", "a b", STREAM_TRAIN, &e), -1);
    assert_int_equal(topic_jobs(topic, "", "", STREAM_TRAIN, &e), -1);
    assert_int_equal(model_slug(small, sizeof small, "abcd", &e), -1);
    assert_int_equal(model_slug(small, sizeof small, "a/", &e), 0);
    assert_string_equal(small, "a--");
    memset(model, 'm', sizeof model - 1);
    model[sizeof model - 1] = '\0';
    assert_int_equal(topic_jobs(topic, "tw.", model, STREAM_TRAIN, &e), -1);
}

static int read_text(const char *text, struct secret *s, struct err *e)
{
    char path[] = "secret-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    int result = secret_read(s, path, e);
    unlink(path);
    return result;
}

static void a_secret_is_64_hex_digits(void **state)
{
    struct err e = {0};
    struct secret s;
    char text[80];
    memset(text, 'f', 64);
    strcpy(text + 64, "\n");
    text[0] = '0';
    text[1] = 'A';
    assert_int_equal(read_text(text, &s, &e), 0);
    assert_int_equal(s.key[0], 0x0a);
    assert_int_equal(s.key[31], 0xff);
    text[63] = 'g';
    assert_int_equal(read_text(text, &s, &e), -1);
    assert_null(strstr(e.text, "fff"));
    text[62] = '\0';
    assert_int_equal(read_text(text, &s, &e), -1);
    assert_int_equal(read_text("", &s, &e), -1);
    assert_int_equal(secret_read(&s, "no-such-file", &e), -1);
    assert_int_equal(e.kind, ERR_USER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_has_a_name_and_a_stream),
        cmocka_unit_test(sessions_are_27_characters_and_differ),
        cmocka_unit_test(runs_and_samplers_are_named_after_their_session),
        cmocka_unit_test(a_job_id_comes_back_in_its_parts),
        cmocka_unit_test(a_job_id_of_somebody_else_is_as_wrong_as_an_invented_one),
        cmocka_unit_test(a_tenant_with_a_bar_cannot_share_a_tag),
        cmocka_unit_test(every_job_of_the_longest_run_fits),
        cmocka_unit_test(partitions_and_seeds_are_stable),
        cmocka_unit_test(topics_are_named_after_model_and_stream),
        cmocka_unit_test(a_secret_is_64_hex_digits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

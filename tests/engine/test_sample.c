/* Sampling's edges: how a sample ends, what a request may ask, and the memory it takes. */
#include "world.h"

static struct folder folder;
static struct engine *en;

static int setup(void **state)
{
    folder = world_make(TINY_MODEL);
    en = open_engine(&folder, 2, 0, 0);
    return 0;
}

static int teardown(void **state)
{
    engine_close(en);
    folder_remove(&folder);
    return 0;
}

static const int32_t prompt[] = {40, 41, 42, 43};

static struct sample_conf plain(int samples, int max_tokens)
{
    return (struct sample_conf){.num_samples = samples,
                                .max_tokens = max_tokens,
                                .temperature = 1,
                                .top_k = -1,
                                .top_p = 1,
                                .seed = 11};
}

static void run(const struct sample_conf *conf, const int32_t *tokens, int n,
                struct sample_result *out)
{
    struct err e = {0};
    struct sample *s = engine_sample_add(en, NULL, tokens, n, conf, &e);
    if (!s) fail_msg("%s", e.text);
    for (int i = 0; i < 1000 && !sample_done(s); i++)
        if (engine_sample_step(en, &e) < 0) fail_msg("%s", e.text);
    assert_true(sample_done(s));
    sample_take(s, out);
    engine_sample_free(en, s);
}

static void a_sample_ends_at_max_tokens_or_at_the_context(void **state)
{
    struct sample_result r;
    struct sample_conf c = plain(2, 7);
    run(&c, prompt, 4, &r);
    assert_int_equal(r.sequence_count, 2);
    assert_int_equal(r.sequences[1].n, 7);
    assert_int_equal(r.sequences[1].reason, STOP_REASON_LENGTH);
    assert_memory_not_equal(r.sequences[0].tokens, r.sequences[1].tokens, 7 * sizeof(int32_t));
    sample_result_clear(&r);

    int room = engine_info(en)->context_max - 4;
    int asked[] = {-1, 100000};
    for (int i = 0; i < 2; i++) {
        c = plain(1, asked[i]);
        run(&c, prompt, 4, &r);
        assert_int_equal(r.sequences[0].n, room);
        assert_int_equal(r.sequences[0].reason, STOP_REASON_LENGTH);
        sample_result_clear(&r);
    }
}

/* What is sampled without a stop tells where one would end it. */
static void a_stop_token_ends_a_sample_and_is_part_of_it(void **state)
{
    struct sample_result free_run, stopped;
    struct sample_conf c = plain(1, 40);
    run(&c, prompt, 4, &free_run);
    int32_t stop[] = {1, free_run.sequences[0].tokens[12]};
    int first = 0;
    while (free_run.sequences[0].tokens[first] != stop[1] &&
           free_run.sequences[0].tokens[first] != stop[0])
        first++;
    c.stop_tokens = stop;
    c.stop_token_count = 2;
    run(&c, prompt, 4, &stopped);
    assert_int_equal(stopped.sequences[0].n, first + 1);
    assert_int_equal(stopped.sequences[0].reason, STOP_REASON_STOP);
    assert_memory_equal(stopped.sequences[0].tokens, free_run.sequences[0].tokens,
                        (size_t)(first + 1) * sizeof(int32_t));
    sample_result_clear(&free_run);
    sample_result_clear(&stopped);
}

static bool is_eos(int32_t id)
{
    for (int i = 0; i < engine_info(en)->eos_count; i++)
        if (engine_info(en)->eos[i] == id) return true;
    return false;
}

/* Many samples of a random model: some meet the end-of-text token, and only then stop. */
static void eos_stops_only_when_it_is_asked_to(void **state)
{
    struct sample_conf c = plain(128, 60);
    struct sample_result r;
    int stopped = 0;
    assert_true(engine_info(en)->eos_count > 0);
    c.stop_at_eos = true;
    run(&c, prompt, 4, &r);
    for (int i = 0; i < 128; i++) {
        const struct sampled *q = &r.sequences[i];
        for (int t = 0; t + 1 < q->n; t++)
            assert_false(is_eos(q->tokens[t]));
        assert_int_equal(is_eos(q->tokens[q->n - 1]), q->reason == STOP_REASON_STOP);
        stopped += q->reason == STOP_REASON_STOP;
    }
    assert_true(stopped > 0);
    sample_result_clear(&r);
    c.stop_at_eos = false;
    run(&c, prompt, 4, &r);
    for (int i = 0; i < 128; i++)
        assert_int_equal(r.sequences[i].n, 60);
    sample_result_clear(&r);
}

static void a_stop_string_may_run_over_several_tokens(void **state)
{
    struct sample_result free_run, stopped;
    struct sample_conf c = plain(1, 40);
    run(&c, prompt, 4, &free_run);
    char text[64];
    size_t size = 0;
    for (int t = 20; t < 23;
         t++) { /* the bytes of three tokens, but for the ends of the outer two */
        size_t n = 0;
        const char *bytes = engine_token_bytes(en, free_run.sequences[0].tokens[t], &n);
        assert_non_null(bytes);
        assert_true(size + n < sizeof text && !memchr(bytes, 0, n));
        memcpy(text + size, bytes, n);
        size += n;
    }
    text[size] = 0;
    const char *stops[] = {"\x01never said", text};
    c.stop_strings = stops;
    c.stop_string_count = 2;
    run(&c, prompt, 4, &stopped);
    assert_int_equal(stopped.sequences[0].n, 23);
    assert_int_equal(stopped.sequences[0].reason, STOP_REASON_STOP);
    sample_result_clear(&free_run);
    sample_result_clear(&stopped);
}

static void a_request_without_samples_gives_the_prompts_logprobs(void **state)
{
    struct sample_conf c = plain(0, -1);
    struct sample_result r;
    c.prompt_logprobs = true;
    run(&c, prompt, 4, &r);
    assert_int_equal(r.sequence_count, 0);
    assert_int_equal(r.prompt_count, 4);
    assert_true(isnan(r.prompt_logprobs[0]));
    for (int i = 1; i < 4; i++)
        assert_true(r.prompt_logprobs[i] < 0 && isfinite(r.prompt_logprobs[i]));
    sample_result_clear(&r);
    c.prompt_logprobs = false;
    run(&c, prompt, 1, &r);
    assert_null(r.prompt_logprobs);
    sample_result_clear(&r);
}

static void greedy_samples_are_all_the_same_and_seeds_differ(void **state)
{
    struct sample_result a, b;
    struct sample_conf c = plain(3, 20);
    c.temperature = 0;
    run(&c, prompt, 4, &a);
    for (int i = 1; i < 3; i++)
        assert_memory_equal(a.sequences[0].tokens, a.sequences[i].tokens, 20 * sizeof(int32_t));
    sample_result_clear(&a);
    c = plain(1, 20);
    run(&c, prompt, 4, &a);
    c.seed = 12;
    run(&c, prompt, 4, &b);
    assert_memory_not_equal(a.sequences[0].tokens, b.sequences[0].tokens, 20 * sizeof(int32_t));
    sample_result_clear(&a);
    sample_result_clear(&b);
}

/* ------------------------------------------------------------------ refusals */

static void refused(const struct sample_conf *c, const int32_t *tokens, int n, const char *says)
{
    struct err e = {0};
    assert_null(engine_sample_add(en, NULL, tokens, n, c, &e));
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void what_makes_no_sense_is_refused_by_name(void **state)
{
    static const int32_t bad[] = {1, -5, 2}, large[] = {1, 2, 1024};
    static int32_t many[400];
    struct sample_conf c = plain(1, 5);
    refused(&c, prompt, 0, "prompt is empty");
    refused(&c, bad, 3, "-5");
    refused(&c, large, 3, "1024, expected 0 to 1023");
    refused(&c, many, 300, "300 tokens, expected at most 299");
    c = plain(129, 5), refused(&c, prompt, 4, "129");
    c = plain(-1, 5), refused(&c, prompt, 4, "num_samples");
    c = plain(1, 0), refused(&c, prompt, 4, "max_tokens is 0");
    c = plain(1, -2), refused(&c, prompt, 4, "max_tokens is -2");
    c = plain(1, 5), c.temperature = -0.5f, refused(&c, prompt, 4, "temperature is -0.5");
    c = plain(1, 5), c.temperature = NAN, refused(&c, prompt, 4, "temperature");
    c = plain(1, 5), c.top_p = 0, refused(&c, prompt, 4, "top_p is 0");
    c = plain(1, 5), c.top_p = 1.5f, refused(&c, prompt, 4, "top_p is 1.5");
    c = plain(1, 5), c.top_p = NAN, refused(&c, prompt, 4, "top_p");
    c = plain(1, 5), c.top_k = 0, refused(&c, prompt, 4, "top_k is 0");
    const int32_t stop[] = {7, 4000};
    c = plain(1, 5), c.stop_tokens = stop, c.stop_token_count = 2;
    refused(&c, prompt, 4, "4000");
    const char *strings[] = {"a", ""};
    c = plain(1, 5), c.stop_strings = strings, c.stop_string_count = 2;
    refused(&c, prompt, 4, "stop string 1 is empty");
    /* The whole context may be a prompt when nothing is sampled. */
    struct sample_result r;
    c = plain(0, 5), c.prompt_logprobs = true;
    run(&c, many, 300, &r);
    assert_int_equal(r.prompt_count, 300);
    sample_result_clear(&r);
}

static void stop_strings_need_a_tokenizer(void **state)
{
    char file[300];
    snprintf(file, sizeof file, "%s/model/tokenizer.json", folder.path);
    assert_int_equal(remove(file), 0);
    struct engine *with = en;
    en = open_engine(&folder, 1, 0, 0);
    assert_false(engine_has_tokenizer(en));
    const char *strings[] = {"a"};
    struct sample_conf c = plain(1, 5);
    c.stop_strings = strings, c.stop_string_count = 1;
    refused(&c, prompt, 4, "tokenizer");
    engine_close(en);
    en = with;
}

/* ------------------------------------------------------------------ memory */

/* Bytes of one block: 64 positions, keys and values, 4 layers, 2 heads of 16. */
#define BLOCK_BYTES (64 * 2 * 4 * 2 * 16 * sizeof(float))

static void a_request_waits_for_memory_and_one_that_can_never_fit_is_refused(void **state)
{
    struct engine *all = en;
    struct err e = {0};
    en = open_engine(&folder, 1, 0, 4 * BLOCK_BYTES);
    struct sample_conf c = plain(3, 70); /* 4 + 70 - 1 positions: a block for each and two more */
    refused(&c, prompt, 4, "6 KV blocks");
    c = plain(2, 70);
    struct sample *first = engine_sample_add(en, NULL, prompt, 4, &c, &e);
    assert_non_null(first);
    c = plain(1, 5);
    assert_null(engine_sample_add(en, NULL, prompt, 4, &c, &e));
    assert_int_equal(e.kind, ERR_RETRY);
    assert_int_equal(engine_sample_step(en, &e), 1);
    engine_sample_free(en, first); /* in the middle of it */
    struct sample_result r;
    run(&c, prompt, 4, &r);
    assert_int_equal(r.sequences[0].n, 5);
    sample_result_clear(&r);
    engine_close(en);
    en = all;
}

static void an_engine_without_requests_has_nothing_to_step(void **state)
{
    struct err e = {0};
    assert_int_equal(engine_sample_step(en, &e), 0);
}

/* Each thread that chooses has room for two rows of logits: 300 MB here. */
static void a_machine_of_many_threads_samples_as_a_small_one(void **state)
{
    struct folder wide = world_make("--vocab 151936 --hidden 8 --layers 1 --heads 2 --kv-heads 1 "
                                    "--head-dim 8 --intermediate 16 --context 64 --tied true");
    struct engine *usual = en;
    struct sample_result r[2];
    const int threads[] = {2, 250};
    for (int i = 0; i < 2; i++) {
        en = open_engine(&wide, threads[i], 0, 0);
        struct sample_conf c = plain(2, 5);
        run(&c, prompt, 4, &r[i]);
        engine_close(en);
    }
    en = usual;
    assert_memory_equal(r[0].sequences[1].tokens, r[1].sequences[1].tokens, 5 * sizeof(int32_t));
    sample_result_clear(&r[0]);
    sample_result_clear(&r[1]);
    folder_remove(&wide);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_of_many_threads_samples_as_a_small_one),
        cmocka_unit_test(a_sample_ends_at_max_tokens_or_at_the_context),
        cmocka_unit_test(a_stop_token_ends_a_sample_and_is_part_of_it),
        cmocka_unit_test(eos_stops_only_when_it_is_asked_to),
        cmocka_unit_test(a_stop_string_may_run_over_several_tokens),
        cmocka_unit_test(a_request_without_samples_gives_the_prompts_logprobs),
        cmocka_unit_test(greedy_samples_are_all_the_same_and_seeds_differ),
        cmocka_unit_test(what_makes_no_sense_is_refused_by_name),
        cmocka_unit_test(a_request_waits_for_memory_and_one_that_can_never_fit_is_refused),
        cmocka_unit_test(an_engine_without_requests_has_nothing_to_step),
        cmocka_unit_test(stop_strings_need_a_tokenizer), /* takes the folder's away: last */
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* Scores beside the sampled tokens: top k, given ids and draws, each with a forward pass's bits. */
#include "engine/head.h"
#include "sampler.h"

#define VOCAB 1100 /* of ODD_MODEL */
#define LONG  150

static struct folder folder;
static struct engine *en;
static struct adapter *ad;
static int32_t prompt[LONG];

static int setup(void **state)
{
    folder = world_make(ODD_MODEL);
    en = open_engine(&folder, 2, 0, 0);
    ad = stepped_adapter(en, 0);
    make_prompt(prompt, LONG, 1, VOCAB);
    return 0;
}

static int teardown(void **state)
{
    adapter_free(ad);
    engine_close(en);
    folder_remove(&folder);
    return 0;
}

/* log P(id at position at + 1 | tokens[0 .. at]) for every id, by forward passes. */
static void whole_row(const int32_t *tokens, int at, float *out)
{
    int n = at + 1;
    float logprobs[LONG];
    int64_t targets[LONG] = {0};
    for (int id = 0; id < VOCAB; id++) {
        targets[at] = id;
        forward(en, ad, tokens, targets, n, logprobs);
        out[id] = logprobs[at];
    }
}

static void assert_top_of(const float *row, const struct top *top, int at)
{
    const int32_t *ids = top->ids + (size_t)at * (size_t)top->k;
    const float *logprobs = top->logprobs + (size_t)at * (size_t)top->k;
    for (int j = 0; j < top->k; j++) {
        int before = 0; /* ids that belong before this one */
        for (int id = 0; id < VOCAB; id++)
            before += row[id] > row[ids[j]] || (row[id] == row[ids[j]] && id < ids[j]);
        assert_int_equal(before, j);
        assert_memory_equal(&row[ids[j]], &logprobs[j], sizeof(float));
    }
}

static void the_likeliest_ids_are_those_of_the_whole_vocabulary(void **state)
{
    struct sample_conf c = asks_for(2, 3);
    struct sample_result r;
    float row[VOCAB];
    int32_t tokens[8];
    c.topk_prompt = 20;
    c.topk_sampled = 7;
    run(en, ad, prompt, 4, &c, &r);
    for (int at = 0; at < 3; at++) {
        whole_row(prompt, at, row);
        assert_top_of(row, &r.prompt_top, at + 1);
    }
    memcpy(tokens, prompt, 4 * sizeof *tokens);
    for (int i = 0; i < 2; i++) {
        memcpy(tokens + 4, r.sequences[i].tokens, 3 * sizeof *tokens);
        for (int t = 0; t < 3; t++) {
            whole_row(tokens, 3 + t, row);
            assert_top_of(row, &r.sequences[i].top, t);
        }
    }
    assert_null(r.prompt_logprobs);
    sample_result_clear(&r);
}

static void assert_filler(const struct top *t, int from, int to)
{
    for (int i = from * t->k; i < to * t->k; i++)
        assert_true(t->ids[i] == 0 && t->logprobs[i] == -99999.0f);
}

static void what_is_not_computed_is_filler(void **state)
{
    struct sample_conf c = asks_for(0, 1);
    struct sample_result all, last;
    c.prompt_logprobs = true;
    c.topk_prompt = 3;
    run(en, ad, prompt, LONG, &c, &all);
    assert_filler(&all.prompt_top, 0, 1);
    assert_true(isnan(all.prompt_logprobs[0]));
    c.prompt_last = 20;
    run(en, ad, prompt, LONG, &c, &last);
    assert_filler(&last.prompt_top, 0, LONG - 20);
    for (int i = 0; i < LONG - 20; i++)
        assert_true(isnan(last.prompt_logprobs[i]));
    for (int i = 3 * (LONG - 20); i < 3 * LONG; i++) {
        assert_int_equal(last.prompt_top.ids[i], all.prompt_top.ids[i]);
        assert_true(last.prompt_top.logprobs[i] == all.prompt_top.logprobs[i]);
    }
    assert_same_floats(last.prompt_logprobs + LONG - 20, all.prompt_logprobs + LONG - 20, 20);
    sample_result_clear(&all), sample_result_clear(&last);

    c = asks_for(1, 1); /* nothing comes before the only token of a prompt */
    c.topk_prompt = 3, c.alt_tokens = 5;
    run(en, ad, prompt, 1, &c, &last);
    assert_filler(&last.prompt_top, 0, 1);
    assert_int_equal(last.alt.k, 5);
    sample_result_clear(&last);
}

static void given_ids_are_scored_where_they_are_given(void **state)
{
    struct sample_conf c = asks_for(1, 2);
    struct sample_result r;
    int first[LONG] = {0};
    int32_t ids[3 * LONG];
    uint64_t random = 5;
    for (int row = 0; row < LONG - 1; row++) { /* 0 to 3 a row */
        int n = (int)(next_word(&random) % 4);
        first[row + 1] = first[row] + n;
        for (int j = 0; j < n; j++)
            ids[first[row] + j] = j == 1 ? -1 : (int32_t)(next_word(&random) % VOCAB);
    }
    c.target_first = first;
    c.target_ids = ids;
    run(en, ad, prompt, LONG, &c, &r);
    for (int j = 0; j < 3; j++) { /* the j-th of every row at once */
        int64_t targets[LONG] = {0};
        float want[LONG];
        for (int row = 0; row < LONG - 1; row++)
            if (first[row] + j < first[row + 1] && ids[first[row] + j] >= 0)
                targets[row] = ids[first[row] + j];
        forward(en, ad, prompt, targets, LONG - 1, want);
        for (int row = 0; row < LONG - 1; row++) {
            if (first[row] + j >= first[row + 1]) continue;
            float got = r.target_logprobs[first[row] + j];
            assert_true(ids[first[row] + j] < 0 ? got == 0 : got == want[row]);
        }
    }
    sample_result_clear(&r);
}

/* More ids than the head answers at once, in one row and over a few. */
static void a_row_may_ask_for_more_than_fits_at_once(void **state)
{
    int many = HEAD_CELLS_MAX + 100, first[4] = {0, many, many + 5, 2 * many + 5};
    int32_t *ids = malloc((size_t)first[3] * sizeof *ids);
    float row[VOCAB];
    assert_non_null(ids);
    for (int i = 0; i < first[3]; i++)
        ids[i] = i % VOCAB;
    struct sample_conf c = asks_for(1, 1);
    struct sample_result r;
    c.target_first = first;
    c.target_ids = ids;
    c.topk_prompt = 2;
    run(en, ad, prompt, 4, &c, &r);
    for (int at = 0; at < 3; at++) {
        whole_row(prompt, at, row);
        for (int j = first[at]; j < first[at + 1]; j++)
            assert_true(r.target_logprobs[j] == row[ids[j]]);
        assert_top_of(row, &r.prompt_top, at + 1);
    }
    free(ids);
    sample_result_clear(&r);
}

static void draws_for_the_prompt_repeat_by_seed_and_have_the_models_logprobs(void **state)
{
    struct sample_conf c = asks_for(1, 1);
    struct sample_result a, b;
    c.alt_tokens = 4;
    run(en, ad, prompt, LONG, &c, &a);
    c.top_k = 1; /* cuts the sample, not these */
    run(en, ad, prompt, LONG, &c, &b);
    assert_same_top(&a.alt, &b.alt, LONG - 1);
    sample_result_clear(&b);
    int same = 0;
    for (int j = 0; j < 4; j++) {
        int64_t targets[LONG];
        float want[LONG];
        for (int row = 0; row < LONG - 1; row++) {
            targets[row] = a.alt.ids[4 * row + j];
            same += j > 0 && targets[row] == a.alt.ids[4 * row];
        }
        forward(en, ad, prompt, targets, LONG - 1, want);
        for (int row = 0; row < LONG - 1; row++)
            assert_true(want[row] == a.alt.logprobs[4 * row + j]);
    }
    assert_true(same < LONG); /* of 3 (LONG - 1): draws are independent */
    c.seed++;
    run(en, ad, prompt, LONG, &c, &b);
    assert_memory_not_equal(a.alt.ids, b.alt.ids, 4 * (LONG - 1) * sizeof(int32_t));
    sample_result_clear(&a), sample_result_clear(&b);
    c.temperature = 0;
    c.topk_prompt = 1;
    run(en, ad, prompt, LONG, &c, &a);
    for (int row = 0; row < LONG - 1; row++)
        for (int j = 0; j < 4; j++)
            assert_int_equal(a.alt.ids[4 * row + j], a.prompt_top.ids[row + 1]);
    sample_result_clear(&a);
}

static void greedy_samples_are_the_top_of_their_rows(void **state)
{
    struct sample_conf c = asks_for(1, 80);
    struct sample_result r;
    c.temperature = 0;
    c.topk_sampled = 2;
    run(en, ad, prompt, 60, &c, &r);
    for (int t = 0; t < 80; t++) {
        assert_int_equal(r.sequences[0].tokens[t], r.sequences[0].top.ids[2 * t]);
        assert_true(r.sequences[0].logprobs[t] == r.sequences[0].top.logprobs[2 * t]);
    }
    assert_on_policy(en, ad, prompt, 60, &r);
    sample_result_clear(&r);
}

static void refused(const struct sample_conf *c, int n, const char *says)
{
    struct err e = {0};
    assert_null(engine_sample_add(en, ad, prompt, n, c, &e));
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void what_makes_no_sense_is_refused_by_name(void **state)
{
    static const int first[] = {0, 1, 2};
    static const int32_t large[] = {5, VOCAB}, negative[] = {-2, 5};
    struct sample_conf c = asks_for(1, 1);
    c.topk_prompt = 21, refused(&c, 4, "topk_prompt_logprobs is 21, expected 0 to 20");
    c.topk_prompt = -1, refused(&c, 4, "topk_prompt_logprobs is -1");
    c = asks_for(1, 1), c.topk_sampled = 21, refused(&c, 4, "topk_sample_logprobs is 21");
    c = asks_for(1, 1), c.alt_tokens = 65, refused(&c, 4, "prompt_alt_tokens_k is 65");
    c = asks_for(1, 1), c.prompt_last = 4;
    refused(&c, 4, "prompt_logprobs_last_n is 4, expected 1 to 3");
    c.prompt_last = -1, refused(&c, 4, "prompt_logprobs_last_n is -1");
    c = asks_for(1, 1), c.target_first = first, c.target_ids = large;
    refused(&c, 3, "row 1 holds 1100, expected 0 to 1099");
    c.target_ids = negative, refused(&c, 3, "row 0 holds -2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_likeliest_ids_are_those_of_the_whole_vocabulary),
        cmocka_unit_test(what_is_not_computed_is_filler),
        cmocka_unit_test(given_ids_are_scored_where_they_are_given),
        cmocka_unit_test(a_row_may_ask_for_more_than_fits_at_once),
        cmocka_unit_test(draws_for_the_prompt_repeat_by_seed_and_have_the_models_logprobs),
        cmocka_unit_test(greedy_samples_are_the_top_of_their_rows),
        cmocka_unit_test(what_makes_no_sense_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

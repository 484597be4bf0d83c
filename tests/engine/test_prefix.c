/* The prefix cache: what is computed once, what is found again and what must not be, and that no
 * bit of any result shows which it was. */
#include "engine/sample.h"
#include "engine/train.h"
#include "sampler.h"

#define VOCAB 1100 /* of ODD_MODEL */
static size_t block_bytes; /* of ODD_MODEL, all layers */

static struct folder folder;

static int setup(void **state)
{
    folder = world_make(ODD_MODEL);
    struct engine *en = open_engine(&folder, 1, 0, 0);
    block_bytes = en->kv_floats * 3 * sizeof(float);
    engine_close(en);
    return 0;
}

static int teardown(void **state)
{
    folder_remove(&folder);
    return 0;
}

static int64_t cached(const struct engine *en)
{
    return engine_sample_stats(en).prompt_tokens_cached;
}

/* ------------------------------------------------------------------ what is found */

static void requests_of_one_prompt_compute_its_blocks_once(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf c = asks_for(1, 70);
    struct sample *s[8];
    struct sample_result r[8], alone;
    int32_t prompt[200];
    make_prompt(prompt, 200, 1, VOCAB);
    for (int i = 0; i < 5; i++) {
        c.seed = (uint64_t)i;
        s[i] = add(en, NULL, prompt, 200, &c); /* nothing of it is computed yet */
    }
    assert_int_equal(cached(en), 0);
    step(en);
    for (int i = 5; i < 8; i++) {
        c.seed = (uint64_t)i;
        s[i] = add(en, NULL, prompt, 200, &c);
    }
    for (int i = 0; i < 8; i++)
        finish(en, s[i], &r[i]);
    assert_int_equal(cached(en), 7 * 192);
    assert_int_equal(engine_sample_stats(en).prompt_tokens, 8 * 200);
    for (int i = 0; i < 8; i++) {
        struct engine *cold = open_engine(&folder, 1, 0, 0);
        c.seed = (uint64_t)i;
        run(cold, NULL, prompt, 200, &c, &alone);
        assert_same_result(&r[i], &alone, 0);
        sample_result_clear(&r[i]), sample_result_clear(&alone);
        engine_close(cold);
    }
    engine_close(en);
}

/* At least the last token is computed: a prompt that fills its blocks leaves the last one out. */
static void whole_blocks_before_the_last_token_are_found(void **state)
{
    static const int lengths[] = {1, 63, 64, 65, 128, 129, 193};
    static const int found[] = {0, 0, 0, 64, 64, 128, 192};
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf c = asks_for(2, 3);
    struct sample_result cold, warm;
    int32_t prompt[193];
    for (int i = 0; i < 7; i++) {
        make_prompt(prompt, lengths[i], 100 + (uint64_t)i, VOCAB);
        run(en, NULL, prompt, lengths[i], &c, &cold);
        int64_t before = cached(en);
        run(en, NULL, prompt, lengths[i], &c, &warm);
        assert_int_equal(cached(en) - before, found[i]);
        assert_same_result(&cold, &warm, 0);
        sample_result_clear(&cold), sample_result_clear(&warm);
    }
    engine_close(en);
}

/* The next turn of a conversation: the prompt, what was sampled, and something new. */
static void sampled_blocks_are_found_by_a_prompt_that_repeats_them(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0), *cold = open_engine(&folder, 1, 0, 0);
    struct sample_conf c = asks_for(3, 150);
    struct sample_result first, warm, alone;
    int32_t prompt[300];
    make_prompt(prompt, 300, 3, VOCAB);
    run(en, NULL, prompt, 50, &c, &first);
    for (int i = 0; i < 3; i++) {
        memcpy(prompt + 50, first.sequences[i].tokens, 150 * sizeof *prompt);
        int64_t before = cached(en);
        run(en, NULL, prompt, 300, &c, &warm);
        /* 50 + 149 were fed, which is three whole blocks */
        assert_int_equal(cached(en) - before, 192);
        run(cold, NULL, prompt, 300, &c, &alone);
        assert_same_result(&warm, &alone, 0);
        sample_result_clear(&warm), sample_result_clear(&alone);
    }
    sample_result_clear(&first);
    engine_close(en), engine_close(cold);
}

static void what_is_asked_of_the_prompts_rows_is_computed(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf plain = asks_for(1, 2), c = plain;
    struct sample_result r, whole;
    int32_t prompt[200];
    make_prompt(prompt, 200, 4, VOCAB);
    c.prompt_logprobs = true;
    run(en, NULL, prompt, 200, &c, &whole);
    int64_t before = cached(en);
    run(en, NULL, prompt, 200, &c, &r); /* scored from the first row on: nothing may be left out */
    assert_int_equal(cached(en), before);
    assert_same_result(&whole, &r, 0);
    sample_result_clear(&r);
    run(en, NULL, prompt, 200, &plain, &r); /* but it left its blocks to others */
    assert_int_equal(cached(en) - before, 192);
    sample_result_clear(&r);
    c.prompt_last = 70; /* tokens 130 .. 199, rows 129 .. 198 */
    before = cached(en);
    run(en, NULL, prompt, 200, &c, &r);
    assert_int_equal(cached(en) - before, 128);
    for (int i = 0; i < 130; i++)
        assert_true(isnan(r.prompt_logprobs[i]));
    assert_memory_equal(r.prompt_logprobs + 130, whole.prompt_logprobs + 130, 70 * sizeof(float));
    sample_result_clear(&r), sample_result_clear(&whole);
    engine_close(en);
}

/* ------------------------------------------------------------------ what must not be found */

static void weights_that_changed_find_nothing_of_before(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf c = asks_for(1, 5);
    struct sample_result r[4], again;
    int32_t prompt[130];
    make_prompt(prompt, 130, 5, VOCAB);
    struct adapter *ad = stepped_adapter(en, 0), *other = stepped_adapter(en, 1);
    run(en, NULL, prompt, 130, &c, &r[0]);
    run(en, ad, prompt, 130, &c, &r[1]);
    run(en, other, prompt, 130, &c, &r[2]);
    assert_int_equal(cached(en), 0);
    optim(en, ad, 0); /* moments alone move the weights */
    run(en, ad, prompt, 130, &c, &r[3]);
    assert_int_equal(cached(en), 0);
    assert_memory_not_equal(r[1].sequences[0].logprobs, r[3].sequences[0].logprobs,
                            5 * sizeof(float));
    run(en, other, prompt, 130, &c, &again); /* and the others still find theirs */
    assert_int_equal(cached(en), 128);
    assert_same_result(&r[2], &again, 0);
    sample_result_clear(&again);
    for (int i = 0; i < 4; i++)
        sample_result_clear(&r[i]);
    adapter_free(ad), adapter_free(other);
    engine_close(en);
}

/* A new adapter often gets the memory of one that was freed. */
static void an_adapter_in_a_freed_ones_place_finds_nothing(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf c = asks_for(1, 3);
    struct sample_result r;
    int32_t prompt[130];
    make_prompt(prompt, 130, 6, VOCAB);
    for (int i = 0; i < 20; i++) {
        struct err e = {0};
        struct adapter *ad = adapter_create(en, &confs[0], (uint64_t)i, &e);
        assert_non_null(ad);
        run(en, ad, prompt, 130, &c, &r);
        sample_result_clear(&r);
        adapter_free(ad);
    }
    assert_int_equal(cached(en), 0);
    engine_close(en);
}

/* ------------------------------------------------------------------ the bound */

static void unused_blocks_are_evicted_the_oldest_first(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 6 * block_bytes);
    struct sample_conf c = asks_for(1, 1);
    struct sample_result r;
    int32_t prompt[130];
    for (uint64_t i = 0; i < 3; i++) { /* two whole blocks each, and one that is not kept */
        make_prompt(prompt, 130, i, VOCAB);
        run(en, NULL, prompt, 130, &c, &r);
        sample_result_clear(&r);
    }
    /* The third had 6 - 4 blocks free and took the last one of the first prompt. */
    assert_int_equal(engine_sample_stats(en).evictions, 1);
    make_prompt(prompt, 130, 0, VOCAB);
    run(en, NULL, prompt, 130, &c, &r);
    sample_result_clear(&r);
    assert_int_equal(cached(en), 64);
    make_prompt(prompt, 130, 2, VOCAB);
    run(en, NULL, prompt, 130, &c, &r);
    sample_result_clear(&r);
    assert_int_equal(cached(en), 64 + 128);
    engine_close(en);
}

static void cached_blocks_do_not_keep_a_request_out(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 5 * block_bytes);
    struct sample_conf c = asks_for(1, 1);
    struct sample_result r;
    struct err e = {0};
    int32_t prompt[320];
    make_prompt(prompt, 320, 1, VOCAB);
    run(en, NULL, prompt, 320, &c, &r); /* all five blocks */
    sample_result_clear(&r);
    make_prompt(prompt, 320, 2, VOCAB);
    struct sample *s = add(en, NULL, prompt, 320, &c);
    assert_null(engine_sample_add(en, NULL, prompt, 320, &c, &e)); /* five are promised */
    assert_int_equal(e.kind, ERR_RETRY);
    finish(en, s, &r);
    sample_result_clear(&r);
    assert_int_equal(engine_sample_stats(en).evictions, 5);
    engine_close(en);
}

/* Two requests that share a prompt of four blocks fit where two prompts would not. */
static void shared_blocks_are_counted_once(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 6 * block_bytes);
    struct sample_conf c = asks_for(1, 20);
    struct sample_result a, b;
    struct err e = {0};
    int32_t prompt[258];
    make_prompt(prompt, 258, 1, VOCAB);
    struct sample *first = add(en, NULL, prompt, 258, &c), *second;
    assert_null(engine_sample_add(en, NULL, prompt, 258, &c, &e)); /* nothing to share yet */
    assert_int_equal(e.kind, ERR_RETRY);
    step(en);
    second = add(en, NULL, prompt, 258, &c);
    finish(en, first, &a);
    finish(en, second, &b);
    assert_same_result(&a, &b, 0);
    sample_result_clear(&a), sample_result_clear(&b);
    engine_close(en);
}

/* ------------------------------------------------------------------ turns */

/* Prompts go on piece by piece, so a short one does not wait for all of three long ones. */
static void a_short_prompt_does_not_wait_for_long_ones(void **state)
{
    struct engine *en = open_engine(&folder, 2, 0, 0);
    struct sample_conf c = asks_for(1, 1);
    struct sample *s[4];
    int32_t prompt[390];
    for (uint64_t i = 0; i < 4; i++) {
        make_prompt(prompt, 390, 60 + i, VOCAB);
        s[i] = add(en, NULL, prompt, i == 3 ? 20 : 390, &c);
    }
    assert_int_equal(step(en), 3);
    assert_true(sample_done(s[3]) && !sample_done(s[0]));
    while (!sample_done(s[0]))
        step(en);
    assert_false(sample_done(s[2])); /* and the oldest is through first */
    while (step(en) > 0)
        ;
    for (int i = 0; i < 4; i++)
        engine_sample_free(en, s[i]);
    engine_close(en);
}

/* ------------------------------------------------------------------ no bit shows */

#define KINDS  30
#define TRUNKS 3

/* A request made of its number: trunks of prompts that branch at odd places. */
struct kind {
    int32_t prompt[260];
    int n, adapter;
    struct sample_conf conf;
    int first[260];
    int32_t ids[520];
    struct sample_result want;
};

static void make_kind(struct kind *k, int number)
{
    uint64_t state = (uint64_t)number + 77;
    int branch = 1 + (int)(next_word(&state) % 230);
    k->n = 1 + (int)(next_word(&state) % 258);
    k->adapter = (int)(next_word(&state) % 3);
    make_prompt(k->prompt, k->n, (uint64_t)number % TRUNKS, VOCAB);
    for (int i = branch; i < k->n; i++)
        k->prompt[i] = (int32_t)(next_word(&state) % VOCAB);
    k->conf = asks_for(1 + number % 3, 1 + (int)(next_word(&state) % 90));
    k->conf.seed = (uint64_t)number;
    k->conf.temperature = number % 5 == 0 ? 0 : 0.8f;
    k->conf.top_p = number % 4 == 1 ? 0.9f : 1;
    k->conf.top_k = number % 4 == 2 ? 30 : -1;
    k->conf.prompt_logprobs = number % 3 == 0;
    k->conf.prompt_last = number % 6 == 0 && k->n > 2 ? k->n / 2 : 0;
    k->conf.topk_sampled = number % 4 == 3 ? 5 : 0;
    k->conf.topk_prompt = number % 7 == 3 ? 20 : 0;
    k->conf.alt_tokens = number % 7 == 4 ? 3 : 0;
    if (number % 5 != 2) return;
    for (int i = 0; i < k->n; i++) /* two a row in the second half */
        k->first[i] = i <= k->n / 2 ? 0 : 2 * (i - k->n / 2);
    for (int i = 0; i < 520; i++)
        k->ids[i] = i % 3 ? (int32_t)(next_word(&state) % VOCAB) : -1;
    k->conf.target_first = k->first;
    k->conf.target_ids = k->ids;
}

static int targets_of(const struct kind *k)
{
    return k->conf.target_first ? k->first[k->n - 1] : 0;
}

struct world {
    struct engine *en;
    struct adapter *ads[3];
};

static void world_open(struct world *w, int threads, size_t scratch, size_t kv)
{
    *w = (struct world){.en = open_engine(&folder, threads, scratch, kv)};
    w->ads[1] = stepped_adapter(w->en, 0);
    w->ads[2] = stepped_adapter(w->en, 3);
}

static void world_close(struct world *w)
{
    adapter_free(w->ads[1]), adapter_free(w->ads[2]);
    engine_close(w->en);
}

/* Random company: requests come, wait for room, are given up in the middle, finish. */
static void play(struct world *w, struct kind *kinds, uint64_t seed, int turns)
{
    struct sample *s[8] = {0};
    int which[8];
    uint64_t state = seed;
    for (int turn = 0; turn < turns; turn++) {
        int at = (int)(next_word(&state) % 8);
        struct err e = {0};
        if (!s[at]) {
            which[at] = (int)(next_word(&state) % KINDS);
            struct kind *k = &kinds[which[at]];
            s[at] = engine_sample_add(w->en, w->ads[k->adapter], k->prompt, k->n, &k->conf, &e);
            assert_true(s[at] || e.kind == ERR_RETRY);
        } else if (sample_done(s[at])) {
            struct sample_result r;
            finish(w->en, s[at], &r);
            assert_same_result(&kinds[which[at]].want, &r, targets_of(&kinds[which[at]]));
            sample_result_clear(&r);
            s[at] = NULL;
        } else if (next_word(&state) % 64 == 0) {
            engine_sample_free(w->en, s[at]);
            s[at] = NULL;
        } else {
            step(w->en);
        }
    }
    for (int i = 0; i < 8; i++)
        engine_sample_free(w->en, s[i]);
}

/* Just enough for the adapters' training step; passes of samples then hold few rows, not a whole
 * number of blocks. */
static size_t tight_scratch(void)
{
    struct engine *en = open_engine(&folder, 1, 0, 0);
    size_t bytes = train_bytes(en, 12, train_blocks(12), 32, true);
    engine_close(en);
    en = open_engine(&folder, 1, bytes, 0);
    assert_true(sample_rows_max(en) < OPS_KV_BLOCK);
    engine_close(en);
    return bytes;
}

static void no_bit_depends_on_what_the_cache_holds_and_all_is_on_policy(void **state)
{
    struct kind *kinds = calloc(KINDS, sizeof *kinds);
    assert_non_null(kinds);
    for (int i = 0; i < KINDS; i++) {
        struct world cold;
        make_kind(&kinds[i], i);
        world_open(&cold, 1, 0, 0);
        run(cold.en, cold.ads[kinds[i].adapter], kinds[i].prompt, kinds[i].n, &kinds[i].conf,
            &kinds[i].want);
        assert_int_equal(cached(cold.en), 0);
        assert_on_policy(cold.en, cold.ads[kinds[i].adapter], kinds[i].prompt, kinds[i].n,
                         &kinds[i].want);
        world_close(&cold);
    }
    const size_t kv[] = {20, 40, 4000};
    for (int i = 0; i < 3; i++) {
        struct world w;
        world_open(&w, 1 + i, i == 1 ? tight_scratch() : 0, kv[i] * block_bytes);
        play(&w, kinds, (uint64_t)i, 1200);
        struct sample_stats stats = engine_sample_stats(w.en);
        print_message("%d blocks: %lld of %lld prompt tokens found, %lld evicted\n", (int)kv[i],
                      (long long)stats.prompt_tokens_cached, (long long)stats.prompt_tokens,
                      (long long)stats.evictions);
        assert_true(stats.prompt_tokens_cached > 0);
        assert_true(i == 2 || stats.evictions > 0);
        world_close(&w);
    }
    for (int i = 0; i < KINDS; i++)
        sample_result_clear(&kinds[i].want);
    free(kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_of_one_prompt_compute_its_blocks_once),
        cmocka_unit_test(whole_blocks_before_the_last_token_are_found),
        cmocka_unit_test(sampled_blocks_are_found_by_a_prompt_that_repeats_them),
        cmocka_unit_test(what_is_asked_of_the_prompts_rows_is_computed),
        cmocka_unit_test(weights_that_changed_find_nothing_of_before),
        cmocka_unit_test(an_adapter_in_a_freed_ones_place_finds_nothing),
        cmocka_unit_test(unused_blocks_are_evicted_the_oldest_first),
        cmocka_unit_test(cached_blocks_do_not_keep_a_request_out),
        cmocka_unit_test(shared_blocks_are_counted_once),
        cmocka_unit_test(a_short_prompt_does_not_wait_for_long_ones),
        cmocka_unit_test(no_bit_depends_on_what_the_cache_holds_and_all_is_on_policy),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

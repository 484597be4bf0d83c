/* Tensor parallelism: 1, 2 and 4 ranks on the CPU are one engine.
 *
 * Ranks differ from one rank in the order of some sums only: the products of o and down are added
 * rank by rank instead of input by input, and so are dx before q, k, v, gate and up, and a row's
 * sum of exponentials.  Two fp32 sums of some ten to a hundred terms in different orders are within
 * a few 2^-24 of their largest partial sum, layers add theirs up, and logits of these models are
 * below 8: some 1e-6 on a log-probability.  The limits are those against PyTorch, which sums in
 * other orders as well (docs/engine.md): 2e-5 absolute on log-probabilities, 1e-4 of the largest
 * entry on gradients.  Steps of Adam divide a gradient by its own size, so the noise of the
 * smallest ones grows with every step: ten times the limits after ten, and gradients are compared
 * after one.
 *
 * Within one number of ranks everything holds that holds for one, on bits. */
#include "story.h"

static const int degrees[] = {1, 2, 4};
#define DEGREES ((int)(sizeof degrees / sizeof *degrees))

static struct folder models[2]; /* untied, tied */

static int make_models(void **state)
{
    models[0] = world_make(CUT_MODEL "false");
    models[1] = world_make(CUT_MODEL "true");
    return 0;
}

static int remove_models(void **state)
{
    folder_remove(&models[0]);
    folder_remove(&models[1]);
    return 0;
}

static struct engine *try_ranks(const struct folder *f, int ranks, const char *weights,
                                size_t scratch, struct err *e)
{
    const struct engine_conf conf = {.model_dir = folder_at(f, "model"),
                                     .device = "cpu",
                                     .threads = 1,
                                     .ranks = ranks,
                                     .scratch_bytes_max = scratch,
                                     .kv_bytes_max = (size_t)16 << 20,
                                     .weights = weights};
    return engine_open(&conf, e);
}

static struct engine *open_ranks(const struct folder *f, int ranks)
{
    struct err e = {0};
    struct engine *en = try_ranks(f, ranks, NULL, 0, &e);
    if (!en) fail_msg("%s", e.text);
    assert_int_equal(engine_info(en)->ranks, ranks);
    return en;
}

static struct story played(const struct folder *f, int ranks, int which)
{
    struct engine *en = open_ranks(f, ranks);
    struct story s = story_of(en, which);
    engine_close(en);
    return s;
}

static void ranks_agree_on_logprobs_gradients_and_ten_steps(void **state)
{
    for (int tied = 0; tied < 2; tied++)
        for (int which = tied; which < 4; which += 2) {
            struct story one = played(&models[tied], 1, which);
            for (int d = 1; d < DEGREES; d++) {
                struct story s = played(&models[tied], degrees[d], which);
                char name[32];
                snprintf(name, sizeof name, "%d ranks", degrees[d]);
                assert_same_story(&s, &one, name);
                story_clear(&s);
            }
            story_clear(&one);
        }
}

static void a_run_repeats_to_the_bit(void **state)
{
    for (int d = 0; d < DEGREES; d++) {
        struct story a = played(&models[0], degrees[d], 0);
        struct story b = played(&models[0], degrees[d], 0);
        assert_string_equal(a.digest, b.digest);
        assert_memory_equal(a.logprobs, b.logprobs, a.logprob_count * sizeof(float));
        assert_memory_equal(a.norms, b.norms, sizeof a.norms);
        story_clear(&a);
        story_clear(&b);
    }
}

/* ------------------------------------------------------------------ the laws, within a degree */

/* Three runs in one engine, in passes cut small, are each what it is alone. */
static void company_and_memory_change_no_bit(void **state)
{
    for (int d = 1; d < DEGREES; d++) {
        struct err e = {0};
        char alone[3][65], digest[65];
        float logprobs[3][1000], again[1000];
        size_t counts[3] = {0}, count;
        for (int i = 0; i < 3; i++) {
            struct engine *en = open_ranks(&models[i % 2], degrees[d]);
            struct adapter *ad = new_adapter(en, i);
            train_items(en, ad, i, logprobs[i], &counts[i]);
            optim(en, ad, 0);
            digest_of(ad, alone[i]);
            adapter_free(ad);
            engine_close(en);
        }
        for (int i = 0; i < 3; i++) {
            struct engine *en = try_ranks(&models[i % 2], degrees[d], NULL, (size_t)5 << 20, &e);
            if (!en) fail_msg("%s", e.text);
            struct adapter *ad = new_adapter(en, i), *others[2] = {new_adapter(en, 0), NULL};
            others[1] = new_adapter(en, 3);
            struct train_item items[ITEMS + 2];
            for (int k = 0; k < ITEMS; k++)
                items[k + 1] = make_item(en, ad, losses[k], lengths[k], (uint64_t)(10 * i + k));
            items[0] = make_item(en, others[0], LOSS_PPO, (int[]){90, 7, 0}, 1);
            items[ITEMS + 1] = make_item(en, others[1], LOSS_CROSS_ENTROPY, (int[]){150, 0}, 2);
            train(en, items, ITEMS + 2);
            count = 0;
            for (int k = 1; k <= ITEMS; k++)
                for (int j = 0; j < items[k].datum_count; j++) {
                    const struct datum *datum = &items[k].datums[j];
                    memcpy(again + count, datum->out_logprobs, (size_t)datum->n * sizeof(float));
                    count += (size_t)datum->n;
                }
            for (int k = 0; k < ITEMS + 2; k++)
                item_clear(&items[k]);
            assert_int_equal(count, counts[i]);
            assert_memory_equal(again, logprobs[i], count * sizeof(float));
            optim(en, ad, 0);
            digest_of(ad, digest);
            assert_string_equal(digest, alone[i]);
            adapter_free(ad), adapter_free(others[0]), adapter_free(others[1]);
            engine_close(en);
        }
    }
}

#define PROMPT 150

static struct sample_conf everything(float temperature)
{
    struct sample_conf c = asks_for(3, 30);
    c.temperature = temperature;
    c.top_p = 0.95f;
    c.prompt_logprobs = true;
    c.topk_prompt = 3;
    c.topk_sampled = 2;
    c.alt_tokens = 2;
    return c;
}

/* Beside others, with and without a cached beginning: the same, and what a forward pass finds. */
static void samples_are_on_policy_in_any_company(void **state)
{
    static const char *const weights[] = {"fp32", "bf16"};
    for (int d = 1; d < DEGREES; d++)
        for (int w = 0; w < 2; w++) {
            struct err e = {0};
            int32_t prompt[PROMPT];
            struct sample_result alone, together;
            struct sample_conf c = everything(1);
            struct engine *en = try_ranks(&models[w], degrees[d], weights[w], 0, &e);
            if (!en) fail_msg("%s", e.text);
            struct adapter *ad = stepped_adapter(en, 0), *other = stepped_adapter(en, 2);
            make_prompt(prompt, PROMPT, 5, engine_info(en)->vocab);
            run(en, ad, prompt, PROMPT, &c, &alone);
            struct sample *s[3] = {add(en, other, prompt, 20, &c), add(en, ad, prompt, PROMPT, &c),
                                   add(en, NULL, prompt, 100, &c)};
            struct sample_result rest[2];
            finish(en, s[0], &rest[0]);
            finish(en, s[1], &together);
            finish(en, s[2], &rest[1]);
            assert_same_result(&together, &alone, 0);
            assert_on_policy(en, ad, prompt, PROMPT, &alone);
            assert_on_policy(en, other, prompt, 20, &rest[0]);
            assert_on_policy(en, NULL, prompt, 100, &rest[1]);
            sample_result_clear(&alone), sample_result_clear(&together);
            sample_result_clear(&rest[0]), sample_result_clear(&rest[1]);
            adapter_free(ad), adapter_free(other);
            engine_close(en);
        }
}

/* ------------------------------------------------------------------ sampling over degrees */

static struct sample_result sampled_by(const struct folder *f, int ranks, float temperature)
{
    int32_t prompt[PROMPT];
    struct sample_result out;
    struct sample_conf c = everything(temperature);
    struct engine *en = open_ranks(f, ranks);
    struct adapter *ad = stepped_adapter(en, 0);
    make_prompt(prompt, PROMPT, 6, engine_info(en)->vocab);
    run(en, ad, prompt, PROMPT, &c, &out);
    adapter_free(ad);
    engine_close(en);
    return out;
}

static void assert_close(const float *a, const float *b, int n)
{
    for (int i = 0; i < n; i++)
        if (!isnan(b[i]) && !(fabs((double)a[i] - (double)b[i]) <= LOGPROB_LIMIT))
            fail_msg("[%d] = %.9g, expected %.9g", i, (double)a[i], (double)b[i]);
}

/* The draw is made once, from logits that all ranks have a part of.  Only where a uniform number
 * falls within the noise between two tokens could another be drawn; here none does. */
static void greedy_and_seeded_samples_are_the_same_tokens(void **state)
{
    for (int t = 0; t < 4; t++) {
        const struct folder *f = &models[t % 2];
        float temperature = t < 2 ? 0 : 1;
        struct sample_result one = sampled_by(f, 1, temperature);
        for (int d = 1; d < DEGREES; d++) {
            struct sample_result r = sampled_by(f, degrees[d], temperature);
            assert_close(r.prompt_logprobs, one.prompt_logprobs, PROMPT);
            assert_memory_equal(r.alt.ids, one.alt.ids, sizeof(int32_t) * 2 * (PROMPT - 1));
            assert_close(r.prompt_top.logprobs, one.prompt_top.logprobs, 3 * PROMPT);
            for (int i = 0; i < one.sequence_count; i++) {
                const struct sampled *a = &r.sequences[i], *b = &one.sequences[i];
                assert_int_equal(a->n, b->n);
                assert_memory_equal(a->tokens, b->tokens, (size_t)b->n * sizeof *b->tokens);
                assert_close(a->logprobs, b->logprobs, b->n);
                assert_close(a->top.logprobs, b->top.logprobs, 2 * b->n);
            }
            sample_result_clear(&r);
        }
        sample_result_clear(&one);
    }
}

/* ------------------------------------------------------------------ checkpoints */

static void a_fresh_adapter_is_the_same_on_any_ranks(void **state)
{
    for (int which = 0; which < 4; which++) {
        char digests[DEGREES][65];
        for (int d = 0; d < DEGREES; d++) {
            struct engine *en = open_ranks(&models[0], degrees[d]);
            struct adapter *ad = new_adapter(en, which);
            digest_of(ad, digests[d]);
            adapter_free(ad);
            engine_close(en);
            assert_string_equal(digests[d], digests[0]);
        }
    }
}

/* Saved by some ranks with a gradient pending, loaded by others: the same state, and the same files
 * when those save it. */
static void a_checkpoint_does_not_show_who_saved_it(void **state)
{
    for (int from = 0; from < DEGREES; from++) {
        struct folder f = folder_create();
        char sha256[65], digest[65];
        struct engine *en = open_ranks(&models[1], degrees[from]);
        save_pending(en, folder_at(&f, "saved"), digest, sha256);
        engine_close(en);
        for (int to = 0; to < DEGREES; to++) {
            char again[32];
            snprintf(again, sizeof again, "again-%d", to);
            en = open_ranks(&models[1], degrees[to]);
            assert_loads_alike(en, &f, "saved", again, digest, sha256);
            engine_close(en);
        }
        folder_remove(&f);
    }
}

/* A gradient is whole on the ranks that share it, so nothing is lost by leaving in the middle. */
static void a_run_that_left_goes_on_with_the_same_bits(void **state)
{
    for (int d = 1; d < DEGREES; d++) {
        struct folder f = folder_create();
        char stayed[65], left[65], sha256[65];
        struct engine *en = open_ranks(&models[0], degrees[d]);
        struct adapter *ad = stepped_adapter(en, 0), *back;
        train_items(en, ad, 4, NULL, NULL);
        save(ad, folder_at(&f, "left"), sha256);
        back = load(en, folder_at(&f, "left"), sha256);
        train_items(en, ad, 5, NULL, NULL);
        train_items(en, back, 5, NULL, NULL);
        assert_true(optim(en, ad, 0.1) == optim(en, back, 0.1));
        digest_of(ad, stayed);
        digest_of(back, left);
        assert_string_equal(left, stayed);
        adapter_free(ad), adapter_free(back);
        engine_close(en);
        folder_remove(&f);
    }
}

/* What ranks have in common stays in common: every one's copy has the same bits. */
static void what_is_whole_on_every_rank_stays_equal(void **state)
{
    struct engine *en = open_ranks(&models[0], 4);
    struct adapter *ad = new_adapter(en, 0);
    int compared = 0;
    for (int i = 0; i < 3; i++) {
        train_items(en, ad, i, NULL, NULL);
        if (i < 2) optim(en, ad, 0);
    }
    for (int i = 0; i < ad->site_count; i++)
        for (int r = 1; r < 4; r++) {
            const struct lora_tensor *t = &ad->sites[i], *u = &ad->ranks[r]->sites[i];
            bool b = t->cut == CUT_IN;
            size_t n = (size_t)ad->conf.rank * (size_t)(b ? t->out : t->in);
            assert_same_floats(b ? t->b : t->a, b ? u->b : u->a, n);
            assert_same_floats(b ? t->grad_b : t->grad_a, b ? u->grad_b : u->grad_a, n);
            assert_same_floats(b ? t->m_b : t->m_a, b ? u->m_b : u->m_a, n);
            assert_same_floats(b ? t->v_b : t->v_a, b ? u->v_b : u->v_a, n);
            compared++;
        }
    assert_int_equal(compared, 3 * (2 * SITES_A_LAYER + 1));
    adapter_free(ad);
    engine_close(en);
}

static void a_gradient_that_is_not_finite_is_dropped_on_all_ranks(void **state)
{
    struct engine *en = open_ranks(&models[0], 2);
    struct adapter *ad = stepped_adapter(en, 0);
    const struct adam_params p = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8};
    struct err e = {0};
    char before[65], after[65];
    double norm;
    digest_of(ad, before);
    train_items(en, ad, 1, NULL, NULL);
    ad->ranks[1]->sites[SITE_Q].grad_b[0] = INFINITY;
    assert_int_equal(adapter_optim_step(en, ad, &p, &norm, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    digest_of(ad, after);
    assert_string_equal(after, before);
    for (int r = 0; r < 2; r++)
        for (size_t i = 0; i < ad->part_count; i++)
            assert_true(ad->ranks[r]->memory[ad->part_count + i] == 0);
    adapter_free(ad);
    engine_close(en);
}

/* ------------------------------------------------------------------ opening */

static void assert_refused(const struct folder *f, int ranks, const char *because)
{
    struct err e = {0};
    struct engine *en = try_ranks(f, ranks, NULL, 0, &e);
    if (en) fail_msg("%d ranks were opened, but should say \"%s\"", ranks, because);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void ranks_that_do_not_divide_are_refused(void **state)
{
    assert_refused(&models[0], 3, "ranks is 3, expected a divisor of the model's 4 key heads");
    assert_refused(&models[0], 8, "ranks is 8, expected a divisor of the model's 4 key heads");
    assert_refused(&models[0], 9, "ranks is 9, expected 1 to 8");
    assert_refused(&models[0], -1, "ranks is -1, expected 1 to 8");
    struct folder f = world_make("--vocab 1100 --hidden 44 --layers 1 --heads 8 --kv-heads 8 "
                                 "--head-dim 10 --intermediate 92 --context 64 --tied true");
    assert_refused(&f, 8, "ranks is 8, expected a divisor of the model's 92 columns of the MLP");
    folder_remove(&f);
    f = world_make("--vocab 1100 --hidden 44 --layers 1 --heads 8 --kv-heads 8 "
                   "--head-dim 10 --intermediate 96 --context 64 --tied true");
    assert_refused(&f, 8, "ranks is 8, expected a divisor of the model's 1100 ids of the vocab");
    folder_remove(&f);
}

static void the_numerics_class_names_the_ranks(void **state)
{
    struct err e = {0};
    struct engine *en = try_ranks(&models[0], 0, NULL, 0, &e); /* 0 is 1 */
    assert_non_null(en);
    char one[128], want[140];
    snprintf(one, sizeof one, "%s", engine_info(en)->numerics);
    assert_int_equal(engine_info(en)->ranks, 1);
    assert_null(strstr(one, "/tp"));
    engine_close(en);
    en = open_ranks(&models[0], 2);
    snprintf(want, sizeof want, "%s/tp 2", one);
    assert_string_equal(engine_info(en)->numerics, want);
    assert_int_equal(engine_info(en)->heads, 8);
    assert_int_equal(engine_info(en)->vocab, 1100);
    engine_close(en);
}

/* Every pass has a head, and all are laid out before the first one runs. */
static void a_request_of_many_passes_fits(void **state)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    skip(); /* 100,000 tokens */
#endif
    enum { DATUMS = 400 }; /* a pass each: two of them are more than pass_rows */
    int lengths_of_all[DATUMS + 1] = {0};
    struct engine *en = open_ranks(&models[0], 4);
    for (int i = 0; i < DATUMS; i++)
        lengths_of_all[i] = en->pass_rows / 2 + 1;
    struct train_item item = make_item(en, NULL, LOSS_CROSS_ENTROPY, lengths_of_all, 1);
    item.forward_only = true;
    train(en, &item, 1);
    item_clear(&item);
    engine_close(en);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_agree_on_logprobs_gradients_and_ten_steps),
        cmocka_unit_test(a_run_repeats_to_the_bit),
        cmocka_unit_test(company_and_memory_change_no_bit),
        cmocka_unit_test(samples_are_on_policy_in_any_company),
        cmocka_unit_test(greedy_and_seeded_samples_are_the_same_tokens),
        cmocka_unit_test(a_fresh_adapter_is_the_same_on_any_ranks),
        cmocka_unit_test(a_checkpoint_does_not_show_who_saved_it),
        cmocka_unit_test(a_run_that_left_goes_on_with_the_same_bits),
        cmocka_unit_test(what_is_whole_on_every_rank_stays_equal),
        cmocka_unit_test(a_gradient_that_is_not_finite_is_dropped_on_all_ranks),
        cmocka_unit_test(ranks_that_do_not_divide_are_refused),
        cmocka_unit_test(the_numerics_class_names_the_ranks),
        cmocka_unit_test(a_request_of_many_passes_fits),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}

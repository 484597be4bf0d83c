/* Data parallelism: an engine of 1, 2 or 3 replicas on the CPU, with 1 or 2 ranks each.
 *
 * What goes forward has the same bits on any number of replicas.  Gradients differ in the order of
 * sums only (deal.c), and are held to the limits of story.h; so is what follows from them.  Within
 * one number of replicas everything holds that holds for one, on bits. */
#include "engine/kv.h"
#include "engine/sample.h"
#include "story.h"

/* Each beside what it is compared with: as many ranks, and one replica. */
static const struct degree {
    int ranks, replicas;
} degrees[] = {{1, 2}, {1, 3}, {2, 2}};
#define DEGREES ((int)(sizeof degrees / sizeof *degrees))

static struct folder model;

static int make_model(void **state)
{
    model = world_make(CUT_MODEL "false");
    return 0;
}

static int remove_model(void **state)
{
    folder_remove(&model);
    return 0;
}

static struct engine *try_replicas(struct degree d, size_t scratch, size_t kv, struct err *e)
{
    const struct engine_conf conf = {.model_dir = folder_at(&model, "model"),
                                     .device = "cpu",
                                     .threads = 1,
                                     .ranks = d.ranks,
                                     .replicas = d.replicas,
                                     .scratch_bytes_max = scratch,
                                     .kv_bytes_max = kv};
    return engine_open(&conf, e);
}

static struct engine *open_replicas(struct degree d, size_t scratch)
{
    struct err e = {0};
    struct engine *en = try_replicas(d, scratch, (size_t)16 << 20, &e);
    if (!en) fail_msg("%s", e.text);
    assert_int_equal(engine_info(en)->ranks, d.ranks);
    assert_int_equal(engine_info(en)->replicas, d.replicas);
    return en;
}

static struct degree single(struct degree d)
{
    return (struct degree){d.ranks, 1};
}

static struct story played(struct degree d, int which)
{
    struct engine *en = open_replicas(d, 0);
    struct story s = story_of(en, which);
    engine_close(en);
    return s;
}

/* ------------------------------------------------------------------ against one replica */

static void replicas_agree_on_logprobs_gradients_and_ten_steps(void **state)
{
    for (int which = 0; which < 4; which += 3)
        for (int d = 0; d < DEGREES; d++) {
            struct story one = played(single(degrees[d]), which), s = played(degrees[d], which);
            char name[64];
            snprintf(name, sizeof name, "%d replicas of %d ranks", degrees[d].replicas,
                     degrees[d].ranks);
            assert_same_story(&s, &one, name);
            assert_memory_equal(s.logprobs, one.logprobs,
                                s.logprob_count / STEPS * sizeof(float));
            story_clear(&s);
            story_clear(&one);
        }
}

static float *gradient_of(struct degree d, const int *lengths_of_all, uint64_t seed, size_t *count)
{
    struct engine *en = open_replicas(d, 0);
    struct adapter *ad = stepped_adapter(en, 1);
    struct train_item item = make_item(en, ad, LOSS_PPO, lengths_of_all, seed);
    train(en, &item, 1);
    float *out = numbers_of(ad, PART_GRADIENT, count);
    item_clear(&item);
    adapter_free(ad);
    engine_close(en);
    return out;
}

/* Two datums on two replicas: the gradient is the sum of what each gets alone, and not what the
 * second one's blocks make of the first one's sum. */
static void each_replica_sums_its_datums_from_zero(void **state)
{
    const struct degree one = {1, 1}, two = {1, 2};
    size_t n;
    struct engine *en = open_replicas(two, 0);
    struct adapter *ad[3];
    float *parts[3];
    struct train_item item = make_item(en, NULL, LOSS_PPO, (int[]){140, 130, 0}, 3);
    for (int i = 0; i < 3; i++) { /* the first, the second, both */
        ad[i] = new_adapter(en, 1);
        struct train_item part = item;
        part.adapter = ad[i];
        if (i < 2) part.datums += i, part.datum_count = 1;
        train(en, &part, 1);
        parts[i] = numbers_of(ad[i], PART_GRADIENT, &n);
    }
    int same = 0;
    for (size_t k = 0; k < n; k++)
        same += parts[2][k] == parts[0][k] + parts[1][k];
    assert_int_equal(same, n);
    for (int i = 0; i < 3; i++) {
        free(parts[i]);
        adapter_free(ad[i]);
    }
    item_clear(&item);
    engine_close(en);
    float *a = gradient_of(one, (int[]){140, 130, 0}, 3, &n);
    float *b = gradient_of(two, (int[]){140, 130, 0}, 3, &n);
    assert_true(memcmp(a, b, n * sizeof *a) != 0); /* so the numbers above can tell */
    free(a), free(b);
}

/* ------------------------------------------------------------------ the laws, within a degree */

static void a_run_repeats_to_the_bit(void **state)
{
    for (int d = 0; d < DEGREES; d++) {
        struct story a = played(degrees[d], 0), b = played(degrees[d], 0);
        assert_string_equal(a.digest, b.digest);
        assert_memory_equal(a.logprobs, b.logprobs, a.logprob_count * sizeof(float));
        assert_memory_equal(a.norms, b.norms, sizeof a.norms);
        story_clear(&a);
        story_clear(&b);
    }
}

/* Many small items, some of one adapter: in one call or each in its own, with memory for much or
 * little, in company that changes, before a step and after. */
enum way { WAY_ALONE, WAY_ONE_CALL, WAY_SMALL, WAY_COMPANY, WAYS };

#define SMALL_ITEMS 7
static const int small[SMALL_ITEMS][5] = {
    {70, 3, 90, 1, 0}, {5, 0}, {64, 129, 0}, {2, 2, 2, 2, 0}, {150, 0}, {33, 40, 0}, {1, 0}};

static void train_way(struct engine *en, struct adapter *ad, enum way way,
                      struct adapter *const others[2])
{
    struct train_item items[2 * SMALL_ITEMS + 1];
    int n = 0;
    for (int i = 0; i < SMALL_ITEMS; i++) {
        if (way == WAY_COMPANY && i != 3) {
            items[n++] = make_item(en, others[i % 2], losses[i % 3], small[SMALL_ITEMS - 1 - i],
                                   (uint64_t)i + 50);
            items[n - 1].forward_only = i == 4;
        }
        items[n++] = make_item(en, ad, losses[i % 3], small[i], (uint64_t)i);
    }
    for (int i = 0; i < n; i++)
        if (way == WAY_ALONE) train(en, &items[i], 1);
    if (way != WAY_ALONE) train(en, items, n);
    for (int i = 0; i < n; i++)
        item_clear(&items[i]);
}

static void company_calls_and_memory_change_no_bit(void **state)
{
    for (int d = 0; d < DEGREES; d++) {
        char first[2][65], digest[65];
        for (int way = 0; way < WAYS; way++) {
            struct engine *en = open_replicas(degrees[d], way == WAY_SMALL ? (size_t)5 << 20 : 0);
            struct adapter *ad = new_adapter(en, 0);
            struct adapter *others[2] = {new_adapter(en, 3), new_adapter(en, 1)};
            for (int round = 0; round < 2; round++) {
                train_way(en, ad, (enum way)way, others);
                if (round == 0) optim(en, ad, 0.1);
                digest_of(ad, digest);
                if (way == 0) memcpy(first[round], digest, sizeof digest);
                assert_string_equal(digest, first[round]);
            }
            adapter_free(ad), adapter_free(others[0]), adapter_free(others[1]);
            engine_close(en);
        }
    }
}

static void assert_same_state(const struct adapter *ad)
{
    for (int d = 1; d < ad->replica_count; d++)
        for (int r = 0; r < ad->rank_count; r++) {
            const struct adapter *a = ad->ranks[r], *b = ad->replicas[d]->ranks[r];
            for (int i = 0; i < a->site_count; i++) {
                const struct lora_tensor *t = &a->sites[i], *u = &b->sites[i];
                size_t rank = (size_t)ad->conf.rank;
                size_t in = rank * (size_t)t->in, out = rank * (size_t)t->out;
                if (!t->a) continue;
                assert_same_floats(t->a, u->a, in), assert_same_floats(t->b, u->b, out);
                assert_same_floats(t->grad_a, u->grad_a, in);
                assert_same_floats(t->grad_b, u->grad_b, out);
                assert_same_floats(t->m_a, u->m_a, in), assert_same_floats(t->m_b, u->m_b, out);
                assert_same_floats(t->v_a, u->v_a, in), assert_same_floats(t->v_b, u->v_b, out);
            }
        }
}

/* Also with items that give a replica nothing to do; and small ones do not all meet the same. */
static void replicas_stay_equal_and_all_work(void **state)
{
    struct folder f = folder_create();
    for (int d = 0; d < DEGREES; d++) {
        char dir[32], sha256[65];
        struct engine *en = open_replicas(degrees[d], 0);
        struct adapter *ad = new_adapter(en, 0), *others[2] = {NULL, NULL};
        for (int i = 0; i < 3; i++) {
            train_way(en, ad, WAY_ALONE, others);
            assert_same_state(ad);
            if (i < 2) optim(en, ad, 0);
            assert_same_state(ad);
        }
        snprintf(dir, sizeof dir, "saved-%d", d);
        save(ad, folder_at(&f, dir), sha256);
        struct adapter *back = load(en, folder_at(&f, dir), sha256);
        assert_same_state(back);
        adapter_free(ad), adapter_free(back);
        engine_close(en);

        en = open_replicas(degrees[d], 0);
        ad = new_adapter(en, 0);
        for (uint64_t seed = 0; seed < 16; seed++) {
            struct train_item item = make_item(en, ad, LOSS_PPO, (int[]){9, 0}, seed);
            train(en, &item, 1);
            item_clear(&item);
        }
        for (int i = 0; i < degrees[d].replicas; i++)
            assert_true(en->replicas[i]->scratch_bytes > 0);
        adapter_free(ad);
        engine_close(en);
    }
    folder_remove(&f);
}

/* ------------------------------------------------------------------ sampling */

#define PROMPT   150
#define REQUESTS 5

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

static void make_requests(const struct engine *en, int32_t prompts[REQUESTS][PROMPT])
{
    for (int i = 0; i < REQUESTS; i++) /* the first two begin alike */
        make_prompt(prompts[i], PROMPT, 5 + (uint64_t)(i > 1 ? i : 0), engine_info(en)->vocab);
}

/* Requests of two adapters and of the base, at once; those of a fresh state have the same bits on
 * any number of replicas. */
static void sample_all(struct engine *en, struct adapter *const ads[3],
                       struct sample_result out[REQUESTS])
{
    int32_t prompts[REQUESTS][PROMPT];
    struct sample *s[REQUESTS];
    struct sample_conf c = everything(1);
    make_requests(en, prompts);
    for (int i = 0; i < REQUESTS; i++) {
        s[i] = add(en, ads[i % 3], prompts[i], PROMPT - 20 * i, &c);
        if (i == 2) step(en);
    }
    for (int d = 0; d < engine_info(en)->replicas; d++)
        assert_non_null(en->replicas[d]->samples);
    for (int i = 0; i < REQUESTS; i++)
        finish(en, s[i], &out[i]);
    for (int d = 0; d < engine_info(en)->replicas; d++)
        assert_null(en->replicas[d]->samples);
}

static struct adapter *loaded(struct engine *en, const struct folder *f, int which)
{
    char name[32];
    snprintf(name, sizeof name, "adapter-%d", which);
    return load(en, folder_at(f, name), NULL);
}

static void put_adapters(const struct folder *f)
{
    struct engine *en = open_replicas((struct degree){1, 1}, 0);
    for (int which = 0; which < 3; which += 2) {
        char name[32], sha256[65];
        struct adapter *ad = stepped_adapter(en, which);
        snprintf(name, sizeof name, "adapter-%d", which);
        save(ad, folder_at(f, name), sha256);
        adapter_free(ad);
    }
    engine_close(en);
}

static void any_replica_samples_the_same_bits_on_policy(void **state)
{
    struct folder f = folder_create();
    put_adapters(&f);
    for (int d = 0; d < DEGREES; d++) {
        struct sample_result want[REQUESTS], got[REQUESTS];
        for (int several = 0; several < 2; several++) {
            struct engine *en = open_replicas(several ? degrees[d] : single(degrees[d]), 0);
            struct adapter *const ads[3] = {loaded(en, &f, 0), loaded(en, &f, 2), NULL};
            sample_all(en, ads, several ? got : want);
            int32_t prompts[REQUESTS][PROMPT];
            make_requests(en, prompts);
            for (int i = 0; i < REQUESTS && several; i++)
                assert_on_policy(en, ads[i % 3], prompts[i], PROMPT - 20 * i, &got[i]);
            struct sample_stats stats = engine_sample_stats(en);
            assert_int_equal(stats.prompt_tokens, REQUESTS * PROMPT - 20 * (1 + 2 + 3 + 4));
            adapter_free(ads[0]), adapter_free(ads[1]);
            engine_close(en);
        }
        for (int i = 0; i < REQUESTS; i++) {
            assert_same_result(&got[i], &want[i], 0);
            sample_result_clear(&got[i]), sample_result_clear(&want[i]);
        }
    }
    folder_remove(&f);
}

/* A prefix cache is of one replica, and a step of the optimizer makes all of them forget. */
static void no_replica_finds_what_other_weights_left(void **state)
{
    struct engine *en = open_replicas((struct degree){1, 2}, 0);
    struct adapter *ad = stepped_adapter(en, 0);
    struct sample_conf c = asks_for(1, 3);
    int32_t prompt[PROMPT];
    make_prompt(prompt, PROMPT, 1, engine_info(en)->vocab);
    for (int round = 0; round < 3; round++) {
        struct sample *s[2] = {add(en, ad, prompt, PROMPT, &c), add(en, ad, prompt, PROMPT, &c)};
        struct sample_result r[2];
        assert_int_not_equal(s[0]->replica, s[1]->replica);
        for (int i = 0; i < 2; i++) {
            finish(en, s[i], &r[i]);
            assert_on_policy(en, ad, prompt, PROMPT, &r[i]);
        }
        assert_same_result(&r[0], &r[1], 0);
        /* the second time each finds the two blocks that it has seen, after a step none */
        assert_int_equal(engine_sample_stats(en).prompt_tokens_cached,
                         round < 1 ? 0 : 2 * 2 * ENGINE_BLOCK_TOKENS);
        sample_result_clear(&r[0]), sample_result_clear(&r[1]);
        if (round == 0) continue;
        train_items(en, ad, round, NULL, NULL);
        optim(en, ad, 0);
    }
    adapter_free(ad);
    engine_close(en);
}

/* A budget for KV is of one replica: so many more requests are let in. */
static void requests_go_where_there_is_room(void **state)
{
    for (int replicas = 1; replicas <= 3; replicas++) {
        struct err e = {0};
        struct engine *en = try_replicas((struct degree){1, replicas}, 0, 1 << 20, &e);
        if (!en) fail_msg("%s", e.text);
        int blocks = kv_blocks_max(en->kv), count = 0;
        int32_t prompt[PROMPT];
        struct sample *all[100];
        struct sample_conf c = asks_for(1, 1);
        make_prompt(prompt, PROMPT, 1, engine_info(en)->vocab);
        assert_in_range(blocks, 3, 90);
        while (count < 100 && (all[count] = engine_sample_add(en, NULL, prompt, PROMPT, &c, &e)))
            count++;
        assert_int_equal(e.kind, ERR_RETRY);
        assert_int_equal(count, replicas * (blocks / 3));
        for (int i = 0; i < count; i++)
            engine_sample_free(en, all[i]);
        engine_close(en);
    }
}

/* ------------------------------------------------------------------ checkpoints */

static const struct degree shapes[] = {{1, 1}, {1, 2}, {2, 1}, {2, 2}, {1, 3}};
#define SHAPES ((int)(sizeof shapes / sizeof *shapes))

static void a_fresh_adapter_is_the_same_on_any_replicas(void **state)
{
    char digests[SHAPES][65];
    for (int d = 0; d < SHAPES; d++) {
        struct engine *en = open_replicas(shapes[d], 0);
        struct adapter *ad = new_adapter(en, 0);
        digest_of(ad, digests[d]);
        adapter_free(ad);
        engine_close(en);
        assert_string_equal(digests[d], digests[0]);
    }
}

static void a_checkpoint_does_not_show_who_saved_it(void **state)
{
    for (int from = 0; from < SHAPES; from++) {
        struct folder f = folder_create();
        char sha256[65], digest[65];
        struct engine *en = open_replicas(shapes[from], 0);
        save_pending(en, folder_at(&f, "saved"), digest, sha256);
        engine_close(en);
        for (int to = 0; to < SHAPES; to++) {
            char again[32];
            snprintf(again, sizeof again, "again-%d", to);
            en = open_replicas(shapes[to], 0);
            assert_loads_alike(en, &f, "saved", again, digest, sha256);
            engine_close(en);
        }
        folder_remove(&f);
    }
}

/* Between two items of an accumulation, and between two steps. */
static void a_run_that_left_goes_on_with_the_same_bits(void **state)
{
    for (int d = 0; d < DEGREES; d++) {
        struct folder f = folder_create();
        char stayed[65], left[65], sha256[65];
        struct engine *en = open_replicas(degrees[d], 0);
        struct adapter *ad = stepped_adapter(en, 0), *back;
        train_items(en, ad, 4, NULL, NULL);
        save(ad, folder_at(&f, "left"), sha256);
        train_items(en, ad, 5, NULL, NULL);
        double norm = optim(en, ad, 0.1);
        train_items(en, ad, 6, NULL, NULL);
        digest_of(ad, stayed);
        adapter_free(ad);
        engine_close(en);

        en = open_replicas(degrees[d], 0);
        back = load(en, folder_at(&f, "left"), sha256);
        train_items(en, back, 5, NULL, NULL);
        assert_true(optim(en, back, 0.1) == norm);
        train_items(en, back, 6, NULL, NULL);
        digest_of(back, left);
        assert_string_equal(left, stayed);
        adapter_free(back);
        engine_close(en);
        folder_remove(&f);
    }
}

static void a_gradient_that_is_not_finite_is_dropped_on_all_replicas(void **state)
{
    struct engine *en = open_replicas((struct degree){2, 2}, 0);
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
    for (int d = 0; d < 2; d++)
        for (int r = 0; r < 2; r++)
            for (size_t i = 0; i < ad->part_count; i++)
                assert_true(adapter_gradient(ad->replicas[d]->ranks[r])[i] == 0);
    adapter_free(ad);
    engine_close(en);
}

/* Found before anything is begun, on whichever replica the datum would be. */
static void a_pass_without_memory_changes_no_gradient(void **state)
{
    struct err e = {0};
    struct engine *en = open_replicas((struct degree){1, 2}, 0);
    struct adapter *ad = stepped_adapter(en, 0);
    struct train_item items[2] = {make_item(en, ad, LOSS_PPO, (int[]){40, 70, 0}, 1),
                                  make_item(en, ad, LOSS_PPO, (int[]){60, 9, 0}, 2)};
    char before[65], after[65];
    train_items(en, ad, 1, NULL, NULL);
    digest_of(ad, before);
    en->replicas[1]->scratch_bytes_max = 1000;
    assert_int_equal(engine_train(en, items, 2, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    digest_of(ad, after);
    assert_string_equal(after, before);
    assert_same_state(ad);
    item_clear(&items[0]), item_clear(&items[1]);
    adapter_free(ad);
    engine_close(en);
}

/* ------------------------------------------------------------------ opening */

static void assert_refused(int ranks, int replicas, const char *because)
{
    struct err e = {0};
    struct engine *en = try_replicas((struct degree){ranks, replicas}, 0, 0, &e);
    if (en) fail_msg("%d x %d was opened, but should say \"%s\"", ranks, replicas, because);
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

static void more_devices_than_there_may_be_are_refused(void **state)
{
    assert_refused(1, 9, "replicas is 9, expected 1 to 8");
    assert_refused(0, -1, "replicas is -1, expected 1 to 8");
    assert_refused(2, 5, "replicas is 5, expected 1 to 4 with ranks 2");
    assert_refused(4, 1 << 30, "replicas is 1073741824, expected 1 to 2 with ranks 4");
    assert_refused(9, 2, "ranks is 9, expected 1 to 8");
    assert_refused(3, 2, "ranks is 3, expected a divisor of the model's 4 key heads");
}

static void the_numerics_class_names_the_replicas(void **state)
{
    static const struct {
        struct degree d;
        const char *want;
    } all[] = {{{1, 1}, ""}, {{1, 3}, "/dp 3"}, {{2, 1}, "/tp 2"}, {{2, 2}, "/tp 2/dp 2"}};
    struct err e = {0};
    struct engine *en = try_replicas((struct degree){0, 0}, 0, 0, &e); /* 0 is 1 */
    assert_non_null(en);
    char one[128], want[160];
    snprintf(one, sizeof one, "%s", engine_info(en)->numerics);
    assert_int_equal(engine_info(en)->replicas, 1);
    engine_close(en);
    for (int i = 0; i < 4; i++) {
        en = open_replicas(all[i].d, 0);
        snprintf(want, sizeof want, "%s%s", one, all[i].want);
        assert_string_equal(engine_info(en)->numerics, want);
        engine_close(en);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replicas_agree_on_logprobs_gradients_and_ten_steps),
        cmocka_unit_test(each_replica_sums_its_datums_from_zero),
        cmocka_unit_test(a_run_repeats_to_the_bit),
        cmocka_unit_test(company_calls_and_memory_change_no_bit),
        cmocka_unit_test(replicas_stay_equal_and_all_work),
        cmocka_unit_test(any_replica_samples_the_same_bits_on_policy),
        cmocka_unit_test(no_replica_finds_what_other_weights_left),
        cmocka_unit_test(requests_go_where_there_is_room),
        cmocka_unit_test(a_fresh_adapter_is_the_same_on_any_replicas),
        cmocka_unit_test(a_checkpoint_does_not_show_who_saved_it),
        cmocka_unit_test(a_run_that_left_goes_on_with_the_same_bits),
        cmocka_unit_test(a_gradient_that_is_not_finite_is_dropped_on_all_replicas),
        cmocka_unit_test(a_pass_without_memory_changes_no_gradient),
        cmocka_unit_test(more_devices_than_there_may_be_are_refused),
        cmocka_unit_test(the_numerics_class_names_the_replicas),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}

/* test_adapter_file.c - adapters: how they begin, and that a folder gives back exactly what was
 * saved. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include "engine/model.h"
#include "world.h"

#define TIED FIXTURES "/torch/tied"

struct state {
    struct engine *en;
    struct folder dir;
};

static int setup(void **state)
{
    struct err e = {0};
    struct state *s = calloc(1, sizeof *s);
    s->en = engine_open(&(struct engine_conf){.model_dir = TIED "/", .device = "cpu", .threads = 1},
                        &e);
    if (!s->en) print_error("%s\n", e.text);
    s->dir = folder_create();
    *state = s;
    return s->en ? 0 : -1;
}

static int teardown(void **state)
{
    struct state *s = *state;
    folder_remove(&s->dir);
    engine_close(s->en);
    free(s);
    return 0;
}

static const struct lora_conf everything = {4, true, true, true};

static struct adapter *create(struct state *s, struct lora_conf conf, uint64_t seed)
{
    struct err e = {0};
    struct adapter *ad = adapter_create(s->en, &conf, seed, &e);
    if (!ad) fail_msg("%s", e.text);
    return ad;
}

/* One pass over a short sequence; with_step also applies it. */
static void train_once(struct state *s, struct adapter *ad, bool with_step)
{
    static const int32_t tokens[] = {5, 9, 13, 40, 95, 0};
    static const int64_t targets[] = {9, 13, 40, 95, 0, 7};
    static const float weights[] = {1, 1, 1, 1, 1, 1};
    float logprobs[6];
    struct err e = {0};
    struct datum d = {
        .n = 6, .tokens = tokens, .targets = targets, .weights = weights, .out_logprobs = logprobs};
    struct train_item item = {
        .adapter = ad, .loss = {.kind = LOSS_CROSS_ENTROPY}, .datums = &d, .datum_count = 1};
    const struct adam_params adam = {
        .learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    double norm;
    assert_int_equal(engine_train_check(s->en, &item, &e), 0);
    assert_int_equal(engine_train(s->en, &item, 1, &e), 0);
    if (with_step) assert_int_equal(adapter_optim_step(s->en, ad, &adam, &norm, &e), 0);
}

static void check_same(const struct adapter *a, const struct adapter *b, bool same)
{
    char x[65], y[65];
    digest_of(a, x);
    digest_of(b, y);
    assert_int_equal(strlen(x), 64);
    assert_int_equal(!strcmp(x, y), same);
}

/* ------------------------------------------------------------------ fresh adapters */

static void a_seed_decides_all_of_a_fresh_adapter(void **state)
{
    struct state *s = *state;
    struct adapter *a = create(s, everything, 7), *b = create(s, everything, 7);
    struct adapter *c = create(s, everything, 8);
    check_same(a, b, true);
    check_same(a, c, false);
    assert_int_equal(adapter_step(a), 0);
    assert_false(adapter_has_gradient(a));
    adapter_free(a);
    adapter_free(b);
    adapter_free(c);
}

static void a_begins_uniform_and_b_at_zero(void **state)
{
    struct state *s = *state;
    struct adapter *ad = create(s, (struct lora_conf){64, true, true, true}, 7);
    for (int i = 0; i < ad->site_count; i++) {
        const struct lora_tensor *t = &ad->sites[i];
        double bound = 1 / sqrt(t->in), sum = 0, squares = 0;
        int n = ad->conf.rank * t->in;
        for (int k = 0; k < n; k++) {
            assert_true(fabs((double)t->a[k]) <= bound * (1 + 1e-6));
            sum += (double)t->a[k];
            squares += (double)t->a[k] * (double)t->a[k];
        }
        assert_true(fabs(sum / n) < 0.1 * bound);
        assert_true(fabs(squares / n / (bound * bound / 3) - 1) < 0.1);
        for (int k = 0; k < ad->conf.rank * t->out; k++)
            assert_true(t->b[k] == 0 && t->grad_b[k] == 0 && t->m_b[k] == 0 && t->v_b[k] == 0);
        assert_int_equal((uintptr_t)t->a % 64, 0);
        assert_int_equal((uintptr_t)t->v_b % 64, 0);
    }
    assert_true(adapter_site(ad, 0, SITE_Q)->a[0] != adapter_site(ad, 1, SITE_Q)->a[0]);
    adapter_free(ad);
}

static void only_the_chosen_projections_carry_an_adapter(void **state)
{
    struct state *s = *state;
    for (int mask = 1; mask < 8; mask++) {
        struct lora_conf conf = {3, mask & 1, mask & 2, mask & 4};
        struct adapter *ad = create(s, conf, 1);
        for (int l = 0; l < ad->layers; l++)
            for (int i = 0; i < SITES_A_LAYER; i++)
                assert_int_equal(adapter_site(ad, l, (enum lora_site)i)->a != NULL,
                                 i <= SITE_O ? conf.train_attn : conf.train_mlp);
        assert_int_equal(adapter_unembed(ad)->a != NULL, conf.train_unembed);
        assert_int_equal(adapter_bytes(s->en, &conf, true), PARTS * ad->part_count * sizeof(float));
        assert_int_equal(adapter_bytes(s->en, &conf, false), ad->part_count * sizeof(float));
        adapter_free(ad);
    }
}

static void a_wrong_configuration_is_refused(void **state)
{
    struct state *s = *state;
    static const struct lora_conf wrong[] = {{0, true, true, true},
                                             {-1, true, true, true},
                                             {129, true, true, true},
                                             {8, false, false, false}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct err e = {0};
        assert_null(adapter_create(s->en, &wrong[i], 1, &e));
        assert_int_equal(e.kind, ERR_USER);
    }
    struct adapter *most = create(s, (struct lora_conf){ENGINE_RANK_MAX, true, true, true}, 1);
    adapter_free(most);
}

/* ------------------------------------------------------------------ saving and loading */

static const char *save(struct state *s, const struct adapter *ad, const char *name, bool optimizer,
                        char sha256[65])
{
    static char path[512];
    struct err e = {0};
    int64_t size;
    snprintf(path, sizeof path, "%s", folder_at(&s->dir, name));
    if (adapter_save(ad, path, optimizer, &size, sha256, &e) < 0) fail_msg("%s", e.text);
    int64_t sum = 0;
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors",
                                        "optimizer.safetensors"};
    for (int i = 0; i < 2 + optimizer; i++) {
        char file[600];
        struct stat st;
        snprintf(file, sizeof file, "%s/%s", path, files[i]);
        assert_int_equal(stat(file, &st), 0);
        sum += st.st_size;
    }
    assert_int_equal(size, sum);
    return path;
}

static void the_whole_state_comes_back(void **state)
{
    struct state *s = *state;
    for (int pending = 0; pending < 2; pending++) {
        char sha256[65];
        struct err e = {0};
        struct adapter *ad = create(s, everything, 3);
        train_once(s, ad, true);
        train_once(s, ad, true);
        if (pending) train_once(s, ad, false);
        const char *path = save(s, ad, pending ? "pending" : "settled", true, sha256);
        struct adapter *back = adapter_load(s->en, path, sha256, true, true, &e);
        if (!back) fail_msg("%s", e.text);
        check_same(ad, back, true);
        assert_int_equal(adapter_step(back), 2);
        assert_int_equal(adapter_has_gradient(back), pending);
        train_once(s, ad, true); /* and it goes on the same way */
        train_once(s, back, true);
        check_same(ad, back, true);
        adapter_free(ad);
        adapter_free(back);
    }
}

/* Where the moments lie shows in no bit, before a checkpoint or after it. */
static void paged_moments_come_back(void **state)
{
    struct state *s = *state;
    struct engine_conf conf = {
        .model_dir = TIED "/", .device = "cpu", .threads = 1, .paged_moments = true};
    struct err e = {0};
    struct state paged = {.en = engine_open(&conf, &e), .dir = s->dir};
    char sha256[65], sha256_paged[65];
    if (!paged.en) fail_msg("%s", e.text);
    struct adapter *ad = create(s, everything, 3), *other = create(&paged, everything, 3);
    train_once(s, ad, true), train_once(&paged, other, true);
    train_once(s, ad, true), train_once(&paged, other, true);
    train_once(s, ad, false), train_once(&paged, other, false);
    check_same(ad, other, true);
    save(s, ad, "resident", true, sha256);
    const char *path = save(&paged, other, "paged", true, sha256_paged);
    assert_string_equal(sha256, sha256_paged);
    struct adapter *back = adapter_load(s->en, path, sha256, true, true, &e);
    struct adapter *back_paged = adapter_load(paged.en, path, sha256, true, true, &e);
    struct adapter *frozen = adapter_load(paged.en, path, sha256, false, false, &e);
    assert_true(back && back_paged && frozen);
    train_once(s, back, true), train_once(&paged, back_paged, true);
    check_same(ad, back_paged, false);
    check_same(back, back_paged, true);
    assert_true(other->paged && !ad->paged);
    adapter_free(ad), adapter_free(back);
    adapter_free(other), adapter_free(back_paged), adapter_free(frozen);
    engine_close(paged.en);
}

static void weights_alone_come_back_with_a_fresh_optimizer(void **state)
{
    struct state *s = *state;
    char sha256[65];
    struct err e = {0};
    struct adapter *ad = create(s, (struct lora_conf){2, true, false, true}, 3);
    train_once(s, ad, true);
    const char *path = save(s, ad, "weights", true, sha256);
    struct adapter *trainable = adapter_load(s->en, path, sha256, true, false, &e);
    struct adapter *frozen = adapter_load(s->en, path, sha256, false, false, &e);
    assert_non_null(trainable);
    assert_non_null(frozen);
    assert_memory_equal(trainable->memory, ad->memory, ad->part_count * sizeof(float));
    assert_memory_equal(frozen->memory, ad->memory, ad->part_count * sizeof(float));
    assert_int_equal(adapter_step(trainable), 0);
    const float *gradient = trainable->memory + trainable->part_count;
    for (size_t i = 0; i < trainable->part_count; i++)
        assert_true(gradient[i] == 0);
    for (size_t i = 0; i < 2 * trainable->part_count; i++)
        assert_true(trainable->moments[i] == 0);
    assert_null(frozen->moments);
    assert_null(frozen->sites[0].grad_a);
    int64_t size;
    assert_int_equal(adapter_save(frozen, folder_at(&s->dir, "no"), true, &size, sha256, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    save(s, frozen, "frozen", false, sha256);
    adapter_free(ad);
    adapter_free(trainable);
    adapter_free(frozen);
}

static void an_existing_folder_is_never_written_over(void **state)
{
    struct state *s = *state;
    char sha256[65], before[65], after[65];
    int64_t size;
    struct err e = {0};
    struct adapter *a = create(s, everything, 1), *b = create(s, everything, 2);
    const char *path = save(s, a, "once", false, sha256);
    assert_int_equal(adapter_save(b, path, false, &size, before, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_non_null(strstr(e.text, "exists already"));
    struct adapter *back = adapter_load(s->en, path, sha256, true, false, &e);
    digest_of(a, before);
    digest_of(back, after);
    assert_string_equal(before, after);
    adapter_free(a);
    adapter_free(b);
    adapter_free(back);
}

static void the_rest_of_an_interrupted_save_does_not_disturb(void **state)
{
    struct state *s = *state;
    char sha256[65];
    struct adapter *a = create(s, everything, 1);
    assert_int_equal(mkdir(folder_at(&s->dir, "cut.tmp"), 0755), 0);
    folder_put_text(&s->dir, "cut.tmp/adapter_model.safetensors.tmp", "half");
    folder_put_text(&s->dir, "cut.tmp/optimizer.safetensors", "old");
    save(s, a, "cut", false, sha256);
    assert_int_equal(access(folder_at(&s->dir, "cut.tmp"), F_OK), -1);
    assert_int_equal(access(folder_at(&s->dir, "cut/optimizer.safetensors"), F_OK), -1);
    adapter_free(a);
}

static void load_refused(struct state *s, const char *path, const char *sha256, bool optimizer,
                         const char *because)
{
    struct err e = {0};
    assert_null(adapter_load(s->en, path, sha256, true, optimizer, &e));
    assert_int_equal(e.kind, ERR_USER);
    if (!strstr(e.text, because)) fail_msg("\"%s\" does not say \"%s\"", e.text, because);
}

/* Flips one bit of each file in turn: the hash notices before anything is used. */
static void a_changed_byte_is_noticed(void **state)
{
    struct state *s = *state;
    static const char *const files[] = {"changed/adapter_config.json",
                                        "changed/adapter_model.safetensors",
                                        "changed/optimizer.safetensors"};
    char sha256[65];
    struct adapter *ad = create(s, everything, 1);
    const char *path = save(s, ad, "changed", true, sha256);
    for (int i = 0; i < 3; i++) {
        size_t size;
        char *bytes = folder_get(folder_at(&s->dir, files[i]), &size);
        bytes[size - 3] ^= 1;
        folder_put(&s->dir, files[i], bytes, size);
        load_refused(s, path, sha256, true, "sha256");
        load_refused(s, path, sha256, false, "sha256");
        bytes[size - 3] ^= 1;
        folder_put(&s->dir, files[i], bytes, size);
        free(bytes);
    }
    struct err e = {0};
    struct adapter *back = adapter_load(s->en, path, sha256, true, true, &e);
    assert_non_null(back);
    adapter_free(back);
    unlink(folder_at(&s->dir, files[2]));
    load_refused(s, path, sha256, false, "sha256"); /* a file taken away is a change too */
    load_refused(s, path, NULL, true, "no optimizer state");
    adapter_free(ad);
}

static void change_config(struct state *s, const char *name, const char *key, const char *value)
{
    char path[512];
    json_error_t at;
    snprintf(path, sizeof path, "%s/adapter_config.json", folder_at(&s->dir, name));
    json_t *root = json_load_file(path, 0, &at);
    assert_non_null(root);
    json_object_set_new(root, key, json_loads(value, JSON_DECODE_ANY, &at));
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
}

static void a_folder_that_is_not_ours_to_use_is_refused(void **state)
{
    struct state *s = *state;
    static const struct {
        const char *key, *value, *because;
    } cases[] = {
        {"r", "5", "has shape [4, 32], expected [5, 32]"},
        {"r", "0", "no r from 1 to 128"},
        {"r", "129", "no r from 1 to 128"},
        {"lora_alpha", "16", "lora_alpha 16, expected 32"},
        {"peft_type", "\"IA3\"", "peft_type"},
        {"use_dora", "true", "use_dora"},
        {"use_rslora", "true", "use_rslora"},
        {"rank_pattern", "{\"q_proj\":2}", "rank_pattern"},
        {"bias", "\"all\"", "bias"},
        {"target_modules", "[\"q_proj\",\"k_proj\",\"v_proj\",\"wte\"]", "unknown module \"wte\""},
        {"target_modules", "[\"q_proj\",\"k_proj\",\"v_proj\"]", "does not target \"o_proj\""},
        {"target_modules", "[\"lm_head\"]", "expected 2"},
        {"target_modules", "\"all-linear\"", "one of train_attn"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char sha256[65], name[32];
        struct adapter *ad = create(s, everything, 1);
        snprintf(name, sizeof name, "case-%zu", i);
        const char *path = save(s, ad, name, true, sha256);
        adapter_free(ad);
        change_config(s, name, cases[i].key, cases[i].value);
        load_refused(s, path, NULL, true, cases[i].because);
    }
    load_refused(s, folder_at(&s->dir, "nowhere"), NULL, false, "could not open");
}

/* The folder's name stands in adapter_config.json, never the path that leads to it on this machine.
 */
static void the_configuration_tells_peft_what_it_needs(void **state)
{
    struct state *s = *state;
    char sha256[65], path[512];
    json_error_t at;
    struct adapter *ad = create(s, (struct lora_conf){4, true, false, true}, 1);
    snprintf(path, sizeof path, "%s/adapter_config.json", save(s, ad, "peft", false, sha256));
    json_t *root = json_load_file(path, 0, &at);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "base_model_name_or_path")),
                        "tied");
    assert_string_equal(json_string_value(json_object_get(root, "peft_type")), "LORA");
    assert_string_equal(json_string_value(json_object_get(root, "task_type")), "CAUSAL_LM");
    assert_int_equal(json_integer_value(json_object_get(root, "r")), 4);
    assert_int_equal(json_integer_value(json_object_get(root, "lora_alpha")), 32);
    const json_t *targets = json_object_get(root, "target_modules");
    static const char *const want[] = {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"};
    assert_int_equal(json_array_size(targets), 5);
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(json_string_value(json_array_get(targets, i)), want[i]);
    json_decref(root);
    adapter_free(ad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_decides_all_of_a_fresh_adapter),
        cmocka_unit_test(a_begins_uniform_and_b_at_zero),
        cmocka_unit_test(only_the_chosen_projections_carry_an_adapter),
        cmocka_unit_test(a_wrong_configuration_is_refused),
        cmocka_unit_test(the_whole_state_comes_back),
        cmocka_unit_test(paged_moments_come_back),
        cmocka_unit_test(weights_alone_come_back_with_a_fresh_optimizer),
        cmocka_unit_test(an_existing_folder_is_never_written_over),
        cmocka_unit_test(the_rest_of_an_interrupted_save_does_not_disturb),
        cmocka_unit_test(a_changed_byte_is_noticed),
        cmocka_unit_test(a_folder_that_is_not_ours_to_use_is_refused),
        cmocka_unit_test(the_configuration_tells_peft_what_it_needs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

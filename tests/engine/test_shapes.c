/* test_shapes.c - the engine against PyTorch where query heads share key heads by 1, 2, 4 and 8.
 *
 * tools/record_shapes.py recorded the numbers; tinworks-engine compare does the comparing.  Here it
 * must also say no: to numbers that are a little off, and to another model. */
#include "tool.h"

static void try_case(const char *name)
{
    struct folder f = folder_create();
    char path[512];
    case_path(path, sizeof path, name);
    case_make_model(&f, name);
    struct ran r = run_tool(&f, "%s compare --model %s/model --case %s", ENGINE_TOOL, f.path, path);
    print_message("%s", r.out);
    if (r.code) fail_msg("%s", r.err);
    assert_non_null(strstr(r.out, "\nlogits "));
    assert_non_null(strstr(r.out, "\nlosses "));
    assert_non_null(strstr(r.out, "\ngradients "));
    assert_non_null(strstr(r.out, "\nsteps "));
    assert_null(strstr(r.out, "BEYOND"));
    ran_clear(&r);
    folder_remove(&f);
}

static void the_engine_is_pytorch_at_each_ratio_of_heads(void **state)
{
    static const char *const names[] = {"gqa-1-tied", "gqa-1-untied", "gqa-2-tied", "gqa-2-untied",
                                        "gqa-4-tied", "gqa-4-untied", "gqa-8-tied", "gqa-8-untied"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        try_case(names[i]);
}

/* ------------------------------------------------------------------ what is wrong is seen */

/* The number that path leads to, "adapters/0/losses/ppo", moved by `by`. */
static void nudge(json_t *root, const char *path, double by)
{
    char copy[200], *save = NULL;
    json_t *at = root, *parent = NULL;
    const char *key = NULL;
    size_t index = 0;
    snprintf(copy, sizeof copy, "%s", path);
    for (char *word = strtok_r(copy, "/", &save); word; word = strtok_r(NULL, "/", &save)) {
        parent = at;
        key = word;
        index = strtoul(word, NULL, 10);
        at = json_is_array(at) ? json_array_get(at, index) : json_object_get(at, word);
        if (!at) fail_msg("the case has no \"%s\"", path);
    }
    json_t *moved = json_real(json_number_value(at) + by);
    if (json_is_array(parent))
        json_array_set_new(parent, index, moved);
    else
        json_object_set_new(parent, key, moved);
}

static void wrong_numbers_are_beyond_the_limit(void **state)
{
    static const struct {
        const char *path, *what;
        double by;
    } wrongs[] = {
        {"adapters/0/logits/values/3/5", "logits", 4e-5},
        {"adapters/1/logits/lse/7", "logits", 4e-5},
        {"adapters/1/losses/ppo", "losses", 0.01},
        {"adapters/0/gradients/tensors/lm_head.lora_B/norm", "gradients", 0.1},
        {"adapters/1/gradients/tensors/model.layers.0.self_attn.q_proj.lora_A/values/0",
         "gradients", 0.1},
        {"adapters/0/steps/losses/9", "steps", 0.1},
        {"adapters/1/steps/learning_rate", "steps", 1e-4},
    };
    struct folder f = folder_create();
    char path[512], want[100];
    json_error_t at;
    case_path(path, sizeof path, "gqa-2-tied");
    case_make_model(&f, "gqa-2-tied");
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        json_t *root = json_load_file(path, 0, &at);
        nudge(root, wrongs[i].path, wrongs[i].by);
        assert_int_equal(json_dump_file(root, folder_at(&f, "wrong.json"), 0), 0);
        struct ran r = run_tool(&f, "%s compare --model %s/model --case %s/wrong.json", ENGINE_TOOL,
                                f.path, f.path);
        assert_int_equal(r.code, 1);
        snprintf(want, sizeof want, "tinworks-engine compare: beyond the limit: %s\n",
                 wrongs[i].what);
        assert_string_equal(r.err, want);
        assert_non_null(strstr(r.out, "BEYOND"));
        ran_clear(&r);
        json_decref(root);
    }
    folder_remove(&f);
}

static void another_model_and_a_broken_case_are_named(void **state)
{
    struct folder f = folder_create();
    char path[512];
    case_path(path, sizeof path, "gqa-4-tied");
    case_make_model(&f, "gqa-2-tied");
    struct ran r = run_tool(&f, "%s compare --model %s/model --case %s", ENGINE_TOOL, f.path, path);
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "the case was recorded with"));
    assert_non_null(strstr(r.err, "made by: tinworks-model make --vocab 1031"));
    ran_clear(&r);
    folder_put_text(&f, "broken.json", "{\"name\": \"x\", \"make\": \"y\"}");
    r = run_tool(&f, "%s compare --model %s/model --case %s/broken.json", ENGINE_TOOL, f.path,
                 f.path);
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "broken.json\": there is no text \"weights_sha256\""));
    ran_clear(&r);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_engine_is_pytorch_at_each_ratio_of_heads),
        cmocka_unit_test(wrong_numbers_are_beyond_the_limit),
        cmocka_unit_test(another_model_and_a_broken_case_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* emulated_engine.c - the whole engine on the emulated device, against PyTorch's numbers: what passes
 * between it and the table is then seen too, and AddressSanitizer keeps it out of the device's memory.
 *
 * The cases were recorded in fp32.  Here adapters and attention round what they multiply to bf16, by
 * up to 2^-9 of each number, so the limits are wider: some roundings of numbers of the logits' size,
 * and of parts of a gradient that mostly cancel. */
#include "engine/tool.h"

static void widen(const struct folder *f, const char *name)
{
    char path[512];
    json_error_t at;
    case_path(path, sizeof path, name);
    json_t *root = json_load_file(path, 0, &at);
    if (!root) fail_msg("%s: %s", path, at.text);
    json_object_set_new(root, "limits",
                        json_pack("{s:f, s:f, s:f, s:f}", "logits", 0.05, "losses", 0.01,
                                  "gradients", 0.05, "steps", 0.05));
    assert_int_equal(json_dump_file(root, folder_at(f, "case.json"), 0), 0);
    json_decref(root);
}

static void the_engine_on_the_device_is_pytorch(void **state)
{
    static const char *const names[] = {"gqa-2-tied", "gqa-4-untied"};
    for (int i = 0; i < 2; i++) {
        struct folder f = folder_create();
        case_make_model(&f, names[i]);
        widen(&f, names[i]);
        struct ran r = run_tool(&f, "%s compare --device cuda:0 --model %s/model --case %s/case.json",
                                ENGINE_TOOL, f.path, f.path);
        print_message("%s", r.out);
        if (r.code) fail_msg("%s", r.err);
        assert_non_null(strstr(r.out, "\nsteps "));
        ran_clear(&r);
        folder_remove(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_engine_on_the_device_is_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_cli.c - tinworks-engine as a user runs it: its numbers are the engine's own, its errors name
 * what was wrong, and its exit codes can be relied on. */
#include "tool.h"

#include "engine/plan.h"

static struct folder folder;

static int setup(void **state)
{
    /* What a server's shell exports must not be taken for a flag of the same name. */
    setenv("TINWORKS_DATA", "/elsewhere", 1);
    setenv("TINWORKS_MODEL", "a/name", 1);
    folder = world_make(TINY_MODEL);
    return 0;
}

static int teardown(void **state)
{
    folder_remove(&folder);
    return 0;
}

/* A command on the tiny model that must succeed; words stand for themselves in the shell. */
static struct ran tool(const char *command, const char *words)
{
    struct ran r =
        run_tool(&folder, "%s %s --model %s/model %s", ENGINE_TOOL, command, folder.path, words);
    if (r.code) fail_msg("%s %s: %s", command, words, r.err);
    return r;
}

static json_t *json_of(const char *text)
{
    json_error_t at;
    json_t *root = json_loads(text, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &at);
    if (!root) fail_msg("%s: %s", at.text, text);
    return root;
}

static double item_of(const json_t *root, const char *list, int i)
{
    return json_number_value(json_array_get(json_object_get(root, list), (size_t)i));
}

/* ------------------------------------------------------------------ what it prints */

static void info_says_what_the_folder_holds(void **state)
{
    struct ran r = tool("info", "");
    struct engine *en = open_engine(&folder, 1, 0, 0);
    char line[200];
    snprintf(line, sizeof line, "weights     fp32, sha256:%s\n",
             engine_info(en)->weights_sha256);
    assert_non_null(strstr(r.out, line));
    snprintf(line, sizeof line, "numerics    %s\n", engine_info(en)->numerics);
    assert_non_null(strstr(r.out, line));
    assert_non_null(strstr(r.out, "layers      4\nhidden      64\n"));
    assert_non_null(strstr(r.out, "vocabulary  1024, tied\n"));
    assert_string_equal(r.err, "");
    ran_clear(&r);
    engine_close(en);
}

static void plan_prints_the_plan(void **state)
{
    char dir[300];
    struct memory_plan p;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/model", folder.path);
    const struct memory_plan_conf conf = {.model_dir = dir,
                                          .lora = {9, true, false, true},
                                          .scratch_bytes_max = 64 << 20,
                                          .kv_bytes_max = 32 << 20};
    assert_int_equal(memory_plan_make(&conf, &p, &e), 0);
    const char *words = "--rank 9 --no-mlp --adapters 3 --scratch-mb 64 --kv-mb 32";
    struct ran r = tool("plan", words);
    char line[100];
    snprintf(line, sizeof line, "total_bytes %29zu", memory_plan_total(&p, 3));
    assert_non_null(strstr(r.out, line));
    ran_clear(&r);

    char json[200];
    snprintf(json, sizeof json, "%s --json", words);
    r = tool("plan", json);
    json_t *root = json_of(r.out);
    const struct {
        const char *name;
        size_t value;
    } want[] = {{"parameters", p.parameters},
                {"weights_bytes", p.weights},
                {"packed_bytes", p.packed},
                {"adapter_bytes", p.adapter},
                {"optimizer_bytes", p.optimizer},
                {"token_training_bytes", p.token_training},
                {"kv_tokens", ((size_t)32 << 20) / p.kv_token},
                {"longest_training_tokens", (size_t)p.longest_training},
                {"total_bytes", memory_plan_total(&p, 3)}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_int_equal(json_integer_value(json_object_get(root, want[i].name)), want[i].value);
    json_decref(root);
    ran_clear(&r);
}

/* A request that takes the engine directly. */
static struct sample_result sample_directly(struct engine *en, const int32_t *prompt, int count,
                                            const struct sample_conf *conf)
{
    struct err e = {0};
    struct sample_result out;
    struct sample *s = engine_sample_add(en, NULL, prompt, count, conf, &e);
    if (!s) fail_msg("%s", e.text);
    while (engine_sample_step(en, &e) > 0)
        ;
    sample_take(s, &out);
    engine_sample_free(en, s);
    return out;
}

/* Nine digits name a float: so == may be asked. */
static void generate_prints_the_engines_samples(void **state)
{
    const int32_t prompt[] = {5, 17, 1000, 3};
    const struct sample_conf conf = {.num_samples = 3,
                                     .max_tokens = 12,
                                     .temperature = 0.8f,
                                     .top_k = 50,
                                     .top_p = 0.95f,
                                     .seed = 42,
                                     .stop_at_eos = true};
    struct engine *en = open_engine(&folder, 1, 0, 0);
    struct sample_result want = sample_directly(en, prompt, 4, &conf);
    struct ran r = tool("generate", "--tokens 5,17,1000,3 --samples 3 --max-tokens 12 "
                                    "--temperature 0.8 --top-k 50 --top-p 0.95 --seed 42");
    const char *line = r.out;
    for (int i = 0; i < 3; i++) {
        const struct sampled *q = &want.sequences[i];
        json_t *got = json_of(line);
        assert_int_equal(json_array_size(json_object_get(got, "tokens")), q->n);
        for (int k = 0; k < q->n; k++) {
            assert_int_equal((int)item_of(got, "tokens", k), q->tokens[k]);
            assert_true((float)item_of(got, "logprobs", k) == q->logprobs[k]);
        }
        assert_string_equal(json_string_value(json_object_get(got, "stop_reason")),
                            q->reason == STOP_REASON_STOP ? "stop" : "length");
        assert_true(json_is_string(json_object_get(got, "text")));
        json_decref(got);
        line = strchr(line, '\n') + 1;
    }
    assert_string_equal(line, "");
    ran_clear(&r);
    sample_result_clear(&want);
    engine_close(en);
}

/* The tokenizer's first 256 entries are bytes: a lone one of a longer character is shown as such.
 */
static void generated_text_is_always_text(void **state)
{
    struct ran r = tool("generate", "--tokens 1 --samples 64 --max-tokens 20 --temperature 2");
    const char *line = r.out;
    bool replaced = false;
    for (int i = 0; i < 64; i++) {
        json_t *got = json_of(line);
        const char *text = json_string_value(json_object_get(got, "text"));
        assert_non_null(text);
        replaced |= strstr(text, "\xef\xbf\xbd") != NULL;
        json_decref(got);
        line = strchr(line, '\n') + 1;
    }
    assert_true(replaced);
    ran_clear(&r);
}

static void score_prints_the_prompts_logprobs(void **state)
{
    const int32_t prompt[] = {9, 8, 7, 6, 900};
    const struct sample_conf conf = {
        .max_tokens = 1, .top_k = -1, .top_p = 1, .prompt_logprobs = true};
    struct engine *en = open_engine(&folder, 1, 0, 0);
    struct sample_result want = sample_directly(en, prompt, 5, &conf);
    struct ran r = tool("score", "--tokens 9,8,7,6,900");
    json_t *got = json_of(r.out);
    double sum = 0;
    assert_int_equal(json_array_size(json_object_get(got, "logprobs")), 5);
    assert_true(json_is_null(json_array_get(json_object_get(got, "logprobs"), 0)));
    for (int i = 1; i < 5; i++) {
        assert_true((float)item_of(got, "logprobs", i) == want.prompt_logprobs[i]);
        sum += (double)want.prompt_logprobs[i];
    }
    assert_true(fabs(json_number_value(json_object_get(got, "sum")) - sum) < 1e-6);
    json_decref(got);
    ran_clear(&r);
    sample_result_clear(&want);
    engine_close(en);
}

/* ------------------------------------------------------------------ ranks */

/* Tokens and log-probabilities of each line that generate printed. */
static void assert_same_lines(const char *a, const char *b)
{
    json_t *x = json_of(a), *y = json_of(b);
    json_t *tokens = json_object_get(x, "tokens");
    assert_true(json_array_size(tokens) > 0);
    assert_true(json_equal(tokens, json_object_get(y, "tokens")));
    for (int i = 0; i < (int)json_array_size(tokens); i++)
        assert_true(fabs(item_of(x, "logprobs", i) - item_of(y, "logprobs", i)) < 2e-5);
    json_decref(x);
    json_decref(y);
}

static void ranks_reach_the_engine(void **state)
{
    struct ran r = tool("info", "--ranks 2");
    assert_non_null(strstr(r.out, "/tp 2\n"));
    ran_clear(&r);
    const char *words = "--tokens 5,17,1000,3 --max-tokens 12 --seed 9";
    char two[200];
    snprintf(two, sizeof two, "%s --ranks 2", words);
    struct ran one = tool("generate", words);
    r = tool("generate", two);
    assert_same_lines(r.out, one.out);
    ran_clear(&one);
    ran_clear(&r);
    one = tool("score", "--tokens 5,17,1000,3");
    r = tool("score", "--tokens 5,17,1000,3 --ranks 2");
    json_t *a = json_of(one.out), *b = json_of(r.out);
    double sum = json_number_value(json_object_get(a, "sum"));
    assert_true(sum < -1);
    assert_true(fabs(sum - json_number_value(json_object_get(b, "sum"))) < 1e-4);
    json_decref(a);
    json_decref(b);
    ran_clear(&one);
    ran_clear(&r);
    r = run_tool(&folder, "%s info --model %s/model --ranks 4", ENGINE_TOOL, folder.path);
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "ranks is 4, expected a divisor of the model's 2 key heads"));
    ran_clear(&r);
}

/* What two ranks trained and saved, one rank loads. */
static void ranks_train_an_adapter_for_any_ranks(void **state)
{
    char words[800];
    folder_put_text(&folder, "ranks-data", "{\"tokens\": [5, 6, 7, 8, 9, 10, 11]}\n");
    snprintf(words, sizeof words, "--data %s/ranks-data --steps 3 --rank 4 --ranks 2 --out %s/by-two",
             folder.path, folder.path);
    struct ran r = tool("train", words);
    assert_non_null(strstr(r.out, "3 steps, loss "));
    ran_clear(&r);
    snprintf(words, sizeof words, "--tokens 5,6,7 --adapter %s/by-two", folder.path);
    r = tool("score", words);
    json_t *one = json_of(r.out);
    ran_clear(&r);
    snprintf(words, sizeof words, "--tokens 5,6,7 --ranks 2 --adapter %s/by-two", folder.path);
    r = tool("score", words);
    json_t *two = json_of(r.out);
    ran_clear(&r);
    for (int i = 1; i < 3; i++)
        assert_true(fabs(item_of(one, "logprobs", i) - item_of(two, "logprobs", i)) < 2e-5);
    json_decref(one);
    json_decref(two);
}

/* ------------------------------------------------------------------ replicas */

static void replicas_reach_the_engine(void **state)
{
    char words[800];
    struct ran r = tool("info", "--ranks 2 --replicas 2");
    assert_non_null(strstr(r.out, "/tp 2/dp 2\n"));
    ran_clear(&r);
    struct ran one = tool("generate", "--tokens 5,17,1000,3 --max-tokens 12 --seed 9");
    r = tool("generate", "--tokens 5,17,1000,3 --max-tokens 12 --seed 9 --replicas 3");
    assert_string_equal(r.out, one.out);
    ran_clear(&one);
    ran_clear(&r);
    folder_put_text(&folder, "replicas-data",
                    "{\"tokens\": [5, 6, 7, 8, 9, 10, 11]}\n{\"tokens\": [8, 9, 10]}\n");
    snprintf(words, sizeof words,
             "--data %s/replicas-data --steps 3 --rank 4 --replicas 2 --out %s/by-replicas",
             folder.path, folder.path);
    r = tool("train", words);
    assert_non_null(strstr(r.out, "3 steps, loss "));
    ran_clear(&r);
    snprintf(words, sizeof words, "--tokens 5,6,7 --adapter %s/by-replicas", folder.path);
    one = tool("score", words);
    snprintf(words, sizeof words, "--tokens 5,6,7 --adapter %s/by-replicas --replicas 2",
             folder.path);
    r = tool("score", words);
    assert_string_equal(r.out, one.out);
    ran_clear(&one);
    ran_clear(&r);
    r = run_tool(&folder, "%s info --model %s/model --ranks 2 --replicas 5", ENGINE_TOOL,
                 folder.path);
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "replicas is 5, expected 1 to 4 with ranks 2"));
    ran_clear(&r);
}

static void plan_prints_what_a_gpu_has_room_for(void **state)
{
    struct err e = {0};
    struct device_plan p;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/model", folder.path);
    const struct device_plan_conf conf = {.memory = {.model_dir = dir,
                                                     .lora = {8, true, true, true},
                                                     .ranks = 2,
                                                     .replicas = 3},
                                          .device_bytes = (size_t)80 * 1000000000,
                                          .host_bytes = (size_t)10 * 1000000000,
                                          .scratch_percent = 40,
                                          .kv_percent = 30};
    assert_int_equal(device_plan_make(&conf, &p, &e), 0);
    struct ran r = tool("plan", "--device-gb 80 --ranks 2 --replicas 3 --rank 8 --host-gb 10 "
                                "--scratch-share 40 --kv-share 30 --json");
    json_t *root = json_of(r.out);
    const struct {
        const char *name;
        size_t value;
    } want[] = {{"fits", 1},
                {"ranks", 2},
                {"replicas", 3},
                {"left_bytes", p.left},
                {"pass_tokens", p.pass_tokens},
                {"kv_tokens", p.kv_tokens},
                {"tenants_resident", p.tenants_resident},
                {"tenants_paged", p.tenants_paged},
                {"tenants_on_host", p.tenants_on_host}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_int_equal(json_integer_value(json_object_get(root, want[i].name)), want[i].value);
    assert_true(p.tenants_resident > 0);
    json_decref(root);
    ran_clear(&r);
}

/* ------------------------------------------------------------------ train */

static void put_data(void)
{
    folder_put_text(&folder, "data.jsonl",
                    "{\"tokens\": [1, 2, 3, 4, 5, 6, 7, 8]}\n\n"
                    "{\"tokens\": [20, 21, 22, 23], \"weights\": [0, 0, 1, 0.5]}\n");
}

/* The same two steps by hand. */
static void train_by_hand(char digest[65], double *loss)
{
    const int32_t a[] = {1, 2, 3, 4, 5, 6, 7}, b[] = {20, 21, 22};
    const int64_t a_next[] = {2, 3, 4, 5, 6, 7, 8}, b_next[] = {21, 22, 23};
    const float a_weights[] = {1, 1, 1, 1, 1, 1, 1}, b_weights[] = {0, 1, 0.5f};
    float logprobs[2][7];
    struct datum d[] = {
        {.n = 7, .tokens = a, .targets = a_next, .weights = a_weights, .out_logprobs = logprobs[0]},
        {.n = 3, .tokens = b, .targets = b_next, .weights = b_weights, .out_logprobs = logprobs[1]},
    };
    const struct lora_conf lora = {4, true, false, true};
    const struct adam_params adam = {.learning_rate = 0.01,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .eps = 1e-12,
                                     .weight_decay = 0.1,
                                     .grad_clip_norm = 1};
    struct engine *en = open_engine(&folder, 1, 0, 0);
    struct err e = {0};
    struct adapter *ad = adapter_create(en, &lora, 7, &e);
    struct train_item item = {
        .adapter = ad, .loss = {.kind = LOSS_CROSS_ENTROPY}, .datums = d, .datum_count = 2};
    double norm;
    for (int i = 0; i < 2; i++) {
        train(en, &item, 1);
        assert_int_equal(adapter_optim_step(en, ad, &adam, &norm, &e), 0);
    }
    digest_of(ad, digest);
    *loss = item.out_loss / 10;
    adapter_free(ad);
    engine_close(en);
}

static void train_takes_the_steps_and_saves_the_adapter(void **state)
{
    char digest[65], got[65], dir[300], words[800], line[100];
    double loss;
    struct err e = {0};
    put_data();
    train_by_hand(digest, &loss);
    snprintf(words, sizeof words,
             "--data %s/data.jsonl --steps 2 --batch 2 --rank 4 --no-mlp --learning-rate 0.01 "
             "--weight-decay 0.1 --grad-clip-norm 1 --seed 7 --out %s/adapter",
             folder.path, folder.path);
    struct ran r = tool("train", words);
    snprintf(line, sizeof line, "2 steps, loss %.6f a token\nsaved ", loss);
    assert_true(!strncmp(r.out, line, strlen(line)));
    /* no terminal: whole lines, the last of which is there in any case */
    assert_null(strchr(r.err, '\r'));
    assert_non_null(strstr(r.err, "step 2/2  loss "));
    assert_non_null(strstr(r.err, " tokens/s  eta 0:00\n"));
    ran_clear(&r);

    struct engine *en = open_engine(&folder, 1, 0, 0);
    snprintf(dir, sizeof dir, "%s/adapter", folder.path);
    struct adapter *ad = adapter_load(en, dir, NULL, true, true, &e);
    if (!ad) fail_msg("%s", e.text);
    digest_of(ad, got);
    assert_string_equal(got, digest);
    adapter_free(ad);
    engine_close(en);

    /* what was trained can be sampled from, scored with and trained on */
    snprintf(words, sizeof words, "--tokens 1,2,3 --adapter %s/adapter", folder.path);
    struct ran with = tool("score", words), without = tool("score", "--tokens 1,2,3");
    assert_string_not_equal(with.out, without.out);
    ran_clear(&with);
    ran_clear(&without);
    r = tool("generate", words);
    ran_clear(&r);
    snprintf(words, sizeof words, "--data %s/data.jsonl --steps 1 --adapter %s/adapter",
             folder.path, folder.path);
    r = tool("train", words);
    ran_clear(&r);

    /* and is not overwritten: found out before the first step */
    r = run_tool(&folder, "%s train --model %s/model %s --out %s/adapter", ENGINE_TOOL, folder.path,
                 words, folder.path);
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "/adapter\" is there already\n"));
    assert_null(strstr(r.err, "step 1/"));
    ran_clear(&r);
}

/* ------------------------------------------------------------------ errors */

struct wrong {
    const char *words; /* @ stands for the folder */
    int code;
    const char *says;
};

static void try_wrong(const struct wrong *w)
{
    char command[1024];
    size_t n = 0;
    *command = '\0';
    for (const char *c = w->words; *c; c++)
        n += (size_t)snprintf(command + n, sizeof command - n, *c == '@' ? "%s" : "%.1s",
                              *c == '@' ? folder.path : c);
    struct ran r = run_tool(&folder, "%s %s", ENGINE_TOOL, command);
    if (r.code != w->code || !strstr(r.err, w->says))
        fail_msg("\"%s\" ended with %d and said: %s", w->words, r.code, r.err);
    assert_string_equal(r.out, "");
    ran_clear(&r);
}

static void whatever_is_wrong_is_named(void **state)
{
    static const struct wrong wrongs[] = {
        {"", 2, "usage: tinworks-engine COMMAND"},
        {"fly --model @/model", 2, "no command \"fly\""},
        {"info", 1, "tinworks-engine info: setting model must be given (--model)\n"},
        {"info --model @/nowhere", 1, "could not open model \"/"},
        {"info --model @/model --depth 3", 1, "unrecognized flag \"--depth\", see --help"},
        {"info --model @/model more", 1, "unexpected word \"more\", see --help"},
        {"info --model @/model --threads 0", 1, "setting threads is 0, expected 1 to 256"},
        {"info --model @/model --threads two", 1,
         "setting threads is \"two\", expected a whole number"},
        {"info --model @/model --device tpu", 1, "device is \"tpu\", expected"},
        {"plan --model @/model --rank 129", 1, "setting rank is 129, expected 1 to 128"},
        {"plan --model @/model --no-attn --no-mlp --no-unembed", 1,
         "an adapter needs one of train_attn, train_mlp and train_unembed"},
        {"plan --model @/nowhere", 1, "could not read the configuration of model \"/"},
        {"generate --model @/model", 1, "setting tokens must be given (--tokens)"},
        {"generate --model @/model --tokens 1,x", 1,
         "setting tokens has \"x\", expected token ids as 1,2,3"},
        {"generate --model @/model --tokens 1,,2", 1,
         "setting tokens has \",2\", expected token ids as 1,2,3"},
        {"generate --model @/model --tokens 1,1024", 1,
         "prompt token 1 is 1024, expected 0 to 1023"},
        {"generate --model @/model --tokens 1 --temperature hot", 1,
         "setting temperature is \"hot\", expected a number"},
        {"generate --model @/model --tokens 1 --temperature -1", 1, "temperature is -1"},
        {"generate --model @/model --tokens 1 --top-p 0", 1, "top_p is 0, expected 0 < top_p"},
        {"generate --model @/model --tokens 1 --samples 129", 1,
         "setting samples is 129, expected 1 to 128"},
        {"generate --model @/model --tokens 1 --adapter @/none", 1, "/none"},
        {"score --model @/model --tokens ''", 1, "setting tokens must be given, as 1,2,3"},
        {"train --model @/model", 1, "setting data must be given (--data)"},
        {"train --model @/model --data @/none", 1, "could not open data \"/"},
        {"train --model @/model --data @/short", 1,
         "/short\", line 2: there are 1 tokens, expected 2 to"},
        {"train --model @/model --data @/words", 1, "/words\", line 1: token 1 is no token id"},
        {"train --model @/model --data @/text", 1, "/text\", line 1: it is not JSON"},
        {"train --model @/model --data @/other", 1,
         "/other\", line 1: there is no list \"tokens\""},
        {"train --model @/model --data @/uneven", 1,
         "/uneven\", line 1: there are 1 weights, expected 2, one a token"},
        {"train --model @/model --data @/empty", 1, "/empty\" has no sequence"},
        {"train --model @/model --data @/large", 1,
         "datum 0 has token id 5000 at position 0, expected 0 to 1023"},
        {"train --model @/model --data @/large --learning-rate -1", 1, "learning_rate is -1"},
        {"train --model @/model --data @/large --rank 0", 1,
         "setting rank is 0, expected 1 to 128"},
        {"compare --model @/model", 1, "setting case must be given (--case)"},
        {"compare --model @/model --case @/text", 1, "/text is not JSON"},
        {"compare --model @/model --case @/none", 1, "/none\""},
    };
    folder_put_text(&folder, "short", "{\"tokens\": [1, 2]}\n{\"tokens\": [1]}\n");
    folder_put_text(&folder, "words", "{\"tokens\": [1, \"two\"]}\n");
    folder_put_text(&folder, "text", "once upon a time\n");
    folder_put_text(&folder, "other", "{\"prompt\": [1, 2]}\n");
    folder_put_text(&folder, "uneven", "{\"tokens\": [1, 2], \"weights\": [1]}\n");
    folder_put_text(&folder, "empty", "\n\n");
    folder_put_text(&folder, "large", "{\"tokens\": [5000, 2]}\n");
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++)
        try_wrong(&wrongs[i]);
}

static void every_command_explains_itself(void **state)
{
    static const struct {
        const char *command, *flag, *absent;
    } helps[] = {
        {"info", "--threads", "--tokens"},      {"plan", "--adapters", "--tokens"},
        {"generate", "--top-p", "--steps"},     {"score", "--tokens", "--top-p"},
        {"train", "--grad-clip-norm", "--top"}, {"compare", "--case", "--tokens"},
    };
    struct ran r = run_tool(&folder, "%s --help", ENGINE_TOOL);
    assert_int_equal(r.code, 0);
    for (size_t i = 0; i < sizeof helps / sizeof *helps; i++) {
        assert_non_null(strstr(r.out, helps[i].command));
        struct ran h = run_tool(&folder, "%s %s --help", ENGINE_TOOL, helps[i].command);
        assert_int_equal(h.code, 0);
        assert_non_null(strstr(h.out, "--model"));
        assert_non_null(strstr(h.out, helps[i].flag));
        assert_null(strstr(h.out, helps[i].absent));
        ran_clear(&h);
    }
    ran_clear(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(info_says_what_the_folder_holds),
        cmocka_unit_test(plan_prints_the_plan),
        cmocka_unit_test(generate_prints_the_engines_samples),
        cmocka_unit_test(generated_text_is_always_text),
        cmocka_unit_test(score_prints_the_prompts_logprobs),
        cmocka_unit_test(train_takes_the_steps_and_saves_the_adapter),
        cmocka_unit_test(ranks_reach_the_engine),
        cmocka_unit_test(ranks_train_an_adapter_for_any_ranks),
        cmocka_unit_test(replicas_reach_the_engine),
        cmocka_unit_test(plan_prints_what_a_gpu_has_room_for),
        cmocka_unit_test(whatever_is_wrong_is_named),
        cmocka_unit_test(every_command_explains_itself),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* The whole engine on the emulated device: passes of decoding are replayed, and a token's logprob is
 * the one that a prompt's pass, which is not recorded, finds for it. */
#include "engine/sampler.h"

enum { REQUESTS = 4, SAMPLES = 2, SAID = 12, PROMPT_MAX = 70 };

static struct engine *open_on_device(const struct folder *f)
{
    const struct engine_conf conf = {.model_dir = folder_at(f, "model"),
                                     .device = "cuda:0",
                                     .threads = 2,
                                     .scratch_bytes_max = (size_t)16 << 20,
                                     .kv_bytes_max = (size_t)4 << 20};
    return open_conf(&conf);
}

/* What was said after a prompt, scored as a prompt itself. */
static void assert_scored_alike(struct engine *en, const int32_t *prompt, int n,
                                const struct sampled *said)
{
    int32_t all[PROMPT_MAX + SAID];
    struct sample_result r;
    struct sample_conf conf = asks_for(0, 1);
    conf.prompt_logprobs = true;
    memcpy(all, prompt, (size_t)n * sizeof *all);
    memcpy(all + n, said->tokens, (size_t)said->n * sizeof *all);
    run(en, NULL, all, n + said->n, &conf, &r);
    assert_same_floats(r.prompt_logprobs + n, said->logprobs, (size_t)said->n);
    sample_result_clear(&r);
}

/* Prompts end at different steps and so do answers: rows come and go, positions pass a block's end. */
static void decoding_is_replayed_with_the_bits_of_a_forward_pass(void **state)
{
    static const int lengths[REQUESTS] = {5, 60, PROMPT_MAX, 21};
    struct folder f = world_make(ODD_MODEL);
    struct engine *en = open_on_device(&f);
    int32_t prompts[REQUESTS][PROMPT_MAX];
    struct sample *s[REQUESTS];
    struct sample_result r[REQUESTS];
    int vocab = engine_info(en)->vocab;
    for (int i = 0; i < REQUESTS; i++) {
        struct sample_conf conf = asks_for(SAMPLES, i < 2 ? SAID : SAID - 4);
        make_prompt(prompts[i], lengths[i], (uint64_t)i, vocab);
        s[i] = add(en, NULL, prompts[i], lengths[i], &conf);
    }
    for (int i = 0; i < REQUESTS; i++)
        finish(en, s[i], &r[i]);
    struct sample_stats stats = engine_sample_stats(en);
    if (stats.passes_replayed < SAID / 2)
        fail_msg("%d passes were replayed, %d were not", (int)stats.passes_replayed,
                 (int)stats.passes_plain);
    for (int i = 0; i < REQUESTS; i++) {
        for (int q = 0; q < SAMPLES; q++)
            assert_scored_alike(en, prompts[i], lengths[i], &r[i].sequences[q]);
        sample_result_clear(&r[i]);
    }
    engine_close(en);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_is_replayed_with_the_bits_of_a_forward_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

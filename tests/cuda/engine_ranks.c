/* The whole engine on several emulated GPUs: a prompt's log-probabilities and what is sampled after it.
 *
 * A GPU rounds what attention multiplies to bf16, each number by up to 2^-9 of it, which is 0.014 of log-probabilities near 7:
 * that far it may be from the CPU (seen 1.5e-3).  Ranks add rank by rank: two orders of a sum are some 1e-6 apart (seen
 * 1.9e-6), unless a number falls to the other side of a rounding to bf16, which is one of many that a log-probability is made
 * of.  Within a number of GPUs everything holds on bits. */
#include "engine/sampler.h"

#define MODEL                                                                                      \
    "--vocab 1100 --hidden 44 --layers 2 --heads 8 --kv-heads 4 --head-dim 10 "                    \
    "--intermediate 92 --context 400 --tied true"
#define PROMPT        70
#define CPU_LIMIT     1e-2
#define RANKS_LIMIT   1e-3
#define DEGREES       3

static const int degrees[DEGREES] = {1, 2, 4};
static struct folder folder;
static int32_t prompt[PROMPT];

static int setup(void **state)
{
    folder = world_make(MODEL);
    make_prompt(prompt, PROMPT, 1, 1100);
    return 0;
}

static int teardown(void **state)
{
    folder_remove(&folder);
    return 0;
}

static struct engine *open_on(const char *device, int ranks)
{
    const struct engine_conf conf = {.model_dir = folder_at(&folder, "model"),
                                     .device = device,
                                     .threads = 1,
                                     .ranks = ranks,
                                     .kv_bytes_max = (size_t)16 << 20};
    return open_conf(&conf);
}

static struct sample_result sample_on(struct engine *en)
{
    struct sample_conf c = asks_for(2, 5);
    struct sample_result r;
    c.prompt_logprobs = true;
    run(en, NULL, prompt, PROMPT, &c, &r);
    return r;
}

static double worst(const struct sample_result *a, const struct sample_result *b)
{
    double off = 0;
    for (int at = 1; at < PROMPT; at++)
        off = fmax(off, fabs((double)a->prompt_logprobs[at] - (double)b->prompt_logprobs[at]));
    return off;
}

static void any_number_of_gpus_agrees_with_one_and_with_the_cpu(void **state)
{
    struct sample_result cpu, got[DEGREES];
    struct engine *en = open_on("cpu", 1);
    cpu = sample_on(en);
    engine_close(en);
    for (int i = 0; i < DEGREES; i++) {
        en = open_on("cuda:0", degrees[i]);
        got[i] = sample_on(en);
        engine_close(en);
        printf("    %d GPUs and the CPU: logprobs %.2e; and one GPU: %.2e\n", degrees[i],
               worst(&got[i], &cpu), worst(&got[i], &got[0]));
        assert_true(worst(&got[i], &cpu) <= CPU_LIMIT);
        assert_true(worst(&got[i], &got[0]) <= RANKS_LIMIT);
    }
    for (int i = 0; i < DEGREES; i++)
        sample_result_clear(&got[i]);
    sample_result_clear(&cpu);
}

/* On other GPUs of the machine, and beside others. */
static void within_a_number_of_gpus_no_bit_changes(void **state)
{
    for (int i = 1; i < DEGREES; i++) {
        struct engine *en = open_on("cuda:0", degrees[i]);
        struct sample_result alone = sample_on(en), again;
        engine_close(en);
        en = open_on("cuda:3", degrees[i]);
        struct sample_conf c = asks_for(3, 4);
        struct sample *other = add(en, NULL, prompt + 20, 31, &c);
        again = sample_on(en);
        assert_same_result(&again, &alone, 0);
        sample_result_clear(&again);
        finish(en, other, &again);
        sample_result_clear(&again);
        sample_result_clear(&alone);
        engine_close(en);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_gpus_agrees_with_one_and_with_the_cpu),
        cmocka_unit_test(within_a_number_of_gpus_no_bit_changes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

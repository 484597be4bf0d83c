/* sample.c - tinworks-engine generate and score: what a model says next, and what it thinks of a
 * prompt. */
#include <stdlib.h>
#include "commands.h"
#include "output.h"
#include "session.h"

struct settings {
    struct session session;
    const char *tokens, *temperature, *top_p;
    int64_t samples, max_tokens, top_k, seed;
};

/* One request to its end. */
static int run(struct engine *en, const struct settings *s, const struct sample_conf *conf,
               struct sample_result *result, struct err *e)
{
    int32_t *tokens = NULL;
    int count = 0, left = -1;
    struct adapter *ad = NULL;
    struct sample *sample = NULL;
    if (tokens_read(s->tokens, &tokens, &count, e) < 0) goto out;
    if (session_adapter(en, &s->session, false, &ad, e) < 0) goto out;
    sample = engine_sample_add(en, ad, tokens, count, conf, e);
    if (!sample) goto out;
    do
        left = engine_sample_step(en, e);
    while (left > 0);
    if (left == 0) sample_take(sample, result);
out:
    engine_sample_free(en, sample);
    adapter_free(ad);
    free(tokens);
    return left;
}

static int open_and_run(const struct settings *s, const struct sample_conf *conf,
                        int (*print)(const struct engine *, const struct sample_result *,
                                     struct err *),
                        struct err *e)
{
    struct sample_result result = {0};
    struct engine *en = session_engine(&s->session, e);
    int rc = en ? run(en, s, conf, &result, e) : -1;
    if (rc == 0) rc = print(en, &result, e);
    sample_result_clear(&result);
    engine_close(en);
    return rc;
}

/* ------------------------------------------------------------------ generate */

static int print_samples(const struct engine *en, const struct sample_result *r, struct err *e)
{
    for (int i = 0; i < r->sequence_count; i++) {
        const struct sampled *q = &r->sequences[i];
        json_t *line = json_pack("{s:o, s:o, s:s, s:o}", "tokens", tokens_json(q->tokens, q->n),
                                 "logprobs", floats_json(q->logprobs, q->n), "stop_reason",
                                 q->reason == STOP_REASON_STOP ? "stop" : "length", "text",
                                 text_json(en, q->tokens, q->n));
        if (print_json(line, e) < 0) return -1;
    }
    return 0;
}

int command_generate(int argc, char **argv, struct err *e)
{
    struct settings s = {0};
    double temperature, top_p;
    const struct conf_item items[] = {
        SESSION_SETTINGS(&s.session),
        SESSION_RANKS(&s.session),
        SESSION_ADAPTER(&s.session),
        {"tokens", CONF_STR, &s.tokens, NULL, 0, 0, "the prompt's token ids, as 1,2,3"},
        {"samples", CONF_INT, &s.samples, "1", 1, 128, "how many continuations"},
        {"max_tokens", CONF_INT, &s.max_tokens, "32", 1, TOKENS_MAX, "of each, at most"},
        {"temperature", CONF_STR, &s.temperature, "1", 0, 0, "0 is greedy"},
        {"top_k", CONF_INT, &s.top_k, "-1", -1, TOKENS_MAX, "-1 is off"},
        {"top_p", CONF_STR, &s.top_p, "1", 0, 0, "above 0, at most 1"},
        {"seed", CONF_INT, &s.seed, "0", 0, INT64_MAX, "the same seed gives the same samples"},
        {.name = NULL},
    };
    if (flags_read(items, "samples that continue a prompt, one JSON object a line", argc, argv, e) <
            0 ||
        flag_number("temperature", s.temperature, &temperature, e) < 0 ||
        flag_number("top_p", s.top_p, &top_p, e) < 0)
        return -1;
    const struct sample_conf conf = {.num_samples = (int)s.samples,
                                     .max_tokens = (int)s.max_tokens,
                                     .temperature = (float)temperature,
                                     .top_k = (int)s.top_k,
                                     .top_p = (float)top_p,
                                     .seed = (uint64_t)s.seed,
                                     .stop_at_eos = true};
    return open_and_run(&s, &conf, print_samples, e);
}

/* ------------------------------------------------------------------ score */

static int print_scores(const struct engine *en, const struct sample_result *r, struct err *e)
{
    double sum = 0;
    for (int i = 1; i < r->prompt_count; i++)
        sum += (double)r->prompt_logprobs[i];
    return print_json(json_pack("{s:o, s:f}", "logprobs",
                                floats_json(r->prompt_logprobs, r->prompt_count), "sum", sum),
                      e);
}

int command_score(int argc, char **argv, struct err *e)
{
    struct settings s = {0};
    const struct conf_item items[] = {
        SESSION_SETTINGS(&s.session),
        SESSION_RANKS(&s.session),
        SESSION_ADAPTER(&s.session),
        {"tokens", CONF_STR, &s.tokens, NULL, 0, 0, "the token ids, as 1,2,3"},
        {.name = NULL},
    };
    const struct sample_conf conf = {
        .max_tokens = 1, .top_k = -1, .top_p = 1, .prompt_logprobs = true};
    if (flags_read(items, "log-probabilities of a prompt's own tokens, as JSON", argc, argv, e) < 0)
        return -1;
    return open_and_run(&s, &conf, print_scores, e);
}

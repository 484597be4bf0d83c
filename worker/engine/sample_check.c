/* sample_check.c - everything a caller can get wrong about a request for samples. */
#include <math.h>
#include "engine/sample.h"

#define SAMPLES_MAX 128

static int check_range(const char *name, int value, int low, int high, struct err *e)
{
    if (value >= low && value <= high) return 0;
    return err_set(e, ERR_USER, "%s is %d, expected %d to %d", name, value, low, high);
}

static int check_numbers(const struct sample_conf *c, struct err *e)
{
    if (check_range("num_samples", c->num_samples, 0, SAMPLES_MAX, e) < 0) return -1;
    if (c->max_tokens < 1 && c->max_tokens != -1)
        return err_set(e, ERR_USER, "max_tokens is %d, expected at least 1", c->max_tokens);
    if (!isfinite(c->temperature) || c->temperature < 0)
        return err_set(e, ERR_USER, "temperature is %g, expected a finite number >= 0",
                       (double)c->temperature);
    if (c->top_k < 1 && c->top_k != -1)
        return err_set(e, ERR_USER, "top_k is %d, expected at least 1, or -1 for off", c->top_k);
    if (!(c->top_p > 0 && c->top_p <= 1))
        return err_set(e, ERR_USER, "top_p is %g, expected 0 < top_p <= 1", (double)c->top_p);
    return 0;
}

static int check_prompt(const struct engine *en, const int32_t *prompt, int count,
                        const struct sample_conf *c, struct err *e)
{
    int room = en->info.context_max - (c->num_samples > 0 ? 1 : 0);
    if (count < 1) return err_set(e, ERR_USER, "the prompt is empty, expected at least one token");
    if (count > room)
        return err_set(e, ERR_USER,
                       "the prompt has %d tokens, expected at most %d: the model's context%s",
                       count, room, c->num_samples > 0 ? " without one token to sample" : "");
    for (int i = 0; i < count; i++)
        if (prompt[i] < 0 || prompt[i] >= en->info.vocab)
            return err_set(e, ERR_USER, "prompt token %d is %d, expected 0 to %d", i, prompt[i],
                           en->info.vocab - 1);
    return 0;
}

static int check_stops(const struct engine *en, const struct sample_conf *c, struct err *e)
{
    for (int i = 0; i < c->stop_token_count; i++)
        if (c->stop_tokens[i] < 0 || c->stop_tokens[i] >= en->info.vocab)
            return err_set(e, ERR_USER, "stop token %d is %d, expected 0 to %d", i,
                           c->stop_tokens[i], en->info.vocab - 1);
    if (c->stop_string_count > 0 && !engine_has_tokenizer(en))
        return err_set(
            e, ERR_USER,
            "stop strings need a tokenizer, and this base model has none; use token ids");
    for (int i = 0; i < c->stop_string_count; i++)
        if (!c->stop_strings[i][0]) return err_set(e, ERR_USER, "stop string %d is empty", i);
    return 0;
}

static int check_targets(const struct engine *en, int prompt_count, const struct sample_conf *c,
                         struct err *e)
{
    if (!c->target_first) return 0;
    for (int row = 0; row < prompt_count - 1; row++)
        for (int j = c->target_first[row]; j < c->target_first[row + 1]; j++)
            if (c->target_ids[j] < -1 || c->target_ids[j] >= en->info.vocab)
                return err_set(e, ERR_USER,
                               "target_prompt_logprobs row %d holds %d, expected 0 to %d, or -1 "
                               "for none",
                               row, c->target_ids[j], en->info.vocab - 1);
    return 0;
}

static int check_scores(const struct engine *en, int prompt_count, const struct sample_conf *c,
                        struct err *e)
{
    if (check_range("topk_prompt_logprobs", c->topk_prompt, 0, ENGINE_TOPK_MAX, e) < 0 ||
        check_range("topk_sample_logprobs", c->topk_sampled, 0, ENGINE_TOPK_MAX, e) < 0 ||
        check_range("prompt_alt_tokens_k", c->alt_tokens, 0, ENGINE_ALT_MAX, e) < 0)
        return -1;
    if (c->prompt_last && (c->prompt_last < 1 || c->prompt_last >= prompt_count))
        return err_set(e, ERR_USER,
                       "prompt_logprobs_last_n is %d, expected 1 to %d: all but the first of the "
                       "prompt's tokens",
                       c->prompt_last, prompt_count - 1);
    return check_targets(en, prompt_count, c, e);
}

int sample_check(const struct engine *en, const int32_t *prompt, int count,
                 const struct sample_conf *c, struct err *e)
{
    if (check_numbers(c, e) < 0 || check_prompt(en, prompt, count, c, e) < 0 ||
        check_stops(en, c, e) < 0)
        return -1;
    return check_scores(en, count, c, e);
}

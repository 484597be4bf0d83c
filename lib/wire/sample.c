/* sample.c - a sample request from the JSON of the clients' asample. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "chunks.h"
#include "sample.h"
#include "wire/json.h"
#include "wire/payload.h"
#include "wire/text.h"

void sample_request_free(struct sample_request *r)
{
    if (!r) return;
    for (int i = 0; i < r->stop_string_count; i++)
        free(r->stop_strings[i]);
    free(r->stop_strings);
    free(r->stop_tokens);
    free(r->prompt);
    sample_targets_clear(&r->targets);
    free(r);
}

/* ---------------------------------------------------------------- stops */

static int stop_add_string(struct sample_request *r, const json_t *j, struct err *e)
{
    size_t size = json_string_length(j);
    if (!size || size > STOP_BYTES_MAX)
        return err_set(e, ERR_USER, "stop has a string of %zu bytes, expected 1 to %d", size,
                       STOP_BYTES_MAX);
    char *copy = bytes_copy(json_string_value(j), size, e);
    if (!copy) return -1;
    r->stop_strings[r->stop_string_count++] = copy;
    return 0;
}

static int stop_add(struct sample_request *r, const json_t *j, struct err *e)
{
    if (json_is_string(j) && !r->stop_token_count) return stop_add_string(r, j, e);
    json_int_t id = json_integer_value(j);
    if (!json_is_integer(j) || r->stop_string_count)
        return err_set(e, ERR_USER, "stop holds %s, expected all strings or all token ids",
                       wire_json_type(j));
    if (id < 0 || id > INT32_MAX)
        return err_set(e, ERR_USER, "stop holds %lld, expected a token id", id);
    r->stop_tokens[r->stop_token_count++] = (int32_t)id;
    return 0;
}

/* A string, a list of strings, a list of token ids; an empty list means never. */
static int decode_stop(struct sample_request *r, const json_t *stop, struct err *e)
{
    if (!stop || json_is_null(stop)) return 0;
    size_t count = json_is_string(stop) ? 1 : json_array_size(stop);
    if (!json_is_string(stop) && !json_is_array(stop))
        return err_set(e, ERR_USER, "stop is %s, expected a string or a list of at most %d",
                       wire_json_type(stop), STOPS_MAX);
    if (count > STOPS_MAX)
        return err_set(e, ERR_USER, "stop has %zu entries, expected at most %d", count, STOPS_MAX);
    r->stop_given = true;
    r->stop_strings = calloc(count + 1, sizeof *r->stop_strings);
    r->stop_tokens = calloc(count + 1, sizeof *r->stop_tokens);
    if (!r->stop_strings || !r->stop_tokens)
        return err_set(e, ERR_RETRY, "out of memory for stops");
    if (json_is_string(stop)) return stop_add(r, stop, e);
    for (size_t i = 0; i < count; i++)
        if (stop_add(r, json_array_get(stop, i), e) < 0) return -1;
    return 0;
}

/* ---------------------------------------------------------------- parameters */

static int decode_params(struct sample_request *r, const json_t *p, struct err *e)
{
    static const char where[] = "sampling_params.";
    json_int_t max_tokens = -1, top_k = -1, seed = 0;
    r->temperature = r->top_p = 1;
    r->max_tokens = r->top_k = -1;
    if (!p || json_is_null(p)) return 0;
    if (!json_is_object(p))
        return err_set(e, ERR_USER, "sampling_params is %s, expected an object", wire_json_type(p));
    if (wire_json_int(p, where, "max_tokens", false, 1, INT32_MAX, &max_tokens, e) < 0 ||
        wire_json_int(p, where, "top_k", false, -1, INT32_MAX, &top_k, e) < 0 ||
        wire_json_int(p, where, "seed", false, INT64_MIN, INT64_MAX, &seed, e) < 0 ||
        wire_json_number(p, where, "temperature", false, &r->temperature, e) < 0 ||
        wire_json_number(p, where, "top_p", false, &r->top_p, e) < 0)
        return -1;
    if (!(r->temperature >= 0))
        return err_set(e, ERR_USER, "sampling_params.temperature is %g, expected 0 or more",
                       r->temperature);
    if (!(r->top_p > 0 && r->top_p <= 1))
        return err_set(e, ERR_USER, "sampling_params.top_p is %g, expected above 0 and at most 1",
                       r->top_p);
    if (!top_k)
        return err_set(e, ERR_USER, "sampling_params.top_k is 0, expected -1 (off) or 1 and more");
    r->max_tokens = (int)max_tokens;
    r->top_k = (int)top_k;
    r->seed = (uint64_t)seed;
    r->has_seed = json_is_integer(json_object_get(p, "seed"));
    return decode_stop(r, json_object_get(p, "stop"), e);
}

static int decode_prompt(struct sample_request *r, const json_t *prompt, struct err *e)
{
    int64_t n = chunks_count(prompt, "prompt", e);
    if (n < 0) return -1;
    if (!n || n > DATUM_TOKENS_MAX)
        return err_set(e, ERR_USER, "prompt has %lld tokens, expected 1 to %d", (long long)n,
                       DATUM_TOKENS_MAX);
    r->prompt = malloc((size_t)n * sizeof *r->prompt);
    if (!r->prompt) return err_set(e, ERR_RETRY, "out of memory for %lld tokens", (long long)n);
    r->prompt_count = (int)n;
    return chunks_copy(prompt, "prompt", r->prompt, e);
}

static int decode_checkpoint(struct sample_request *r, const json_t *j, struct err *e)
{
    json_int_t seq = 0;
    if (!j || json_is_null(j)) return 0;
    if (!json_is_object(j))
        return err_set(e, ERR_USER, "checkpoint is %s, expected an object", wire_json_type(j));
    if (wire_json_text(j, "checkpoint.", "run", true, r->checkpoint_run, sizeof r->checkpoint_run,
                       e) < 0 ||
        wire_json_int(j, "checkpoint.", "seq", true, 0, INT64_MAX, &seq, e) < 0)
        return -1;
    if (!text_is_id(r->checkpoint_run, sizeof r->checkpoint_run))
        return err_set(e, ERR_USER, "checkpoint.run is \"%.100s\", expected the id of a run",
                       r->checkpoint_run);
    r->checkpoint_seq = seq;
    return 0;
}

static int decode_content(struct sample_request *r, const json_t *root, enum job_kind kind,
                          struct err *e)
{
    json_int_t num_samples = 1;
    if (decode_prompt(r, json_object_get(root, "prompt"), e) < 0 ||
        wire_json_int(root, "", "num_samples", false, 1, NUM_SAMPLES_MAX, &num_samples, e) < 0 ||
        wire_json_bool(root, "", "prompt_logprobs", false, &r->prompt_logprobs, e) < 0 ||
        decode_params(r, json_object_get(root, "sampling_params"), e) < 0 ||
        decode_checkpoint(r, json_object_get(root, "checkpoint"), e) < 0)
        return -1;
    r->num_samples = (int)num_samples;
    if (kind == JOB_COMPUTE_LOGPROBS) {
        r->num_samples = 0;
        r->prompt_logprobs = true;
    }
    return sample_scores_decode(r, root, e);
}

struct sample_request *sample_request_decode(const void *bytes, size_t size, enum job_kind kind,
                                             bool *malformed, struct err *e)
{
    json_t *root = wire_json_read(bytes, size, e);
    *malformed = !root;
    if (!root) return NULL;
    if (!json_is_object(json_object_get(root, "prompt"))) {
        *malformed = true;
        err_set(e, ERR_USER, "prompt is %s, expected an object",
                wire_json_type(json_object_get(root, "prompt")));
        json_decref(root);
        return NULL;
    }
    struct sample_request *r = calloc(1, sizeof *r);
    if (!r)
        err_set(e, ERR_RETRY, "out of memory for a request");
    else if (decode_content(r, root, kind, e) < 0) {
        sample_request_free(r);
        r = NULL;
    }
    json_decref(root);
    return r;
}

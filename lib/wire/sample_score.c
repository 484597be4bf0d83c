/* sample_score.c - the log-probabilities that a sample request wants beside those of its tokens,
 * and what an answer with all of them may come to. */
#include <stdlib.h>
#include <string.h>
#include "sample.h"

/* ---------------------------------------------------------------- target_prompt_logprobs */

void sample_targets_clear(struct sample_targets *t)
{
    free(t->first);
    free(t->ids);
    free(t->column_of);
    *t = (struct sample_targets){0};
}

static const char where[] = "target_prompt_logprobs.";

/* A list of whole numbers from low to high, malloc'ed; *count of them. */
static int64_t *read_numbers(const json_t *o, const char *name, int64_t low, int64_t high,
                             size_t *count, struct err *e)
{
    const json_t *list = json_object_get(o, name), *item;
    size_t i;
    if (!json_is_array(list)) {
        err_set(e, ERR_USER, "%s%s is %s, expected a list", where, name, wire_json_type(list));
        return NULL;
    }
    *count = json_array_size(list);
    int64_t *out = malloc((*count + 1) * sizeof *out);
    if (!out) {
        err_set(e, ERR_RETRY, "out of memory for %zu numbers", *count);
        return NULL;
    }
    json_array_foreach(list, i, item)
    {
        out[i] = json_integer_value(item);
        if (json_is_integer(item) && out[i] >= low && out[i] <= high) continue;
        if (json_is_integer(item))
            err_set(e, ERR_USER, "%s%s[%zu] is %lld, expected %lld to %lld", where, name, i,
                    (long long)out[i], (long long)low, (long long)high);
        else
            err_set(e, ERR_USER, "%s%s[%zu] is %s, expected a whole number", where, name, i,
                    wire_json_type(item));
        free(out);
        return NULL;
    }
    return out;
}

static int read_shape(const json_t *j, int64_t rows, int64_t *columns, struct err *e)
{
    char dtype[16] = "";
    size_t dims;
    if (wire_json_text(j, where, "dtype", true, dtype, sizeof dtype, e) < 0) return -1;
    if (strcmp(dtype, "int64"))
        return err_set(e, ERR_USER, "%sdtype is \"%s\", expected \"int64\"", where, dtype);
    int64_t *shape = read_numbers(j, "shape", 0, INT32_MAX, &dims, e);
    if (!shape) return -1;
    bool fits = dims == 2 && shape[0] == rows && shape[1] > 0;
    if (!fits)
        err_set(e, ERR_USER,
                "%sshape has %zu dimensions and begins with %lld, expected [%lld, K]: a row for "
                "each token of the prompt but the first",
                where, dims, dims ? (long long)shape[0] : 0LL, (long long)rows);
    *columns = dims == 2 ? shape[1] : 0;
    free(shape);
    return fits ? 0 : -1;
}

/* first of a dense tensor: as many in every row. */
static int dense_rows(struct sample_targets *t, int rows, size_t count, struct err *e)
{
    if ((int64_t)count != (int64_t)rows * t->columns)
        return err_set(e, ERR_USER, "%sdata has %zu ids, expected %lld: %d rows of %lld", where,
                       count, (long long)rows * t->columns, rows, (long long)t->columns);
    for (int i = 0; i <= rows; i++)
        t->first[i] = (int)(i * t->columns);
    return 0;
}

static int sparse_rows(struct sample_targets *t, const json_t *j, int rows, size_t count,
                       struct err *e)
{
    size_t marks, columns;
    int64_t *crow = read_numbers(j, "sparse_crow_indices", 0, (int64_t)count, &marks, e);
    if (!crow) return -1;
    bool fits = marks == (size_t)rows + 1 && crow[0] == 0 && crow[rows] == (int64_t)count;
    for (int i = 0; fits && i < rows; i++)
        fits = crow[i] <= crow[i + 1];
    for (int i = 0; fits && i <= rows; i++)
        t->first[i] = (int)crow[i];
    free(crow);
    if (!fits)
        return err_set(e, ERR_USER,
                       "%ssparse_crow_indices are %zu numbers, expected %d that rise from 0 to %zu",
                       where, marks, rows + 1, count);
    t->column_of = read_numbers(j, "sparse_col_indices", 0, t->columns - 1, &columns, e);
    if (!t->column_of) return -1;
    if (columns != count)
        return err_set(e, ERR_USER, "%ssparse_col_indices are %zu, data are %zu, expected as many",
                       where, columns, count);
    return 0;
}

static bool given(const json_t *j, const char *name)
{
    const json_t *member = json_object_get(j, name);
    return member && !json_is_null(member);
}

/* Takes the ids; how many are not -1. */
static int64_t take_ids(struct sample_targets *t, const int64_t *ids, size_t count)
{
    int64_t named = 0;
    for (size_t i = 0; i < count; i++) {
        t->ids[i] = (int32_t)ids[i];
        named += ids[i] >= 0;
    }
    return named;
}

static int decode_targets(struct sample_request *r, const json_t *j, struct err *e)
{
    struct sample_targets *t = &r->targets;
    int rows = r->prompt_count - 1;
    size_t count;
    if (!j || json_is_null(j)) return 0;
    if (!json_is_object(j))
        return err_set(e, ERR_USER, "target_prompt_logprobs is %s, expected a tensor",
                       wire_json_type(j));
    if (read_shape(j, rows, &t->columns, e) < 0) return -1;
    int64_t *ids = read_numbers(j, "data", -1, INT32_MAX, &count, e);
    if (!ids) return -1;
    t->first = calloc((size_t)rows + 1, sizeof *t->first);
    t->ids = malloc((count + 1) * sizeof *t->ids);
    int64_t named = t->first && t->ids ? take_ids(t, ids, count) : -1;
    free(ids);
    if (named < 0) return err_set(e, ERR_RETRY, "out of memory for %zu ids", count);
    if (named == 0)
        return err_set(e, ERR_USER, "%sdata names no token id, expected at least one", where);
    bool sparse = given(j, "sparse_crow_indices") || given(j, "sparse_col_indices");
    return sparse ? sparse_rows(t, j, rows, count, e) : dense_rows(t, rows, count, e);
}

/* ---------------------------------------------------------------- the others */

static int read_count(const json_t *root, const char *name, json_int_t high, int *out,
                      struct err *e)
{
    json_int_t n = 0;
    if (wire_json_int(root, "", name, false, 0, high, &n, e) < 0) return -1;
    *out = (int)n;
    return 0;
}

static int decode_last(struct sample_request *r, const json_t *root, struct err *e)
{
    if (!given(root, "prompt_logprobs_last_n")) return 0;
    if (!r->prompt_logprobs)
        return err_set(e, ERR_USER,
                       "prompt_logprobs_last_n is given without prompt_logprobs, expected both");
    if (r->prompt_count < 2)
        return err_set(e, ERR_USER,
                       "prompt_logprobs_last_n is given, but the prompt has one token, which "
                       "nothing comes before");
    json_int_t n = 0;
    if (wire_json_int(root, "", "prompt_logprobs_last_n", false, 1, r->prompt_count - 1, &n, e) < 0)
        return -1;
    r->prompt_last = (int)n;
    return 0;
}

int sample_scores_decode(struct sample_request *r, const json_t *root, struct err *e)
{
    bool record;
    if (read_count(root, "topk_prompt_logprobs", SAMPLE_TOPK_MAX, &r->topk_prompt, e) < 0 ||
        read_count(root, "topk_sample_logprobs", SAMPLE_TOPK_MAX, &r->topk_sample, e) < 0 ||
        read_count(root, "prompt_alt_tokens_k", SAMPLE_ALT_MAX, &r->alt_tokens, e) < 0 ||
        wire_json_bool(root, "", "record_stability_info", false, &record, e) < 0 ||
        decode_last(r, root, e) < 0)
        return -1;
    return decode_targets(r, json_object_get(root, "target_prompt_logprobs"), e);
}

/* ---------------------------------------------------------------- the answer's size */

/* Tensors come as the protobuf has them; what surrounds them is a few bytes a message. */
static int64_t prompt_bytes(const struct sample_request *r)
{
    int64_t n = r->prompt_count, bytes = 0;
    const struct sample_targets *t = &r->targets;
    if (r->prompt_logprobs) bytes += 4 * n;
    bytes += 8 * r->topk_prompt * n + 12 * r->alt_tokens * (n - 1);
    if (t->first) bytes += (int64_t)t->first[n - 1] * (t->column_of ? 12 : 4);
    if (t->column_of) bytes += 8 * n;
    return bytes;
}

int sample_request_fits(const struct sample_request *r, int context_max, struct err *e)
{
    int64_t each = (int64_t)context_max - r->prompt_count, around = 256;
    if (r->max_tokens > 0 && r->max_tokens < each) each = r->max_tokens;
    if (each < 0 || r->num_samples == 0) each = 0;
    int64_t prompt = prompt_bytes(r);
    int64_t samples = r->num_samples * (each * (8 + 8 * r->topk_sample) + 64);
    if (around + prompt + samples <= SAMPLE_RESULT_MAX) return 0;
    return err_set(e, ERR_USER,
                   "the answer could come to %lld bytes, expected at most %d: %lld for what is "
                   "asked of the prompt, %lld for %d samples of up to %lld tokens; ask for fewer "
                   "samples, a smaller max_tokens or fewer ids a position",
                   (long long)(around + prompt + samples), SAMPLE_RESULT_MAX, (long long)prompt,
                   (long long)samples, r->num_samples, (long long)each);
}

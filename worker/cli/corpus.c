/* corpus.c - see corpus.h. */
#include "corpus.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "output.h"

#define LINE_MAX_BYTES ((size_t)8 << 20)
#define SEQUENCES_MAX  65536

void corpus_clear(struct corpus *c)
{
    for (int i = 0; i < c->count; i++) {
        free((void *)c->datums[i].tokens);
        free((void *)c->datums[i].targets);
        free((void *)c->datums[i].weights);
        free(c->datums[i].out_logprobs);
    }
    free(c->datums);
}

static int fill_tokens(struct datum *d, const json_t *list, struct err *e)
{
    for (int i = 0; i <= d->n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > INT32_MAX)
            return err_set(e, ERR_USER, "token %d is no token id", i);
        if (i < d->n) ((int32_t *)d->tokens)[i] = (int32_t)id;
        if (i > 0) ((int64_t *)d->targets)[i - 1] = id;
    }
    return 0;
}

static int fill_weights(struct datum *d, const json_t *list, struct err *e)
{
    if (list && json_array_size(list) != (size_t)d->n + 1)
        return err_set(e, ERR_USER, "there are %zu weights, expected %d, one a token",
                       json_array_size(list), d->n + 1);
    for (int i = 0; i < d->n; i++) {
        const json_t *v = json_array_get(list, (size_t)i + 1);
        if (list && (!json_is_number(v) || !isfinite((float)json_number_value(v))))
            return err_set(e, ERR_USER, "weight %d is no finite number", i + 1);
        ((float *)d->weights)[i] = list ? (float)json_number_value(v) : 1;
    }
    return 0;
}

static int add_sequence(struct corpus *c, const json_t *line, struct err *e)
{
    const json_t *tokens = json_object_get(line, "tokens");
    size_t size = json_array_size(tokens);
    if (!json_is_array(tokens)) return err_set(e, ERR_USER, "there is no list \"tokens\"");
    if (size < 2 || size > TOKENS_MAX)
        return err_set(e, ERR_USER, "there are %zu tokens, expected 2 to %d", size, TOKENS_MAX);
    if (c->count == SEQUENCES_MAX)
        return err_set(e, ERR_USER, "it is one more than %d sequences", SEQUENCES_MAX);
    size_t n = size - 1;
    struct datum *d = &c->datums[c->count++];
    *d = (struct datum){.n = (int)n,
                        .tokens = calloc(n, sizeof *d->tokens),
                        .targets = calloc(n, sizeof *d->targets),
                        .weights = calloc(n, sizeof *d->weights),
                        .out_logprobs = calloc(n, sizeof *d->out_logprobs)};
    if (!d->tokens || !d->targets || !d->weights || !d->out_logprobs)
        return err_set(e, ERR_RETRY, "out of memory");
    if (fill_tokens(d, tokens, e) < 0) return -1;
    return fill_weights(d, json_object_get(line, "weights"), e);
}

static int read_line(struct corpus *c, const char *text, size_t size, struct err *e)
{
    json_error_t at;
    if (size > LINE_MAX_BYTES)
        return err_set(e, ERR_USER, "it has more than %zu bytes", LINE_MAX_BYTES);
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &at);
    if (!root) return err_set(e, ERR_USER, "it is not JSON: %s", at.text);
    int rc = add_sequence(c, root, e);
    json_decref(root);
    return rc;
}

int corpus_read(struct corpus *c, const char *path, struct err *e)
{
    char *text = NULL;
    size_t cap = 0;
    ssize_t size;
    int rc = 0, line = 0;
    c->datums = calloc(SEQUENCES_MAX, sizeof *c->datums);
    if (!c->datums) return err_set(e, ERR_RETRY, "out of memory");
    FILE *f = fopen(path, "re");
    if (!f) return err_set(e, ERR_USER, "could not open data \"%s\": %s", path, strerror(errno));
    while (rc == 0 && (size = getline(&text, &cap, f)) > 0) {
        line++;
        if (text[strspn(text, " \t\r\n")]) rc = read_line(c, text, (size_t)size, e);
    }
    free(text);
    fclose(f);
    if (rc < 0) return err_prefix(e, "data \"%s\", line %d", path, line);
    if (!c->count) return err_set(e, ERR_USER, "data \"%s\" has no sequence", path);
    return 0;
}

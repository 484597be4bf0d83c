/* chunks.c - see chunks.h. */
#include "chunks.h"

#include <string.h>

static const json_t *tokens_of(const json_t *chunk, const char *where, size_t i, struct err *e)
{
    const char *type = json_string_value(json_object_get(chunk, "type"));
    const json_t *tokens = json_object_get(chunk, "tokens");
    if (type && strcmp(type, "encoded_text")) {
        err_set(e, ERR_USER, "%s chunk %zu is \"%.40s\", expected encoded_text", where, i, type);
        return NULL;
    }
    if (!json_is_array(tokens)) {
        err_set(e, ERR_USER, "%s chunk %zu: tokens is %s, expected a list", where, i,
                wire_json_type(tokens));
        return NULL;
    }
    return tokens;
}

int64_t chunks_count(const json_t *input, const char *where, struct err *e)
{
    const json_t *chunks = json_object_get(input, "chunks"), *chunk;
    int64_t total = 0;
    size_t i;
    if (!json_is_array(chunks))
        return err_set(e, ERR_USER, "%s: chunks is %s, expected a list", where,
                       wire_json_type(chunks));
    json_array_foreach(chunks, i, chunk)
    {
        const json_t *tokens = tokens_of(chunk, where, i, e);
        if (!tokens) return -1;
        total += (int64_t)json_array_size(tokens);
    }
    return total;
}

int chunks_copy(const json_t *input, const char *where, int32_t *out, struct err *e)
{
    const json_t *chunk, *token;
    size_t i, k;
    json_array_foreach(json_object_get(input, "chunks"), i, chunk)
    {
        json_array_foreach(json_object_get(chunk, "tokens"), k, token)
        {
            json_int_t id = json_integer_value(token);
            if (!json_is_integer(token) || id < INT32_MIN || id > INT32_MAX)
                return err_set(e, ERR_USER, "%s chunk %zu: token %zu is %s, expected a token id",
                               where, i, k,
                               json_is_integer(token) ? "out of range" : wire_json_type(token));
            *out++ = (int32_t)id;
        }
    }
    return 0;
}

/* output.c - see output.h. */
#include "output.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/buf.h"

#define TEXT_MAX ((size_t)64 << 20)

int tokens_read(const char *text, int32_t **tokens, int *count, struct err *e)
{
    int max = 1;
    for (const char *c = text; *c; c++)
        max += *c == ',';
    if (!*text) return err_set(e, ERR_USER, "setting tokens must be given, as 1,2,3");
    if (max > TOKENS_MAX)
        return err_set(e, ERR_USER, "setting tokens has %d ids, expected at most %d", max,
                       TOKENS_MAX);
    *tokens = calloc((size_t)max, sizeof **tokens);
    if (!*tokens) return err_set(e, ERR_RETRY, "out of memory");
    for (const char *at = text; *count < max; at++) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (errno || end == at || (*end && *end != ',') || id < 0 || id > INT32_MAX)
            return err_set(e, ERR_USER, "setting tokens has \"%.20s\", expected token ids as 1,2,3",
                           at);
        (*tokens)[(*count)++] = (int32_t)id;
        at = end;
    }
    return 0;
}

json_t *tokens_json(const int32_t *tokens, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(tokens[i]));
    return list;
}

json_t *floats_json(const float *x, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, isnan(x[i]) ? json_null() : json_real((double)x[i]));
    return list;
}

/* ------------------------------------------------------------------ text */

/* Bytes of the character at s by its first byte (RFC 3629, section 3), or 0 if it is none. */
static size_t utf8_size(const unsigned char *s, size_t left)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n == 0 || n > left || s[0] > 0xf4) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] > 0x9f, beyond = s[0] == 0xf4 && s[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : n;
}

static int append_text(struct buf *to, const char *bytes, size_t size, struct err *e)
{
    for (size_t i = 0, n; i < size; i += n ? n : 1) {
        n = utf8_size((const unsigned char *)bytes + i, size - i);
        if (buf_append(to, n ? bytes + i : "\xef\xbf\xbd", n ? n : 3, e) < 0) return -1;
    }
    return 0;
}

json_t *text_json(const struct engine *en, const int32_t *tokens, int n)
{
    struct buf bytes, text;
    struct err e = {0};
    json_t *out = NULL;
    if (!engine_has_tokenizer(en)) return json_null();
    buf_init(&bytes, TEXT_MAX);
    buf_init(&text, 3 * TEXT_MAX);
    for (int i = 0; i < n; i++) {
        size_t size;
        const char *said = engine_token_bytes(en, tokens[i], &size);
        if (!said) said = "\xff", size = 1; /* an id that the tokenizer lacks */
        if (buf_append(&bytes, said, size, &e) < 0) goto out;
    }
    if (append_text(&text, bytes.data, bytes.size, &e) < 0) goto out;
    out = json_stringn(text.data ? text.data : "", text.size);
out:
    buf_clear(&bytes);
    buf_clear(&text);
    return out ? out : json_null();
}

int print_json(json_t *take, struct err *e)
{
    char *line = take ? json_dumps(take, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(take);
    if (!line) return err_set(e, ERR_RETRY, "out of memory");
    puts(line);
    free(line);
    return 0;
}

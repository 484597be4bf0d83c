/* vocab.c - tokenizer.json of a byte-level BPE, read backwards: token id to bytes.
 *
 * Such a vocabulary spells each byte as one printable character (GPT-2's rule): the bytes '!' to
 * '~', 0xA1 to 0xAC and 0xAE to 0xFF stand for themselves, and the 68 others, in ascending order,
 * are U+0100, U+0101, ...  Added tokens are plain UTF-8 and not spelled that way. */
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "engine/files.h"
#include "engine/model.h"

#define PATH_SIZE     4096
#define TOKENIZER_MAX ((size_t)64 << 20)
#define TEXT_MAX      ((size_t)64 << 20)
#define ID_MAX        (1 << 20)
#define CODES         (256 + 68)

struct vocab {
    size_t *begin, *end; /* of an id's bytes in text; end 0: no such id */
    int count;
    struct buf text;
};

struct byte_table {
    int16_t byte_of[CODES]; /* -1: no byte is spelled so */
};

static bool stands_for_itself(int b)
{
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

static struct byte_table byte_table_make(void)
{
    struct byte_table t;
    int next = 256;
    for (int c = 0; c < CODES; c++)
        t.byte_of[c] = -1;
    for (int b = 0; b < 256; b++)
        t.byte_of[stands_for_itself(b) ? b : next++] = (int16_t)b;
    return t;
}

/* Jansson has checked that the text is UTF-8; all codes that can occur take one or two bytes. */
static int append_spelled(struct buf *text, const struct byte_table *t, const char *s, int id,
                          struct err *e)
{
    for (const unsigned char *c = (const unsigned char *)s; *c;) {
        int code = CODES;
        if (*c < 0x80) {
            code = *c++;
        } else if (*c < 0xE0) {
            code = (*c & 0x1F) << 6 | (c[1] & 0x3F);
            c += 2;
        }
        if (code >= CODES || t->byte_of[code] < 0)
            return err_set(e, ERR_USER,
                           "tokenizer.json spells token %d with a character that is no byte", id);
        char byte = (char)t->byte_of[code];
        if (buf_append(text, &byte, 1, e) < 0) return -1;
    }
    return 0;
}

static int read_id(const json_t *v, int *id, struct err *e)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= ID_MAX)
        return err_set(e, ERR_USER, "tokenizer.json has a token id that is not below %d", ID_MAX);
    *id = (int)json_integer_value(v);
    return 0;
}

static int grow(struct vocab *v, int id, struct err *e)
{
    if (id < v->count) return 0;
    int count = id + 1 > 2 * v->count ? id + 1 : 2 * v->count;
    size_t *begin = realloc(v->begin, (size_t)count * sizeof *begin);
    if (begin) v->begin = begin;
    size_t *end = realloc(v->end, (size_t)count * sizeof *end);
    if (end) v->end = end;
    if (!begin || !end) return err_set(e, ERR_RETRY, "out of memory");
    memset(v->end + v->count, 0, (size_t)(count - v->count) * sizeof *end);
    v->count = count;
    return 0;
}

static int add(struct vocab *v, const struct byte_table *spelled, int id, const char *s,
               struct err *e)
{
    if (grow(v, id, e) < 0) return -1;
    v->begin[id] = v->text.size;
    if (spelled ? append_spelled(&v->text, spelled, s, id, e) < 0
                : buf_append(&v->text, s, strlen(s), e) < 0)
        return -1;
    v->end[id] = v->text.size;
    return 0;
}

/* The decoder, or one of its sequence, must be ByteLevel: otherwise the spelling means something
 * else. */
static bool is_byte_level(const json_t *decoder)
{
    const char *type = json_string_value(json_object_get(decoder, "type"));
    if (type && !strcmp(type, "ByteLevel")) return true;
    size_t i;
    json_t *part;
    json_array_foreach(json_object_get(decoder, "decoders"), i, part)
    {
        type = json_string_value(json_object_get(part, "type"));
        if (type && !strcmp(type, "ByteLevel")) return true;
    }
    return false;
}

static int read_tokens(struct vocab *v, const json_t *root, struct err *e)
{
    const struct byte_table table = byte_table_make();
    const json_t *model = json_object_get(root, "model");
    json_t *tokens = json_object_get(model, "vocab"), *value;
    const char *type = json_string_value(json_object_get(model, "type")), *spelling;
    int id = 0;
    size_t i;
    if ((type && strcmp(type, "BPE")) || !json_is_object(tokens) ||
        !is_byte_level(json_object_get(root, "decoder")))
        return err_set(e, ERR_USER, "tokenizer.json is no byte-level BPE");
    json_object_foreach(tokens, spelling, value)
    {
        if (read_id(value, &id, e) < 0 || add(v, &table, id, spelling, e) < 0) return -1;
    }
    json_array_foreach(json_object_get(root, "added_tokens"), i, value)
    {
        const char *content = json_string_value(json_object_get(value, "content"));
        if (!content)
            return err_set(e, ERR_USER, "tokenizer.json has an added token without content");
        if (read_id(json_object_get(value, "id"), &id, e) < 0 || add(v, NULL, id, content, e) < 0)
            return -1;
    }
    return 0;
}

struct vocab *vocab_load(const char *dir, struct err *e)
{
    char path[PATH_SIZE];
    err_clear(e);
    if (file_path(path, sizeof path, dir, "tokenizer.json", e) < 0 || !file_exists(path))
        return NULL;
    json_t *root = file_json_read(path, TOKENIZER_MAX, e);
    if (!root) return NULL;
    struct vocab *v = calloc(1, sizeof *v);
    if (!v) {
        err_set(e, ERR_RETRY, "out of memory");
    } else {
        buf_init(&v->text, TEXT_MAX);
        if (read_tokens(v, root, e) < 0) {
            vocab_free(v);
            v = NULL;
        }
    }
    json_decref(root);
    return v;
}

void vocab_free(struct vocab *v)
{
    if (!v) return;
    free(v->begin);
    free(v->end);
    buf_clear(&v->text);
    free(v);
}

const char *vocab_bytes(const struct vocab *v, int32_t id, size_t *size)
{
    if (id < 0 || id >= v->count || !v->end[id]) return NULL;
    *size = v->end[id] - v->begin[id];
    return v->text.data + v->begin[id];
}

/* json.c - see json.h. */
#include "wire/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "wire/job.h"
#include "wire/payload.h"

/* jansson's own limit is 2048 levels and cannot be set, so brackets are counted before it sees the
 * text. */
static bool too_deep(const char *s, size_t size)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        if (quoted) {
            if (s[i] == '\\')
                i++;
            else if (s[i] == '"')
                quoted = false;
        } else if (s[i] == '"') {
            quoted = true;
        } else if (s[i] == '{' || s[i] == '[') {
            if (++depth > JSON_DEPTH_MAX) return true;
        } else if (s[i] == '}' || s[i] == ']') {
            depth--;
        }
    }
    return false;
}

json_t *wire_json_read(const void *bytes, size_t size, struct err *e)
{
    json_error_t why;
    if (size > JOB_PAYLOAD_MAX) {
        err_set(e, ERR_USER, "JSON of %zu bytes, expected at most %u", size, JOB_PAYLOAD_MAX);
        return NULL;
    }
    if (too_deep(bytes, size)) {
        err_set(e, ERR_USER, "JSON is nested deeper than %d levels", JSON_DEPTH_MAX);
        return NULL;
    }
    json_t *j = json_loadb(size ? bytes : "", size, JSON_REJECT_DUPLICATES, &why);
    if (!j) {
        /* jansson's own text quotes what is near; that may be a prompt, so only the place is told.
         */
        static const char *const reasons[] = {
            [json_error_duplicate_key] = "the same key twice in one object",
            [json_error_numeric_overflow] = "a number that is too big",
            [json_error_invalid_utf8] = "bytes that are not UTF-8",
            [json_error_premature_end_of_input] = "the end comes too early",
        };
        enum json_error_code code = json_error_code(&why);
        const char *reason = code < sizeof reasons / sizeof *reasons ? reasons[code] : NULL;
        err_set(e, ERR_USER, "not a JSON object: %s at byte %d",
                reason ? reason : "unexpected text", why.position);
        return NULL;
    }
    if (!json_is_object(j)) {
        err_set(e, ERR_USER, "JSON is %s, expected an object", wire_json_type(j));
        json_decref(j);
        return NULL;
    }
    return j;
}

char *wire_json_write(json_t *j, size_t *size, struct err *e)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (!text) {
        err_set(e, ERR_RETRY, "out of memory for JSON");
        return NULL;
    }
    *size = strlen(text);
    return text;
}

const char *wire_json_type(const json_t *j)
{
    if (!j) return "absent";
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

/* NULL when the member is absent or null; *bad then tells whether that is an error. */
static json_t *member(const json_t *o, const char *where, const char *name, bool must, int *bad,
                      struct err *e)
{
    json_t *j = json_object_get(o, name);
    *bad = 0;
    if (j && !json_is_null(j)) return j;
    if (must) *bad = err_set(e, ERR_USER, "%s%s is %s", where, name, j ? "null" : "missing");
    return NULL;
}

int wire_json_text(const json_t *o, const char *where, const char *name, bool must, char *out,
                   size_t size, struct err *e)
{
    int bad;
    const json_t *j = member(o, where, name, must, &bad, e);
    if (!j) return bad;
    if (!json_is_string(j))
        return err_set(e, ERR_USER, "%s%s is %s, expected a string", where, name,
                       wire_json_type(j));
    size_t length = json_string_length(j);
    if (length >= size)
        return err_set(e, ERR_USER, "%s%s is \"%.80s...\", expected at most %zu bytes", where, name,
                       json_string_value(j), size - 1);
    memcpy(out, json_string_value(j), length + 1);
    return 0;
}

int wire_json_int(const json_t *o, const char *where, const char *name, bool must, json_int_t low,
                  json_int_t high, json_int_t *out, struct err *e)
{
    int bad;
    const json_t *j = member(o, where, name, must, &bad, e);
    if (!j) return bad;
    if (!json_is_integer(j))
        return err_set(e, ERR_USER, "%s%s is %s, expected a whole number", where, name,
                       wire_json_type(j));
    json_int_t n = json_integer_value(j);
    if (n < low || n > high)
        return err_set(e, ERR_USER, "%s%s is %lld, expected %lld to %lld", where, name, n, low,
                       high);
    *out = n;
    return 0;
}

int wire_json_number(const json_t *o, const char *where, const char *name, bool must, double *out,
                     struct err *e)
{
    int bad;
    const json_t *j = member(o, where, name, must, &bad, e);
    if (!j) return bad;
    if (!json_is_number(j))
        return err_set(e, ERR_USER, "%s%s is %s, expected a number", where, name,
                       wire_json_type(j));
    *out = json_number_value(j);
    return 0;
}

int wire_json_bool(const json_t *o, const char *where, const char *name, bool must, bool *out,
                   struct err *e)
{
    int bad;
    const json_t *j = member(o, where, name, must, &bad, e);
    if (!j) return bad;
    if (!json_is_boolean(j))
        return err_set(e, ERR_USER, "%s%s is %s, expected true or false", where, name,
                       wire_json_type(j));
    *out = json_is_true(j);
    return 0;
}

/* text.c - see text.h. */
#include "wire/text.h"

#include <stdlib.h>
#include <string.h>

bool text_to_count(const char *s, int64_t *out)
{
    if (s[0] == '0' && s[1]) return false;
    int64_t n = 0;
    const char *c = s;
    for (; *c >= '0' && *c <= '9'; c++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *c - '0', &n))
            return false;
    if (c == s || *c) return false;
    *out = n;
    return true;
}

bool text_is_id(const char *s, size_t size)
{
    size_t n = 0;
    for (; s[n]; n++)
        if (n + 1 >= size || s[n] <= ' ' || s[n] > '~' || strchr("|/\"\\", s[n])) return false;
    return n > 0;
}

const char *header_find(const struct header *headers, int count, const char *name, struct err *e)
{
    const char *value = NULL;
    for (int i = 0; i < count; i++) {
        if (strcmp(headers[i].name, name)) continue;
        if (value) {
            err_set(e, ERR_USER, "header %s is there twice", name);
            return NULL;
        }
        value = headers[i].value;
    }
    if (!value) err_set(e, ERR_USER, "header %s is missing", name);
    return value;
}

int header_id(const struct header *headers, int count, const char *name, char *out, size_t size,
              struct err *e)
{
    const char *value = header_find(headers, count, name, e);
    if (!value) return -1;
    if (!text_is_id(value, size))
        return err_set(e, ERR_USER,
                       "header %s is \"%.200s\", expected 1 to %zu visible ASCII characters "
                       "without | / \" and backslash",
                       name, value, size - 1);
    memcpy(out, value, strlen(value) + 1);
    return 0;
}

int header_text(const struct header *headers, int count, const char *name, char *out, size_t size,
                struct err *e)
{
    const char *value = header_find(headers, count, name, e);
    if (!value) return -1;
    size_t length = strlen(value);
    if (!length || length >= size)
        return err_set(e, ERR_USER, "header %s is \"%.200s\", expected 1 to %zu bytes", name, value,
                       size - 1);
    memcpy(out, value, length + 1);
    return 0;
}

int header_count_of(const struct header *headers, int count, const char *name, int64_t *out,
                    struct err *e)
{
    const char *value = header_find(headers, count, name, e);
    if (!value) return -1;
    if (!text_to_count(value, out))
        return err_set(e, ERR_USER, "header %s is \"%.40s\", expected a whole number from 0 up",
                       name, value);
    return 0;
}

char *bytes_copy(const void *bytes, size_t size, struct err *e)
{
    char *copy = malloc(size + 1);
    if (!copy) {
        err_set(e, ERR_RETRY, "out of memory for %zu bytes", size);
        return NULL;
    }
    if (size) memcpy(copy, bytes, size);
    copy[size] = '\0';
    return copy;
}

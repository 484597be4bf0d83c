/* detail.c - see detail.h. */
#include "http/detail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the UTF-8 sequence at s, 0 when there is none.  Overlong forms and surrogates count as
 * none. */
static int utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80) return 1;
    int n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
            : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
            : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                          : 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))) return 0;
    if (n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))) return 0;
    return n;
}

char *detail_json(const char *text, size_t *size)
{
    static const char head[] = "{\"detail\": \"", tail[] = "\"}";
    const unsigned char *s = (const unsigned char *)text;
    char *body = malloc(sizeof head + 6 * strlen(text) + sizeof tail);
    if (!body) return NULL;
    char *out = body + sprintf(body, "%s", head);
    while (*s) {
        int n = utf8_length(s);
        if (*s == '"' || *s == '\\') {
            *out++ = '\\';
            *out++ = (char)*s;
        } else if (*s < 0x20) {
            out += sprintf(out, "\\u%04x", *s);
        } else if (n == 0) {
            *out++ = '?';
        } else {
            memcpy(out, s, (size_t)n);
            out += n;
        }
        s += n ? n : 1;
    }
    out += sprintf(out, "%s", tail);
    *size = (size_t)(out - body);
    return body;
}

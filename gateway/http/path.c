/* path.c - see path.h. */
#include "http/path.h"

#include <stdlib.h>
#include <string.h>

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Decodes in place.  A decoded NUL would cut names short behind our back, so it is refused. */
static int decode(char *s)
{
    char *out = s;
    for (; *s; s++) {
        if (*s != '%') {
            *out++ = *s;
            continue;
        }
        int high = hex_digit(s[1]);
        int low = high < 0 ? -1 : hex_digit(s[2]);
        if (low < 0 || (high | low) == 0) return -1;
        *out++ = (char)(high << 4 | low);
        s += 2;
    }
    *out = '\0';
    return 0;
}

static int split_path(struct path *p, char *s)
{
    if (*s != '/') return -1;
    while (s) {
        char *segment = s + 1;
        s = strchr(segment, '/');
        if (s) *s = '\0';
        if (p->segment_count == PATH_SEGMENTS_MAX || decode(segment) < 0) return -1;
        p->segments[p->segment_count++] = segment;
    }
    return 0;
}

static int split_query(struct path *p, char *s)
{
    while (s && *s) {
        char *name = s;
        s = strchr(s, '&');
        if (s) *s++ = '\0';
        if (!*name) continue;
        char *value = strchr(name, '=');
        if (value) *value++ = '\0';
        if (p->query_count == PATH_QUERY_MAX || decode(name) < 0) return -1;
        if (value && decode(value) < 0) return -1;
        p->query[p->query_count].name = name;
        p->query[p->query_count++].value = value ? value : "";
    }
    return 0;
}

int path_init(struct path *p, const char *target)
{
    memset(p, 0, sizeof *p);
    if (strlen(target) > PATH_TARGET_MAX) return -1;
    p->text = strdup(target);
    if (!p->text) return -1;
    char *query = strchr(p->text, '?');
    if (query) *query++ = '\0';
    if (split_path(p, p->text) == 0 && split_query(p, query) == 0) return 0;
    path_clear(p);
    return -1;
}

void path_clear(struct path *p)
{
    free(p->text);
    memset(p, 0, sizeof *p);
}

bool path_matches(const struct path *p, const char *pattern, int stars[PATH_SEGMENTS_MAX])
{
    int n = 0, star_count = 0;
    while (*pattern == '/') {
        const char *word = pattern + 1;
        size_t size = strcspn(word, "/");
        if (n == p->segment_count) return false;
        const char *segment = p->segments[n];
        if (size == 1 && *word == '*') {
            if (!*segment) return false;
            stars[star_count++] = n;
        } else if (strlen(segment) != size || memcmp(segment, word, size) != 0) {
            return false;
        }
        n++;
        pattern = word + size;
    }
    return n == p->segment_count;
}

const char *path_query(const struct path *p, const char *name)
{
    for (int i = 0; i < p->query_count; i++)
        if (!strcmp(p->query[i].name, name)) return p->query[i].value;
    return NULL;
}

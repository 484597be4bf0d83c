/* sql.c - see sql.h. */
#include "api/sql.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_number(struct call *c, const char *name, long long preset, long long max,
                       char out[24])
{
    const char *text = http_query(c->r, name);
    char *end = NULL;
    errno = 0;
    long long n = text ? strtoll(text, &end, 10) : preset;
    if (text && (errno || end == text || *end || n < 0)) {
        http_answer_error(c->r, 400, "%s is \"%.40s\", expected a whole number from 0 up", name,
                          text);
        return -1;
    }
    snprintf(out, 24, "%lld", n > max ? max : n);
    return 0;
}

int sql_page(struct call *c, int limit_preset, struct page *out)
{
    if (read_number(c, "limit", limit_preset, PAGE_LIMIT_MAX, out->limit) < 0) return -1;
    return read_number(c, "offset", 0, INT64_MAX, out->offset);
}

const char *sql_kinds(const struct call *c)
{
    return call_is_hpcai(c) ? "{training,sampler}" : "{training,sampler,external}";
}

const char *sql_accessible(struct call *c)
{
    const char *scope = http_query(c->r, "access_scope");
    if (!scope || !strcmp(scope, "owned")) return "f";
    if (!strcmp(scope, "accessible")) return "t";
    http_answer_error(c->r, 400, "access_scope is \"%.40s\", expected owned or accessible", scope);
    return NULL;
}

/* scope.c - see scope.h. */
#include "wire/scope.h"

#include <stdio.h>
#include <string.h>

static const char *const names[] = {"train", "sample", "read", "finance", "admin"};
#define COUNT (int)(sizeof names / sizeof *names)

static int scope_of(const char *text, size_t length)
{
    for (int i = 0; i < COUNT; i++)
        if (strlen(names[i]) == length && !strncmp(names[i], text, length)) return i;
    return -1;
}

int scopes_parse(const char *text, unsigned *out, struct err *e)
{
    unsigned found = 0;
    for (const char *at = text; at;) {
        size_t length = strcspn(at, ",");
        int i = scope_of(at, length);
        if (i < 0)
            return err_set(e, ERR_USER,
                           "scope \"%.*s\", expected some of train, sample, read, finance, admin "
                           "with commas between",
                           length < 60 ? (int)length : 60, at);
        found |= 1u << i;
        at = at[length] ? at + length + 1 : NULL;
    }
    *out = found;
    return 0;
}

void scopes_text(unsigned scopes, const char *between, char out[SCOPES_TEXT_SIZE])
{
    size_t n = 0;
    *out = '\0';
    for (int i = 0; i < COUNT; i++)
        if (scopes & 1u << i)
            n +=
                (size_t)snprintf(out + n, SCOPES_TEXT_SIZE - n, "%s%s", n ? between : "", names[i]);
}

bool scopes_suffice(unsigned held, unsigned any_of)
{
    return !any_of || held & any_of || held & SCOPE_ADMIN;
}

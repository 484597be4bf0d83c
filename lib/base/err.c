/* err.c - see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *e, enum err_kind kind, const char *fmt, ...)
{
    if (!e) return -1;
    /* The old text may be an argument of the new one, so write beside it first. */
    char text[ERR_TEXT_MAX];
    va_list va;
    va_start(va, fmt);
    vsnprintf(text, sizeof text, fmt, va);
    va_end(va);
    e->kind = kind;
    memcpy(e->text, text, sizeof text);
    return -1;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (!e) return -1;
    char prefix[ERR_TEXT_MAX], whole[2 * ERR_TEXT_MAX + 4];
    va_list va;
    va_start(va, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, va);
    va_end(va);
    snprintf(whole, sizeof whole, "%s: %s", prefix, e->text);
    whole[ERR_TEXT_MAX - 1] = '\0';
    memcpy(e->text, whole, strlen(whole) + 1);
    return -1;
}

void err_clear(struct err *e)
{
    if (!e) return;
    e->kind = ERR_NONE;
    e->text[0] = '\0';
}

const char *err_kind_name(enum err_kind kind)
{
    static const char *const names[] = {"none", "user", "retry", "bug", "lost"};
    return names[kind];
}

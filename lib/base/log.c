/* log.c - see log.h.  A line is built whole and written with one write(2), so
 * lines of several threads and processes never mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int threshold = -1; /* -1: not read from the environment yet */

static int level_now(void)
{
    int level = atomic_load_explicit(&threshold, memory_order_relaxed);
    if (level >= 0) return level;
    const char *s = getenv("TINWORKS_LOG");
    level = LOG_INFO;
    if (s && !strcmp(s, "debug")) level = LOG_DEBUG;
    if (s && !strcmp(s, "warn")) level = LOG_WARN;
    if (s && !strcmp(s, "error")) level = LOG_ERROR;
    atomic_store_explicit(&threshold, level, memory_order_relaxed);
    return level;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&threshold, level, memory_order_relaxed);
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    if ((int)level < level_now()) return;
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char line[2048];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t at = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    at += (size_t)snprintf(line + at, sizeof line - at, ".%03ldZ %s %s ", now.tv_nsec / 1000000,
                           names[level], event);
    va_list va;
    va_start(va, fmt);
    int n = vsnprintf(line + at, sizeof line - at - 1, fmt, va);
    va_end(va);
    if (n < 0) n = 0;
    at += (size_t)n;
    if (at > sizeof line - 2) at = sizeof line - 2;
    for (size_t i = 0; i < at; i++)
        if ((unsigned char)line[i] < ' ') line[i] = ' '; /* one event stays one line */
    line[at++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, at);
    (void)ignored;
}

void log_err(const char *event, const struct err *e)
{
    if (e->kind == ERR_NONE) return;
    log_error(event, "kind=%s error=\"%s\"", err_kind_name(e->kind), e->text);
}

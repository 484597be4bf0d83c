/* progress.c - see progress.h. */
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include "base/clock.h"

#define TERMINAL_US INT64_C(100000)
#define LINE_US     INT64_C(5000000)

void progress_begin(struct progress *p, int64_t steps)
{
    int64_t now = clock_mono_us();
    *p = (struct progress){
        .terminal = isatty(STDERR_FILENO), .steps = steps, .began_us = now, .told_us = now};
}

static void tell(const struct progress *p, int64_t step, double loss, double norm, int64_t took_us)
{
    int64_t left = took_us / step * (p->steps - step) / 1000000;
    double rate = (double)p->tokens * 1e6 / (double)(took_us + 1);
    fprintf(stderr,
            "%sstep %" PRId64 "/%" PRId64
            "  loss %.4f  gradient norm %.3g  %.0f tokens/s  eta %" PRId64 ":%02" PRId64 "%s",
            p->terminal ? "\r" : "", step, p->steps, loss, norm, rate, left / 60, left % 60,
            p->terminal ? "  " : "\n");
    if (p->terminal && step == p->steps) fputc('\n', stderr);
}

void progress_step(struct progress *p, int64_t step, int64_t tokens, double loss, double norm)
{
    int64_t now = clock_mono_us();
    p->tokens += tokens;
    if (step < p->steps && now - p->told_us < (p->terminal ? TERMINAL_US : LINE_US)) return;
    p->told_us = now;
    tell(p, step, loss, norm, now - p->began_us);
}

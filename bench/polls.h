/* polls.h - bench "polls": thousands of long polls parked on one gateway, what each costs in its
 * memory, and whether every one is answered once its future is settled. */
#ifndef BENCH_POLLS_H
#define BENCH_POLLS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct polls_conf {
    const char *base_url, *api_key, *model;
    int64_t count, runs, gateway_pid;
    bool json;
};

/* ERR_USER when a poll was lost or got another's answer. */
int polls_run(const struct polls_conf *conf, struct err *e) WARN_UNUSED;

#endif

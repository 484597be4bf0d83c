/* memory.h - does what the settings promise fit into this machine?
 *
 * A worker that starts and is killed for memory at hour nine takes its runs' time with it; one that
 * cannot fit says so before it reads a weight. */
#ifndef WORKER_MEMORY_H
#define WORKER_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

/* A share of the worker's memory, at its largest. */
struct memory_part {
    const char *name; /* the setting's, or what it is */
    int64_t bytes;
    bool setting; /* somebody can lower it */
};

/* Bytes that this process may use: the machine's memory, or what its control groups (v1 or v2) and
 * those above them leave of it.  0: the system does not say.  root: "" or, in tests, a folder with
 * proc/ and sys/ in it. */
int64_t memory_limit(const char *root);

int64_t memory_sum(const struct memory_part *parts, int count);

/* ERR_USER when the parts are more than limit (0: no limit is known): names them all, and the
 * setting to lower. */
int memory_check(const struct memory_part *parts, int count, int64_t limit,
                 struct err *e) WARN_UNUSED;

#endif
